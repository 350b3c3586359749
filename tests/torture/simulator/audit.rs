//! A record of every move in the queue's file, kept by triggers of its own: also of moves that a
//! daemon forgot at once.
//!
//! Owns the audit's SQL. Judges nothing.

use sqlx::SqliteConnection;

use super::Broken;
use poweryard::model::{AttemptResult, BatchState, Evidence, PowerAction, RequestState};

const INSTALL: [&str; 10] = [
    "CREATE TABLE audit (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, id INTEGER, batch INTEGER, was TEXT, becomes TEXT,
         evidence TEXT, code TEXT, attempts INTEGER)",
    "CREATE TRIGGER audit_request AFTER UPDATE ON power_requests
     WHEN OLD.state IS NOT NEW.state
          OR (OLD.finished_at IS NOT NULL AND OLD.state <> 'cancelled' AND NEW.in_line IS OLD.in_line) BEGIN
         INSERT INTO audit (kind, id, batch, becomes)
         SELECT 'result', a.request_id, a.batch_id, a.result FROM request_attempts a
         WHERE a.request_id = NEW.id AND a.batch_id = NEW.batch_id AND OLD.state = 'running' AND NEW.state <> 'queued';
         INSERT INTO audit (kind, id, batch, was, becomes, evidence, code, attempts)
         VALUES ('request', NEW.id, NEW.batch_id, OLD.state, NEW.state, NEW.evidence, NEW.error_code, NEW.attempts);
         INSERT INTO audit (kind, id, batch) SELECT 'member', NEW.id, NEW.batch_id WHERE NEW.state = 'running';
     END",
    "CREATE TRIGGER audit_deleted AFTER DELETE ON power_requests BEGIN
         INSERT INTO audit (kind, id, was) VALUES ('deleted', OLD.id, OLD.state);
     END",
    "CREATE TRIGGER audit_batch AFTER INSERT ON batches BEGIN
         INSERT INTO audit (kind, batch, was, becomes) VALUES ('intent', NEW.id, NEW.action, NEW.state);
     END",
    "CREATE TRIGGER audit_batch_state AFTER UPDATE ON batches WHEN OLD.state IS NOT NEW.state BEGIN
         INSERT INTO audit (kind, batch, was, becomes) VALUES ('batch', NEW.id, OLD.state, NEW.state);
     END",
    "CREATE TRIGGER audit_batch_gone AFTER DELETE ON batches BEGIN
         INSERT INTO audit (kind, batch, was) VALUES ('gone', OLD.id, OLD.state);
     END",
    "CREATE TRIGGER audit_wave AFTER UPDATE OF wave ON power_requests WHEN NEW.wave IS NOT OLD.wave BEGIN
         INSERT INTO audit (kind, id, attempts) VALUES ('wave', NEW.id, NEW.wave);
     END",
    "CREATE TRIGGER audit_order AFTER UPDATE ON orders
     WHEN NEW.wave IS NOT OLD.wave OR NEW.wave_size IS NOT OLD.wave_size OR NEW.state IS NOT OLD.state BEGIN
         INSERT INTO audit (kind, id, batch, was, becomes, attempts)
         VALUES ('order', NEW.wave, NEW.wave_size, NEW.label, NEW.state, NEW.done_id);
     END",
    "CREATE TRIGGER audit_order_gone AFTER DELETE ON orders BEGIN
         INSERT INTO audit (kind, was) VALUES ('order gone', OLD.label);
     END",
    "CREATE TRIGGER audit_result AFTER INSERT ON earlier_attempts BEGIN
         INSERT INTO audit (kind, id, batch, becomes) VALUES ('result', NEW.request_id, NEW.batch_id, NEW.result);
     END",
];

