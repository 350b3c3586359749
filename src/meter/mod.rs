//! The daemon's counters: calls, outcomes, latencies, progress; `web` shows them.
//!
//! Counting is cheap, never waits and never fails. What the queue itself knows is not counted here;
//! `web` reads it when asked. Labels hold no ids, and codes that clouds invent are bounded. Knows
//! nothing of SQL, HTTP or tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::lifecycle::{BatchNext, Event, Outcome, Step};
use crate::model::{
    Batch, BatchState, Evidence, Fault, PowerAction, RequestState, TargetName, UtcMillis,
};

mod labels;

use labels::{
    CallEnd, HookEnd, OutcomeLabels, ReturnLabels, StateLabels, TargetAction, TargetOnly,
};

/// This many different error codes get a label of their own; the others share `other`.
const CODES_MAX: usize = 100;
/// Longer strings are not error codes.
const CODE_LENGTH_MAX: usize = 64;

/// Seconds from when a request could be sent to its call: the linger and one round at best, hours
/// with a budget.
const WAIT_BUCKETS: [f64; 13] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
];
/// Seconds that a cloud takes, or that we wait.
const JOB_BUCKETS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];
const LOOK_BUCKETS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];
const LOOKS_BUCKETS: [f64; 10] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 50.0, 100.0, 500.0];
const SERVERS_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

type Histograms = Family<TargetAction, Histogram, fn() -> Histogram>;

/// See the module. One per process, shared by all that count.
#[derive(Debug)]
pub struct Meter {
    registry: Registry,
    servers: Histograms,
    wait: Histograms,
    first_look: Histograms,
    job: Histograms,
    stored: Histograms,
    looks: Histograms,
    outcomes: Family<OutcomeLabels, Counter>,
    ended: Family<StateLabels, Counter>,
    returns: Family<ReturnLabels, Counter>,
    calls: Family<CallEnd, Counter>,
    throttled: Family<TargetOnly, Counter>,
    rounds: Counter,
    hooks: Family<HookEnd, Counter>,
    dropped: Counter,
    codes: Mutex<BTreeSet<String>>,
    state: Mutex<State>,
}

/// Present values.
#[derive(Debug)]
struct State {
    progress: LoopProgress,
    targets: BTreeMap<TargetName, TargetFacts>,
}

/// How the daemon's loop gets on.
#[derive(Debug, Clone, Copy)]
pub struct LoopProgress {
    /// When the daemon began.
    pub began: Instant,
    /// When a round, or the storing of an answer, last ended, successfully or not.
    pub moved: Option<Instant>,
    /// When the last round ended in which the database worked.
    pub good: Option<Instant>,
    /// The database failed in the last round.
    pub trouble: bool,
    /// Answers that wait to be stored.
    pub unsaved: usize,
    /// Calls in progress for batches.
    pub open_calls: usize,
}

/// What the daemon knows of a target and the queue does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetFacts {
    /// Submit calls a minute, as configured.
    pub configured: u32,
    /// Submit calls a minute at present.
    pub pace: u32,
    /// From a throttled or failed submit call until one is answered.
    pub breaker: bool,
    /// How often in a row the cloud refused its key.
    pub refusals: u32,
}

/// What a call to a cloud was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// All that comes before a submit: a token, the servers' states.
    Prepare,
    /// Start, stop or reboot.
    Submit,
    /// A job.
    Track,
    /// The servers' states.
    Look,
    /// The list of servers, for the inventory.
    List,
}

/// The hooks that there can be.
const HOOKS: [&str; 2] = ["command", "url"];

