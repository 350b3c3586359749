//! Reads what BMS shows of servers: one, or a page of the list. Pure: bytes in, values out.
//!
//! Owns the reading of states, which depend on several fields. Does not say what a state means for
//! a request.

use serde::Deserialize;

use crate::cloud::answer::{Answer, CallKind};
use crate::cloud::looking::Listed;
use crate::cloud::objects::each_object;
use crate::cloud::text::{Text, kept_word};
use crate::model::cloud_codes::{self, CodeOrigin};
use crate::model::{
    Activity, CallError, CodeClass, Fault, Power, ServerId, ServerView, Sighting, UtcMillis,
};

/// The entries of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// The servers; entries without an id are left out.
    pub servers: Vec<Listed>,
    /// How many entries the page has, readable or not: a short page is the last one.
    pub count: usize,
}

/// A page of the list.
///
/// # Errors
/// `Unavailable` for a success that is not JSON or has no `servers`: an unreadable list shows
/// nobody missing.
pub fn read_list(answer: &Answer, now: UtcMillis) -> Result<Entries, CallError> {
    #[derive(Deserialize)]
    struct ListBody<'a> {
        #[serde(borrow)]
        servers: CountedServers<'a>,
    }
    let Some(page) = answer.success::<ListBody<'_>>() else {
        return Err(answer.error(CallKind::Read, now));
    };
    let listed = page.servers.listed.iter().filter_map(|body| {
        Some(Listed {
            id: ServerId(body.id.get()?.to_owned()),
            view: body.view(),
            name: kept_word(&body.name),
            status: kept_word(&body.status),
        })
    });
    Ok(Entries {
        servers: listed.collect(),
        count: page.servers.count,
    })
}

/// One server. `Missing`: 404 with a complaint of the service (not the gateway's, not a web page),
/// `BMS.0040` under any status, or a success that says `DELETED`.
///
/// # Errors
/// As any read; `Unavailable` for a success that is unreadable or shows another server than
/// `asked`.
pub fn read_show(answer: &Answer, asked: &ServerId, now: UtcMillis) -> Result<Sighting, CallError> {
    #[derive(Deserialize)]
    struct ShowBody<'a> {
        #[serde(borrow)]
        server: BmsServerBody<'a>,
    }
    let shown: Option<ShowBody<'_>> = answer.success();
    let shown = shown.filter(|body| {
        body.server
            .id
            .get()
            .is_none_or(|id| id.eq_ignore_ascii_case(&asked.0))
    });
    if let Some(shown) = shown {
        return Ok(shown
            .server
            .view()
            .map_or(Sighting::Missing, Sighting::Present));
    }
    let error = answer.error(CallKind::Read, now);
    if is_missing(answer.status, &error) {
        Ok(Sighting::Missing)
    } else {
        Err(error)
    }
}

fn is_missing(status: u16, error: &CallError) -> bool {
    let said = error.code.eq_ignore_ascii_case("BMS.0040");
    let not_found = status == 404 && error.fault == Fault::Refused(CodeClass::Other);
    said || (not_found && cloud_codes::origin(&error.code) != CodeOrigin::Gateway)
}

struct CountedServers<'a> {
    listed: Vec<BmsServerBody<'a>>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for CountedServers<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut listed = Vec::new();
        let count = each_object(deserializer, |body: BmsServerBody<'a>| listed.push(body))?;
        Ok(Self { listed, count })
    }
}

/// The fields that tell a server's state, under their v1 and their v1.1 names.
#[derive(Deserialize, Default)]
struct BmsServerBody<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default, rename = "OS-EXT-STS:vm_state")]
    vm_state: Text<'a>,
    #[serde(borrow, default, rename = "vm_state")]
    vm_state_short: Text<'a>,
    #[serde(borrow, default, rename = "OS-EXT-STS:task_state")]
    task_state: Text<'a>,
    #[serde(borrow, default, rename = "task_state")]
    task_state_short: Text<'a>,
    #[serde(borrow, default, rename = "OS-EXT-STS:power_state")]
    power_state: Text<'a>,
    #[serde(borrow, default, rename = "power_state")]
    power_state_short: Text<'a>,
    #[serde(borrow, default)]
    locked: Text<'a>,
}

