//! Random walks of producers and the daemon over one queue: after every step its gates are sound,
//! and at the end of all time nothing is left waiting.

use std::time::Duration;

use poweryard::lifecycle::{BatchNext, Event, Outcome};
use poweryard::model::{Batch, BatchId, OwnCode, UtcMillis};
use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::common::queue::{HOUR, Queue, back, failed, step, succeeded, wall};

/// One step. Numbers pick among what there is.
#[derive(Debug, Clone)]
enum Move {
    Insert {
        server: u8,
        start: bool,
        time: Time,
        after: Option<u8>,
        key: Option<u8>,
        priority: i8,
    },
    Postpone {
        which: u8,
        time: Time,
    },
    Cancel {
        which: u8,
    },
    Delete {
        which: u8,
    },
    TakeIn {
        hours: u8,
    },
    Claim {
        servers_max: u8,
    },
    Accept {
        which: u8,
    },
    LeaveLine,
    Settle {
        which: u8,
        ends: Vec<End>,
    },
}

/// A `not_before`.
#[derive(Debug, Clone, Copy)]
enum Time {
    None,
    Past,
    InHours(u8),
}

/// What becomes of one member of a batch.
#[derive(Debug, Clone, Copy)]
enum End {
    Stays,
    Succeeds,
    Fails,
    Unknown,
    ComesBack { hours: Option<u8>, group: u8 },
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![3 => Just(Time::None), 1 => Just(Time::Past), 3 => (1u8..30).prop_map(Time::InHours)]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        1 => Just(End::Stays),
        3 => Just(End::Succeeds),
        1 => Just(End::Fails),
        1 => Just(End::Unknown),
        3 => (prop::option::of(0u8..10), 0u8..3).prop_map(|(hours, group)| End::ComesBack { hours, group }),
    ]
}

fn moves() -> impl Strategy<Value = Move> {
    let insert = (
        0u8..6,
        any::<bool>(),
        time(),
        prop::option::weighted(0.3, any::<u8>()),
        prop::option::weighted(0.2, 0u8..4),
        -2i8..3,
    )
        .prop_map(|(server, start, time, after, key, priority)| Move::Insert {
            server,
            start,
            time,
            after,
            key,
            priority,
        });
    prop_oneof![
        8 => insert,
        2 => (any::<u8>(), time()).prop_map(|(which, time)| Move::Postpone { which, time }),
        1 => any::<u8>().prop_map(|which| Move::Cancel { which }),
        1 => any::<u8>().prop_map(|which| Move::Delete { which }),
        3 => (0u8..12).prop_map(|hours| Move::TakeIn { hours }),
        4 => (1u8..4).prop_map(|servers_max| Move::Claim { servers_max }),
        2 => any::<u8>().prop_map(|which| Move::Accept { which }),
        1 => Just(Move::LeaveLine),
        4 => (any::<u8>(), prop::collection::vec(end(), 4)).prop_map(|(which, ends)| Move::Settle { which, ends }),
    ]
}

/// Each query finds what must not exist.
const NEVER: &[(&str, &str)] = &[
    (
        "two of one server are running",
        "SELECT target, server_id FROM power_requests WHERE state = 'running'
         GROUP BY target, server_id COLLATE NOCASE HAVING count(*) > 1",
    ),
    (
        "one stands behind nobody, and nobody knows",
        "SELECT id FROM power_requests b WHERE gate = 'behind' AND NOT EXISTS (SELECT 1 FROM power_requests f
         WHERE f.target = b.target AND f.server_id = b.server_id AND f.in_line = 1 AND f.finished_at IS NULL)
         AND NOT EXISTS (SELECT 1 FROM round_notes n WHERE n.target = b.target AND n.server_id = b.server_id)",
    ),
    (
        "one is parked in line, or stands outside of it",
        "SELECT id FROM power_requests
         WHERE (gate IN ('ready', 'retry', 'flight') AND in_line IS NULL) OR (gate IN ('behind', 'later', 'after') AND in_line = 1)",
    ),
    ("gate and end disagree", "SELECT id FROM power_requests WHERE (gate IS NULL) <> (finished_at IS NOT NULL)"),
    (
        "gate and flight disagree",
        "SELECT id FROM power_requests WHERE ifnull(gate = 'flight', 0) <> (state = 'running')",
    ),
    ("one ready waits for a retry", "SELECT id FROM power_requests WHERE gate = 'ready' AND retry_at IS NOT NULL"),
    (
        "one waits for what has ended, and nobody knows",
        "SELECT r.id FROM power_requests r JOIN power_requests a ON a.id = r.after_id
         WHERE r.gate = 'after' AND a.gate IS NULL AND a.id NOT IN (SELECT request_id FROM round_notes)",
    ),
    (
        "one waits for what is gone",
        "SELECT id FROM power_requests WHERE gate = 'after' AND after_id NOT IN (SELECT id FROM power_requests)",
    ),
    (
        "a key is doubled",
        "SELECT request_key FROM power_requests WHERE request_key IS NOT NULL GROUP BY 1 HAVING count(*) > 1",
    ),
    (
        "one waits without a reason",
        "SELECT id FROM power_waiting WHERE ifnull(reason, '') = '' OR reason LIKE 'behind request '",
    ),
];

