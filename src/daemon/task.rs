//! One call to a cloud, and what a round asks for. Knows nothing of the queue: what follows from an
//! answer is decided and stored by the dispatcher.

use std::sync::Arc;
use std::time::Duration;

use super::inventory;
use crate::cloud::{Observed, PowerCloud, Signed};
use crate::meter::Call;
use crate::model::{
    Batch, CallError, Fault, JobId, JobReport, Listing, Now, OrderId, Origin, ServerId, Steady,
    TargetName, Tracking, UtcMillis,
};
use crate::notify::command;
use crate::store::StoreError;

/// What a round asks for.
pub struct Round {
    /// To be started now.
    pub tasks: Vec<Task>,
    /// Programs to be asked now.
    pub gates: Vec<GateCall>,
    /// When the next round is due if nothing happens before; none: no time is known.
    pub wake_at: Option<UtcMillis>,
    /// Why the round ended early. What it had claimed and picked up by then is in `tasks` anyway.
    pub trouble: Option<StoreError>,
    /// The moment of the round.
    pub(super) now: Now,
}

impl Round {
    pub(super) fn new(now: Now) -> Self {
        Self {
            tasks: Vec::new(),
            gates: Vec::new(),
            wake_at: None,
            trouble: None,
            now,
        }
    }

    /// The next round is due at this time at the latest.
    pub(super) fn wake(&mut self, at: UtcMillis) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// The next round is due at once.
    pub(super) fn wake_now(&mut self) {
        self.wake(self.now.utc);
    }
}

/// The gate of the config is asked whether an order's next wave may leave.
#[derive(Debug)]
pub struct GateCall {
    pub(super) order: OrderId,
    /// The wave that is over.
    pub(super) wave: u64,
    pub(super) command: Vec<String>,
    /// The order, as JSON.
    pub(super) text: String,
    pub(super) timeout: Duration,
}

/// What the gate has said.
#[derive(Debug)]
pub struct GateSaid {
    pub(super) order: OrderId,
    pub(super) wave: u64,
    /// Why not yet, if so.
    pub(super) answer: Result<(), String>,
}

impl GateCall {
    /// What the program gets to read: the order, as JSON.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the program has said, or why it said nothing.
    pub fn answered(self, answer: Result<(), String>) -> GateSaid {
        GateSaid {
            order: self.order,
            wave: self.wave,
            answer,
        }
    }

    /// Runs the program, for no longer than its time limit.
    pub async fn run(self) -> GateSaid {
        let answer = command::ask(&self.command, &self.text, self.timeout).await;
        self.answered(answer)
    }
}

