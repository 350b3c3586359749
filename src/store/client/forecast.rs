//! What a forecast needs of the queue: requests that have not left, counted, and what their servers
//! are like. A million plain requests are counted along an index, without reading them; those of
//! which more has to be known are read.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::FromRow;
use sqlx::sqlite::SqliteConnection;

use super::{RunningBatch, TargetLimits};
use crate::model::{
    Crowd, Hold, LaneKind, Leader, Order, PowerAction, PowerMix, ServerId, Share, Standing,
    TargetName, UtcMillis,
};

use crate::store::sqlite::rows::{self, list};
use crate::store::sqlite::{CountedCall, Unapproved, batches, guard, holds, orders};
use crate::store::{QueueClient, StoreError};

/// Requests whose servers are looked up in the inventory.
const LOOKED_UP_MAX: i64 = 50_000;
/// Groups of whose first label a line is written.
const LABELS_MAX: i64 = 4;
/// Requests that arrived over a long time expire over a long time: in so many steps.
const EXPIRY_STEPS: u64 = 24;

/// Which requests a forecast is about; by default all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AskedFor {
    /// With exactly this label.
    pub label: Option<String>,
    /// Of this target.
    pub target: Option<String>,
    /// Of this action.
    pub action: Option<PowerAction>,
    /// These.
    pub ids: Option<Vec<i64>>,
    /// That nobody has approved.
    pub is_unapproved: bool,
}

/// What decides how requests are counted apart.
#[derive(Debug, Clone, Default)]
pub struct ShareRules {
    /// How long requests of a target without a time of expiry may wait; absent: for ever.
    pub ttl: BTreeMap<TargetName, Duration>,
    /// Servers for which stops and reboots are rejected.
    pub protected: Vec<(TargetName, ServerId)>,
    /// Batches that guards count.
    pub counted: Vec<i64>,
}

/// Requests that leave with the next calls from one lane, by label.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LabelCount {
    /// The label.
    pub label: Option<String>,
    /// How many have it.
    pub requests: u64,
}

impl AskedFor {
    /// True for requests that are counted without being read.
    fn takes_plain(&self, plain: &Plain) -> bool {
        let is_of = |asked: &Option<String>, own: &str| asked.as_deref().is_none_or(|a| a == own);
        self.label.is_none()
            && self.ids.is_none()
            && is_of(&self.target, &plain.target)
            && self.action.is_none_or(|action| action == plain.action)
            && !(self.is_unapproved && plain.kind.is_approved)
    }
}

// What waits, for a forecast.
impl QueueClient {
    /// All requests that have not left, counted.
    pub async fn shares(
        &mut self,
        asked: &AskedFor,
        rules: &ShareRules,
        now: UtcMillis,
    ) -> Result<Vec<Share>, StoreError> {
        shares(&mut self.connection, asked, rules, now).await
    }

    /// What lists have shown of the servers of the requests that are asked for.
    pub async fn power_mix(&mut self, asked: &AskedFor) -> Result<Vec<PowerMix>, StoreError> {
        power_mix(&mut self.connection, asked).await
    }

    /// The same of servers for which requests are only about to be inserted.
    pub async fn power_mix_of(
        &mut self,
        target: &TargetName,
        action: PowerAction,
        servers: &[String],
    ) -> Result<PowerMix, StoreError> {
        power_mix_of(&mut self.connection, target, action, servers).await
    }

    /// Those of these servers that have requests which have not ended.
    pub async fn busy_servers(
        &mut self,
        target: &str,
        servers: &[String],
    ) -> Result<u64, StoreError> {
        busy_servers(&mut self.connection, target, servers).await
    }

    /// The labels of the first `most` requests of a lane, those of most requests first.
    pub async fn first_labels(
        &mut self,
        target: &TargetName,
        action: PowerAction,
        kind: LaneKind,
        most: u64,
    ) -> Result<Vec<LabelCount>, StoreError> {
        let lane = (target, action, kind);
        first_labels(&mut self.connection, lane, most).await
    }

