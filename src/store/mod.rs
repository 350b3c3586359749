//! The queue, for the rest of the crate: what can be asked and told, by event. Knows nothing of HTTP,
//! and this page nothing of SQL.
//!
//! `Store` is the daemon's side, `QueueClient` that of the commands, which are producers and readers
//! like any other. All SQL is in `sqlite` and `client`.
//!
//! Nothing in this process opens the database, its `-wal` or its `-shm` by itself once SQLite has,
//! and closes it again: that drops SQLite's POSIX locks, and the next producer to leave would
//! delete the live `-wal`. The one handle that the lock needs is never closed (`sqlite::file`).

pub mod client;
mod error;
mod sqlite;

pub use client::QueueClient;
pub use error::StoreError;
pub(crate) use sqlite::beside;
pub use sqlite::{
    Asked, Changes, DaemonInfo, DueTarget, EndedCounts, Hands, HeldPlace, KnownOrder, NewWave,
    NotedPace, Prune, QueueLock, RefusedKey, Restored, Running, Snapshot, Store, StoreOptions,
    TakenIn, TargetNews, Which, daemon_on,
};
