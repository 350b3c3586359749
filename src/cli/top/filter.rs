//! The words that choose requests: `failed stop target:eu label:patch* gpu-7`. Reads nothing.

use crate::model::{PowerAction, RequestState};
use crate::store::client::{Filter, TextFilter};

/// What somebody has typed, word by word.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Words {
    text: String,
    filter: Filter,
    server: Option<String>,
    since: Option<String>,
}

impl Words {
    /// A state or an action is one; `target:`, `label:`, `error:`, `by:` and `since:` go before their
    /// value; anything else is a server.
    pub(super) fn read(text: &str) -> Self {
        let mut words = Self {
            text: text.trim().to_owned(),
            ..Self::default()
        };
        for word in text.split_whitespace() {
            words.add(word);
        }
        words
    }

    fn add(&mut self, word: &str) {
        if let Ok(state) = word.parse::<RequestState>() {
            self.filter.states.push(state);
        } else if let Ok(action) = word.parse::<PowerAction>() {
            self.filter.actions.push(action);
        } else {
            match word.split_once(':') {
                Some(("target", value)) => self.filter.target = Some(value.to_owned()),
                Some(("label", value)) => self.filter.label = Some(TextFilter::read(value)),
                Some(("error", value)) => self.filter.error_code = Some(TextFilter::read(value)),
                Some(("by", value)) => self.filter.requested_by = Some(TextFilter::read(value)),
                Some(("since", value)) => self.since = Some(value.to_owned()),
                _ => self.server = Some(word.to_owned()),
            }
        }
    }

    /// As it was typed.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What the words ask for; server and time are still words.
    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The word for the server.
    pub(super) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// The word for the time.
    pub(super) fn since(&self) -> Option<&str> {
        self.since.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_by_what_they_are() {
        let words = Words::read(" failed unknown stop target:eu label:patch* gpu-7 since:2h ");
        let filter = words.filter();
        assert_eq!(filter.states, [RequestState::Failed, RequestState::Unknown]);
        assert_eq!(filter.actions, [PowerAction::Stop]);
        assert_eq!(filter.target.as_deref(), Some("eu"));
        assert_eq!(filter.label, Some(TextFilter::Matches("patch*".to_owned())));
        assert_eq!((words.server(), words.since()), (Some("gpu-7"), Some("2h")));
        assert_eq!(Words::read("  "), Words::default());
    }
}
