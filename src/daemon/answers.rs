//! What follows from a call that has ended: for its batches, its target, and the key it was made
//! with.
//!
//! Each answer goes the same way: its call is closed, the key and the target learn from it
//! (`target::keys`, `target::health`), `verdict` says what follows for the batch, and the ledger
//! stores that.

use tracing::{debug, warn};

use super::clock::Clocks;
use super::holds::Holds;
use super::inventory::{self, Inventory};
use super::ledger::{Answered, Ledger};
use super::open_batches::OpenBatches;
use super::target::keys::{RefusedKeys, SignedCall};
use super::target::refusals::RefusedCall;
use super::target::{self, Consequence, Preparation, Targets};
use super::task::{Finished, ListWish};
use crate::cloud::{Observed, Signed};
use crate::lifecycle::Step;
use crate::model::{
    Batch, CallError, Fault, Hold, HoldKind, JobReport, Listing, Now, TargetName, Tracking,
};
use crate::store::{Store, StoreError};
use crate::verdict::{self, Case, Look, Rules};

/// The taking in of one answer.
pub(super) struct AnswerPass<'a> {
    pub(super) store: &'a Store,
    pub(super) targets: &'a mut Targets,
    pub(super) holds: &'a mut Holds,
    pub(super) keys: &'a mut RefusedKeys,
    pub(super) clocks: &'a mut Clocks,
    pub(super) batches: &'a mut OpenBatches,
    pub(super) ledger: &'a mut Ledger,
    pub(super) inventory: &'a mut Inventory,
    pub(super) now: Now,
}

/// A look at the servers of one target's batches.
struct EndedLook<'a> {
    answer: &'a Result<Observed, CallError>,
    began: Now,
    rules: Rules,
}

