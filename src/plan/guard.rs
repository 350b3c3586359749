//! A guard: whether the requests that nobody has approved are too many to be sent. Pure.

use crate::model::{Budget, Crowd, Hold, HoldKind, PowerAction, TargetName, UtcMillis};

/// What a guard says of the requests of one target and action that nobody has approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardVerdict {
    /// They may be sent.
    LetsGo,
    /// They wait until somebody approves them.
    Holds {
        /// When it lets them go without that, if no other requests come; none: it does not.
        until: Option<UtcMillis>,
    },
}

/// One call in a guard's span: when, and for how many servers.
pub type GuardedCall = (UtcMillis, u32);

/// How many servers of these calls the guard still counts.
pub fn left(guard: Budget, calls: &[GuardedCall], now: UtcMillis) -> u64 {
    let counted = calls.iter().filter(|(at, _)| now.since(*at) < guard.span);
    counted.map(|(_, servers)| u64::from(*servers)).sum()
}

/// Judges `due` requests beside the calls of the span. The span rolls: a call counts until exactly
/// one span has passed.
pub fn judge(guard: Budget, due: u64, calls: &[GuardedCall], now: UtcMillis) -> GuardVerdict {
    let most = u64::from(guard.servers);
    let mut counted = left(guard, calls, now);
    if due == 0 || due + counted <= most {
        return GuardVerdict::LetsGo;
    }
    let mut calls: Vec<GuardedCall> = calls
        .iter()
        .copied()
        .filter(|(at, _)| now.since(*at) < guard.span)
        .collect();
    calls.sort_unstable();
    let mut until = None;
    for (at, servers) in calls {
        counted -= u64::from(servers);
        if due + counted <= most {
            until = Some(at + guard.span);
            break;
        }
    }
    GuardVerdict::Holds { until }
}

/// Groups that the reason of a hold names.
const NAMED_MAX: usize = 3;

/// What a hold is about.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// Of this target.
    pub target: &'a TargetName,
    /// Of this action.
    pub action: PowerAction,
    /// How many wait, counted up to some bound.
    pub due: u64,
    /// They are more than that.
    pub is_more: bool,
    /// How many left within the span.
    pub left: u64,
    /// Whose they are: the first of them, the largest groups first.
    pub crowds: &'a [Crowd],
}

/// The hold of requests that wait for approval.
pub fn hold(guard: Budget, waiting: &Waiting<'_>, since: UtcMillis) -> Hold {
    Hold {
        target: Some(waiting.target.clone()),
        action: Some(waiting.action),
        label: None,
        kind: HoldKind::Approval,
        reason: reason(guard, waiting),
        since,
        until: None,
    }
}

/// Why requests wait for approval: how many, whose, and the command that approves them.
pub fn reason(guard: Budget, waiting: &Waiting<'_>) -> String {
    let Waiting {
        action, due, left, ..
    } = *waiting;
    let span = humantime::format_duration(guard.span);
    let more = if waiting.is_more { "more than " } else { "" };
    let noun = if due == 1 { "request" } else { "requests" };
    let beside = match left {
        0 => String::new(),
        _ => format!(" after {left} in the last {span}"),
    };
    format!(
        "{more}{due} {noun} to {action}{beside}, more than guard {action} = \"{}/{span}\" lets go unapproved: {}; `{}` approves",
        guard.servers,
        whose(waiting),
        command(waiting)
    )
}

/// Such as `10000 with label evac by alice, 12 by bob`.
fn whose(waiting: &Waiting<'_>) -> String {
    let named = waiting.crowds.iter().take(NAMED_MAX);
    let mut parts: Vec<String> = named
        .map(|crowd| {
            let label = crowd.label.as_ref();
            let label = label.map_or(" without a label".to_owned(), |label| {
                format!(" with label {label}")
            });
            let who = crowd.requested_by.as_ref();
            let who = who.map(|who| format!(" by {who}")).unwrap_or_default();
            format!("{}{label}{who}", crowd.requests)
        })
        .collect();
    let all: u64 = waiting.crowds.iter().map(|crowd| crowd.requests).sum();
    if waiting.crowds.len() > NAMED_MAX || waiting.is_more || all < waiting.due {
        parts.push("and others".to_owned());
    }
    parts.join(", ")
}

