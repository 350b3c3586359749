//! What follows from an answer of the cloud: pure functions from a batch and an answer to a `Step`.
//!
//! One file for each kind of answer: the submit call (`submit`), the job (`job`), the servers'
//! states (`look`). What looks have shown in a row is a `Watch`, a value that this process keeps
//! beside an open batch. Knows nothing of SQL, HTTP or clocks. Unknown words and codes fall to the
//! careful side: keep looking, then "unknown".

use std::time::Duration;

use crate::lifecycle::{BatchNext, Event, Outcome, Return};
use crate::model::cloud_codes;
use crate::model::{
    AttemptResult, Baseline, Batch, BatchState, CodeClass, Complaint, Evidence, JobStatus,
    LookCause, Member, PowerAction, UtcMillis,
};
use crate::pace::{self, LookTimes};

mod held;
mod job;
mod look;
mod refusal;
mod submit;
mod watch;

pub use held::while_held;
pub use job::{after_failed_query, after_job, busy_reboots};
pub use look::{after_failed_look, after_look, name_failures};
pub use submit::{after_submit, orphaned_intent, orphaned_target};
pub use watch::{Look, Watch};

/// The limits that verdicts keep to; from the target's settings.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// After this, the servers of a running job are looked at.
    pub job_time_limit: Duration,
    /// Looking at servers ends after this.
    pub look_time_limit: Duration,
    /// The unwished state, idle in a row of looks for so long, proves that nothing was carried
    /// out.
    pub settle_time: Duration,
    /// How many calls may carry one request.
    pub attempts_max: u32,
    /// When to look.
    pub looks: LookTimes,
}

/// A look at the servers of a batch, to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The batch, as it was before the look.
    pub batch: &'a Batch,
    /// What this process has seen of it, this look included.
    pub watch: &'a Watch,
    /// The limits.
    pub rules: &'a Rules,
    /// When the answer was there.
    pub now: UtcMillis,
}

/// Reboots that could pass unseen are looked at closely: this often, for so long. How long CloudDC
/// shows a reboot under way is not documented; a bare-metal server takes minutes to restart.
const CLOSE_INTERVAL: Duration = Duration::from_millis(500);
const CLOSE_SPAN: Duration = Duration::from_secs(60);

impl Rules {
    /// How often to look while a row of looks is to prove something: several times in the longest
    /// gap that a row may have.
    fn watch_interval(&self) -> Duration {
        (self.settle_time / 8).clamp(Duration::from_millis(100), Duration::from_secs(5))
    }
}

impl Batch {
    fn seed(&self) -> u64 {
        (self.id.0 as u64) << 16 | u64::from(self.looks)
    }

    /// The next look while nothing else changes.
    fn again(&self, rules: &Rules, now: UtcMillis, doubts: u32) -> BatchNext {
        let mut wait = rules.looks.next_look(self.looks + 1, self.seed());
        if self.may_pass_unseen() && now.since(self.accepted_at()) < CLOSE_SPAN {
            wait = wait.min(CLOSE_INTERVAL);
        }
        if self.needs_proof() {
            wait = wait.min(rules.watch_interval());
        }
        BatchNext::Again {
            next_look_at: now + wait,
            doubts,
        }
    }

    /// As `again` without doubts, but no later than `latest`.
    fn again_by(&self, latest: UtcMillis, rules: &Rules, now: UtcMillis) -> BatchNext {
        match self.again(rules, now, 0) {
            BatchNext::Again {
                next_look_at,
                doubts,
            } => BatchNext::Again {
                next_look_at: next_look_at.min(latest),
                doubts,
            },
            other => other,
        }
    }

    /// True if a server stood at an ended reboot before it was to be rebooted: only while it is
    /// being done can this reboot be told from that one.
    fn may_pass_unseen(&self) -> bool {
        let stale = |member: &Member| member.shows_old_reboot() && !member.seen_moving;
        self.action.leaves_no_mark() && self.members.iter().any(stale)
    }

    /// True for reboots that the cloud says it did not do: they go again only if looks without a
    /// gap prove it.
    fn needs_proof(&self) -> bool {
        let said_no = matches!(self.look_cause, Some(LookCause::Refused | LookCause::Busy));
        self.action.leaves_no_mark() && self.state == BatchState::Looking && said_no
    }

    /// The cloud itself says that a server was in a transition before the call: one that is seen
    /// may have begun before it.
    fn was_refused_as_busy(&self) -> bool {
        let is_busy =
            |complaint: &Complaint| cloud_codes::class(&complaint.code) == CodeClass::ServerBusy;
        matches!(self.look_cause, Some(LookCause::Refused | LookCause::Lost))
            && self.complaint.as_ref().is_some_and(is_busy)
    }

    /// Looking at the servers begins.
    fn look(&self, cause: LookCause, rules: &Rules, now: UtcMillis) -> BatchNext {
        BatchNext::Look {
            cause,
            until: now + rules.look_time_limit,
            next_look_at: now,
        }
    }

