//! Orders with waves, as commands write and read them.

use serde::Serialize;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, FromRow};

use super::QueueClient;
use super::records::{maybe_text, text, whole};
use crate::model::LetGo;
use crate::store::StoreError;

/// An order to be written before its requests; the fields are the producer's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct NewOrder {
    pub label: String,
    pub waves: String,
    pub failures_max: Option<String>,
    pub pause: Option<String>,
    pub expires_at: Option<String>,
}

/// One row of `orders`, as far as it concerns people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct OrderRecord {
    pub label: String,
    pub waves: String,
    pub failures_max: String,
    pub pause: Option<String>,
    pub expires_at: Option<String>,
    pub state: String,
    pub wave: i64,
    pub created_at: String,
    pub finished_at: Option<String>,
    /// How many servers it has.
    pub servers: i64,
    /// How many servers the present wave may let go; 0: it has let none go yet.
    pub wave_size: i64,
    /// How many it has let go.
    pub wave_servers: i64,
    /// What an operator lets go in spite of all.
    pub let_go: Option<String>,
}

impl FromRow<'_, SqliteRow> for OrderRecord {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            label: text(row, "label")?,
            waves: text(row, "waves")?,
            failures_max: text(row, "failures_max")?,
            pause: maybe_text(row, "pause")?,
            expires_at: maybe_text(row, "expires_at")?,
            state: text(row, "state")?,
            wave: whole(row, "wave")?,
            created_at: text(row, "created_at")?,
            finished_at: maybe_text(row, "finished_at")?,
            servers: whole(row, "servers")?,
            wave_size: whole(row, "wave_size")?,
            wave_servers: whole(row, "wave_taken")?,
            let_go: maybe_text(row, "let_go")?,
        })
    }
}

/// What became of the wish to let an order's waves go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lets {
    /// There is no order with this label.
    NoOrder,
    /// It is done.
    Done,
    /// Its present wave has not ended, so that no other one is held.
    OnItsWay(i64),
    /// The wave with this number goes, or all from it on.
    Goes(i64),
}

impl QueueClient {
    /// The orders that are not done.
    pub async fn open_orders(&mut self) -> Result<Vec<OrderRecord>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT * FROM orders INDEXED BY orders_open WHERE state IS NOT 'done' ORDER BY id",
        )
        .fetch_all(&mut self.connection)
        .await?)
    }

    /// The order with this label, if there is one.
    pub async fn order(&mut self, label: &str) -> Result<Option<OrderRecord>, StoreError> {
        let found = sqlx::query_as("SELECT * FROM orders WHERE label = ?").bind(label);
        Ok(found.fetch_optional(&mut self.connection).await?)
    }

    /// Lets the next wave of an order go in spite of what holds it, or all that remain of it.
    pub async fn let_go(&mut self, label: &str, what: LetGo) -> Result<Lets, StoreError> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let found: Option<(String, i64, bool)> = sqlx::query_as(
            "SELECT ifnull(state, 'open'), ifnull(wave, 1), wave_over_at IS NOT NULL FROM orders WHERE label = ?",
        )
        .bind(label)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((state, wave, is_over)) = found else {
            return Ok(Lets::NoOrder);
        };
        if state == "done" {
            return Ok(Lets::Done);
        }
        if !is_over && what == LetGo::Wave {
            return Ok(Lets::OnItsWay(wave));
        }
        sqlx::query("UPDATE orders SET let_go = ?2 WHERE label = ?1 AND let_go IS NOT 'rest'")
            .bind(label)
            .bind(what.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Lets::Goes(wave + 1))
    }
}

/// Writes an order, unless the same one stands there already.
pub(super) async fn insert(tx: &mut SqliteConnection, order: &NewOrder) -> Result<(), StoreError> {
    let same: Option<bool> = sqlx::query_scalar(
        "SELECT waves = ?2 AND failures_max = ifnull(?3, '0') AND pause IS ?4 FROM orders WHERE label = ?1",
    )
    .bind(&order.label)
    .bind(&order.waves)
    .bind(&order.failures_max)
    .bind(&order.pause)
    .fetch_optional(&mut *tx)
    .await?;
    match same {
        Some(true) => return Ok(()),
        Some(false) => {
            return Err(StoreError::Refused(format!(
                "an order with label {:?} and other waves, failures_max or pause exists already; give this one a label of its own",
                order.label
            )));
        }
        None => {}
    }
    sqlx::query(
        "INSERT INTO orders (label, waves, failures_max, pause, expires_at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(&order.label)
    .bind(&order.waves)
    .bind(&order.failures_max)
    .bind(&order.pause)
    .bind(&order.expires_at)
    .execute(tx)
    .await?;
    Ok(())
}
