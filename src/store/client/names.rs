//! The servers that lists have shown, and which of them a word stands for: an id, a name or a glob.
//!
//! Owns the order in which a word is read, and what is said of one that stands for nothing.

use sqlx::sqlite::SqliteConnection;
use sqlx::{FromRow, QueryBuilder, Sqlite};

use super::{Allowed, ServerRecord};
use crate::model::{ServerId, visible};
use crate::store::StoreError;

/// Similar names that are told of a word that names nobody.
const SIMILAR_MAX: usize = 3;

/// How similar a name has to be, from 0 to 1.
const SIMILARITY_MIN: f64 = 0.8;

/// What a word stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// The id of a server that a list has shown.
    Id(ServerRecord),
    /// The name of this server.
    Name(ServerRecord),
    /// A glob over names: the servers that match, by name.
    Glob(Vec<ServerRecord>),
    /// An id that no list has shown; as the queue stores it.
    UnlistedId(String),
    /// A name that these servers have.
    Ambiguous(Vec<ServerRecord>),
    /// Nothing.
    Nothing,
}

/// What may have been meant by a word that stands for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Similar names, the most similar first.
    pub similar: Vec<String>,
    /// A server that has this name and is gone.
    pub gone: Option<ServerRecord>,
    /// A server of another target that has this id or name.
    pub elsewhere: Option<ServerRecord>,
}

/// What is known of a target's servers as a whole.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, FromRow)]
pub struct InventorySummary {
    /// The target.
    pub target: String,
    /// Servers that are not gone.
    pub servers: i64,
    /// Servers that are.
    pub gone: i64,
    /// When the list was last read in full.
    pub inventory_at: Option<String>,
    /// Why the last try to read it failed.
    pub inventory_error: Option<String>,
}

/// Which servers to list.
#[derive(Debug, Clone, Copy)]
pub struct ServersWanted<'a> {
    /// Of this target.
    pub target: Option<&'a str>,
    /// With this id or name, or with a name that matches this glob.
    pub word: Option<&'a str>,
    /// Behind the server of this target with this id.
    pub after: Option<(&'a str, &'a str)>,
    /// What the person may see.
    pub allowed: &'a Allowed,
}

/// A server that one of several words stands for.
#[derive(FromRow)]
struct Found {
    /// Which of the words.
    word: i64,
    #[sqlx(flatten)]
    server: ServerRecord,
}

pub(super) async fn knows_servers(
    connection: &mut SqliteConnection,
    target: Option<&str>,
) -> Result<bool, StoreError> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM servers WHERE target = $1 OR $1 IS NULL)")
            .bind(target)
            .fetch_one(&mut *connection)
            .await?,
    )
}

pub(super) async fn meanings(
    connection: &mut SqliteConnection,
    target: Option<&str>,
    words: &[String],
) -> Result<Vec<Meaning>, StoreError> {
    let mut by_id = by_word(
        words.len(),
        find(&mut *connection, target, words, Column::Id).await?,
    );
    let mut by_name = by_word(
        words.len(),
        find(&mut *connection, target, words, Column::Name).await?,
    );
    let mut meanings = Vec::with_capacity(words.len());
    for (number, word) in words.iter().enumerate() {
        let id = by_id[number].pop();
        let mut named = std::mem::take(&mut by_name[number]);
        meanings.push(match (id, named.len()) {
            (Some(server), _) => Meaning::Id(server),
            (None, 1) => named.pop().map_or(Meaning::Nothing, Meaning::Name),
            (None, 2..) => Meaning::Ambiguous(named),
            (None, _) => other_meaning(connection, target, word).await?,
        });
    }
    Ok(meanings)
}

/// Of a word that is neither a known id nor a name.
async fn other_meaning(
    connection: &mut SqliteConnection,
    target: Option<&str>,
    word: &str,
) -> Result<Meaning, StoreError> {
    if is_glob(word) {
        let servers = matching(connection, target, word).await?;
        return Ok(Meaning::Glob(servers));
    }
    if ServerId::is_uuid(word) {
        return Ok(Meaning::UnlistedId(ServerId::as_stored(word)));
    }
    Ok(Meaning::Nothing)
}

