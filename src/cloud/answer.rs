//! What an HTTP answer that is not the expected one means: status, headers and body in, a classed
//! `CallError` out.
//!
//! Owns the classing of answers and the shapes of error bodies. Pure: sends nothing and reads no
//! clock. The meaning of a code is in `codes`; what the daemon does about a fault is decided
//! elsewhere.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::complaint::{FoundComplaint, find_complaint};
use super::encoding::{self, TooLarge, named_encodings};
use super::http::{Room, doubt};
use super::lenient;
use super::text::{MESSAGE_CHARS_MAX, cap, tidy};
use crate::model::cloud_codes::{self, CodeOrigin};
use crate::model::{CallError, CodeClass, Fault, Service, UtcMillis};

/// Error bodies longer than this are not searched for a code.
const ERROR_BODY_BYTES_MAX: usize = 256 * 1024;

/// A body without structure counts as a sentence up to this length.
const BARE_TEXT_BYTES_MAX: usize = 2000;

/// A clock that differs this much from the cloud's is mentioned; from 15 minutes on the cloud
/// refuses (API Request Signing Guide).
const CLOCK_SKEW_MIN: Duration = Duration::from_secs(5 * 60);

/// May the call have changed something?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// It only reads, so after a doubtful answer the call is simply repeated.
    Read,
    /// It switches servers, so a doubtful answer is `Fault::Lost`.
    Submit,
}

/// A whole HTTP answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers as received.
    pub headers: HeaderMap,
    /// The body, complete.
    pub body: Vec<u8>,
    /// The room that it takes among the answers in memory; none for one that is not counted.
    pub room: Option<Arc<Room>>,
}

impl Answer {
    /// The answer as it was meant, once its `Content-Encoding` is undone; none if its body would
    /// then be longer than `bytes_max`.
    pub fn decoded(mut self, bytes_max: usize) -> Option<Self> {
        match encoding::decode(&mut self.headers, self.body, bytes_max) {
            Ok(body) => Some(Self { body, ..self }),
            Err(TooLarge) => None,
        }
    }

