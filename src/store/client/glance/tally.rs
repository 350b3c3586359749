//! What has ended in the last day, counted by minute. Writes nothing.
//!
//! Ten million requests may have ended in a day, so each is counted a few times at most: what is new
//! since the last reading at every reading, once more when it is certain that nothing else will be
//! stored with so early a time, and what ended before the first reading a chunk a reading, backwards.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;

use crate::model::UtcMillis;
use crate::store::StoreError;
use crate::store::sqlite::rows::lossy;
use crate::store::sqlite::text;

/// Ends are counted in steps of so many milliseconds; a minute is a whole number of them.
const STEP_MS: i64 = 2_000;
/// An end is stored this long after its time at the latest: a write waits 5 s for a lock, and is
/// tried again a few times.
const SETTLED_MS: i64 = 30_000;
/// Ends that are as new as this may still be joined by others, and are counted at every reading.
const FRESH_MS: i64 = 1_000;
/// Ends with a time ahead of the clock, which was set back, count up to here.
const AHEAD_MS: i64 = 60_000;
pub(super) const MINUTE_MS: i64 = 60_000;
pub(super) const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// Ends that the first reading counts at most; for one reading by a command this is all.
const FIRST_ROWS: i64 = 200_000;
/// Earlier ends that each further reading adds.
const EARLIER_ROWS: i64 = 50_000;
/// Nobody has read for long, and so much has ended: it is counted anew, newest first.
const BEHIND_ROWS: i64 = 200_000;
/// How many of the newest failures are remembered.
const FAILURES_KEPT: usize = 100;
/// Kinds of ends that a minute tells apart; codes are the cloud's, and targets anybody's.
const KINDS_MAX: usize = 500;
/// What further ones are called.
pub(super) const OTHER: &str = "(other)";

/// What ends are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) target: String,
    pub(super) action: String,
    pub(super) state: String,
    pub(super) error_code: Option<String>,
}

/// How many, and the newest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    pub(super) count: u64,
    pub(super) newest_id: i64,
}

type Counts = BTreeMap<Kind, Count>;

/// Counts what has ended, reading after reading. It belongs to one queue.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By minute since 1970; nothing is added to them any more, but for those before
    /// `counted_from`.
    minutes: BTreeMap<i64, Counts>,
    /// By step since 1970, from `settled_to` to `counted_to`.
    steps: BTreeMap<i64, Counts>,
    /// Since `counted_to`.
    fresh: BTreeMap<i64, Counts>,
    span: Option<Span>,
    /// The targets of the newest failures, by time and id.
    failures: BTreeMap<(String, i64), String>,
}

/// Times in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Span {
    counted_from: i64,
    settled_to: i64,
    counted_to: i64,
}

/// One range of ends.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: i64,
    to: i64,
}

/// How finely ends are told apart by time: so many characters of it.
#[derive(Debug, Clone, Copy)]
enum Grain {
    Minute = 16,
    Second = 19,
}

impl Tally {
    /// Counts what is new.
    pub(super) async fn read(
        &mut self,
        connection: &mut SqliteConnection,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let fresh_from = step_start(now.0 - FRESH_MS);
        let settled_to = step_start(now.0 - SETTLED_MS);
        let mut earlier_rows = EARLIER_ROWS;
        let mut span = match self.span {
            Some(span) if !must_begin_anew(connection, span, fresh_from).await? => span,
            _ => {
                *self = Self::default();
                earlier_rows = FIRST_ROWS;
                Span {
                    counted_from: settled_to,
                    settled_to,
                    counted_to: settled_to,
                }
            }
        };
        // Until all is counted, what is counted is of no known time.
        self.span = None;
        self.settle(connection, &mut span, settled_to).await?;
        self.step_forward(connection, &mut span, fresh_from).await?;
        let newest = Range {
            from: fresh_from,
            to: now.0 + AHEAD_MS,
        };
        self.fresh = self.count(connection, newest, Grain::Second).await?;
        self.step_back(connection, &mut span, now.0 - DAY_MS, earlier_rows)
            .await?;
        self.forget_before(now.0 - DAY_MS);
        self.span = Some(span);
        Ok(())
    }

