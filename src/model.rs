//! The vocabulary: ids, actions, states, evidence, batches, and what the clouds tell us, as plain
//! values.
//!
//! Owns the nouns that several rooms use. Knows nothing of SQL, HTTP, files or clocks.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod action;
mod batch;
pub mod cloud_codes;
mod codes;
mod counted;
mod fault;
mod inventory;
mod order;
mod queue;
mod quoted;
mod role;
mod service;
mod share;
mod shown;
mod splitmix;
mod stored_enums;
mod time;

pub use batch::{Batch, Member};
pub use codes::OwnCode;
pub use counted::counted;
pub use fault::{CallError, Fault};
pub use inventory::{Extent, ListedServer, Listing};
pub use order::{Order, OrderId, OrderNews};
pub use queue::{Budget, Crowd, DueBatch, Head, Hold, Lane, LaneKind, Origin};
pub use quoted::quoted;
pub use role::Role;
pub use share::{Leader, PowerMix, Share, Standing};
pub use shown::visible;
pub use splitmix::{SPLITMIX_STEP, splitmix};
pub use stored_enums::{
    AttemptResult, BatchState, Evidence, HoldKind, LetGo, LookCause, OperatorAction, OrderState,
    PowerAction, RequestState, Service, UnknownWord,
};
pub use time::{NotATime, Now, Steady, UtcMillis};

/// One row of `power_requests`: one server, one action. Never reused; the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub i64);

/// One row of `batches`: one submit call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub i64);

/// What the cloud calls the job it runs for a batch. Opaque: printed as a UUID in one place and as
/// 32 hex digits in another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

/// A `[targets.NAME]` of the config: one cloud project in one region. 1 to 64 of `A-Z a-z 0-9 . _
/// -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TargetName(pub String);

/// A server's id as its producer wrote it; compared without case, as the queue does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(pub String);

impl ServerId {
    /// True for 1 to 64 of `A-Z a-z 0-9 -`, the rule of `power_requests.server_id`.
    pub fn is_valid(text: &str) -> bool {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }

    /// True for a UUID, with its dashes or without.
    pub fn is_uuid(text: &str) -> bool {
        let stored = Self::as_stored(text);
        let mut parts = stored.split('-');
        let is_part = |length: usize, part: Option<&str>| {
            part.is_some_and(|part| {
                part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        };
        [8, 4, 4, 4, 12]
            .into_iter()
            .all(|length| is_part(length, parts.next()))
            && parts.next().is_none()
    }

    /// The id as the queue stores it: a UUID without its dashes gets them, anything else stays as
    /// it is. The schema does the same with `power_requests.server_id`.
    pub fn as_stored(text: &str) -> String {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return text.to_owned();
        }
        [
            &text[..8],
            &text[8..12],
            &text[12..16],
            &text[16..20],
            &text[20..],
        ]
        .join("-")
    }
}

impl PartialEq for ServerId {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for ServerId {}

impl PartialOrd for ServerId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ServerId {
    fn cmp(&self, other: &Self) -> Ordering {
        // Thousands of them are sorted for each answer: byte by byte, and most differ in the first.
        for (own, other) in self.0.bytes().zip(other.0.bytes()) {
            let order = own.to_ascii_lowercase().cmp(&other.to_ascii_lowercase());
            if order.is_ne() {
                return order;
            }
        }
        self.0.len().cmp(&other.0.len())
    }
}

/// The usual id, a UUID, is one piece.
const HASHED_AT_ONCE: usize = 40;

impl Hash for ServerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // A piece at a time: a hasher works on eight bytes as fast as on one.
        for piece in self.0.as_bytes().chunks(HASHED_AT_ONCE) {
            let mut lower = [0; HASHED_AT_ONCE];
            for (to, from) in lower.iter_mut().zip(piece) {
                *to = from.to_ascii_lowercase();
            }
            state.write(&lower);
        }
    }
}

macro_rules! display_inner {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_inner!(RequestId, BatchId, JobId, TargetName, ServerId);

impl FromStr for RequestId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(Self)
            .map_err(|_| "a request's id is a whole number".to_owned())
    }
}

/// What a submit call was accepted as: how its batch is followed from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// The cloud runs this job; asking for it covers the whole batch (BMS).
    Job(JobId),
    /// There is no job: the servers' own states tell (CloudDC).
    ServerState,
}

/// A job's or sub-job's progress. Words that no document lists count as `Pending`, never as an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// `INIT`, `RUNNING`, `PENDING_PAYMENT`, anything unknown.
    Pending,
    /// `SUCCESS`.
    Succeeded,
    /// `FAIL`.
    Failed,
}

impl JobStatus {
    /// True for the two that never change again.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Pending => false,
            Self::Succeeded | Self::Failed => true,
        }
    }
}

