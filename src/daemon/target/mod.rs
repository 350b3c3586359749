//! A configured target at work: which of its calls are being made, whether it is well, and what is
//! known of the servers whose requests leave next.
//!
//! Its fields are private: each event of its life is a method. Makes no call itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::task::{ListWish, Task};
use crate::cloud::{Key, KeyName, Observed, PowerCloud};
use crate::lifecycle::Step;
use crate::meter::TargetFacts;
use crate::model::{
    Baseline, Batch, Budget, CallError, Head, HoldKind, JobId, JobReport, Lane, Now, Origin,
    PowerAction, RequestId, ServerId, Steady, TargetName, UtcMillis,
};
use crate::pace::{LearnedTimes, LookTimes, Pace};
use crate::plan::windows::Windows;
use crate::settings::TargetSettings;
use crate::store::{Store, StoreError, TargetNews, TargetStatus};
use crate::verdict::Rules;
use baselines::Baselines;
use health::Health;
use learned::Learned;

mod baselines;
mod health;
pub(super) mod keys;
mod learned;
pub(crate) mod refusals;

pub(super) use health::Consequence;

/// What was made ready for a call (a token) is good for this long.
const READY_FOR: Duration = Duration::from_secs(5);
/// Jobs of one target that are asked for at once.
const TRACKING_EACH_MAX: usize = 8;
/// Jobs asked for at once in all: each answer can be a quarter of a megabyte, and as much again
/// when parsed.
const TRACKING_MAX: usize = 32;
/// These each target has for itself, however many the others ask for: one whose answers never come
/// holds up no other.
const TRACKING_OWN: usize = 2;

/// The configured targets.
pub(super) type Targets = BTreeMap<TargetName, Target>;

/// See the module.
pub(super) struct Target {
    settings: TargetSettings,
    /// How long its requests without a time of expiry may wait.
    default_ttl: Option<Duration>,
    origin: Origin,
    cloud: Arc<dyn PowerCloud>,
    rules: Rules,
    /// What the jobs of each action have shown.
    learned: Learned,
    health: Health,
    /// The cloud has accepted the key, and has not refused it since.
    key_accepted: bool,
    readiness: Readiness,
    /// Requests that leave next; their servers are being read.
    heads: Vec<Head>,
    /// What the servers of requests that leave next looked like.
    baselines: Baselines,
    /// Since when its servers are being looked at.
    looking_since: Option<Now>,
    /// The list of its servers is being read.
    is_listing: bool,
    /// Submit calls being made.
    submitting: usize,
    /// Jobs being asked for.
    tracking: usize,
    /// Calls being made, reads included.
    open: usize,
    /// When the last of them was begun.
    opened_at: Steady,
    /// What was last stored of it.
    noted: Option<TargetNews>,
}

/// What the config says of a target.
pub(super) struct Configured<'a> {
    pub(super) settings: &'a TargetSettings,
    /// How many calls may carry one request.
    pub(super) attempts_max: u32,
    /// How long a request without a time of expiry may wait; none: for ever.
    pub(super) default_ttl: Option<Duration>,
    pub(super) cloud: &'a Arc<dyn PowerCloud>,
}

/// Whether a target's next submit call could leave at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Not asked.
    Unknown,
    /// Being asked, since then.
    Preparing(UtcMillis),
    /// Yes, as of this moment.
    Ready(Steady),
}

/// Whether one more submit call may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It may.
    Free,
    /// Not before this time.
    Until(UtcMillis),
    /// Not before one of its own calls has ended.
    AfterOwnCall,
}

/// What was asked before a batch leaves, at its end.
pub(super) struct Preparation {
    /// Whose servers were read.
    pub(super) heads: Vec<Head>,
    pub(super) asked_at: UtcMillis,
}