    /// True for 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body of a success, read as `T`; none if this is not a success, or its body is not an
    /// object or not a `T`.
    pub(crate) fn success<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        // The parser would also accept an array as an object, with its elements as the fields in
        // order.
        let is_object = self.is_success() && lenient::first_character(&self.body) == Some('{');
        if is_object {
            lenient::read(&self.body)
        } else {
            None
        }
    }

    /// Why this answer is not the expected one. Works for every answer, also for a success that
    /// could not be read.
    ///
    /// A documented code decides, regardless of the status; without one the status decides, and
    /// doubt after a submit is `Lost`. `now` is this machine's time, for `Retry-After` dates and
    /// for naming a wrong clock.
    pub fn error(&self, kind: CallKind, now: UtcMillis) -> CallError {
        self.error_of(Service::Bms, kind, now)
    }

    /// As `error`, for an answer of `service`: a code is documented for some services only.
    pub fn error_of(&self, service: Service, kind: CallKind, now: UtcMillis) -> CallError {
        let found = self.complaint();
        let code = found
            .as_ref()
            .map(|found| found.code.clone())
            .unwrap_or_default();
        let code = if code == self.status.to_string() {
            String::new()
        } else {
            code
        };
        let fault = self.fault(service, found.as_ref(), &code, kind, now);
        let mut message = self.message(found.as_ref());
        if let Some(skew) = self.clock_skew(&fault, &message, now) {
            message = format!(
                "{} ({skew})",
                cap(&message, MESSAGE_CHARS_MAX - skew.len() - 3)
            );
        }
        let request_id = self.request_id(found.as_ref());
        let retry_after = self.retry_after(now);
        CallError {
            fault,
            status: Some(self.status),
            code,
            message,
            request_id,
            retry_after,
        }
    }

    /// The complaint in the body, if the body is JSON in one of the clouds' error shapes.
    fn complaint(&self) -> Option<FoundComplaint> {
        if self.body.len() > ERROR_BODY_BYTES_MAX {
            return None;
        }
        find_complaint(&lenient::read(&self.body)?)
    }

    fn fault(
        &self,
        service: Service,
        found: Option<&FoundComplaint>,
        code: &str,
        kind: CallKind,
        now: UtcMillis,
    ) -> Fault {
        if (300..400).contains(&self.status) || self.wants_tls() {
            return Fault::Configuration;
        }
        // A firewall may block the answer as well as the call, so it is not certain that nothing
        // was carried out.
        if self.status == 403 && self.is_from_between(found) {
            return doubt(kind);
        }
        let throttled = || Fault::Throttled {
            retry_after: self.retry_after(now),
            limit: named_limit(found.map_or(&self.bare_text(), |found| &found.message)),
        };
        match cloud_codes::documented_for(service, code, Some(self.status)) {
            Some(known) if known.throttles => throttled(),
            Some(known) if known.class == CodeClass::Retryable && self.status == 429 => throttled(),
            Some(known) if known.class != CodeClass::Other => match kind {
                CallKind::Submit => submit_fault(known.class, known.origin, self.status, code),
                CallKind::Read => read_fault(known.class, self.status, code),
            },
            Some(_) | None if self.status == 429 => throttled(),
            // The cloud asks to wait before the next read, for whatever reason.
            Some(_) | None
                if self.status == 503
                    && kind == CallKind::Read
                    && self.retry_after(now).is_some() =>
            {
                throttled()
            }
            // The service itself refuses. Judged by the status alone it would be about the key or
            // the address, but it may be about one server.
            Some(_) | None if kind == CallKind::Submit && self.is_refusal_of(service, code) => {
                Fault::Refused(CodeClass::Other)
            }
            Some(_) | None => {
                let explained = found.is_some() && cloud_codes::origin(code) != CodeOrigin::Gateway;
                fault_by_status(self.status, explained, kind)
            }
        }
    }

    /// True for an answer with a code of `service` itself, under a status that does not fit it: the
    /// documents warn that the status may be wrong, and a success carries no code.
    fn is_refusal_of(&self, service: Service, code: &str) -> bool {
        let speaks =
            service.documents_its_refusals() && cloud_codes::origin(code) == CodeOrigin::Bms;
        speaks
            && (self.is_success() || matches!(self.status, 403 | 405 | 406 | 410 | 415 | 421 | 426))
    }

    fn message(&self, found: Option<&FoundComplaint>) -> String {
        if self.wants_tls() {
            return "the endpoint speaks TLS; write https:// instead of http://".to_owned();
        }
        if self.status == 407 {
            return "a proxy answered, not the cloud: it requires a user name and a password; set \
             proxy = \"http://user@...\" and proxy_password_file"
                .to_owned();
        }
        if matches!(self.status, 403 | 502..=504) && self.is_from_between(found) {
            return "a proxy, firewall or gateway answered, not the cloud".to_owned();
        }
        let text = match found {
            Some(found) => Some(tidy(&found.message)),
            None if self.status == 429 => Some(self.bare_text()),
            None => None,
        };
        let text = text.filter(|text| !text.is_empty());
        text.unwrap_or_else(|| {
            let what = match lenient::first_character(&self.body) {
                _ if (300..400).contains(&self.status) => {
                    "redirects are not followed; check the endpoint"
                }
                None => "the answer is empty",
                Some('<') => "the answer is an HTML page, not the service's",
                Some('{') if self.is_success() => "the answer does not contain what was asked for",
                Some('{' | '[') => "the answer gives no reason",
                Some(_) => return self.unreadable(),
            };
            what.to_owned()
        })
    }

    /// True for the page of a proxy, a firewall or a load balancer: not a complaint of the service,
    /// but a page, a text, or headers that only they set. An empty answer may be the cloud's own.
    fn is_from_between(&self, found: Option<&FoundComplaint>) -> bool {
        const HEADERS: [&str; 4] = [
            "via",
            "proxy-authenticate",
            "proxy-connection",
            "x-squid-error",
        ];
        const SERVERS: [&str; 5] = ["squid", "proxy", "zscaler", "fortinet", "firewall"];
        if found.is_some() {
            return false;
        }
        // A bare string in quotes is the service's: CloudDC's 429 is documented so.
        let is_page = lenient::first_character(&self.body)
            .is_some_and(|first| !matches!(first, '{' | '[' | '"'));
        let server = self
            .header("server")
            .unwrap_or_default()
            .to_ascii_lowercase();
        let has_marks = HEADERS.iter().any(|name| self.headers.contains_key(*name));
        is_page || has_marks || SERVERS.iter().any(|name| server.contains(name))
    }

    /// True for the page by which the usual web servers answer plain HTTP on a port for TLS. Such a
    /// server has not read the call.
    fn wants_tls(&self) -> bool {
        const SAID: [&str; 3] = [
            "sent to HTTPS port",
            "an HTTP request to an HTTPS server",
            "plain HTTP to an SSL-enabled server",
        ];
        if self.status != 400 || self.body.len() > BARE_TEXT_BYTES_MAX {
            return false;
        }
        let text = String::from_utf8_lossy(&self.body);
        SAID.iter().any(|words| text.contains(words))
    }

    fn unreadable(&self) -> String {
        let encodings = named_encodings(&self.headers);
        if encodings.is_empty() {
            "the answer is not JSON".to_owned()
        } else {
            tidy(&format!(
                "the answer cannot be decompressed (Content-Encoding: {})",
                encodings.join(", ")
            ))
        }
    }

    /// The body as one text, if it is neither a document nor long: CloudDC's 429 is documented as a
    /// bare string.
    fn bare_text(&self) -> String {
        if self.body.len() > BARE_TEXT_BYTES_MAX {
            return String::new();
        }
        let text = String::from_utf8_lossy(&self.body);
        let text = text.trim();
        if text.starts_with(['<', '{', '[']) {
            return String::new();
        }
        let unquoted: Option<String> = serde_json::from_str(text).ok();
        tidy(unquoted.as_deref().unwrap_or(text))
    }

    fn request_id(&self, found: Option<&FoundComplaint>) -> Option<String> {
        let header = self.header("x-request-id").map(str::to_owned);
        let id = header.or_else(|| found.and_then(|found| found.request_id.clone()))?;
        Some(cap(&tidy(&id), 64)).filter(|id| !id.is_empty())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    }

    fn date(&self) -> Option<UtcMillis> {
        http_date(self.header("date")?)
    }

    /// `Retry-After` as a span: seconds, or a date measured against the answer's own `Date`, else
    /// against `now`.
    fn retry_after(&self, now: UtcMillis) -> Option<Duration> {
        let text = self.header("retry-after")?;
        seconds(text).or_else(|| Some(http_date(text)?.since(self.date().unwrap_or(now))))
    }

    /// Says how far this machine's clock differs, if credentials or a date were refused and it is
    /// more than 5 minutes.
    fn clock_skew(&self, fault: &Fault, message: &str, now: UtcMillis) -> Option<String> {
        let text = message.to_ascii_lowercase();
        let about_time = ["sdk-date", "timestamp", "expired"]
            .iter()
            .any(|word| text.contains(word));
        if *fault != Fault::Credentials && !(about_time && self.status >= 400) {
            return None;
        }
        let cloud = self.date()?;
        let (off, direction) = if cloud > now {
            (cloud.since(now), "behind")
        } else {
            (now.since(cloud), "ahead of")
        };
        let minutes = off.as_secs() / 60;
        (off > CLOCK_SKEW_MIN)
            .then(|| format!("this machine's clock is {minutes} minutes {direction} the cloud's"))
    }
}

