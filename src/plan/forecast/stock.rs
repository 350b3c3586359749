//! The lanes of the course, as counts of requests.

use std::collections::VecDeque;

use crate::model::{Lane, LaneKind, PowerAction, Share, TargetName, UtcMillis};

/// What stands in one lane, in the order of the claim.
#[derive(Debug, Clone)]
pub(super) struct Stock {
    pub(super) target: TargetName,
    pub(super) action: PowerAction,
    pub(super) kind: LaneKind,
    shares: VecDeque<Share>,
    requests: u64,
}

impl Stock {
    pub(super) fn of(share: Share) -> Self {
        let mut stock = Self {
            target: share.target.clone(),
            action: share.action,
            kind: share.kind,
            shares: VecDeque::new(),
            requests: 0,
        };
        stock.add(share);
        stock
    }

    pub(super) fn takes(&self, share: &Share) -> bool {
        self.kind == share.kind && self.action == share.action && self.target == share.target
    }

    pub(super) fn add(&mut self, share: Share) {
        self.requests += share.requests;
        let place = turn_of(&share);
        let at = self.shares.partition_point(|other| turn_of(other) <= place);
        self.shares.insert(at, share);
    }

    pub(super) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.iter()
    }

    /// As the plan sees it; none if it is empty.
    pub(super) fn lane(&self) -> Option<Lane> {
        let head = self.shares.front()?;
        Some(Lane {
            target: self.target.clone(),
            action: self.action,
            kind: self.kind,
            head_priority: head.priority,
            head_id: head.first_id,
            ready: u32::try_from(self.requests).unwrap_or(u32::MAX),
            oldest_eligible_at: UtcMillis(0),
        })
    }

    /// The first of them, at most `most`.
    pub(super) fn take(&mut self, most: u64) -> Vec<Share> {
        let taken = take_first(&mut self.shares, most);
        self.requests -= taken.iter().map(|share| share.requests).sum::<u64>();
        taken
    }

    /// Those whose time has passed.
    pub(super) fn expire(&mut self, now: UtcMillis) -> Vec<Share> {
        let expired = take_expired(&mut self.shares, now);
        self.requests -= expired.iter().map(|share| share.requests).sum::<u64>();
        expired
    }
}

/// The order of the claim.
pub(super) fn turn_of(share: &Share) -> (i64, i64) {
    (-share.priority, share.first_id)
}

/// Takes at most `most` requests from the front; a share may have to be cut in two.
pub(super) fn take_first(shares: &mut VecDeque<Share>, most: u64) -> Vec<Share> {
    let mut taken = Vec::new();
    let mut left = most;
    while left > 0 {
        let Some(first) = shares.front_mut() else {
            break;
        };
        let part = first.requests.min(left);
        left -= part;
        taken.push(Share {
            requests: part,
            ..first.clone()
        });
        first.requests -= part;
        if first.requests == 0 {
            shares.pop_front();
        }
    }
    taken
}

/// Takes those whose time has passed.
pub(super) fn take_expired(shares: &mut VecDeque<Share>, now: UtcMillis) -> Vec<Share> {
    let is_past = |share: &Share| share.expires_at.is_some_and(|at| at <= now);
    if !shares.iter().any(is_past) {
        return Vec::new();
    }
    let (expired, others): (VecDeque<Share>, VecDeque<Share>) =
        std::mem::take(shares).into_iter().partition(is_past);
    *shares = others;
    expired.into()
}
