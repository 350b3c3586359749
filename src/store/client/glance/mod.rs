//! Everything that is seen at a glance: the page, the API, `status` and `top` show this value.
//! Writes nothing.
//!
//! It is read in one transaction, at a cost that depends on what is unfinished; what has ended is
//! counted as `tally` says. One reading serves everybody: what somebody may see is chosen from it
//! afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use utoipa::ToSchema;

use super::{
    Access, BatchRecord, HoldRecord, OldestReady, OrderRecord, OverviewCount, QueueClient,
    RequestRecord, TargetNote, overview, read,
};
use crate::model::{HoldKind, PowerAction, RequestState, TargetName, UtcMillis};
use crate::store::sqlite::{batches, rows, text};
use crate::store::{Running, StoreError, daemon_on};
use tally::{DAY_MS, MINUTE_MS, OTHER, Tally};

mod ending;
mod headline;
mod tally;
mod waiting;

pub use headline::grouped;
pub use waiting::WaitingGroup;
pub(super) use waiting::in_order_of_view;

/// Minutes of the finer chart.
const MINUTES: i64 = 60;
/// Hours of the coarser chart.
const HOURS: i64 = 24;
/// Newest failures that are shown.
const FAILURES_MAX: usize = 20;
/// Groups of failures by error that are shown.
const ERRORS_MAX: usize = 50;
/// Rows of `queue_overview` that are told apart; producers may invent any number of targets.
const LANES_MAX: usize = 300;
/// Open batches that are shown.
const BATCHES_MAX: usize = 200;
/// Orders that are shown.
const ORDERS_MAX: usize = 50;
/// Jobs of a target and action that tell how long one takes.
const LEARNED_FROM: usize = 21;

/// The queue at a glance, as far as somebody may see it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Glance {
    /// When it was read.
    pub as_of: UtcMillis,
    /// One line for people. Times are UTC.
    pub headline: String,
    /// What is wrong, in a word or two; none if nothing is.
    pub trouble: Option<String>,
    /// Is there a daemon on this queue?
    pub daemon: DaemonNote,
    /// Unfinished requests by target, action and state.
    pub queue: Vec<OverviewCount>,
    /// The oldest request that could go, of each target and action. Holds are not looked at.
    pub oldest_ready: Vec<OldestReady>,
    /// The oldest of all that wait.
    pub oldest_waiting_since: Option<String>,
    /// What waits, by reason; the largest group first.
    pub waiting: Vec<WaitingGroup>,
    /// Holds whose time has not passed.
    pub holds: Vec<HoldRecord>,
    /// Orders with waves that are not done, and those that were done in the last day.
    pub orders: Vec<OrderNote>,
    /// Batches that are not done, the oldest first.
    pub batches: Vec<BatchNote>,
    /// Open batches that are left out of `batches`.
    pub batches_left_out: usize,
    /// What has ended in the last day.
    pub ended: Ended,
    /// Every target that the daemon has noted.
    pub targets: Vec<TargetHealth>,
}

/// What is known of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DaemonNote {
    /// True, false, or none if nobody can tell.
    pub running: Option<bool>,
    /// Its process id.
    pub pid: Option<u32>,
    /// Since when it runs.
    pub since: Option<String>,
    /// What it waits for at its start.
    pub waits: Option<String>,
}

/// An order with waves, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct OrderNote {
    /// Its row.
    #[serde(flatten)]
    pub order: OrderRecord,
    /// The targets of its servers, as far as the daemon has read them.
    pub targets: Vec<String>,
    /// What holds its next wave.
    pub hold: Option<HoldRecord>,
    /// Its requests that were let go, by state.
    pub requests: Vec<StateCount>,
}

/// How many requests are in a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, sqlx::FromRow)]
pub struct StateCount {
    /// The state.
    pub state: String,
    /// How many.
    pub count: i64,
}

