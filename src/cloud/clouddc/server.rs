//! Reads what CloudDC shows of physical servers: one, or a page of the list. Pure: bytes in, values
//! out.
//!
//! Owns the reading of states from `power_state` and `operation_state`. Does not say what a state
//! means for a request; in particular not whether an operation that has ended is the requested one.

use serde::{Deserialize, Deserializer};

use super::marker;
use crate::cloud::answer::{Answer, CallKind};
use crate::cloud::complaint::server_complaint;
use crate::cloud::lenient;
use crate::cloud::looking::{Listed, Page};
use crate::cloud::objects::{an_object, each_object};
use crate::cloud::text::{Text, kept_word};
use crate::model::cloud_codes::{self, CodeOrigin};
use crate::model::{
    Activity, CallError, CodeClass, Complaint, Fault, JobStatus, Operation, Power, PowerAction,
    ServerId, ServerView, Service, Sighting, UtcMillis,
};

/// A page of the list, and the marker of the next. Entries without an id are left out.
///
/// # Errors
/// `Unavailable` for a success that is not JSON or has no `servers`: an unreadable list shows
/// nobody missing.
pub fn read_list(answer: &Answer, now: UtcMillis) -> Result<Page<String>, CallError> {
    #[derive(Deserialize)]
    struct PageBody<'a> {
        servers: Servers,
        #[serde(borrow, default, deserialize_with = "an_object")]
        page_info: PageInfo<'a>,
    }
    let page: Option<PageBody<'_>> = answer.success();
    let Some(page) = page else {
        return Err(answer.error_of(Service::CloudDc, CallKind::Read, now));
    };
    Ok(Page {
        servers: page.servers.0,
        next: page.page_info.next_marker.get().and_then(marker::find),
        is_filtered: false,
    })
}

/// One server, alone as documented or inside `{"server": …}`. `Missing`: a 404 in the service's own
/// words (see `is_missing`).
///
/// # Errors As any read; `Unavailable` for a success that is unreadable, shows another server than
/// `asked`, or shows none: an empty object must not count as a server that has had no operation.
pub fn read_show(answer: &Answer, asked: &ServerId, now: UtcMillis) -> Result<Sighting, CallError> {
    #[derive(Deserialize)]
    struct Wrapped<'a> {
        #[serde(borrow, deserialize_with = "an_object")]
        server: CloudDcServerBody<'a>,
    }
    let bare = answer
        .success::<CloudDcServerBody<'_>>()
        .filter(CloudDcServerBody::says_something);
    let shown = bare.or_else(|| {
        Some(answer.success::<Wrapped<'_>>()?.server).filter(CloudDcServerBody::says_something)
    });
    if let Some(body) = shown.filter(|body| body.may_be_about(asked)) {
        return Ok(Sighting::Present(body.view()));
    }
    let error = answer.error_of(Service::CloudDc, CallKind::Read, now);
    if is_missing(answer, &error) {
        Ok(Sighting::Missing)
    } else {
        Err(error)
    }
}

/// No document names a code for "no such server", so only a 404 means it, and only in the one shape
/// that is documented for this service: `error_code` and `error_msg`. A gateway, a proxy or a web
/// server that does not know the path has its own codes or another shape, and would otherwise make
/// every server of a project disappear.
fn is_missing(answer: &Answer, error: &CallError) -> bool {
    #[derive(Deserialize)]
    struct Refusal<'a> {
        #[serde(borrow)]
        error_code: Text<'a>,
        #[serde(borrow)]
        error_msg: Text<'a>,
    }
    if answer.status != 404 || error.fault != Fault::Refused(CodeClass::Other) {
        return false;
    }
    let refusal: Option<Refusal<'_>> = lenient::read(&answer.body);
    let in_its_words =
        refusal.is_some_and(|body| body.error_code.get().and(body.error_msg.get()).is_some());
    in_its_words
        && !matches!(
            cloud_codes::origin(&error.code),
            CodeOrigin::Gateway | CodeOrigin::Iam
        )
}

struct Servers(Vec<Listed>);

impl<'de> Deserialize<'de> for Servers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut servers = Vec::new();
        each_object(deserializer, |body: CloudDcServerBody<'de>| {
            servers.extend(body.id.get().map(|id| Listed {
                id: ServerId(id.to_owned()),
                view: Some(body.view()),
                name: kept_word(&body.name),
                status: kept_word(body.status()),
            }));
        })?;
        Ok(Self(servers))
    }
}

/// Where the next page is; `previous_marker` and `current_count` are not needed.
#[derive(Deserialize, Default)]
struct PageInfo<'a> {
    #[serde(borrow, default)]
    next_marker: Text<'a>,
}

