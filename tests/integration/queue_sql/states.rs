//! The state machine as plain SQL sees it: which moves are accepted, and what can be changed on the
//! way.

use crate::common::queue::Queue;

const STATES: [&str; 8] = [
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "rejected",
    "unknown",
];

/// The arrows of the contract.
const MOVES: &[(&str, &str)] = &[
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "expired"),
    ("queued", "rejected"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "unknown"),
];

const BATCH: &str = "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at)
    VALUES ('default', 'bms', 'e', 'p', 'stop', 'submitting', 1, '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')";

/// An UPDATE that writes everything which belongs to the state, so that only the move itself can be
/// wrong.
fn to(state: &str, id: i64) -> String {
    let rest = match state {
        "queued" => "gate = 'ready', evidence = NULL, finished_at = NULL",
        "running" => {
            "gate = 'flight', evidence = NULL, finished_at = NULL, batch_id = (SELECT max(id) FROM batches)"
        }
        "succeeded" | "failed" => {
            "gate = NULL, evidence = 'job', finished_at = '2026-01-01T00:00:00.000Z'"
        }
        _ => "gate = NULL, evidence = 'none', finished_at = '2026-01-01T00:00:00.000Z'",
    };
    format!("UPDATE power_requests SET state = '{state}', {rest} WHERE id = {id}")
}

/// A fresh request of a server of its own, brought into `state` by legal moves.
async fn request_in(queue: &mut Queue, state: &str) -> i64 {
    let count: i64 = queue
        .row("SELECT ifnull(max(id), 0) FROM power_requests")
        .await
        .parse()
        .expect("a number");
    let id = queue.insert(&format!("s{count}"), &[]).await;
    let way: &[&str] = match state {
        "queued" => &[],
        "succeeded" | "failed" | "unknown" => &["running", state],
        _ => &[state],
    };
    for state in way {
        queue.by_hand(&format!("{BATCH}; {}", to(state, id))).await;
    }
    id
}

#[tokio::test]
async fn plain_sql_can_make_exactly_the_moves_of_the_contract() {
    let mut queue = Queue::new().await;
    let mut tried = 0;
    for from in STATES {
        for next in STATES {
            tried += 1;
            let id = request_in(&mut queue, from).await;
            queue.by_hand(BATCH).await;
            let ended = !matches!(from, "queued" | "running");
            if MOVES.contains(&(from, next)) || (from == next && !ended) {
                queue.by_hand(&to(next, id)).await;
                assert_eq!(queue.state(id).await, next);
                continue;
            }
            let sentence = match ended {
                true => "this request has ended; what became of it never changes",
                false => {
                    "a request does not move this way; a producer may only cancel what is queued"
                }
            };
            for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
                let complaint = queue
                    .refused_by_hand(&to(next, id).replacen("UPDATE", update, 1))
                    .await;
                assert_eq!(complaint, sentence, "{from} -> {next}");
            }
            assert_eq!(queue.state(id).await, from);
        }
    }
    assert_eq!(tried, 64);
}

#[tokio::test]
async fn a_state_that_does_not_exist_is_refused() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    for state in [
        "'done'",
        "'submitting'",
        "NULL",
        "''",
        "x'71756575656400'",
        "5",
    ] {
        let complaint = queue
            .refused(&format!(
                "UPDATE OR IGNORE power_requests SET state = {state} WHERE id = {id}"
            ))
            .await;
        assert!(
            complaint.starts_with("a request does not move this way"),
            "{complaint}"
        );
    }
}

#[tokio::test]
async fn success_and_failure_need_evidence() {
    let mut queue = Queue::new().await;
    for state in ["succeeded", "failed"] {
        let id = request_in(&mut queue, "running").await;
        for evidence in ["'none'", "NULL", "'rumour'"] {
            queue
                .refused_by_hand(&to(state, id).replace("'job'", evidence))
                .await;
        }
    }
}

#[tokio::test]
async fn nothing_changes_in_a_request_that_has_ended() {
    let mut queue = Queue::new().await;
    let columns = queue
        .rows("SELECT name FROM pragma_table_info('power_requests')")
        .await;
    for state in &STATES[2..] {
        let id = request_in(&mut queue, state).await;
        for column in &columns {
            let sql =
                format!("UPDATE OR REPLACE power_requests SET {column} = {column} WHERE id = {id}");
            assert_eq!(
                queue.refused(&sql).await,
                "this request has ended; what became of it never changes"
            );
        }
    }
}