    /// The batches that run.
    pub async fn running(&mut self) -> Result<Vec<RunningBatch>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT b.target, b.action, (SELECT count(*) FROM power_requests r WHERE r.state = 'running' AND r.batch_id = b.id) AS requests,
                    coalesce(b.submitted_steady_ms, b.intent_steady_ms) + (SELECT clock_set_ms FROM queue_mark) AS since_ms
             FROM batches b INDEXED BY batches_open WHERE b.state <> 'done' ORDER BY b.id",
        )
        .fetch_all(&mut self.connection)
        .await?)
    }

    /// What the daemon has noted of its targets.
    pub async fn target_limits(&mut self) -> Result<Vec<TargetLimits>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT target, service, pace_per_minute, throttles, CAST(default_ttl_ms AS INTEGER) AS default_ttl_ms
             FROM targets ORDER BY target",
        )
        .fetch_all(&mut self.connection)
        .await?)
    }

    /// The holds in force, as the daemon reads them.
    pub async fn holds_in_force(&mut self, now: UtcMillis) -> Result<Vec<Hold>, StoreError> {
        holds::read(&mut self.connection, now).await
    }

    /// The orders that are not done, as the daemon reads them.
    pub async fn known_orders(&mut self, now: UtcMillis) -> Result<Vec<Order>, StoreError> {
        let last_id: i64 = sqlx::query_scalar("SELECT ifnull(max(id), 0) FROM power_requests")
            .fetch_one(&mut self.connection)
            .await?;
        let known = orders::open_orders(&mut self.connection, last_id, now).await?;
        Ok(known.into_iter().map(|known| known.order).collect())
    }

    /// The calls after `since` that budgets count, see `Store::spent`.
    pub async fn spent(
        &mut self,
        target: &TargetName,
        action: PowerAction,
        since: UtcMillis,
    ) -> Result<Vec<(UtcMillis, u32)>, StoreError> {
        batches::spent(&mut self.connection, target, action, since).await
    }

    /// The calls after `since` that guards count, see `Store::unapproved_calls`.
    pub async fn unapproved_calls(
        &mut self,
        target: &TargetName,
        action: PowerAction,
        since: UtcMillis,
    ) -> Result<Vec<CountedCall>, StoreError> {
        batches::unapproved_calls(&mut self.connection, target, action, since).await
    }

    /// Whose the requests are that a guard counts, see `Store::unapproved_crowds`.
    pub async fn crowds(
        &mut self,
        wanted: Unapproved<'_>,
        most: u64,
    ) -> Result<Vec<Crowd>, StoreError> {
        guard::crowds(&mut self.connection, wanted, most).await
    }

    /// The last calls of a target, see `Store::recent_calls`.
    pub async fn recent_calls(
        &mut self,
        target: &TargetName,
        count: u32,
        now: UtcMillis,
    ) -> Result<Vec<UtcMillis>, StoreError> {
        batches::recent_calls(&mut self.connection, target, count, now).await
    }

    /// How long the last jobs took, newest first.
    pub async fn job_history(
        &mut self,
        target: &TargetName,
        action: PowerAction,
        most: usize,
    ) -> Result<Vec<Duration>, StoreError> {
        batches::job_history(&mut self.connection, target, action, most).await
    }
}

/// Requests that are counted along the index of what is ready.
struct Plain {
    target: String,
    action: PowerAction,
    kind: LaneKind,
    priority: i64,
    requests: u64,
    first_id: i64,
    last_id: i64,
}

#[derive(FromRow)]
struct PlainRow {
    target: Vec<u8>,
    action: String,
    kind: i64,
    priority: i64,
    requests: i64,
    first_id: i64,
    last_id: i64,
}

/// Requests that are read, counted by all that is asked about them.
#[derive(FromRow)]
struct ReadRow {
    target: Vec<u8>,
    action: String,
    kind: i64,
    priority: i64,
    gate: String,
    label: Option<Vec<u8>>,
    has_turn: bool,
    is_shadowed: bool,
    is_protected: bool,
    is_counted: bool,
    is_asked: bool,
    leader_action: Option<String>,
    leader_due: Option<String>,
    due_at: Option<String>,
    expires_at: Option<String>,
    since: Option<String>,
    requests: i64,
    first_id: i64,
}

async fn shares(
    connection: &mut SqliteConnection,
    asked: &AskedFor,
    rules: &ShareRules,
    now: UtcMillis,
) -> Result<Vec<Share>, StoreError> {
    let mut plain = plain(connection).await?;
    let read = read_closely(connection, asked, rules).await?;
    let mut shares = Vec::new();
    for row in read {
        let Ok(action) = row.action.parse() else {
            continue;
        };
        let share = row.into_share(action, rules, now);
        if let Some((share, is_ready)) = share {
            if is_ready {
                leave_out(&mut plain, &share);
            }
            shares.push(share);
        }
    }
    plain.retain(|plain| plain.requests > 0);
    shares.extend(into_shares(connection, &plain, asked, rules).await?);
    Ok(shares)
}

