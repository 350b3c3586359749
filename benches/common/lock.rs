//! How long the queue's write lock is held at a time, seen by somebody who tries to take it all the
//! time, as a producer would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::figures::Figures;

/// Between two tries.
const TRY_INTERVAL: Duration = Duration::from_micros(300);

/// Somebody who watches, on a thread of its own.
pub(crate) struct LockWatch {
    is_over: Arc<AtomicBool>,
    watcher: JoinHandle<Figures>,
}

impl LockWatch {
    /// Watches the queue at `path`.
    pub(crate) fn start(path: &Path) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let path = path.to_owned();
        let watcher = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(watch(path, &ends))
        });
        Self { is_over, watcher }
    }

    /// For how long each transaction held the lock, in milliseconds, as far as it was met.
    pub(crate) fn end(self) -> Figures {
        self.is_over.store(true, Ordering::Relaxed);
        self.watcher.join().expect("it ends")
    }
}

/// A transaction of somebody else.
struct Held {
    since: Instant,
    /// Changes with the next commit: then it is another transaction.
    version: i64,
}

async fn watch(path: PathBuf, is_over: &AtomicBool) -> Figures {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::ZERO)
        .disable_statement_logging()
        .connect()
        .await
        .expect("it opens");
    let mut spans = Figures::default();
    let mut held: Option<Held> = None;
    while !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        let version = version_if_locked(&mut connection).await;
        let is_same = held.as_ref().map(|held| held.version) == version;
        if !is_same {
            if let Some(held) = held.take() {
                spans.push_ms(now - held.since);
            }
            held = version.map(|version| Held {
                since: now,
                version,
            });
        }
        // Not of tokio, whose timers tick once a millisecond.
        std::thread::sleep(TRY_INTERVAL);
    }
    spans
}

/// None if the lock was free.
async fn version_if_locked(connection: &mut SqliteConnection) -> Option<i64> {
    let tried = sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK")
        .execute(&mut *connection)
        .await;
    let error = tried.err()?;
    let is_locked = error.to_string().contains("locked");
    assert!(is_locked, "{error}");
    let version = sqlx::query_scalar("PRAGMA data_version")
        .fetch_one(connection)
        .await;
    Some(version.expect("readable"))
}
