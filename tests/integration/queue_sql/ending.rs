//! Ends: a producer's cancel, expiry, what waits for another (after_id), and deleting.

use crate::common::queue::{HOUR, Queue, failed, ids, succeeded, wall};

#[tokio::test]
async fn a_cancel_by_the_producer_is_filled_in_by_the_schema() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[("label", "'x'")]).await;
    queue.insert("b", &[("label", "'y'")]).await;
    queue
        .sql("UPDATE power_requests SET state='cancelled' WHERE label='x' AND state='queued'")
        .await;
    let row = "SELECT state, evidence, error_code, error_message, retry_at, gate,
                   abs(julianday(finished_at) - julianday('now')) < 0.001 FROM power_requests WHERE id = ";
    assert_eq!(
        queue.row(&format!("{row}{id}")).await,
        "cancelled|none|poweryard.cancelled|cancelled while queued|||1"
    );
    assert_eq!(
        queue
            .row("SELECT count(*) FROM power_requests WHERE state = 'queued'")
            .await,
        "1"
    );
}

#[tokio::test]
async fn a_cancel_with_an_end_of_its_own_is_refused() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[]).await;
    for more in [
        "finished_at = '2020-01-01'",
        "finished_at = '2020-01-01T00:00:00.000Z'",
        "evidence = 'job'",
    ] {
        let complaint = queue
            .refused(&format!(
                "UPDATE power_requests SET state = 'cancelled', {more}"
            ))
            .await;
        assert!(
            complaint.starts_with("a producer changes only priority"),
            "{complaint}"
        );
    }
}

#[tokio::test]
async fn every_kind_of_waiting_request_can_be_cancelled() {
    let mut queue = Queue::new().await;
    let now = wall();
    let ready = queue.insert("ready", &[]).await;
    let behind = queue.insert("ready", &[]).await;
    let later = queue
        .insert("later", &[("not_before", "'2090-01-01'")])
        .await;
    let after = queue.insert("after", &[("after_id", "1")]).await;
    let retry = queue
        .insert("retry", &[("priority", "1"), ("target", "'t'")])
        .await;
    let batches = queue.go(now).await;
    for batch in batches {
        queue.give_back(&batch, Some(now + HOUR), now).await;
    }
    for (id, gate) in [
        (ready, "retry"),
        (behind, "behind"),
        (later, "later"),
        (after, "after"),
        (retry, "retry"),
    ] {
        assert_eq!(queue.gate(id).await, gate);
    }
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
        .await;
    assert_eq!(
        queue
            .row("SELECT count(*) FROM power_outcomes WHERE error_code = 'poweryard.cancelled' AND evidence = 'none'")
            .await,
        "5"
    );
}

#[tokio::test]
async fn a_request_waits_for_the_one_it_names_and_goes_once_that_has_succeeded() {
    let mut queue = Queue::new().await;
    let now = wall();
    let first = queue.insert("a", &[]).await;
    let second = queue.insert("b", &[("after_id", &first.to_string())]).await;
    let batches = queue.go(now).await;
    assert_eq!(ids(&batches), [first]);
    assert!(queue.go(now).await.is_empty());
    queue.end(&batches[0], &succeeded(), now).await;
    let due_at = queue.due_at(None).await;
    assert!(due_at.is_some_and(|due| due <= now));
    assert_eq!(ids(&queue.go(now).await), [second]);
    let late = queue.insert("c", &[("after_id", &first.to_string())]).await;
    assert_eq!(ids(&queue.go(now).await), [late]);
}

#[tokio::test]
async fn not_before_counts_also_after_the_awaited_end() {
    let mut queue = Queue::new().await;
    let now = wall();
    let first = queue.insert("a", &[]).await;
    let second = queue
        .insert("b", &[("after_id", "1"), ("not_before", "'2090-01-01'")])
        .await;
    let batches = queue.go(now).await;
    queue.end(&batches[0], &succeeded(), now).await;
    assert!(queue.go(now).await.is_empty());
    assert_eq!(
        queue.reason(second).await,
        "not due until 2090-01-01T00:00:00.000Z"
    );
    let due = "2090-01-01T00:00:00.000Z".parse().expect("a time");
    assert_eq!(ids(&queue.go(due).await), [second]);
    assert_eq!(queue.state(first).await, "succeeded");
}

#[tokio::test]
async fn a_chain_is_cancelled_from_its_first_failure_on() {
    let mut queue = Queue::new().await;
    let now = wall();
    let first = queue.insert("a", &[]).await;
    let second = queue.insert("b", &[("after_id", "1")]).await;
    let third = queue.insert("c", &[("after_id", "2")]).await;
    let fourth = queue
        .insert("c", &[("after_id", "3"), ("not_before", "'2090-01-01'")])
        .await;
    let batches = queue.go(now).await;
    queue.end(&batches[0], &failed(), now).await;
    assert_eq!(queue.take_in(None, now).await.cancelled, 3);
    let row = "SELECT state, evidence, error_code, error_message FROM power_requests WHERE id = ";
    let said = |id: i64, state: &str| {
        format!(
            "cancelled|none|poweryard.dependency|request {id}, which it waited for, ended as {state}"
        )
    };
    assert_eq!(
        queue.row(&format!("{row}{second}")).await,
        said(first, "failed")
    );
    assert_eq!(
        queue.row(&format!("{row}{third}")).await,
        said(second, "cancelled")
    );
    assert_eq!(
        queue.row(&format!("{row}{fourth}")).await,
        said(third, "cancelled")
    );
    let late = queue.insert("d", &[("after_id", "4")]).await;
    assert!(queue.go(now).await.is_empty());
    assert_eq!(
        queue.row(&format!("{row}{late}")).await,
        said(fourth, "cancelled")
    );
}