/// What is ready, counted along its index.
async fn plain(connection: &mut SqliteConnection) -> Result<Vec<Plain>, StoreError> {
    let found: Vec<PlainRow> = sqlx::query_as(
        "SELECT CAST(target AS BLOB) AS target, action,
                travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL) AS kind,
                priority, count(*) AS requests, min(id) AS first_id, max(id) AS last_id
         FROM power_requests INDEXED BY power_requests_ready WHERE gate = 'ready'
         GROUP BY power_requests.target, action, kind, priority",
    )
    .fetch_all(connection)
    .await?;
    Ok(found
        .into_iter()
        .filter_map(|row| {
            Some(Plain {
                target: rows::lossy(row.target),
                action: row.action.parse().ok()?,
                kind: LaneKind::of_number(row.kind),
                priority: row.priority,
                requests: whole(row.requests),
                first_id: row.first_id,
                last_id: row.last_id,
            })
        })
        .collect())
}

/// All that is not plain: what is parked or held, what its label may hold, what is protected, behind
/// another one, counted with its batch, has a time of expiry, or is asked for apart from others.
async fn read_closely(
    connection: &mut SqliteConnection,
    asked: &AskedFor,
    rules: &ShareRules,
) -> Result<Vec<ReadRow>, StoreError> {
    let protected: Vec<[&str; 2]> = rules
        .protected
        .iter()
        .map(|(target, server)| [target.0.as_str(), server.0.as_str()])
        .collect();
    Ok(sqlx::query_as(
        "WITH held_label(label) AS MATERIALIZED (
             SELECT label FROM orders INDEXED BY orders_open WHERE state IS DISTINCT FROM 'done'
             UNION SELECT label FROM holds WHERE label IS NOT NULL AND kind = 'operator'
         ),
         several(server_id, target) AS MATERIALIZED (
             SELECT server_id, target FROM power_requests INDEXED BY power_requests_line WHERE in_line = 1
             GROUP BY server_id, target HAVING count(*) > 1
         ),
         shadowed(id) AS MATERIALIZED (
             SELECT r.id FROM several s CROSS JOIN power_requests r
                 ON r.in_line = 1 AND r.server_id = s.server_id AND r.target = s.target
             WHERE r.gate = 'ready' AND EXISTS (
                 SELECT 1 FROM power_requests o WHERE o.in_line = 1 AND o.server_id = r.server_id AND o.target = r.target
                 AND o.id < r.id AND o.finished_at IS NULL)
         ),
         protected(id) AS MATERIALIZED (
             SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r
                 ON r.in_line = 1 AND r.server_id = j.value ->> 1 AND r.target = j.value ->> 0 WHERE r.state = 'queued'
             UNION ALL
             SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r
                 ON r.in_line IS NULL AND r.gate IS NOT NULL AND r.target = j.value ->> 0 AND r.server_id = j.value ->> 1
         ),
         counted(id) AS MATERIALIZED (
             SELECT r.id FROM json_each($2) j CROSS JOIN power_requests r ON r.batch_id = j.value WHERE r.state = 'queued'
         ),
         close(id) AS MATERIALIZED (
             SELECT id FROM power_requests INDEXED BY power_requests_parked_count WHERE in_line IS NULL AND gate IS NOT NULL
             UNION SELECT id FROM power_requests INDEXED BY power_requests_held_count WHERE gate = 'held'
             UNION SELECT id FROM power_requests INDEXED BY power_requests_retry WHERE gate = 'retry'
             UNION SELECT id FROM power_requests INDEXED BY power_requests_expiry WHERE state = 'queued' AND expires_at IS NOT NULL
             UNION SELECT r.id FROM held_label h CROSS JOIN power_requests r ON r.label = h.label WHERE r.gate IS NOT NULL
             UNION SELECT r.id FROM power_requests r WHERE r.label = $3 AND r.gate IS NOT NULL
             UNION SELECT value FROM json_each(ifnull($4, '[]'))
             UNION SELECT id FROM shadowed UNION SELECT id FROM protected UNION SELECT id FROM counted
         )
         SELECT CAST(r.target AS BLOB) AS target, r.action,
                r.travel_group * 4 + (r.approved_by IS NOT NULL) * 2 + (r.override_reason IS NOT NULL) AS kind, r.priority, r.gate,
                CASE WHEN r.label IN (SELECT label FROM held_label) THEN CAST(r.label AS BLOB) END AS label,
                r.wave IS NOT NULL OR r.label IS NULL
                    OR NOT EXISTS (SELECT 1 FROM orders w WHERE w.label = r.label) AS has_turn,
                r.id IN (SELECT id FROM shadowed) AS is_shadowed, r.id IN (SELECT id FROM protected) AS is_protected,
                r.id IN (SELECT id FROM counted) AS is_counted,
                ($3 IS NULL OR r.label IS NOT DISTINCT FROM $3) AND ($4 IS NULL OR r.id IN (SELECT value FROM json_each($4)))
                    AND ($5 IS NULL OR r.target = $5) AND ($6 IS NULL OR r.action = $6)
                    AND (NOT $7 OR r.approved_by IS NULL) AS is_asked,
                CASE r.gate WHEN 'later' THEN substr(r.eligible_at, 1, 16) WHEN 'retry' THEN substr(r.retry_at, 1, 16) END AS due_minute,
                substr(r.expires_at, 1, 16) AS expiry_minute,
                CASE WHEN r.expires_at IS NULL THEN substr(ifnull(r.eligible_at, r.created_at), 1, 16) END AS since_minute,
                CASE r.gate WHEN 'after' THEN (SELECT a.action FROM power_requests a WHERE a.id = r.after_id) END AS leader_action,
                CASE r.gate WHEN 'after' THEN (SELECT substr(a.eligible_at, 1, 16) || ':00.000Z' FROM power_requests a
                                               WHERE a.id = r.after_id AND a.gate = 'later') END AS leader_due,
                min(CASE r.gate WHEN 'later' THEN r.eligible_at WHEN 'retry' THEN r.retry_at END) AS due_at,
                min(r.expires_at) AS expires_at, min(CASE WHEN r.gate <> 'after' THEN ifnull(r.eligible_at, r.created_at) END) AS since,
                count(*) AS requests, min(r.id) AS first_id
         FROM close c CROSS JOIN power_requests r ON r.id = c.id
         WHERE r.state = 'queued'
         GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16",
    )
    .bind(serde_json::to_string(&protected).unwrap_or_default())
    .bind(list(&rules.counted))
    .bind(&asked.label)
    .bind(asked.ids.as_ref().map(list))
    .bind(&asked.target)
    .bind(asked.action.map(PowerAction::as_str))
    .bind(asked.is_unapproved)
    .fetch_all(connection)
    .await?)
}