struct Walk {
    queue: Queue,
    open: Vec<BatchId>,
    now: UtcMillis,
}

impl Walk {
    /// A request that there is, by any number.
    async fn pick(&mut self, which: u8) -> Option<String> {
        let ids = self
            .queue
            .rows("SELECT id FROM power_requests ORDER BY id")
            .await;
        (!ids.is_empty()).then(|| ids[usize::from(which) % ids.len()].clone())
    }

    /// A producer's statement: refusals are fine, damage is not.
    async fn producer(&mut self, sql: &str) {
        let _ = self.queue.try_sql(sql).await;
    }

    fn not_before(&self, time: Time) -> String {
        match time {
            Time::None => "NULL".to_owned(),
            Time::Past => "'2020-01-01'".to_owned(),
            Time::InHours(hours) => format!("'{}'", self.now + HOUR * u32::from(hours)),
        }
    }

    async fn make(&mut self, step: &Move) {
        // The schema stamps rows by the wall clock; a daemon's does not lag behind it.
        self.now = self.now.max(wall());
        match step {
            Move::Insert {
                server,
                start,
                time,
                after,
                key,
                priority,
            } => {
                let after = match after {
                    Some(which) => self.pick(*which).await.unwrap_or("NULL".to_owned()),
                    None => "NULL".to_owned(),
                };
                let server = ["a", "A", "b", "B", "c", "d"][usize::from(*server)];
                let action = if *start { "start" } else { "stop" };
                let key = key.map_or("NULL".to_owned(), |key| format!("'{key}'"));
                let not_before = self.not_before(*time);
                let or =
                    ["", " OR IGNORE", " OR REPLACE"][usize::from(priority.unsigned_abs()) % 3];
                self.producer(&format!(
                    "INSERT{or} INTO power_requests (server_id, action, not_before, after_id, request_key, priority)
                     VALUES ('{server}', '{action}', {not_before}, {after}, {key}, {priority})"
                ))
                .await;
            }
            Move::Postpone { which, time } => {
                let Some(id) = self.pick(*which).await else {
                    return;
                };
                let not_before = self.not_before(*time);
                self.producer(&format!(
                    "UPDATE power_requests SET not_before = {not_before} WHERE id = {id}"
                ))
                .await;
            }
            Move::Cancel { which } => {
                let Some(id) = self.pick(*which).await else {
                    return;
                };
                self.producer(&format!(
                    "UPDATE power_requests SET state = 'cancelled' WHERE id = {id}"
                ))
                .await;
            }
            Move::Delete { which } => {
                let Some(id) = self.pick(*which).await else {
                    return;
                };
                self.producer(&format!("DELETE FROM power_requests WHERE id = {id}"))
                    .await;
            }
            Move::TakeIn { hours } => {
                self.now = self.now + HOUR * u32::from(*hours);
                self.queue
                    .store
                    .take_in(None, self.now)
                    .await
                    .expect("take_in");
            }
            Move::Claim { servers_max } => self.claim(u32::from(*servers_max)).await,
            Move::Accept { which } => {
                if let Some(batch) = self.batch(*which).await
                    && batch.submitted_at.is_none()
                {
                    self.queue.accept(&batch, self.now).await;
                }
            }
            Move::LeaveLine => {
                self.queue.leave_line().await;
            }
            Move::Settle { which, ends } => {
                if let Some(batch) = self.batch(*which).await {
                    self.settle(&batch, ends).await;
                }
            }
        }
    }

    async fn batch(&mut self, which: u8) -> Option<Batch> {
        let id = *self.open.get(usize::from(which) % self.open.len().max(1))?;
        let loaded = self.queue.store.load_batch(id).await.expect("load_batch");
        if loaded.is_none() {
            self.open.retain(|open| *open != id);
        }
        loaded.map(|(batch, _)| batch)
    }

