//! Orders with waves: which requests and servers they have, what a wave lets go, and how far they
//! are. What follows from that is decided in `plan::waves`; gates are `gate`'s.
//!
//! `order_servers` is what has been read of an order's requests, and can be read again at any time:
//! when a label changes, and when an order that was done gets more.

use std::collections::BTreeSet;

use sqlx::sqlite::SqliteConnection;

use super::rows::list;
use super::{StoreError, gate, rows, text};
use crate::model::{LetGo, Order, OrderId, OrderNews, OrderState, UtcMillis};

/// Requests read, or let go, in one transaction, so that it stays under a few milliseconds.
const CHUNK: i64 = 250;
/// Servers forgotten in one transaction, before the order is read again.
const FORGET_CHUNK: i64 = 1000;
/// Orders that are done, looked at at once.
const DONE_CHUNK: i64 = 500;

/// An order that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownOrder {
    /// Its row.
    pub id: OrderId,
    /// How far it is. Failures are counted only where they matter: once its wave is over.
    pub order: Order,
    /// When its row was written.
    pub created_at: String,
    /// When what is left of it expires.
    pub expires_at: Option<String>,
    /// It has requests that were not read yet.
    pub is_unread: bool,
}

/// A wave that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewWave {
    /// Its number.
    pub wave: u64,
    /// How many servers it lets go.
    pub size: u64,
}

#[derive(sqlx::FromRow)]
struct OrderRow {
    id: i64,
    label: Vec<u8>,
    waves: Vec<u8>,
    failures_max: Vec<u8>,
    pause: Option<Vec<u8>>,
    state: String,
    wave: i64,
    wave_size: i64,
    wave_taken: i64,
    over_at: Option<String>,
    let_go: Option<String>,
    servers: i64,
    created_at: String,
    expires_at: Option<String>,
    is_unread: bool,
    has_due: bool,
    is_parked: bool,
    is_let_go: bool,
    is_on_its_way: bool,
    has_success: bool,
}

pub(in crate::store) async fn open_orders(
    connection: &mut SqliteConnection,
    last_id: i64,
    now: UtcMillis,
) -> Result<Vec<KnownOrder>, StoreError> {
    let found: Vec<OrderRow> = sqlx::query_as(
        "SELECT w.id, CAST(w.label AS BLOB) AS label, CAST(w.waves AS BLOB) AS waves,
                CAST(ifnull(w.failures_max, '0') AS BLOB) AS failures_max, CAST(w.pause AS BLOB) AS pause,
                ifnull(w.state, 'open') AS state, ifnull(w.wave, 1) AS wave, ifnull(w.wave_size, 0) AS wave_size,
                ifnull(w.wave_taken, 0) AS wave_taken, CAST(w.wave_over_at AS TEXT) AS over_at,
                CAST(w.let_go AS TEXT) AS let_go, ifnull(w.servers, 0) AS servers,
                CAST(ifnull(w.created_at, '') AS TEXT) AS created_at, CAST(w.expires_at AS TEXT) AS expires_at,
                EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.id > ifnull(w.read_id, 0) AND r.id <= $1)
                    OR (ifnull(w.read_id, 0) = 0 AND EXISTS (SELECT 1 FROM order_servers s WHERE s.label = w.label)) AS is_unread,
                EXISTS (SELECT 1 FROM power_requests r WHERE r.gate = 'held' AND r.label = w.label AND r.wave IS NULL) AS has_due,
                EXISTS (SELECT 1 FROM power_requests r INDEXED BY power_requests_not_due WHERE r.label = w.label
                        AND r.wave IS NULL AND r.label IS NOT NULL
                        AND (r.gate = 'later' OR r.gate = 'after' OR r.gate = 'behind' OR r.gate = 'retry')) AS is_parked,
                EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.state = 'running' AND r.wave IS NOT NULL)
                    OR EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.state = 'queued'
                               AND r.wave IS NOT NULL) AS is_let_go,
                EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.state = 'running' AND r.wave = w.wave)
                    OR EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.state = 'queued' AND r.wave = w.wave
                               AND NOT (r.gate = 'after' AND EXISTS (
                                   SELECT 1 FROM power_requests a WHERE a.id = r.after_id AND a.finished_at IS NULL
                                   AND +a.label = r.label AND (a.wave IS NULL OR a.gate = 'after')))) AS is_on_its_way,
                EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.state = 'succeeded' AND r.wave = w.wave
                        AND r.id > ifnull(w.done_id, 0)) AS has_success
         FROM orders w INDEXED BY orders_open WHERE w.state IS DISTINCT FROM 'done' ORDER BY w.id",
    )
    .bind(last_id)
    .fetch_all(&mut *connection)
    .await?;
    let mut known: Vec<KnownOrder> = found.into_iter().map(|row| row.into_known(now)).collect();
    for order in known.iter_mut().filter(|known| known.is_over_and_due()) {
        let (failed, in_wave) = count_failed(connection, order.id).await?;
        order.order.failed = failed;
        order.order.failed_in_wave = in_wave;
    }
    Ok(known)
}