/// The fields that tell a server's state.
///
/// Not read: `manage_state` (`maintain`, `offboarding`, and `frozen` for arrears), `frozen_state`
/// (a number without a printed meaning) and `health_state`. No document says that any of them makes
/// the service refuse power actions, and a server wrongly called locked would fail its request with
/// evidence; if one does refuse, the answer to the call says so.
#[derive(Deserialize, Default)]
struct CloudDcServerBody<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    power_state: Text<'a>,
    #[serde(borrow, default)]
    operation_state: Text<'a>,
    #[serde(borrow, default, deserialize_with = "an_object")]
    error: ServerError<'a>,
}

impl<'a> CloudDcServerBody<'a> {
    /// True if it shows this server, or does not say which one it shows.
    fn may_be_about(&self, server: &ServerId) -> bool {
        self.id
            .get()
            .is_none_or(|id| id.eq_ignore_ascii_case(&server.0))
    }

    /// The word that tells most: its last operation, or else its power.
    fn status(&self) -> &Text<'a> {
        if self.operation_state.get().is_some() {
            &self.operation_state
        } else {
            &self.power_state
        }
    }

    fn says_something(&self) -> bool {
        [&self.id, &self.power_state, &self.operation_state]
            .iter()
            .any(|text| text.get().is_some())
    }

    fn view(&self) -> ServerView {
        let power_word = self.power_state.get();
        let operation_word = self.operation_state.get();
        let (power, by_power) = read_power(power_word);
        let (operation, by_operation) = read_operation(operation_word);
        let activity = match (by_power, by_operation) {
            // Without either word nothing is known of the server, not even that it is idle.
            (None, None) if power_word.or(operation_word).is_none() => Activity::Other,
            (None, None) => Activity::Idle,
            (Some(activity), None) | (None, Some(activity)) => activity,
            (Some(one), Some(other)) if one == other => one,
            (Some(_), Some(_)) => Activity::Other,
        };
        ServerView {
            operation,
            error: self.error.complaint(),
            ..ServerView::of(power, activity)
        }
    }
}

/// The power, and the activity if the word names one: older documents have words for a server in
/// transition.
///
/// In transition its power is unclear: a server that is `powering-on` may or may not be on already.
/// `unknown` is what the overview counts servers under whose power it cannot tell; any other word
/// may be an activity that no document lists.
fn read_power(word: Option<&str>) -> (Power, Option<Activity>) {
    const WORDS: [(&str, Power, Option<Activity>); 6] = [
        ("on", Power::On, None),
        ("off", Power::Off, None),
        ("powering-on", Power::Unclear, Some(Activity::PoweringOn)),
        ("powering-off", Power::Unclear, Some(Activity::PoweringOff)),
        ("rebooting", Power::Unclear, Some(Activity::Rebooting)),
        ("unknown", Power::Unclear, None),
    ];
    let Some(word) = word else {
        return (Power::Unclear, None);
    };
    match WORDS
        .iter()
        .find(|(listed, ..)| listed.eq_ignore_ascii_case(word))
    {
        Some((_, power, activity)) => (*power, *activity),
        None => (Power::Unclear, Some(Activity::Other)),
    }
}

/// The last operation, and the activity while it is being done. A word that no document lists shows
/// that there was an operation, but not which one, nor whether it has ended.
fn read_operation(word: Option<&str>) -> (Option<Operation>, Option<Activity>) {
    let Some(word) = word else {
        return (None, None);
    };
    let mut actions = PowerAction::ALL.iter();
    let Some((action, end)) = actions.find_map(|action| split_operation(word, *action)) else {
        return (None, Some(Activity::Other));
    };
    let (status, activity) = match end {
        _ if end.eq_ignore_ascii_case("processing") => {
            (JobStatus::Pending, Some(action.transition()))
        }
        _ if end.eq_ignore_ascii_case("succeed") => (JobStatus::Succeeded, None),
        _ if end.eq_ignore_ascii_case("failed") => (JobStatus::Failed, None),
        _ => return (None, Some(Activity::Other)),
    };
    (Some(Operation { action, status }), activity)
}

/// The action and how far its operation is, if `word` is about this action.
fn split_operation(word: &str, action: PowerAction) -> Option<(PowerAction, &str)> {
    let prefix = operation_prefix(action);
    let (start, end) = word.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some((action, end))
}

/// How the words for an operation begin.
fn operation_prefix(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start => "power-on-",
        PowerAction::Stop => "power-off-",
        PowerAction::Reboot => "reboot-",
    }
}

/// The error that the service reports for a server; empty if there is none.
#[derive(Deserialize, Default)]
struct ServerError<'a> {
    #[serde(borrow, default)]
    error_code: Text<'a>,
    #[serde(borrow, default)]
    error_msg: Text<'a>,
    #[serde(borrow, default)]
    error_type: Text<'a>,
}

impl ServerError<'_> {
    fn complaint(&self) -> Option<Complaint> {
        server_complaint(
            self.error_code.get(),
            self.error_msg.get().or(self.error_type.get()),
        )
    }
}

#[cfg(test)]
mod tests;
