//! A queue at a glance, for tests of what is drawn of it.

use crate::model::UtcMillis;
use crate::store::client::{
    BatchNote, BatchRecord, DaemonNote, Ended, EndedCount, ErrorCount, Glance, HoldRecord,
    OrderNote, OrderRecord, OutcomeSlot, OverviewCount, RequestRecord, StateCount, TargetHealth,
    TargetNote, WaitingGroup,
};

const NOW: &str = "2026-01-31T22:10:00.000Z";

/// The time of the glance.
pub(super) fn now() -> UtcMillis {
    NOW.parse().expect("a time")
}

/// An owned text.
pub(super) fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn hold(kind: &str, reason: &str) -> HoldRecord {
    HoldRecord {
        target: some("eu"),
        action: some("stop"),
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        since: "2026-01-31T22:00:00.000Z".to_owned(),
        ..HoldRecord::default()
    }
}

/// A request that failed.
pub(super) fn failure(id: i64) -> RequestRecord {
    RequestRecord {
        id,
        server_id: format!("server-{id}"),
        name: some(&format!("gpu-{id:04}")),
        target: "eu".to_owned(),
        action: "stop".to_owned(),
        state: "failed".to_owned(),
        error_code: some("BMS.0040"),
        label: some("evac"),
        created_at: "2026-01-31T22:00:00.000Z".to_owned(),
        finished_at: some("2026-01-31T22:05:00.000Z"),
        ..RequestRecord::default()
    }
}

/// A busy queue.
pub(super) fn glance() -> Glance {
    let count = |state: &str, count: i64| OverviewCount {
        target: "eu".to_owned(),
        action: "stop".to_owned(),
        state: state.to_owned(),
        count,
        oldest_created_at: some("2026-01-31T20:00:00.000Z"),
    };
    let ended = |state: &str, count: i64| EndedCount {
        target: "eu".to_owned(),
        action: "stop".to_owned(),
        state: state.to_owned(),
        error_code: None,
        count,
    };
    let group = |kind: &str, reason: &str, count: i64| WaitingGroup {
        target: some("eu"),
        action: some("stop"),
        label: None,
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        until: some("2026-01-31T22:40:00.000Z"),
        ends: "they are sent automatically as the budget allows".to_owned(),
        count,
    };
    Glance {
        as_of: now(),
        headline: "In the last hour 4,940 off, 59 failed; 245 on their way; 430 waiting: 280 for the budget until 22:40, 150 paused."
            .to_owned(),
        trouble: some("59 failed"),
        daemon: DaemonNote {
            running: Some(true),
            pid: Some(7),
            since: some(NOW),
            waits: None,
        },
        queue: vec![count("queued", 430), count("running", 245)],
        oldest_ready: Vec::new(),
        oldest_waiting_since: some("2026-01-31T20:00:00.000Z"),
        waiting: vec![
            group("budget", "the budget of stop on target eu is used up", 280),
            group("operator", "stop on target eu paused by bob: rack 7 is moved", 150),
        ],
        holds: vec![
            hold("operator", "stop on target eu paused by bob: rack 7 is moved"),
            hold("budget", "the budget of stop on target eu is used up"),
        ],
        orders: vec![OrderNote {
            order: OrderRecord {
                label: "kernel".to_owned(),
                waves: "1, 5%".to_owned(),
                state: "held".to_owned(),
                wave: 2,
                servers: 5000,
                wave_size: 250,
                wave_servers: 250,
                expires_at: some("2026-02-07T22:00:00.000Z"),
                ..OrderRecord::default()
            },
            targets: vec!["eu".to_owned()],
            hold: Some(hold("wave", "wave 3 waits: 3 of 251 servers failed")),
            requests: vec![StateCount {
                state: "succeeded".to_owned(),
                count: 248,
            }],
        }],
        batches: vec![BatchNote {
            batch: BatchRecord {
                id: 12,
                target: "eu".to_owned(),
                action: "stop".to_owned(),
                state: "tracking".to_owned(),
                server_count: 998,
                job_id: some("job-1"),
                intent_at: "2026-01-31T22:09:20.000Z".to_owned(),
                ..BatchRecord::default()
            },
            known: 753,
            elapsed_ms: 40_000,
            usual_ms: Some(45_000),
        }],
        batches_left_out: 0,
        ended: Ended {
            counted_since: None,
            hour: vec![ended("succeeded", 4940), ended("failed", 59)],
            day: vec![ended("succeeded", 4940), ended("failed", 59)],
            minutes: (0..60)
                .map(|minute| OutcomeSlot {
                    at: now(),
                    succeeded: minute,
                    failed: minute % 7,
                    unknown: 0,
                    other: 0,
                })
                .collect(),
            hours: Vec::new(),
            errors: vec![ErrorCount {
                state: "failed".to_owned(),
                error_code: some("BMS.0040"),
                message: some("failed to stop the BMS"),
                count: 59,
                newest_id: 99,
            }],
            newest_failures: (1..30).map(failure).collect(),
        },
        targets: vec![TargetHealth {
            note: TargetNote {
                target: "eu".to_owned(),
                service: "bms".to_owned(),
                endpoint: "https://bms.example.test".to_owned(),
                project_id: "p".to_owned(),
                submits_per_minute: 50,
                pace_per_minute: 25,
                throttles: 0,
                calls_last_minute: 12,
                inventory_at: some("2026-01-31T22:00:00.000Z"),
                inventory_error: None,
                updated_at: NOW.to_owned(),
            },
            breaker: None,
            credentials: Some(hold("credentials", "the cloud refuses the key")),
        }],
    }
}

/// The same with far more of everything than a screen holds.
pub(super) fn many() -> Glance {
    let mut many = glance();
    for number in 0..100 {
        let mut group = many.waiting[0].clone();
        group.reason = format!("reason {number} {}", "and so on ".repeat(40));
        many.waiting.push(group);
        let mut batch = many.batches[0].clone();
        batch.batch.id += number;
        many.batches.push(batch);
        let mut target = many.targets[0].clone();
        target.note.target = format!("target-{number}-{}", "x".repeat(40));
        many.targets.push(target);
        let mut order = many.orders[0].clone();
        order.order.label = format!("order {number} {}", "電".repeat(60));
        many.orders.push(order);
        let mut error = many.ended.errors[0].clone();
        error.error_code = some(&format!("BMS.{number:04}"));
        many.ended.errors.push(error);
        let mut count = many.queue[0].clone();
        count.target = format!("target-{number}");
        many.queue.push(count);
    }
    many
}
