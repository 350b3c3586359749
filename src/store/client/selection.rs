//! Which requests a person means: by their ids, their label, or by what a filter says. One type for
//! all that people do, and for what they look at before; in SQL, and in words for `operator_actions`.

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use sqlx::{FromRow, QueryBuilder, Sqlite};

use crate::model::{PowerAction, RequestState, quoted};
use crate::store::StoreError;
use crate::store::sqlite::rows::{list, runs};

/// Requests that fit all of the fields that are given. One without any field selects nothing and is
/// refused: nobody means everything by saying nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// These, whatever their states; none of them: nothing.
    pub ids: Option<Vec<i64>>,
    /// With exactly this label.
    pub label: Option<String>,
    /// Of this target.
    pub target: Option<String>,
    /// With this action.
    pub action: Option<PowerAction>,
    /// For one of these servers; ids are compared without case.
    pub servers: Option<Vec<String>>,
    /// In one of these states; empty: in any. Not looked at beside `ids`.
    pub states: Vec<RequestState>,
    /// With this code: the cloud's or ours.
    pub error_code: Option<String>,
    /// That ended at this time or later, or were inserted then and have not ended. In the queue's
    /// own form.
    pub since: Option<String>,
    /// That ended before this time, or were inserted before it and have not ended.
    pub until: Option<String>,
    /// What the person may touch at all; no part of what was asked for.
    pub allowed: Allowed,
}

/// What somebody may see and change. The default: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Requests of these targets. Others do not exist for them.
    pub targets: Option<Vec<String>>,
    /// Requests with these actions.
    pub actions: Option<Vec<PowerAction>>,
    /// Requests that this one asked for.
    pub requested_by: Option<String>,
}

/// How many requests of a selection have these in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct SelectedCount {
    /// Their target.
    pub target: String,
    /// Their action.
    pub action: String,
    /// Their state.
    pub state: String,
    /// How many they are.
    pub requests: i64,
}

/// What is unfinished, by the indexes that lead to it. Each can be narrowed to a target and action.
const OPEN: [&str; 5] = [
    "gate = 'ready'",
    "in_line IS NULL AND gate IS NOT NULL",
    "gate = 'held'",
    "gate = 'retry'",
    "state = 'running'",
];

/// The ways in which a server's requests are found; each has an index of its own.
const OF_SERVERS: [&str; 3] = [
    "in_line = 1",
    "in_line IS NULL AND gate IS NOT NULL",
    "in_line IS NULL AND gate IS NULL",
];

impl Selection {
    /// These requests.
    pub fn of_ids(ids: Vec<i64>) -> Self {
        Self {
            ids: Some(ids),
            ..Self::default()
        }
    }

    /// All requests with exactly this label.
    pub fn of_label(label: impl Into<String>) -> Self {
        Self {
            label: Some(label.into()),
            ..Self::default()
        }
    }

    /// All requests of this target and action.
    pub fn of_lane(target: impl Into<String>, action: PowerAction) -> Self {
        Self {
            target: Some(target.into()),
            action: Some(action),
            ..Self::default()
        }
    }

