//! The views and ledgers: what `power_waiting`, the outcome views and `queue_overview` say, and
//! `holds`.

use std::time::Duration;

use poweryard::model::{Hold, HoldKind, PowerAction, TargetName};

use crate::common::queue::{HOUR, Queue, failed, succeeded, wall};

fn hold(target: Option<&str>, action: Option<PowerAction>, reason: &str) -> Hold {
    let target = target.map(|name| TargetName(name.into()));
    Hold {
        target,
        action,
        label: None,
        kind: HoldKind::Operator,
        reason: reason.into(),
        since: wall(),
        until: None,
    }
}

#[tokio::test]
async fn every_reason_for_waiting_is_a_sentence_of_its_form() {
    let mut queue = Queue::new().await;
    let now = wall();
    let retried = queue.insert("r", &[]).await;
    let batches = queue.go(now).await;
    queue.give_back(&batches[0], Some(now + HOUR), now).await;
    let flying = queue.insert("f", &[("action", "'reboot'")]).await;
    queue.go(now).await;
    let next = queue.insert("a", &[]).await;
    let behind = queue.insert("A", &[]).await;
    let third = queue.insert("a", &[]).await;
    let later = queue.insert("b", &[("not_before", "'2090-01-01'")]).await;
    let after = queue.insert("c", &[("after_id", &next.to_string())]).await;
    let behind_flight = queue.insert("F", &[("action", "'start'")]).await;
    let behind_retry = queue.insert("R", &[]).await;
    let reasons = [
        (retried, format!("retry at {}", now + HOUR)),
        (next, "next".to_owned()),
        (behind, format!("behind request {next}")),
        (third, format!("behind request {behind}")),
        (later, "not due until 2090-01-01T00:00:00.000Z".to_owned()),
        (after, format!("waits for request {next}")),
        (behind_flight, format!("behind request {flying}")),
        (behind_retry, format!("behind request {retried}")),
    ];
    for (id, reason) in &reasons {
        assert_eq!(queue.reason(*id).await, *reason);
    }
    assert_eq!(
        queue.row("SELECT count(*) FROM power_waiting").await,
        reasons.len().to_string()
    );
    let columns = queue
        .rows("SELECT name FROM pragma_table_info('power_waiting')")
        .await;
    assert_eq!(columns, ["id", "target", "server_id", "action", "reason"]);
}

#[tokio::test]
async fn a_hold_is_the_reason_of_what_could_go_and_of_what_is_retried() {
    let mut queue = Queue::new().await;
    let now = wall();
    let stop = queue.insert("a", &[]).await;
    let start = queue.insert("b", &[("action", "'start'")]).await;
    let elsewhere = queue.insert("c", &[("target", "'other'")]).await;
    let later = queue.insert("d", &[("not_before", "'2090-01-01'")]).await;
    queue
        .store
        .put_hold(&hold(
            Some("default"),
            Some(PowerAction::Stop),
            "paused by ops",
        ))
        .await
        .expect("a hold");
    assert_eq!(queue.reason(stop).await, "held: paused by ops");
    assert_eq!(queue.reason(start).await, "next");
    assert_eq!(queue.reason(elsewhere).await, "next");
    assert_eq!(
        queue.reason(later).await,
        "not due until 2090-01-01T00:00:00.000Z"
    );
    queue
        .store
        .put_hold(&hold(None, None, "all is paused"))
        .await
        .expect("a hold");
    for id in [start, elsewhere] {
        assert_eq!(queue.reason(id).await, "held: all is paused");
    }
    let passing = Hold {
        kind: HoldKind::Budget,
        until: Some(now + HOUR),
        ..hold(Some("x"), None, "budget used up")
    };
    queue.store.put_hold(&passing).await.expect("a hold");
    let row = "SELECT target, action, kind, reason, until FROM holds WHERE kind = 'budget'";
    assert_eq!(
        queue.row(row).await,
        format!("x||budget|budget used up|{}", now + HOUR)
    );
    let end = queue.store.end_past_holds(now + HOUR).await;
    end.expect("ended");
    assert_eq!(queue.snapshot(&[], None).await.holds.len(), 2);
    assert!(queue.rows(row).await.is_empty());
}

#[tokio::test]
async fn a_hold_that_has_passed_is_no_reason() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    let past = Hold {
        until: Some(wall().before(Duration::from_secs(1))),
        ..hold(None, None, "over")
    };
    queue.store.put_hold(&past).await.expect("a hold");
    assert_eq!(queue.reason(id).await, "next");
}

