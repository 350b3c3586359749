//! Guards: where too many requests are due that nobody has approved, a hold until somebody does, or
//! until time has let enough of the earlier ones pass.

use std::collections::BTreeMap;
use std::time::Duration;

use super::holds::Holds;
use super::target::Targets;
use super::task::Round;
use crate::model::{Budget, Hold, HoldKind, Lane, PowerAction, Steady, TargetName, UtcMillis};
use crate::plan::guard::{self, GuardVerdict, GuardedCall, Waiting};
use crate::store::{GuardLimit, Snapshot, Store, StoreError, Unapproved};

/// Requests that are counted for the reason of a hold, at most.
const COUNT_MAX: u64 = 100_000;
/// Of those, the first so many are asked whose they are.
const ASKED_MAX: u64 = 10_000;
/// A reason is not written again before this, while more and more requests come.
const RETOLD_AFTER: Duration = Duration::from_secs(5);

/// What is known of the guards of the present config.
#[derive(Debug, Default)]
pub(super) struct GuardWatch {
    /// When and at which state of the queue all of them were looked at.
    looked: Option<Looked>,
    limits: BTreeMap<(TargetName, PowerAction), GuardLimit>,
    /// What the reason of each hold was last made from.
    told: BTreeMap<(TargetName, PowerAction), Told>,
}

/// What a reason was made from, and when.
#[derive(Debug, Clone, Copy)]
struct Told {
    change_mark: (i64, i64),
    left: u64,
    at: Steady,
}

#[derive(Debug, Clone, Copy)]
struct Looked {
    change_mark: (i64, i64),
    at: UtcMillis,
    /// Nothing changes before this unless the queue does; none: nothing at all.
    until: Option<UtcMillis>,
}

impl Looked {
    fn is_good(&self, seen: &Snapshot, now: UtcMillis) -> bool {
        self.change_mark == seen.change_mark
            && self.at <= now
            && self.until.is_none_or(|until| now < until)
    }
}

/// What the pass works with.
pub(super) struct Surroundings<'a> {
    pub(super) store: &'a Store,
    pub(super) targets: &'a Targets,
    pub(super) holds: &'a mut Holds,
}

impl GuardWatch {
    /// Looks at all guards again if the queue has changed, whatever else holds the requests.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn pass(
        &mut self,
        around: Surroundings<'_>,
        seen: &Snapshot,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = round.now.utc;
        if let Some(looked) = self.looked.filter(|looked| looked.is_good(seen, now)) {
            looked.until.iter().for_each(|until| round.wake(*until));
            return Ok(());
        }
        self.looked = None;
        self.limits.clear();
        let mut wanted = Vec::new();
        let mut until: Option<UtcMillis> = None;
        for (name, target) in around.targets {
            for (action, guard) in target.guards() {
                let look = Look {
                    target: name,
                    action: *action,
                    guard: *guard,
                };
                let found = self.look(&around, look, (seen, round)).await?;
                until = until.into_iter().chain(found.again_at).min();
                wanted.extend(found.hold);
            }
        }
        self.told
            .retain(|key, _| wanted.iter().any(|hold| is_about(hold, key)));
        around.holds.exchange(HoldKind::Approval, wanted).await?;
        until.iter().for_each(|until| round.wake(*until));
        self.looked = Some(Looked {
            change_mark: seen.change_mark,
            at: now,
            until,
        });
        Ok(())
    }

    /// What a claim from this lane has to keep to; none: there is no guard.
    pub(super) fn limit(&self, lane: &Lane) -> Option<&GuardLimit> {
        self.limits.get(&(lane.target.clone(), lane.action))
    }

    async fn look(
        &mut self,
        around: &Surroundings<'_>,
        look: Look<'_>,
        (seen, round): (&Snapshot, &Round),
    ) -> Result<Found, StoreError> {
        let now = round.now;
        let Look { guard, .. } = look;
        let calls = look.calls(around, round).await?;
        let left = guard::left(guard, &calls.times, now.utc);
        let limit = GuardLimit {
            due_max: u64::from(guard.servers).saturating_sub(left),
            counted: calls.batches,
        };
        let wanted = look.unapproved(&limit);
        let most = u64::from(guard.servers) + 1;
        let due = around.store.count_unapproved(wanted, most).await?;
        let verdict = guard::judge(guard, due, &calls.times, now.utc);
        let found = match verdict {
            GuardVerdict::LetsGo => Found::default(),
            GuardVerdict::Holds { until } => self
                .hold(around, look, (wanted, left), (seen, round))
                .await?
                .again_by(until),
        };
        self.limits
            .insert((look.target.clone(), look.action), limit);
        Ok(found)
    }

    /// The hold, with a reason that is as fresh as can be had cheaply.
    async fn hold(
        &mut self,
        around: &Surroundings<'_>,
        look: Look<'_>,
        (wanted, left): (Unapproved<'_>, u64),
        (seen, round): (&Snapshot, &Round),
    ) -> Result<Found, StoreError> {
        let now = round.now;
        let told = Told {
            change_mark: seen.change_mark,
            left,
            at: now.steady,
        };
        let key = (look.target.clone(), look.action);
        let mut present = around.holds.present().iter();
        let old = present.find(|hold| hold.kind == HoldKind::Approval && is_about(hold, &key));
        if let (Some(old), Some(before)) = (old, self.told.get(&key)) {
            let is_true = (before.change_mark, before.left) == (told.change_mark, left);
            let fresh_for = RETOLD_AFTER.saturating_sub(now.steady.since(before.at));
            if is_true || !fresh_for.is_zero() {
                return Ok(Found {
                    hold: Some(old.clone()),
                    again_at: (!is_true).then(|| now.utc + fresh_for),
                });
            }
        }
        let since = old.map_or(now.utc, |old| old.since);
        let hold = look.hold(around.store, (wanted, left), since).await?;
        self.told.insert(key, told);
        Ok(Found {
            hold: Some(hold),
            again_at: None,
        })
    }
}

