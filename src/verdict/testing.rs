//! Batches, looks and steps for the tests of verdicts.

use std::collections::HashMap;
use std::time::Duration;

use super::{Case, Look, Rules, Watch, after_failed_look, after_look};
use crate::lifecycle::{BatchNext, Event, Outcome, Return, Step};
use crate::model::{
    Baseline, Batch, BatchId, BatchState, CallError, CodeClass, Complaint, JobId, Member, Now,
    PowerAction, RequestId, ServerId, Service, Sighting, Steady, TargetName, UtcMillis,
};
use crate::pace::{LearnedTimes, LookTimes};

pub(super) const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

/// This many seconds after the beginning, on both clocks.
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

pub(super) fn unlearned() -> LearnedTimes {
    LearnedTimes::new(rules().looks, &[])
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

/// What `verdict` says of the batch at `now`, in a process that has seen nothing of it.
pub(super) fn verdict_at(
    now: UtcMillis,
    batch: &Batch,
    verdict: impl FnOnce(Case<'_>) -> Step,
) -> Step {
    verdict(Case {
        batch,
        watch: &Watch::default(),
        rules: &rules(),
        learned: &unlearned(),
        now,
    })
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
    pub(super) fn look(&mut self, second: u64, sightings: &HashMap<ServerId, Sighting>) -> Step {
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
            sightings,
        };
        self.watch.note_look(&self.batch, look, rules.settle_time);
        let case = Case {
            batch: &self.batch,
            watch: &self.watch,
            rules: &rules,
            learned: &unlearned(),
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
            learned: &unlearned(),
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
