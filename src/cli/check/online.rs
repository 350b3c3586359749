//! What only the cloud can tell: the endpoint, this machine's clock, and whether one read call is
//! allowed. Switches nothing.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, Request};

use super::Finding;
use crate::cli::{Exit, args};
use crate::cloud::http::{Http, Wire};
use crate::cloud::{KeyName, PowerCloud};
use crate::daemon::{self, refusals, refusals::RefusedCall};
use crate::model::cloud_codes::{self, CodeOrigin};
use crate::model::{
    CallError, CodeClass, Fault, ServerId, Service, TargetName, UtcMillis, counted,
};
use crate::settings::{SecretRules, Settings, TargetSettings, load_proxy_password};
use crate::store::client::Access;
use crate::store::{QueueClient, RefusedKey};

/// Signatures are refused beyond 15 minutes (signing guide); half of that is worth a warning.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(450);
/// No server has this id, so the answer is short: that it does not exist.
const NO_SERVER: &str = "00000000-0000-0000-0000-000000000000";

/// Asks every target once. Five bad signatures in a row lock a key, so a key that was refused is
/// not tried again before its hold is over, and a refusal is counted where the daemon will find it.
pub(super) async fn findings(
    settings: &Settings,
    rules: &SecretRules,
    mut keys: Keys<'_>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for target in &settings.targets {
        let subject = format!("targets.{}", target.name);
        findings.push(endpoint(target, rules, &subject).await);
        findings.push(match daemon::connect(target, rules) {
            Ok(cloud) => read_call(&*cloud, target.service, &mut keys, &subject).await,
            Err(error) => {
                Finding::error(Exit::Config, subject, error, "fix this, then check again")
            }
        });
    }
    findings
}

/// What is known of refused keys, from the queue if there is one.
pub(super) struct Keys<'a> {
    database: &'a Path,
    refused: Vec<RefusedKey>,
}

impl<'a> Keys<'a> {
    pub(super) async fn read(database: &'a Path) -> Self {
        let refused = match QueueClient::open(database, Access::Read).await {
            Ok(mut client) => client.refused_keys().await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        Self { database, refused }
    }

    /// The refusal of this key that still holds, and what to do about it; none if the key may be
    /// tried.
    pub(super) fn refusal(&self, key: &KeyName, now: UtcMillis) -> Option<(String, String)> {
        if let Some(refused) = refusals::own_refusal(key, &self.refused, now) {
            let times = counted(refused.refusals, "time");
            let finding = format!("its key was refused {times} in a row ({})", refused.reason);
            let fix = format!(
                "fix the key, or wait until {}; otherwise the cloud may lock it",
                refused.until
            );
            return Some((finding, fix));
        }
        let (until, reason) = refusals::rest(key, &self.refused, now)?;
        Some((reason, format!("wait until {until}")))
    }

    async fn note(&mut self, cloud: &dyn PowerCloud, subject: &str, reason: &str, now: UtcMillis) {
        let target = TargetName(subject.trim_start_matches("targets.").to_owned());
        let refusal = RefusedCall {
            signed: &cloud.key().signed(),
            target: &target,
            reason,
        };
        let refused = refusals::after_refusal(refusal, &self.refused, now);
        if let Ok(mut client) = QueueClient::open(self.database, Access::Write).await {
            // If this fails, the daemon starts its count at zero.
            let _ = client.note_refused_key(&refused).await;
        }
        self.refused
            .retain(|other| !refusals::is_of(other, cloud.key().name()));
        self.refused.push(refused);
    }
}

/// One call without credentials: any answer will do, and its `Date` shows how far off this
/// machine's clock is.
async fn endpoint(target: &TargetSettings, rules: &SecretRules, subject: &str) -> Finding {
    let subject = format!("{subject}.endpoint");
    // Without the password the proxy says what is missing; a problem of the file is reported
    // elsewhere.
    let proxy_password = load_proxy_password(target, rules).ok().flatten();
    let http = match Http::new(target, proxy_password.as_ref()) {
        Ok(http) => http,
        Err(error) => {
            return Finding::error(Exit::Config, subject, error, "fix the target's settings");
        }
    };
    match http
        .send(Request::new(Method::GET, target.endpoint.clone()))
        .await
    {
        Err(error) => unreachable_endpoint(&subject, &error),
        Ok(answer) => {
            let date = answer
                .headers
                .get("date")
                .and_then(|date| date.to_str().ok())
                .and_then(http_date);
            clock(subject, date, args::now())
        }
    }
}

fn unreachable_endpoint(subject: &str, error: &CallError) -> Finding {
    Finding::error(
        Exit::Config,
        subject,
        error,
        "check the address, the proxy, ca_file and the network",
    )
}

/// Such as `Wed, 21 Oct 2015 07:28:00 GMT`.
fn http_date(text: &str) -> Option<UtcMillis> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    Some(UtcMillis(time.as_millisecond()))
}