pub(in crate::store) async fn joined_orders(
    connection: &mut SqliteConnection,
    after: OrderId,
    last_id: i64,
) -> Result<(Vec<OrderId>, Option<OrderId>), StoreError> {
    let found: Vec<(i64, bool)> = sqlx::query_as(
        "SELECT w.id, EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label AND r.id > ifnull(w.read_id, 0)
                              AND r.id <= $2)
         FROM orders w INDEXED BY orders_done WHERE w.state = 'done' AND w.id > $1 ORDER BY w.id LIMIT 0 + $3",
    )
    .bind(after.0)
    .bind(last_id)
    .bind(DONE_CHUNK)
    .fetch_all(&mut *connection)
    .await?;
    let is_full = i64::try_from(found.len()).unwrap_or(i64::MAX) == DONE_CHUNK;
    let last = found.last().map(|(id, _)| OrderId(*id));
    let joined = found.iter().filter(|(_, has_more)| *has_more);
    let joined = joined.map(|(id, _)| OrderId(*id)).collect();
    Ok((joined, last.filter(|_| is_full)))
}

/// False if there is nothing to store: the order has gone.
pub(in crate::store) async fn read_order(
    tx: &mut SqliteConnection,
    id: OrderId,
    last_id: i64,
    now: UtcMillis,
) -> Result<bool, StoreError> {
    let reading: Option<Reading> = sqlx::query_as(
        "SELECT w.id, w.state IS NOT DISTINCT FROM 'done' AS is_done, ifnull(w.read_id, 0) AS read_id, ifnull(w.done_id, 0) AS done_id,
                ifnull(w.wave, 1) AS wave, ifnull(w.wave_size, 0) > 0 AS is_opened,
                EXISTS (SELECT 1 FROM order_servers s WHERE s.label = w.label) AS has_servers
         FROM orders w WHERE w.id = $1",
    )
    .bind(id.0)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(reading) = reading else {
        return Ok(false);
    };
    if reading.is_done {
        reading.open_again(tx).await?;
    } else if reading.read_id == 0 && reading.has_servers {
        reading.forget_servers(tx).await?;
    } else {
        reading.read(tx, last_id, now).await?;
    }
    Ok(true)
}

/// None if nobody is due: nothing is to be stored then.
pub(in crate::store) async fn let_servers_go(
    tx: &mut SqliteConnection,
    id: OrderId,
    new: Option<NewWave>,
    now: UtcMillis,
) -> Result<Option<u64>, StoreError> {
    if let Some(new) = new {
        open_wave(tx, id, new, now).await?;
    }
    let (wave, room): (i64, i64) =
        sqlx::query_as("SELECT wave, wave_size - wave_taken FROM orders WHERE id = $1")
            .bind(id.0)
            .fetch_one(&mut *tx)
            .await?;
    let due = due_servers(tx, id, room.clamp(0, CHUNK)).await?;
    if due.is_empty() {
        return Ok(None);
    }
    let taken = take(tx, id, (wave, now), &due).await?;
    Ok(Some(taken))
}

pub(in crate::store) async fn note_order(
    tx: &mut SqliteConnection,
    id: OrderId,
    news: &OrderNews,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE orders SET state = $2, wave_over_at = $3 WHERE id = $1 AND (state IS DISTINCT FROM $2 OR wave_over_at IS DISTINCT FROM $3)",
    )
    .bind(id.0)
    .bind(news.state.as_str())
    .bind(news.over_at.map(text))
    .execute(&mut *tx)
    .await?;
    match &news.reason {
        None => lift_hold(tx, id).await?,
        Some(reason) => put_hold(tx, id, (reason, news.until), now).await?,
    }
    Ok(())
}

