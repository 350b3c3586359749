//! One read a round: what waits, what is due, and what holds it back, in a single statement. What it
//! costs does not depend on what waits behind the heads of the lanes.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::batches::DueTarget;
use super::epoch_file::HighWater;
use super::holds::{HoldRow, in_force};
use super::servers::InventorySync;
use super::{Mark, StoreError, intake, rows, upkeep};
use crate::model::{BatchId, Hold, Lane, LaneKind, PowerAction, TargetName, UtcMillis};

/// Lanes of one target and action that are read at once; those beyond come when the first of these
/// have left.
const LANES_MAX: i64 = 1000;

/// Wishes for a fresh inventory that are read at once.
const SYNCS_MAX: i64 = 100;

/// What a round asks about.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotQuery<'a> {
    /// Requests without a time of expiry expire after this.
    pub default_ttl: Option<Duration>,
    /// Whose lanes are read: targets, each with the most servers that one call may carry. Lanes are
    /// counted up to that.
    pub targets: &'a [(TargetName, u32)],
    /// Batches that do not count as due: their calls are being made.
    pub except: &'a BTreeSet<BatchId>,
}

/// The queue at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When a take-in has something to do without anybody's doing: long ago if it has already.
    pub due_at: Option<UtcMillis>,
    /// The holds in force that may concern a configured target.
    pub holds: Vec<Hold>,
    /// A sentence on each row of `holds` that a stranger wrote and that cannot be read.
    pub unreadable_holds: Vec<String>,
    /// Holds whose time has passed are still in the table.
    pub has_past_holds: bool,
    /// The lanes of the targets that were asked for, held ones too. Lanes of fresh requests are
    /// counted; of very many travel groups the oldest are here.
    pub lanes: Vec<Lane>,
    /// How many orders with waves the queue knows.
    pub order_count: i64,
    /// Wishes for a fresh inventory that have not come true.
    pub syncs: Vec<InventorySync>,
    /// The targets of open batches, each with the time at which its first one is due.
    pub open: Vec<DueTarget>,
    /// Changes with every write to the queue, by anybody.
    pub change_mark: (i64, i64),
    /// Batches whose requests are still in the line, up to a bound.
    pub(in crate::store) lingering: i64,
    /// The last ids, as SQLite keeps them.
    pub(in crate::store) last: HighWater,
    /// Whose the queue is.
    pub(in crate::store) mark: Mark,
}

impl Snapshot {
    /// The last request that was inserted.
    pub(in crate::store) fn last_id(&self) -> i64 {
        self.last.last_id
    }
}

#[derive(sqlx::FromRow)]
struct SnapshotRow {
    token: Vec<u8>,
    epoch: i64,
    own_changes: i64,
    data_version: i64,
    noted: bool,
    later: Option<String>,
    retry: Option<String>,
    expiry: Option<String>,
    oldest: Option<String>,
    lingering: i64,
    order_count: i64,
    syncs: Vec<u8>,
    last_id: i64,
    last_batch_id: i64,
    holds: Vec<u8>,
    lanes: Vec<u8>,
    open: Vec<u8>,
}

/// Target, action, number of the kind, priority and id of the head, number of ready requests, since when
/// the longest-waiting of them could go.
type LaneRow = (String, String, i64, i64, i64, i64, Option<String>);