impl ReadRow {
    /// With whether they are counted as plain ones, too.
    fn into_share(
        self,
        action: PowerAction,
        rules: &ShareRules,
        now: UtcMillis,
    ) -> Option<(Share, bool)> {
        let target = TargetName(rows::lossy(self.target));
        let due_at = rows::readable_time(self.due_at).unwrap_or(now);
        let is_ready = self.gate == "ready";
        let standing = match self.gate.as_str() {
            "ready" if self.is_shadowed => Standing::Behind,
            "ready" | "held" => Standing::Ready,
            "retry" => Standing::Retry(due_at),
            "later" => Standing::Later(due_at),
            "behind" => Standing::Behind,
            "after" => Standing::After(Leader {
                action: self.leader_action.and_then(|word| word.parse().ok()),
                due_at: rows::readable_time(self.leader_due),
            }),
            _ => return None,
        };
        let own_end = rows::readable_time(self.expires_at);
        let since = rows::readable_time(self.since);
        let usual_end = || Some(since? + *rules.ttl.get(&target)?);
        let share = Share {
            action,
            kind: LaneKind::of_number(self.kind),
            priority: self.priority,
            standing,
            label: self.label.map(rows::lossy),
            has_turn: self.has_turn,
            requests: whole(self.requests),
            first_id: self.first_id,
            expires_at: own_end.or_else(usual_end),
            is_protected: self.is_protected,
            is_counted: self.is_counted,
            is_asked: self.is_asked,
            target,
        };
        Some((share, is_ready))
    }
}

/// What was read is not counted again.
fn leave_out(plain: &mut [Plain], share: &Share) {
    let mut groups = plain.iter_mut();
    let group = groups.find(|plain| {
        plain.target == share.target.0
            && plain.action == share.action
            && plain.kind == share.kind
            && plain.priority == share.priority
    });
    if let Some(group) = group {
        group.requests = group.requests.saturating_sub(share.requests);
    }
}