/// What a documented code means as the answer to a submit.
fn submit_fault(class: CodeClass, origin: CodeOrigin, status: u16, code: &str) -> Fault {
    match class {
        CodeClass::Retryable => match origin {
            CodeOrigin::Gateway | CodeOrigin::Iam => Fault::Unavailable,
            // The job engine has already made a task: look before sending again.
            CodeOrigin::JobEngine => Fault::Refused(CodeClass::RetryableUncertain),
            CodeOrigin::Bms | CodeOrigin::Unknown => Fault::Refused(CodeClass::Retryable),
        },
        // A job or its parts cannot be the answer to a submit, unless one was made.
        CodeClass::Ambiguous | CodeClass::JobUnknown | CodeClass::SubJobFailed => Fault::Lost,
        _ => certain_fault(class, status, code),
    }
}

/// What a documented code means as the answer to a read.
fn read_fault(class: CodeClass, status: u16, code: &str) -> Fault {
    match class {
        CodeClass::Retryable | CodeClass::RetryableUncertain | CodeClass::Ambiguous => {
            Fault::Unavailable
        }
        _ => certain_fault(class, status, code),
    }
}

/// The classes that mean the same after any call.
fn certain_fault(class: CodeClass, status: u16, code: &str) -> Fault {
    match class {
        CodeClass::AuthToken => Fault::Credentials,
        // Locked accounts and wrong passwords come as 401: they are about the key, not about what
        // it may do.
        CodeClass::AuthPermission if status == 401 => Fault::Credentials,
        // The token's project is not the URL's.
        CodeClass::AuthPermission if code.eq_ignore_ascii_case("Common.0018") => {
            Fault::Configuration
        }
        CodeClass::AuthPermission => Fault::Permission,
        CodeClass::ConfigPermanent => Fault::Configuration,
        CodeClass::Retryable
        | CodeClass::RetryableUncertain
        | CodeClass::Ambiguous
        | CodeClass::ServerBusy
        | CodeClass::AlreadyInTargetState
        | CodeClass::ServerPermanent
        | CodeClass::ServerFailed
        | CodeClass::BatchInvalid
        | CodeClass::JobUnknown
        | CodeClass::SubJobFailed
        | CodeClass::Other => Fault::Refused(class),
    }
}