/// An open batch, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BatchNote {
    /// Its row.
    #[serde(flatten)]
    pub batch: BatchRecord,
    /// Of how many of its servers the outcome is known.
    pub known: i64,
    /// Milliseconds since the cloud accepted it, or since the intent.
    pub elapsed_ms: i64,
    /// How long jobs of this target and action took lately, in milliseconds: the middle of the last
    /// 21. None if none has ended.
    pub usual_ms: Option<i64>,
}

/// What ended in the last day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Ended {
    /// From when on it is counted. Later than a day ago: more ended before it, and is not counted
    /// yet.
    pub counted_since: Option<UtcMillis>,
    /// Of the last 60 minutes, the present one included.
    pub hour: Vec<EndedCount>,
    /// Of the last 24 hours.
    pub day: Vec<EndedCount>,
    /// Each minute of the last hour, the oldest first, also those in which nothing ended.
    pub minutes: Vec<OutcomeSlot>,
    /// Each hour of the last day, the oldest first, also those in which nothing ended.
    pub hours: Vec<OutcomeSlot>,
    /// What failed, expired, was rejected or is unknown in the last day, by error; the most frequent
    /// first.
    pub errors: Vec<ErrorCount>,
    /// The newest of those, the newest first.
    pub newest_failures: Vec<RequestRecord>,
}

/// How many requests ended in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct EndedCount {
    /// Their target.
    pub target: String,
    /// Their action.
    pub action: String,
    /// How they ended.
    pub state: String,
    /// The cloud's code or ours.
    pub error_code: Option<String>,
    /// How many.
    pub count: i64,
}

/// What ended in a minute or an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutcomeSlot {
    /// When it begins.
    pub at: UtcMillis,
    /// Succeeded.
    pub succeeded: i64,
    /// Failed.
    pub failed: i64,
    /// Nobody can tell.
    pub unknown: i64,
    /// Cancelled, expired, rejected.
    pub other: i64,
}

/// Failures with the same error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorCount {
    /// How they ended.
    pub state: String,
    /// The cloud's code or ours.
    pub error_code: Option<String>,
    /// What the newest of them says.
    pub message: Option<String>,
    /// How many.
    pub count: i64,
    /// The newest of them.
    pub newest_id: i64,
}

/// What is known of a target, with the holds that are about its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TargetHealth {
    /// What the daemon noted.
    #[serde(flatten)]
    pub note: TargetNote,
    /// The cloud does not answer.
    pub breaker: Option<HoldRecord>,
    /// The cloud refuses the key.
    pub credentials: Option<HoldRecord>,
}

impl Glance {
    /// How many unfinished requests are in this state.
    pub fn count_in(&self, state: RequestState) -> i64 {
        let of_state = self
            .queue
            .iter()
            .filter(|count| count.state == state.as_str());
        of_state.map(|count| count.count).sum()
    }
}

/// Reads one queue again and again.
#[derive(Debug)]
pub struct Glancer {
    path: PathBuf,
    tally: Tally,
}

impl Glancer {
    /// For the queue at `path`; reads nothing yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            tally: Tally::default(),
        }
    }

    /// Reads what is there now. The first reading counts up to 200,000 of the newest ends of the last
    /// day, each further one 50,000 earlier ones more.
    ///
    /// # Errors
    /// Those of `QueueClient::open`, and of the store.
    pub async fn read(&mut self, now: UtcMillis) -> Result<Reading, StoreError> {
        let daemon = daemon_on(&self.path);
        let mut client = QueueClient::open(&self.path, Access::Read).await?;
        let mut tx = client.connection.begin().await?;
        let reading = Reading::take(&mut tx, &mut self.tally, &daemon, now).await?;
        tx.commit().await?;
        client.close().await?;
        Ok(reading)
    }
}

/// What one reading has found, of all targets.
#[derive(Debug, Clone)]
pub struct Reading {
    now: UtcMillis,
    daemon: DaemonNote,
    queue: Vec<OverviewCount>,
    oldest_ready: Vec<OldestReady>,
    waiting: Vec<WaitingGroup>,
    holds: Vec<HoldRecord>,
    orders: Vec<OrderNote>,
    batches: Vec<BatchNote>,
    counted_since: Option<UtcMillis>,
    ends: Vec<End>,
    messages: BTreeMap<i64, Option<String>>,
    failures: Vec<RequestRecord>,
    targets: Vec<TargetHealth>,
}