pub(in crate::store) async fn end_order(
    tx: &mut SqliteConnection,
    id: OrderId,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE orders SET state = 'done', finished_at = $2, done_id = read_id, let_go = NULL WHERE id = $1",
    )
    .bind(id.0)
    .bind(text(now))
    .execute(&mut *tx)
    .await?;
    lift_hold(tx, id).await?;
    Ok(())
}

impl OrderRow {
    fn into_known(self, now: UtcMillis) -> KnownOrder {
        let expiry = rows::readable_time(self.expires_at.clone());
        let order = Order {
            label: rows::lossy(self.label),
            waves: rows::lossy(self.waves),
            failures_max: rows::lossy(self.failures_max).trim().to_owned(),
            pause: self.pause.map(rows::lossy),
            state: self.state.parse().unwrap_or(OrderState::Open),
            wave: whole(self.wave).max(1),
            wave_size: whole(self.wave_size),
            wave_taken: whole(self.wave_taken),
            over_at: rows::readable_time(self.over_at),
            let_go: self.let_go.and_then(|word| word.parse::<LetGo>().ok()),
            servers: whole(self.servers),
            is_unfinished: self.has_due || self.is_parked || self.is_let_go || self.is_unread,
            is_on_its_way: self.is_on_its_way,
            has_due: self.has_due,
            has_success: self.has_success,
            failed: 0,
            failed_in_wave: 0,
            is_past: expiry.is_some_and(|at| at <= now),
        };
        KnownOrder {
            id: OrderId(self.id),
            order,
            created_at: self.created_at,
            expires_at: self.expires_at,
            is_unread: self.is_unread,
        }
    }
}

impl KnownOrder {
    /// True if its wave is over and others wait for the next one.
    fn is_over_and_due(&self) -> bool {
        !self.is_unread
            && self.order.wave_size > 0
            && self.order.has_due
            && !self.order.is_on_its_way
    }
}

/// Servers whose newest request of the order is failed or unknown, and those of them that the
/// present wave has carried. Requests that were never sent say nothing of their servers.
async fn count_failed(
    connection: &mut SqliteConnection,
    id: OrderId,
) -> Result<(u64, u64), StoreError> {
    let (failed, in_wave): (i64, i64) = sqlx::query_as(
        "SELECT count(*), ifnull(sum(f.wave = w.wave), 0)
         FROM orders w CROSS JOIN power_requests f
             ON f.label = w.label AND f.state IN ('failed', 'unknown') AND f.wave IS NOT NULL
         WHERE w.id = $1
           AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line = 1 AND n.server_id = f.server_id
                           AND n.target = f.target AND n.id > f.id AND +n.label = f.label
                           AND +n.state NOT IN ('cancelled', 'expired', 'rejected'))
           AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line IS NULL AND n.gate IS NOT NULL
                           AND n.target = f.target AND n.server_id = f.server_id AND +n.id > f.id AND +n.label = f.label)
           AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line IS NULL AND n.gate IS NULL
                           AND n.server_id = f.server_id AND n.target = f.target AND +n.id > f.id AND +n.label = f.label
                           AND +n.state NOT IN ('cancelled', 'expired', 'rejected'))",
    )
    .bind(id.0)
    .fetch_one(connection)
    .await?;
    Ok((whole(failed), whole(in_wave)))
}