#[tokio::test]
async fn what_a_request_asks_for_never_changes() {
    let mut queue = Queue::new().await;
    queue.insert("first", &[]).await;
    for state in &STATES[..2] {
        let id = request_in(&mut queue, state).await;
        for change in [
            "id = id + 100",
            "server_id = 'other'",
            "server_id = upper(server_id)",
            "action = 'start'",
            "target = 'other'",
            "after_id = 1",
            "request_key = 'k'",
            "requested_by = 'me'",
            "created_at = '2020-01-01T00:00:00.000Z'",
            "server_id = NULL",
        ] {
            let sql = format!("UPDATE OR REPLACE power_requests SET {change} WHERE id = {id}");
            assert_eq!(
                queue.refused(&sql).await,
                "what a request asks for never changes; cancel it and insert another",
                "{sql}"
            );
        }
        queue
            .sql(&format!(
                "UPDATE power_requests SET server_id = server_id, action = 'stop' WHERE id = {id}"
            ))
            .await;
    }
}

#[tokio::test]
async fn terms_change_while_a_request_is_queued_and_not_after() {
    let mut queue = Queue::new().await;
    let changes = [
        "priority = 5",
        "not_before = '2089-01-01'",
        "expires_at = '2090-01-01'",
        "label = 'night'",
        "override_reason = 'the night shift asked for it'",
        "approved_by = 'alice'",
        "approved_by = NULL, override_reason = NULL",
        "priority = -100, label = NULL",
    ];
    let queued = request_in(&mut queue, "queued").await;
    for change in changes {
        queue
            .sql(&format!(
                "UPDATE power_requests SET {change} WHERE id = {queued}"
            ))
            .await;
    }
    for (change, sentence) in [
        (
            "priority = 101",
            "priority must be a whole number from -100 to 100",
        ),
        (
            "priority = 'x'",
            "priority must be a whole number from -100 to 100",
        ),
        (
            "priority = NULL",
            "priority must be a whole number from -100 to 100",
        ),
        (
            "label = x'00'",
            "label must be text of at most 256 characters",
        ),
        (
            "approved_by = ''",
            "approved_by must be text of 1 to 256 characters: who approves it",
        ),
        (
            "override_reason = x'00'",
            "override_reason must be text of 1 to 256 characters",
        ),
    ] {
        let sql = format!("UPDATE OR IGNORE power_requests SET {change} WHERE id = {queued}");
        assert_eq!(queue.refused(&sql).await, sentence);
    }
    let running = request_in(&mut queue, "running").await;
    for change in &changes[..6] {
        let complaint = queue
            .refused(&format!(
                "UPDATE power_requests SET {change} WHERE id = {running}"
            ))
            .await;
        assert_eq!(
            complaint,
            "priority, not_before, expires_at, label, override_reason and approved_by can be changed only while a request is queued"
        );
    }
}

#[tokio::test]
async fn only_a_fresh_batch_takes_a_request_out_of_the_queue() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    let submit = "UPDATE power_requests SET state = 'running', gate = 'flight'";
    for batch in ["", ", batch_id = NULL"] {
        assert_eq!(
            queue
                .refused_by_hand(&format!("{submit}{batch} WHERE id = {id}"))
                .await,
            "only the daemon submits requests"
        );
    }
    assert_eq!(
        queue
            .refused("UPDATE power_requests SET state = 'running'")
            .await,
        "only the daemon submits requests"
    );
}

#[tokio::test]
async fn a_server_has_one_request_in_flight_whatever_its_case() {
    let mut queue = Queue::new().await;
    let first = queue.insert("ab-1", &[]).await;
    let second = queue.insert("AB-1", &[("action", "'start'")]).await;
    let elsewhere = queue.insert("ab-1", &[("target", "'other'")]).await;
    queue
        .by_hand(&format!("{BATCH}; {}", to("running", first)))
        .await;
    queue.by_hand(BATCH).await;
    assert_eq!(
        queue.refused_by_hand(&to("running", second)).await,
        "another request for this server is in progress, or goes first"
    );
    queue.by_hand(&to("running", elsewhere)).await;
    assert_eq!(
        queue.refused_by_hand(&to("running", second)).await,
        "another request for this server is in progress, or goes first"
    );
    queue.by_hand(&to("succeeded", first)).await;
    queue.by_hand(&to("running", second)).await;
}

