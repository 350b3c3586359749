//! Orders with waves, as commands write and read them.

use sqlx::sqlite::SqliteConnection;

use super::OrderRecord;
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

pub(super) async fn open_orders(
    connection: &mut SqliteConnection,
) -> Result<Vec<OrderRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT *, wave_taken AS wave_servers FROM orders INDEXED BY orders_open WHERE state IS DISTINCT FROM 'done' ORDER BY id",
    )
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn order(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Option<OrderRecord>, StoreError> {
    let found = sqlx::query_as("SELECT *, wave_taken AS wave_servers FROM orders WHERE label = $1")
        .bind(label);
    Ok(found.fetch_optional(&mut *connection).await?)
}

/// Lets the next wave of an order go in spite of what holds it, or all that remain of it.
pub(super) async fn let_go(
    tx: &mut SqliteConnection,
    label: &str,
    what: LetGo,
) -> Result<Lets, StoreError> {
    let found: Option<(String, i64, bool)> = sqlx::query_as(
        "SELECT ifnull(state, 'open'), ifnull(wave, 1), wave_over_at IS NOT NULL FROM orders WHERE label = $1",
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
    sqlx::query(
        "UPDATE orders SET let_go = $2 WHERE label = $1 AND let_go IS DISTINCT FROM 'rest'",
    )
    .bind(label)
    .bind(what.as_str())
    .execute(&mut *tx)
    .await?;
    Ok(Lets::Goes(wave + 1))
}

/// Writes an order, unless the same one exists already.
pub(super) async fn insert(tx: &mut SqliteConnection, order: &NewOrder) -> Result<(), StoreError> {
    let same: Option<bool> = sqlx::query_scalar(
        "SELECT waves = $2 AND failures_max = ifnull($3, '0') AND pause IS NOT DISTINCT FROM $4 FROM orders WHERE label = $1",
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
        "INSERT INTO orders (label, waves, failures_max, pause, expires_at) VALUES ($1, $2, $3, $4, $5)",
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
