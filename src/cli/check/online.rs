//! What only the cloud can tell: the endpoint, this machine's clock, and whether one read call is allowed. Switches nothing.

use std::time::Duration;

use reqwest::{Method, Request};

use super::Finding;
use crate::cli::{Exit, args};
use crate::cloud::http::{Http, Wire};
use crate::cloud::{CallError, Fault};
use crate::daemon;
use crate::model::{HoldKind, ServerId, UtcMillis};
use crate::settings::{AuthSettings, SecretRules, Settings, TargetSettings};
use crate::store::desk::HoldRecord;

/// Signatures are refused beyond 15 minutes (signing guide); half of that is worth a word.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(450);
/// No server has this id, so the answer is short: that it does not exist.
const NO_SERVER: &str = "00000000-0000-0000-0000-000000000000";

/// Asks every target once. Five bad signatures in a row lock a key, so a key that was refused is not tried again.
pub(super) async fn findings(settings: &Settings, rules: &SecretRules, holds: &[HoldRecord]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut refused: Vec<&AuthSettings> = Vec::new();
    for target in &settings.targets {
        let subject = format!("targets.{}", target.name);
        findings.push(endpoint(target, &subject).await);
        if refused.contains(&&target.auth) {
            findings.push(Finding::warning(
                subject,
                "not asked: its key was just refused for another target",
                "mend that key first",
            ));
            continue;
        }
        if let Some(hold) = credentials_hold(holds, target) {
            let mend = "wait until the hold is over, so that the cloud does not lock the key";
            findings.push(Finding::warning(
                subject,
                format!("not asked: its credentials are held ({})", hold.reason),
                mend,
            ));
            continue;
        }
        let (finding, fault) = read_call(target, rules, &subject).await;
        if fault == Some(Fault::Credentials) {
            refused.push(&target.auth);
        }
        findings.push(finding);
    }
    findings
}

fn credentials_hold<'a>(holds: &'a [HoldRecord], target: &TargetSettings) -> Option<&'a HoldRecord> {
    let held = |hold: &&HoldRecord| hold.target.as_deref().is_none_or(|held| held == target.name.0);
    holds.iter().filter(held).find(|hold| hold.kind == HoldKind::Credentials.as_str())
}

/// One call without credentials: any answer will do, and its `Date` shows how far off this machine's clock is.
async fn endpoint(target: &TargetSettings, subject: &str) -> Finding {
    let subject = format!("{subject}.endpoint");
    let http = match Http::new(target) {
        Ok(http) => http,
        Err(error) => return Finding::error(Exit::Config, subject, error, "mend the target's settings"),
    };
    match http.send(Request::new(Method::GET, target.endpoint.clone())).await {
        Err(error) => unreachable_endpoint(&subject, &error),
        Ok(answer) => {
            let date = answer.headers.get("date").and_then(|date| date.to_str().ok()).and_then(http_date);
            clock(subject, date, args::now())
        }
    }
}

fn unreachable_endpoint(subject: &str, error: &CallError) -> Finding {
    Finding::error(Exit::Config, subject, error, "check the address, the proxy, ca_file and the network")
}

/// Such as `Wed, 21 Oct 2015 07:28:00 GMT`.
fn http_date(text: &str) -> Option<UtcMillis> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(UtcMillis(time.as_millisecond()))
}

fn clock(subject: String, cloud: Option<UtcMillis>, now: UtcMillis) -> Finding {
    let Some(cloud) = cloud else { return Finding::ok(subject, "answers; it does not tell the time") };
    let off = cloud.since(now).max(now.since(cloud));
    // The cloud tells whole seconds.
    let shown = humantime::format_duration(Duration::from_secs(off.as_secs()));
    if off > CLOCK_OFF_MAX {
        let finding = format!("answers; this machine's clock is {shown} off, and signatures fail at 15 minutes");
        return Finding::error(Exit::Config, subject, finding, "set the clock, by NTP for example");
    }
    Finding::ok(subject, format!("answers; this machine's clock is {shown} off"))
}

/// One read call with the target's credentials.
async fn read_call(target: &TargetSettings, rules: &SecretRules, subject: &str) -> (Finding, Option<Fault>) {
    let cloud = match daemon::connect(target, rules) {
        Ok(cloud) => cloud,
        Err(error) => return (Finding::error(Exit::Config, subject, error, "mend it, then check again"), None),
    };
    match cloud.observe(&[ServerId(NO_SERVER.to_owned())]).await {
        Ok(_) => (Finding::ok(subject, "a read call was allowed"), None),
        Err(error) => {
            let mend = mend(&error.fault);
            (Finding::error(Exit::Config, subject, &error, mend), Some(error.fault))
        }
    }
}

fn mend(fault: &Fault) -> &'static str {
    match fault {
        Fault::Unreachable => "check the address, the proxy, ca_file and the network",
        Fault::Throttled { .. } | Fault::Unavailable | Fault::Lost => "try again a little later",
        Fault::Credentials => {
            "check the key or password, the IAM endpoint and the clock; five refusals in a row lock a key"
        }
        Fault::Permission => "give these credentials the right to list and switch servers in this project",
        Fault::Configuration | Fault::Refused(_) => "check service, endpoint and project_id",
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_clock_that_signatures_would_not_bear_is_an_error() {
        let now = UtcMillis(1_000_000_000);
        let level = |seconds| clock("t".to_owned(), Some(now.before(Duration::from_secs(seconds))), now).level;
        assert_eq!([level(3), level(600)], [Level::Ok, Level::Error]);
        assert_eq!(clock("t".to_owned(), None, now).level, Level::Ok);
    }

    #[test]
    fn an_http_date_reads() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:05 GMT"), Some(UtcMillis(5000)));
    }
}
