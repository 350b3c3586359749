//! What people do, as commands, page and API do it: what is selected, what comes of each request,
//! and the one row that each leaves in `operator_actions`.

use poweryard::model::{PowerAction, RequestState};
use poweryard::store::client::{Access, Actor, Allowed, Approval, Done, Selection};
use poweryard::store::{QueueClient, StoreError};

use crate::common::queue::{Queue, failed, wall};

const ALICE: Actor<'static> = Actor {
    who: "alice",
    reason: Some("drill"),
};
const BOB: Actor<'static> = Actor {
    who: "bob",
    reason: None,
};
const ROWS: &str =
    "SELECT who || ' ' || action || ' ' || what || ' ' || requests || ' ' || ifnull(reason, '-')
    FROM operator_actions ORDER BY id";

async fn client(queue: &Queue) -> QueueClient {
    QueueClient::open(queue.path(), Access::Write)
        .await
        .expect("a queue")
}

fn oks(done: &Done) -> Vec<(i64, bool)> {
    let results = done.results.iter();
    results.map(|result| (result.id, result.ok)).collect()
}

fn count(done: &Done) -> usize {
    usize::try_from(done.done).expect("few")
}

#[tokio::test]
async fn two_people_cancel_the_same_label_and_both_leave_a_row() {
    let mut queue = Queue::new().await;
    for server in ["a", "b", "c"] {
        queue.insert(server, &[("label", "'x'")]).await;
    }
    let (mut one, mut other) = (client(&queue).await, client(&queue).await);
    let which = Selection::of_label("x");
    let (first, second) = tokio::join!(one.cancel(ALICE, &which), other.cancel(BOB, &which));
    let mut counts = [
        count(&first.expect("cancelled")),
        count(&second.expect("nothing left")),
    ];
    counts.sort_unstable();
    assert_eq!(counts, [0, 3]);
    let rows = "SELECT group_concat(requests) FROM (SELECT requests FROM operator_actions ORDER BY requests)";
    assert_eq!(queue.row(rows).await, "0,3");
}

#[tokio::test]
async fn each_thing_that_people_do_is_one_row_with_who_and_why() {
    let mut queue = Queue::new().await;
    for server in ["a", "b", "c"] {
        queue.insert(server, &[("label", "'x y'")]).await;
    }
    let mut client = client(&queue).await;
    let label = Selection::of_label("x y");
    let lane = Selection::of_lane("default", PowerAction::Stop);
    let paused = client.pause(ALICE, &lane, wall()).await.expect("paused");
    assert!(paused.is_new && paused.requests == 3);
    let again = client.pause(BOB, &lane, wall()).await.expect("no failure");
    assert!(!again.is_new && again.requests == 0);
    let way = poweryard::model::LetGo::Wave;
    let resumed = client.resume(BOB, &lane, way).await.expect("resumed");
    assert_eq!((resumed.pauses, resumed.requests), (1, 3));
    client.resume_all(BOB).await.expect("nothing is paused");
    let seen = client.unapproved(&label).await.expect("readable");
    let approval = client.approve(ALICE, &label, &seen).await.expect("done");
    assert!(matches!(approval, Approval::Done(done) if done.done == 3));
    let ids = Selection::of_ids(vec![1, 2]);
    let done = client.override_windows(ALICE, &ids).await.expect("done");
    assert_eq!(oks(&done), [(1, true), (2, true)]);
    let done = client.cancel(BOB, &Selection::of_ids(vec![3, 1, 2])).await;
    assert_eq!(count(&done.expect("cancelled")), 3);
    let expired = Selection {
        states: vec![RequestState::Cancelled],
        ..label
    };
    let done = client.retry(ALICE, &expired).await.expect("tried again");
    assert_eq!(done.results[0].new_id, Some(4));
    client.release(BOB, false).await.expect("nothing is held");
    assert_eq!(
        queue.rows(ROWS).await,
        [
            "alice pause --target default --action stop 3 drill",
            "bob pause --target default --action stop 0 -",
            "bob resume --target default --action stop 3 -",
            "bob resume --all 0 -",
            "alice approve --label 'x y' 3 drill",
            "alice override 1 2 2 drill",
            "bob cancel 3 1 2 3 -",
            "alice retry --label 'x y' --state cancelled 3 drill",
            "bob release the restored copy 0 -",
        ]
    );
    let copied = "SELECT group_concat(DISTINCT requested_by || ' ' || label) FROM power_requests WHERE id > 3";
    assert_eq!(queue.row(copied).await, "alice x y");
}

