//! When to look at a job, from how long other jobs of its target and action took, or have lasted so
//! far.
//!
//! The ended jobs tell when this one may end: looks are placed where they and late outcomes cost
//! least together. Where no ended job tells, the few that have lasted longest are looked at in
//! steps; the others wait for what these show.
//!
//! Pure: times come in as spans since the cloud accepted a call. Knows nothing of SQL or HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{LookTimes, jittered, jittered_by};
use crate::model::{BatchId, SPLITMIX_STEP, ServerEnds, splitmix};

/// Ended jobs that are remembered.
pub const ENDED_MAX: usize = 64;
/// Of two jobs in a row the older one counts this much of the newer one.
const FADES: f64 = 0.97;
/// A look costs as much as all outcomes of a job do that come late by this share of its duration.
const LOOK_COST: f64 = 0.08;
/// A look is made later than the end that it is to show by this share, and by up to
/// `SCATTER_SHARE` more.
const MARGIN: f64 = 0.015;
const SCATTER_SHARE: f64 = 0.015;
/// So many jobs that have lasted longer are enough to wait for: one or two may hang.
const LEADERS: usize = 4;
/// Of their steps the least share; with as much of it by chance they are hardly longer than the step.
const LEADERS_LEAST: f64 = 0.65;
/// How long jobs are expected to last that have outlasted all ended ones, as a multiple of how long
/// the leaders were seen to run; and without any ended one.
const LASTS_WITH_HISTORY: f64 = 1.25;
const LASTS_WITHOUT_HISTORY: f64 = 2.0;
/// One in so many of the jobs that wait for others is looked at all the same, each time that it has
/// become twice as old: all leaders may hang.
const SAMPLED: u64 = 16;
/// One in so many first looks is made after a quarter of the time: the cloud may have become faster.
const EARLY: u64 = 64;
/// A first look, or a next one, is clearly sooner with this share of what was planned.
const SOONER: f64 = 0.8;
/// A look that is due is put off if it would be later by this share at least.
const WORTH_A_WRITE: f64 = 0.05;
/// The shares of a job's servers that have ended at `ServerEnds::half`, between that and `most`, and
/// after it.
const HALF: f64 = 0.5;
const MOST: f64 = 0.4;
const LAST: f64 = 0.1;

/// A job that runs as far as anybody knows.
#[derive(Debug, Clone, Copy)]
pub struct OpenJob {
    /// Its batch.
    pub id: BatchId,
    /// Since the cloud accepted it.
    pub age: Duration,
    /// Looks so far.
    pub looks: u32,
}

/// How long a job that is over took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Until the answer that showed the end.
    pub waited: Duration,
    /// By the cloud's own times.
    pub duration: Option<Duration>,
    /// When its servers had ended, by the cloud's own times.
    pub servers: Option<ServerEnds>,
}

/// What the jobs of one target and action have shown: how long the last ones took, and how long
/// others have lasted that still run.
#[derive(Debug, Clone)]
pub struct LearnedTimes {
    times: LookTimes,
    /// Newest first.
    ended: VecDeque<EndedJob>,
    /// How old they were when they were last seen running.
    running: BTreeMap<BatchId, Duration>,
    plan: Plan,
    /// The first look that open jobs were planned with.
    planned: Duration,
    is_news: bool,
}

/// When the servers of a job had ended, in seconds since the call was accepted.
#[derive(Debug, Clone, Copy)]
struct EndedJob {
    half: f64,
    most: f64,
    whole: f64,
}

/// A time at which something may end, in seconds.
#[derive(Debug, Clone, Copy)]
struct PossibleEnd {
    at: f64,
    /// How many servers end then.
    servers: f64,
    /// How many jobs end then.
    jobs: f64,
}

/// The best looks, in seconds.
#[derive(Debug, Clone, Default)]
struct Plan {
    /// Possible ends in order, each with the next look at a job that is known to run until just
    /// before it.
    looks: Vec<(f64, f64)>,
    /// How long the longest of the ended jobs took.
    longest: f64,
}

// What was seen.
impl LearnedTimes {
    /// What is known from how long earlier jobs took, newest first. When their servers had ended is
    /// not known.
    pub fn new(times: LookTimes, history: &[Duration]) -> Self {
        let mut learned = Self {
            times,
            ended: VecDeque::new(),
            running: BTreeMap::new(),
            plan: Plan::default(),
            planned: Duration::ZERO,
            is_news: true,
        };
        for took in history.iter().take(ENDED_MAX) {
            learned.ended.push_back(learned.without_servers(*took));
        }
        learned.plan_again();
        learned.planned = learned.first_look();
        learned
    }