/// Ends of one kind in one minute.
#[derive(Debug, Clone)]
struct End {
    minute: i64,
    count: EndedCount,
    newest_id: i64,
}

impl Reading {
    async fn take(
        connection: &mut SqliteConnection,
        tally: &mut Tally,
        daemon: &Running,
        now: UtcMillis,
    ) -> Result<Self, StoreError> {
        tally.read(connection, now).await?;
        let holds = read::holds(connection, now).await?;
        let ends = ends_of(tally);
        let failures: Vec<i64> = tally.failures().map(|(id, _)| id).collect();
        Ok(Self {
            now,
            daemon: DaemonNote::of(daemon),
            queue: merged(overview::overview(connection).await?),
            oldest_ready: overview::oldest_ready(connection).await?,
            waiting: waiting::groups(connection, &holds).await?,
            orders: orders(connection, &holds, now).await?,
            batches: batches(connection, now).await?,
            counted_since: tally.counted_since(),
            messages: messages(connection, &ends).await?,
            ends,
            failures: requests(connection, &failures).await?,
            targets: targets(connection, &holds, now).await?,
            holds,
        })
    }

    /// What somebody may see who may see these targets; none: all of them.
    pub fn glance(&self, visible: Option<&[TargetName]>) -> Glance {
        let sees = |target: &str| sees(visible, target);
        let waiting: Vec<WaitingGroup> = self
            .waiting
            .iter()
            .filter(|group| visible.is_none() || group.target.as_deref().is_some_and(sees))
            .cloned()
            .collect();
        let orders: Vec<OrderNote> = self
            .orders
            .iter()
            .filter(|order| visible.is_none() || order.targets.iter().any(|of| sees(of)))
            .cloned()
            .collect();
        let labels: BTreeSet<&str> = waiting
            .iter()
            .filter_map(|group| group.label.as_deref())
            .chain(orders.iter().map(|order| order.order.label.as_str()))
            .collect();
        let queue: Vec<OverviewCount> = kept(&self.queue, |count| sees(&count.target));
        let queued = queue
            .iter()
            .filter(|count| count.state == RequestState::Queued.as_str());
        let mut batches = kept(&self.batches, |batch| sees(&batch.batch.target));
        let batches_left_out = batches.len().saturating_sub(BATCHES_MAX);
        batches.truncate(BATCHES_MAX);
        let mut glance = Glance {
            as_of: self.now,
            headline: String::new(),
            trouble: None,
            daemon: self.daemon.clone(),
            oldest_waiting_since: queued
                .filter_map(|count| count.oldest_created_at.clone())
                .min(),
            queue,
            oldest_ready: kept(&self.oldest_ready, |ready| sees(&ready.target)),
            holds: kept(&self.holds, |hold| match (&hold.target, &hold.label) {
                (Some(target), _) => sees(target),
                (None, Some(label)) => visible.is_none() || labels.contains(label.as_str()),
                (None, None) => true,
            }),
            ended: self.ended(visible),
            targets: kept(&self.targets, |target| sees(&target.note.target)),
            waiting,
            orders,
            batches,
            batches_left_out,
        };
        glance.trouble = headline::trouble(&glance);
        glance.headline = headline::headline(&glance);
        glance
    }