#[tokio::test]
async fn a_selection_of_nothing_in_particular_is_refused_and_leaves_no_row() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[]).await;
    let mut client = client(&queue).await;
    let nothing = Selection::default();
    for refused in [
        client.cancel(ALICE, &nothing).await,
        client.retry(ALICE, &nothing).await,
        client.override_windows(ALICE, &nothing).await,
        client
            .override_windows(BOB, &Selection::of_ids(vec![1]))
            .await,
    ] {
        assert!(
            matches!(refused, Err(StoreError::Refused(_))),
            "{refused:?}"
        );
    }
    assert!(client.unapproved(&nothing).await.is_err());
    let unknown = client.cancel(ALICE, &Selection::of_ids(vec![1, 99])).await;
    assert!(matches!(unknown, Err(StoreError::NoSuchRequest(99))));
    let long = "x".repeat(1025);
    let wordy = Actor {
        who: "alice",
        reason: Some(&long),
    };
    let refused = client.cancel(wordy, &Selection::of_ids(vec![1])).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    assert_eq!(queue.state(1).await, "queued");
    // No ids are not all ids.
    let none = client.cancel(ALICE, &Selection::of_ids(Vec::new())).await;
    assert_eq!(none.expect("no failure"), Done::default());
    assert_eq!(
        queue.row("SELECT count(*) FROM operator_actions").await,
        "1"
    );
}

#[tokio::test]
async fn a_filter_selects_by_all_that_it_names() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[("label", "'x'")]).await;
    queue
        .insert("b", &[("label", "'x'"), ("action", "'start'")])
        .await;
    queue.insert("c", &[("target", "'eu'")]).await;
    queue.insert("a", &[("not_before", "'2090-01-01'")]).await;
    let ended = queue.insert("d", &[("label", "'x'")]).await;
    let batches = queue.go(wall()).await;
    for batch in batches {
        let is_of_d = batch.members.iter().any(|member| member.request.0 == ended);
        if is_of_d {
            queue.end(&batch, &failed(), wall()).await;
        }
    }
    queue.insert("d", &[("label", "'x'")]).await;
    queue.insert("e", &[]).await;
    let mut client = client(&queue).await;
    let selected = async |client: &mut QueueClient, which: Selection| -> String {
        let counts = client.selected(&which).await.expect("readable");
        let texts = counts.iter().map(|count| {
            format!(
                "{} {} {} {}",
                count.target, count.action, count.state, count.requests
            )
        });
        texts.collect::<Vec<_>>().join(", ")
    };
    let all = Selection::default;
    let states = |states: &[RequestState]| Selection {
        states: states.to_vec(),
        ..Selection::default()
    };
    for (which, expected) in [
        (
            Selection::of_label("x"),
            "default start running 1, default stop failed 2, default stop queued 1",
        ),
        (states(&[RequestState::Queued]), "default stop queued 3"),
        (
            states(&[RequestState::Running]),
            "default start running 1, eu stop running 1",
        ),
        (
            Selection {
                target: Some("eu".to_owned()),
                ..all()
            },
            "eu stop running 1",
        ),
        (
            Selection {
                servers: Some(vec!["A".to_owned(), "e".to_owned()]),
                ..all()
            },
            "default stop failed 1, default stop queued 2",
        ),
        (
            Selection {
                error_code: Some("BMS.0040".to_owned()),
                ..all()
            },
            "default stop failed 2",
        ),
        (
            Selection {
                since: Some("2090-01-01T00:00:00.000Z".to_owned()),
                ..all()
            },
            "",
        ),
        (
            Selection {
                until: Some("2090-01-01T00:00:00.000Z".to_owned()),
                states: vec![RequestState::Failed],
                ..all()
            },
            "default stop failed 2",
        ),
        (
            Selection {
                action: Some(PowerAction::Start),
                ..Selection::of_label("x")
            },
            "default start running 1",
        ),
    ] {
        let words = which.words();
        assert_eq!(selected(&mut client, which).await, expected, "{words}");
    }
}