    /// Other settings count from now on.
    pub fn reconfigure(&mut self, times: LookTimes) {
        self.times = times;
        self.is_news = true;
        self.plan_again();
    }

    /// A look has shown that the job still runs.
    pub fn note_running(&mut self, job: OpenJob) {
        self.running.insert(job.id, job.age);
        self.plan_again();
    }

    /// A look has shown that the job is over.
    pub fn note_ended(&mut self, id: BatchId, took: Took) {
        let seen = self.running.remove(&id).unwrap_or_default();
        let job = self.ended_job(took, seen);
        let is_longest = job.whole > self.plan.longest;
        let next_before = self.plan.next(seen.as_secs_f64());
        self.ended.push_front(job);
        self.ended.truncate(ENDED_MAX);
        self.plan_again();
        let first = self.first_look();
        let is_sooner =
            first < self.planned.mul_f64(SOONER) || self.looks_sooner(seen, next_before);
        // Open jobs may be waiting for a later end, or as ones that last longer than all others.
        if is_longest || is_sooner {
            self.is_news = true;
        }
        if self.is_news || first > self.planned {
            self.planned = first;
        }
    }

    /// The job is no longer followed.
    pub fn forget(&mut self, id: BatchId) {
        if self.running.remove(&id).is_some() {
            self.plan_again();
        }
    }

    /// True if something was learned because of which open jobs may have to be looked at sooner than
    /// was planned.
    pub fn has_news(&self) -> bool {
        self.is_news
    }

    /// The looks at open jobs are planned as is known now.
    pub fn news_applied(&mut self) {
        self.is_news = false;
    }

    fn ended_job(&self, took: Took, seen: Duration) -> EndedJob {
        let Some(duration) = took.duration else {
            // Somewhere between the last two looks. It must not be taken for the time of the last
            // one, or each job would be looked at a little later than the one before.
            let lower = seen.max(took.waited.mul_f64(0.9));
            return self.without_servers(lower + took.waited.saturating_sub(lower) / 2);
        };
        let whole = duration.max(seen).min(took.waited);
        match took.servers {
            Some(ends) => EndedJob {
                half: ends.half.min(whole).as_secs_f64(),
                most: ends.most.min(whole).as_secs_f64(),
                whole: whole.as_secs_f64(),
            },
            None => self.without_servers(whole),
        }
    }

    /// A job lasts as long as its slowest server; where it is not known when the others had ended,
    /// they must not wait an hour for their outcomes because of it.
    fn without_servers(&self, whole: Duration) -> EndedJob {
        let others = whole.min(self.first_span());
        EndedJob {
            half: others.as_secs_f64(),
            most: others.as_secs_f64(),
            whole: whole.as_secs_f64(),
        }
    }

    fn plan_again(&mut self) {
        let mut ends = Vec::with_capacity(3 * self.ended.len() + 1);
        let mut longest: f64 = 0.0;
        for (job, weight) in self.ended.iter().zip(fading()) {
            longest = longest.max(job.whole);
            ends.extend(job.possible_ends(weight));
        }
        ends.extend(self.end_of_leaders(longest));
        let floor = self.times.step_min().as_secs_f64();
        self.plan = Plan {
            looks: best_looks(ends, floor),
            longest,
        };
    }

    /// When those may end that have outlasted all ended jobs, as their leaders have lasted.
    fn end_of_leaders(&self, longest: f64) -> Option<PossibleEnd> {
        let ages = self.running.values().map(Duration::as_secs_f64);
        let mut beyond: Vec<f64> = ages.filter(|age| *age >= longest).collect();
        beyond.sort_by(|a, b| b.total_cmp(a));
        let led_by = beyond.get(LEADERS - 1)?;
        let times = if self.ended.is_empty() {
            LASTS_WITHOUT_HISTORY
        } else {
            LASTS_WITH_HISTORY
        };
        let weight = fading().take(beyond.len().min(ENDED_MAX)).sum();
        Some(PossibleEnd {
            at: led_by * times,
            servers: weight,
            jobs: weight,
        })
    }
}