/// What became of an event for a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was delivered.
    Delivered,
    /// All tries failed.
    Failed,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("poweryard");
        let progress = LoopProgress {
            began: Instant::now(),
            moved: None,
            good: None,
            trouble: false,
            unsaved: 0,
            open_calls: 0,
        };
        let meter = Self {
            servers: Family::new_with_constructor(|| Histogram::new(SERVERS_BUCKETS)),
            wait: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS)),
            first_look: Family::new_with_constructor(|| Histogram::new(LOOK_BUCKETS)),
            job: Family::new_with_constructor(|| Histogram::new(JOB_BUCKETS)),
            stored: Family::new_with_constructor(|| Histogram::new(LOOK_BUCKETS)),
            looks: Family::new_with_constructor(|| Histogram::new(LOOKS_BUCKETS)),
            outcomes: Family::default(),
            ended: Family::default(),
            returns: Family::default(),
            calls: Family::default(),
            throttled: Family::default(),
            rounds: Counter::default(),
            hooks: Family::default(),
            dropped: Counter::default(),
            codes: Mutex::default(),
            state: Mutex::new(State {
                progress,
                targets: BTreeMap::new(),
            }),
            registry: Registry::default(),
        };
        registry.register(
            "batch_servers",
            "Servers in each submit call",
            meter.servers.clone(),
        );
        registry.register(
            "request_wait_seconds",
            "Time from when a request could be sent (its insert, not_before or the end of after_id) to its first submit call",
            meter.wait.clone(),
        );
        registry.register(
            "first_look_seconds",
            "Time from an accepted or lost submit call to the answer of the first look at its job or servers",
            meter.first_look.clone(),
        );
        registry.register(
            "job_duration_seconds",
            "How long the cloud's jobs took",
            meter.job.clone(),
        );
        registry.register(
            "job_end_to_stored_seconds",
            "Time from the end of a job, by the cloud's own times, until its outcomes were stored",
            meter.stored.clone(),
        );
        registry.register(
            "batch_looks",
            "Number of looks at job and servers until a batch was done",
            meter.looks.clone(),
        );
        registry.register(
            "outcomes",
            "Requests that the daemon ended, in detail; requests that a producer cancels do not count",
            meter.outcomes.clone(),
        );
        registry.register(
            "requests_ended",
            "Requests that the daemon ended, by state; starts at 0, so that no increase is missed",
            meter.ended.clone(),
        );
        registry.register(
            "returns",
            "Requests that went back to the queue after a call, by the result of the call",
            meter.returns.clone(),
        );
        registry.register(
            "calls",
            "Calls to the cloud by purpose and result; with access keys, prepare makes no call",
            meter.calls.clone(),
        );
        registry.register(
            "throttled_calls",
            "Calls that the cloud throttled (429)",
            meter.throttled.clone(),
        );
        registry.register(
            "rounds",
            "Rounds of the daemon's loop, good or not",
            meter.rounds.clone(),
        );
        registry.register(
            "notify_deliveries",
            "Events that were delivered to a hook, or could not be",
            meter.hooks.clone(),
        );
        registry.register(
            "notify_dropped",
            "Events that were not delivered, because too many were waiting or the daemon stopped",
            meter.dropped.clone(),
        );
        for hook in HOOKS {
            for told in [Told::Delivered, Told::Failed] {
                drop(meter.hooks.get_or_create(&HookEnd::new(hook, told)));
            }
        }
        Self { registry, ..meter }
    }

    /// A round has ended. `unsaved`: answers that wait to be stored; `open_calls`: calls in
    /// progress for batches.
    pub fn round_ended(&self, good: bool, unsaved: usize, open_calls: usize) {
        self.rounds.inc();
        let now = Instant::now();
        let progress = &mut self.state().progress;
        progress.moved = Some(now);
        progress.good = if good { Some(now) } else { progress.good };
        progress.trouble = !good;
        progress.unsaved = unsaved;
        progress.open_calls = open_calls;
    }

    /// An answer could not be stored; this many wait now. The next round updates the number.
    pub fn database_failed(&self, unsaved: usize) {
        let progress = &mut self.state().progress;
        progress.trouble = true;
        progress.unsaved = unsaved;
    }

    /// The configured targets as they are now.
    pub fn note_targets(&self, targets: impl Iterator<Item = (TargetName, TargetFacts)>) {
        let targets: BTreeMap<TargetName, TargetFacts> = targets.collect();
        let mut state = self.state();
        if state.targets.keys().ne(targets.keys()) {
            // An alert on an increase misses the first event of a new series, so series start at
            // zero.
            for target in targets.keys() {
                for action in PowerAction::ALL {
                    for state in RequestState::ALL.iter().filter(|state| state.is_terminal()) {
                        drop(
                            self.ended
                                .get_or_create(&StateLabels::new(target, *action, *state)),
                        );
                    }
                }
            }
            targets
                .keys()
                .for_each(|target| drop(self.throttled.get_or_create(&TargetOnly::new(target))));
        }
        state.targets = targets;
    }

    /// A call to the cloud has ended, without error or with `fault`, and what follows was stored or
    /// kept.
    pub fn call_ended(&self, target: &TargetName, call: Call, fault: Option<&Fault>) {
        if let Some(Fault::Throttled { .. }) = fault {
            self.throttled.get_or_create(&TargetOnly::new(target)).inc();
        }
        self.calls
            .get_or_create(&CallEnd::new(target, call, fault))
            .inc();
        self.state().progress.moved = Some(Instant::now());
    }

    /// An intent was stored; its call is sent now.
    pub fn claimed(&self, batch: &Batch) {
        let labels = TargetAction::new(&batch.target, batch.action);
        self.servers
            .get_or_create(&labels)
            .observe(f64::from(batch.server_count));
        let wait = self.wait.get_or_create(&labels);
        batch
            .members
            .iter()
            .filter_map(|member| member.waited)
            .for_each(|waited| wait.observe(waited.as_secs_f64()));
    }

    /// The step that followed from the answer to a look was stored.
    pub fn looked(&self, batch: &Batch, step: &Step, now: UtcMillis) {
        if batch.state == BatchState::Submitting {
            return;
        }
        let labels = TargetAction::new(&batch.target, batch.action);
        let accepted_at = batch.accepted_at();
        if batch.looks == 0 {
            self.first_look
                .get_or_create(&labels)
                .observe(now.since(accepted_at).as_secs_f64());
        }
        // A job that is over and still leaves something in doubt is asked for again: counted the
        // first time.
        if let Some(ms) = step.job_ms.filter(|_| batch.doubts == 0) {
            let took = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
            self.job.get_or_create(&labels).observe(took.as_secs_f64());
            self.stored
                .get_or_create(&labels)
                .observe(now.since(accepted_at + took).as_secs_f64());
        }
    }

    /// A step of a batch was stored: its requests ended or went back.
    pub fn stored(&self, batch: &Batch, step: &Step) {
        let mut ends: BTreeMap<&Outcome, u64> = BTreeMap::new();
        let mut gone = 0;
        for (_, event) in &step.moves {
            match event {
                Event::Ended(outcome) => *ends.entry(outcome).or_default() += 1,
                Event::Returned(back) => {
                    let labels = ReturnLabels::new(&batch.target, batch.action, back.result);
                    self.returns.get_or_create(&labels).inc();
                }
                Event::Claimed => continue,
            }
            gone += 1;
        }
        for (end, count) in ends {
            self.ended(
                &batch.target,
                batch.action,
                (end.state, end.evidence, &end.code),
                count,
            );
        }
        if gone == batch.members.len() || step.batch == BatchNext::Done {
            let looks = batch.looks + u32::from(batch.state != BatchState::Submitting);
            self.looks
                .get_or_create(&TargetAction::new(&batch.target, batch.action))
                .observe(f64::from(looks));
        }
    }

    /// This many requests ended with this state, evidence and error code (empty for none).
    pub fn ended(
        &self,
        target: &TargetName,
        action: PowerAction,
        (state, evidence, code): (RequestState, Evidence, &str),
        count: u64,
    ) {
        self.ended
            .get_or_create(&StateLabels::new(target, action, state))
            .inc_by(count);
        let code = self.bounded(code);
        self.outcomes
            .get_or_create(&OutcomeLabels::new(target, action, state, evidence, code))
            .inc_by(count);
    }

    /// An event was delivered to a hook, or was not.
    pub fn told(&self, hook: &'static str, told: Told) {
        self.hooks.get_or_create(&HookEnd::new(hook, told)).inc();
    }

    /// This many events were not delivered.
    pub fn dropped(&self, events: u64) {
        self.dropped.inc_by(events);
    }

    /// How the loop gets on.
    pub fn progress(&self) -> LoopProgress {
        self.state().progress
    }

    /// The configured targets, as last noted.
    pub fn targets(&self) -> BTreeMap<TargetName, TargetFacts> {
        self.state().targets.clone()
    }

    /// All that was counted, as text in the form of the library.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut text, &self.registry);
        text
    }

    /// The code as a label: the first hundred get their own label.
    fn bounded(&self, code: &str) -> String {
        let odd = code.len() > CODE_LENGTH_MAX || code.chars().any(|char| !char.is_ascii_graphic());
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if odd || (!code.is_empty() && !codes.contains(code) && codes.len() >= CODES_MAX) {
            return "other".to_owned();
        }
        if !code.is_empty() && !codes.contains(code) {
            codes.insert(code.to_owned());
        }
        code.to_owned()
    }

    /// Locked only for a few assignments; a panic cannot leave anything important half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OwnCode;

    #[test]
    fn a_cloud_that_invents_codes_cannot_fill_the_memory() {
        let meter = Meter::new();
        let target = TargetName("default".into());
        for number in 0..1000 {
            let code = format!("BMS.{number}");
            meter.ended(
                &target,
                PowerAction::Stop,
                (RequestState::Failed, Evidence::Job, &code),
                1,
            );
        }
        meter.ended(
            &target,
            PowerAction::Stop,
            (RequestState::Failed, Evidence::Job, "two\nlines"),
            1,
        );
        meter.ended(
            &target,
            PowerAction::Stop,
            (RequestState::Succeeded, Evidence::Job, ""),
            1,
        );
        let text = meter.text();
        let series: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("poweryard_outcomes_total{"))
            .collect();
        assert_eq!(series.len(), CODES_MAX + 2, "{text}");
        assert!(
            series
                .iter()
                .any(|line| line.contains("error_code=\"other\"") && line.ends_with(" 901")),
            "{text}"
        );
    }

    #[test]
    fn ends_of_a_configured_target_begin_at_nought() {
        let meter = Meter::new();
        let target = TargetName("default".into());
        let facts = TargetFacts {
            configured: 50,
            pace: 50,
            breaker: false,
            refusals: 0,
        };
        meter.note_targets([(target.clone(), facts)].into_iter());
        let line = "poweryard_requests_ended_total{target=\"default\",action=\"reboot\",state=\"unknown\"}";
        assert!(
            meter.text().contains(&format!("{line} 0\n")),
            "{}",
            meter.text()
        );
        meter.ended(
            &target,
            PowerAction::Reboot,
            (
                RequestState::Unknown,
                Evidence::None,
                OwnCode::Unproved.as_str(),
            ),
            3,
        );
        assert!(
            meter.text().contains(&format!("{line} 3\n")),
            "{}",
            meter.text()
        );
    }
}