/// Without a documented code: what the status alone means. `explained`: the body is a complaint of
/// the service.
fn fault_by_status(status: u16, explained: bool, kind: CallKind) -> Fault {
    let doubt = doubt(kind);
    match status {
        401 => Fault::Credentials,
        403 => Fault::Permission,
        404 if explained => Fault::Refused(CodeClass::Other),
        404 | 405 | 406 | 407 | 410 | 415 | 421 | 426 => Fault::Configuration,
        408 | 425 => doubt,
        413 | 414 | 431 | 494 => Fault::Refused(CodeClass::BatchInvalid),
        400..500 => Fault::Refused(CodeClass::Other),
        _ => doubt,
    }
}

/// True when refused credentials may be renewed and tried once more: not when the key or the
/// account is locked, and not when the code says that they are wrong for good.
pub fn worth_renewing(error: &CallError) -> bool {
    let text = error.message.to_ascii_lowercase();
    let locked = ["reach the limit", "locked", "frozen", "disabled"]
        .iter()
        .any(|word| text.contains(word));
    error.fault == Fault::Credentials
        && !locked
        && cloud_codes::class(&error.code) != CodeClass::AuthPermission
}

/// `limit:50,time:1 minute` in a gateway's text: this many calls in this time.
///
/// Source: API Request Signing Guide; texts of public logs have a blank after the comma.
fn named_limit(text: &str) -> Option<(u32, Duration)> {
    let (_, rest) = text.split_once("limit:")?;
    let (calls, rest) = leading_number(rest)?;
    let (_, rest) = rest.split_once("time:")?;
    let (count, unit) = leading_number(rest)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let seconds = [
        ("second", 1),
        ("minute", 60),
        ("hour", 3600),
        ("day", 86_400),
    ]
    .iter()
    .find_map(|(word, seconds)| unit.starts_with(word).then_some(*seconds))?;
    let span = Duration::from_secs(u64::from(count.max(1)) * seconds);
    Some((calls, span))
}

fn leading_number(text: &str) -> Option<(u32, &str)> {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Whole seconds; some write a fraction or the unit behind them. A number that is too large counts
/// as the longest time.
fn seconds(text: &str) -> Option<Duration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let fraction_end = rest
        .find(|c: char| c != '.' && !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let unit = rest[fraction_end..].trim().to_ascii_lowercase();
    if whole.is_empty() || !matches!(unit.as_str(), "" | "s" | "sec" | "second" | "seconds") {
        return None;
    }
    Some(Duration::from_secs(whole.parse().unwrap_or(u64::MAX)))
}

/// An HTTP date such as `Wed, 21 Oct 2015 07:28:00 GMT`, or in one of the two older forms that are
/// still to be read. Source: RFC 9110, 5.6.7.
fn http_date(text: &str) -> Option<UtcMillis> {
    const OLDER: [&str; 2] = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    if let Ok(time) = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text) {
        return Some(UtcMillis(time.as_millisecond()));
    }
    let time = OLDER
        .iter()
        .find_map(|form| jiff::civil::DateTime::strptime(form, text).ok())?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?;
    Some(UtcMillis(time.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests;