impl BmsServerBody<'_> {
    /// The server's state; none if it is deleted.
    fn view(&self) -> Option<ServerView> {
        let status = self.status.get().map(str::to_ascii_uppercase);
        let status = status.as_deref().unwrap_or_default();
        if status == "DELETED" {
            return None;
        }
        let vm_state = self
            .vm_state
            .get()
            .or(self.vm_state_short.get())
            .map(str::to_ascii_lowercase);
        let task = self
            .task_state
            .get()
            .or(self.task_state_short.get())
            .map(str::to_ascii_lowercase);
        let power_state = self.power_state.get().or(self.power_state_short.get());
        let locked = self
            .locked
            .get()
            .is_some_and(|text| text == "1" || text.eq_ignore_ascii_case("true"));
        let power = power(status, vm_state.as_deref(), power_state);
        let activity = activity(status, vm_state.as_deref(), task.as_deref());
        Some(ServerView {
            locked,
            ..ServerView::of(power, activity)
        })
    }
}

/// What one field says about the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    /// It says so.
    Is(Power),
    /// Nothing: absent, or a word about an activity.
    Silent,
    /// A word that no document lists, so nothing can be concluded.
    Strange,
}

/// Three fields together: all that say something must agree, and another field must confirm
/// `status`, because it is also `ACTIVE` while stopping and deleting, and also `SHUTOFF` while
/// starting.
fn power(status: &str, vm_state: Option<&str>, power_state: Option<&str>) -> Power {
    let said = [
        status_hint(status),
        vm_hint(vm_state),
        power_hint(power_state),
    ];
    // A faulty server's other fields show its earlier state, or remains of it.
    if said[0] == Hint::Is(Power::Faulty) {
        return Power::Faulty;
    }
    let mut witnesses = said.iter().filter_map(|hint| match hint {
        Hint::Is(power) => Some(*power),
        Hint::Silent | Hint::Strange => None,
    });
    let Some(first) = witnesses.next() else {
        return Power::Unclear;
    };
    let agreed = witnesses.clone().all(|power| power == first);
    let alone = witnesses.next().is_none();
    let during_reboot = is_reboot(status);
    if said.contains(&Hint::Strange) || !agreed || (alone && !during_reboot) {
        Power::Unclear
    } else {
        first
    }
}

fn status_hint(status: &str) -> Hint {
    match status {
        "ACTIVE" => Hint::Is(Power::On),
        "SHUTOFF" | "STOPPED" => Hint::Is(Power::Off),
        "ERROR" => Hint::Is(Power::Faulty),
        "" | "BUILD" | "BUILDING" | "REBUILD" => Hint::Silent,
        word if is_reboot(word) => Hint::Silent,
        _ => Hint::Strange,
    }
}

/// `stopped` in OTC's document and in the examples, `shutoff` in Huawei's.
fn vm_hint(vm_state: Option<&str>) -> Hint {
    match vm_state {
        Some("active") => Hint::Is(Power::On),
        Some("stopped" | "shutoff") => Hint::Is(Power::Off),
        Some("error") => Hint::Is(Power::Faulty),
        None | Some("reboot" | "hard_reboot" | "building" | "build" | "rebuild") => Hint::Silent,
        Some(_) => Hint::Strange,
    }
}

/// 1 is running; 4 is shut down in v1 and upstream, 3 in the native document; 0 says nothing.
fn power_hint(power_state: Option<&str>) -> Hint {
    match power_state {
        Some("1") => Hint::Is(Power::On),
        Some("3" | "4") => Hint::Is(Power::Off),
        None | Some("0") => Hint::Silent,
        Some(_) => Hint::Strange,
    }
}

fn is_reboot(status: &str) -> bool {
    status.eq_ignore_ascii_case("REBOOT") || status.eq_ignore_ascii_case("HARD_REBOOT")
}

/// `task_state` shows the activity; it is absent or null while there is none. Some states show an
/// activity themselves.
fn activity(status: &str, vm_state: Option<&str>, task_state: Option<&str>) -> Activity {
    match task_state.map(|task| task.replace('-', "_")).as_deref() {
        Some("powering_on") => Activity::PoweringOn,
        Some("powering_off") => Activity::PoweringOff,
        Some(task) if task.starts_with("reboot") => Activity::Rebooting,
        Some(task) if task != "none" => Activity::Other,
        _ if is_reboot(status) || vm_state.is_some_and(is_reboot) => Activity::Rebooting,
        _ if matches!(status, "BUILD" | "BUILDING" | "REBUILD") => Activity::Other,
        _ if matches!(vm_state, Some("building" | "build" | "rebuild")) => Activity::Other,
        _ => Activity::Idle,
    }
}

#[cfg(test)]
mod tests;