fn clock(subject: String, cloud: Option<UtcMillis>, now: UtcMillis) -> Finding {
    let Some(cloud) = cloud else {
        return Finding::ok(
            subject,
            "answers; the answer has no time to compare this machine's clock with",
        );
    };
    let off = cloud.since(now).max(now.since(cloud));
    // The cloud's clock has whole seconds.
    let shown = humantime::format_duration(Duration::from_secs(off.as_secs()));
    if off > CLOCK_OFF_MAX {
        let finding = format!(
            "answers; this machine's clock is wrong by {shown}, and signatures fail from 15 minutes on"
        );
        return Finding::error(
            Exit::Config,
            subject,
            finding,
            "set the clock, for example with `timedatectl set-ntp true`",
        );
    }
    Finding::ok(
        subject,
        format!("answers; this machine's clock differs by {shown}"),
    )
}

/// One read call with the target's credentials.
async fn read_call(
    cloud: &dyn PowerCloud,
    service: Service,
    keys: &mut Keys<'_>,
    subject: &str,
) -> Finding {
    let key = cloud.key();
    if let Some((finding, fix)) = keys.refusal(key.name(), args::now()) {
        return Finding::error(Exit::Config, subject, format!("not asked: {finding}"), fix);
    }
    // One signature only, as for a key that was refused before: without a queue, checks in a row
    // are not counted.
    key.set_one_proof_a_call(true);
    let server = ServerId(NO_SERVER.to_owned());
    let shown = cloud
        .observe(std::slice::from_ref(&server))
        .await
        .and_then(|mut observed| observed.failures.remove(&server).map_or(Ok(()), Err));
    match shown {
        Ok(()) => Finding::ok(subject, "a read call was accepted"),
        Err(error) if says_no_such_server(service, &error) => {
            Finding::ok(subject, "a read call was accepted")
        }
        Err(error) => {
            if error.fault == Fault::Credentials {
                let reason = format!("the cloud refuses the credentials: {error}");
                keys.note(cloud, subject, &reason, args::now()).await;
            }
            Finding::error(Exit::Config, subject, &error, fix_for(&error.fault))
        }
    }
}

/// How CloudDC says that a server does not exist is not documented; only the shape of its refusals
/// is. A refusal of that shape, with a code that is not the gateway's, shows that the call reached
/// the service.
fn says_no_such_server(service: Service, error: &CallError) -> bool {
    let is_its_own =
        !error.code.is_empty() && cloud_codes::origin(&error.code) == CodeOrigin::Unknown;
    let is_refused =
        error.fault == Fault::Refused(CodeClass::Other) && matches!(error.status, Some(400 | 404));
    !service.documents_its_refusals() && is_its_own && is_refused
}

fn fix_for(fault: &Fault) -> &'static str {
    match fault {
        Fault::Unreachable => "check the address, the proxy, ca_file and the network",
        Fault::Throttled { .. } | Fault::Unavailable | Fault::Lost => "try again later",
        Fault::Credentials => {
            "check the key or password, the IAM endpoint and the clock; five refusals in a row lock a key"
        }
        Fault::Permission => {
            "give these credentials permission to list and switch servers in this project"
        }
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
        let level = |seconds| {
            clock(
                "t".to_owned(),
                Some(now.before(Duration::from_secs(seconds))),
                now,
            )
            .level
        };
        assert_eq!([level(3), level(600)], [Level::Ok, Level::Error]);
        assert_eq!(clock("t".to_owned(), None, now).level, Level::Ok);
    }

    #[test]
    fn an_http_date_reads() {
        assert_eq!(
            http_date("Thu, 01 Jan 1970 00:00:05 GMT"),
            Some(UtcMillis(5000))
        );
    }

    #[test]
    fn a_refusal_in_the_services_own_words_is_an_answer_and_any_other_is_not() {
        let refused = |service, status, code: &str, class| {
            let (fault, code, message) =
                (Fault::Refused(class), code.to_owned(), "text".to_owned());
            says_no_such_server(
                service,
                &CallError {
                    fault,
                    status: Some(status),
                    code,
                    message,
                    request_id: None,
                    retry_after: None,
                },
            )
        };
        let clouddc = |status, code, class| refused(Service::CloudDc, status, code, class);
        assert!(
            clouddc(400, "CloudDC.0001", CodeClass::Other)
                && clouddc(404, "CloudDC.0001", CodeClass::Other)
        );
        assert!(!clouddc(400, "", CodeClass::Other), "a proxy's");
        assert!(
            !clouddc(400, "APIGW.9999", CodeClass::Other)
                && !clouddc(413, "x", CodeClass::BatchInvalid)
        );
        assert!(
            !refused(Service::Bms, 400, "BMS.9999", CodeClass::Other),
            "its code for this is documented"
        );
    }
}
