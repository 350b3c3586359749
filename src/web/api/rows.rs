//! The rows of a POST: read one by one, so that every mistake is named with its row, and resolved
//! from names to ids before anything is inserted.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::problem::{Problem, RowNote};
use crate::model::{PowerAction, Role};
use crate::store::QueueClient;
use crate::store::client::{
    Meaning, NewRequest, ServerRecord, ambiguous_name, is_glob, unknown_name,
};
use crate::web::access::{Caller, Refusal, too_large};
use axum::http::StatusCode;

/// Rows of one call, and requests that they may become.
const ROWS_MAX: usize = 10_000;
/// Words that match many servers; each is looked for by itself.
const GLOBS_MAX: usize = 100;
/// Unknown names for which similar ones are looked for.
const HINTS_MAX: usize = 5;
const USUAL_TARGET: &str = "default";

/// A request as its producer writes it. Either `server` or `server_id` is needed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestRow {
    /// The id or the name of a server, or a glob over names.
    server: Option<String>,
    /// The id of a server, whether or not a list has shown it.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9-]+$")]
    server_id: Option<String>,
    /// What to do.
    #[schema(value_type = PowerAction)]
    action: String,
    /// A target of the daemon's config; `default` if it is left out.
    target: Option<String>,
    /// From -100 to 100; higher goes first.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i64>,
    /// Do not send before this time (UTC unless it has an offset).
    not_before: Option<String>,
    /// Do not send after this time.
    expires_at: Option<String>,
    /// Send only after this request has succeeded.
    after_id: Option<i64>,
    /// No other kept request has it, so that a call can be repeated safely.
    #[schema(max_length = 256)]
    request_key: Option<String>,
    /// Requests with the same label belong together.
    #[schema(max_length = 256)]
    label: Option<String>,
    /// The token's name, or left out.
    requested_by: Option<String>,
    /// Why it may leave outside windows and freezes; for operators.
    #[schema(max_length = 256)]
    override_reason: Option<String>,
}

impl RequestRow {
    fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(USUAL_TARGET)
    }
}

/// All rows of a call.
#[derive(Debug)]
pub(super) struct RequestRows(Vec<RequestRow>);

impl RequestRows {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 for what is no array, 413 for too many rows, 422 with each row that does not read.
    pub(super) fn read(text: &[u8]) -> Result<Self, Problem> {
        let raw = raw_rows(text)?;
        let mut rows = Vec::with_capacity(raw.len());
        let mut wrong = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            match read_row(raw) {
                Ok(row) => rows.push(row),
                Err(message) => wrong.push(RowNote { index, message }),
            }
        }
        refuse(wrong)?;
        Ok(Self(rows))
    }

    /// Refuses rows that this caller may not ask for.
    ///
    /// # Errors
    /// 403, or 422 for somebody else's name.
    pub(super) fn require_allowed(&self, caller: &Caller) -> Result<(), Problem> {
        let mut wrong = Vec::new();
        for (index, row) in self.0.iter().enumerate() {
            let lane = caller.require_lane(row.target(), &row.action);
            lane.map_err(|refusal| in_row(index, refusal))?;
            if row.override_reason.is_some() {
                caller
                    .require(Role::Operator)
                    .map_err(|refusal| in_row(index, refusal))?;
            }
            let is_own = |name: &String| name == caller.name();
            if !row.requested_by.as_ref().is_none_or(is_own) {
                let message = format!(
                    "requested_by is the name of the token, {}; leave it out",
                    caller.name()
                );
                wrong.push(RowNote { index, message });
            }
        }
        refuse(wrong)
    }
}

fn in_row(index: usize, refusal: Refusal) -> Refusal {
    Refusal {
        sentence: format!("row {index}: {}", refusal.sentence),
        ..refusal
    }
}

fn refuse(wrong: Vec<RowNote>) -> Result<(), Problem> {
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Problem::unprocessable("nothing is inserted: some rows are wrong").with_errors(wrong))
}