#[tokio::test]
async fn nobody_touches_what_is_not_theirs() {
    let mut queue = Queue::new().await;
    queue
        .insert("a", &[("requested_by", "'ci'"), ("label", "'x'")])
        .await;
    queue
        .insert("b", &[("requested_by", "'eve'"), ("label", "'x'")])
        .await;
    queue
        .insert(
            "c",
            &[
                ("requested_by", "'ci'"),
                ("label", "'x'"),
                ("target", "'eu'"),
            ],
        )
        .await;
    let mut client = client(&queue).await;
    let ci = Actor {
        who: "ci",
        reason: None,
    };
    let allowed = Allowed {
        targets: Some(vec!["default".to_owned()]),
        actions: Some(vec![PowerAction::Stop]),
        requested_by: Some("ci".to_owned()),
    };
    let unseen = Selection {
        allowed: allowed.clone(),
        ..Selection::of_ids(vec![1, 3])
    };
    let refused = client.cancel(ci, &unseen).await;
    assert!(matches!(refused, Err(StoreError::NoSuchRequest(3))));
    let named = Selection {
        allowed: allowed.clone(),
        ..Selection::of_ids(vec![1, 2])
    };
    let done = client.cancel(ci, &named).await.expect("one of them");
    assert_eq!(oks(&done), [(1, true), (2, false)]);
    assert_eq!(done.results[1].message, "is not one that you may change");
    let label = Selection {
        allowed,
        ..Selection::of_label("x")
    };
    assert_eq!(
        client.cancel(ci, &label).await.expect("nothing"),
        Done::default()
    );
    let left = "SELECT group_concat(id) FROM power_requests WHERE state = 'queued'";
    assert_eq!(queue.row(left).await, "2,3");
    let everything = Selection {
        target: None,
        label: None,
        ..label
    };
    let refused = client.pause(ci, &everything, wall()).await;
    assert!(matches!(refused, Err(StoreError::NotAllowed(_))));
    assert_eq!(queue.row("SELECT count(*) FROM holds").await, "0");
}

#[tokio::test]
async fn a_reason_to_leave_is_noted_once_for_one_command() {
    let mut queue = Queue::new().await;
    let mut client = client(&queue).await;
    let row = |server: &str| poweryard::store::client::NewRequest {
        server_id: server.to_owned(),
        action: "stop".to_owned(),
        target: "default".to_owned(),
        priority: 0,
        not_before: None,
        expires_at: None,
        after_id: None,
        request_key: None,
        label: None,
        requested_by: Some("alice".to_owned()),
        override_reason: Some("fire".to_owned()),
    };
    let rows = ["a", "b", "c"].map(row);
    client.enqueue(&rows, false).await.expect("inserted");
    assert_eq!(queue.rows(ROWS).await, ["alice override 1-3 3 fire"]);
    // It is noted again when somebody else changes it, and a daemon sends it because of that.
    queue
        .sql("UPDATE power_requests SET override_reason = 'smoke' WHERE id = 2")
        .await;
    assert_eq!(
        queue
            .row("SELECT group_concat(request_id) FROM noted_overrides")
            .await,
        "1,3"
    );
}