// The answers.
impl AnswerPass<'_> {
    /// Decides what follows from an answer; the ledger stores it.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub(super) async fn take_in(&mut self, finished: Finished) -> Result<(), StoreError> {
        let (target, call, fault) = finished.end();
        self.ledger.meter().call_ended(target, call, fault);
        match finished {
            Finished::Prepared {
                target,
                result,
                signed,
            } => self.prepared(&target, result, &signed).await,
            Finished::Submitted {
                batch,
                answer,
                signed,
            } => self.submitted(batch, answer, &signed).await,
            Finished::Tracked {
                batch,
                answer,
                signed,
            } => self.tracked(batch, answer, &signed).await,
            Finished::Looked {
                target,
                mut batches,
                mut answer,
                signed,
            } => {
                self.take_listing(&target, &mut answer);
                for batch in &mut batches {
                    self.call_ended(batch);
                }
                let call = SignedCall {
                    target: &target,
                    signed: &signed,
                    error: what_ended(&answer),
                };
                self.looked(call, batches, &answer).await
            }
            Finished::Listed {
                wish,
                answer,
                signed,
            } => {
                self.listed(&wish, answer, &signed).await;
                Ok(())
            }
        }
    }

    /// A look that is about to be taken in has perhaps read the list.
    fn take_listing(&mut self, name: &TargetName, answer: &mut Result<Observed, CallError>) {
        if let (Some(target), Ok(observed)) = (self.targets.get(name), answer) {
            let began = target.looking_since().map(|began| began.steady);
            let listing = observed.listing.take();
            self.inventory.take_in(target, listing, began, self.now);
        }
    }

    /// The list of servers was read for the inventory. That it cannot be read holds nothing back;
    /// only what it shows of the key counts.
    async fn listed(
        &mut self,
        wish: &ListWish,
        answer: Result<Listing, CallError>,
        signed: &Signed,
    ) {
        let Some(target) = self.targets.get_mut(&wish.target) else {
            return;
        };
        target.list_ended();
        let is_former = *target.origin() != wish.origin;
        let failure = inventory::what_failed(&answer);
        let is_refused = failure.is_some_and(|error| error.fault == Fault::Credentials);
        let call = SignedCall {
            target: &wish.target,
            signed,
            // A page that was read shows that the key is accepted.
            error: failure.filter(|_| is_refused || answer.is_err()),
        };
        self.learn_of_key(call).await;
        if is_refused {
            self.learn_from_read(call).await;
        }
        if let Some(target) = self.targets.get(&wish.target).filter(|_| !is_former) {
            self.inventory
                .list_ended(target, answer, wish.began, self.now);
        }
    }

    /// A batch whose intent is stored and whose call was not begun, since a stop was asked for at
    /// this moment: nothing of it is in doubt, and its requests are in the queue as before.
    pub(super) fn not_begun(&mut self, batch: Batch) {
        self.batches.call_ended(batch.id);
        if let Some(target) = self.targets.get_mut(&batch.target) {
            target.submit_ended(self.now.utc);
        }
        let step = Step::not_begun(&batch, "the daemon was stopped before the call began");
        self.ledger.take(Answered {
            batch,
            step,
            error: None,
        });
    }

    /// The cloud is ready for calls, or says why not.
    async fn prepared(
        &mut self,
        name: &TargetName,
        result: Result<Observed, CallError>,
        signed: &Signed,
    ) -> Result<(), StoreError> {
        let mut result = without_refused_credentials(result);
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        let preparation = target.preparation_ended(result.is_ok(), self.now);
        let has_read = !preparation.heads.is_empty();
        if let Ok(observed) = &mut result
            && has_read
        {
            let listing = observed.listing.take();
            self.inventory.take_in(target, listing, None, self.now);
        }
        let mut call = SignedCall {
            target: name,
            signed,
            error: result.as_ref().err(),
        };
        // Without a call that was signed, nothing is known of the key.
        if has_read || result.is_err() {
            self.learn_of_key(call).await;
        }
        match &result {
            Ok(observed) if has_read => {
                call.error = observed.ended_by.as_ref();
                self.learn_from_read(call).await;
                self.keep_baselines(name, &preparation, observed).await
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.learn_from_failed_preparation(call, error, has_read)
                    .await;
                Ok(())
            }
        }
    }

    async fn keep_baselines(
        &mut self,
        name: &TargetName,
        preparation: &Preparation,
        observed: &Observed,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        let waits = target.keep_baselines(preparation, observed, self.now.utc);
        match self.store.put_off(&waits).await {
            // They stay where they are, and are looked at again.
            Err(error) if error.is_passing() => Ok(()),
            done => done,
        }
    }

    /// A submit call has ended: what follows for its batch, and for the target's next calls.
    async fn submitted(
        &mut self,
        mut batch: Batch,
        answer: Result<Tracking, CallError>,
        signed: &Signed,
    ) -> Result<(), StoreError> {
        let now = self.now.utc;
        self.call_ended(&mut batch);
        let Some(target) = self.targets.get_mut(&batch.target) else {
            return Ok(());
        };
        target.submit_ended(now);
        let rules = target.rules();
        let error = answer.as_ref().err().cloned();
        let call = SignedCall {
            target: &batch.target,
            signed,
            error: error.as_ref(),
        };
        self.learn_of_key(call).await;
        self.learn_from_submit(call, &batch).await;
        let Some(target) = self.targets.get(&batch.target) else {
            return Ok(());
        };
        let case = Case {
            batch: &batch,
            watch: self.batches.watch(batch.id),
            rules: &rules,
            learned: target.learned(batch.action),
            now,
        };
        let step = verdict::after_submit(case, answer);
        self.take(Answered { batch, step, error });
        Ok(())
    }

    /// A job was asked for.
    async fn tracked(
        &mut self,
        mut batch: Batch,
        answer: Result<JobReport, CallError>,
        signed: &Signed,
    ) -> Result<(), StoreError> {
        let now = self.now.utc;
        self.call_ended(&mut batch);
        let Some(target) = self.targets.get_mut(&batch.target) else {
            return Ok(());
        };
        target.track_ended();
        let rules = target.rules();
        let call = SignedCall {
            target: &batch.target,
            signed,
            error: answer.as_ref().err(),
        };
        self.learn_of_key(call).await;
        self.learn_from_read(call).await;
        let watch = self.batches.watch(batch.id);
        let Some(target) = self.targets.get_mut(&batch.target) else {
            return Ok(());
        };
        if let Ok(job) = &answer {
            watch.note_busy(verdict::busy_reboots(&batch, job));
            target.learn_from_report(&batch, job, now);
        }
        let case = Case {
            batch: &batch,
            watch,
            rules: &rules,
            learned: target.learned(batch.action),
            now,
        };
        let step = match &answer {
            Ok(job) => verdict::after_job(case, job),
            Err(error) => verdict::after_failed_query(case, error),
        };
        let error = answer.err();
        self.take(Answered { batch, step, error });
        Ok(())
    }

    /// Servers were looked at.
    async fn looked(
        &mut self,
        call: SignedCall<'_>,
        batches: Vec<Batch>,
        answer: &Result<Observed, CallError>,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(call.target) else {
            return Ok(());
        };
        let ended = EndedLook {
            answer,
            began: target.look_ended(self.now),
            rules: target.rules(),
        };
        self.learn_of_key(call).await;
        self.learn_from_read(call).await;
        for batch in batches {
            let Some(step) = self.after_look(&batch, &ended) else {
                return Ok(());
            };
            let error = answer.as_ref().err().cloned();
            self.take(Answered { batch, step, error });
        }
        Ok(())
    }

    /// None if the target is gone.
    fn after_look(&mut self, batch: &Batch, ended: &EndedLook<'_>) -> Option<Step> {
        let target = self.targets.get_mut(&batch.target)?;
        let rules = &ended.rules;
        let watch = self.batches.watch(batch.id);
        match ended.answer {
            Ok(observed) => {
                let look = Look {
                    began: ended.began,
                    ended: self.now,
                    sightings: &observed.sightings,
                };
                watch.note_look(batch, look, rules.settle_time);
            }
            Err(_) => watch.note_failed_look(batch),
        }
        let case = Case {
            batch,
            watch,
            rules,
            learned: target.learned(batch.action),
            now: self.now.utc,
        };
        let step = match ended.answer {
            Ok(observed) => {
                let step = verdict::after_look(case, &observed.sightings);
                verdict::name_failures(batch, step, &observed.failures)
            }
            Err(error) => verdict::after_failed_look(case, error),
        };
        target.learn_from_look(batch, &step, self.now.utc);
        Some(step)
    }

    fn call_ended(&mut self, batch: &mut Batch) {
        self.batches.call_ended(batch.id);
        self.clocks.correct_returned(batch);
    }

    fn take(&mut self, answered: Answered) {
        if let Some(target) = self.targets.get_mut(&answered.batch.target) {
            target.note_step(&answered.batch, &answered.step);
        }
        self.batches.note_step(&answered.batch, &answered.step);
        self.ledger.take(answered);
    }
}