impl Target {
    /// A target as the queue knows it.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn load(
        store: &Store,
        configured: &Configured<'_>,
        now: UtcMillis,
    ) -> Result<Self, StoreError> {
        let settings = configured.settings;
        let name = &settings.name;
        let rate = settings.submits_per_minute;
        let origin = Self::origin_of(settings);
        let calls = store.recent_calls(name, rate, now).await?;
        let noted = store.noted_pace(name, &origin).await?;
        if noted.is_none() {
            // What kept calls back was met somewhere else: a corrected endpoint is tried at once.
            store.lift_hold(name, HoldKind::Breaker).await?;
        }
        let pace = Pace::new(rate, calls, now);
        let rules = rules(settings, configured.attempts_max);
        Ok(Self {
            origin,
            settings: settings.clone(),
            default_ttl: configured.default_ttl,
            cloud: Arc::clone(configured.cloud),
            rules,
            learned: Learned::load(store, name, rules.looks).await?,
            health: Health::new(name.clone(), pace, noted),
            key_accepted: false,
            readiness: Readiness::Unknown,
            heads: Vec::new(),
            baselines: Baselines::default(),
            looking_since: None,
            is_listing: false,
            submitting: 0,
            tracking: 0,
            open: 0,
            opened_at: Steady(Duration::ZERO),
            noted: None,
        })
    }

    /// Goes on with other limits or another client; what is being done goes on.
    pub(super) fn apply(&mut self, configured: &Configured<'_>) {
        let settings = configured.settings;
        self.health.reconfigure(settings.submits_per_minute);
        self.rules = rules(settings, configured.attempts_max);
        self.learned.reconfigure(self.rules.looks);
        self.settings = settings.clone();
        self.default_ttl = configured.default_ttl;
        self.cloud = Arc::clone(configured.cloud);
        self.noted = None;
    }

    /// Somebody has perhaps fixed what kept calls and reads back.
    pub(super) fn try_again(&mut self) {
        self.health.try_again();
    }

    /// Where `settings` send their batches.
    pub(super) fn origin_of(settings: &TargetSettings) -> Origin {
        let endpoint = settings.endpoint.as_str().trim_end_matches('/').to_owned();
        Origin {
            service: settings.service,
            endpoint,
            project_id: settings.project_id.clone(),
        }
    }

    /// The clock was moved by this many milliseconds.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        self.health.move_times(by_ms);
        self.baselines.move_times(by_ms);
        if let Readiness::Preparing(since) = self.readiness {
            self.readiness = Readiness::Preparing(since.moved(by_ms));
        }
    }
}

// What it is.
impl Target {
    pub(super) fn name(&self) -> &TargetName {
        &self.settings.name
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    /// Most servers in one call.
    pub(super) fn batch_servers_max(&self) -> u32 {
        self.settings.batch_servers_max
    }

    /// How often the list of its servers is read at least; none: it is not.
    pub(super) fn inventory_interval(&self) -> Option<Duration> {
        self.settings.inventory_interval
    }

    pub(super) fn budget_of(&self, action: PowerAction) -> Option<Budget> {
        let mut budgets = self.settings.budgets.iter();
        budgets
            .find(|(budgeted, _)| *budgeted == action)
            .map(|(_, budget)| *budget)
    }

    /// How many requests of an action may leave unapproved.
    pub(super) fn guards(&self) -> &[(PowerAction, Budget)] {
        &self.settings.guards
    }

    /// When its actions may be sent.
    pub(super) fn windows(&self) -> &Windows {
        &self.settings.windows
    }

    /// Servers that are neither stopped nor rebooted.
    pub(super) fn protected(&self) -> &[ServerId] {
        &self.settings.protected
    }

    /// Servers for which this action is rejected.
    pub(super) fn barred_from(&self, action: PowerAction) -> &[ServerId] {
        if action.interrupts() {
            self.protected()
        } else {
            &[]
        }
    }

    /// What is counted of it.
    pub(super) fn facts(&self) -> TargetFacts {
        TargetFacts {
            configured: self.settings.submits_per_minute,
            pace: self.health.noted().rate,
            breaker: self.health.is_in_trouble(),
            refusals: self.key().refusals(),
        }
    }

    fn news(&self) -> TargetNews {
        let guards = self.settings.guards.iter();
        let counted = self.settings.budgets.iter().chain(guards);
        TargetNews {
            configured: self.settings.submits_per_minute,
            pace: self.health.noted(),
            budget_span: counted.map(|(_, budget)| budget.span).max(),
            default_ttl: self.default_ttl,
        }
    }
}

// Its key.
impl Target {
    pub(super) fn key(&self) -> &Key {
        self.cloud.key()
    }

    /// True if its calls are made with this very key and secret.
    pub(super) fn signs_with(&self, key: &KeyName) -> bool {
        self.key().name() == key
    }

    pub(super) fn is_key_accepted(&self) -> bool {
        self.key_accepted
    }

    pub(super) fn set_key_accepted(&mut self, is_accepted: bool) {
        self.key_accepted = is_accepted;
    }
}

// Its calls.
impl Target {
    pub(super) fn has_open_call(&self) -> bool {
        self.open > 0
    }

    /// How long ago the last of the calls being made was begun; none: there is none.
    pub(super) fn open_for(&self, now: Steady) -> Option<Duration> {
        self.has_open_call().then(|| now.since(self.opened_at))
    }

    pub(super) fn call_opens(&mut self, now: Steady) {
        self.open += 1;
        self.opened_at = now;
    }