    /// Takes in all there is and claims; every request that leaves is the first due one of its
    /// server.
    async fn claim(&mut self, servers_max: u32) {
        self.queue.take_in(None, self.now).await;
        for lane in self.queue.lanes().await {
            let Some(batch) = self.queue.claim(&lane, servers_max, self.now).await else {
                continue;
            };
            for member in &batch.members {
                let earlier = format!(
                    "SELECT e.id FROM power_requests e JOIN power_requests c ON e.target = c.target AND e.server_id = c.server_id
                     LEFT JOIN power_requests a ON a.id = e.after_id
                     WHERE c.id = {} AND e.id < c.id AND e.state = 'queued' AND ifnull(e.not_before, '') <= '{}'
                       AND (e.after_id IS NULL OR a.state = 'succeeded')",
                    member.request, self.now
                );
                assert!(
                    self.queue.rows(&earlier).await.is_empty(),
                    "request {} overtook another",
                    member.request
                );
            }
            self.open.push(batch.id);
        }
    }

    async fn settle(&mut self, batch: &Batch, ends: &[End]) {
        let event = |end: &End| match end {
            End::Stays => None,
            End::Succeeds => Some(Event::Ended(succeeded())),
            End::Fails => Some(Event::Ended(failed())),
            End::Unknown => Some(Event::Ended(Outcome::unknown(
                OwnCode::Unproved,
                "nobody knows",
            ))),
            End::ComesBack { hours, group } => {
                let retry_at = hours.map(|hours| self.now + HOUR * u32::from(hours));
                let Event::Returned(mut back) = back(retry_at) else {
                    return None;
                };
                back.group = Some(i64::from(*group));
                Some(Event::Returned(back))
            }
        };
        let moves = batch.members.iter().zip(ends.iter().cycle());
        let moves = moves
            .filter_map(|(member, end)| event(end).map(|event| (member.request, event)))
            .collect();
        let next = match batch.submitted_at {
            Some(_) => BatchNext::Again {
                next_look_at: self.now,
                doubts: 0,
            },
            None => BatchNext::Track {
                job: None,
                next_look_at: self.now,
            },
        };
        // Members that stay of a batch that was not yet accepted would need a move of their own.
        if batch.submitted_at.is_some() || ends.iter().all(|end| !matches!(end, End::Stays)) {
            self.queue
                .store
                .record(batch, &step(next, moves), self.now)
                .await
                .expect("record");
        }
    }

    async fn check(&mut self) -> Result<(), TestCaseError> {
        for (what, sql) in NEVER {
            let found = self.queue.rows(sql).await;
            prop_assert!(
                found.is_empty(),
                "{}: {:?}\n{:#?}",
                what,
                found,
                self.all().await
            );
        }
        Ok(())
    }

    async fn all(&mut self) -> Vec<String> {
        self.queue
            .rows("SELECT id, server_id, state, gate, eligible_at, not_before, retry_at, after_id, travel_group FROM power_requests")
            .await
    }

    /// Years later, everything goes and succeeds.
    async fn finish(&mut self) -> Result<(), TestCaseError> {
        self.now = self.now + HOUR * 24 * 365;
        for _ in 0..200 {
            for id in std::mem::take(&mut self.open) {
                if let Some((batch, _)) = self.queue.store.load_batch(id).await.expect("load_batch")
                {
                    self.queue.end(&batch, &succeeded(), self.now).await;
                }
            }
            self.claim(1000).await;
            self.check().await?;
            if self.open.is_empty() {
                break;
            }
        }
        let left = self
            .queue
            .rows("SELECT id, state, gate FROM power_requests WHERE gate IS NOT NULL")
            .await;
        prop_assert!(
            left.is_empty(),
            "stuck: {:?}\n{:#?}",
            left,
            self.all().await
        );
        prop_assert_eq!(self.queue.due_at(Some(Duration::ZERO)).await, None);
        Ok(())
    }
}

proptest! {
    #![proptest_config(Config { cases: 48, failure_persistence: None, ..Config::default() })]
    #[test]
    fn whatever_happens_the_gates_stay_sound_and_nothing_waits_for_ever(
        steps in prop::collection::vec(moves(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut walk = Walk { queue: Queue::new().await, open: Vec::new(), now: wall() };
            for step in &steps {
                walk.make(step).await;
                walk.check().await?;
            }
            walk.finish().await
        })?;
    }
}