    fn ended(&self, visible: Option<&[TargetName]>) -> Ended {
        let this_minute = self.now.0.div_euclid(MINUTE_MS);
        let mut chart = Chart::new(self.now);
        let mut hour = Sums::default();
        let mut day = Sums::default();
        let mut errors: BTreeMap<(String, Option<String>), ErrorCount> = BTreeMap::new();
        for end in self
            .ends
            .iter()
            .filter(|end| sees(visible, &end.count.target))
        {
            day.add(&end.count);
            if end.minute > this_minute - MINUTES {
                hour.add(&end.count);
            }
            chart.add(end);
            if tally::is_failure(&end.count.state) {
                self.add_error(&mut errors, end);
            }
        }
        let mut errors: Vec<ErrorCount> = errors.into_values().collect();
        errors.sort_by_key(|error| std::cmp::Reverse((error.count, error.newest_id)));
        errors.truncate(ERRORS_MAX);
        let mut newest_failures = kept(&self.failures, |request| sees(visible, &request.target));
        newest_failures.truncate(FAILURES_MAX);
        Ended {
            counted_since: self.counted_since,
            hour: hour.counts(),
            day: day.counts(),
            minutes: chart.minutes,
            hours: chart.hours,
            errors,
            newest_failures,
        }
    }

    fn add_error(&self, errors: &mut BTreeMap<(String, Option<String>), ErrorCount>, end: &End) {
        let key = (end.count.state.clone(), end.count.error_code.clone());
        let error = errors.entry(key).or_insert_with(|| ErrorCount {
            state: end.count.state.clone(),
            error_code: end.count.error_code.clone(),
            message: None,
            count: 0,
            newest_id: 0,
        });
        error.count += end.count.count;
        if end.newest_id > error.newest_id {
            error.newest_id = end.newest_id;
            error.message = self.messages.get(&end.newest_id).cloned().flatten();
        }
    }
}

fn sees(visible: Option<&[TargetName]>, target: &str) -> bool {
    visible.is_none_or(|visible| visible.iter().any(|name| name.0 == target))
}

fn kept<T: Clone>(all: &[T], is_seen: impl Fn(&T) -> bool) -> Vec<T> {
    all.iter().filter(|one| is_seen(one)).cloned().collect()
}

impl DaemonNote {
    fn of(running: &Running) -> Self {
        let info = running.info();
        Self {
            running: running.known(),
            pid: info.map(|info| info.pid),
            since: info.map(|info| info.since.to_string()),
            waits: info
                .and_then(|info| info.waits.as_ref())
                .map(ToString::to_string),
        }
    }
}

/// Counts of ends by target, action, state and error.
#[derive(Default)]
struct Sums(BTreeMap<(String, String, String, Option<String>), i64>);

impl Sums {
    fn add(&mut self, more: &EndedCount) {
        let key = (
            more.target.clone(),
            more.action.clone(),
            more.state.clone(),
            more.error_code.clone(),
        );
        *self.0.entry(key).or_default() += more.count;
    }

    fn counts(self) -> Vec<EndedCount> {
        let counts = self.0.into_iter();
        let counts = counts.map(|((target, action, state, error_code), count)| EndedCount {
            target,
            action,
            state,
            error_code,
            count,
        });
        counts.collect()
    }
}

/// The slots of both charts.
struct Chart {
    minutes: Vec<OutcomeSlot>,
    hours: Vec<OutcomeSlot>,
}

impl Chart {
    fn new(now: UtcMillis) -> Self {
        Self {
            minutes: empty_slots(now, MINUTES, MINUTE_MS),
            hours: empty_slots(now, HOURS, 60 * MINUTE_MS),
        }
    }

    fn add(&mut self, end: &End) {
        let at = UtcMillis(end.minute * MINUTE_MS);
        for slots in [&mut self.minutes, &mut self.hours] {
            // What has a time ahead of the clock, which was set back, is in the last one.
            if let Some(slot) = slots.iter_mut().rev().find(|slot| slot.at <= at) {
                slot.add(&end.count);
            }
        }
    }
}

fn empty_slots(now: UtcMillis, count: i64, span_ms: i64) -> Vec<OutcomeSlot> {
    let last = now.0.div_euclid(span_ms);
    let numbers = last - count + 1..=last;
    let slots = numbers.map(|number| OutcomeSlot {
        at: UtcMillis(number * span_ms),
        succeeded: 0,
        failed: 0,
        unknown: 0,
        other: 0,
    });
    slots.collect()
}

