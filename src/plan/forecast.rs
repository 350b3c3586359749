//! What will become of the requests that wait: which calls leave now and later, what holds the rest,
//! and when the last of them has left and ended. Pure: the time is an argument.
//!
//! It has no rules of its own. The course of things is played through with the decisions that the
//! daemon makes, each at its time: `open_lanes` and `choose`, budgets, guards, windows, waves, pace.
//! It assumes that calls take no time, that jobs last as long as earlier ones did, that all of them
//! succeed, and that nobody does anything.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::model::{
    Budget, Crowd, Hold, HoldKind, LaneKind, Order, PowerAction, Share, TargetName, UtcMillis,
};
use crate::pace::Pace;
use crate::plan::windows::Windows;
use course::Course;

mod course;
mod stock;
#[cfg(test)]
mod tests;

/// What is asked, and all that the answer depends on.
#[derive(Debug, Clone)]
pub struct Question {
    /// The time.
    pub now: UtcMillis,
    /// What waits, also what is only about to be inserted.
    pub shares: Vec<Share>,
    /// What runs: it lets go what waits for it.
    pub running: Vec<RunningBatch>,
    /// The targets that can be sent to.
    pub targets: BTreeMap<TargetName, TargetOutlook>,
    /// The holds in force. Those of a kind that a target's own rules decide are not among them.
    pub holds: Vec<Hold>,
    /// The orders that are not done.
    pub orders: Vec<Order>,
    /// A program is asked before each wave but the first.
    pub has_gate: bool,
}

/// A batch that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBatch {
    /// Whose cloud project.
    pub target: TargetName,
    /// What was asked for.
    pub action: PowerAction,
    /// Its requests that have not ended.
    pub requests: u64,
    /// Since when.
    pub since: UtcMillis,
}

/// What a target's calls depend on.
#[derive(Debug, Clone)]
pub struct TargetOutlook {
    /// Most servers in one call.
    pub batch_servers_max: u32,
    /// How fast calls follow one another.
    pub pace: Pace,
    /// The next call of each action carries one server, to find out whether calls arrive.
    pub is_probed: bool,
    /// Most servers in any span, by action.
    pub budgets: BTreeMap<PowerAction, Counted>,
    /// Likewise, of those that nobody has approved.
    pub guards: BTreeMap<PowerAction, Counted>,
    /// When actions may be sent.
    pub windows: Windows,
    /// How long jobs take, as far as earlier ones tell.
    pub took: BTreeMap<PowerAction, Duration>,
}

/// A number of servers in a span, and what has been used of it.
#[derive(Debug, Clone)]
pub struct Counted {
    /// As the config has it.
    pub budget: Budget,
    /// The calls of its span: when, and for how many servers.
    pub calls: Vec<(UtcMillis, u32)>,
    /// Whose requests wait: the largest groups first. Only a guard asks.
    pub crowds: Vec<Crowd>,
}

/// What will become of the requests that were asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forecast {
    /// By target and action.
    pub actions: Vec<ActionForecast>,
    /// The calls that carry any of them, in order.
    pub calls: Vec<PlannedCall>,
    /// Those that do not leave now, by reason.
    pub waiting: Vec<Waiting>,
    /// The course was followed no further: what is said of its end is at least so much.
    pub is_cut: bool,
}

/// What will become of the requests of one target and action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActionForecast {
    /// Whose cloud project.
    pub target: TargetName,
    /// What is asked for.
    pub action: PowerAction,
    /// How many requests wait.
    pub requests: u64,
    /// Those that will be rejected, since their servers are protected.
    pub protected: u64,
    /// Those that expire before they can leave.
    pub expiring: u64,
    /// Those that nothing but a person lets go.
    pub stuck: u64,
    /// What holds most of those.
    pub stuck_reason: Option<String>,
    /// Calls that carry any of them.
    pub calls: u64,
    /// When the first call leaves; none: none does.
    pub first_leaves_at: Option<UtcMillis>,
    /// When the last call leaves.
    pub last_leaves_at: Option<UtcMillis>,
    /// When the last of those that leave has ended; none: how long jobs take is not known.
    pub last_ends_at: Option<UtcMillis>,
    /// When the first of those that do not leave in time expires.
    pub first_expires_at: Option<UtcMillis>,
}

/// A call that will be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedCall {
    /// When.
    pub at: UtcMillis,
    /// Whose cloud project.
    pub target: TargetName,
    /// What for.
    pub action: PowerAction,
    /// What else its requests have in common.
    #[serde(skip)]
    pub kind: LaneKind,
    /// How many servers it carries.
    pub servers: u64,
    /// How many of them were asked about.
    pub asked: u64,
}

/// Requests that do not leave now, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Whose cloud project.
    pub target: TargetName,
    /// What is asked for.
    pub action: PowerAction,
    /// How many.
    pub requests: u64,
    /// What kind of reason.
    pub cause: Cause,
    /// The reason as a sentence.
    pub reason: String,
    /// What ends it: the time; none: something else, as the reason says.
    pub until: Option<UtcMillis>,
}

/// Why requests do not leave now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A hold of this kind.
    Hold(HoldKind),
    /// So many calls were made in the last minute.
    Pace,
    /// Their time has not come.
    NotDue,
    /// They are tried again later.
    Retry,
    /// Other requests of their servers go first.
    Behind,
    /// They wait for other requests to succeed.
    After,
    /// Their servers are protected.
    Protected,
}

impl Cause {
    /// The word for it; for a hold that of `holds.kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hold(kind) => kind.as_str(),
            Self::Pace => "pace",
            Self::NotDue => "not_due",
            Self::Retry => "retry",
            Self::Behind => "behind",
            Self::After => "after",
            Self::Protected => "protected",
        }
    }
}

impl Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Answers.
pub fn forecast(question: &Question) -> Forecast {
    Course::new(question).run()
}

impl Forecast {
    /// The calls that leave at once.
    pub fn calls_now(&self, now: UtcMillis) -> &[PlannedCall] {
        let now_up_to = self.calls.partition_point(|call| call.at <= now);
        &self.calls[..now_up_to]
    }

    /// How many requests were asked about.
    pub fn requests(&self) -> u64 {
        self.actions.iter().map(|action| action.requests).sum()
    }
}