    /// The selection in the words of the commands, such as `--label kernel` or `3 17-5016`.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if let Some(ids) = &self.ids {
            words.push(runs(ids));
        }
        let mut option =
            |name: &str, value: &str| words.push(format!("--{name} {}", quoted(value)));
        if let Some(label) = &self.label {
            option("label", label);
        }
        if let Some(target) = &self.target {
            option("target", target);
        }
        if let Some(action) = self.action {
            option("action", action.as_str());
        }
        for server in self.servers.iter().flatten() {
            option("server", server);
        }
        if !self.states.is_empty() {
            let states: Vec<&str> = self.states.iter().map(|state| state.as_str()).collect();
            option("state", &states.join(","));
        }
        if let Some(code) = &self.error_code {
            option("error", code);
        }
        if let Some(since) = &self.since {
            option("since", since);
        }
        if let Some(until) = &self.until {
            option("until", until);
        }
        words.join(" ")
    }

    /// True if it is about a label and nothing else.
    pub fn is_whole_label(&self) -> bool {
        let label = Self {
            label: self.label.clone(),
            allowed: self.allowed.clone(),
            ..Self::default()
        };
        self.label.is_some() && *self == label
    }

    /// How the selected requests are spread over targets, actions and states.
    ///
    /// # Errors
    /// `Refused` without any field, `NoSuchRequest` for an id.
    pub(super) async fn counts(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<Vec<SelectedCount>, StoreError> {
        self.require(connection).await?;
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT target, action, state, count(*) AS requests FROM power_requests WHERE id IN (",
        );
        self.push_ids(&mut query, &self.states, "");
        query.push(") GROUP BY target, action, state ORDER BY target, action, state");
        Ok(query.build_query_as().fetch_all(connection).await?)
    }

    /// Refuses a selection without any field, and one with an id that does not exist, or not for
    /// this person.
    ///
    /// # Errors
    /// `Refused`, `NoSuchRequest`.
    pub(super) async fn require(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let nothing = Self {
            allowed: self.allowed.clone(),
            ..Self::default()
        };
        if *self == nothing {
            return Err(StoreError::Refused(
                "nothing is selected; name ids, a label, or what the requests have in common"
                    .to_owned(),
            ));
        }
        let Some(ids) = &self.ids else {
            return Ok(());
        };
        let mut query = QueryBuilder::<Sqlite>::new("SELECT j.value FROM json_each(");
        query
            .push_bind(list(ids))
            .push(") j WHERE NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = j.value");
        self.allowed.push_targets(&mut query);
        query.push(") LIMIT 1");
        let unknown: Option<i64> = query
            .build_query_scalar()
            .fetch_optional(connection)
            .await?;
        unknown.map_or(Ok(()), |id| Err(StoreError::NoSuchRequest(id)))
    }

    /// Those of `among` that it asks for; all of them if it names none, or ids.
    pub(super) fn states_among(&self, among: &[RequestState]) -> Vec<RequestState> {
        let is_wanted = |state: &RequestState| {
            self.states.is_empty() || self.ids.is_some() || self.states.contains(state)
        };
        among.iter().copied().filter(is_wanted).collect()
    }

    /// Appends a query for the ids of those that are in one of `states`, empty: in any, and fulfil
    /// `more`, a condition on the row `r` that begins with AND, or is empty.
    pub(super) fn push_ids(
        &self,
        query: &mut QueryBuilder<Sqlite>,
        states: &[RequestState],
        more: &str,
    ) {
        query.push("SELECT r.id FROM (");
        self.push_way(query, states);
        query.push(") way CROSS JOIN power_requests r ON r.id = way.id WHERE 1");
        self.push_conditions(query, states);
        query.push(more);
    }

    /// Appends conditions on the row `r`, each with AND in front. The unary plus keeps SQLite from
    /// choosing another way to the rows than the caller's.
    pub(super) fn push_conditions(
        &self,
        query: &mut QueryBuilder<Sqlite>,
        states: &[RequestState],
    ) {
        if let Some(label) = &self.label {
            query.push(" AND +r.label = ").push_bind(label.clone());
        }
        if let Some(target) = &self.target {
            query.push(" AND +r.target = ").push_bind(target.clone());
        }
        if let Some(action) = self.action {
            query.push(" AND +r.action = ").push_bind(action.as_str());
        }
        if let Some(servers) = &self.servers {
            push_among(query, "server_id", &texts(servers));
        }
        if !states.is_empty() && self.ids.is_none() {
            push_among(query, "state", &texts(states));
        }
        if let Some(code) = &self.error_code {
            query.push(" AND +r.error_code = ").push_bind(code.clone());
        }
        if let Some(since) = &self.since {
            query
                .push(" AND ifnull(r.finished_at, r.created_at) >= ")
                .push_bind(since.clone());
        }
        if let Some(until) = &self.until {
            query
                .push(" AND ifnull(r.finished_at, r.created_at) < ")
                .push_bind(until.clone());
        }
        self.allowed.push(query);
    }

    /// The ids among which the selected ones are, by the index that leads to the fewest.
    fn push_way(&self, query: &mut QueryBuilder<Sqlite>, states: &[RequestState]) {
        if let Some(ids) = &self.ids {
            query
                .push("SELECT DISTINCT value AS id FROM json_each(")
                .push_bind(list(ids))
                .push(")");
            return;
        }
        if let Some(label) = &self.label {
            query
                .push("SELECT id FROM power_requests WHERE label = ")
                .push_bind(label.clone());
            return;
        }
        if let Some(servers) = &self.servers {
            push_of_servers(query, servers);
            return;
        }
        let wants_open = states.is_empty() || states.iter().any(|state| !state.is_terminal());
        let wants_ended = states.is_empty() || states.iter().any(|state| state.is_terminal());
        if wants_open {
            self.push_open(query);
        }
        if wants_open && wants_ended {
            query.push(" UNION ALL ");
        }
        if wants_ended {
            self.push_ended(query);
        }
    }

    fn push_open(&self, query: &mut QueryBuilder<Sqlite>) {
        for (at, part) in OPEN.iter().enumerate() {
            query
                .push(if at > 0 { " UNION ALL " } else { "" })
                .push("SELECT id FROM power_requests WHERE ")
                .push(*part);
            if let Some(target) = &self.target {
                query.push(" AND target = ").push_bind(target.clone());
            }
            if let Some(action) = self.action {
                query.push(" AND action = ").push_bind(action.as_str());
            }
        }
    }

    fn push_ended(&self, query: &mut QueryBuilder<Sqlite>) {
        query.push("SELECT id FROM power_requests WHERE finished_at IS NOT NULL");
        if let Some(since) = &self.since {
            query.push(" AND finished_at >= ").push_bind(since.clone());
        }
        if let Some(until) = &self.until {
            query.push(" AND finished_at < ").push_bind(until.clone());
        }
    }
}

