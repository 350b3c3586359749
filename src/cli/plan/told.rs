//! A forecast in words and as JSON. Pure.

use std::collections::BTreeMap;

use serde_json::json;

use crate::cli::output::{visible, wrapped};
use crate::daemon::Outlook;
use crate::model::{HoldKind, PowerAction, PowerMix, TargetName, UtcMillis, counted};
use crate::plan::forecast::{ActionForecast, Cause, PlannedCall, Waiting};
use crate::store::client::LabelCount;

/// The labels of what leaves now, by target and action.
pub(super) type Labels = BTreeMap<(TargetName, PowerAction), Vec<LabelCount>>;

/// Width of sentences.
const WIDTH: usize = 96;
/// Sizes of calls that are named.
const SIZES_MAX: usize = 4;
/// Labels that are named.
const LABELS_MAX: usize = 3;

/// A paragraph for each target and action.
pub(in crate::cli) fn text(outlook: &Outlook, labels: &Labels) -> String {
    let mut text = String::new();
    for action in &outlook.forecast.actions {
        let about = About { outlook, action };
        text.push_str(&visible(&about.head()));
        text.push('\n');
        for line in about.lines(labels) {
            text.push_str(&wrapped(&visible(&line), "  ", WIDTH));
        }
    }
    if text.is_empty() {
        text.push_str("nothing waits\n");
    }
    for note in notes(outlook) {
        text.push_str(&wrapped(&note, "", WIDTH));
    }
    text
}

/// What is to be known of all of it.
fn notes(outlook: &Outlook) -> Vec<String> {
    let mut notes = Vec::new();
    if outlook.is_without_config {
        notes.push("limits, guards and windows are not known without the config".to_owned());
    }
    if outlook.forecast.is_cut {
        notes
            .push("it takes longer than could be followed: more calls come after these".to_owned());
    }
    let has_waves = outlook
        .forecast
        .waiting
        .iter()
        .any(|waiting| waiting.cause == Cause::Hold(HoldKind::Wave));
    if outlook.has_gate && has_waves {
        notes.push("before each wave but the first, the gate of [waves] is asked".to_owned());
    }
    notes
}

/// What is told of one target and action.
struct About<'a> {
    outlook: &'a Outlook,
    action: &'a ActionForecast,
}

impl About<'_> {
    fn head(&self) -> String {
        let ActionForecast { target, action, .. } = self.action;
        let requests = counted(self.action.requests, "request");
        format!("{action} on {target}: {requests}")
    }

    fn lines(&self, labels: &Labels) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.mix().and_then(|mix| servers(mix, self.action)));
        let now = self.calls_now();
        if now.is_empty() {
            lines.push("nothing leaves now".to_owned());
        } else {
            let key = (self.action.target.clone(), self.action.action);
            let whose = labels.get(&key).map(|labels| named(labels));
            lines.push(format!(
                "leaves now: {}{}",
                sizes(&now),
                whose.unwrap_or_default()
            ));
        }
        lines.extend(self.waiting().map(waits));
        lines.extend(self.end(now.len()));
        lines.extend(self.unsent());
        lines
    }

    fn mix(&self) -> Option<&PowerMix> {
        let mut mixes = self.outlook.mixes.iter();
        mixes.find(|mix| mix.target == self.action.target && mix.action == self.action.action)
    }

    fn calls(&self) -> impl Iterator<Item = &PlannedCall> {
        let calls = self.outlook.forecast.calls.iter();
        calls.filter(|call| call.target == self.action.target && call.action == self.action.action)
    }

    fn calls_now(&self) -> Vec<&PlannedCall> {
        self.calls()
            .take_while(|call| call.at <= self.outlook.as_of)
            .collect()
    }

    fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        let waiting = self.outlook.forecast.waiting.iter();
        waiting.filter(|waiting| {
            waiting.target == self.action.target && waiting.action == self.action.action
        })
    }

    /// When the last call leaves, and when it has ended.
    fn end(&self, calls_now: usize) -> Option<String> {
        let action = self.action;
        let last = action.last_leaves_at?;
        let later = action.calls - calls_now as u64;
        let leaves = if later == 0 {
            "all that leaves does so now".to_owned()
        } else {
            let more = if calls_now == 0 { "" } else { "more " };
            let calls = if later == 1 { "call" } else { "calls" };
            format!("{later} {more}{calls} later, the last at {last}")
        };
        let at_least = if self.outlook.forecast.is_cut {
            "not before"
        } else {
            "by about"
        };
        Some(match action.last_ends_at {
            Some(end) => format!("{leaves}; ended {at_least} {end}"),
            None => format!("{leaves}; how long these jobs take is not known yet"),
        })
    }

    fn unsent(&self) -> Vec<String> {
        let action = self.action;
        let mut lines = Vec::new();
        let first = action
            .first_expires_at
            .map(|at| format!(", the first at {at}"))
            .unwrap_or_default();
        if action.expiring > 0 {
            lines.push(format!(
                "{} before {} can be sent{first}",
                verb(action.expiring, "expires", "expire"),
                pronoun(action.expiring)
            ));
        }
        if action.stuck > 0 {
            let unless = action
                .first_expires_at
                .filter(|_| action.expiring == 0)
                .map(|at| format!("; the first expires at {at}"))
                .unwrap_or_default();
            lines.push(format!(
                "{} until somebody does something{unless}{}",
                verb(action.stuck, "stays", "stay"),
                self.stuck_reason()
            ));
        }
        lines
    }
}

