//! The one line for people: what has ended, what is on its way, and what waits for what. Pure.

use std::collections::BTreeMap;

use super::{EndedCount, Glance, WaitingGroup};
use crate::model::{HoldKind, OwnCode, PowerAction, RequestState, UtcMillis};

/// Such as "In the last hour 4,940 off, 59 failed, 1 protected; 12 on their way; 430 waiting: 280 for
/// the budget until 01:49, 100 paused, 50 for a key."
pub(super) fn headline(glance: &Glance) -> String {
    let mut parts = vec![ended(glance)];
    let running = glance.count_in(RequestState::Running);
    match running {
        0 => {}
        1 => parts.push("1 on its way".to_owned()),
        running => parts.push(format!("{} on their way", grouped(running))),
    }
    parts.push(waiting(glance));
    let line = parts.join("; ");
    let mut chars = line.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => line,
    }
}

/// What is wrong, in a word or two, for the title of a window; none if nothing is.
pub(super) fn trouble(glance: &Glance) -> Option<String> {
    if glance.daemon.running == Some(false) {
        return Some("no daemon".to_owned());
    }
    let failed = sum(&glance.ended.hour, RequestState::Failed);
    let unknown = sum(&glance.ended.hour, RequestState::Unknown);
    match (failed, unknown) {
        (0, 0) => {}
        (failed, 0) => return Some(format!("{} failed", grouped(failed))),
        (0, unknown) => return Some(format!("{} unknown", grouped(unknown))),
        (failed, unknown) => {
            return Some(format!(
                "{} failed, {} unknown",
                grouped(failed),
                grouped(unknown)
            ));
        }
    }
    let words = [
        (HoldKind::Credentials, "key refused"),
        (HoldKind::Restored, "restored copy"),
        (HoldKind::Breaker, "no answer"),
        (HoldKind::UnknownTarget, "unknown target"),
        (HoldKind::Approval, "approval wanted"),
    ];
    let found = words
        .into_iter()
        .find(|(kind, _)| is_held_by(glance, *kind));
    found.map(|(_, word)| word.to_owned())
}

/// True if anything waits because of a hold of this kind.
fn is_held_by(glance: &Glance, kind: HoldKind) -> bool {
    let mut waiting = glance.waiting.iter();
    waiting.any(|group| group.kind == kind.as_str())
}

fn ended(glance: &Glance) -> String {
    let of_hour = counted_ends(&glance.ended.hour);
    if !of_hour.is_empty() {
        return format!("in the last hour {of_hour}");
    }
    let of_day = counted_ends(&glance.ended.day);
    if !of_day.is_empty() {
        return format!("in the last day {of_day}");
    }
    "nothing has ended in the last day".to_owned()
}

/// Such as "4,940 off, 59 failed, 1 protected"; empty without any end.
fn counted_ends(ended: &[EndedCount]) -> String {
    let good = PowerAction::ALL.iter().map(|action| {
        let of_action = ended.iter().filter(|count| {
            count.state == RequestState::Succeeded.as_str() && count.action == action.as_str()
        });
        (of_action.map(|count| count.count).sum(), done_word(*action))
    });
    let is_protected =
        |count: &&EndedCount| count.error_code.as_deref() == Some(OwnCode::Protected.as_str());
    let protected: i64 = ended
        .iter()
        .filter(is_protected)
        .map(|count| count.count)
        .sum();
    let bad = [
        (sum(ended, RequestState::Failed), "failed"),
        (sum(ended, RequestState::Unknown), "unknown"),
        (protected, "protected"),
        (sum(ended, RequestState::Rejected) - protected, "rejected"),
        (sum(ended, RequestState::Expired), "expired"),
        (sum(ended, RequestState::Cancelled), "cancelled"),
    ];
    let parts = good.chain(bad).filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(count, word)| format!("{} {word}", grouped(count)))
        .collect();
    parts.join(", ")
}

/// What a server is after this action.
fn done_word(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start => "on",
        PowerAction::Stop => "off",
        PowerAction::Reboot => "rebooted",
    }
}

fn sum(ended: &[EndedCount], state: RequestState) -> i64 {
    let of_state = ended.iter().filter(|count| count.state == state.as_str());
    of_state.map(|count| count.count).sum()
}

fn waiting(glance: &Glance) -> String {
    let all = glance.count_in(RequestState::Queued);
    if all == 0 {
        return "nothing waits".to_owned();
    }
    let mut by_kind: BTreeMap<&str, Vec<&WaitingGroup>> = BTreeMap::new();
    for group in &glance.waiting {
        by_kind.entry(&group.kind).or_default().push(group);
    }
    let mut parts: Vec<(i64, String)> = by_kind
        .into_iter()
        .map(|(kind, groups)| part_of_waiting(kind, &groups, glance.as_of))
        .collect();
    parts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let parts: Vec<String> = parts.into_iter().map(|(_, part)| part).collect();
    format!("{} waiting: {}", grouped(all), parts.join(", "))
}

fn part_of_waiting(kind: &str, groups: &[&WaitingGroup], now: UtcMillis) -> (i64, String) {
    let count = groups.iter().map(|group| group.count).sum();
    let words = waiting_words(kind);
    let mut ends: Vec<&str> = groups
        .iter()
        .filter_map(|group| group.until.as_deref())
        .collect();
    ends.sort_unstable();
    ends.dedup();
    let has_first = ["later", "retry"].contains(&kind) || ends.len() > 1;
    let until = match ends.first() {
        None => String::new(),
        Some(end) if has_first => format!(", the first at {}", clock(end, now)),
        Some(end) => format!(" until {}", clock(end, now)),
    };
    (count, format!("{} {words}{until}", grouped(count)))
}

