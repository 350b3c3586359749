//! A fresh queue on a real file: the daemon's `Store`, and a producer on a connection of its own.
//! Sends nothing anywhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use poweryard::lifecycle::{BatchNext, Event, Outcome, Return, Step};
use poweryard::model::{
    AttemptResult, Batch, Evidence, JobId, Lane, Origin, RequestId, Service, TargetName, UtcMillis,
};
use poweryard::store::{Claim, Snapshot, SnapshotQuery, Store, StoreError, TakenIn, Which};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tempfile::TempDir;

/// What the wall clock says, as the schema's `now` does.
pub(crate) fn wall() -> UtcMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970");
    UtcMillis(i64::try_from(since.as_millis()).expect("a clock before the year 292,000,000"))
}

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Queue {
    pub(crate) store: Store,
    producer: SqliteConnection,
    path: PathBuf,
    _dir: TempDir,
}

impl Queue {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a fresh queue");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(Duration::from_secs(5));
        let producer = options
            .disable_statement_logging()
            .connect()
            .await
            .expect("a producer's connection");
        Self {
            store,
            producer,
            path,
            _dir: dir,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a producer's statements: the rows of all of them, cells as text, or the complaint.
    pub(crate) async fn try_sql(&mut self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let found = sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&mut self.producer)
            .await;
        let cell = |row: &sqlx::sqlite::SqliteRow, at: usize| {
            let text: Option<String> = row
                .try_get_unchecked(at)
                .expect("SQLite gives any value as text");
            text.unwrap_or_default()
        };
        let cells =
            |row: &sqlx::sqlite::SqliteRow| (0..row.len()).map(|at| cell(row, at)).collect();
        match found {
            Ok(rows) => Ok(rows.iter().map(cells).collect()),
            Err(error) => Err(error
                .as_database_error()
                .map_or_else(|| error.to_string(), |e| e.message().to_owned())),
        }
    }

    pub(crate) async fn sql(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.try_sql(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}\n{error}"))
    }

    /// Runs statements with the write guard, which a producer does not take.
    pub(crate) async fn try_by_hand(&mut self, sql: &str) -> Result<(), String> {
        self.sql("UPDATE queue_mark SET writing = token").await;
        let done = self.try_sql(sql).await.map(|_| ());
        self.sql("UPDATE queue_mark SET writing = NULL").await;
        done
    }

    pub(crate) async fn by_hand(&mut self, sql: &str) {
        self.try_by_hand(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}\n{error}"));
    }

    /// The complaint about a statement that must fail even with the write guard.
    pub(crate) async fn refused_by_hand(&mut self, sql: &str) -> String {
        match self.try_by_hand(sql).await {
            Ok(()) => panic!("accepted: {sql}"),
            Err(complaint) => complaint,
        }
    }

    /// The complaint about a statement that must fail.
    pub(crate) async fn refused(&mut self, sql: &str) -> String {
        match self.try_sql(sql).await {
            Ok(rows) => panic!("accepted: {sql} -> {rows:?}"),
            Err(complaint) => complaint,
        }
    }

    /// One row, its cells joined by `|`; NULL is empty.
    pub(crate) async fn row(&mut self, sql: &str) -> String {
        let rows = self.sql(sql).await;
        assert_eq!(rows.len(), 1, "{sql}");
        rows[0].join("|")
    }

    /// All rows, each joined by `|`.
    pub(crate) async fn rows(&mut self, sql: &str) -> Vec<String> {
        self.sql(sql)
            .await
            .iter()
            .map(|row| row.join("|"))
            .collect()
    }

    /// Inserts one request for `server`, with more columns and values if given, and returns its id.
    pub(crate) async fn insert(&mut self, server: &str, more: &[(&str, &str)]) -> i64 {
        let columns: String = more
            .iter()
            .map(|(column, _)| format!(", {column}"))
            .collect();
        let values: String = more.iter().map(|(_, value)| format!(", {value}")).collect();
        let action = if more.iter().any(|(column, _)| *column == "action") {
            ("", "")
        } else {
            (", action", ", 'stop'")
        };
        self.sql(&format!(
            "INSERT INTO power_requests (server_id{columns}{}) VALUES ('{server}'{values}{})",
            action.0, action.1
        ))
        .await;
        self.row("SELECT last_insert_rowid()")
            .await
            .parse()
            .expect("an id")
    }

    pub(crate) async fn gate(&mut self, id: i64) -> String {
        self.row(&format!("SELECT gate FROM power_requests WHERE id = {id}"))
            .await
    }

    pub(crate) async fn state(&mut self, id: i64) -> String {
        self.row(&format!("SELECT state FROM power_requests WHERE id = {id}"))
            .await
    }

    pub(crate) async fn reason(&mut self, id: i64) -> String {
        self.row(&format!("SELECT reason FROM power_waiting WHERE id = {id}"))
            .await
    }

    /// Takes in until nothing is left to do.
    pub(crate) async fn take_in(&self, ttl: Option<Duration>, now: UtcMillis) -> TakenIn {
        let mut all = TakenIn::default();
        for _ in 0..10_000 {
            let taken = self.store.take_in(ttl, now).await.expect("take_in");
            all.due += taken.due;
            all.expired += taken.expired;
            all.cancelled += taken.cancelled;
            if !taken.more {
                return all;
            }
        }
        panic!("take_in never ends");
    }