    /// From when on everything is counted.
    pub(super) fn counted_since(&self) -> Option<UtcMillis> {
        self.span.map(|span| UtcMillis(span.counted_from))
    }

    /// Each count, with the minute since 1970 that it is of.
    pub(super) fn counts(&self) -> impl Iterator<Item = (i64, &Kind, Count)> {
        let settled = self
            .minutes
            .iter()
            .map(|(minute, counts)| (*minute, counts));
        let steps = self
            .steps
            .iter()
            .map(|(step, counts)| (step * STEP_MS / MINUTE_MS, counts));
        let fresh = self
            .fresh
            .iter()
            .map(|(step, counts)| (step * STEP_MS / MINUTE_MS, counts));
        settled
            .chain(steps)
            .chain(fresh)
            .flat_map(|(minute, counts)| {
                counts
                    .iter()
                    .map(move |(kind, count)| (minute, kind, *count))
            })
    }

    /// The newest failures: id and target, newest first.
    pub(super) fn failures(&self) -> impl Iterator<Item = (i64, &str)> {
        let newest_first = self.failures.iter().rev();
        newest_first.map(|((_, id), target)| (*id, target.as_str()))
    }

    async fn settle(
        &mut self,
        connection: &mut SqliteConnection,
        span: &mut Span,
        to: i64,
    ) -> Result<(), StoreError> {
        if to <= span.settled_to {
            return Ok(());
        }
        let range = Range {
            from: span.settled_to,
            to,
        };
        let counts = self.count(connection, range, Grain::Minute).await?;
        self.add_minutes(counts);
        self.steps = self.steps.split_off(&(to / STEP_MS));
        span.settled_to = to;
        span.counted_to = span.counted_to.max(to);
        Ok(())
    }

    async fn step_forward(
        &mut self,
        connection: &mut SqliteConnection,
        span: &mut Span,
        to: i64,
    ) -> Result<(), StoreError> {
        if to <= span.counted_to {
            return Ok(());
        }
        let range = Range {
            from: span.counted_to,
            to,
        };
        let counts = self.count(connection, range, Grain::Second).await?;
        self.steps.extend(counts);
        span.counted_to = to;
        Ok(())
    }

    async fn step_back(
        &mut self,
        connection: &mut SqliteConnection,
        span: &mut Span,
        day_start: i64,
        rows: i64,
    ) -> Result<(), StoreError> {
        if span.counted_from <= day_start {
            return Ok(());
        }
        let chunk: Option<String> = sqlx::query_scalar(
            "SELECT finished_at FROM power_requests INDEXED BY power_requests_ended
             WHERE finished_at >= $1 AND finished_at < $2 ORDER BY finished_at DESC LIMIT 1 OFFSET 0 + $3",
        )
        .bind(text(UtcMillis(day_start)))
        .bind(text(UtcMillis(span.counted_from)))
        .bind(rows)
        .fetch_optional(&mut *connection)
        .await?;
        let chunk = chunk.and_then(|at| at.parse().ok());
        let range = Range {
            from: chunk.map_or(day_start, |at: UtcMillis| at.0),
            to: span.counted_from,
        };
        let counts = self.count(connection, range, Grain::Minute).await?;
        self.add_minutes(counts);
        span.counted_from = range.from;
        Ok(())
    }

    fn add_minutes(&mut self, counts: BTreeMap<i64, Counts>) {
        for (minute, counts) in counts {
            let all = self.minutes.entry(minute).or_default();
            for (kind, count) in counts {
                add(all, kind, count);
            }
        }
    }

    fn forget_before(&mut self, day_start: i64) {
        self.minutes = self.minutes.split_off(&(day_start / MINUTE_MS));
        while self.failures.len() > FAILURES_KEPT {
            self.failures.pop_first();
        }
    }