/// A number that a stranger may have written.
fn whole(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How far an order has been read.
#[derive(sqlx::FromRow)]
struct Reading {
    id: i64,
    is_done: bool,
    read_id: i64,
    done_id: i64,
    wave: i64,
    is_opened: bool,
    has_servers: bool,
}

impl Reading {
    /// It goes on in its last wave, whose size is counted anew.
    async fn open_again(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE orders SET state = 'open', finished_at = NULL, wave_size = 0, wave_taken = 0, wave_over_at = NULL, let_go = NULL,
                 begun_id = NULL, read_id = 0
             WHERE id = $1",
        )
        .bind(self.id)
        .execute(tx)
        .await?;
        Ok(())
    }

    async fn forget_servers(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM order_servers WHERE id IN (
                 SELECT s.id FROM order_servers s
                 WHERE s.label = (SELECT w.label FROM orders w WHERE w.id = $1) LIMIT 0 + $2)",
        )
        .bind(self.id)
        .bind(FORGET_CHUNK)
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE orders SET servers = 0 WHERE id = $1")
            .bind(self.id)
            .execute(tx)
            .await?;
        Ok(())
    }

    async fn read(
        &self,
        tx: &mut SqliteConnection,
        upto: i64,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let found: Vec<(i64, bool)> = sqlx::query_as(
            "SELECT r.id, r.wave IS NOT NULL AND r.id > $4 FROM power_requests r
             WHERE r.label = (SELECT w.label FROM orders w WHERE w.id = $1) AND r.id > $2 AND r.id <= $3
             ORDER BY r.id LIMIT 0 + $5",
        )
        .bind(self.id)
        .bind(self.read_id)
        .bind(upto)
        .bind(self.done_id)
        .bind(CHUNK)
        .fetch_all(&mut *tx)
        .await?;
        let Some((last, _)) = found.last() else {
            return Ok(());
        };
        let ids = list(found.iter().map(|(id, _)| id));
        let new = sqlx::query(
            "INSERT INTO order_servers (label, target, server_id)
             SELECT r.label, r.target, r.server_id FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value WHERE 1
             ON CONFLICT DO NOTHING",
        )
        .bind(&ids)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if self.is_opened {
            let turns: Vec<i64> = found
                .iter()
                .filter(|(_, had_turn)| *had_turn)
                .map(|(id, _)| *id)
                .collect();
            self.note_turns(tx, &list(&turns)).await?;
            gate::let_turns_go(tx, &ids, (self.wave, now)).await?;
        }
        gate::hold_for_wave(tx, &ids, self.id).await?;
        sqlx::query("UPDATE orders SET read_id = $2, servers = servers + $3 WHERE id = $1")
            .bind(self.id)
            .bind(last)
            .bind(stored(new))
            .execute(tx)
            .await?;
        Ok(())
    }

    /// These requests were let go: their servers have had their turn.
    async fn note_turns(&self, tx: &mut SqliteConnection, ids: &str) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE order_servers SET wave = $2 WHERE id IN (
                 SELECT s.id FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
                 CROSS JOIN order_servers s ON s.label = r.label AND s.target = r.target AND s.server_id = r.server_id)",
        )
        .bind(ids)
        .bind(self.wave)
        .execute(tx)
        .await?;
        Ok(())
    }
}

/// From now on the order's row cannot be changed by producers, and requests that join come last.
async fn open_wave(
    tx: &mut SqliteConnection,
    id: OrderId,
    new: NewWave,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE orders SET state = 'open', wave = $2, wave_size = $3, wave_taken = 0, wave_over_at = NULL,
             let_go = nullif(let_go, 'wave'), begun_at = ifnull(begun_at, $4), begun_id = ifnull(begun_id, read_id)
         WHERE id = $1",
    )
    .bind(id.0)
    .bind(stored(new.wave))
    .bind(stored(new.size))
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// Target and server, as JSON has them.
type Server = (String, String);

/// The servers of the next held requests, at most `most`: in the order of the claim, and last those
/// that joined when the order had begun.
async fn due_servers(
    tx: &mut SqliteConnection,
    id: OrderId,
    most: i64,
) -> Result<BTreeSet<Server>, StoreError> {
    let mut found: Vec<Server> = sqlx::query_as(
        "SELECT CAST(r.target AS TEXT), lower(CAST(r.server_id AS TEXT)) FROM orders w CROSS JOIN power_requests r
             ON r.gate = 'held' AND r.label = w.label AND r.wave IS NULL
         WHERE w.id = $1 AND +r.id <= w.begun_id ORDER BY r.priority DESC, r.id LIMIT 0 + $2",
    )
    .bind(id.0)
    .bind(most)
    .fetch_all(&mut *tx)
    .await?;
    let room = most - i64::try_from(found.len()).unwrap_or(most);
    if room > 0 {
        let late: Vec<Server> = sqlx::query_as(
            "SELECT CAST(r.target AS TEXT), lower(CAST(r.server_id AS TEXT)) FROM orders w CROSS JOIN power_requests r
                 ON r.gate = 'held' AND r.label = w.label AND r.wave IS NULL
             WHERE w.id = $1 AND +r.id > w.begun_id ORDER BY r.priority DESC, r.id LIMIT 0 + $2",
        )
        .bind(id.0)
        .bind(room)
        .fetch_all(tx)
        .await?;
        found.extend(late);
    }
    Ok(found.into_iter().collect())
}

