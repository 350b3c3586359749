//! One call to a cloud, carried out by itself. Knows nothing of the queue: what follows from the answer is decided and
//! stored by the dispatcher.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cloud::{CallError, PowerCloud};
use crate::model::{BatchState, JobReport, ServerId, Sighting, TargetName, Tracking};
use crate::verdict::Batch;

/// Something to do at a cloud.
pub enum Task {
    /// Get ready for submit calls: all that can wait or fail before an intent is stored.
    Prepare {
        /// For whom.
        target: TargetName,
        /// Where.
        cloud: Arc<dyn PowerCloud>,
    },
    /// Make the call of a batch whose intent is stored.
    Submit {
        /// The batch.
        batch: Batch,
        /// Where.
        cloud: Arc<dyn PowerCloud>,
    },
    /// Ask for a batch's job, or look at its servers.
    Follow {
        /// The batch.
        batch: Batch,
        /// Where.
        cloud: Arc<dyn PowerCloud>,
    },
}

/// A task with its answer.
#[derive(Debug)]
pub enum Finished {
    /// Ready, or not.
    Prepared {
        /// Who.
        target: TargetName,
        /// Whether.
        result: Result<(), CallError>,
    },
    /// A batch's call was answered, or was not.
    Answered {
        /// The batch as it was when the call was made.
        batch: Batch,
        /// What came.
        answer: Answer,
    },
}

/// What a cloud said, or why it said nothing.
#[derive(Debug)]
pub enum Answer {
    /// To the submit call.
    Submit(Result<Tracking, CallError>),
    /// About the job.
    Job(Result<JobReport, CallError>),
    /// About the servers.
    Look(Result<HashMap<ServerId, Sighting>, CallError>),
}

impl Answer {
    /// The error, if it is one.
    pub fn error(&self) -> Option<&CallError> {
        match self {
            Self::Submit(answer) => answer.as_ref().err(),
            Self::Job(answer) => answer.as_ref().err(),
            Self::Look(answer) => answer.as_ref().err(),
        }
    }
}

impl Task {
    /// Makes the call and returns its answer; never fails otherwise.
    pub async fn run(self) -> Finished {
        match self {
            Self::Prepare { target, cloud } => Finished::Prepared { result: cloud.prepare().await, target },
            Self::Submit { batch, cloud } => {
                let servers = servers(&batch);
                let answer = Answer::Submit(cloud.submit(batch.action, &servers).await);
                Finished::Answered { batch, answer }
            }
            Self::Follow { batch, cloud } => {
                let answer = match (&batch.job, batch.state) {
                    (Some(job), BatchState::Tracking) => Answer::Job(cloud.job(job).await),
                    _ => Answer::Look(cloud.observe(&servers(&batch)).await),
                };
                Finished::Answered { batch, answer }
            }
        }
    }
}

fn servers(batch: &Batch) -> Vec<ServerId> {
    batch.members.iter().map(|member| member.server.clone()).collect()
}