impl About<'_> {
    /// Why they stay, if that was not said before.
    fn stuck_reason(&self) -> String {
        let reason = self.action.stuck_reason.as_ref();
        let is_said = |reason: &&String| self.waiting().any(|waiting| waiting.reason == **reason);
        reason
            .filter(|reason| !is_said(reason))
            .map(|reason| format!(": {}", reason.trim_end_matches('.')))
            .unwrap_or_default()
    }
}

fn verb(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

fn pronoun(number: u64) -> &'static str {
    if number == 1 { "it" } else { "they" }
}

/// What is known of the servers; none if no list has shown any of them.
fn servers(mix: &PowerMix, action: &ActionForecast) -> Option<String> {
    let known = mix.on + mix.off + mix.unclear + mix.gone;
    if known == 0 && action.protected == 0 {
        return None;
    }
    let mut parts = Vec::new();
    let as_wished = |power: u64| {
        if mix.already > 0 && mix.already == power {
            " (as wished already)"
        } else {
            ""
        }
    };
    let is_off_wished = mix.action.wished_power() == crate::model::Power::Off;
    let (on_note, off_note) = if is_off_wished {
        ("", as_wished(mix.off))
    } else {
        (as_wished(mix.on), "")
    };
    for (number, what, note) in [
        (mix.on, "on", on_note),
        (mix.off, "off", off_note),
        (mix.unclear, "unclear", ""),
        (mix.gone, "gone", ""),
        (mix.unknown, "not in the list", ""),
        (mix.locked, "locked", ""),
        (action.protected, "protected (will be rejected)", ""),
    ] {
        if number > 0 {
            parts.push(format!("{number} {what}{note}"));
        }
    }
    let part = if mix.is_part {
        " of the first ones"
    } else {
        ""
    };
    Some(format!("servers{part}: {}", parts.join(", ")))
}

/// Such as `3 calls: 2 with 1000 servers, 1 with 300`.
fn sizes(calls: &[&PlannedCall]) -> String {
    let all: u64 = calls.iter().map(|call| call.servers).sum();
    let asked: u64 = calls.iter().map(|call| call.asked).sum();
    let others = if asked < all {
        format!(", {asked} of them these")
    } else {
        String::new()
    };
    if let [only] = calls {
        return format!("1 call with {}{others}", counted(only.servers, "server"));
    }
    let mut groups: Vec<(u64, u64)> = Vec::new();
    for call in calls {
        match groups
            .iter_mut()
            .find(|(servers, _)| *servers == call.servers)
        {
            Some((_, number)) => *number += 1,
            None => groups.push((call.servers, 1)),
        }
    }
    if let [(servers, _)] = groups.as_slice() {
        let each = counted(*servers, "server");
        return format!("{} calls with {each} each{others}", calls.len());
    }
    let named: Vec<String> = groups
        .iter()
        .take(SIZES_MAX)
        .map(|(servers, number)| format!("{number} with {}", counted(*servers, "server")))
        .collect();
    let more = if groups.len() > SIZES_MAX {
        ", …"
    } else {
        ""
    };
    format!(
        "{} calls with {all} servers{others} ({}{more})",
        calls.len(),
        named.join(", ")
    )
}

