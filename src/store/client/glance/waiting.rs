//! What waits, grouped by the reason: the groups of `power_waiting`, without reading each request.
//! Writes nothing.
//!
//! Requests that are ready but stand behind another one of their server count as ready until the
//! claim has met them.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use utoipa::ToSchema;

use super::ending;
use super::tally::OTHER;
use crate::store::StoreError;
use crate::store::client::{HoldRecord, RequestRecord};
use crate::store::sqlite::rows::lossy;

/// Groups of each way to wait that are read; producers may invent any number of targets and labels.
const GROUPS_MAX: usize = 300;
/// Held requests whose target and action are read one by one; beyond, they are counted by label.
const HELD_ROWS_MAX: i64 = 50_000;

/// Requests that wait for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct WaitingGroup {
    /// Their target; none: of several.
    pub target: Option<String>,
    /// Their action; none: of several.
    pub action: Option<String>,
    /// Their label, where it is the label that is held.
    pub label: Option<String>,
    /// The kind of the hold; or `next`, `behind`, `later`, `after`, `retry` or `turn` (an order whose
    /// wave is not known yet).
    pub kind: String,
    /// Why they wait, as a clause.
    pub reason: String,
    /// When that ends, if it ends at a time; for `later` and `retry`, when it ends for the first.
    pub until: Option<String>,
    /// What ends it, as a clause.
    pub ends: String,
    /// How many requests.
    pub count: i64,
}

/// Requests that have in common what holds look at.
#[derive(sqlx::FromRow, Default)]
struct Alike {
    target: Option<Vec<u8>>,
    action: Option<String>,
    label: Option<Vec<u8>>,
    wave: Option<i64>,
    is_approved: bool,
    is_excused: bool,
    until: Option<String>,
    count: i64,
}

/// Parked requests.
#[derive(sqlx::FromRow)]
struct Parked {
    target: Vec<u8>,
    gate: String,
    count: i64,
}

pub(super) async fn groups(
    connection: &mut SqliteConnection,
    holds: &[HoldRecord],
) -> Result<Vec<WaitingGroup>, StoreError> {
    let holds = in_order_of_view(holds);
    let mut groups = Groups::default();
    for alike in ready(connection).await? {
        groups.add(alike.group(&holds, next));
    }
    for alike in to_be_tried_again(connection).await? {
        groups.add(alike.group(&holds, again));
    }
    for alike in held(connection).await? {
        groups.add(alike.group(&holds, turn));
    }
    let first_due = first_due(connection).await?;
    for parked in parked(connection).await? {
        groups.add(parked.group(&first_due));
    }
    Ok(groups.largest_first())
}

/// In the order in which `power_waiting` names them: first the one that lasts longest; one without an
/// end is before all others.
pub(in crate::store::client) fn in_order_of_view(holds: &[HoldRecord]) -> Vec<&HoldRecord> {
    let mut ordered: Vec<&HoldRecord> = holds.iter().collect();
    ordered.sort_by(|one, other| {
        let has_end = one.until.is_some().cmp(&other.until.is_some());
        has_end.then_with(|| other.until.cmp(&one.until))
    });
    ordered
}

async fn ready(connection: &mut SqliteConnection) -> Result<Vec<Alike>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT CAST(target AS BLOB) AS target, action, NULL AS label, NULL AS wave, (lane & 2) <> 0 AS is_approved,
                (lane & 1) <> 0 AS is_excused, NULL AS until, sum(count) AS count
         FROM (SELECT target, action, travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL) AS lane,
                      count(*) AS count
               FROM power_requests INDEXED BY power_requests_ready WHERE gate = 'ready'
               GROUP BY target, action, travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL))
         GROUP BY target, action, lane & 3 ORDER BY sum(count) DESC LIMIT 1000",
    )
    .fetch_all(&mut *connection)
    .await?)
}

async fn to_be_tried_again(connection: &mut SqliteConnection) -> Result<Vec<Alike>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT CAST(target AS BLOB) AS target, action, NULL AS label, NULL AS wave, approved_by IS NOT NULL AS is_approved,
                override_reason IS NOT NULL AS is_excused, min(retry_at) AS until, count(*) AS count
         FROM power_requests INDEXED BY power_requests_retry WHERE gate = 'retry'
         GROUP BY target, action, approved_by IS NOT NULL, override_reason IS NOT NULL",
    )
    .fetch_all(&mut *connection)
    .await?)
}

async fn held(connection: &mut SqliteConnection) -> Result<Vec<Alike>, StoreError> {
    let is_beyond: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM power_requests INDEXED BY power_requests_held_count WHERE gate = 'held' LIMIT 1 OFFSET 0 + $1",
    )
    .bind(HELD_ROWS_MAX)
    .fetch_optional(&mut *connection)
    .await?;
    if is_beyond.is_some() {
        return Ok(sqlx::query_as(
            "SELECT NULL AS target, NULL AS action, CAST(label AS BLOB) AS label, max(wave) AS wave, 0 AS is_approved,
                    0 AS is_excused, NULL AS until, count(*) AS count
             FROM power_requests INDEXED BY power_requests_held WHERE gate = 'held' GROUP BY label, wave IS NULL",
        )
        .fetch_all(&mut *connection)
        .await?);
    }
    Ok(sqlx::query_as(
        "SELECT CAST(target AS BLOB) AS target, action, CAST(label AS BLOB) AS label, max(wave) AS wave,
                approved_by IS NOT NULL AS is_approved, override_reason IS NOT NULL AS is_excused, NULL AS until, count(*) AS count
         FROM power_requests INDEXED BY power_requests_held WHERE gate = 'held'
         GROUP BY target, action, label, wave IS NULL, approved_by IS NOT NULL, override_reason IS NOT NULL",
    )
    .fetch_all(&mut *connection)
    .await?)
}