    /// Group number `part` (1 to 3) of those that this batch falls into.
    fn group(&self, part: i64) -> i64 {
        self.id.0 * 4 + part
    }
}

impl Member {
    /// True if the last operation before the call was a reboot that had ended: another one ends in
    /// the same words.
    fn shows_old_reboot(&self) -> bool {
        let operation = match self.baseline {
            Baseline::Known(Some(operation)) => operation,
            Baseline::Known(None) | Baseline::Unknown => return false,
        };
        operation.action.leaves_no_mark() && operation.status != JobStatus::Pending
    }
}

/// Parts of a batch, for `Batch::group`.
const FIRST_PART: i64 = 1;
const SECOND_PART: i64 = 2;
const BUSY_PART: i64 = 3;

/// The server is busy with something: it waits apart, so that it does not spoil the batches of
/// others.
fn busy(batch: &Batch, member: &Member, why: &Complaint, now: UtcMillis) -> Event {
    Event::Returned(Return {
        retry_at: Some(now + pace::busy_delay(member.busy, batch.seed())),
        group: Some(batch.group(BUSY_PART)),
        result: AttemptResult::Busy,
        code: why.code.clone(),
        message: why.message.clone(),
    })
}

/// What an error that is about one server alone means for its request, whichever way it was told.
///
/// `None` where the class does not settle it: the server has to be looked at.
fn about_one_server(
    batch: &Batch,
    member: &Member,
    error: &Complaint,
    evidence: Evidence,
    rules: &Rules,
    now: UtcMillis,
) -> Option<Event> {
    let failed = || Event::Ended(Outcome::failed(evidence, &error.code, &error.message));
    match error.class {
        CodeClass::AlreadyInTargetState if is_as_wished(batch.action, error) => Some(Event::Ended(
            Outcome::succeeded(Evidence::Already, already_sentence(batch.action)),
        )),
        CodeClass::AlreadyInTargetState | CodeClass::ServerPermanent | CodeClass::BatchInvalid => {
            Some(failed())
        }
        // Said by a reboot's own task, it may speak of that very reboot: look.
        CodeClass::ServerBusy if evidence == Evidence::Job && batch.action.leaves_no_mark() => None,
        CodeClass::ServerBusy => Some(busy(batch, member, error, now)),
        // Said of the call, the last two settle nothing; said by the server's own task, all three
        // say that it failed, not how far it had come. Start and stop may be sent again; a reboot
        // may have begun.
        CodeClass::Retryable | CodeClass::RetryableUncertain | CodeClass::Ambiguous
            if evidence == Evidence::Job =>
        {
            match batch.action {
                PowerAction::Start | PowerAction::Stop => Some(again_or(
                    failed,
                    member,
                    error,
                    AttemptResult::Failed,
                    rules,
                    batch,
                    now,
                )),
                PowerAction::Reboot => Some(failed()),
            }
        }
        // Said of the call: the cloud could not do it at that moment and did nothing. Like a busy
        // server, it waits apart.
        CodeClass::Retryable => Some(busy(batch, member, error, now)),
        CodeClass::ServerFailed => Some(failed()),
        CodeClass::RetryableUncertain
        | CodeClass::Ambiguous
        | CodeClass::SubJobFailed
        | CodeClass::JobUnknown
        | CodeClass::AuthToken
        | CodeClass::AuthPermission
        | CodeClass::ConfigPermanent
        | CodeClass::Other => (evidence == Evidence::Job).then(failed),
    }
}

/// Another try while there are tries left, else `last`.
fn again_or(
    last: impl Fn() -> Event,
    member: &Member,
    error: &Complaint,
    result: AttemptResult,
    rules: &Rules,
    batch: &Batch,
    now: UtcMillis,
) -> Event {
    if member.attempts >= rules.attempts_max {
        return last();
    }
    Event::Returned(Return {
        retry_at: Some(now + pace::retry_delay(member.attempts.saturating_sub(1), batch.seed())),
        group: None,
        result,
        code: error.code.clone(),
        message: error.message.clone(),
    })
}

/// BMS.0038 says "running" and BMS.0039 says "stopped"; each is the wish of one action only. A
/// reboot is never "already".
fn is_as_wished(action: PowerAction, error: &Complaint) -> bool {
    match action {
        PowerAction::Start => error.code == "BMS.0038",
        PowerAction::Stop => error.code == "BMS.0039",
        PowerAction::Reboot => false,
    }
}

fn already_sentence(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start => "the server was already running",
        PowerAction::Stop => "the server was already stopped",
        PowerAction::Reboot => "the server had already been rebooted",
    }
}

#[cfg(test)]
mod testing {
    use std::collections::HashMap;

