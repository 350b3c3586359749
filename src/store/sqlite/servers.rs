//! The table `servers`, and the wishes for a fresh inventory. The only place that writes them.
//!
//! A row is written again only where something has changed or its `seen_at` has become old, so that
//! a quiet fleet of ten thousand costs little.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, rows, text};
use crate::model::{ListedServer, TargetName, UtcMillis};

/// Servers that one transaction writes or looks at. It has to end within a few milliseconds.
pub const SERVERS_CHUNK: usize = 250;

/// Servers that a walk looks at at once.
const WALK_CHUNK: usize = 1000;

/// How old `servers.seen_at` may be while lists show the server.
pub const SEEN_AT_AGE_MAX: Duration = Duration::from_secs(3600);

/// How long wishes that came true are kept.
const SYNCS_KEPT_FOR: Duration = Duration::from_secs(3600);

/// What the queue knows of a target's inventory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InventoryNote {
    /// When the list was last read in full.
    pub read_at: Option<UtcMillis>,
    /// Why the last try to read it failed; none once one succeeds.
    pub error: Option<String>,
}

/// A wish for a fresh inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventorySync {
    /// Its row.
    pub id: i64,
    /// Whose list; none: those of all targets.
    pub target: Option<TargetName>,
}

/// One chunk of a walk through the servers of a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GoneChunk {
    /// Those that are gone.
    pub gone: Vec<String>,
    /// Behind which server the walk goes on; none: it has ended.
    pub next: Option<String>,
}

/// An `InventoryNote` as the queue has it.
#[derive(sqlx::FromRow)]
struct NoteRow {
    read_at: Option<Vec<u8>>,
    error: Option<Vec<u8>>,
}

pub(in crate::store) async fn inventory_of(
    connection: &mut SqliteConnection,
    target: &TargetName,
) -> Result<InventoryNote, StoreError> {
    let found: Option<NoteRow> = sqlx::query_as(
        "SELECT CAST(inventory_at AS BLOB) AS read_at, CAST(inventory_error AS BLOB) AS error FROM targets
         WHERE target = $1",
    )
    .bind(&target.0)
    .fetch_optional(&mut *connection)
    .await?;
    Ok(
        found.map_or_else(InventoryNote::default, |row| InventoryNote {
            read_at: rows::readable_time(row.read_at.map(rows::lossy)),
            error: row.error.map(rows::lossy),
        }),
    )
}

pub(in crate::store) async fn note_servers(
    tx: &mut SqliteConnection,
    target: &TargetName,
    servers: &[ListedServer],
    at: UtcMillis,
) -> Result<(), StoreError> {
    let listed: Vec<(&str, &str, &str, &str, bool)> = servers
        .iter()
        .map(|server| {
            (
                server.id.0.as_str(),
                server.name.as_str(),
                server.power.as_str(),
                server.status.as_str(),
                server.locked,
            )
        })
        .collect();
    sqlx::query(
        "INSERT INTO servers (target, server_id, name, power, status, locked, seen_at)
         SELECT $1, j.value ->> 0, j.value ->> 1, j.value ->> 2, j.value ->> 3, j.value ->> 4, $3 FROM json_each($2) j WHERE 1
         ON CONFLICT (target, server_id) DO UPDATE SET name = excluded.name, power = excluded.power,
             status = excluded.status, locked = excluded.locked, seen_at = excluded.seen_at, gone_at = NULL
         WHERE name IS DISTINCT FROM excluded.name OR power IS DISTINCT FROM excluded.power OR status IS DISTINCT FROM excluded.status
             OR locked IS DISTINCT FROM excluded.locked OR gone_at IS NOT NULL OR seen_at <= $4 OR seen_at > $3",
    )
    .bind(&target.0)
    .bind(serde_json::to_string(&listed).unwrap_or_default())
    .bind(text(at))
    .bind(text(at.before(SEEN_AT_AGE_MAX)))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

pub(in crate::store) async fn find_gone(
    connection: &mut SqliteConnection,
    target: &TargetName,
    after: &str,
    (at, clock): (UtcMillis, Option<UtcMillis>),
    is_listed: impl Fn(&str) -> bool,
) -> Result<GoneChunk, StoreError> {
    let present: Vec<String> = sqlx::query_scalar(
        "SELECT server_id FROM servers WHERE target = $1 AND server_id > $2 AND gone_at IS NULL
            AND (seen_at <= $3 OR seen_at > $5)
         ORDER BY server_id LIMIT 0 + $4",
    )
    .bind(&target.0)
    .bind(after)
    .bind(text(at))
    .bind(i64::try_from(WALK_CHUNK).unwrap_or(i64::MAX))
    .bind(clock.map(text))
    .fetch_all(&mut *connection)
    .await?;
    let next = (present.len() >= WALK_CHUNK)
        .then(|| present.last().cloned())
        .flatten();
    let gone: Vec<String> = present
        .into_iter()
        .filter(|server| !is_listed(server))
        .collect();
    Ok(GoneChunk { gone, next })
}

pub(in crate::store) async fn mark_gone(
    tx: &mut SqliteConnection,
    target: &TargetName,
    gone: &[String],
    at: UtcMillis,
) -> Result<(), StoreError> {
    // Lists have shown them up to the one before, even if their rows were not written again.
    sqlx::query(
        "UPDATE servers SET gone_at = $3,
             seen_at = max(seen_at, ifnull((SELECT inventory_at FROM targets WHERE target = $1), ''))
         WHERE target = $1 AND server_id IN (SELECT value FROM json_each($2))",
    )
    .bind(&target.0)
    .bind(serde_json::to_string(gone).unwrap_or_default())
    .bind(text(at))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

pub(in crate::store) async fn note_inventory(
    tx: &mut SqliteConnection,
    target: &TargetName,
    note: &InventoryNote,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE targets SET inventory_at = $2, inventory_error = $3 WHERE target = $1")
        .bind(&target.0)
        .bind(note.read_at.map(text))
        .bind(&note.error)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

pub(in crate::store) async fn end_sync(
    tx: &mut SqliteConnection,
    id: i64,
    error: Option<&str>,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE inventory_syncs SET done_at = $2, error = $3 WHERE id = $1")
        .bind(id)
        .bind(text(now))
        .bind(error)
        .execute(&mut *tx)
        .await?;
    sqlx::query("DELETE FROM inventory_syncs WHERE done_at < $1")
        .bind(text(now.before(SYNCS_KEPT_FOR)))
        .execute(&mut *tx)
        .await?;
    Ok(())
}