#[tokio::test]
async fn a_strangers_value_in_a_daemon_column_is_readable_or_refused() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    for change in [
        "attempts = 'many'",
        "attempts = 1.5",
        "attempts = -1",
        "retry_at = 'later'",
        "retry_at = 5",
        "retry_at = '2026-01-01'",
        "retry_at = x'00'",
        "eligible_at = 'x'",
        "eligible_at = '2026-01-01T00:00:00Z'",
        "submitted_at = 'x'",
        "travel_group = 'x'",
        "travel_group = 1.5",
        "batch_id = 'x'",
        "error_message = x'00'",
        "error_code = x'00'",
        "evidence = 'rumour'",
        "finished_at = '2026-01-01T00:00:00.000Z'",
        "gate = 'open'",
        "gate = 'flight'",
        "gate = 'retry'",
        "evidence = 'none'",
        "eligible_at = NULL, gate = 'later'",
    ] {
        queue
            .refused_by_hand(&format!(
                "UPDATE power_requests SET {change} WHERE id = {id}"
            ))
            .await;
    }
    queue.go(crate::common::queue::wall()).await;
    assert_eq!(queue.state(id).await, "running");
}

#[tokio::test]
async fn a_producer_cannot_write_what_the_daemon_tells() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    let before = queue.row("SELECT * FROM power_requests").await;
    for change in [
        "batch_id = 7",
        "attempts = 1",
        "retry_at = '2026-01-31T22:00:00.000Z'",
        "evidence = 'none'",
        "error_code = 'x'",
        "error_message = 'x'",
        "submitted_at = '2026-01-31T22:00:00.000Z'",
        "travel_group = 1",
        "gate = 'later', eligible_at = created_at",
        "gate = 'after', eligible_at = NULL",
        "gate = 'behind'",
        "gate = 'retry', retry_at = '2026-01-31T22:00:00.000Z'",
        "in_line = NULL",
        "baseline = 'none'",
        "seen_since = '2026-01-31T22:00:00.000Z'",
        "eligible_at = '2099-01-31T22:00:00.000Z'",
        "eligible_at = '2099-01-31T22:00:00.000Z', gate = 'later'",
        "state = 'cancelled', error_message = 'I did not mean it'",
        "state = 'cancelled', gate = NULL, evidence = 'none', finished_at = '2026-01-31T22:00:00.000Z'",
    ] {
        for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
            let complaint = queue
                .refused(&format!(
                    "{update} power_requests SET {change} WHERE id = {id}"
                ))
                .await;
            assert!(
                complaint.starts_with("a producer changes only priority"),
                "{change}: {complaint}"
            );
        }
    }
    assert_eq!(queue.row("SELECT * FROM power_requests").await, before);
}

#[tokio::test]
async fn a_producer_cannot_let_a_second_request_of_a_server_out() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[]).await;
    let second = queue.insert("a", &[]).await;
    let third = queue.insert("a", &[]).await;
    queue.go(crate::common::queue::wall()).await;
    for id in [second, third] {
        for change in ["gate = 'ready', in_line = 1", "in_line = 1"] {
            queue
                .refused(&format!(
                    "UPDATE power_requests SET {change} WHERE id = {id}"
                ))
                .await;
        }
        let by_hand =
            format!("UPDATE power_requests SET gate = 'ready', in_line = 1 WHERE id = {id}");
        assert_eq!(
            queue.refused_by_hand(&by_hand).await,
            "another request for this server is in progress, or goes first"
        );
    }
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
        .await;
    assert_eq!(
        queue
            .rows("SELECT DISTINCT state, evidence, ifnull(gate, '-') FROM power_requests WHERE id > 1")
            .await,
        ["cancelled|none|-"]
    );
}
