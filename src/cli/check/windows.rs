//! What `check` says about a target's windows, freezes and guards. Reads nothing but the settings.

use std::time::Duration;

use super::{Finding, span};
use crate::model::{PowerAction, UtcMillis};
use crate::plan::windows::{Freeze, Span, WindowState};
use crate::settings::TargetSettings;

/// In plain words; warnings where requests would wait in vain.
pub(super) fn findings(
    target: &TargetSettings,
    default_ttl: Option<Duration>,
    now: UtcMillis,
) -> Vec<Finding> {
    let subject = format!("targets.{}", target.name);
    let mut findings = Vec::new();
    for (action, spans) in &target.windows.spans {
        let subject = format!("{subject}.window.{action}");
        findings.push(Finding::ok(&subject, window(target, *action, spans, now)));
        findings.extend(rare_opening(&subject, target, *action, default_ttl, now));
    }
    for freeze in &target.windows.freezes {
        findings.push(frozen(
            &format!("{subject}.window.freeze"),
            freeze,
            default_ttl,
            now,
        ));
    }
    for (action, guard) in &target.guards {
        let finding = format!(
            "if more than {} requests to {action} that nobody has approved are due, or were sent, within {}, they wait for \
             `poweryard approve`",
            guard.servers,
            span(guard.span)
        );
        findings.push(Finding::ok(format!("{subject}.guard.{action}"), finding));
    }
    findings
}

/// When an action is sent, and what is the case now.
fn window(target: &TargetSettings, action: PowerAction, spans: &[Span], now: UtcMillis) -> String {
    let spans: Vec<String> = spans.iter().map(Span::to_string).collect();
    let state = match target.windows.state(action, now) {
        WindowState::Open { until: None } => "open now".to_owned(),
        WindowState::Open { until: Some(until) } => format!("open now, until {until}"),
        WindowState::Closed { why, .. } => format!("closed now: {why}"),
    };
    format!("{action} is sent only {}; {state}", spans.join(", or "))
}

/// A window that is closed for longer than a request waits, or for a year.
fn rare_opening(
    subject: &str,
    target: &TargetSettings,
    action: PowerAction,
    default_ttl: Option<Duration>,
    now: UtcMillis,
) -> Option<Finding> {
    if let WindowState::Closed { until: None, .. } = target.windows.state(action, now) {
        let fix = "correct the spans or the freeze";
        return Some(Finding::warning(
            subject,
            "it does not open within a year",
            fix,
        ));
    }
    let ttl = default_ttl?;
    let (from, lasts) = target.windows.longest_closure(action, now)?;
    let finding = format!(
        "it is closed for {} from {from} on; requests without expires_at expire after {} (queue.default_ttl)",
        span(lasts),
        span(ttl)
    );
    let fix = "set queue.default_ttl to more than that, or give such requests an expires_at";
    (lasts >= ttl).then(|| Finding::warning(subject, finding, fix))
}

fn frozen(
    subject: &str,
    freeze: &Freeze,
    default_ttl: Option<Duration>,
    now: UtcMillis,
) -> Finding {
    if freeze.is_over(now) {
        return Finding::warning(subject, format!("{freeze} is over"), "remove it");
    }
    let expire = match default_ttl {
        Some(ttl) if freeze.length() >= ttl => {
            format!(
                "; requests without expires_at expire after {}, even in it",
                span(ttl)
            )
        }
        _ => String::new(),
    };
    Finding::ok(
        subject,
        format!("no stop and no reboot is sent on {freeze}{expire}"),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Level;
    use super::*;
    use crate::settings::Settings;

    /// What is found with these windows, at noon of a Thursday.
    fn found(lines: &str) -> Vec<(Level, String)> {
        let text = format!(
            "[targets.default]\nservice = \"bms\"\nendpoint = \"https://bms.example.com\"\nproject_id = \"p\"\n\
             [targets.default.auth]\nkind = \"aksk\"\naccess_key_file = \"a\"\nsecret_key_file = \"s\"\n{lines}"
        );
        let settings = Settings::parse(&text, Path::new("test.toml")).expect("a valid config");
        let now = "2026-11-26T12:00:00Z".parse().expect("a time");
        findings(&settings.targets[0], settings.queue.default_ttl, now)
            .into_iter()
            .map(|found| (found.level, found.finding))
            .collect()
    }

    #[test]
    fn windows_and_guards_are_told_in_plain_words() {
        let said = found(
            "[targets.default.window]\nstop = [\"20:00-06:00 Europe/Berlin\"]\n[targets.default.guard]\nstop = \"200/1h\"\n",
        );
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said.iter().all(|(level, _)| *level == Level::Ok),
            "{said:?}"
        );
        assert!(
            said[0]
                .1
                .contains("stop is sent only 20:00-06:00 Europe/Berlin; closed now: "),
            "{said:?}"
        );
        assert!(
            said[1].1.contains("more than 200 requests to stop"),
            "{said:?}"
        );
    }

    #[test]
    fn a_window_that_opens_too_rarely_is_warned_about() {
        for (spans, part) in [
            ("Sat 20:00-24:00", "it is closed for 6days 20h from"),
            (
                "00:00-24:00\"]\nfreeze = [\"2026-01-01..2028-12-31",
                "does not open within a year",
            ),
        ] {
            let said = found(&format!("[targets.default.window]\nstop = [\"{spans}\"]\n"));
            assert_eq!(said[1].0, Level::Warning, "{said:?}");
            assert!(said[1].1.contains(part), "{said:?}");
        }
    }

    #[test]
    fn a_freeze_that_is_over_is_to_be_removed() {
        let said = found(
            "[targets.default.window]\nfreeze = [\"2026-11-25\", \"2026-11-26..2026-11-28\"]\n",
        );
        assert_eq!(said[0].0, Level::Warning);
        assert!(
            said[1].1.contains("expire after 1day, even in it"),
            "{said:?}"
        );
    }
}