fn read_row(raw: &RawValue) -> Result<RequestRow, String> {
    let row: RequestRow = serde_json::from_str(raw.get()).map_err(|error| sentence(&error))?;
    match (&row.server, &row.server_id) {
        (Some(_), Some(_)) => Err("has both server and server_id; give one of them".to_owned()),
        (None, None) => Err("has no server; give the id or the name of one".to_owned()),
        _ => Ok(row),
    }
}

/// Without the place in the row, which is written on one line.
fn sentence(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let said = said
        .rsplit_once(" at line ")
        .map_or(said.as_str(), |(said, _)| said);
    if said.starts_with("unknown field `approved_by`") {
        return "approved_by comes from POST /approve alone; leave it out".to_owned();
    }
    said.to_owned()
}

/// The elements of an array, not read any further.
fn raw_rows(text: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    let unreadable =
        |error: serde_json::Error| Problem::bad_request(format!("the body does not read: {error}"));
    let mut reader = serde_json::Deserializer::from_slice(text);
    let rows = reader.deserialize_seq(RowsVisitor).map_err(unreadable)?;
    reader.end().map_err(unreadable)?;
    if rows.len() > ROWS_MAX {
        return Err(Refusal {
            sentence: format!("there are more than {ROWS_MAX} rows; send them in several calls"),
            ..too_large()
        }
        .into());
    }
    Ok(rows)
}

/// Keeps one row more than are allowed, and skips the rest.
struct RowsVisitor;

impl<'de> Visitor<'de> for RowsVisitor {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(row) = rows.next_element::<&'de RawValue>()? {
            kept.push(row);
            if kept.len() > ROWS_MAX {
                while rows.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(kept)
    }
}

/// Requests to be inserted, and where they come from.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) requests: Vec<NewRequest>,
    /// For each request the row that it comes from.
    rows: Vec<usize>,
    pub(super) warnings: Vec<RowNote>,
    wrong: Vec<RowNote>,
}

impl Resolved {
    /// The row that the request with this number comes from.
    pub(super) fn row_of(&self, request: usize) -> usize {
        self.rows.get(request).copied().unwrap_or(request)
    }

    fn add(&mut self, index: usize, row: &RequestRow, server_id: String, caller: &Caller) {
        self.rows.push(index);
        self.requests.push(NewRequest {
            server_id,
            action: row.action.clone(),
            target: row.target().to_owned(),
            priority: row.priority.unwrap_or(0),
            not_before: row.not_before.clone(),
            expires_at: row.expires_at.clone(),
            after_id: row.after_id,
            request_key: row.request_key.clone(),
            label: row.label.clone(),
            requested_by: Some(caller.name().to_owned()),
            override_reason: row.override_reason.clone(),
        });
    }

    fn refuse(&mut self, index: usize, message: impl Into<String>) {
        self.wrong.push(RowNote {
            index,
            message: message.into(),
        });
    }
}

/// Finds the servers that the rows name, as the commands do.
///
/// # Errors
/// 422 with each row whose name stands for nothing, or for one of several servers.
pub(super) async fn resolve(
    client: &mut QueueClient,
    rows: &RequestRows,
    caller: &Caller,
) -> Result<Resolved, Problem> {
    let globs = rows.0.iter().filter_map(|row| row.server.as_deref());
    if globs.filter(|word| is_glob(word)).count() > GLOBS_MAX {
        return Err(Problem::unprocessable(format!(
            "there are more than {GLOBS_MAX} globs; send them in several calls"
        )));
    }
    let mut meanings = meanings(client, rows).await?;
    let mut resolved = Resolved::default();
    let mut hints_left = HINTS_MAX;
    for (index, row) in rows.0.iter().enumerate() {
        let word = match (&row.server_id, &row.server) {
            (Some(id), _) => {
                resolved.add(index, row, id.clone(), caller);
                continue;
            }
            (None, word) => word.as_deref().unwrap_or_default(),
        };
        match meanings.remove(&index) {
            // The target has no inventory: the schema says what is no id.
            None => resolved.add(index, row, word.to_owned(), caller),
            Some(Meaning::Id(server) | Meaning::Name(server)) => {
                resolved.add(index, row, server.server_id, caller);
            }
            Some(Meaning::UnlistedId(id)) => {
                let message = format!("no list of target {} shows server {id}", row.target());
                resolved.warnings.push(RowNote { index, message });
                resolved.add(index, row, id, caller);
            }
            Some(Meaning::Glob(servers)) => add_all(&mut resolved, index, row, servers, caller),
            Some(Meaning::Ambiguous(servers)) => {
                let why = ambiguous_name(&servers);
                resolved.refuse(index, format!("server {word:?} {why}"));
            }
            Some(Meaning::Nothing) => {
                let target = Some(row.target());
                let mut hints = Default::default();
                if hints_left > 0 {
                    hints_left -= 1;
                    hints = client.hints(target, word).await?;
                }
                // What this caller does not see is no hint.
                hints.elsewhere = hints.elsewhere.filter(|other| caller.sees(&other.target));
                let why = unknown_name(target, &hints);
                resolved.refuse(index, format!("server {word:?} {why}"));
            }
        }
    }
    refuse(std::mem::take(&mut resolved.wrong))?;
    if resolved.requests.len() > ROWS_MAX {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the globs match more than {ROWS_MAX} servers; send them in several calls"),
        ));
    }
    Ok(resolved)
}

