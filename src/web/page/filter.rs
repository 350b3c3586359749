//! A filter as it stands in an address, and the selection that it means.

use axum::http::StatusCode;
use maud::{Markup, html};
use serde::Deserialize;

use super::Trouble;
use super::format::{parameter, text};
use crate::model::{PowerAction, RequestState, UtcMillis, quoted};
use crate::store::QueueClient;
use crate::store::client::{Meaning, Selection, scope_name};
use crate::web::access::{Caller, Refusal};
use crate::web::api::seen_by;

/// Each field as a person or a link has written it; an empty one leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    /// Ids, separated by commas.
    pub(super) id: String,
    /// States, separated by commas.
    pub(super) state: String,
    pub(super) action: String,
    pub(super) target: String,
    pub(super) label: String,
    /// An id, a name, or a glob over names.
    pub(super) server: String,
    pub(super) error: String,
    /// A time, or a span back from now such as `24h`.
    pub(super) since: String,
    pub(super) until: String,
}

impl Filter {
    pub(super) fn of_label(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn of_id(id: i64) -> Self {
        Self {
            id: id.to_string(),
            ..Self::default()
        }
    }

    pub(super) fn of_server(server: &str) -> Self {
        Self {
            server: server.to_owned(),
            ..Self::default()
        }
    }

    /// The fields that leave something out, with their names.
    pub(super) fn fields(&self) -> Vec<(&'static str, &str)> {
        let all: [(&'static str, &str); 9] = [
            ("id", &self.id),
            ("state", &self.state),
            ("action", &self.action),
            ("target", &self.target),
            ("label", &self.label),
            ("server", &self.server),
            ("error", &self.error),
            ("since", &self.since),
            ("until", &self.until),
        ];
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fields().is_empty()
    }

    /// The fields as the parameters of an address.
    pub(super) fn parameters(&self) -> String {
        let fields = self.fields().into_iter();
        let pairs: Vec<String> = fields
            .map(|(name, value)| format!("{name}={}", parameter(value)))
            .collect();
        pairs.join("&")
    }

    /// The fields as hidden ones of a form.
    pub(super) fn hidden(&self) -> Markup {
        html! {
            @for (name, value) in self.fields() { input type="hidden" name=(name) value=(value); }
        }
    }

    /// The fields in words.
    pub(super) fn words(&self) -> String {
        let fields = self.fields().into_iter();
        let words: Vec<String> = fields
            .map(|(name, value)| format!("{name} {}", text(value)))
            .collect();
        words.join(", ")
    }

    /// Its target, action and label, in words.
    pub(super) fn scope(&self) -> String {
        let target = given(&self.target);
        let action = given(&self.action);
        let label = given(&self.label);
        text(&scope_name(
            target.as_deref(),
            action.as_deref(),
            label.as_deref(),
        ))
    }

    /// The options of `poweryard list`, `cancel` and `retry`.
    pub(super) fn options(&self) -> String {
        let fields = self.fields().into_iter();
        let words: Vec<String> = fields
            .map(|(name, value)| match name {
                "id" => value.replace(',', " "),
                name => format!("--{name} {}", quoted(value)),
            })
            .collect();
        words.join(" ")
    }

    /// The requests that it means, of those that the caller may see.
    pub(super) async fn selection(
        &self,
        client: &mut QueueClient,
        caller: &Caller,
        now: UtcMillis,
    ) -> Result<Selection, Trouble> {
        let target = given(&self.target);
        let servers = match given(&self.server) {
            Some(word) => Some(servers(client, target.as_deref(), &word).await?),
            None => None,
        };
        Ok(Selection {
            ids: ids(&self.id)?,
            label: given(&self.label),
            target,
            action: word::<PowerAction>(&self.action)?,
            servers,
            states: states(&self.state)?,
            error_code: given(&self.error),
            since: time(client, &self.since, now).await?,
            until: time(client, &self.until, now).await?,
            allowed: seen_by(caller),
        })
    }
}

fn given(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn word<T: std::str::FromStr>(value: &str) -> Result<Option<T>, Trouble>
where
    T::Err: std::fmt::Display,
{
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = value
        .parse()
        .map_err(|error: T::Err| Trouble::bad_request(error.to_string()))?;
    Ok(Some(parsed))
}

fn states(value: &str) -> Result<Vec<RequestState>, Trouble> {
    let words = value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    let states: Result<Vec<Option<RequestState>>, Trouble> = words.map(word).collect();
    Ok(states?.into_iter().flatten().collect())
}

fn ids(value: &str) -> Result<Option<Vec<i64>>, Trouble> {
    if value.is_empty() {
        return Ok(None);
    }
    let words = value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    let ids: Result<Vec<i64>, _> = words.map(str::parse).collect();
    let wrong = |_| Trouble::bad_request("id must be numbers, separated by commas");
    ids.map(Some).map_err(wrong)
}

async fn time(
    client: &mut QueueClient,
    value: &str,
    now: UtcMillis,
) -> Result<Option<String>, Trouble> {
    if value.is_empty() {
        return Ok(None);
    }
    if let Ok(span) = humantime::parse_duration(value) {
        return Ok(Some(now.before(span).to_string()));
    }
    match client.read_time(value).await? {
        Some(time) => Ok(Some(time)),
        None => {
            let sentence = "since and until must be a span back from now, such as 90m or 24h, or a time such as 2026-01-31T22:00:00Z";
            Err(Refusal::new(StatusCode::BAD_REQUEST, sentence).into())
        }
    }
}

/// The ids that the word means; itself if it means nothing that is known.
async fn servers(
    client: &mut QueueClient,
    target: Option<&str>,
    word: &str,
) -> Result<Vec<String>, Trouble> {
    let meanings = client.meanings(target, &[word.to_owned()]).await?;
    let meaning = meanings.into_iter().next().unwrap_or(Meaning::Nothing);
    Ok(match meaning {
        Meaning::Id(server) | Meaning::Name(server) => vec![server.server_id],
        Meaning::Glob(servers) | Meaning::Ambiguous(servers) => {
            servers.into_iter().map(|server| server.server_id).collect()
        }
        Meaning::UnlistedId(id) => vec![id],
        Meaning::Nothing => vec![word.to_owned()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_written_into_an_address_and_a_command() {
        let filter = Filter {
            state: "failed".to_owned(),
            label: "patch day&x=1".to_owned(),
            ..Filter::default()
        };
        assert_eq!(filter.parameters(), "state=failed&label=patch+day%26x%3D1");
        assert_eq!(filter.options(), "--state failed --label 'patch day&x=1'");
        assert!(Filter::default().is_empty() && !filter.is_empty());
    }

    #[test]
    fn words_that_are_no_states_are_named() {
        assert_eq!(
            states("failed, unknown").ok(),
            Some(vec![RequestState::Failed, RequestState::Unknown])
        );
        let Err(Trouble(refusal)) = states("failed,broken") else {
            panic!("taken");
        };
        assert!(
            refusal.sentence.contains("'broken'"),
            "{}",
            refusal.sentence
        );
    }
}