/// Lets these servers go with all of their requests of the order. Returns how many of them have
/// their turn only now.
async fn take(
    tx: &mut SqliteConnection,
    id: OrderId,
    (wave, now): (i64, UtcMillis),
    due: &BTreeSet<Server>,
) -> Result<u64, StoreError> {
    let servers = serde_json::to_string(due).unwrap_or_default();
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT r.id FROM json_each($2) j CROSS JOIN power_requests r
             ON r.in_line = 1 AND r.server_id = j.value ->> 1 AND r.target = j.value ->> 0
         WHERE +r.label = (SELECT w.label FROM orders w WHERE w.id = $1) AND r.finished_at IS NULL AND r.wave IS NULL
         UNION ALL
         SELECT r.id FROM json_each($2) j CROSS JOIN power_requests r
             ON r.in_line IS NULL AND r.gate IS NOT NULL AND r.target = j.value ->> 0 AND r.server_id = j.value ->> 1
         WHERE +r.label = (SELECT w.label FROM orders w WHERE w.id = $1) AND r.wave IS NULL",
    )
    .bind(id.0)
    .bind(&servers)
    .fetch_all(&mut *tx)
    .await?;
    gate::let_wave_go(tx, &list(&ids), (wave, now)).await?;
    let before: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM json_each($2) j CROSS JOIN order_servers s ON s.label = (SELECT w.label FROM orders w WHERE w.id = $1)
             AND s.target = j.value ->> 0 AND s.server_id = j.value ->> 1 AND s.wave IS NOT NULL",
    )
    .bind(id.0)
    .bind(&servers)
    .fetch_one(&mut *tx)
    .await?;
    let taken = i64::try_from(due.len()).unwrap_or(i64::MAX) - before;
    sqlx::query(
        "UPDATE order_servers SET wave = $3 WHERE id IN (
             SELECT s.id FROM json_each($2) j CROSS JOIN order_servers s
             ON s.label = (SELECT w.label FROM orders w WHERE w.id = $1) AND s.target = j.value ->> 0
             AND s.server_id = j.value ->> 1 AND s.wave IS NULL)",
    )
    .bind(id.0)
    .bind(&servers)
    .bind(wave)
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE orders SET wave_taken = wave_taken + $2 WHERE id = $1")
        .bind(id.0)
        .bind(taken)
        .execute(tx)
        .await?;
    Ok(u64::try_from(taken).unwrap_or(0))
}

async fn put_hold(
    tx: &mut SqliteConnection,
    id: OrderId,
    (reason, until): (&str, Option<UtcMillis>),
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO holds (label, kind, reason, since, until) SELECT label, 'wave', $2, $3, $4 FROM orders WHERE id = $1
         ON CONFLICT (ifnull(target, ''), ifnull(action, ''), ifnull(label, ''), kind) DO UPDATE SET reason = $2, until = $4",
    )
    .bind(id.0)
    .bind(reason)
    .bind(text(now))
    .bind(until.map(text))
    .execute(tx)
    .await?;
    Ok(())
}

async fn lift_hold(tx: &mut SqliteConnection, id: OrderId) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM holds WHERE label = (SELECT label FROM orders WHERE id = $1) AND kind = 'wave'",
    )
    .bind(id.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Deletes orders that ended before `cutoff` and of whose requests none is left: a chunk. Returns
/// how many rows have gone.
pub(super) async fn prune(tx: &mut SqliteConnection, cutoff: UtcMillis) -> Result<u64, StoreError> {
    let servers = sqlx::query(
        "DELETE FROM order_servers WHERE id IN (
             SELECT s.id FROM orders w INDEXED BY orders_done
             CROSS JOIN order_servers s ON s.label = w.label
             WHERE w.state = 'done' AND w.finished_at < $1
               AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label) LIMIT 0 + $2)",
    )
    .bind(text(cutoff))
    .bind(FORGET_CHUNK)
    .execute(&mut *tx)
    .await?;
    let orders = sqlx::query(
        "DELETE FROM orders WHERE id IN (
             SELECT w.id FROM orders w INDEXED BY orders_done WHERE w.state = 'done' AND w.finished_at < $1
               AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.label = w.label)
               AND NOT EXISTS (SELECT 1 FROM order_servers s WHERE s.label = w.label) LIMIT 0 + $2)",
    )
    .bind(text(cutoff))
    .bind(CHUNK)
    .execute(tx)
    .await?;
    Ok(servers.rows_affected() + orders.rows_affected())
}
