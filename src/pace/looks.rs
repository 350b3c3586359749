//! When to look at a job, from how long other jobs of its target and action took, or have lasted so
//! far.
//!
//! Pure: times come in as spans since the cloud accepted a call. Knows nothing of SQL or HTTP.

use std::collections::VecDeque;
use std::time::Duration;

use super::{LookTimes, jittered, jittered_by};
use crate::model::{BatchId, ServerEnds};

/// Ended jobs that are remembered.
pub const ENDED_MAX: usize = 32;
/// Running jobs that count beside them.
const RUNNING_MAX: usize = 32;
/// Of two jobs in a row the older one counts this much of the newer one.
const FADES: f64 = 0.9;
/// A look costs as much as all outcomes of a job do that come late by this share of its duration.
const LOOK_COST: f64 = 0.12;
/// A running job is expected to last this many times as long as it was seen to run, when no ended
/// one has lasted longer.
const LASTS_TIMES: f64 = 2.0;
/// A look is made later than the end that it is to show by this share, and by up to
/// `SCATTER_SHARE` more.
const MARGIN: f64 = 0.015;
const SCATTER_SHARE: f64 = 0.015;
/// A job that was looked at more often and still runs tells nothing about the others: it may hang.
const TELLING_LOOKS: u32 = 4;
/// A look that is due is put off if it would be later by this share at least.
const WORTH_A_WRITE: f64 = 0.05;
/// Servers that have ended by `ServerEnds::half`, between that and `most`, and after it.
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
    /// Newest look first.
    running: VecDeque<SeenRunning>,
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

#[derive(Debug, Clone, Copy)]
struct SeenRunning {
    id: BatchId,
    age: Duration,
    looks: u32,
}

/// A time at which something may have ended, in seconds.
#[derive(Debug, Clone, Copy)]
struct PossibleEnd {
    at: f64,
    /// How many servers end then.
    servers: f64,
    /// How many jobs end then.
    jobs: f64,
}

// What was seen.
impl LearnedTimes {
    /// What is known from how long earlier jobs took, newest first. When their servers had ended is
    /// not known.
    pub fn new(times: LookTimes, history: &[Duration]) -> Self {
        let mut learned = Self {
            times,
            ended: VecDeque::new(),
            running: VecDeque::new(),
            planned: Duration::ZERO,
            is_news: true,
        };
        for took in history.iter().take(ENDED_MAX) {
            learned.ended.push_back(learned.without_servers(*took));
        }
        learned
    }

    /// Other settings count from now on.
    pub fn reconfigure(&mut self, times: LookTimes) {
        self.times = times;
        self.is_news = true;
    }

    /// A look has shown that the job still runs; `job.looks` counts that one.
    pub fn note_running(&mut self, job: OpenJob) {
        self.forget(job.id);
        self.running.push_front(SeenRunning {
            id: job.id,
            age: job.age,
            looks: job.looks,
        });
    }

    /// A look has shown that the job is over.
    pub fn note_ended(&mut self, id: BatchId, took: Took) {
        let seen = self.seen_running(id);
        self.forget(id);
        let job = self.ended_job(took, seen);
        let is_longest = self.ended.iter().all(|other| other.whole < job.whole);
        self.ended.push_front(job);
        self.ended.truncate(ENDED_MAX);
        let first = self.first_look();
        let is_sooner = first < self.planned.mul_f64(0.8);
        // Those that were to wait until longer than any other job, or for an end that comes sooner.
        if is_longest || is_sooner {
            self.is_news = true;
        }
        if self.is_news || first > self.planned {
            self.planned = first;
        }
    }

    /// The job is no longer followed.
    pub fn forget(&mut self, id: BatchId) {
        self.running.retain(|job| job.id != id);
    }

    /// True once after something was learned because of which open jobs may have to be looked at
    /// sooner than was planned.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.is_news)
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
        let others = whole.min(self.times.first + self.times.interval_max);
        EndedJob {
            half: others.as_secs_f64(),
            most: others.as_secs_f64(),
            whole: whole.as_secs_f64(),
        }
    }

    fn seen_running(&self, id: BatchId) -> Duration {
        let seen = self.running.iter().find(|job| job.id == id);
        seen.map_or(Duration::ZERO, |job| job.age)
    }
}

// When to look.
impl LearnedTimes {
    /// The wait from the acceptance of a call to the first look.
    pub fn first_wait(&self, seed: u64) -> Duration {
        jittered_by(self.first_look(), SCATTER_SHARE, seed)
    }

    /// The wait to the next look at a job that was seen running just now, and noted.
    pub fn next_wait(&self, job: OpenJob, seed: u64) -> Duration {
        let wait = self.look_at(job).saturating_sub(job.age);
        jittered(wait.max(self.times.step_min()), seed)
    }

    /// The age to which a look that is due now is put off, as it would show nothing before; none: it
    /// is worth making.
    pub fn put_off(&self, job: OpenJob, seed: u64) -> Option<Duration> {
        let at = self.look_at(job);
        let worth = job.age.mul_f64(1.0 + WORTH_A_WRITE) + self.times.step_min();
        (at > worth).then(|| jittered_by(at, SCATTER_SHARE, seed))
    }

    /// The age at which a job that waits for a look is best looked at now, if that is sooner than
    /// the `planned` one.
    pub fn brought_forward(&self, job: OpenJob, planned: Duration, seed: u64) -> Option<Duration> {
        let at = jittered_by(self.look_at(job), SCATTER_SHARE, seed).max(job.age);
        (at < planned).then_some(at)
    }