/// Such as ` for evac (2000), night (1000)`; empty without any label.
fn named(labels: &[LabelCount]) -> String {
    if labels.iter().all(|count| count.label.is_none()) {
        return String::new();
    }
    let named: Vec<String> = labels
        .iter()
        .take(LABELS_MAX)
        .map(|count| {
            let label = count.label.as_deref().unwrap_or("no label");
            format!("{label} ({})", count.requests)
        })
        .collect();
    let more = if labels.len() > LABELS_MAX {
        " and others"
    } else {
        ""
    };
    format!(", for {}{more}", named.join(", "))
}

fn waits(waiting: &Waiting) -> String {
    let until = match (waiting.until, waiting.cause) {
        (Some(at), _) if waiting.reason.contains(&at.to_string()) => String::new(),
        (Some(at), Cause::NotDue | Cause::Retry) => format!(", the first at {at}"),
        (Some(at), _) => format!(", until {at}"),
        (None, _) => String::new(),
    };
    format!(
        "{} ({}): {}{until}",
        verb(waiting.requests, "waits", "wait"),
        waiting.cause.as_str(),
        waiting.reason.trim_end_matches('.')
    )
}

/// A warning if requests that are about to be inserted expire before they can be sent.
pub(in crate::cli) fn expiry_warning(outlook: &Outlook) -> Option<String> {
    let forecast = &outlook.forecast;
    let is_shut = |waiting: &&Waiting| waiting.cause == Cause::Hold(HoldKind::Window);
    let shut = forecast.waiting.iter().find(is_shut);
    let mut early = 0;
    let mut first: Option<UtcMillis> = None;
    for action in &forecast.actions {
        let stuck = if shut.is_some() { action.stuck } else { 0 };
        let unsent = action.expiring + stuck;
        if unsent > 0 {
            early += unsent;
            first = first.into_iter().chain(action.first_expires_at).min();
        }
    }
    let first = first?;
    let longest = forecast.waiting.iter().max_by_key(|waiting| {
        let is_hold = !matches!(waiting.cause, Cause::NotDue | Cause::Protected);
        (is_hold, waiting.requests)
    });
    let why = longest.map(|waiting| format!(": {}", waiting.reason.trim_end_matches('.')));
    let which = if early == forecast.requests() {
        format!("these requests expire at {first}, before they can be sent")
    } else {
        format!(
            "{early} of these {} requests expire before they can be sent, the first at {first}",
            forecast.requests()
        )
    };
    let anyway = if shut.is_some() {
        ", with --override-reason they are sent anyway"
    } else {
        ""
    };
    Some(visible(&format!(
        "warning: {which}{}; with --expires-at they wait longer{anyway}",
        why.unwrap_or_default()
    )))
}

/// For `--json`.
pub(super) fn object(outlook: &Outlook, labels: &Labels) -> serde_json::Value {
    let forecast = &outlook.forecast;
    let actions: Vec<_> = forecast
        .actions
        .iter()
        .map(|action| {
            let about = About { outlook, action };
            let now = about.calls_now();
            let sizes: Vec<u64> = now.iter().map(|call| call.servers).collect();
            let asked: u64 = now.iter().map(|call| call.asked).sum();
            let key = (action.target.clone(), action.action);
            let mut object = json!(action);
            object["servers"] = json!(about.mix());
            object["now"] = json!({
                "requests": asked,
                "calls": sizes,
                "labels": labels.get(&key).cloned().unwrap_or_default(),
            });
            object["waiting"] = about
                .waiting()
                .map(|waiting| {
                    json!({
                        "requests": waiting.requests,
                        "kind": waiting.cause,
                        "reason": waiting.reason,
                        "until": waiting.until,
                    })
                })
                .collect();
            object
        })
        .collect();
    json!({
        "as_of": outlook.as_of,
        "actions": actions,
        "is_cut": forecast.is_cut,
        "config_is_known": !outlook.is_without_config,
        "gate_is_asked": outlook.has_gate,
    })
}