    pub(crate) async fn claim(
        &self,
        lane: &Lane,
        servers_max: u32,
        now: UtcMillis,
    ) -> Option<Batch> {
        self.try_claim(lane, servers_max, now).await.expect("claim")
    }

    pub(crate) async fn try_claim(
        &self,
        lane: &Lane,
        servers_max: u32,
        now: UtcMillis,
    ) -> Result<Option<Batch>, StoreError> {
        let claim = Claim {
            lane,
            origin: &origin(),
            which: Which::First(servers_max),
            barred: &[],
            guard: None,
            now,
        };
        self.store.claim(&claim).await
    }

    /// The lanes of all targets that the queue names, counted.
    pub(crate) async fn lanes(&self) -> Vec<Lane> {
        let targets = self.store.targets_after("", 1000).await.expect("targets");
        let targets: Vec<_> = targets.into_iter().map(|target| (target, 1000)).collect();
        self.snapshot(&targets, None).await.lanes
    }

    /// What a round would read.
    pub(crate) async fn snapshot(
        &self,
        targets: &[(TargetName, u32)],
        default_ttl: Option<Duration>,
    ) -> Snapshot {
        let asked = SnapshotQuery {
            default_ttl,
            targets,
            except: &BTreeSet::new(),
        };
        self.store.peek(&asked, wall()).await.expect("readable")
    }

    /// When something is due without anybody's doing.
    pub(crate) async fn due_at(&self, default_ttl: Option<Duration>) -> Option<UtcMillis> {
        self.snapshot(&[], default_ttl).await.due_at
    }

    /// Has what has ended leave the lines of its servers, as in a quiet moment.
    pub(crate) async fn leave_line(&self) {
        let seen = self.snapshot(&[], None).await;
        let left = self.store.leave_line(&seen, true).await;
        left.expect("leave_line");
    }

    /// Claims all that may go now.
    pub(crate) async fn claim_all(&self, now: UtcMillis) -> Vec<Batch> {
        let mut batches = Vec::new();
        for lane in self.lanes().await {
            batches.extend(self.claim(&lane, 1000, now).await);
        }
        batches
    }

    /// Takes in and claims all that may go: the ids that went.
    pub(crate) async fn go(&self, now: UtcMillis) -> Vec<Batch> {
        self.take_in(None, now).await;
        self.claim_all(now).await
    }

    /// Stores that the cloud accepted the batch.
    pub(crate) async fn accept(&self, batch: &Batch, now: UtcMillis) -> Batch {
        let next = BatchNext::Track {
            job: Some(JobId(format!("job-{}", batch.id))),
            next_look_at: now,
        };
        self.store
            .record(batch, &step(next, Vec::new()), now)
            .await
            .expect("record");
        let (batch, _) = self
            .store
            .load_batch(batch.id)
            .await
            .expect("load")
            .expect("an open batch");
        batch
    }

    /// Stores that all requests of the batch ended.
    pub(crate) async fn end(&self, batch: &Batch, outcome: &Outcome, now: UtcMillis) {
        let moves = batch
            .members
            .iter()
            .map(|member| (member.request, Event::Ended(outcome.clone())))
            .collect();
        self.store
            .record(batch, &step(BatchNext::Done, moves), now)
            .await
            .expect("record");
    }

    /// Stores that all requests of the batch go back to the queue.
    pub(crate) async fn give_back(
        &self,
        batch: &Batch,
        retry_at: Option<UtcMillis>,
        now: UtcMillis,
    ) {
        let moves = batch
            .members
            .iter()
            .map(|member| (member.request, back(retry_at)))
            .collect();
        self.store
            .record(batch, &step(BatchNext::Done, moves), now)
            .await
            .expect("record");
    }
}

pub(crate) fn origin() -> Origin {
    Origin {
        service: Service::Bms,
        endpoint: "http://127.0.0.1:1".into(),
        project_id: "p".into(),
    }
}

pub(crate) fn step(batch: BatchNext, moves: Vec<(RequestId, Event)>) -> Step {
    Step {
        batch,
        moves,
        seen_moving: Vec::new(),
        complaint: None,
        job_ms: None,
        read_error: None,
    }
}

pub(crate) fn succeeded() -> Outcome {
    Outcome::succeeded(Evidence::Job, "")
}

pub(crate) fn failed() -> Outcome {
    Outcome::failed(Evidence::Job, "BMS.0040", "the server could not be stopped")
}

pub(crate) fn back(retry_at: Option<UtcMillis>) -> Event {
    Event::Returned(Return {
        retry_at,
        group: None,
        result: AttemptResult::Busy,
        code: "BMS.0028".into(),
        message: "busy".into(),
    })
}

/// The ids that a set of batches carries, sorted.
pub(crate) fn ids(batches: &[Batch]) -> Vec<i64> {
    let mut ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.members.iter().map(|member| member.request.0))
        .collect();
    ids.sort_unstable();
    ids
}