    pub(super) fn call_closes(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    pub(super) fn room(&mut self, now: UtcMillis) -> Room {
        let most = if self.health.is_in_trouble() {
            1
        } else {
            self.settings.submits_open_max
        };
        let is_preparing = matches!(self.readiness, Readiness::Preparing(_));
        if is_preparing || self.submitting >= most as usize {
            return Room::AfterOwnCall;
        }
        self.health.submit_wait(now).map_or(Room::Free, Room::Until)
    }

    /// True if one call that is being made finds out whether calls for this action arrive again.
    pub(super) fn is_being_probed(&self, action: PowerAction) -> bool {
        self.health.needs_probe(action) && self.submitting > 0
    }

    /// Most servers in the next call for this action.
    pub(super) fn next_servers_max(&self, action: PowerAction) -> u32 {
        if self.health.needs_probe(action) {
            1
        } else {
            self.settings.batch_servers_max
        }
    }

    pub(super) fn is_ready(&self, now: Steady) -> bool {
        matches!(self.readiness, Readiness::Ready(since) if now.since(since) < READY_FOR)
    }

    /// True if the servers of this lane's next requests were read, or need not be.
    pub(super) fn knows_servers(&self, lane: &Lane, now: UtcMillis) -> bool {
        !self.cloud.wants_baselines() || self.baselines.cover(lane, now)
    }

    /// The call that makes ready for a submit, and reads the servers of `heads`.
    pub(super) fn prepare(&mut self, heads: Vec<Head>, now: Now) -> Task {
        self.readiness = Readiness::Preparing(now.utc);
        self.call_opens(now.steady);
        let servers = heads.iter().map(|head| head.server.clone()).collect();
        self.heads = heads;
        Task::Prepare {
            target: self.settings.name.clone(),
            servers,
            cloud: Arc::clone(&self.cloud),
        }
    }

    /// That call has ended.
    pub(super) fn preparation_ended(&mut self, is_ready: bool, now: Now) -> Preparation {
        self.call_closes();
        let asked_at = match self.readiness {
            Readiness::Preparing(since) => since,
            Readiness::Unknown | Readiness::Ready(_) => now.utc,
        };
        self.readiness = if is_ready {
            Readiness::Ready(now.steady)
        } else {
            Readiness::Unknown
        };
        Preparation {
            heads: std::mem::take(&mut self.heads),
            asked_at,
        }
    }

    /// Keeps what was read of the servers of requests that leave next. Returns those that must
    /// wait until when, and why.
    pub(super) fn keep_baselines(
        &mut self,
        preparation: &Preparation,
        observed: &Observed,
        now: UtcMillis,
    ) -> Vec<(RequestId, UtcMillis, &'static str)> {
        let sorted = Baselines::sort(&preparation.heads, observed, preparation.asked_at, now);
        self.baselines = sorted.baselines;
        sorted.put_off
    }

    /// The lane's next requests with what their servers looked like; none if that is not wanted.
    pub(super) fn take_baselines(
        &mut self,
        lane: &Lane,
        servers_max: u32,
    ) -> Option<Vec<(RequestId, Baseline)>> {
        if self.cloud.wants_baselines() {
            Some(self.baselines.take(lane, servers_max))
        } else {
            None
        }
    }

    /// The call of a batch whose intent is stored.
    pub(super) fn submit(&mut self, batch: Batch, now: Steady) -> Task {
        self.health.submit_started();
        self.submitting += 1;
        self.call_opens(now);
        Task::Submit {
            batch,
            cloud: Arc::clone(&self.cloud),
        }
    }

    /// That call has ended, or was not begun.
    pub(super) fn submit_ended(&mut self, now: UtcMillis) {
        self.health.submit_ended(now);
        self.submitting = self.submitting.saturating_sub(1);
        self.call_closes();
    }

    /// The query for a batch's job.
    pub(super) fn track(&mut self, batch: Batch, job: JobId, now: Steady) -> Task {
        self.tracking += 1;
        self.call_opens(now);
        Task::Track {
            batch,
            job,
            cloud: Arc::clone(&self.cloud),
        }
    }

    /// That query has ended.
    pub(super) fn track_ended(&mut self) {
        self.tracking = self.tracking.saturating_sub(1);
        self.call_closes();
    }

    /// True while its servers are being looked at, by one task for all batches that want it.
    pub(super) fn is_looking(&self) -> bool {
        self.looking_since.is_some()
    }

    /// A look at its servers begins: `look` will be the call.
    pub(super) fn look_begins(&mut self, now: Now) {
        self.looking_since = Some(now);
        self.call_opens(now.steady);
    }

    /// The look at the servers of `batches`.
    pub(super) fn look(&self, batches: Vec<Batch>) -> Task {
        Task::Look {
            target: self.settings.name.clone(),
            batches,
            cloud: Arc::clone(&self.cloud),
        }
    }

    /// When the look at its servers began, if there is one.
    pub(super) fn looking_since(&self) -> Option<Now> {
        self.looking_since
    }

    /// True while a call of its own may be reading the list of servers.
    pub(super) fn is_reading_servers(&self) -> bool {
        let is_preparing = matches!(self.readiness, Readiness::Preparing(_));
        self.is_listing || self.is_looking() || (is_preparing && !self.heads.is_empty())
    }

    /// The call that reads the list of its servers.
    pub(super) fn list(&mut self, pages_max: usize, now: Now) -> Task {
        self.is_listing = true;
        self.call_opens(now.steady);
        Task::List {
            wish: ListWish {
                target: self.settings.name.clone(),
                origin: self.origin.clone(),
                began: now.steady,
                pages_max,
            },
            cloud: Arc::clone(&self.cloud),
        }
    }

    /// That call has ended.
    pub(super) fn list_ended(&mut self) {
        self.is_listing = false;
        self.call_closes();
    }

    /// That look has ended. Returns when it began.
    pub(super) fn look_ended(&mut self, now: Now) -> Now {
        self.call_closes();
        self.looking_since.take().unwrap_or(now)
    }
}

// Its jobs.
impl Target {
    /// What the jobs of this action have shown.
    pub(super) fn learned(&self, action: PowerAction) -> &LearnedTimes {
        self.learned.of(action)
    }