fn add_all(
    resolved: &mut Resolved,
    index: usize,
    row: &RequestRow,
    servers: Vec<ServerRecord>,
    caller: &Caller,
) {
    let word = row.server.as_deref().unwrap_or_default();
    if servers.is_empty() {
        let why = format!(
            "server {word:?} matches no server of target {}",
            row.target()
        );
        resolved.refuse(index, why);
        return;
    }
    if row.request_key.is_some() {
        resolved.refuse(
            index,
            "a glob cannot have a request_key: each request needs its own",
        );
        return;
    }
    // A bound on memory, too: many globs may match every server.
    for server in servers {
        if resolved.requests.len() > ROWS_MAX {
            return;
        }
        resolved.add(index, row, server.server_id, caller);
    }
}

/// What the names of the rows stand for, by row; none for rows of targets without an inventory.
async fn meanings(
    client: &mut QueueClient,
    rows: &RequestRows,
) -> Result<BTreeMap<usize, Meaning>, Problem> {
    let mut by_target: BTreeMap<&str, NamedServers> = BTreeMap::new();
    for (number, row) in rows.0.iter().enumerate() {
        if let Some(word) = &row.server {
            let named = by_target.entry(row.target()).or_default();
            named.rows.push(number);
            named.words.push(word.clone());
        }
    }
    let mut meanings = BTreeMap::new();
    for (target, named) in by_target {
        if client.knows_servers(Some(target)).await? {
            let found = client.meanings(Some(target), &named.words).await?;
            meanings.extend(named.rows.into_iter().zip(found));
        }
    }
    Ok(meanings)
}

/// Rows of one target, and how they name their servers.
#[derive(Default)]
struct NamedServers {
    rows: Vec<usize>,
    words: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_that_does_not_read_is_named() {
        let text = br#"[{"server": "a", "action": "stop"}, {"action": "stop"}, 7,
            {"server": "a", "action": "stop", "approved_by": "x"}, {"server_id": "a", "server": "b", "action": "stop"}]"#;
        assert!(RequestRows::read(text).is_err());
        let rows = raw_rows(text).expect("an array");
        let read: Vec<_> = rows.into_iter().map(read_row).collect();
        assert!(read[0].is_ok());
        for (row, wanted) in [
            (1, "has no server"),
            (2, "invalid type: integer `7`"),
            (3, "approved_by comes from"),
            (4, "has both"),
        ] {
            let said = read[row].as_ref().expect_err("wrong");
            assert!(said.starts_with(wanted), "{said}");
        }
    }

    #[test]
    fn more_rows_than_allowed_are_refused_and_not_kept() {
        let text = format!("[{}0]", "0,".repeat(ROWS_MAX * 2));
        assert!(raw_rows(text.as_bytes()).is_err());
        assert!(raw_rows(b"{}").is_err() && raw_rows(b"[] x").is_err());
        assert!(raw_rows(b"[]").is_ok_and(|rows| rows.is_empty()));
    }
}