/// All of it in one statement.
pub(in crate::store) async fn read(
    connection: &mut SqliteConnection,
    asked: &SnapshotQuery<'_>,
    now: UtcMillis,
) -> Result<Snapshot, StoreError> {
    let row: SnapshotRow = sqlx::query_as(
        "SELECT CAST(m.token AS BLOB) AS token, CAST(m.epoch AS INTEGER) AS epoch,
            total_changes() AS own_changes, v.data_version AS data_version,
            EXISTS (SELECT 1 FROM round_notes) AS noted,
            (SELECT min(eligible_at) FROM power_requests WHERE gate = 'later') AS later,
            (SELECT min(retry_at) FROM power_requests WHERE gate = 'retry') AS retry,
            (SELECT min(expires_at) FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL) AS expiry,
            (SELECT min(ifnull(eligible_at, created_at)) FROM power_requests
             WHERE state = 'queued' AND gate <> 'after' AND expires_at IS NULL) AS oldest,
            (SELECT count(*) FROM (SELECT 1 FROM lingering_batches LIMIT 0 + $4)) AS lingering,
            (SELECT count(*) FROM orders) AS order_count,
            (SELECT CAST(json_group_array(json_array(s.id, CAST(s.target AS TEXT))) AS BLOB)
             FROM (SELECT id, target FROM inventory_syncs WHERE done_at IS NULL ORDER BY id LIMIT 0 + $6) s) AS syncs,
            ifnull((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'power_requests'), 0) AS last_id,
            ifnull((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'batches'), 0) AS last_batch_id,
            (SELECT CAST(json_group_array(json_array(
                 h.id, CAST(h.target AS TEXT), CAST(h.action AS TEXT), CAST(h.label AS TEXT), CAST(h.kind AS TEXT),
                 CAST(h.reason AS TEXT), CAST(h.since AS TEXT), CAST(h.until AS TEXT))) AS BLOB)
             FROM (SELECT * FROM holds INDEXED BY holds_that_matter WHERE kind <> 'unknown_target' OR target IS NULL
                   ORDER BY id) h) AS holds,
            (WITH RECURSIVE head(target, action, servers_max, kind, number) AS (
                 SELECT j.value ->> 0, j.value ->> 1, j.value ->> 2,
                        (SELECT r.travel_group * 4 + (r.approved_by IS NOT NULL) * 2 + (r.override_reason IS NOT NULL)
                         FROM power_requests r WHERE r.gate = 'ready' AND r.target = j.value ->> 0 AND r.action = j.value ->> 1
                         ORDER BY 1 LIMIT 1), 1
                 FROM json_each($1) j
                 UNION ALL
                 SELECT head.target, head.action, head.servers_max,
                        (SELECT n.travel_group * 4 + (n.approved_by IS NOT NULL) * 2 + (n.override_reason IS NOT NULL)
                         FROM power_requests n WHERE n.gate = 'ready' AND n.target = head.target AND n.action = head.action
                         AND n.travel_group * 4 + (n.approved_by IS NOT NULL) * 2 + (n.override_reason IS NOT NULL) > head.kind
                         ORDER BY 1 LIMIT 1),
                        head.number + 1
                 FROM head WHERE head.kind IS NOT NULL AND head.number < $2
             )
             SELECT CAST(json_group_array(json_array(
                 lane.target, lane.action, lane.kind, p.priority, p.id, lane.ready,
                 CASE WHEN lane.kind < 4 AND lane.ready < lane.servers_max THEN
                     (SELECT min(ifnull(o.eligible_at, o.created_at)) FROM power_requests o WHERE o.gate = 'ready'
                      AND o.target = lane.target AND o.action = lane.action
                      AND o.travel_group * 4 + (o.approved_by IS NOT NULL) * 2 + (o.override_reason IS NOT NULL) = lane.kind) END
                 )) AS BLOB)
             FROM (SELECT head.target, head.action, head.servers_max, head.kind,
                          CASE WHEN head.kind < 4 THEN
                              min(head.servers_max, (SELECT count(*) FROM (SELECT 1 FROM power_requests c WHERE c.gate = 'ready'
                                  AND c.target = head.target AND c.action = head.action
                                  AND c.travel_group * 4 + (c.approved_by IS NOT NULL) * 2 + (c.override_reason IS NOT NULL) = head.kind
                                  LIMIT 0 + $5))) ELSE 1 END AS ready
                   FROM head WHERE head.kind IS NOT NULL) lane
             CROSS JOIN power_requests p ON p.id = (
                 SELECT f.id FROM power_requests f WHERE f.gate = 'ready' AND f.target = lane.target AND f.action = lane.action
                 AND f.travel_group * 4 + (f.approved_by IS NOT NULL) * 2 + (f.override_reason IS NOT NULL) = lane.kind
                 ORDER BY f.priority DESC, f.id LIMIT 1)
            ) AS lanes,
            (WITH RECURSIVE used(target) AS (
                 SELECT (SELECT min(o.target) FROM batches o WHERE o.state <> 'done')
                 UNION ALL
                 SELECT (SELECT min(n.target) FROM batches n WHERE n.state <> 'done' AND n.target > used.target)
                 FROM used WHERE used.target IS NOT NULL
             )
             SELECT CAST(json_group_array(json_array(hex(used.target), CAST(f.next_look_at AS TEXT))) AS BLOB)
             FROM used CROSS JOIN batches f ON f.id = (
                 SELECT d.id FROM batches d WHERE d.state <> 'done' AND d.target = used.target
                 AND d.id NOT IN (SELECT value FROM json_each($3)) ORDER BY d.next_look_at LIMIT 1)
             WHERE used.target IS NOT NULL) AS open
         FROM queue_mark m, pragma_data_version v WHERE m.id = 1",
    )
    .bind(wanted(asked.targets))
    .bind(LANES_MAX)
    .bind(serde_json::to_string(asked.except).unwrap_or_default())
    .bind(upkeep::LINGERING_MAX)
    .bind(asked.targets.iter().map(|(_, most)| *most).max())
    .bind(SYNCS_MAX)
    .fetch_one(connection)
    .await?;
    row.into_snapshot(asked, now)
}