    use super::*;
    use crate::lifecycle::Step;
    use crate::model::{
        BatchId, CallError, JobId, Now, RequestId, ServerId, Service, Sighting, Steady, TargetName,
    };

    pub(super) const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    /// So many seconds after the beginning, on both clocks.
    pub(super) fn at(seconds: u64) -> Now {
        let steady = Steady(Duration::from_secs(1000 + seconds));
        Now {
            utc: NOW + Duration::from_secs(seconds),
            steady,
        }
    }

    pub(super) fn rules() -> Rules {
        Rules {
            job_time_limit: Duration::from_secs(3600),
            look_time_limit: Duration::from_secs(900),
            settle_time: Duration::from_secs(60),
            attempts_max: 3,
            looks: LookTimes {
                first: Duration::from_secs(2),
                interval_max: Duration::from_secs(30),
            },
        }
    }

    pub(super) fn batch(action: PowerAction, state: BatchState, servers: u32) -> Batch {
        let members = (1..=servers).map(|n| Member {
            request: RequestId(i64::from(n)),
            server: ServerId(format!("server-{n}")),
            attempts: 1,
            busy: 0,
            seen_moving: false,
            baseline: Baseline::Unknown,
            shadowed: false,
            waited: None,
        });
        Batch {
            id: BatchId(7),
            target: TargetName("default".into()),
            service: Service::Bms,
            action,
            state,
            job: (state == BatchState::Tracking).then(|| JobId("job".into())),
            intent_at: NOW,
            submitted_at: (state == BatchState::Tracking).then_some(NOW),
            looks: 0,
            doubts: 0,
            from_copy: false,
            server_count: servers,
            look_cause: None,
            look_until: None,
            complaint: None,
            read_error: None,
            members: members.collect(),
        }
    }

    /// A batch that is looked at again and again, as the daemon would.
    #[derive(Debug, Clone)]
    pub(super) struct Looked {
        pub(super) batch: Batch,
        pub(super) watch: Watch,
    }

    impl Looked {
        /// By the process that made its call.
        pub(super) fn new(batch: Batch) -> Self {
            Self {
                batch,
                watch: Watch::of_call(at(0)),
            }
        }

        /// By a process that was started since.
        pub(super) fn resumed(batch: Batch) -> Self {
            Self {
                batch,
                watch: Watch::default(),
            }
        }

        /// A look at this second.
        pub(super) fn look(
            &mut self,
            second: u64,
            sightings: &HashMap<ServerId, Sighting>,
        ) -> Step {
            self.look_between(second, second, sightings)
        }

        pub(super) fn look_between(
            &mut self,
            began: u64,
            ended: u64,
            sightings: &HashMap<ServerId, Sighting>,
        ) -> Step {
            let rules = rules();
            let look = Look {
                began: at(began),
                ended: at(ended),
            };
            self.watch.note_look(&self.batch, sightings, look, &rules);
            let case = Case {
                batch: &self.batch,
                watch: &self.watch,
                rules: &rules,
                now: at(ended).utc,
            };
            let step = after_look(case, sightings);
            self.apply(&step);
            step
        }

        /// A look at this second that shows nothing.
        pub(super) fn fail(&mut self, second: u64, error: &CallError) -> Step {
            let rules = rules();
            self.watch.note_failed_look(&self.batch);
            let case = Case {
                batch: &self.batch,
                watch: &self.watch,
                rules: &rules,
                now: at(second).utc,
            };
            let step = after_failed_look(case, error);
            self.apply(&step);
            step
        }

        fn apply(&mut self, step: &Step) {
            self.watch.note_step(step);
            for member in &mut self.batch.members {
                member.seen_moving |= step.seen_moving.contains(&member.request);
            }
            self.batch
                .members
                .retain(|member| stays(step, member.request.0));
            if let BatchNext::Look { cause, until, .. } = step.batch {
                self.batch.state = BatchState::Looking;
                self.batch.look_cause = Some(cause);
                self.batch.look_until = Some(until);
            }
            self.batch.looks += 1;
        }
    }

    pub(super) fn complaint(code: &str, class: CodeClass) -> Complaint {
        Complaint {
            code: code.into(),
            message: format!("text of {code}"),
            class,
        }
    }

    pub(super) fn ended(step: &Step, request: i64) -> &Outcome {
        match step.moves.iter().find(|(id, _)| id.0 == request) {
            Some((_, Event::Ended(outcome))) => outcome,
            other => panic!("request {request} has not ended: {other:?}"),
        }
    }

    pub(super) fn returned(step: &Step, request: i64) -> &Return {
        match step.moves.iter().find(|(id, _)| id.0 == request) {
            Some((_, Event::Returned(back))) => back,
            other => panic!("request {request} is not back in the queue: {other:?}"),
        }
    }

    pub(super) fn stays(step: &Step, request: i64) -> bool {
        step.moves.iter().all(|(id, _)| id.0 != request)
    }
}