/// Something to do at a cloud.
pub enum Task {
    /// Get ready for submit calls: all that can wait or fail before an intent is stored.
    Prepare {
        /// For whom.
        target: TargetName,
        /// Whose states are part of the intents, for a service that has no jobs.
        servers: Vec<ServerId>,
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
    /// Ask for a batch's job.
    Track {
        /// The batch.
        batch: Batch,
        /// Its job.
        job: JobId,
        /// Where.
        cloud: Arc<dyn PowerCloud>,
    },
    /// Look at the servers of batches of one target, all at once: a list call shows a thousand
    /// servers anyway.
    Look {
        /// For whom.
        target: TargetName,
        /// The batches.
        batches: Vec<Batch>,
        /// Where.
        cloud: Arc<dyn PowerCloud>,
    },
    /// Read the list of a target's servers, for the inventory.
    List {
        /// What for.
        wish: ListWish,
        /// Where.
        cloud: Arc<dyn PowerCloud>,
    },
}

/// A list to be read for the inventory.
#[derive(Debug)]
pub struct ListWish {
    /// Whose servers.
    pub target: TargetName,
    /// Where they are.
    pub origin: Origin,
    /// When the reading begins.
    pub began: Steady,
    /// Most pages that are read.
    pub pages_max: usize,
}

/// A task at the moment of its beginning.
pub enum Begun {
    /// The call is made now.
    Leaves(Task),
    /// A submit call that is not made, since a stop was asked for: its batch, of which nothing has
    /// left.
    Stays(Batch),
}

/// A task with its answer.
#[derive(Debug)]
pub enum Finished {
    /// Ready, or not.
    Prepared {
        /// Who.
        target: TargetName,
        /// Whether, and what the servers look like.
        result: Result<Observed, CallError>,
        /// What the call was made with.
        signed: Signed,
    },
    /// A batch's submit call was answered, or was not.
    Submitted {
        /// The batch as it was when the call was made.
        batch: Batch,
        /// What came.
        answer: Result<Tracking, CallError>,
        /// What the call was made with.
        signed: Signed,
    },
    /// A job was asked for.
    Tracked {
        /// The batch as it was when the call was made.
        batch: Batch,
        /// What came.
        answer: Result<JobReport, CallError>,
        /// What the call was made with.
        signed: Signed,
    },
    /// Servers were looked at.
    Looked {
        /// For whom.
        target: TargetName,
        /// The batches as they were when the call was made.
        batches: Vec<Batch>,
        /// What came.
        answer: Result<Observed, CallError>,
        /// What the call was made with.
        signed: Signed,
    },
    /// A list was read, or was not.
    Listed {
        /// What for.
        wish: ListWish,
        /// What came.
        answer: Result<Listing, CallError>,
        /// What the call was made with.
        signed: Signed,
    },
}

impl Finished {
    /// Whose call it was, what it was for, and how it failed, if it did.
    pub(super) fn end(&self) -> (&TargetName, Call, Option<&Fault>) {
        fn fault<T>(answer: &Result<T, CallError>) -> Option<&Fault> {
            answer.as_ref().err().map(|error| &error.fault)
        }
        match self {
            Self::Prepared { target, result, .. } => (target, Call::Prepare, fault(result)),
            Self::Submitted { batch, answer, .. } => (&batch.target, Call::Submit, fault(answer)),
            Self::Tracked { batch, answer, .. } => (&batch.target, Call::Track, fault(answer)),
            Self::Looked { target, answer, .. } => (target, Call::Look, fault(answer)),
            Self::Listed { wish, answer, .. } => {
                let failure = inventory::what_failed(answer).map(|error| &error.fault);
                (&wish.target, Call::List, failure)
            }
        }
    }
}

impl Task {
    /// Begins it, unless it is a submit call and a stop was asked for.
    pub fn begin(self, is_halted: bool) -> Begun {
        match self {
            Self::Submit { batch, .. } if is_halted => Begun::Stays(batch),
            task => Begun::Leaves(task),
        }
    }

    /// True for a call that a stop waits for; reads are cut short.
    pub fn is_waited_for(&self) -> bool {
        matches!(self, Self::Submit { .. })
    }

    /// Makes the call and returns its answer; never fails otherwise.
    pub async fn run(self) -> Finished {
        match self {
            Self::Prepare {
                target,
                servers,
                cloud,
            } => {
                let result = prepare(&*cloud, &servers).await;
                Finished::Prepared {
                    target,
                    result,
                    signed: cloud.key().signed(),
                }
            }
            Self::Submit { batch, cloud } => {
                let servers = servers(std::slice::from_ref(&batch));
                let answer = cloud.submit(batch.action, &servers).await;
                Finished::Submitted {
                    batch,
                    answer,
                    signed: cloud.key().signed(),
                }
            }
            Self::Track { batch, job, cloud } => {
                let answer = cloud.job(&job).await;
                Finished::Tracked {
                    batch,
                    answer,
                    signed: cloud.key().signed(),
                }
            }
            Self::Look {
                target,
                batches,
                cloud,
            } => {
                let answer = cloud.observe(&servers(&batches)).await;
                Finished::Looked {
                    target,
                    batches,
                    answer,
                    signed: cloud.key().signed(),
                }
            }
            Self::List { wish, cloud } => {
                let answer = cloud.list(wish.pages_max).await;
                Finished::Listed {
                    wish,
                    answer,
                    signed: cloud.key().signed(),
                }
            }
        }
    }
}

async fn prepare(cloud: &dyn PowerCloud, servers: &[ServerId]) -> Result<Observed, CallError> {
    cloud.prepare().await?;
    match servers {
        [] => Ok(Observed::default()),
        servers => cloud.observe(servers).await,
    }
}

fn servers(batches: &[Batch]) -> Vec<ServerId> {
    batches
        .iter()
        .flat_map(|batch| &batch.members)
        .map(|member| member.server.clone())
        .collect()
}