// When to look.
impl LearnedTimes {
    /// The wait from the acceptance of a call to the first look at its job.
    pub fn first_wait(&self, id: BatchId) -> Duration {
        let wait = self.first_look();
        let wait = if self.is_early(id) {
            (wait / 4).max(wait.min(self.times.first))
        } else {
            wait
        };
        jittered_by(wait, SCATTER_SHARE, seed(id, 0))
    }

    /// The wait to the next look at a job that was seen running just now, and noted.
    pub fn next_wait(&self, job: OpenJob) -> Duration {
        let wait = self.look_at(job).saturating_sub(job.age);
        let wait = wait.max(self.times.step_min());
        let seed = seed(job.id, job.looks);
        if self.leads(self.seen_running(job.id)) {
            // Not in step with the other leaders: so they show an end sooner.
            let wait = jittered_by(wait.mul_f64(LEADERS_LEAST), LEADERS_LEAST, seed);
            wait.max(self.times.step_min())
        } else {
            jittered(wait, seed)
        }
    }

    /// The age to which a look that is due now is put off, as it would show nothing before; none: it
    /// is worth making.
    pub fn put_off(&self, job: OpenJob) -> Option<Duration> {
        if self.is_sampled(job) {
            return None;
        }
        let worth = job.age.mul_f64(1.0 + WORTH_A_WRITE) + self.times.step_min();
        let at = self.look_at(job);
        (at > worth).then(|| jittered_by(at, SCATTER_SHARE, seed(job.id, job.looks)))
    }

    /// The age at which a job that waits for a look is best looked at, if that is sooner than the
    /// `planned` one.
    pub fn brought_forward(&self, job: OpenJob, planned: Duration) -> Option<Duration> {
        let at = jittered_by(self.look_at(job), SCATTER_SHARE, seed(job.id, job.looks));
        let at = at.max(job.age);
        (at < planned).then_some(at)
    }

    fn first_look(&self) -> Duration {
        self.plan.next(0.0).unwrap_or(self.times.first)
    }

    /// The age at which a job is to be looked at next; less than its present one: now.
    fn look_at(&self, job: OpenJob) -> Duration {
        let seen = self.seen_running(job.id);
        let is_led = self.is_led(seen);
        let planned = self.plan.next(seen.as_secs_f64());
        match planned.filter(|_| !self.leads(seen)) {
            None if seen.is_zero() => self.times.first,
            None => seen + self.step(seen),
            // It takes longer than expected, and nobody else shows how long.
            Some(at) if !seen.is_zero() && !is_led && at > self.first_look() => {
                at.min(seen + self.times.interval_max)
            }
            Some(at) => at.min(self.longest_wait(seen)),
        }
    }

    /// A step for a job of which nothing tells how long it lasts: a share of the time waited.
    fn step(&self, seen: Duration) -> Duration {
        let share = if self.ended.is_empty() {
            seen / 6
        } else {
            seen / 10
        };
        share.clamp(self.times.step_min(), self.times.interval_max)
    }

    /// A job is looked at before it is four times as old as when it was last seen, whatever the others
    /// do; one that was never seen, when all ended ones had ended.
    fn longest_wait(&self, seen: Duration) -> Duration {
        let known = if seen.is_zero() {
            Duration::from_secs_f64(self.plan.longest * (1.0 + MARGIN))
        } else {
            Duration::ZERO
        };
        (4 * seen).max(4 * self.first_span()).max(known)
    }

    /// True if the plan has a clearly sooner look now at jobs that were last seen as old as the one
    /// that has just ended: others of them may have ended too.
    fn looks_sooner(&self, seen: Duration, next_before: Option<Duration>) -> bool {
        let Some(next) = self
            .plan
            .next(seen.as_secs_f64())
            .filter(|_| !seen.is_zero())
        else {
            return false;
        };
        next_before.is_none_or(|before| next < before.mul_f64(SOONER))
    }

    /// True if neither ended jobs nor others that run show how long such a job lasts.
    fn leads(&self, seen: Duration) -> bool {
        let is_within_history = if seen.is_zero() {
            !self.ended.is_empty()
        } else {
            seen.as_secs_f64() < self.plan.longest
        };
        !is_within_history && !self.is_led(seen)
    }

    /// True if enough jobs that have lasted longer are known to run: those are looked at.
    fn is_led(&self, age: Duration) -> bool {
        let leaders = self.running.values().filter(|other| **other > age);
        leaders.take(LEADERS).count() == LEADERS
    }

