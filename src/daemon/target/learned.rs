//! What a target's jobs have shown of how long jobs take, by action. Decides nothing.

use crate::lifecycle::{BatchNext, Step};
use crate::model::{Batch, JobReport, PowerAction, TargetName, UtcMillis};
use crate::pace::{ENDED_MAX, LearnedTimes, LookTimes, OpenJob, Took};
use crate::store::{Store, StoreError};

/// See the module.
pub(super) struct Learned {
    start: LearnedTimes,
    stop: LearnedTimes,
    reboot: LearnedTimes,
}

impl Learned {
    /// What the queue knows of earlier jobs.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn load(
        store: &Store,
        target: &TargetName,
        times: LookTimes,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            start: load_one(store, target, PowerAction::Start, times).await?,
            stop: load_one(store, target, PowerAction::Stop, times).await?,
            reboot: load_one(store, target, PowerAction::Reboot, times).await?,
        })
    }

    pub(super) fn reconfigure(&mut self, times: LookTimes) {
        for action in PowerAction::ALL {
            self.of_mut(*action).reconfigure(times);
        }
    }

    pub(super) fn of(&self, action: PowerAction) -> &LearnedTimes {
        match action {
            PowerAction::Start => &self.start,
            PowerAction::Stop => &self.stop,
            PowerAction::Reboot => &self.reboot,
        }
    }

    pub(super) fn of_mut(&mut self, action: PowerAction) -> &mut LearnedTimes {
        match action {
            PowerAction::Start => &mut self.start,
            PowerAction::Stop => &mut self.stop,
            PowerAction::Reboot => &mut self.reboot,
        }
    }

    /// An answer told of a batch's job.
    pub(super) fn note_report(&mut self, batch: &Batch, report: &JobReport, now: UtcMillis) {
        let learned = self.of_mut(batch.action);
        let age = now.since(batch.accepted_at());
        if !report.status.is_over() {
            learned.note_running(OpenJob {
                id: batch.id,
                age,
                looks: batch.looks + 1,
            });
        } else if batch.doubts == 0 {
            // A job that is over and leaves something in doubt is asked for again: it ended before.
            let took = Took {
                waited: age,
                duration: report.duration,
                servers: report.server_ends,
            };
            learned.note_ended(batch.id, took);
        }
    }

    /// Its servers were looked at, and all of them were as wished.
    pub(super) fn note_servers(&mut self, batch: &Batch, now: UtcMillis) {
        let took = Took {
            waited: now.since(batch.accepted_at()),
            duration: None,
            servers: None,
        };
        self.of_mut(batch.action).note_ended(batch.id, took);
    }

    /// What follows for a batch: its job may no longer be asked for.
    pub(super) fn note_step(&mut self, batch: &Batch, step: &Step) {
        match step.batch {
            BatchNext::Look { .. } | BatchNext::Done => {
                self.of_mut(batch.action).forget(batch.id);
            }
            BatchNext::Track { .. } | BatchNext::Again { .. } => {}
        }
    }
}

async fn load_one(
    store: &Store,
    target: &TargetName,
    action: PowerAction,
    times: LookTimes,
) -> Result<LearnedTimes, StoreError> {
    let history = store.job_history(target, action, ENDED_MAX).await?;
    Ok(LearnedTimes::new(times, &history))
}
