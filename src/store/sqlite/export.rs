//! What has ended as JSON lines, each with its `"type"`: an `outcome` with the columns of
//! `power_outcomes`, behind it an `attempt` for each call that carried it, and `action` for what
//! people did. Reads in chunks and holds up nobody.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Column, Row, TypeInfo, ValueRef};

use super::{Prune, StoreError, rows, text, upkeep};
use crate::model::UtcMillis;

/// Rows that are read at once.
const CHUNK: i64 = 500;

/// A span of time; what is at `until` is no longer in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportSpan {
    /// None: from the beginning.
    pub since: Option<UtcMillis>,
    /// Its end.
    pub until: UtcMillis,
}

/// How far an export of one type has come: the time and the id of the last row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportPlace {
    at: String,
    id: i64,
}

/// Some lines, and where they ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExportChunk {
    /// Each with its line end.
    pub lines: String,
    /// Outcomes, or actions, among them.
    pub rows: u64,
    /// Go on behind this; none: that was all.
    pub next: Option<ExportPlace>,
}

/// What one chunk of a prune may delete, because it was written before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exported {
    /// The lines that must be on the disk first.
    pub lines: String,
    pub(super) requests: Vec<i64>,
    /// Attempts of requests that somebody else has deleted: request and batch.
    pub(super) orphans: Vec<(i64, i64)>,
}

impl Exported {
    /// True if attempts are among it whose requests are gone: their deletion is worth a commit.
    pub(in crate::store) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }
}

/// Outcomes that came in this span, in the order of their ends, each with its attempts.
pub(in crate::store) async fn outcomes(
    connection: &mut SqliteConnection,
    span: ExportSpan,
    after: &ExportPlace,
) -> Result<ExportChunk, StoreError> {
    let found: Vec<(String, i64)> = sqlx::query_as(
        "SELECT finished_at, id FROM power_requests
         WHERE finished_at IS NOT NULL AND finished_at >= $1 AND finished_at < $2 AND (finished_at, id) > ($3, $4)
         ORDER BY finished_at, id LIMIT 0 + $5",
    )
    .bind(span.since.map(text).unwrap_or_default())
    .bind(text(span.until))
    .bind(&after.at)
    .bind(after.id)
    .bind(CHUNK)
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<i64> = found.iter().map(|(_, id)| *id).collect();
    Ok(ExportChunk {
        lines: lines_of(connection, &ids).await?,
        rows: ids.len() as u64,
        next: next_place(found),
    })
}

/// What people did in this span, in the order of the times.
pub(in crate::store) async fn actions(
    connection: &mut SqliteConnection,
    span: ExportSpan,
    after: &ExportPlace,
) -> Result<ExportChunk, StoreError> {
    let found: Vec<SqliteRow> = sqlx::query(
        "SELECT id, at, who, action, what, requests, reason FROM operator_actions
         WHERE at >= $1 AND at < $2 AND (at, id) > ($3, $4) ORDER BY at, id LIMIT 0 + $5",
    )
    .bind(span.since.map(text).unwrap_or_default())
    .bind(text(span.until))
    .bind(&after.at)
    .bind(after.id)
    .bind(CHUNK)
    .fetch_all(connection)
    .await?;
    let mut chunk = ExportChunk::default();
    let mut places = Vec::with_capacity(found.len());
    for row in &found {
        push_line(&mut chunk.lines, "action", row)?;
        places.push((row.try_get_unchecked("at")?, row.try_get_unchecked("id")?));
    }
    chunk.rows = found.len() as u64;
    chunk.next = next_place(places);
    Ok(chunk)
}

/// A chunk that is not full was the last one.
fn next_place(found: Vec<(String, i64)>) -> Option<ExportPlace> {
    let is_full = found.len() as i64 == CHUNK;
    let (at, id) = found.into_iter().last().filter(|_| is_full)?;
    Some(ExportPlace { at, id })
}

/// What the next chunk of this prune would delete.
pub(in crate::store) async fn before_prune(
    connection: &mut SqliteConnection,
    so_far: &Prune,
    cutoff: UtcMillis,
    now: UtcMillis,
) -> Result<Exported, StoreError> {
    let ids = upkeep::next_chunk(connection, so_far, cutoff).await?;
    if so_far.looks_at_requests() {
        let requests = upkeep::deletable(connection, &ids, now).await?;
        return Ok(Exported {
            lines: lines_of(connection, &requests).await?,
            requests,
            orphans: Vec::new(),
        });
    }
    let orphans = upkeep::orphans(connection, &ids).await?;
    let attempts: Vec<SqliteRow> = sqlx::query(
        "SELECT a.request_id, a.batch_id, b.job_id, a.result, a.error_code, a.error_message, a.started_at, a.finished_at
         FROM json_each($1) j CROSS JOIN earlier_attempts a ON a.request_id = j.value ->> 0 AND a.batch_id = j.value ->> 1
         LEFT JOIN batches b ON b.id = a.batch_id",
    )
    .bind(serde_json::to_string(&orphans).unwrap_or_default())
    .fetch_all(connection)
    .await?;
    let mut lines = String::new();
    for attempt in &attempts {
        push_line(&mut lines, "attempt", attempt)?;
    }
    Ok(Exported {
        lines,
        requests: Vec::new(),
        orphans,
    })
}