#[tokio::test]
async fn a_cancel_or_an_expiry_ends_those_that_wait_for_it() {
    let mut queue = Queue::new().await;
    let now = wall();
    queue.insert("a", &[]).await;
    queue.insert("b", &[("after_id", "1")]).await;
    queue
        .insert(
            "c",
            &[
                ("expires_at", "datetime('now', '+1 hour')"),
                ("not_before", "datetime('now', '+30 minutes')"),
            ],
        )
        .await;
    queue.insert("d", &[("after_id", "3")]).await;
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 1")
        .await;
    let taken = queue.take_in(None, now + HOUR + HOUR).await;
    assert_eq!((taken.expired, taken.cancelled), (1, 2));
    assert_eq!(
        queue
            .rows("SELECT state FROM power_requests ORDER BY id")
            .await,
        ["cancelled", "cancelled", "expired", "cancelled"]
    );
}

#[tokio::test]
async fn a_thousand_that_wait_for_one_end_with_it() {
    let mut queue = Queue::new().await;
    let now = wall();
    queue.insert("a", &[]).await;
    queue
        .sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO power_requests (server_id, action, after_id) SELECT 's' || i, 'stop', 1 FROM n",
        )
        .await;
    let batches = queue.go(now).await;
    queue.end(&batches[0], &failed(), now).await;
    assert_eq!(queue.take_in(None, now).await.cancelled, 1000);
    assert_eq!(
        queue
            .row("SELECT count(*) FROM power_requests WHERE gate IS NOT NULL")
            .await,
        "0"
    );
}

#[tokio::test]
async fn expiry_counts_from_the_latest_of_arrival_not_before_and_after_id() {
    let mut queue = Queue::new().await;
    let now = wall();
    let plain = queue.insert("a", &[]).await;
    let later = queue
        .insert("b", &[("not_before", "datetime('now', '+10 hours')")])
        .await;
    let awaited = queue
        .insert(
            "c",
            &[
                ("target", "'t'"),
                ("not_before", "datetime('now', '+100 hours')"),
            ],
        )
        .await;
    let after = queue
        .insert("d", &[("after_id", &awaited.to_string())])
        .await;
    let own = queue
        .insert("e", &[("expires_at", "datetime('now', '+200 hours')")])
        .await;
    let ttl = Some(HOUR);
    assert_eq!(queue.take_in(ttl, now + HOUR / 2).await.expired, 0);
    assert_eq!(queue.take_in(ttl, now + HOUR * 2).await.expired, 1);
    assert_eq!(queue.state(plain).await, "expired");
    assert_eq!(queue.take_in(ttl, now + HOUR * 12).await.expired, 1);
    assert_eq!(queue.state(later).await, "expired");
    assert_eq!(
        queue
            .take_in(ttl, now + HOUR * 100 + HOUR / 2)
            .await
            .expired,
        0
    );
    let batches = queue.claim_all(now + HOUR * 100 + HOUR / 2).await;
    assert!(ids(&batches).contains(&awaited));
    for batch in &batches {
        queue.end(batch, &succeeded(), now + HOUR * 150).await;
    }
    assert_eq!(
        queue
            .take_in(ttl, now + HOUR * 150 + HOUR / 2)
            .await
            .expired,
        0
    );
    assert_eq!(queue.take_in(ttl, now + HOUR * 152).await.expired, 1);
    assert_eq!(queue.state(after).await, "expired");
    assert_eq!(queue.state(own).await, "succeeded");
    let row = format!("SELECT evidence, error_code FROM power_requests WHERE id = {plain}");
    assert_eq!(queue.row(&row).await, "none|poweryard.expired");
}

#[tokio::test]
async fn take_in_counts_what_it_did_also_when_a_chunk_is_full() {
    let mut queue = Queue::new().await;
    let now = wall();
    queue
        .sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO power_requests (server_id, action, expires_at)
             SELECT 's' || i, 'stop', CASE WHEN i % 2 THEN datetime('now', '+1 hour') END FROM n",
        )
        .await;
    assert_eq!(
        queue.take_in(Some(HOUR), now + HOUR * 3).await.expired,
        1000
    );
}

#[tokio::test]
async fn what_is_unfinished_or_still_awaited_cannot_be_deleted() {
    let mut queue = Queue::new().await;
    let now = wall();
    let unfinished = "an unfinished request cannot be deleted; cancel it while it is queued";
    queue.insert("a", &[]).await;
    queue.insert("b", &[("after_id", "1")]).await;
    assert_eq!(
        queue
            .refused("DELETE FROM power_requests WHERE id = 1")
            .await,
        unfinished
    );
    let batches = queue.go(now).await;
    assert_eq!(
        queue
            .refused("DELETE FROM power_requests WHERE id = 1")
            .await,
        unfinished
    );
    let batch = queue.accept(&batches[0], now).await;
    assert_eq!(
        queue.refused("DELETE FROM power_requests").await,
        unfinished
    );
    queue.end(&batch, &succeeded(), now).await;
    let awaited = "another request waits for this one; it cannot be deleted yet";
    assert_eq!(
        queue
            .refused("DELETE FROM power_requests WHERE id = 1")
            .await,
        awaited
    );
    queue.take_in(None, now).await;
    assert_eq!(
        queue
            .refused("DELETE FROM power_requests WHERE id = 1")
            .await,
        awaited
    );
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 2")
        .await;
    queue.sql("DELETE FROM power_requests").await;
}
