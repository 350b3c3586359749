//! The members of batches that this daemon has claimed, kept from the claim to the first question
//! about their job: reading them back costs as much as half of storing their outcomes.
//!
//! Only the daemon moves requests that are running, so that they are still as the claim has left
//! them until one of its own steps moves them. Then, and after a restart, they are read from
//! the queue.

use std::collections::VecDeque;

use crate::model::{BatchId, Member};

/// Members kept at most, of all batches together: about two megabytes.
const MEMBERS_MAX: usize = 20_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ClaimedMembers {
    /// The oldest first.
    batches: VecDeque<(BatchId, Vec<Member>)>,
    members: usize,
}

impl ClaimedMembers {
    /// Keeps the members of a batch. The oldest batches go where there are too many.
    pub(super) fn keep(&mut self, batch: BatchId, members: Vec<Member>) {
        self.members += members.len();
        self.batches.push_back((batch, members));
        while self.members > MEMBERS_MAX
            && let Some((_, oldest)) = self.batches.pop_front()
        {
            self.members -= oldest.len();
        }
    }

    /// The members of a batch, if they are kept. They are no longer after this.
    pub(super) fn take(&mut self, batch: BatchId) -> Option<Vec<Member>> {
        let at = self.batches.iter().position(|(id, _)| *id == batch)?;
        let (_, members) = self.batches.remove(at)?;
        self.members -= members.len();
        Some(members)
    }

    /// They are no longer as the claim has left them.
    pub(super) fn forget(&mut self, batch: BatchId) {
        self.take(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Baseline, RequestId, ServerId};

    fn members(count: usize) -> Vec<Member> {
        let member = Member {
            request: RequestId(1),
            server: ServerId("a".to_owned()),
            attempts: 1,
            busy: 0,
            seen_moving: false,
            baseline: Baseline::Unknown,
            shadowed: false,
            waited: None,
        };
        vec![member; count]
    }

    #[test]
    fn members_are_given_once_and_the_oldest_go_first() {
        let mut claimed = ClaimedMembers::default();
        for batch in 1..=21 {
            claimed.keep(BatchId(batch), members(1000));
        }
        assert_eq!(claimed.take(BatchId(1)), None);
        assert_eq!(
            claimed.take(BatchId(2)).map(|members| members.len()),
            Some(1000)
        );
        assert_eq!(claimed.take(BatchId(2)), None);
        claimed.forget(BatchId(3));
        assert_eq!(claimed.take(BatchId(3)), None);
        assert_eq!(claimed.members, 18_000);
        claimed.keep(BatchId(99), members(30_000));
        assert_eq!(claimed.take(BatchId(99)), None, "it is too large alone");
        assert_eq!(claimed.members, 0);
    }
}
