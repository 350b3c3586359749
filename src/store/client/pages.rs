//! Requests that a selection finds, page by page, and what a person's word may mean. Writes nothing.
//!
//! A page costs a bounded number of rows, however many there are and however few of them match: it
//! may end before it is full, and the next one goes on from there.

use std::fmt;
use std::str::FromStr;

use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};

use super::selection::texts;
use super::{RequestRecord, Selection, ServerRecord, read};
use crate::model::RequestState;
use crate::store::StoreError;
use crate::store::sqlite::rows::{list, lossy};

/// Rows that one page looks at.
const LOOKED_AT_MAX: i64 = 100_000;
/// Of what is unfinished, rows right behind the cursor that are looked at first: in a long queue
/// they fill a page, and in a short one they are soon looked at.
const NEAR: i64 = 2_000;

/// Where a page ended: the next one begins behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    id: i64,
    /// When that request ended, where pages go by that.
    ended_at: Option<String>,
}

/// Some of the requests that a selection finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The newest first: by their ends if only ended ones are wanted, otherwise by their ids.
    pub requests: Vec<RequestRecord>,
    /// Where the next page begins; none: there is nothing behind.
    pub next: Option<Cursor>,
}

/// Text that is no cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a cursor that a page has given")]
pub struct NotACursor(String);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ended_at {
            Some(at) => write!(f, "{}.{at}", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NotACursor(text.to_owned());
        let (id, ended_at) = match text.split_once('.') {
            Some((id, at)) => (id, Some(at)),
            None => (text, None),
        };
        let is_time = |at: &str| at.len() == 24 && at.parse::<crate::model::UtcMillis>().is_ok();
        if ended_at.is_some_and(|at| !is_time(at)) {
            return Err(wrong());
        }
        Ok(Self {
            id: id.parse().map_err(|_| wrong())?,
            ended_at: ended_at.map(str::to_owned),
        })
    }
}

/// By which index a page is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ids,
    Label,
    Servers,
    /// What is unfinished.
    Open,
    /// What has ended, by the time of that.
    Ended,
    /// All of them.
    All,
}

impl Way {
    fn of(which: &Selection) -> Self {
        if which.ids.is_some() {
            return Self::Ids;
        }
        if which.label.is_some() {
            return Self::Label;
        }
        if which.servers.is_some() {
            return Self::Servers;
        }
        let states = &which.states;
        let is_some_ended = states.is_empty() || states.iter().any(|state| state.is_terminal());
        let is_some_open = states.is_empty() || states.iter().any(|state| !state.is_terminal());
        match (is_some_open, is_some_ended) {
            (true, false) => Self::Open,
            (false, true) => Self::Ended,
            _ => Self::All,
        }
    }

    /// Appends a query for ids, and times, of up to so many candidates behind the cursor, in the
    /// order of the page.
    fn push(self, query: &mut QueryBuilder<Sqlite>, which: &Selection, before: Option<&Cursor>) {
        if self == Self::Ended {
            push_ended(query, which, before);
            return;
        }
        query.push("SELECT id, NULL AS at FROM (");
        match self {
            Self::Ids => {
                let ids = list(which.ids.iter().flatten());
                query
                    .push("SELECT value AS id FROM json_each(")
                    .push_bind(ids)
                    .push(")");
            }
            Self::Label => {
                query
                    .push("SELECT id FROM power_requests INDEXED BY power_requests_label WHERE label = ")
                    .push_bind(which.label.clone());
            }
            Self::Servers => push_servers(query, which.servers.as_deref().unwrap_or_default()),
            Self::Open => push_open(query, which),
            Self::Ended | Self::All => {
                query.push("SELECT id FROM power_requests WHERE 1");
            }
        }
        query.push(") WHERE 1");
        if let Some(before) = before {
            query.push(" AND id < ").push_bind(before.id);
        }
        query.push(match self {
            // An index of many parts is not in the order of the ids; if they were to come in that
            // order, SQLite would read the whole table for a part.
            Self::Servers | Self::Open => " ORDER BY id + 0 DESC",
            Self::Ids | Self::Label | Self::Ended | Self::All => " ORDER BY id DESC",
        });
    }

