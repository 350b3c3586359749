//! Whose the queue is, and how far it has come: each daemon begins an epoch of its own, and each
//! write raises it, so that an older copy of the queue is recognised.
//!
//! Ids are never given twice, not even by an older copy: a small file beside the queue,
//! `PATH.epoch`, remembers how far they went (`epoch_file`).

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::epoch_file::{EpochFile, HighWater, MOST};
use super::holds::put_hold;
use super::{Mark, Store, StoreError, file, rows, stamp_page, write_guard};
use crate::model::{Hold, HoldKind, UtcMillis};

/// Ids left out after a restore: more than anybody inserts between two writes of the epoch file.
const IDS_SKIPPED: i64 = 1_000_000;

/// What was found of a queue that is an older copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Requests that were unfinished in it.
    pub unfinished: i64,
    /// When the copy was made, if `db backup` made it.
    pub copied_at: Option<String>,
}

/// Begins an epoch; see `Store::begin_epoch`.
pub(in crate::store) async fn begin(
    store: &Store,
    writer: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Option<Restored>, StoreError> {
    let path = file::real(&store.path);
    let noted = HighWater::read(&path);
    // Whose the queue was before does not matter: the lock is ours.
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let found = take_mark(&mut tx).await?;
    // A queue that was ever begun has this file. Without it nobody can tell how old this file is.
    let is_older = noted.map_or(found.epoch > 0, |noted| noted.epoch > found.epoch);
    let is_moved = noted.is_some_and(|noted| noted.is_of_another_file(&path));
    let mut restored = None;
    if is_older || is_moved || found.copied_at.is_some() {
        restored = Some(hold_restored(&mut tx, noted, found.copied_at, now).await?);
    }
    let mut epoch_file = EpochFile::new(path);
    if noted.is_none() && found.epoch == 0 {
        // A kill between the commit and the epoch file must not make the next start take a fresh
        // queue for a copy. If this fails, it fails again below, and nothing leaves.
        let _ = epoch_file.write(HighWater::default(), store.options.synced);
    }
    let noted = noted.unwrap_or_default();
    fix_ids(&mut tx, noted).await?;
    let mark = Mark {
        token: found.next_token,
        epoch: found.epoch.max(noted.epoch) + 1,
    };
    write_mark(&mut tx, &mark).await?;
    let high_water = read_high_water(&mut tx).await?;
    write_guard::release(&mut tx).await?;
    store.commit(tx).await?;
    // So that the stamp is in the file itself. If a reader is in the way, a later checkpoint
    // brings it there.
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
        .execute(&mut *writer)
        .await?;
    let page = stamp_page(writer).await?;
    let mut own = store.own();
    own.identity.begin(&mark.token, page);
    own.mark = mark;
    own.high_water = high_water;
    own.epoch_file = Some(epoch_file);
    // If it cannot be written now, it is tried again before anything leaves.
    own.write_epoch_file(true);
    Ok(restored)
}

/// What the queue said of itself before this epoch.
#[derive(sqlx::FromRow)]
struct FoundMark {
    epoch: i64,
    /// When it was copied, if it is a copy.
    copied_at: Option<String>,
    /// Random, for the daemon that begins.
    next_token: String,
}

/// Takes the write guard from the daemon that had it.
async fn take_mark(tx: &mut SqliteConnection) -> Result<FoundMark, StoreError> {
    sqlx::query(
        "INSERT INTO queue_mark (id, epoch, token) SELECT 1, 0, lower(hex(randomblob(16)))
         WHERE NOT EXISTS (SELECT 1 FROM queue_mark)",
    )
    .execute(&mut *tx)
    .await?;
    write_guard::acquire(tx).await?;
    Ok(sqlx::query_as(
        "SELECT epoch, CAST(copied_at AS TEXT) AS copied_at, lower(hex(randomblob(16))) AS next_token FROM queue_mark",
    )
    .fetch_one(tx)
    .await?)
}

async fn write_mark(tx: &mut SqliteConnection, mark: &Mark) -> Result<(), StoreError> {
    sqlx::query("UPDATE queue_mark SET epoch = $1, token = $2, writing = $2, copied_at = NULL")
        .bind(mark.epoch)
        .bind(&mark.token)
        .execute(tx)
        .await?;
    Ok(())
}

/// Raises the epoch; see `Store::raise_epoch`.
pub(in crate::store) async fn raise(
    store: &Store,
    writer: &mut SqliteConnection,
    seen: Option<(i64, i64)>,
) -> Result<(i64, i64), StoreError> {
    let now = read_changes(writer).await?;
    if Some(now) == seen {
        return Ok(now);
    }
    let before = store.high_water();
    let mut tx = store.begin(writer).await?;
    fix_ids(&mut tx, before).await?;
    let high_water = read_high_water(&mut tx).await?;
    tx.commit().await?;
    store.own().high_water = high_water;
    let seen = read_changes(writer).await?;
    store.require_epoch_file()?;
    Ok(seen)
}

/// Two numbers: one of them changes with every write, by anybody.
async fn read_changes(connection: &mut SqliteConnection) -> Result<(i64, i64), StoreError> {
    Ok(
        sqlx::query_as("SELECT total_changes(), data_version FROM pragma_data_version")
            .fetch_one(connection)
            .await?,
    )
}

/// True if the last ids that SQLite keeps may be right.
pub(in crate::store) fn are_ids_possible(seen: HighWater, known: HighWater) -> bool {
    is_id_possible(seen.last_id, known.last_id)
        && is_id_possible(seen.last_batch_id, known.last_batch_id)
}

fn is_id_possible(seen: i64, known: i64) -> bool {
    (known..=MOST + IDS_SKIPPED).contains(&seen)
}

async fn read_high_water(connection: &mut SqliteConnection) -> Result<HighWater, StoreError> {
    let (epoch, last_id, last_batch_id) = sqlx::query_as(
        "SELECT epoch, ifnull((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'power_requests'), 0),
                ifnull((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'batches'), 0) FROM queue_mark",
    )
    .fetch_one(connection)
    .await?;
    Ok(HighWater {
        epoch,
        last_id,
        last_batch_id,
        ..HighWater::default()
    })
}

/// SQLite's own table of the last ids is open to anybody. Set back, it gives ids twice; set to its
/// maximum, it gives none.
pub(in crate::store) async fn fix_ids(
    tx: &mut SqliteConnection,
    high_water: HighWater,
) -> Result<(), StoreError> {
    let own = read_high_water(tx).await?;
    let (request, batch): (i64, i64) = sqlx::query_as(
        "SELECT ifnull((SELECT max(id) FROM power_requests), 0), ifnull((SELECT max(id) FROM batches), 0)",
    )
    .fetch_one(&mut *tx)
    .await?;
    for (table, now, least) in [
        (
            "power_requests",
            own.last_id,
            request.max(high_water.last_id),
        ),
        (
            "batches",
            own.last_batch_id,
            batch.max(high_water.last_batch_id),
        ),
    ] {
        if !(least..=MOST).contains(&now) {
            set_sequence(tx, table, least).await?;
        }
    }
    Ok(())
}

async fn set_sequence(tx: &mut SqliteConnection, table: &str, last: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM sqlite_sequence WHERE name = $1")
        .bind(table)
        .execute(&mut *tx)
        .await?;
    sqlx::query("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)")
        .bind(table)
        .bind(last)
        .execute(tx)
        .await?;
    Ok(())
}

/// Puts everything on hold that was unfinished in the copy, and moves its ids on.
async fn hold_restored(
    tx: &mut SqliteConnection,
    noted: Option<HighWater>,
    copied_at: Option<String>,
    now: UtcMillis,
) -> Result<Restored, StoreError> {
    let own = read_high_water(tx).await?;
    let unfinished: i64 = sqlx::query_scalar("SELECT ifnull(sum(count), 0) FROM queue_overview")
        .fetch_one(&mut *tx)
        .await?;
    if unfinished > 0 {
        let what = match (rows::readable_time(copied_at.clone()), noted) {
            (Some(at), _) => format!("this queue is an older copy of {at}"),
            (None, Some(noted)) if noted.epoch <= own.epoch => {
                "this file was put in place of the queue and may be an older copy".to_owned()
            }
            (None, Some(_)) => "this queue is an older copy".to_owned(),
            (None, None) => {
                "this queue may be an older copy (the .epoch file beside it is missing)".to_owned()
            }
        };
        let reason = format!(
            "{what}; it does not know what has happened to its unfinished requests since then: see `poweryard db release --help`"
        );
        let kind = HoldKind::Restored;
        put_hold(
            tx,
            &Hold {
                target: None,
                action: None,
                label: None,
                kind,
                reason,
                since: now,
                until: None,
            },
        )
        .await?;
    }
    let noted = noted.unwrap_or_default();
    // Each claim is in the epoch file before its call leaves: so many may have left of which this
    // copy has no row. For which target, nobody knows.
    let missing = noted.last_batch_id.saturating_sub(own.last_batch_id).max(0);
    sqlx::query(
        "UPDATE queue_mark SET restored_last_id = max(ifnull(restored_last_id, 0), $1), missing_calls = $2,
             missing_calls_ms = $3 - clock_set_ms",
    )
    .bind(own.last_id)
    .bind(missing)
    .bind(now.0)
    .execute(&mut *tx)
    .await?;
    // The servers' later operations are in no row: that they are idle proves nothing of these calls.
    sqlx::query("UPDATE batches SET from_copy = 1 WHERE state <> 'done'")
        .execute(&mut *tx)
        .await?;
    // What a stranger set beyond all reason is fixed after this.
    for (table, last) in [
        ("power_requests", own.last_id.max(noted.last_id)),
        ("batches", own.last_batch_id.max(noted.last_batch_id)),
    ] {
        set_sequence(tx, table, last.min(MOST) + IDS_SKIPPED).await?;
    }
    Ok(Restored {
        unfinished,
        copied_at,
    })
}