impl OutcomeSlot {
    fn add(&mut self, more: &EndedCount) {
        let of_state = match more.state.parse() {
            Ok(RequestState::Succeeded) => &mut self.succeeded,
            Ok(RequestState::Failed) => &mut self.failed,
            Ok(RequestState::Unknown) => &mut self.unknown,
            _ => &mut self.other,
        };
        *of_state += more.count;
    }

    /// How many ended.
    pub fn total(&self) -> i64 {
        self.succeeded + self.failed + self.unknown + self.other
    }
}

fn ends_of(tally: &Tally) -> Vec<End> {
    let counts = tally.counts().map(|(minute, kind, count)| End {
        minute,
        count: EndedCount {
            target: kind.target.clone(),
            action: kind.action.clone(),
            state: kind.state.clone(),
            error_code: kind.error_code.clone(),
            count: i64::try_from(count.count).unwrap_or(i64::MAX),
        },
        newest_id: count.newest_id,
    });
    counts.collect()
}

/// The rows, with those of too many targets put together.
fn merged(mut queue: Vec<OverviewCount>) -> Vec<OverviewCount> {
    if queue.len() <= LANES_MAX {
        return queue;
    }
    queue.sort_by_key(|count| std::cmp::Reverse(count.count));
    let rest = queue.split_off(LANES_MAX);
    for count in rest {
        let same = queue.iter_mut().find(|known| {
            known.target == OTHER && known.action == count.action && known.state == count.state
        });
        match same {
            Some(known) => known.count += count.count,
            None => queue.push(OverviewCount {
                target: OTHER.to_owned(),
                ..count
            }),
        }
    }
    queue
}

async fn orders(
    connection: &mut SqliteConnection,
    holds: &[HoldRecord],
    now: UtcMillis,
) -> Result<Vec<OrderNote>, StoreError> {
    let mut found: Vec<OrderRecord> = sqlx::query_as(
        "SELECT *, wave_taken AS wave_servers FROM orders INDEXED BY orders_open WHERE state IS DISTINCT FROM 'done'
         ORDER BY id DESC LIMIT 0 + $1",
    )
    .bind(ORDERS_MAX as i64)
    .fetch_all(&mut *connection)
    .await?;
    let done: Vec<OrderRecord> = sqlx::query_as(
        "SELECT *, wave_taken AS wave_servers FROM (SELECT * FROM orders INDEXED BY orders_done WHERE state = 'done'
             ORDER BY id DESC LIMIT 10) WHERE finished_at >= $1",
    )
    .bind(text(now.moved(-DAY_MS)))
    .fetch_all(&mut *connection)
    .await?;
    found.extend(done);
    let mut notes = Vec::new();
    for order in found {
        let hold = holds.iter().find(|hold| {
            hold.kind == HoldKind::Wave.as_str() && hold.label.as_ref() == Some(&order.label)
        });
        notes.push(OrderNote {
            targets: targets_of_order(connection, &order.label).await?,
            hold: hold.cloned(),
            requests: requests_of_order(connection, &order.label).await?,
            order,
        });
    }
    Ok(notes)
}

/// One step of the index for each target, however many servers there are.
async fn targets_of_order(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Vec<String>, StoreError> {
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "WITH RECURSIVE of_order(target) AS (
             SELECT min(s.target) FROM order_servers s WHERE s.label = $1
             UNION ALL
             SELECT (SELECT min(s.target) FROM order_servers s WHERE s.label = $1 AND s.target > of_order.target)
             FROM of_order WHERE of_order.target IS NOT NULL)
         SELECT CAST(target AS BLOB) FROM of_order WHERE target IS NOT NULL",
    )
    .bind(label)
    .fetch_all(&mut *connection)
    .await?;
    Ok(found.into_iter().map(rows::lossy).collect())
}

async fn requests_of_order(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Vec<StateCount>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT state, count(*) AS count FROM power_requests INDEXED BY power_requests_wave
         WHERE label = $1 AND wave IS NOT NULL GROUP BY state",
    )
    .bind(label)
    .fetch_all(&mut *connection)
    .await?)
}