/// What so many requests wait for, after their number.
fn waiting_words(kind: &str) -> &'static str {
    match kind.parse() {
        Ok(HoldKind::Operator) => "paused",
        Ok(HoldKind::Budget) => "for the budget",
        Ok(HoldKind::Credentials) => "for a key",
        Ok(HoldKind::Breaker) => "for the cloud to answer",
        Ok(HoldKind::UnknownTarget) => "for a target that the config lacks",
        Ok(HoldKind::Restored) => "since a copy was put back",
        Ok(HoldKind::Approval) => "for approval",
        Ok(HoldKind::Window) => "for a window",
        Ok(HoldKind::Wave) => "for their wave",
        Err(_) => match kind {
            "next" => "next",
            "behind" => "behind others of their servers",
            "later" => "not due yet",
            "after" => "after others",
            "retry" => "to be tried again",
            "turn" => "for their turn in their order",
            _ => "held",
        },
    }
}

/// The time of day, with the date where it is another day's.
fn clock(time: &str, now: UtcMillis) -> String {
    let today = now.to_string();
    match (time.get(..10), time.get(11..16)) {
        (Some(day), Some(clock)) if today.starts_with(day) => clock.to_owned(),
        (Some(day), Some(clock)) => format!("{day} {clock}"),
        _ => time.to_owned(),
    }
}

/// Such as `4,940`.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 {
        "-".to_owned()
    } else {
        String::new()
    };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::client::{DaemonNote, Ended, OverviewCount};

    fn ended(action: &str, state: &str, error_code: Option<&str>, count: i64) -> EndedCount {
        EndedCount {
            target: "default".to_owned(),
            action: action.to_owned(),
            state: state.to_owned(),
            error_code: error_code.map(str::to_owned),
            count,
        }
    }

    fn group(kind: &str, until: Option<&str>, count: i64) -> WaitingGroup {
        WaitingGroup {
            target: Some("default".to_owned()),
            action: Some("stop".to_owned()),
            label: None,
            kind: kind.to_owned(),
            reason: String::new(),
            until: until.map(str::to_owned),
            ends: String::new(),
            count,
        }
    }

    fn glance(hour: Vec<EndedCount>, waiting: Vec<WaitingGroup>) -> Glance {
        let queued = waiting.iter().map(|group| group.count).sum();
        Glance {
            as_of: UtcMillis(1_769_896_800_000),
            headline: String::new(),
            trouble: None,
            daemon: DaemonNote {
                running: Some(true),
                pid: None,
                since: None,
                waits: None,
            },
            queue: vec![OverviewCount {
                target: "default".to_owned(),
                action: "stop".to_owned(),
                state: "queued".to_owned(),
                count: queued,
                oldest_created_at: None,
            }],
            oldest_ready: Vec::new(),
            oldest_waiting_since: None,
            waiting,
            holds: Vec::new(),
            orders: Vec::new(),
            batches: Vec::new(),
            batches_left_out: 0,
            ended: Ended {
                counted_since: None,
                hour,
                day: Vec::new(),
                minutes: Vec::new(),
                hours: Vec::new(),
                errors: Vec::new(),
                newest_failures: Vec::new(),
            },
            targets: Vec::new(),
        }
    }

    #[test]
    fn the_line_says_what_ended_and_what_waits_for_what() {
        let glance = glance(
            vec![
                ended("stop", "succeeded", None, 4940),
                ended("stop", "failed", Some("BMS.0040"), 59),
                ended("stop", "rejected", Some("poweryard.protected"), 1),
            ],
            vec![
                group("credentials", None, 50),
                group("budget", Some("2026-01-31T22:49:00.000Z"), 280),
                group("operator", None, 100),
            ],
        );
        assert_eq!(
            headline(&glance),
            "In the last hour 4,940 off, 59 failed, 1 protected; \
             430 waiting: 280 for the budget until 22:49, 100 paused, 50 for a key."
        );
        assert_eq!(trouble(&glance).as_deref(), Some("59 failed"));
    }

    #[test]
    fn times_of_another_day_have_their_date_and_several_tell_the_first() {
        let glance = glance(
            Vec::new(),
            vec![
                group("window", Some("2026-02-01T20:00:00.000Z"), 2),
                group("later", Some("2026-01-31T23:00:00.000Z"), 1),
            ],
        );
        assert_eq!(
            headline(&glance),
            "Nothing has ended in the last day; \
             3 waiting: 2 for a window until 2026-02-01 20:00, 1 not due yet, the first at 23:00."
        );
    }

    #[test]
    fn a_daemon_that_does_not_run_is_the_first_trouble() {
        let mut gone = glance(vec![ended("stop", "failed", None, 1)], Vec::new());
        gone.daemon.running = Some(false);
        assert_eq!(trouble(&gone).as_deref(), Some("no daemon"));
        let held = glance(Vec::new(), vec![group("credentials", None, 1)]);
        assert_eq!(trouble(&held).as_deref(), Some("key refused"));
        assert_eq!(trouble(&glance(Vec::new(), Vec::new())), None);
    }

    #[test]
    fn thousands_are_set_apart() {
        let said = [0, 999, 1000, 1_234_567, -4940].map(grouped);
        assert_eq!(said, ["0", "999", "1,000", "1,234,567", "-4,940"]);
    }
}