/// Plain requests expire in the order in which they arrived.
async fn into_shares(
    connection: &mut SqliteConnection,
    plain: &[Plain],
    asked: &AskedFor,
    rules: &ShareRules,
) -> Result<Vec<Share>, StoreError> {
    let ids = plain
        .iter()
        .flat_map(|plain| [&plain.first_id, &plain.last_id]);
    let found: Vec<(i64, String)> = sqlx::query_as(
        "SELECT r.id, CAST(ifnull(r.eligible_at, r.created_at) AS TEXT)
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value",
    )
    .bind(list(ids))
    .fetch_all(connection)
    .await?;
    let since: BTreeMap<i64, UtcMillis> = found
        .into_iter()
        .filter_map(|(id, at)| Some((id, at.parse().ok()?)))
        .collect();
    let mut shares = Vec::new();
    for group in plain {
        let target = TargetName(group.target.clone());
        let ends = rules.ttl.get(&target).and_then(|ttl| {
            let first = *since.get(&group.first_id)?;
            let last = *since.get(&group.last_id)?;
            Some((first + *ttl, last + *ttl))
        });
        let share = Share {
            target,
            action: group.action,
            kind: group.kind,
            priority: group.priority,
            standing: Standing::Ready,
            label: None,
            has_turn: true,
            requests: group.requests,
            first_id: group.first_id,
            expires_at: ends.map(|(first, _)| first),
            is_protected: false,
            is_counted: false,
            is_asked: asked.takes_plain(group),
        };
        shares.extend(in_steps(share, group.last_id, ends));
    }
    Ok(shares)
}

/// Requests that arrived over some time, cut into parts that expire one after the other.
fn in_steps(share: Share, last_id: i64, ends: Option<(UtcMillis, UtcMillis)>) -> Vec<Share> {
    let Some((first, last)) =
        ends.filter(|(first, last)| last.since(*first) > Duration::from_secs(1))
    else {
        return vec![share];
    };
    let steps = EXPIRY_STEPS.min(share.requests);
    let mut parts = Vec::new();
    let mut done = 0;
    for step in 0..steps {
        let up_to = share.requests * (step + 1) / steps;
        let at = |range: i64| {
            let share = i128::from(range) * i128::from(step) / i128::from(steps);
            i64::try_from(share).unwrap_or(0)
        };
        parts.push(Share {
            requests: up_to - done,
            first_id: share.first_id + at(last_id - share.first_id),
            expires_at: Some(first.moved(at(last.0 - first.0))),
            ..share.clone()
        });
        done = up_to;
    }
    parts
}

/// How many servers are in which way; without the target and action.
#[derive(FromRow)]
struct MixRow {
    target: Vec<u8>,
    action: String,
    on_count: i64,
    off_count: i64,
    unclear: i64,
    gone: i64,
    unknown: i64,
    locked: i64,
}

impl MixRow {
    fn into_mix(self, is_part: bool) -> Option<PowerMix> {
        let action: PowerAction = self.action.parse().ok()?;
        let mut mix = PowerMix {
            target: TargetName(rows::lossy(self.target)),
            action,
            on: whole(self.on_count),
            off: whole(self.off_count),
            unclear: whole(self.unclear),
            gone: whole(self.gone),
            unknown: whole(self.unknown),
            already: 0,
            locked: whole(self.locked),
            is_part,
        };
        mix.already = mix.count_already();
        Some(mix)
    }
}