    /// The actions of which open jobs may have to be looked at sooner than was planned, because of
    /// what was learned since.
    pub(super) fn actions_with_news(&self) -> Vec<PowerAction> {
        let mut actions = PowerAction::ALL.to_vec();
        actions.retain(|action| self.learned(*action).has_news());
        actions
    }

    /// The looks at open jobs of this action are planned as is known now.
    pub(super) fn news_applied(&mut self, action: PowerAction) {
        self.learned.of_mut(action).news_applied();
    }

    /// An answer told of a batch's job.
    pub(super) fn learn_from_report(&mut self, batch: &Batch, report: &JobReport, now: UtcMillis) {
        self.learned.note_report(batch, report, now);
    }

    /// The servers of a batch without a job were looked at, and this follows.
    pub(super) fn learn_from_look(&mut self, batch: &Batch, step: &Step, now: UtcMillis) {
        if step.job_ms.is_some() {
            self.learned.note_servers(batch, now);
        }
    }

    /// This follows for a batch.
    pub(super) fn note_step(&mut self, batch: &Batch, step: &Step) {
        self.learned.note_step(batch, step);
    }
}

// Its health.
impl Target {
    /// None if it may be asked now, else when.
    pub(super) fn read_wait(&self, now: UtcMillis) -> Option<UtcMillis> {
        self.health.read_wait(now)
    }

    /// What the end of a submit call means for the next ones.
    pub(super) fn after_submit(
        &mut self,
        action: PowerAction,
        error: Option<&CallError>,
        now: UtcMillis,
    ) -> Consequence {
        self.health.after_submit(action, error, now)
    }

    /// What the end of a read means for the target.
    pub(super) fn after_read(&mut self, error: Option<&CallError>, now: UtcMillis) -> Consequence {
        self.health.after_read(error, now)
    }

    /// What it means that the target could not be made ready for a call.
    pub(super) fn after_failed_preparation(
        &mut self,
        error: &CallError,
        has_read: bool,
        now: UtcMillis,
    ) -> Consequence {
        self.health.after_failed_preparation(error, has_read, now)
    }
}

/// True if one more job of this target may be asked for.
pub(super) fn may_track(target: &Target, targets: &Targets) -> bool {
    let in_all: usize = targets.values().map(|other| other.tracking).sum();
    target.tracking < TRACKING_OWN || (target.tracking < TRACKING_EACH_MAX && in_all < TRACKING_MAX)
}

/// Stores what has changed of the targets' paces, so that a restart and `status` know them.
///
/// # Errors
/// Those of the store.
pub(super) async fn store_news(
    targets: &mut Targets,
    store: &Store,
    now: UtcMillis,
) -> Result<(), StoreError> {
    for (name, target) in targets {
        let news = target.news();
        if target.noted != Some(news) {
            let status = TargetStatus {
                target: name,
                origin: &target.origin,
                news,
                now,
            };
            store.note_target(&status).await?;
            target.noted = Some(news);
        }
    }
    Ok(())
}

fn rules(settings: &TargetSettings, attempts_max: u32) -> Rules {
    Rules {
        job_time_limit: settings.job_time_limit,
        look_time_limit: settings.look_time_limit,
        settle_time: settings.settle_time,
        attempts_max,
        looks: LookTimes {
            first: settings.first_look,
            interval_max: settings.look_interval_max,
        },
    }
}