/// The command that approves all of them.
fn command(waiting: &Waiting<'_>) -> String {
    let all: u64 = waiting.crowds.iter().map(|crowd| crowd.requests).sum();
    let first = waiting
        .crowds
        .first()
        .and_then(|crowd| crowd.label.as_ref());
    let is_one = waiting
        .crowds
        .iter()
        .all(|crowd| crowd.label.as_ref() == first);
    match first {
        Some(label) if is_one && all >= waiting.due && is_plain(label) => {
            format!("poweryard approve --label {label}")
        }
        _ => format!(
            "poweryard approve --target {} --action {}",
            waiting.target, waiting.action
        ),
    }
}

/// True for a word that a shell takes as it is.
fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.,:/@%+=".contains(c);
    word.starts_with(plain) && word.chars().all(|c| plain(c) || c == '-')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);
    const GUARD: Budget = Budget {
        servers: 200,
        span: Duration::from_secs(3600),
    };

    fn ago(minutes: u64) -> UtcMillis {
        NOW.before(Duration::from_secs(minutes * 60))
    }

    fn verdict(due: u64, calls: &[GuardedCall]) -> GuardVerdict {
        judge(GUARD, due, calls, NOW)
    }

    #[test]
    fn as_many_as_the_number_go_and_one_more_holds_all() {
        assert_eq!(verdict(200, &[]), GuardVerdict::LetsGo);
        assert_eq!(verdict(201, &[]), GuardVerdict::Holds { until: None });
        assert_eq!(verdict(1, &[(ago(5), 199)]), GuardVerdict::LetsGo);
        assert_eq!(verdict(0, &[(ago(5), 900)]), GuardVerdict::LetsGo);
    }

    #[test]
    fn what_left_counts_for_exactly_one_span() {
        assert_eq!(verdict(200, &[(ago(60), 150)]), GuardVerdict::LetsGo);
        let until = ago(50) + GUARD.span;
        let calls = [(ago(10), 50), (ago(50), 150)];
        assert_eq!(
            verdict(100, &calls),
            GuardVerdict::Holds { until: Some(until) }
        );
        assert_eq!(judge(GUARD, 100, &calls, until), GuardVerdict::LetsGo);
    }

    fn crowd(label: Option<&str>, who: Option<&str>, requests: u64) -> Crowd {
        Crowd {
            label: label.map(str::to_owned),
            requested_by: who.map(str::to_owned),
            requests,
        }
    }

    fn told(crowds: &[Crowd], due: u64, left: u64) -> String {
        let target = TargetName("eu".into());
        let waiting = Waiting {
            target: &target,
            action: PowerAction::Stop,
            due,
            is_more: false,
            left,
            crowds,
        };
        reason(GUARD, &waiting)
    }

    #[test]
    fn the_reason_says_how_many_whose_and_how_to_approve() {
        assert_eq!(
            told(&[crowd(Some("evac"), Some("alice"), 10_000)], 10_000, 0),
            "10000 requests to stop, more than guard stop = \"200/1h\" lets go unapproved: 10000 with label evac by alice; \
             `poweryard approve --label evac` approves"
        );
        let said = told(
            &[crowd(Some("evac"), None, 150), crowd(None, Some("bob"), 1)],
            151,
            50,
        );
        assert!(
            said.starts_with("151 requests to stop after 50 in the last 1h, more"),
            "{said}"
        );
        assert!(
            said.contains("150 with label evac, 1 without a label by bob;"),
            "{said}"
        );
        assert!(
            said.contains("`poweryard approve --target eu --action stop`"),
            "{said}"
        );
    }

    #[test]
    fn a_label_that_a_shell_would_read_otherwise_is_not_in_the_command() {
        for label in ["a b", "$(reboot)", "--yes", "`"] {
            let said = told(&[crowd(Some(label), None, 300)], 300, 0);
            assert!(said.contains("approve --target eu"), "{said}");
        }
    }

    #[test]
    fn many_groups_are_cut_to_the_largest() {
        let crowds: Vec<Crowd> = (0..5)
            .map(|n| crowd(Some(&format!("l{n}")), None, 100))
            .collect();
        let said = told(&crowds, 500, 0);
        assert!(said.contains("100 with label l2, and others;"), "{said}");
    }
}