    /// True for one of the few whose looks are not put off.
    fn is_sampled(&self, job: OpenJob) -> bool {
        let seen = self.seen_running(job.id);
        if job.age.as_secs_f64() <= self.plan.longest {
            return seen.is_zero() && self.is_early(job.id);
        }
        let mut from = self.first_span();
        if job.age < from {
            return false;
        }
        let mut doublings = 0;
        while 2 * from <= job.age {
            from *= 2;
            doublings += 1;
        }
        seen < from && is_one_in(SAMPLED, job.id, doublings)
    }

    fn is_early(&self, id: BatchId) -> bool {
        !self.ended.is_empty() && is_one_in(EARLY, id, 0)
    }

    fn seen_running(&self, id: BatchId) -> Duration {
        self.running.get(&id).copied().unwrap_or_default()
    }

    /// How long the first outcomes of a job may have to wait when nothing is known.
    fn first_span(&self) -> Duration {
        self.times.first + self.times.interval_max
    }
}

impl EndedJob {
    fn possible_ends(self, weight: f64) -> [PossibleEnd; 3] {
        let (half, most, last) = (weight * HALF, weight * MOST, weight * LAST);
        [
            PossibleEnd {
                at: self.half,
                servers: half,
                jobs: 0.0,
            },
            PossibleEnd {
                at: self.most,
                servers: most,
                jobs: 0.0,
            },
            PossibleEnd {
                at: self.whole,
                servers: last,
                jobs: weight,
            },
        ]
    }
}

impl Plan {
    /// The next look at a job that was last seen running at the age of `seen`. None if nothing is
    /// known of jobs that lasted longer.
    fn next(&self, seen: f64) -> Option<Duration> {
        let passed = self.looks.partition_point(|(end, _)| *end <= seen);
        // Jobs that take no time end at the age of zero.
        let first = if seen == 0.0 { 0 } else { passed };
        let (_, look) = self.looks.get(first)?;
        Some(Duration::from_secs_f64(*look))
    }
}

/// 1 for the newest, less for each one before it.
fn fading() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(1.0), |weight| Some(weight * FADES))
}

fn seed(id: BatchId, number: u32) -> u64 {
    (id.0 as u64) << 16 | u64::from(number)
}

fn is_one_in(many: u64, id: BatchId, number: u32) -> bool {
    splitmix(seed(id, number).wrapping_add(SPLITMIX_STEP)).is_multiple_of(many)
}

/// For each possible end the look at which a row of looks is best begun, so that looks and late
/// outcomes together cost least. Outcomes are late by a share of the time that they took; less than
/// `floor` seconds count as `floor`.
fn best_looks(mut ends: Vec<PossibleEnd>, floor: f64) -> Vec<(f64, f64)> {
    ends.sort_by(|a, b| a.at.total_cmp(&b.at));
    ends.dedup_by(|later, kept| {
        let is_same = later.at == kept.at;
        if is_same {
            kept.servers += later.servers;
            kept.jobs += later.jobs;
        }
        is_same
    });
    let count = ends.len();
    // Sums over the first ends, of what an outcome loses in a second, and of that by its time.
    let mut losses = vec![0.0; count + 1];
    let mut weighted = vec![0.0; count + 1];
    for (number, end) in ends.iter().enumerate() {
        let loss = end.servers / end.at.max(floor);
        losses[number + 1] = losses[number] + loss;
        weighted[number + 1] = weighted[number] + loss * end.at;
    }
    // From the last end back: the least cost of all looks that are needed from there on.
    let mut least = vec![0.0; count + 1];
    let mut looks = vec![(0.0, 0.0); count];
    let mut jobs = 0.0;
    for first in (0..count).rev() {
        jobs += ends[first].jobs;
        let mut cost_min = f64::INFINITY;
        for last in first..count {
            let at = ends[last].at * (1.0 + MARGIN);
            let late = at * (losses[last + 1] - losses[first]);
            let cost =
                LOOK_COST * jobs + late - (weighted[last + 1] - weighted[first]) + least[last + 1];
            if cost < cost_min {
                cost_min = cost;
                looks[first] = (ends[first].at, at);
            }
        }
        least[first] = cost_min;
    }
    looks
}

#[cfg(test)]
mod tests;