async fn parked(connection: &mut SqliteConnection) -> Result<Vec<Parked>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT CAST(target AS BLOB) AS target, gate, count(*) AS count
         FROM power_requests INDEXED BY power_requests_parked WHERE in_line IS NULL AND gate IS NOT NULL GROUP BY target, gate",
    )
    .fetch_all(&mut *connection)
    .await?)
}

/// When the first request of each target is due, as far as it is among the first thousand.
async fn first_due(
    connection: &mut SqliteConnection,
) -> Result<BTreeMap<String, String>, StoreError> {
    let found: Vec<(Vec<u8>, String)> = sqlx::query_as(
        "SELECT CAST(target AS BLOB), min(eligible_at) FROM
             (SELECT target, eligible_at FROM power_requests INDEXED BY power_requests_later
              WHERE gate = 'later' ORDER BY eligible_at LIMIT 1000)
         GROUP BY target",
    )
    .fetch_all(&mut *connection)
    .await?;
    Ok(found
        .into_iter()
        .map(|(target, at)| (lossy(target), at))
        .collect())
}

/// Why requests wait that no hold is about.
struct Unheld {
    kind: &'static str,
    reason: &'static str,
    ends: &'static str,
}

fn next() -> Unheld {
    Unheld {
        kind: "next",
        reason: "nothing holds them",
        ends: "they leave with the next batches",
    }
}

fn again() -> Unheld {
    Unheld {
        kind: "retry",
        reason: "they are tried again",
        ends: "each is tried again automatically at its time",
    }
}

fn turn() -> Unheld {
    Unheld {
        kind: "turn",
        reason: "their turn in their order has not come",
        ends: "the daemon lets them go wave by wave",
    }
}

impl Alike {
    fn group(self, holds: &[&HoldRecord], unheld: fn() -> Unheld) -> WaitingGroup {
        let target = self.target.map(lossy);
        let label = self.label.map(lossy);
        let request = RequestRecord {
            target: target.clone().unwrap_or_default(),
            action: self.action.clone().unwrap_or_default(),
            label: label.clone(),
            wave: self.wave,
            approved_by: self.is_approved.then(String::new),
            override_reason: self.is_excused.then(String::new),
            ..RequestRecord::default()
        };
        match holds.iter().find(|hold| hold.is_about(&request)) {
            Some(hold) => WaitingGroup {
                target,
                action: self.action,
                label: hold.label.clone().and(label),
                kind: hold.kind.clone(),
                reason: hold.reason.clone(),
                until: hold.until.clone(),
                ends: ending::of_hold(hold),
                count: self.count,
            },
            None => {
                let unheld = unheld();
                WaitingGroup {
                    target,
                    action: self.action,
                    label,
                    kind: unheld.kind.to_owned(),
                    reason: unheld.reason.to_owned(),
                    until: self.until,
                    ends: unheld.ends.to_owned(),
                    count: self.count,
                }
            }
        }
    }
}

impl Parked {
    fn group(self, first_due: &BTreeMap<String, String>) -> WaitingGroup {
        let target = lossy(self.target);
        let (kind, reason, ends) = match self.gate.as_str() {
            "behind" => (
                "behind",
                "another request for the same server goes first",
                "each goes when the one before it has ended",
            ),
            "later" => (
                "later",
                "they are not due yet",
                "each is due at its not_before",
            ),
            _ => (
                "after",
                "they wait for other requests to succeed",
                "each goes when the one that it names has succeeded, and is cancelled if that ends otherwise",
            ),
        };
        let until = (kind == "later").then(|| first_due.get(&target).cloned());
        WaitingGroup {
            target: Some(target),
            action: None,
            label: None,
            kind: kind.to_owned(),
            reason: reason.to_owned(),
            until: until.flatten(),
            ends: ends.to_owned(),
            count: self.count,
        }
    }
}

/// Groups that differ in nothing but what is not shown become one.
#[derive(Default)]
struct Groups(Vec<WaitingGroup>);

impl Groups {
    fn add(&mut self, group: WaitingGroup) {
        let same = self.0.iter_mut().find(|known| {
            (&known.target, &known.action, &known.label)
                == (&group.target, &group.action, &group.label)
                && (&known.kind, &known.reason) == (&group.kind, &group.reason)
        });
        if let Some(known) = same {
            known.count += group.count;
            known.until = known.until.take().into_iter().chain(group.until).min();
            return;
        }
        if self.0.len() < GROUPS_MAX {
            self.0.push(group);
            return;
        }
        let rest = WaitingGroup {
            target: Some(OTHER.to_owned()),
            action: None,
            label: None,
            until: None,
            ..group
        };
        match self
            .0
            .iter_mut()
            .find(|known| known.target == rest.target && known.kind == rest.kind)
        {
            Some(known) => known.count += rest.count,
            None => self.0.push(rest),
        }
    }

    fn largest_first(mut self) -> Vec<WaitingGroup> {
        self.0.sort_by_key(|group| std::cmp::Reverse(group.count));
        self.0
    }
}