/// What came of a look at one guard.
#[derive(Default)]
struct Found {
    hold: Option<Hold>,
    /// When to look again even if the queue does not change.
    again_at: Option<UtcMillis>,
}

impl Found {
    fn again_by(self, at: Option<UtcMillis>) -> Self {
        Self {
            again_at: self.again_at.into_iter().chain(at).min(),
            ..self
        }
    }
}

/// One guard.
#[derive(Clone, Copy)]
struct Look<'a> {
    target: &'a TargetName,
    action: PowerAction,
    guard: Budget,
}

impl Look<'_> {
    async fn hold(
        &self,
        store: &Store,
        (wanted, left): (Unapproved<'_>, u64),
        since: UtcMillis,
    ) -> Result<Hold, StoreError> {
        let due = store.count_unapproved(wanted, COUNT_MAX).await?;
        let crowds = store.unapproved_crowds(wanted, ASKED_MAX).await?;
        let waiting = Waiting {
            target: self.target,
            action: self.action,
            due,
            is_more: due >= COUNT_MAX,
            left,
            crowds: &crowds,
        };
        Ok(guard::hold(self.guard, &waiting, since))
    }
}

/// The calls of a guard's span.
struct Calls {
    times: Vec<GuardedCall>,
    batches: Vec<i64>,
}

impl<'a> Look<'a> {
    async fn calls(&self, around: &Surroundings<'_>, round: &Round) -> Result<Calls, StoreError> {
        let since = round.now.utc.before(self.guard.span);
        let found = around
            .store
            .unapproved_calls(self.target, self.action, since)
            .await?;
        Ok(Calls {
            times: found.iter().map(|call| (call.at, call.servers)).collect(),
            batches: found.iter().map(|call| call.batch.0).collect(),
        })
    }

    fn unapproved<'b>(&self, limit: &'b GuardLimit) -> Unapproved<'b>
    where
        'a: 'b,
    {
        Unapproved {
            target: self.target,
            action: self.action,
            counted: &limit.counted,
        }
    }
}

fn is_about(hold: &Hold, (target, action): &(TargetName, PowerAction)) -> bool {
    hold.target.as_ref() == Some(target) && hold.action == Some(*action)
}