async fn batches(
    connection: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Vec<BatchNote>, StoreError> {
    let mut open = overview::open_batches(connection).await?;
    open.sort_by_key(|batch| batch.id);
    let running: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT batch_id, count(*) FROM power_requests INDEXED BY power_requests_running WHERE state = 'running' GROUP BY batch_id",
    )
    .fetch_all(&mut *connection)
    .await?;
    let running: BTreeMap<i64, i64> = running.into_iter().collect();
    let mut usual: BTreeMap<(String, String), Option<i64>> = BTreeMap::new();
    let mut notes = Vec::new();
    for batch in open {
        let lane = (batch.target.clone(), batch.action.clone());
        let usual_ms = match usual.get(&lane) {
            Some(known) => *known,
            None => usual_ms(connection, &batch.target, &batch.action).await?,
        };
        usual.insert(lane, usual_ms);
        let began = batch.submitted_at.as_ref().unwrap_or(&batch.intent_at);
        let began = began.parse().unwrap_or(now);
        notes.push(BatchNote {
            known: batch.server_count - running.get(&batch.id).copied().unwrap_or_default(),
            elapsed_ms: millis(now.since(began)),
            usual_ms,
            batch,
        });
    }
    Ok(notes)
}

/// The middle of what the newest jobs of a target and action took.
pub(super) async fn usual_ms(
    connection: &mut SqliteConnection,
    target: &str,
    action: &str,
) -> Result<Option<i64>, StoreError> {
    let Ok(action) = action.parse::<PowerAction>() else {
        return Ok(None);
    };
    let target = TargetName(target.to_owned());
    let mut took = batches::job_history(connection, &target, action, LEARNED_FROM).await?;
    took.sort_unstable();
    Ok(took.get(took.len() / 2).map(|took| millis(*took)))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// What the newest failure of each error says.
async fn messages(
    connection: &mut SqliteConnection,
    ends: &[End],
) -> Result<BTreeMap<i64, Option<String>>, StoreError> {
    let mut newest: BTreeMap<(&str, &str, Option<&str>), i64> = BTreeMap::new();
    for end in ends
        .iter()
        .filter(|end| tally::is_failure(&end.count.state))
    {
        let kind = (
            end.count.target.as_str(),
            end.count.state.as_str(),
            end.count.error_code.as_deref(),
        );
        let id = newest.entry(kind).or_default();
        *id = end.newest_id.max(*id);
    }
    let found: Vec<(i64, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT r.id, CAST(r.error_message AS BLOB) FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value",
    )
    .bind(rows::list(newest.values()))
    .fetch_all(&mut *connection)
    .await?;
    Ok(found
        .into_iter()
        .map(|(id, message)| (id, message.map(rows::lossy)))
        .collect())
}

/// These requests, in the order of `ids`; those that are gone are left out.
async fn requests(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<RequestRecord>, StoreError> {
    let found = read::requests(connection, ids).await?;
    let mut found: BTreeMap<i64, RequestRecord> = found
        .into_iter()
        .map(|request| (request.id, request))
        .collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

pub(super) async fn targets(
    connection: &mut SqliteConnection,
    holds: &[HoldRecord],
    now: UtcMillis,
) -> Result<Vec<TargetHealth>, StoreError> {
    let notes = overview::targets(connection, now).await?.into_iter();
    let targets = notes.map(|note| TargetHealth {
        breaker: about(holds, &note.target, HoldKind::Breaker),
        credentials: about(holds, &note.target, HoldKind::Credentials),
        note,
    });
    Ok(targets.collect())
}

fn about(holds: &[HoldRecord], target: &str, kind: HoldKind) -> Option<HoldRecord> {
    let mut of_kind = holds.iter().filter(|hold| hold.kind == kind.as_str());
    of_kind
        .find(|hold| hold.target.as_deref().is_none_or(|held| held == target))
        .cloned()
}
