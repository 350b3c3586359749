//! Promise 8: the requests of one server that are due go one at a time, in the order of arrival.

use crate::common::queue::{HOUR, Queue, failed, ids, succeeded, wall};

#[tokio::test]
async fn one_servers_requests_go_in_order_of_arrival_whatever_their_priority() {
    let mut queue = Queue::new().await;
    let now = wall();
    let first = queue.insert("a", &[("priority", "-100")]).await;
    let second = queue
        .insert("A", &[("priority", "100"), ("action", "'start'")])
        .await;
    let third = queue.insert("a", &[("priority", "50")]).await;
    let other = queue.insert("a", &[("target", "'other'")]).await;
    let batches = queue.go(now).await;
    assert_eq!(ids(&batches), [first, other]);
    let batch = queue.accept(&batches[0], now).await;
    assert!(queue.go(now).await.is_empty());
    queue.end(&batch, &failed(), now).await;
    let batches = queue.go(now).await;
    assert_eq!(ids(&batches), [second]);
    queue.end(&batches[0], &succeeded(), now).await;
    assert_eq!(ids(&queue.go(now).await), [third]);
}

#[tokio::test]
async fn higher_priority_goes_first_among_servers_then_lower_id() {
    let mut queue = Queue::new().await;
    let low = queue.insert("a", &[("priority", "-1")]).await;
    let first = queue.insert("b", &[]).await;
    let second = queue.insert("c", &[]).await;
    let high = queue.insert("d", &[("priority", "100")]).await;
    let lane = queue.lanes().await.remove(0);
    assert_eq!(
        (lane.head_id, lane.head_priority, lane.ready),
        (high, 100, 4)
    );
    for expected in [high, first, second, low] {
        let batch = queue.claim(&lane, 1, wall()).await.expect("a batch");
        assert_eq!(ids(&[batch]), [expected]);
    }
    assert_eq!(queue.claim(&lane, 1, wall()).await, None);
}