/// What the cloud says of a job: one answer for all servers of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobReport {
    /// The job as a whole. What became of a server is in its own sub-job, whatever this says.
    pub status: JobStatus,
    /// The job's own error, if it has one.
    pub error: Option<Complaint>,
    /// One entry per server the cloud has begun with; may be empty at first.
    pub sub_jobs: Vec<SubJob>,
    /// The cloud's own `end_time - begin_time`, once both are readable.
    pub duration: Option<Duration>,
    /// When its servers had ended, once the job is over and has told so of each.
    pub server_ends: Option<ServerEnds>,
}

/// When the servers of a job had ended, by the cloud's own times: counted from its `begin_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerEnds {
    /// Half of them.
    pub half: Duration,
    /// Nine in ten.
    pub most: Duration,
}

/// One server's part of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubJob {
    /// Absent in some failed sub-jobs.
    pub server: Option<ServerId>,
    /// This server's own status.
    pub status: JobStatus,
    /// Why it failed, if it did.
    pub error: Option<Complaint>,
}

/// A code and a text, as the cloud wrote them, with our class for the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The cloud's code, such as `BMS.0040`; empty when it gave none.
    pub code: String,
    /// The cloud's text.
    pub message: String,
    /// What the code means for us.
    pub class: CodeClass,
}

impl Complaint {
    /// A complaint of our own.
    pub fn our_own(code: OwnCode, message: &str) -> Self {
        Self {
            code: code.into(),
            message: message.to_owned(),
            class: CodeClass::Other,
        }
    }
}

/// What a cloud's error code means; the classes of the error tables, one reaction each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodeClass {
    /// Resend the same call later; nothing was carried out.
    Retryable,
    /// May be resent after the servers' states have been looked at.
    RetryableUncertain,
    /// The call may have been carried out: look before anything else.
    Ambiguous,
    /// This server only: it is powering on, off or rebooting; wait.
    ServerBusy,
    /// This server only: it is already as wished.
    AlreadyInTargetState,
    /// This server only, for good (missing, locked, frozen disk).
    ServerPermanent,
    /// This server only: the action was tried and failed.
    ServerFailed,
    /// The whole call was refused: one bad server, or our mistake.
    BatchInvalid,
    /// The token or the signature was refused: renew or re-sign once.
    AuthToken,
    /// The credentials may not do this: stop and tell a person.
    AuthPermission,
    /// The endpoint, project or service is wrong: stop and tell a person.
    ConfigPermanent,
    /// The job id is unknown or gone.
    JobUnknown,
    /// The parent says a sub-job failed: read the sub-jobs.
    SubJobFailed,
    /// Codes of creating, disks, networks and orders, and codes that no document lists.
    Other,
}

/// What a look at one server showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
    /// In no list, and the call for this one server confirms it: it does not exist, or is deleted.
    Missing,
    /// It exists and looks like this.
    Present(ServerView),
}

/// A server's state, as far as power goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerView {
    /// Is it running?
    pub power: Power,
    /// What the cloud is doing with it at this moment.
    pub activity: Activity,
    /// Locked servers refuse power actions.
    pub locked: bool,
    /// The last power operation, where the service remembers it (CloudDC).
    pub operation: Option<Operation>,
    /// What the service says is wrong with the server.
    pub error: Option<Complaint>,
}

impl ServerView {
    /// True if the cloud is doing nothing with it.
    pub fn is_idle(&self) -> bool {
        self.activity == Activity::Idle
    }

    /// A server of which only power and activity are known.
    pub const fn of(power: Power, activity: Activity) -> Self {
        Self {
            power,
            activity,
            locked: false,
            operation: None,
            error: None,
        }
    }
}

/// The last power operation of a server, and how far it is. It has neither time nor id, and stays
/// until the next one: that it succeeded proves nothing unless it was seen to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What was done.
    pub action: PowerAction,
    /// `Pending`: it is being done.
    pub status: JobStatus,
}

/// A server's power. `Unclear` when fields contradict one another or the word is unknown: never
/// counted as proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Running.
    On,
    /// Shut down.
    Off,
    /// Faulty (`ERROR`): neither running nor cleanly stopped.
    Faulty,
    /// Cannot be told from this answer.
    Unclear,
}

/// What was known of a server's last operation when its request was about to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Baseline {
    /// Nothing: the service remembers no operations, or said nothing readable of this one.
    #[default]
    Unknown,
    /// This one; none: there had not been any.
    Known(Option<Operation>),
}

/// What the cloud is doing with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Nothing.
    Idle,
    /// Powering on.
    PoweringOn,
    /// Powering off.
    PoweringOff,
    /// Rebooting, at whatever stage.
    Rebooting,
    /// Something else (rebuilding, deleting, an unknown word).
    Other,
}

