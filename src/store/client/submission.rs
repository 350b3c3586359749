//! Rows that are sent together, from elsewhere: all of them are inserted or none, and every one
//! that is wrong is named. A repeated `request_key` is no mistake if it asks for the same.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, FromRow, QueryBuilder, Sqlite};

use super::NewRequest;
use super::selection::{Allowed, texts};
use super::write::{CHUNK, insert, with_reason};
use crate::model::ServerId;
use crate::store::StoreError;
use crate::store::sqlite::overrides;
use crate::store::sqlite::rows::list;

/// What became of rows that were sent together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// All of them stand in the queue.
    Done {
        /// Their ids, in the order given.
        ids: Vec<i64>,
        /// How many of them are new.
        new: usize,
    },
    /// None is inserted: these are wrong.
    Wrong(Vec<WrongRow>),
    /// None is inserted: the keys of these belong to requests that ask for something else.
    KeyTaken(Vec<WrongRow>),
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongRow {
    /// Which one, from 0.
    pub row: usize,
    /// The schema's sentence, or ours.
    pub sentence: String,
}

/// What has a key already.
#[derive(Debug, Clone, FromRow)]
struct Keyed {
    request_key: String,
    id: i64,
    server_id: String,
    action: String,
    target: String,
}

/// Where a row's id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It is inserted, as the one with this number among those that are.
    New(usize),
    /// A request that was there before.
    Before(i64),
}

/// The rows of one call, sorted out.
#[derive(Default)]
struct Sorted {
    /// For each row that is not in conflict.
    sources: Vec<Source>,
    /// Those to be inserted, with the numbers of their rows.
    new: Vec<(usize, NewRequest)>,
    conflicts: Vec<WrongRow>,
}

pub(super) async fn submit(
    connection: &mut SqliteConnection,
    rows: &[NewRequest],
    allowed: &Allowed,
) -> Result<Submitted, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let before = keyed(&mut tx, rows).await?;
    let sorted = sort(rows, &before);
    let mut wrong = unseen_leaders(&mut tx, &sorted.new, allowed).await?;
    let mut inserted = Vec::with_capacity(sorted.new.len());
    for chunk in sorted.new.chunks(CHUNK) {
        insert_chunk(&mut tx, chunk, &mut inserted, &mut wrong).await?;
    }
    if !wrong.is_empty() {
        tx.rollback().await?;
        wrong.sort_by_key(|wrong| wrong.row);
        wrong.dedup_by_key(|wrong| wrong.row);
        return Ok(Submitted::Wrong(wrong));
    }
    if !sorted.conflicts.is_empty() {
        tx.rollback().await?;
        return Ok(Submitted::KeyTaken(sorted.conflicts));
    }
    let requests: Vec<NewRequest> = sorted.new.into_iter().map(|(_, request)| request).collect();
    overrides::note_reasons(&mut tx, &with_reason(&requests, &inserted), None).await?;
    tx.commit().await?;
    let new = inserted.len();
    let ids = sorted
        .sources
        .into_iter()
        .filter_map(|source| match source {
            Source::New(number) => inserted.get(number).copied(),
            Source::Before(id) => Some(id),
        });
    Ok(Submitted::Done {
        ids: ids.collect(),
        new,
    })
}

/// The requests that have one of these keys already.
async fn keyed(
    tx: &mut SqliteConnection,
    rows: &[NewRequest],
) -> Result<BTreeMap<String, Keyed>, StoreError> {
    let keys: Vec<&String> = rows
        .iter()
        .filter_map(|row| row.request_key.as_ref())
        .collect();
    let found: Vec<Keyed> = sqlx::query_as(
        "SELECT r.request_key, r.id, r.server_id, r.action, r.target
         FROM json_each($1) j CROSS JOIN power_requests r ON r.request_key = j.value",
    )
    .bind(texts(&keys))
    .fetch_all(tx)
    .await?;
    let by_key = found.into_iter().map(|row| (row.request_key.clone(), row));
    Ok(by_key.collect())
}

/// Which rows are new, which were there before, and which are in conflict with another one.
fn sort(rows: &[NewRequest], before: &BTreeMap<String, Keyed>) -> Sorted {
    let mut sorted = Sorted::default();
    let mut same_call: BTreeMap<&str, (usize, Source)> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let key = row.request_key.as_deref();
        let earlier = key.and_then(|key| before.get(key));
        let beside = key.and_then(|key| same_call.get(key)).copied();
        let source = match (earlier, beside) {
            (Some(earlier), _) if earlier.asks_for(row) => Source::Before(earlier.id),
            (Some(_), _) => {
                sorted.conflict(
                    number,
                    "belongs to a request for another server, action or target",
                );
                continue;
            }
            (None, Some((other, source))) if asks_for_same(&rows[other], row) => source,
            (None, Some((other, _))) => {
                let why = format!("is also that of row {other}, which asks for something else");
                sorted.conflict(number, &why);
                continue;
            }
            (None, None) => Source::New(sorted.new.len()),
        };
        if source == Source::New(sorted.new.len()) {
            sorted.new.push((number, row.clone()));
        }
        if let Some(key) = key {
            same_call.entry(key).or_insert((number, source));
        }
        sorted.sources.push(source);
    }
    sorted
}