    /// How many candidates a page looks at.
    fn looked_at_max(self) -> i64 {
        match self {
            // They are sorted first, which is quick for few.
            Self::Open => 1_000,
            Self::Ids | Self::Label | Self::Servers | Self::Ended | Self::All => LOOKED_AT_MAX,
        }
    }
}

fn push_ended(query: &mut QueryBuilder<Sqlite>, which: &Selection, before: Option<&Cursor>) {
    query.push(
        "SELECT id, finished_at AS at FROM power_requests INDEXED BY power_requests_ended WHERE finished_at IS NOT NULL",
    );
    if let Some((at, id)) = before.and_then(|before| Some((before.ended_at.clone()?, before.id))) {
        query
            .push(" AND finished_at <= ")
            .push_bind(at.clone())
            .push(" AND (finished_at < ")
            .push_bind(at)
            .push(" OR id < ")
            .push_bind(id)
            .push(")");
    }
    if let Some(since) = &which.since {
        query.push(" AND finished_at >= ").push_bind(since.clone());
    }
    if let Some(until) = &which.until {
        query.push(" AND finished_at < ").push_bind(until.clone());
    }
    query.push(" ORDER BY finished_at DESC, id DESC");
}

/// Each third has an index of its own.
fn push_servers(query: &mut QueryBuilder<Sqlite>, servers: &[String]) {
    let thirds = [
        "SELECT id FROM power_requests INDEXED BY power_requests_line WHERE in_line = 1",
        " UNION ALL SELECT id FROM power_requests INDEXED BY power_requests_parked WHERE in_line IS NULL AND gate IS NOT NULL",
        " UNION ALL SELECT id FROM power_requests INDEXED BY power_requests_past WHERE in_line IS NULL AND gate IS NULL",
    ];
    for third in thirds {
        query
            .push(third)
            .push(" AND server_id IN (SELECT value FROM json_each(")
            .push_bind(texts(servers))
            .push("))");
    }
}

/// What waits and what runs, each by an index that begins with what the selection may name.
fn push_open(query: &mut QueryBuilder<Sqlite>, which: &Selection) {
    let waiting = [
        ("power_requests_ready", "gate = 'ready'"),
        (
            "power_requests_parked_count",
            "in_line IS NULL AND gate IS NOT NULL",
        ),
        ("power_requests_held_count", "gate = 'held'"),
        ("power_requests_retry", "gate = 'retry'"),
    ];
    let running = [("power_requests_running", "state = 'running'")];
    let parts = waiting
        .iter()
        .filter(|_| which.states.contains(&RequestState::Queued))
        .chain(
            running
                .iter()
                .filter(|_| which.states.contains(&RequestState::Running)),
        );
    for (number, (index, condition)) in parts.enumerate() {
        let union = if number == 0 { "" } else { " UNION ALL " };
        query.push(format!(
            "{union}SELECT id FROM power_requests INDEXED BY {index} WHERE {condition}"
        ));
        if let Some(target) = &which.target {
            query.push(" AND target = ").push_bind(target.clone());
        }
        if let Some(action) = which.action {
            query.push(" AND action = ").push_bind(action.as_str());
        }
    }
}

pub(super) async fn page(
    connection: &mut SqliteConnection,
    which: &Selection,
    before: Option<&Cursor>,
    limit: u32,
) -> Result<Page, StoreError> {
    let way = Way::of(which);
    let mut found = Vec::new();
    if way == Way::Open {
        found = first_of(connection, (Way::All, NEAR), which, before, limit).await?;
    }
    if found.len() <= limit as usize {
        let looked_at = (way, way.looked_at_max());
        found = first_of(connection, looked_at, which, before, limit).await?;
    }
    let is_full = found.len() > limit as usize;
    let next = if is_full {
        found.truncate(limit as usize);
        found.last().map(|(id, at)| Cursor {
            id: *id,
            ended_at: at.clone(),
        })
    } else {
        last_looked_at(connection, way, which, before).await?
    };
    let ids: Vec<i64> = found.into_iter().map(|(id, _)| id).collect();
    Ok(Page {
        requests: in_order(connection, &ids).await?,
        next,
    })
}