/// Puts the audit into a queue.
pub(super) async fn install(connection: &mut SqliteConnection) -> Result<(), Broken> {
    for statement in INSTALL {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

/// One thing that happened in the queue.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// A request changed its state, or was touched after its end.
    Moved(Move),
    /// A request is gone.
    Deleted { request: i64, was: String },
    /// A batch was made.
    Intent { batch: i64, action: PowerAction },
    /// A batch moved on.
    Batch {
        batch: i64,
        was: BatchState,
        becomes: BatchState,
    },
    /// A batch is gone.
    Gone { batch: i64, was: BatchState },
    /// A request became a member of a batch.
    Member { request: i64, batch: i64 },
    /// The ledger says how an attempt ended.
    Result {
        request: i64,
        batch: i64,
        result: AttemptResult,
    },
    /// A wave let a request go.
    Waved { request: i64, wave: i64 },
    /// An order moved on.
    Order(OrderMove),
    /// An order is gone.
    OrderGone { label: String },
}

/// What the row of an order says now.
#[derive(Debug, Clone)]
pub(super) struct OrderMove {
    pub(super) label: String,
    pub(super) wave: i64,
    pub(super) size: i64,
    pub(super) is_done: bool,
    pub(super) done_id: i64,
}

/// A request's change of state.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) request: i64,
    pub(super) batch: Option<i64>,
    pub(super) was: RequestState,
    pub(super) becomes: RequestState,
    pub(super) evidence: Option<Evidence>,
    pub(super) code: String,
    pub(super) attempts: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    seq: i64,
    kind: String,
    id: Option<i64>,
    batch: Option<i64>,
    was: Option<String>,
    becomes: Option<String>,
    evidence: Option<String>,
    code: Option<String>,
    attempts: Option<i64>,
}

/// The entries after number `last`, and the number of the newest.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    last: i64,
) -> Result<(Vec<Entry>, i64), Broken> {
    let rows: Vec<Row> = sqlx::query_as("SELECT * FROM audit WHERE seq > ? ORDER BY seq")
        .bind(last)
        .fetch_all(connection)
        .await?;
    let newest = rows.last().map_or(last, |row| row.seq);
    let entries = rows.into_iter().map(Row::read).collect::<Result<_, _>>()?;
    Ok((entries, newest))
}

impl Row {
    fn read(self) -> Result<Entry, Broken> {
        let (request, batch) = (self.id.unwrap_or(0), self.batch.unwrap_or(0));
        Ok(match self.kind.as_str() {
            "request" => Entry::Moved(Move {
                request,
                batch: self.batch,
                was: word(self.was)?,
                becomes: word(self.becomes)?,
                evidence: self.evidence.map(|text| word(Some(text))).transpose()?,
                code: self.code.unwrap_or_default(),
                attempts: self.attempts.unwrap_or(0),
            }),
            "deleted" => Entry::Deleted {
                request,
                was: self.was.unwrap_or_default(),
            },
            "intent" => Entry::Intent {
                batch,
                action: word(self.was)?,
            },
            "batch" => Entry::Batch {
                batch,
                was: word(self.was)?,
                becomes: word(self.becomes)?,
            },
            "gone" => Entry::Gone {
                batch,
                was: word(self.was)?,
            },
            "member" => Entry::Member { request, batch },
            "wave" => Entry::Waved {
                request,
                wave: self.attempts.unwrap_or(0),
            },
            "order" => Entry::Order(OrderMove {
                label: self.was.unwrap_or_default(),
                wave: request,
                size: batch,
                is_done: self.becomes.as_deref() == Some("done"),
                done_id: self.attempts.unwrap_or(0),
            }),
            "order gone" => Entry::OrderGone {
                label: self.was.unwrap_or_default(),
            },
            _ => Entry::Result {
                request,
                batch,
                result: word(self.becomes)?,
            },
        })
    }
}

fn word<T: std::str::FromStr>(text: Option<String>) -> Result<T, Broken>
where
    T::Err: std::fmt::Display,
{
    text.unwrap_or_default()
        .parse()
        .map_err(|error: T::Err| Broken(format!("the queue holds a strange word: {error}")))
}