async fn matching(
    connection: &mut SqliteConnection,
    target: Option<&str>,
    glob: &str,
) -> Result<Vec<ServerRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM servers WHERE (target = $1 OR $1 IS NULL) AND gone_at IS NULL AND name GLOB $2
         ORDER BY name, server_id",
    )
    .bind(target)
    .bind(glob)
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn hints(
    connection: &mut SqliteConnection,
    target: Option<&str>,
    word: &str,
) -> Result<Hints, StoreError> {
    let gone = sqlx::query_as(
        "SELECT * FROM servers WHERE (target = $1 OR $1 IS NULL) AND gone_at IS NOT NULL AND name = $2
         ORDER BY gone_at DESC LIMIT 1",
    )
    .bind(target)
    .bind(word)
    .fetch_optional(&mut *connection)
    .await?;
    let elsewhere = sqlx::query_as(
        "SELECT * FROM servers WHERE target <> $1 AND gone_at IS NULL AND (name = $2 OR server_id = $3) LIMIT 1",
    )
    .bind(target)
    .bind(word)
    .bind(ServerId::as_stored(word))
    .fetch_optional(&mut *connection)
    .await?;
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT name FROM servers WHERE (target = $1 OR $1 IS NULL) AND gone_at IS NULL AND name <> ''",
    )
    .bind(target)
    .fetch_all(&mut *connection)
    .await?;
    Ok(Hints {
        similar: similar(word, names),
        gone,
        elsewhere,
    })
}

pub(super) async fn servers(
    connection: &mut SqliteConnection,
    target: Option<&str>,
) -> Result<Vec<ServerRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM servers WHERE target = $1 OR $1 IS NULL ORDER BY target, name, server_id",
    )
    .bind(target)
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn servers_page(
    connection: &mut SqliteConnection,
    which: &ServersWanted<'_>,
    limit: u32,
) -> Result<Vec<ServerRecord>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM servers r WHERE 1");
    if let Some(target) = which.target {
        query.push(" AND target = ").push_bind(target.to_owned());
    }
    if let Some(word) = which.word {
        query
            .push(" AND (server_id = ")
            .push_bind(ServerId::as_stored(word))
            .push(" OR name = ")
            .push_bind(word.to_owned())
            .push(" OR name GLOB ")
            .push_bind(word.to_owned())
            .push(")");
    }
    if let Some((target, id)) = which.after {
        query
            .push(" AND (target, server_id) > (")
            .push_bind(target.to_owned())
            .push(", ")
            .push_bind(id.to_owned())
            .push(")");
    }
    which.allowed.push_targets(&mut query);
    query
        .push(" ORDER BY target, server_id LIMIT 0 + ")
        .push_bind(i64::from(limit));
    Ok(query.build_query_as().fetch_all(connection).await?)
}

pub(super) async fn inventory(
    connection: &mut SqliteConnection,
    target: Option<&str>,
) -> Result<Vec<InventorySummary>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT t.target,
                (SELECT count(*) FROM servers s WHERE s.target = t.target AND s.gone_at IS NULL) AS servers,
                (SELECT count(*) FROM servers s WHERE s.target = t.target AND s.gone_at IS NOT NULL) AS gone,
                t.inventory_at, t.inventory_error
         FROM targets t WHERE t.target = $1 OR $1 IS NULL ORDER BY t.target",
    )
    .bind(target)
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn wish_for_inventory(
    connection: &mut SqliteConnection,
    target: Option<&str>,
) -> Result<i64, StoreError> {
    let wished = sqlx::query("INSERT INTO inventory_syncs (target) VALUES ($1)").bind(target);
    Ok(wished.execute(&mut *connection).await?.last_insert_rowid())
}