async fn power_mix(
    connection: &mut SqliteConnection,
    asked: &AskedFor,
) -> Result<Vec<PowerMix>, StoreError> {
    let ids: Vec<i64> = sqlx::query_scalar(if asked.label.is_some() {
        "SELECT r.id FROM power_requests r WHERE r.label = $1 AND r.gate IS NOT NULL LIMIT 0 + $2"
    } else {
        "SELECT id FROM (
             SELECT id FROM power_requests INDEXED BY power_requests_ready WHERE gate = 'ready'
             UNION ALL
             SELECT id FROM power_requests INDEXED BY power_requests_held_count WHERE gate = 'held'
             UNION ALL
             SELECT id FROM power_requests INDEXED BY power_requests_retry WHERE gate = 'retry'
             UNION ALL
             SELECT id FROM power_requests INDEXED BY power_requests_parked_count WHERE in_line IS NULL AND gate IS NOT NULL)
         WHERE $1 IS NULL LIMIT 0 + $2"
    })
    .bind(&asked.label)
    .bind(LOOKED_UP_MAX + 1)
    .fetch_all(&mut *connection)
    .await?;
    let ids = asked.ids.as_ref().unwrap_or(&ids);
    let is_part = i64::try_from(ids.len()).unwrap_or(i64::MAX) > LOOKED_UP_MAX;
    let found: Vec<MixRow> = sqlx::query_as(
        "SELECT CAST(r.target AS BLOB) AS target, r.action,
                sum(s.power = 'on' AND s.gone_at IS NULL) AS on_count,
                sum(s.power = 'off' AND s.gone_at IS NULL) AS off_count,
                sum(s.power NOT IN ('on', 'off') AND s.gone_at IS NULL) AS unclear,
                sum(s.gone_at IS NOT NULL) AS gone, sum(s.server_id IS NULL) AS unknown,
                sum(ifnull(s.locked, 0) AND s.gone_at IS NULL) AS locked
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         LEFT JOIN servers s ON s.target = r.target AND s.server_id = r.server_id
         WHERE r.state = 'queued' AND ($2 IS NULL OR r.target = $2) AND ($3 IS NULL OR r.action = $3)
           AND (NOT $4 OR r.approved_by IS NULL)
         GROUP BY 1, 2",
    )
    .bind(list(ids))
    .bind(&asked.target)
    .bind(asked.action.map(PowerAction::as_str))
    .bind(asked.is_unapproved)
    .fetch_all(connection)
    .await?;
    Ok(found
        .into_iter()
        .filter_map(|row| row.into_mix(is_part))
        .collect())
}

async fn power_mix_of(
    connection: &mut SqliteConnection,
    target: &TargetName,
    action: PowerAction,
    servers: &[String],
) -> Result<PowerMix, StoreError> {
    let found: MixRow = sqlx::query_as(
        "SELECT CAST($1 AS BLOB) AS target, $2 AS action,
                ifnull(sum(s.power = 'on' AND s.gone_at IS NULL), 0) AS on_count,
                ifnull(sum(s.power = 'off' AND s.gone_at IS NULL), 0) AS off_count,
                ifnull(sum(s.power NOT IN ('on', 'off') AND s.gone_at IS NULL), 0) AS unclear,
                ifnull(sum(s.gone_at IS NOT NULL), 0) AS gone, ifnull(sum(s.server_id IS NULL), 0) AS unknown,
                ifnull(sum(ifnull(s.locked, 0) AND s.gone_at IS NULL), 0) AS locked
         FROM json_each($3) j LEFT JOIN servers s ON s.target = $1 AND s.server_id = j.value",
    )
    .bind(&target.0)
    .bind(action.as_str())
    .bind(serde_json::to_string(servers).unwrap_or_default())
    .fetch_one(connection)
    .await?;
    found
        .into_mix(false)
        .ok_or_else(|| StoreError::Unreadable("a count of servers".to_owned()))
}

async fn busy_servers(
    connection: &mut SqliteConnection,
    target: &str,
    servers: &[String],
) -> Result<u64, StoreError> {
    let busy: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM json_each($1) j
         WHERE EXISTS (SELECT 1 FROM power_requests o WHERE o.in_line = 1 AND o.server_id = j.value AND o.target = $2
                       AND o.finished_at IS NULL)
            OR EXISTS (SELECT 1 FROM power_requests p WHERE p.in_line IS NULL AND p.gate = 'behind' AND p.target = $2
                       AND p.server_id = j.value)",
    )
    .bind(serde_json::to_string(servers).unwrap_or_default())
    .bind(target)
    .fetch_one(connection)
    .await?;
    Ok(whole(busy))
}

async fn first_labels(
    connection: &mut SqliteConnection,
    (target, action, kind): (&TargetName, PowerAction, LaneKind),
    most: u64,
) -> Result<Vec<LabelCount>, StoreError> {
    let found: Vec<(Option<Vec<u8>>, i64)> = sqlx::query_as(
        "SELECT CAST(f.label AS BLOB), count(*) FROM (
             SELECT label FROM power_requests WHERE gate = 'ready' AND target = $1 AND action = $2
             AND travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL) = $5
             ORDER BY priority DESC, id LIMIT 0 + $3) f
         GROUP BY f.label ORDER BY count(*) DESC, f.label LIMIT 0 + $4",
    )
    .bind(&target.0)
    .bind(action.as_str())
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .bind(LABELS_MAX)
    .bind(kind.number())
    .fetch_all(connection)
    .await?;
    Ok(found
        .into_iter()
        .map(|(label, requests)| LabelCount {
            label: label.map(rows::lossy),
            requests: whole(requests),
        })
        .collect())
}

fn whole(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