impl Activity {
    /// True for those that one of our actions causes.
    pub const fn is_power_transition(self) -> bool {
        match self {
            Self::PoweringOn | Self::PoweringOff | Self::Rebooting => true,
            Self::Idle | Self::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const UUID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

    fn server(text: &str) -> ServerId {
        ServerId(text.to_owned())
    }

    #[test]
    fn a_server_id_is_up_to_64_letters_digits_and_dashes() {
        for valid in ["a", "Z-9", UUID, &"x".repeat(64)] {
            assert!(ServerId::is_valid(valid), "{valid}");
        }
        for invalid in ["", "a b", "a_b", "ü", &"x".repeat(65)] {
            assert!(!ServerId::is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn a_uuid_without_dashes_gets_them_and_nothing_else_does() {
        assert_eq!(ServerId::as_stored(&UUID.replace('-', "")), UUID);
        let not_hex = "x".repeat(32);
        for other in [UUID, "server-1", "abc", not_hex.as_str()] {
            assert_eq!(ServerId::as_stored(other), other);
        }
    }

    #[test]
    fn server_ids_are_compared_without_case() {
        assert_eq!(server("Server-A"), server("sERVER-a"));
        assert_ne!(server("server-a"), server("server-b"));
        assert!(server("SERVER-A") < server("server-b"));
        let both: HashSet<ServerId> = ["abc", "ABC"].map(server).into();
        assert_eq!(both.len(), 1);
        let many: HashSet<ServerId> = ["abc", "abd", "ab"].map(server).into();
        assert_eq!(many.len(), 3);
    }

    #[test]
    fn stop_and_reboot_end_what_runs_on_the_server() {
        let those: Vec<_> = PowerAction::those(PowerAction::interrupts).collect();
        assert_eq!(those, [PowerAction::Stop, PowerAction::Reboot]);
    }

    #[test]
    fn only_queued_and_running_requests_may_still_change() {
        let open: Vec<_> = RequestState::ALL
            .iter()
            .filter(|state| !state.is_terminal())
            .collect();
        assert_eq!(open, [&RequestState::Queued, &RequestState::Running]);
    }

    #[test]
    fn a_call_carries_as_many_servers_as_the_documents_allow() {
        let caps = [Service::Bms, Service::CloudDc].map(Service::batch_servers_cap);
        assert_eq!(caps, [1000, 50]);
    }

    #[test]
    fn a_hold_covers_its_target_and_action_until_it_ends() {
        let now = UtcMillis(1000);
        let target = TargetName("a".into());
        let lane = |target: &str, action: PowerAction, kind: LaneKind| Lane {
            target: TargetName(target.into()),
            action,
            kind,
            head_priority: 0,
            head_id: 1,
            ready: 1,
            oldest_eligible_at: now,
        };
        let plain = LaneKind::default();
        let stops = lane("a", PowerAction::Stop, plain);
        let hold = Hold {
            target: Some(target.clone()),
            action: Some(PowerAction::Stop),
            label: None,
            kind: HoldKind::Operator,
            reason: String::new(),
            since: UtcMillis(0),
            until: Some(UtcMillis(1001)),
        };
        assert!(hold.covers(&stops, now));
        assert!(!hold.covers(&stops, UtcMillis(1001)));
        assert!(!hold.covers(&lane("a", PowerAction::Start, plain), now));
        assert!(!hold.covers(&lane("b", PowerAction::Stop, plain), now));

        let approved = LaneKind {
            is_approved: true,
            ..plain
        };
        let excused = LaneKind {
            has_override: true,
            ..plain
        };
        let kinds = [plain, approved, excused];
        let lanes = kinds.map(|kind| lane("a", PowerAction::Stop, kind));
        let held_by = |kind: HoldKind| {
            let hold = Hold {
                kind,
                ..hold.clone()
            };
            lanes.each_ref().map(|lane| hold.covers(lane, now))
        };
        assert_eq!(held_by(HoldKind::Operator), [true, true, true]);
        assert_eq!(held_by(HoldKind::Approval), [true, false, true]);
        assert_eq!(held_by(HoldKind::Window), [true, true, false]);
    }

    #[test]
    fn the_number_of_a_lane_says_what_kind_it_is() {
        for group in [0, 7, i64::from(u32::MAX)] {
            for flags in 0..4 {
                let kind = LaneKind::of_number(group * 4 + flags);
                assert_eq!(kind.number(), group * 4 + flags);
                assert_eq!(kind.group, group);
            }
        }
    }

    /// The first numbers of SplitMix64 from seed 0. Source: its author's reference implementation.
    #[test]
    fn scattered_numbers_are_those_of_splitmix64() {
        let numbers = [1, 2, 3].map(|n: u64| splitmix(SPLITMIX_STEP.wrapping_mul(n)));
        assert_eq!(
            numbers,
            [
                0xe220_a839_7b1d_cdaf,
                0x6e78_9e6a_a1b9_65f4,
                0x06c4_5d18_8009_454f
            ]
        );
    }
}
