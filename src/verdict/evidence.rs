//! What the states of one server prove, alone and in a row of looks.
//!
//! Decides nothing: `look` and `refusal` do.

use super::case::Case;
use crate::lifecycle::{Event, Outcome};
use crate::model::{
    Activity, Baseline, Batch, Complaint, Evidence, JobStatus, LookCause, Member, OwnCode,
    PowerAction, ServerView,
};

impl<'a> Case<'a> {
    /// True if the servers are looked at because the call was refused, as far as this process
    /// knows.
    pub(super) fn is_refused(self) -> bool {
        self.batch.look_cause == Some(LookCause::Refused) && self.watch.may_have_been_refused()
    }

    /// True if the server was idle and the same for the settling time, in a row of looks without a
    /// gap.
    pub(super) fn has_settled(self, member: &Member) -> bool {
        self.watch
            .idle_for(member.request)
            .is_some_and(|idle| idle >= self.rules.settle_time)
    }

    /// True if the looks prove, once a server has settled, that a reboot which the cloud says it
    /// did not do was not done.
    ///
    /// A server that remembers its last operation still shows another one than a reboot: that is a
    /// mark. Without one there must be no moment since the call at which it could have passed
    /// unseen. A server that has never shown an operation may not show this one either, and one that
    /// shows a reboot by now may show this one.
    pub(super) fn can_be_disproved(self, member: &Member) -> bool {
        if member.seen_moving || self.batch.from_copy || !self.watch.may_have_been_refused() {
            return false;
        }
        let is_covered = self.watch.covers_call(member.request);
        if !self.batch.service.shows_last_operation() {
            return is_covered;
        }
        match member.baseline {
            Baseline::Unknown | Baseline::Known(None) => false,
            Baseline::Known(Some(_)) => {
                let shows_reboot =
                    member.shows_old_reboot() || self.watch.shows_reboot(member.request);
                is_covered || !shows_reboot
            }
        }
    }

    /// The words with which a reboot's own task called its server busy. After a restart those of
    /// the batch: it is not stored which of its servers they were about, and so they prove nothing.
    pub(super) fn busy_with(self, member: &Member) -> Option<&'a Complaint> {
        let told = self.watch.busy(member.request);
        if told.is_some() || self.watch.knows_busy() {
            return told;
        }
        let complaint = self.batch.complaint.as_ref();
        complaint.filter(|_| self.batch.look_cause == Some(LookCause::Busy))
    }
}

/// What the server itself says of this request's action, where the service remembers a server's
/// last operation.
///
/// It has neither time nor id: an operation is this one's only if it was seen under way, or differs
/// from the one that the server showed before the call.
pub(super) fn fresh_status(batch: &Batch, member: &Member, view: &ServerView) -> Option<JobStatus> {
    let operation = view.operation?;
    if operation.action != batch.action || could_be_another(batch, member) {
        return None;
    }
    let has_changed = match member.baseline {
        Baseline::Known(before) => before != Some(operation),
        Baseline::Unknown => false,
    };
    (has_changed || member.seen_moving).then_some(operation.status)
}

/// True if what a server shows of this request's action may come from another call: an earlier
/// reboot that may still be under way, or one that an older copy of the queue does not know.
pub(super) fn could_be_another(batch: &Batch, member: &Member) -> bool {
    batch.from_copy || (member.shadowed && batch.action.leaves_no_mark())
}

/// True if a server that is doing this may be carrying out `action`. Of an action that leaves a
/// mark any transition counts: the power tells in the end.
pub(super) fn may_be_doing(action: PowerAction, activity: Activity) -> bool {
    activity == action.transition() || !action.leaves_no_mark()
}

/// The request failed: there is no such server.
pub(super) fn missing() -> Event {
    Event::Ended(Outcome::failed(
        Evidence::Observed,
        OwnCode::Missing,
        "the cloud has no such server in this project",
    ))
}