#[tokio::test]
async fn one_that_is_not_due_blocks_nobody_and_takes_its_place_when_due() {
    let mut queue = Queue::new().await;
    let now = wall();
    let early = queue
        .insert("a", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    let second = queue.insert("a", &[]).await;
    let third = queue.insert("a", &[]).await;
    let batches = queue.go(now).await;
    assert_eq!(ids(&batches), [second]);
    // Due while another is in flight: it goes next, before those that came after it.
    let due = now + HOUR * 2;
    queue.take_in(None, due).await;
    assert_eq!(queue.gate(early).await, "behind");
    queue.end(&batches[0], &succeeded(), due).await;
    let batches = queue.go(due).await;
    assert_eq!(ids(&batches), [early]);
    queue.end(&batches[0], &succeeded(), due).await;
    assert_eq!(ids(&queue.go(due).await), [third]);
}

#[tokio::test]
async fn one_that_becomes_due_makes_a_later_one_step_back() {
    let mut queue = Queue::new().await;
    let now = wall();
    let early = queue
        .insert("a", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    let second = queue.insert("a", &[]).await;
    assert_eq!(queue.reason(second).await, "next");
    queue.take_in(None, now + HOUR * 2).await;
    assert_eq!(queue.gate(early).await, "ready");
    assert_eq!(
        queue.reason(second).await,
        format!("behind request {early}")
    );
    assert_eq!(ids(&queue.go(now + HOUR * 2).await), [early]);
    assert_eq!(queue.gate(second).await, "behind");
}

#[tokio::test]
async fn one_that_arrived_later_and_becomes_due_stands_behind() {
    let mut queue = Queue::new().await;
    let first = queue.insert("a", &[]).await;
    let second = queue
        .insert("a", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    queue.take_in(None, wall() + HOUR * 2).await;
    assert_eq!(
        (queue.gate(first).await, queue.gate(second).await),
        ("ready".into(), "behind".into())
    );
}

#[tokio::test]
async fn several_of_one_server_due_at_once_line_up() {
    let mut queue = Queue::new().await;
    for _ in 0..5 {
        queue
            .insert("a", &[("not_before", "datetime('now', '+1 hour')")])
            .await;
    }
    queue.take_in(None, wall() + HOUR * 2).await;
    let gates = queue
        .rows("SELECT gate FROM power_requests ORDER BY id")
        .await;
    assert_eq!(gates, ["ready", "behind", "behind", "behind", "behind"]);
}

#[tokio::test]
async fn one_that_is_to_be_retried_holds_its_server_back() {
    let mut queue = Queue::new().await;
    let now = wall();
    let first = queue.insert("a", &[]).await;
    let second = queue.insert("a", &[]).await;
    let batches = queue.go(now).await;
    queue.give_back(&batches[0], Some(now + HOUR), now).await;
    assert!(queue.go(now).await.is_empty());
    assert_eq!(
        queue.reason(second).await,
        format!("behind request {first}")
    );
    assert_eq!(queue.due_at(None).await, Some(now + HOUR));
    assert_eq!(ids(&queue.go(now + HOUR).await), [first]);
}

#[tokio::test]
async fn one_that_comes_back_is_behind_an_earlier_one_that_became_due() {
    let mut queue = Queue::new().await;
    let now = wall();
    let early = queue
        .insert("a", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    let second = queue.insert("a", &[]).await;
    let batches = queue.go(now).await;
    let due = now + HOUR * 2;
    queue.take_in(None, due).await;
    queue.give_back(&batches[0], Some(due + HOUR), due).await;
    assert_eq!(queue.gate(early).await, "ready");
    assert_eq!(
        queue.reason(second).await,
        format!("behind request {early}")
    );
    let batches = queue.go(due).await;
    assert_eq!(ids(&batches), [early]);
    queue.end(&batches[0], &succeeded(), due).await;
    assert_eq!(queue.gate(second).await, "retry");
    assert!(queue.go(due).await.is_empty());
    assert_eq!(ids(&queue.go(due + HOUR).await), [second]);
}

#[tokio::test]
async fn a_retry_that_steps_back_keeps_its_waiting_time() {
    let mut queue = Queue::new().await;
    let now = wall();
    let early = queue
        .insert("a", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    let second = queue.insert("a", &[]).await;
    let batches = queue.go(now).await;
    queue
        .give_back(&batches[0], Some(now + HOUR * 9), now)
        .await;
    let due = now + HOUR * 2;
    assert_eq!(ids(&queue.go(due).await), [early]);
    let wait = format!("SELECT gate, retry_at FROM power_requests WHERE id = {second}");
    assert_eq!(queue.row(&wait).await, format!("retry|{}", now + HOUR * 9));
}

#[tokio::test]
async fn a_cancel_in_the_middle_leaves_the_order_of_the_rest() {
    let mut queue = Queue::new().await;
    let now = wall();
    for _ in 0..4 {
        queue.insert("a", &[]).await;
    }
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 2")
        .await;
    assert_eq!(queue.reason(3).await, "behind request 1");
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 1")
        .await;
    assert_eq!(queue.reason(4).await, "behind request 3");
    assert_eq!(ids(&queue.go(now).await), [3]);
}

#[tokio::test]
async fn one_that_waits_for_another_holds_nobody_back() {
    let mut queue = Queue::new().await;
    let now = wall();
    let awaited = queue
        .insert("x", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    let waiting = queue
        .insert("a", &[("after_id", &awaited.to_string())])
        .await;
    let third = queue.insert("a", &[]).await;
    assert_eq!(ids(&queue.go(now).await), [third]);
    assert_eq!(queue.gate(waiting).await, "after");
}

#[tokio::test]
async fn a_request_may_wait_for_another_of_the_same_server() {
    let mut queue = Queue::new().await;
    let now = wall();
    let stop = queue.insert("a", &[]).await;
    let start = queue
        .insert(
            "a",
            &[("action", "'start'"), ("after_id", &stop.to_string())],
        )
        .await;
    let batches = queue.go(now).await;
    assert_eq!(ids(&batches), [stop]);
    queue.end(&batches[0], &succeeded(), now).await;
    assert_eq!(ids(&queue.go(now).await), [start]);
}

#[tokio::test]
async fn what_was_waited_for_has_ended_whatever_the_clock_showed_then() {
    let mut queue = Queue::new().await;
    let now = wall();
    let awaited = queue.insert("x", &[]).await;
    let batches = queue.go(now).await;
    queue.end(&batches[0], &succeeded(), now + HOUR).await;
    let first = queue
        .insert("a", &[("after_id", &awaited.to_string())])
        .await;
    let second = queue.insert("a", &[]).await;
    queue
        .sql(&format!(
            "UPDATE power_requests SET not_before = '2026-01-31' WHERE id = {first}"
        ))
        .await;
    assert_eq!(ids(&queue.go(wall()).await), [first]);
    assert_eq!(
        queue.reason(second).await,
        format!("behind request {first}")
    );
}

#[tokio::test]
async fn postponing_the_first_lets_the_next_one_go() {
    let mut queue = Queue::new().await;
    let now = wall();
    let first = queue.insert("a", &[]).await;
    let second = queue.insert("a", &[]).await;
    queue
        .sql(&format!(
            "UPDATE power_requests SET not_before = datetime('now', '+1 hour') WHERE id = {first}"
        ))
        .await;
    assert_eq!(ids(&queue.go(now).await), [second]);
}

#[tokio::test]
async fn requests_of_different_travel_groups_do_not_share_a_batch() {
    let mut queue = Queue::new().await;
    let now = wall();
    let a = queue.insert("a", &[]).await;
    let batches = queue.go(now).await;
    let moves = batches[0].members.iter().map(|member| {
        let poweryard::lifecycle::Event::Returned(mut back) = crate::common::queue::back(None)
        else {
            unreachable!()
        };
        back.group = Some(7);
        (member.request, poweryard::lifecycle::Event::Returned(back))
    });
    let step = crate::common::queue::step(poweryard::lifecycle::BatchNext::Done, moves.collect());
    queue
        .store
        .record(&batches[0], &step, now)
        .await
        .expect("record");
    let b = queue.insert("b", &[]).await;
    let batches = queue.go(now).await;
    let carried: Vec<Vec<i64>> = batches
        .iter()
        .map(|batch| ids(std::slice::from_ref(batch)))
        .collect();
    assert_eq!(carried, [vec![b], vec![a]]);
}