#[tokio::test]
async fn power_outcomes_has_a_row_for_each_terminal_request() {
    let mut queue = Queue::new().await;
    let now = wall();
    let id = queue.insert("a", &[("label", "'l'")]).await;
    let batches = queue.go(now).await;
    let batch = queue.accept(&batches[0], now).await;
    assert!(queue.rows("SELECT * FROM power_outcomes").await.is_empty());
    queue
        .end(&batch, &failed(), now + Duration::from_millis(1_234))
        .await;
    let cancelled = queue.insert("b", &[]).await;
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
        .await;
    let row = "SELECT id, target, server_id, action, state, evidence, error_code, error_message, job_id, attempts, submitted_at,
                   finished_at, duration_ms FROM power_outcomes ORDER BY id";
    assert_eq!(
        queue.rows(row).await[0],
        format!(
            "{id}|default|a|stop|failed|job|BMS.0040|the server could not be stopped|job-1|1|{now}|{}|1234",
            now + Duration::from_millis(1_234)
        )
    );
    let row = format!(
        "SELECT state, job_id, attempts, submitted_at, duration_ms FROM power_outcomes WHERE id = {cancelled}"
    );
    assert_eq!(queue.row(&row).await, "cancelled||0||");
    assert_eq!(
        queue
            .row("SELECT count(*) FROM power_outcomes WHERE created_at IS NOT NULL")
            .await,
        "2"
    );
}

#[tokio::test]
async fn server_outcomes_shows_the_newest_end_of_each_server_without_case() {
    let mut queue = Queue::new().await;
    let now = wall();
    for (server, outcome, at) in [
        ("a", failed(), now),
        ("A", succeeded(), now + HOUR),
        ("b", succeeded(), now),
    ] {
        queue.insert(server, &[]).await;
        let batches = queue.go(at).await;
        queue.end(&batches[0], &outcome, at).await;
    }
    queue.insert("a", &[("target", "'other'")]).await;
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
        .await;
    queue.insert("c", &[]).await;
    let rows = "SELECT target, server_id, action, state, evidence, error_code, request_id FROM server_outcomes
                ORDER BY target, server_id";
    assert_eq!(
        queue.rows(rows).await,
        [
            "default|A|stop|succeeded|job||2",
            "default|b|stop|succeeded|job||3",
            "other|a|stop|cancelled|none|poweryard.cancelled|4"
        ]
    );
    let one = "SELECT request_id FROM server_outcomes WHERE server_id = 'a' AND target = 'default'";
    assert_eq!(queue.row(one).await, "2");
}

#[tokio::test]
async fn queue_overview_counts_what_is_not_terminal() {
    let mut queue = Queue::new().await;
    let now = wall();
    queue.insert("a", &[]).await;
    queue.insert("b", &[]).await;
    queue
        .insert("c", &[("action", "'start'"), ("target", "'other'")])
        .await;
    let batches = queue.go(now).await;
    queue.insert("a", &[]).await;
    queue.accept(&batches[0], now).await;
    queue.end(&batches[1], &succeeded(), now).await;
    let rows =
        "SELECT target, action, state, count, oldest_created_at IS NOT NULL FROM queue_overview";
    assert_eq!(
        queue.rows(rows).await,
        ["default|stop|queued|1|1", "default|stop|running|2|1"]
    );
    let oldest = "SELECT oldest_created_at = (SELECT created_at FROM power_requests WHERE id = 1) FROM queue_overview WHERE state = 'running'";
    assert_eq!(queue.row(oldest).await, "1");
}

#[tokio::test]
async fn the_ledgers_tell_what_each_call_carried_and_what_came_of_it() {
    let mut queue = Queue::new().await;
    let now = wall();
    let id = queue.insert("a", &[]).await;
    let batches = queue.go(now).await;
    queue.give_back(&batches[0], None, now).await;
    let batches = queue.go(now).await;
    let batch = queue.accept(&batches[0], now).await;
    queue.end(&batch, &succeeded(), now + HOUR).await;
    let batches = "SELECT id, target, service, endpoint, project_id, action, state, server_count, job_id, intent_at,
                       submitted_at, next_look_at, looks, finished_at FROM batches ORDER BY id";
    assert_eq!(
        queue.rows(batches).await,
        [
            format!("1|default|bms|http://127.0.0.1:1|p|stop|done|1||{now}|||0|{now}"),
            format!(
                "2|default|bms|http://127.0.0.1:1|p|stop|done|1|job-2|{now}|{now}||1|{}",
                now + HOUR
            ),
        ]
    );
    let attempts = "SELECT request_id, batch_id, result, error_code, started_at, finished_at FROM request_attempts ORDER BY batch_id";
    assert_eq!(
        queue.rows(attempts).await,
        [
            format!("{id}|1|busy|BMS.0028|{now}|{now}"),
            format!("{id}|2|succeeded||{now}|{}", now + HOUR)
        ]
    );
    assert_eq!(queue.row("SELECT attempts FROM power_requests").await, "1");
}