impl Allowed {
    /// True if nothing is forbidden.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    fn push(&self, query: &mut QueryBuilder<Sqlite>) {
        self.push_targets(query);
        if let Some(actions) = &self.actions {
            push_among(query, "action", &texts(actions));
        }
        if let Some(requested_by) = &self.requested_by {
            query
                .push(" AND r.requested_by = ")
                .push_bind(requested_by.clone());
        }
    }

    pub(super) fn push_targets(&self, query: &mut QueryBuilder<Sqlite>) {
        if let Some(targets) = &self.targets {
            push_among(query, "target", &texts(targets));
        }
    }
}

/// Appends a query for the ids of all requests of these servers.
pub(super) fn push_of_servers(query: &mut QueryBuilder<Sqlite>, servers: &[String]) {
    let servers = texts(servers);
    for (at, part) in OF_SERVERS.iter().enumerate() {
        query
            .push(if at > 0 { " UNION ALL " } else { "" })
            .push("SELECT id FROM power_requests WHERE ")
            .push(*part)
            .push(" AND server_id IN (SELECT value FROM json_each(")
            .push_bind(servers.clone())
            .push("))");
    }
}

/// `values` is an array for `json_each`.
fn push_among(query: &mut QueryBuilder<Sqlite>, column: &'static str, values: &str) {
    query
        .push(" AND +r.")
        .push(column)
        .push(" IN (SELECT value FROM json_each(")
        .push_bind(values.to_owned())
        .push("))");
}

/// Words for `json_each`.
pub(super) fn texts<T: Serialize>(words: &[T]) -> String {
    serde_json::to_string(words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_noted_in_the_words_of_the_commands() {
        let label = Selection::of_label("patch day");
        assert_eq!(label.words(), "--label 'patch day'");
        assert!(label.is_whole_label());
        let lane = Selection::of_lane("eu", PowerAction::Stop);
        assert_eq!(lane.words(), "--target eu --action stop");
        let filter = Selection {
            states: vec![RequestState::Failed, RequestState::Expired],
            error_code: Some("BMS.0040".to_owned()),
            since: Some("2026-01-31T22:00:00.000Z".to_owned()),
            ..label
        };
        assert_eq!(
            filter.words(),
            "--label 'patch day' --state failed,expired --error BMS.0040 --since 2026-01-31T22:00:00.000Z"
        );
        assert!(!filter.is_whole_label());
    }
}