impl Sorted {
    fn conflict(&mut self, row: usize, why: &str) {
        self.conflicts.push(WrongRow {
            row,
            sentence: format!("request_key {why}"),
        });
    }
}

impl Keyed {
    fn asks_for(&self, row: &NewRequest) -> bool {
        is_same_server(&self.server_id, &row.server_id)
            && self.action == row.action
            && self.target == row.target
    }
}

fn asks_for_same(one: &NewRequest, other: &NewRequest) -> bool {
    is_same_server(&one.server_id, &other.server_id)
        && one.action == other.action
        && one.target == other.target
}

fn is_same_server(one: &str, other: &str) -> bool {
    ServerId(ServerId::as_stored(one)) == ServerId(ServerId::as_stored(other))
}

/// Rows that wait for a request which this person does not see: for them it does not exist.
async fn unseen_leaders(
    tx: &mut SqliteConnection,
    rows: &[(usize, NewRequest)],
    allowed: &Allowed,
) -> Result<Vec<WrongRow>, StoreError> {
    let leaders = rows.iter().filter_map(|(_, row)| row.after_id);
    let mut query = QueryBuilder::<Sqlite>::new("SELECT r.id FROM json_each(");
    query
        .push_bind(list(&leaders.collect::<Vec<i64>>()))
        .push(") j CROSS JOIN power_requests r ON r.id = j.value WHERE 1");
    allowed.push_targets(&mut query);
    let seen: Vec<i64> = query.build_query_scalar().fetch_all(tx).await?;
    let seen: std::collections::BTreeSet<i64> = seen.into_iter().collect();
    let mut wrong = Vec::new();
    for (row, request) in rows {
        if let Some(id) = request.after_id.filter(|id| !seen.contains(id)) {
            wrong.push(WrongRow {
                row: *row,
                sentence: format!("after_id: there is no request {id}"),
            });
        }
    }
    Ok(wrong)
}

/// Inserts a chunk; if the schema refuses any of it, one by one to find out which.
async fn insert_chunk(
    tx: &mut SqliteConnection,
    chunk: &[(usize, NewRequest)],
    inserted: &mut Vec<i64>,
    wrong: &mut Vec<WrongRow>,
) -> Result<(), StoreError> {
    let requests: Vec<NewRequest> = chunk.iter().map(|(_, request)| request.clone()).collect();
    match insert(tx, &requests).await {
        Ok(ids) => {
            inserted.extend(ids);
            return Ok(());
        }
        // The statement has left nothing behind.
        Err(StoreError::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    for (row, request) in chunk {
        match insert(tx, std::slice::from_ref(request)).await {
            Ok(ids) => inserted.extend(ids),
            Err(StoreError::Refused(sentence)) => wrong.push(WrongRow {
                row: *row,
                sentence,
            }),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(server: &str, key: Option<&str>) -> NewRequest {
        NewRequest {
            server_id: server.to_owned(),
            action: "stop".to_owned(),
            target: "default".to_owned(),
            priority: 0,
            not_before: None,
            expires_at: None,
            after_id: None,
            request_key: key.map(str::to_owned),
            label: None,
            requested_by: None,
            override_reason: None,
        }
    }

    #[test]
    fn a_key_that_asks_for_the_same_gives_the_earlier_request() {
        let before = Keyed {
            request_key: "k".to_owned(),
            id: 7,
            server_id: "Server-1".to_owned(),
            action: "stop".to_owned(),
            target: "default".to_owned(),
        };
        let before = BTreeMap::from([("k".to_owned(), before)]);
        let rows = [
            row("server-1", Some("k")),
            row("a", None),
            row("b", Some("l")),
            row("B", Some("l")),
            row("c", Some("l")),
            row("server-2", Some("k")),
        ];
        let sorted = sort(&rows, &before);
        let sources = [
            Source::Before(7),
            Source::New(0),
            Source::New(1),
            Source::New(1),
        ];
        assert_eq!(sorted.sources, sources);
        let conflicts: Vec<usize> = sorted.conflicts.iter().map(|wrong| wrong.row).collect();
        assert_eq!(conflicts, [4, 5]);
    }
}
