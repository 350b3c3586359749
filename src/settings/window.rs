//! `[targets.NAME.window]` and `[targets.NAME.guard]`. What a span means is known to
//! `plan::windows`.

use toml::de::DeValue;

use super::document::Section;
use super::parse::{self, Parsed};
use crate::model::{Budget, PowerAction};
use crate::plan::windows::{Freeze, Span, Windows};

/// Reads when the target's actions may be sent; without the table at any time.
pub(super) fn windows(target: &Section<'_>) -> Windows {
    let section = target.section("window");
    let mut windows = Windows::default();
    for action in PowerAction::ALL {
        let key = action.as_str();
        let spans = section.read_list(key, span);
        if section.has_empty_list(key) {
            let problem = format!("is empty; leave {key} out if it may be sent at any time");
            section.mistake(key, problem);
        }
        if section.has(key) {
            windows.spans.insert(*action, spans);
        }
    }
    windows.freezes = section.read_list("freeze", freeze);
    section.refuse_unknown(|_| None);
    windows
}

/// Reads how many requests of an action may leave unapproved.
pub(super) fn guards(target: &Section<'_>) -> Vec<(PowerAction, Budget)> {
    let section = target.section("guard");
    let mut guards = Vec::new();
    for action in PowerAction::ALL {
        let guard = section.read(action.as_str(), parse::budget);
        guards.extend(guard.map(|guard| (*action, guard)));
    }
    section.refuse_unknown(|_| None);
    guards
}

fn span(value: &DeValue<'_>) -> Parsed<Span> {
    Span::parse(parse::text(value)?)
}

fn freeze(value: &DeValue<'_>) -> Parsed<Freeze> {
    Freeze::parse(parse::text(value)?)
}