pub(super) async fn wish_end(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<Option<Option<String>>, StoreError> {
    let found: Option<Option<String>> = sqlx::query_scalar(
        "SELECT error FROM inventory_syncs WHERE id = $1 AND done_at IS NOT NULL",
    )
    .bind(id)
    .fetch_optional(&mut *connection)
    .await?;
    Ok(found)
}

pub(super) async fn withdraw_wish(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM inventory_syncs WHERE id = $1 AND done_at IS NULL")
        .bind(id)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// What words are compared with.
#[derive(Clone, Copy)]
enum Column {
    /// The id, without case.
    Id,
    /// The name of a server that is not gone.
    Name,
}

async fn find(
    connection: &mut SqliteConnection,
    target: Option<&str>,
    words: &[String],
    column: Column,
) -> Result<Vec<Found>, StoreError> {
    let words: Vec<String> = match column {
        Column::Id => words.iter().map(|word| ServerId::as_stored(word)).collect(),
        Column::Name => words.to_vec(),
    };
    let mut query = QueryBuilder::<Sqlite>::new("SELECT j.key AS word, s.* FROM json_each(");
    query
        .push_bind(serde_json::to_string(&words).unwrap_or_default())
        .push(") j CROSS JOIN servers s ");
    query.push(match column {
        Column::Id => "ON s.server_id = j.value",
        // SQLite would rather walk through all servers of the target for each word.
        Column::Name => "INDEXED BY servers_name ON s.name = j.value AND s.gone_at IS NULL",
    });
    if let Some(target) = target {
        query.push(" AND s.target = ").push_bind(target.to_owned());
    }
    query.push(" ORDER BY j.key, s.target, s.server_id");
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// For each of the words what was found.
fn by_word(words: usize, found: Vec<Found>) -> Vec<Vec<ServerRecord>> {
    let mut sorted = vec![Vec::new(); words];
    for Found { word, server } in found {
        let number = usize::try_from(word).unwrap_or(usize::MAX);
        if let Some(servers) = sorted.get_mut(number) {
            servers.push(server);
        }
    }
    sorted
}

/// True for a word that SQLite's GLOB reads as a pattern.
pub fn is_glob(word: &str) -> bool {
    word.contains(['*', '?', '['])
}

/// What to say of a name that several servers have, after the name.
pub fn ambiguous_name(servers: &[ServerRecord]) -> String {
    let ids: Vec<String> = servers
        .iter()
        .map(|server| format!("{} on target {}", server.server_id, visible(&server.target)))
        .collect();
    format!(
        "is the name of {} servers: {}; name the id",
        servers.len(),
        ids.join(", ")
    )
}

/// What to say of a word that stands for nothing, after the word.
pub fn unknown_name(target: Option<&str>, hints: &Hints) -> String {
    let mut sentence = match target {
        Some(target) => format!(
            "is neither the id nor the name of a server of target {}",
            visible(target)
        ),
        None => "is neither the id nor the name of a server".to_owned(),
    };
    if let Some(gone) = &hints.gone {
        let since = gone.gone_at.as_deref().unwrap_or_default();
        sentence.push_str(&format!(
            "; server {} had that name, and is gone since {since}",
            gone.server_id
        ));
    }
    if let Some(elsewhere) = &hints.elsewhere {
        sentence.push_str(&format!(
            "; there is one on target {}",
            visible(&elsewhere.target)
        ));
    }
    if !hints.similar.is_empty() {
        let names: Vec<String> = hints.similar.iter().map(|name| visible(name)).collect();
        sentence.push_str(&format!("; similar names: {}", names.join(", ")));
    }
    sentence
}

/// The names that are most like the word, upper and lower case alike.
fn similar(word: &str, names: Vec<String>) -> Vec<String> {
    let word = word.to_lowercase();
    let mut scored: Vec<(f64, String)> = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&word, &name.to_lowercase()), name))
        .filter(|(score, _)| *score >= SIMILARITY_MIN)
        .collect();
    scored.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    scored
        .into_iter()
        .take(SIMILAR_MAX)
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_names_come_first() {
        let names = ["gpu-01", "gpu-02", "web-01", "GPU-0l", "gpu-03", "db"];
        let names = names.map(str::to_owned).to_vec();
        assert_eq!(similar("gpu-0l", names.clone())[0], "GPU-0l");
        assert_eq!(similar("gpu-0l", names.clone()).len(), SIMILAR_MAX);
        assert_eq!(similar("zebra", names), Vec::<String>::new());
    }
}