/// For each target all actions, for `json_each`.
fn wanted(targets: &[(TargetName, u32)]) -> String {
    let mut wanted: Vec<(&str, &str, u32)> = Vec::new();
    for (target, servers_max) in targets {
        for action in PowerAction::ALL {
            wanted.push((&target.0, action.as_str(), *servers_max));
        }
    }
    serde_json::to_string(&wanted).unwrap_or_default()
}

impl SnapshotRow {
    fn into_snapshot(
        self,
        asked: &SnapshotQuery<'_>,
        now: UtcMillis,
    ) -> Result<Snapshot, StoreError> {
        let times = intake::NextTimes {
            noted: self.noted,
            later: self.later,
            retry: self.retry,
            expiry: self.expiry,
            oldest: self.oldest,
        };
        let hold_rows: Vec<HoldRow> = rows::json(self.holds)?;
        let mut unreadable_holds = Vec::new();
        let all_holds: Vec<Hold> = hold_rows
            .into_iter()
            .filter_map(|row| row.into_hold(now, &mut unreadable_holds))
            .collect();
        let count = all_holds.len();
        let holds = in_force(all_holds, now);
        let lanes: Vec<LaneRow> = rows::json(self.lanes)?;
        let open: Vec<(String, String)> = rows::json(self.open)?;
        let syncs: Vec<(i64, Option<String>)> = rows::json(self.syncs)?;
        Ok(Snapshot {
            due_at: times.next(asked.default_ttl),
            has_past_holds: holds.len() < count,
            holds,
            unreadable_holds,
            lanes: lanes.into_iter().map(into_lane).collect::<Result<_, _>>()?,
            open: open
                .into_iter()
                .map(|(key, at)| DueTarget::of(rows::bytes_of_hex(&key), at))
                .collect(),
            change_mark: (self.own_changes, self.data_version),
            lingering: self.lingering,
            order_count: self.order_count,
            syncs: syncs
                .into_iter()
                .map(|(id, target)| InventorySync {
                    id,
                    target: target.map(TargetName),
                })
                .collect(),
            last: HighWater {
                epoch: self.epoch,
                last_id: self.last_id,
                last_batch_id: self.last_batch_id,
                ..HighWater::default()
            },
            mark: Mark {
                token: rows::lossy(self.token),
                epoch: self.epoch,
            },
        })
    }
}

fn into_lane(row: LaneRow) -> Result<Lane, StoreError> {
    let (target, action, kind, head_priority, head_id, ready, oldest) = row;
    Ok(Lane {
        target: TargetName(target),
        action: rows::word(&action)?,
        kind: LaneKind::of_number(kind),
        head_priority,
        head_id,
        ready: rows::count(ready),
        oldest_eligible_at: rows::readable_time(oldest).unwrap_or(UtcMillis(0)),
    })
}