/// Ids, and times, of one more than a page may have, from so many candidates.
async fn first_of(
    connection: &mut SqliteConnection,
    (way, looked_at_max): (Way, i64),
    which: &Selection,
    before: Option<&Cursor>,
    limit: u32,
) -> Result<Vec<(i64, Option<String>)>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT way.id, way.at FROM (");
    way.push(&mut query, which, before);
    query
        .push(" LIMIT 0 + ")
        .push_bind(looked_at_max)
        .push(") way CROSS JOIN power_requests r ON r.id = way.id WHERE 1");
    which.push_conditions(&mut query, &which.states);
    query.push(" LIMIT 0 + ").push_bind(i64::from(limit) + 1);
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// The last of the candidates of a page, if there may be more behind it.
async fn last_looked_at(
    connection: &mut SqliteConnection,
    way: Way,
    which: &Selection,
    before: Option<&Cursor>,
) -> Result<Option<Cursor>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("");
    way.push(&mut query, which, before);
    query
        .push(" LIMIT 1 OFFSET 0 + ")
        .push_bind(way.looked_at_max() - 1);
    let found: Option<(i64, Option<String>)> =
        query.build_query_as().fetch_optional(connection).await?;
    Ok(found.map(|(id, ended_at)| Cursor { id, ended_at }))
}

async fn in_order(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<RequestRecord>, StoreError> {
    let mut found = read::requests(connection, ids).await?;
    let place = |request: &RequestRecord| ids.iter().position(|id| *id == request.id);
    found.sort_by_cached_key(place);
    Ok(found)
}

/// Servers with this id or name, those of several targets and those that are gone included.
pub(super) async fn servers_called(
    connection: &mut SqliteConnection,
    word: &str,
) -> Result<Vec<ServerRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM servers WHERE server_id = $1 OR name = $1 ORDER BY gone_at IS NOT NULL, target, name LIMIT 100",
    )
    .bind(word)
    .fetch_all(connection)
    .await?)
}

/// Servers whose id or name contains the word, or whose name matches it as a glob; up to `limit`.
pub(super) async fn servers_like(
    connection: &mut SqliteConnection,
    word: &str,
    limit: u32,
) -> Result<Vec<ServerRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM servers WHERE name GLOB $1 OR instr(lower(name), lower($1)) > 0 OR instr(lower(server_id), lower($1)) > 0
         ORDER BY gone_at IS NOT NULL, target, name LIMIT 0 + $2",
    )
    .bind(word)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Labels that begin with the word, or match it as a glob that does not begin with a wildcard; up to
/// `limit`. One step of the index for each.
pub(super) async fn labels_like(
    connection: &mut SqliteConnection,
    word: &str,
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    let fixed = word.split(['*', '?', '[']).next().unwrap_or_default();
    if fixed.is_empty() {
        return Ok(Vec::new());
    }
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "WITH RECURSIVE label(word) AS (
             SELECT min(r.label) FROM power_requests r WHERE r.label >= $1
             UNION ALL
             SELECT (SELECT min(r.label) FROM power_requests r WHERE r.label > label.word)
             FROM label WHERE substr(label.word, 1, length($1)) = $1 LIMIT 10000)
         SELECT CAST(word AS BLOB) FROM label
         WHERE substr(word, 1, length($1)) = $1 AND (word GLOB $2 OR substr(word, 1, length($2)) = $2) LIMIT 0 + $3",
    )
    .bind(fixed)
    .bind(word)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(lossy).collect())
}

/// The targets of the requests with a label: what somebody must see of to know of it. One step for
/// each of them at most.
pub(super) async fn targets_of_label(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Vec<String>, StoreError> {
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT DISTINCT CAST(target AS BLOB) FROM (SELECT target FROM power_requests WHERE label = $1 LIMIT 100000)",
    )
    .bind(label)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(lossy).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_as_it_was_written() {
        for text in ["17", "17.2026-01-31T22:00:00.000Z"] {
            assert_eq!(
                text.parse::<Cursor>().map(|cursor| cursor.to_string()),
                Ok(text.to_owned())
            );
        }
        for wrong in [
            "",
            "x",
            "17.",
            "17.yesterday",
            "17.2026-01-31T22:00:00.000Z'--",
        ] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }
}