    fn first_look(&self) -> Duration {
        self.plan(None, Duration::ZERO, Duration::ZERO)
            .unwrap_or(self.times.first)
    }

    /// The age at which a job is to be looked at next; less than its present one: now.
    fn look_at(&self, job: OpenJob) -> Duration {
        let seen = self.seen_running(job.id);
        let plan = self.plan(Some(job.id), seen, job.age);
        if seen.is_zero() {
            return plan.unwrap_or(self.times.first);
        }
        let latest = seen + self.times.interval_max;
        match plan {
            Some(at) if self.is_outlasted(job.id, seen) => at,
            Some(at) => at.min(latest),
            None if self.ended.is_empty() => seen + self.times.step(job.looks),
            None => seen + (seen / 10).clamp(self.times.step_min(), self.times.interval_max),
        }
    }

    /// True if another job that has lasted longer is known to run: that one is looked at.
    fn is_outlasted(&self, id: BatchId, age: Duration) -> bool {
        self.telling(Some(id)).any(|other| other.age > age)
    }

    /// The running jobs that tell something about others, without the one that is asked about.
    fn telling(&self, except: Option<BatchId>) -> impl Iterator<Item = &SeenRunning> {
        self.running
            .iter()
            .take(RUNNING_MAX)
            .filter(move |job| Some(job.id) != except && job.looks <= TELLING_LOOKS)
    }

    /// The best time of the next look at a job of `age` that was last seen running at the age of
    /// `seen`. None if nothing is known of jobs that lasted longer.
    fn plan(&self, except: Option<BatchId>, seen: Duration, age: Duration) -> Option<Duration> {
        let seen = seen.as_secs_f64();
        let mut ends = self.possible_ends(except, seen);
        ends.retain(|end| end.at > seen || (seen == 0.0 && end.at == 0.0));
        ends.sort_by(|a, b| a.at.total_cmp(&b.at));
        let floor = self.times.step_min().as_secs_f64();
        best_look(&ends, age.as_secs_f64(), floor).map(Duration::from_secs_f64)
    }

    /// When a job that was seen running at the age of `seen` may end: as the ended ones did. One
    /// that still runs counts as one of those that took longer.
    fn possible_ends(&self, except: Option<BatchId>, seen: f64) -> Vec<PossibleEnd> {
        let mut weights: Vec<f64> = fading().take(self.ended.len()).collect();
        let before: Vec<f64> = weights.clone();
        let mut ends = Vec::new();
        for (job, weight) in self.telling(except).zip(fading()) {
            let age = job.age.as_secs_f64();
            if age <= seen {
                continue;
            }
            let longer = self.ended.iter().map(|ended| ended.whole > age);
            let of_longer: f64 = longer
                .clone()
                .zip(&before)
                .map(|(is_longer, weight)| if is_longer { *weight } else { 0.0 })
                .sum();
            if of_longer == 0.0 {
                ends.push(PossibleEnd {
                    at: age * LASTS_TIMES,
                    servers: weight,
                    jobs: weight,
                });
                continue;
            }
            for (number, is_longer) in longer.enumerate() {
                if is_longer {
                    weights[number] += weight * before[number] / of_longer;
                }
            }
        }
        for (job, weight) in self.ended.iter().zip(weights) {
            ends.extend(job.possible_ends(weight));
        }
        ends
    }
}

impl EndedJob {
    fn possible_ends(self, weight: f64) -> [PossibleEnd; 3] {
        let servers = |at: f64, share: f64| PossibleEnd {
            at,
            servers: weight * share,
            jobs: 0.0,
        };
        [
            servers(self.half, HALF),
            servers(self.most, MOST),
            PossibleEnd {
                jobs: weight,
                ..servers(self.whole, LAST)
            },
        ]
    }
}

/// 1 for the newest, less for each one before it.
fn fading() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(1.0), |weight| Some(weight * FADES))
}

/// Where the first of several looks is best made, so that looks and late outcomes together cost
/// least. `ends` are in order. Outcomes are late by a share of the time that they took; less than
/// `floor` seconds count as `floor`. No look is before `age`.
fn best_look(ends: &[PossibleEnd], age: f64, floor: f64) -> Option<f64> {
    let count = ends.len();
    // Sums over the first ends: of servers by their times, and of servers.
    let mut by_time = vec![0.0; count + 1];
    let mut shares = vec![0.0; count + 1];
    for (number, end) in ends.iter().enumerate() {
        let share = end.servers / end.at.max(floor);
        shares[number + 1] = shares[number] + share;
        by_time[number + 1] = by_time[number] + share * end.at;
    }
    // The least cost from each end on, and the look with which it is reached.
    let mut least = vec![0.0; count + 1];
    let mut look = None;
    let mut running = 0.0;
    for first in (0..count).rev() {
        running += ends[first].jobs;
        let mut cost_min = f64::INFINITY;
        for last in first..count {
            let at = (ends[last].at * (1.0 + MARGIN)).max(age);
            let late =
                at * (shares[last + 1] - shares[first]) - (by_time[last + 1] - by_time[first]);
            let cost = LOOK_COST * running + late + least[last + 1];
            if cost < cost_min {
                cost_min = cost;
                look = Some(at);
            }
        }
        least[first] = cost_min;
    }
    look
}

#[cfg(test)]
mod tests;