// What is learned from them.
impl AnswerPass<'_> {
    async fn learn_of_key(&mut self, call: SignedCall<'_>) {
        let now = self.now.utc;
        for step in self.keys.learn(call, self.targets, now).await {
            let name = step.target.clone();
            if let Err(error) = step.carry_out(self.holds, now).await {
                warn!(target = %name, "cannot remove the hold on target \"{name}\" yet: {error}");
            }
        }
    }

    async fn learn_from_submit(&mut self, call: SignedCall<'_>, batch: &Batch) {
        if self.is_about_former_key(call) {
            return;
        }
        if let Some(target) = self.targets.get_mut(call.target) {
            let consequence = target.after_submit(batch.action, call.error, self.now.utc);
            self.carry_out(consequence, call).await;
        }
    }

    async fn learn_from_read(&mut self, call: SignedCall<'_>) {
        if self.is_about_former_key(call) {
            return;
        }
        if let Some(target) = self.targets.get_mut(call.target) {
            let consequence = target.after_read(call.error, self.now.utc);
            self.carry_out(consequence, call).await;
        }
    }

    async fn learn_from_failed_preparation(
        &mut self,
        call: SignedCall<'_>,
        error: &CallError,
        has_read: bool,
    ) {
        if self.is_about_former_key(call) {
            return;
        }
        if let Some(target) = self.targets.get_mut(call.target) {
            let consequence = target.after_failed_preparation(error, has_read, self.now.utc);
            self.carry_out(consequence, call).await;
        }
    }

    /// True for an error that is about a key that the target no longer has: it says nothing of the
    /// present one.
    fn is_about_former_key(&self, call: SignedCall<'_>) -> bool {
        let is_about_key = call
            .error
            .is_some_and(|error| matches!(error.fault, Fault::Credentials | Fault::Permission));
        let target = self.targets.get(call.target);
        is_about_key && target.is_none_or(|target| !target.signs_with(&call.signed.key))
    }

    async fn carry_out(&mut self, consequence: Consequence, call: SignedCall<'_>) {
        match consequence {
            Consequence::Nothing => {}
            Consequence::Recovered => self.holds.lift_breaker(call.target).await,
            Consequence::Held(hold) => {
                let is_news = !self.is_held(call.target, hold.kind);
                self.hold(hold, is_news).await;
            }
            Consequence::ReadsHeld { hold, is_news } => {
                if let Some(hold) = hold {
                    self.hold(hold, is_news).await;
                }
                self.store_news(call.target).await;
            }
            Consequence::KeyRefused { reason } => self.refuse_key(call, &reason).await,
        }
    }

    fn is_held(&self, name: &TargetName, kind: HoldKind) -> bool {
        self.holds.is_known(name, kind, self.now.utc)
    }

    /// The cloud refused the key: all targets that use it are held.
    async fn refuse_key(&mut self, call: SignedCall<'_>, reason: &str) {
        let was_held = self.is_held(call.target, HoldKind::Credentials);
        let refusal = RefusedCall {
            signed: call.signed,
            target: call.target,
            reason,
        };
        let holds = self.keys.refuse(refusal, self.targets, self.now.utc).await;
        for hold in holds {
            let is_own = hold.target.as_ref() == Some(call.target);
            self.hold(hold, !is_own || !was_held).await;
        }
    }

    async fn hold(&mut self, hold: Hold, is_news: bool) {
        if let (Some(name), Some(until)) = (&hold.target, hold.until) {
            let reason = &hold.reason;
            if is_news {
                warn!(target = %name, hold.until = %until, "target \"{name}\" is held until {until}: {reason}");
            } else {
                debug!(target = %name, hold.until = %until, "target \"{name}\" is held until {until}: {reason}");
            }
        }
        self.holds.put(hold).await;
    }

    /// A restart at this moment remembers the throttled reads too.
    async fn store_news(&mut self, name: &TargetName) {
        let stored = target::store_news(self.targets, self.store, self.now.utc).await;
        if let Err(error) = stored {
            warn!(target = %name, "reads are throttled; the queue cannot store that yet, so it is kept in memory: {error}");
        }
    }
}

/// One server that cannot be read keeps no other request from leaving; what is wrong with it the
/// call itself will show. Refused credentials concern all of them.
fn without_refused_credentials(result: Result<Observed, CallError>) -> Result<Observed, CallError> {
    match result {
        Ok(Observed {
            ended_by: Some(error),
            ..
        }) if error.fault == Fault::Credentials => Err(error),
        result => result,
    }
}

/// What ended a look early.
fn what_ended(answer: &Result<Observed, CallError>) -> Option<&CallError> {
    match answer {
        Ok(observed) => observed.ended_by.as_ref(),
        Err(error) => Some(error),
    }
}