    /// The ends of a range, by minute or by step; its failures are remembered.
    async fn count(
        &mut self,
        connection: &mut SqliteConnection,
        range: Range,
        grain: Grain,
    ) -> Result<BTreeMap<i64, Counts>, StoreError> {
        let found: Vec<EndedRow> = sqlx::query_as(
            "SELECT substr(finished_at, 1, $3) AS at, CAST(target AS BLOB) AS target, action, state,
                    CAST(error_code AS BLOB) AS error_code, count(*) AS count, max(id) AS newest_id
             FROM power_requests INDEXED BY power_requests_ended WHERE finished_at >= $1 AND finished_at < $2
             GROUP BY substr(finished_at, 1, $3), target, action, state, error_code",
        )
        .bind(text(UtcMillis(range.from)))
        .bind(text(UtcMillis(range.to)))
        .bind(grain as i64)
        .fetch_all(&mut *connection)
        .await?;
        let mut counts: BTreeMap<i64, Counts> = BTreeMap::new();
        let mut has_failures = false;
        for row in found {
            has_failures |= is_failure(&row.state);
            let Some(bucket) = row.bucket(grain) else {
                continue;
            };
            let count = Count {
                count: row.count.unsigned_abs(),
                newest_id: row.newest_id,
            };
            add(counts.entry(bucket).or_default(), row.kind(), count);
        }
        if has_failures {
            self.remember_failures(connection, range).await?;
        }
        Ok(counts)
    }

    async fn remember_failures(
        &mut self,
        connection: &mut SqliteConnection,
        range: Range,
    ) -> Result<(), StoreError> {
        let found: Vec<(String, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT finished_at, id, CAST(target AS BLOB) FROM power_requests INDEXED BY power_requests_ended
             WHERE finished_at >= $1 AND finished_at < $2 AND state IN ('failed', 'unknown', 'rejected', 'expired')
             ORDER BY finished_at DESC LIMIT 0 + $3",
        )
        .bind(text(UtcMillis(range.from)))
        .bind(text(UtcMillis(range.to)))
        .bind(FAILURES_KEPT as i64)
        .fetch_all(&mut *connection)
        .await?;
        for (at, id, target) in found {
            self.failures.insert((at, id), lossy(target));
        }
        Ok(())
    }
}

#[derive(sqlx::FromRow)]
struct EndedRow {
    at: String,
    target: Vec<u8>,
    action: String,
    state: String,
    error_code: Option<Vec<u8>>,
    count: i64,
    newest_id: i64,
}

impl EndedRow {
    /// The minute or the step since 1970.
    fn bucket(&self, grain: Grain) -> Option<i64> {
        let (rest, span) = match grain {
            Grain::Minute => (":00.000Z", MINUTE_MS),
            Grain::Second => (".000Z", STEP_MS),
        };
        let at: UtcMillis = format!("{}{rest}", self.at).parse().ok()?;
        Some(at.0.div_euclid(span))
    }

    fn kind(self) -> Kind {
        Kind {
            target: lossy(self.target),
            action: self.action,
            state: self.state,
            error_code: self.error_code.map(lossy),
        }
    }
}

/// True for the ends that somebody has to look at.
pub(super) fn is_failure(state: &str) -> bool {
    ["failed", "unknown", "rejected", "expired"].contains(&state)
}

fn add(counts: &mut Counts, kind: Kind, more: Count) {
    let kind = if counts.len() < KINDS_MAX || counts.contains_key(&kind) {
        kind
    } else {
        Kind {
            target: OTHER.to_owned(),
            error_code: kind.error_code.map(|_| OTHER.to_owned()),
            ..kind
        }
    };
    let count = counts.entry(kind).or_default();
    count.count += more.count;
    count.newest_id = count.newest_id.max(more.newest_id);
}

fn step_start(at: i64) -> i64 {
    at.div_euclid(STEP_MS) * STEP_MS
}

/// The clock was set back, or so much has ended since the last reading that it would take long.
async fn must_begin_anew(
    connection: &mut SqliteConnection,
    span: Span,
    fresh_from: i64,
) -> Result<bool, StoreError> {
    if fresh_from < span.counted_to || fresh_from - span.counted_to > DAY_MS {
        return Ok(true);
    }
    if fresh_from - span.counted_to < MINUTE_MS {
        return Ok(false);
    }
    let beyond: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM power_requests INDEXED BY power_requests_ended WHERE finished_at >= $1 LIMIT 1 OFFSET 0 + $2",
    )
    .bind(text(UtcMillis(span.counted_to)))
    .bind(BEHIND_ROWS)
    .fetch_optional(&mut *connection)
    .await?;
    Ok(beyond.is_some())
}