/// These requests with their attempts, in the order given.
async fn lines_of(connection: &mut SqliteConnection, ids: &[i64]) -> Result<String, StoreError> {
    let mut lines = String::new();
    if ids.is_empty() {
        return Ok(lines);
    }
    let outcomes: Vec<SqliteRow> = sqlx::query(
        "SELECT o.*, (SELECT n.name FROM servers n WHERE n.target = o.target AND n.server_id = o.server_id) AS name
         FROM json_each($1) j CROSS JOIN power_outcomes o ON o.id = j.value",
    )
    .bind(rows::list(ids))
    .fetch_all(&mut *connection)
    .await?;
    let attempts: Vec<SqliteRow> = sqlx::query(
        "SELECT a.request_id, a.batch_id, b.job_id, a.result, a.error_code, a.error_message, a.started_at, a.finished_at
         FROM request_attempts a LEFT JOIN batches b ON b.id = a.batch_id
         WHERE a.request_id IN (SELECT value FROM json_each($1))",
    )
    .bind(rows::list(ids))
    .fetch_all(connection)
    .await?;
    let mut sorted: Vec<(i64, i64, &SqliteRow)> = Vec::with_capacity(attempts.len());
    for attempt in &attempts {
        let request = attempt.try_get_unchecked("request_id")?;
        let batch = attempt.try_get_unchecked("batch_id")?;
        sorted.push((request, batch, attempt));
    }
    sorted.sort_unstable_by_key(|(request, batch, _)| (*request, *batch));
    for outcome in &outcomes {
        push_line(&mut lines, "outcome", outcome)?;
        let id: i64 = outcome.try_get_unchecked("id")?;
        let first = sorted.partition_point(|(request, ..)| *request < id);
        let own = sorted[first..].iter();
        for (.., attempt) in own.take_while(|(request, ..)| *request == id) {
            push_line(&mut lines, "attempt", attempt)?;
        }
    }
    Ok(lines)
}

/// One JSON object with the row's columns in their order.
fn push_line(lines: &mut String, kind: &str, row: &SqliteRow) -> Result<(), StoreError> {
    lines.push_str("{\"type\":");
    lines.push_str(&json(kind));
    for (at, column) in row.columns().iter().enumerate() {
        lines.push(',');
        lines.push_str(&json(column.name()));
        lines.push(':');
        lines.push_str(&value(row, at)?);
    }
    lines.push_str("}\n");
    Ok(())
}

/// Numbers as numbers; of texts only the bytes are certain.
fn value(row: &SqliteRow, at: usize) -> Result<String, StoreError> {
    let raw = row.try_get_raw(at)?;
    if raw.is_null() {
        return Ok("null".to_owned());
    }
    if raw.type_info().name() == "INTEGER" {
        let number: i64 = row.try_get_unchecked(at)?;
        return Ok(number.to_string());
    }
    let bytes: Vec<u8> = row.try_get_unchecked(at)?;
    Ok(json(&rows::lossy(bytes)))
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What the daemon has noted of writing what it deletes.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, sqlx::FromRow)]
pub struct ExportNote {
    /// Where it is written; none: nowhere.
    #[sqlx(rename = "export_dir")]
    pub dir: Option<String>,
    /// Why the last try failed; nothing is deleted then.
    #[sqlx(rename = "export_error")]
    pub error: Option<String>,
    /// When that was.
    #[sqlx(rename = "export_failed_at")]
    pub failed_at: Option<String>,
}

pub(in crate::store) async fn read_note(
    connection: &mut SqliteConnection,
) -> Result<ExportNote, StoreError> {
    let found: Option<ExportNote> = sqlx::query_as(
        "SELECT CAST(export_dir AS TEXT) AS export_dir, CAST(export_error AS TEXT) AS export_error,
                CAST(export_failed_at AS TEXT) AS export_failed_at FROM upkeep WHERE id = 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.unwrap_or_default())
}

pub(in crate::store) async fn write_note(
    tx: &mut SqliteConnection,
    note: &ExportNote,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO upkeep (id, export_dir, export_error, export_failed_at) VALUES (1, $1, $2, $3)
         ON CONFLICT (id) DO UPDATE SET export_dir = $1, export_error = $2, export_failed_at = $3",
    )
    .bind(&note.dir)
    .bind(&note.error)
    .bind(&note.failed_at)
    .execute(tx)
    .await?;
    Ok(())
}
