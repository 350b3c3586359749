use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use proptest::prelude::*;

use super::*;

const TIMES: LookTimes = LookTimes {
    first: Duration::from_secs(2),
    interval_max: Duration::from_secs(30),
};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn learned(history: &[f64]) -> LearnedTimes {
    let history: Vec<Duration> = history.iter().map(|took| seconds(*took)).collect();
    LearnedTimes::new(TIMES, &history)
}

fn open(id: i64, age: f64, looks: u32) -> OpenJob {
    OpenJob {
        id: BatchId(id),
        age: seconds(age),
        looks,
    }
}

/// A job all of whose servers end together.
fn took(duration: f64, waited: f64) -> Took {
    Took {
        waited: seconds(waited),
        duration: Some(seconds(duration)),
        servers: Some(ServerEnds {
            half: seconds(duration),
            most: seconds(duration),
        }),
    }
}

/// A cloud that runs one job after another of one target and action, and answers at once.
struct Lane {
    learned: LearnedTimes,
    /// When each job was accepted and how long it takes, in seconds.
    jobs: Vec<(f64, f64)>,
    looks: BTreeMap<usize, u32>,
    due: BTreeMap<usize, f64>,
}

/// What a lane cost.
struct Cost {
    /// Of each job.
    looks: Vec<u32>,
    /// From the end of each job to the look that showed it, as a share of its duration.
    delays: Vec<f64>,
}

impl Lane {
    /// Jobs that are accepted every `gap` seconds.
    fn new(history: &[f64], gap: f64, durations: impl IntoIterator<Item = f64>) -> Self {
        let jobs = durations.into_iter().enumerate();
        Self {
            learned: learned(history),
            jobs: jobs
                .map(|(number, takes)| (number as f64 * gap, takes))
                .collect(),
            looks: BTreeMap::new(),
            due: BTreeMap::new(),
        }
    }

    fn open_job(&self, number: usize, now: f64) -> OpenJob {
        let looks = self.looks.get(&number).copied().unwrap_or(0);
        open(number as i64, now - self.jobs[number].0, looks)
    }

    fn run(mut self) -> Cost {
        let mut delays = vec![0.0; self.jobs.len()];
        let mut arrivals: BinaryHeap<_> = (0..self.jobs.len()).map(Reverse).collect();
        loop {
            let arrival = arrivals.peek().map(|Reverse(number)| *number);
            let due = self.due.iter().min_by(|a, b| a.1.total_cmp(b.1));
            let due = due.map(|(number, at)| (*number, *at));
            match (arrival, due) {
                (Some(number), due) if due.is_none_or(|due| self.jobs[number].0 <= due.1) => {
                    arrivals.pop();
                    let wait = self.learned.first_wait(BatchId(number as i64));
                    let at = self.jobs[number].0 + wait.as_secs_f64();
                    self.due.insert(number, at);
                }
                (_, Some((number, now))) => {
                    if let Some(delay) = self.look(number, now) {
                        delays[number] = delay;
                    }
                }
                (_, None) => break,
            }
        }
        Cost {
            looks: self.looks.into_values().collect(),
            delays,
        }
    }

    /// The delay, if the job had ended.
    fn look(&mut self, number: usize, now: f64) -> Option<f64> {
        let (accepted, takes) = self.jobs[number];
        let job = self.open_job(number, now);
        if let Some(age) = self.learned.put_off(job) {
            self.due.insert(number, accepted + age.as_secs_f64());
            return None;
        }
        *self.looks.entry(number).or_default() += 1;
        let job = self.open_job(number, now);
        if now < accepted + takes {
            self.learned.note_running(job);
            let wait = self.learned.next_wait(job);
            self.due.insert(number, now + wait.as_secs_f64());
            return None;
        }
        self.due.remove(&number);
        self.learned.note_ended(job.id, took(takes, now - accepted));
        self.bring_forward(now);
        Some((now - accepted - takes) / takes)
    }

    fn bring_forward(&mut self, now: f64) {
        if !self.learned.has_news() {
            return;
        }
        self.learned.news_applied();
        for (number, at) in self.due.clone() {
            let accepted = self.jobs[number].0;
            let job = self.open_job(number, now);
            let planned = seconds((at - accepted).max(0.0));
            if let Some(age) = self.learned.brought_forward(job, planned) {
                self.due.insert(number, accepted + age.as_secs_f64());
            }
        }
    }
}

impl Cost {
    fn looks_a_job(&self) -> f64 {
        f64::from(self.looks.iter().sum::<u32>()) / self.looks.len() as f64
    }

    fn delay_at(&self, share: f64) -> f64 {
        let mut delays = self.delays.clone();
        delays.sort_by(f64::total_cmp);
        delays[((delays.len() - 1) as f64 * share) as usize]
    }
}

#[test]
fn alike_jobs_cost_one_look_each_soon_after_their_end() {
    for takes in [2.0, 60.0, 300.0] {
        let cost = Lane::new(&[], takes / 50.0, [takes; 400]).run();
        let costs = (cost.looks_a_job(), cost.delay_at(0.5), cost.delay_at(0.9));
        assert!(
            costs.0 < 1.6 && costs.1 < 0.05 && costs.2 < 0.1,
            "{takes}: {costs:?}"
        );
    }
}

#[test]
fn jobs_that_vary_cost_few_looks_and_no_long_delays() {
    let durations = (0..400).map(|number| 80.0 + 10.0 * f64::from(number * 7 % 9));
    let cost = Lane::new(&[], 2.0, durations).run();
    let costs = (cost.looks_a_job(), cost.delay_at(0.5), cost.delay_at(0.9));
    assert!(
        costs.0 < 2.5 && costs.1 < 0.15 && costs.2 < 0.4,
        "{costs:?}"
    );
}

#[test]
fn a_cloud_that_becomes_ten_times_slower_costs_few_looks() {
    let durations = (0..600).map(|number| if number < 200 { 60.0 } else { 600.0 });
    let cost = Lane::new(&[], 1.2, durations).run();
    let most = cost.looks.iter().max().copied();
    let costs = (cost.looks_a_job(), cost.delay_at(1.0), most);
    assert!(costs.0 < 3.0 && costs.1 <= 1.0, "{costs:?}");
}

#[test]
fn a_cloud_that_becomes_ten_times_faster_is_noticed_within_one_job() {
    let durations = (0..600).map(|number| if number < 200 { 600.0 } else { 60.0 });
    let cost = Lane::new(&[], 1.2, durations).run();
    let longest = cost.delays.iter().copied().fold(0.0, f64::max) * 60.0;
    let costs = (cost.looks_a_job(), longest);
    assert!(costs.0 < 2.5 && costs.1 <= 620.0, "{costs:?}");
}

#[test]
fn jobs_that_hang_do_not_hide_that_others_end() {
    for hanging in [1, 3] {
        let durations = (0..200).map(|number| if number < hanging { 20_000.0 } else { 60.0 });
        let cost = Lane::new(&[], 1.2, durations).run();
        let longest = cost.delays.iter().copied().fold(0.0, f64::max);
        assert!(longest < 4.0, "{hanging}: {longest}");
    }
}

#[test]
fn the_other_servers_do_not_wait_for_the_slowest_one() {
    let mut learned = learned(&[]);
    for number in 0..5 {
        let ends = ServerEnds {
            half: seconds(20.0),
            most: seconds(22.0),
        };
        let took = Took {
            servers: Some(ends),
            ..took(3600.0, 3610.0)
        };
        learned.note_ended(BatchId(number), took);
    }
    let wait = learned.first_wait(BatchId(1));
    assert!(wait >= seconds(22.0) && wait <= seconds(24.0), "{wait:?}");
}

#[test]
fn history_moves_the_first_look_to_where_jobs_end() {
    assert!(learned(&[]).first_wait(BatchId(1)) < seconds(3.0));
    let wait = learned(&[20.0, 21.0, 19.0, 22.0]).first_wait(BatchId(1));
    assert!(wait >= seconds(20.0) && wait <= seconds(25.0), "{wait:?}");
}

#[test]
fn jobs_that_one_slow_server_drew_out_do_not_keep_the_others_waiting() {
    let wait = learned(&[3600.0; 5]).first_wait(BatchId(1));
    assert!(wait >= seconds(30.0) && wait <= seconds(36.0), "{wait:?}");
}

#[test]
fn a_job_beyond_all_history_is_asked_for_at_shares_of_its_age() {
    let mut learned = learned(&[20.0; 8]);
    for (age, least, most) in [(21.0, 1.3, 2.4), (100.0, 6.5, 11.0), (900.0, 19.5, 33.0)] {
        let job = open(1, age, 1);
        learned.note_running(job);
        let wait = learned.next_wait(job);
        assert!(
            wait >= seconds(least) && wait <= seconds(most),
            "{age}: {wait:?}"
        );
    }
}

#[test]
fn jobs_without_own_times_do_not_move_the_look_later_and_later() {
    let mut learned = learned(&[20.0]);
    let mut longest: f64 = 0.0;
    for number in 0..100 {
        let wait = learned.first_wait(BatchId(number as i64));
        let waited = wait.as_secs_f64().max(20.0);
        longest = longest.max(waited);
        let took = Took {
            waited: seconds(waited),
            duration: None,
            servers: None,
        };
        learned.note_ended(BatchId(number as i64), took);
    }
    assert!(longest < 22.0, "{longest}");
}

#[test]
fn a_look_is_put_off_while_enough_older_jobs_still_run() {
    let mut learned = learned(&[]);
    let young = open(9, 31.0, 0);
    for number in 1..=4 {
        assert_eq!(learned.put_off(young), None, "{number}");
        learned.note_running(open(number, 40.0, 2));
    }
    let until = learned.put_off(young);
    assert!(
        until.is_some_and(|until| until > seconds(60.0)),
        "{until:?}"
    );
    let leader = open(1, 47.0, 2);
    assert_eq!(learned.put_off(leader), None, "it is looked at itself");
    learned.forget(BatchId(1));
    assert_eq!(learned.put_off(young), None);
}

#[test]
fn some_looks_are_not_put_off_since_all_older_jobs_may_hang() {
    let mut learned = learned(&[60.0]);
    for number in 1..=4 {
        learned.note_running(open(number, 5000.0, 100));
    }
    let is_looked_at = |age: f64| {
        let jobs = (1000..2600).map(|id| open(id, age, 0));
        jobs.filter(|job| learned.put_off(*job).is_none()).count()
    };
    assert_eq!(is_looked_at(61.5), 1600, "they may have ended");
    let mut learned = self::learned(&[]);
    for number in 1..=4 {
        learned.note_running(open(number, 5000.0, 100));
    }
    let jobs = (1000..2600).map(|id| open(id, 70.0, 0));
    let looked_at = jobs.filter(|job| learned.put_off(*job).is_none()).count();
    assert!((50..150).contains(&looked_at), "{looked_at}");
}

#[test]
fn the_first_end_brings_the_looks_at_other_jobs_forward() {
    let mut learned = learned(&[]);
    assert!(
        learned.has_news(),
        "a restart may find looks planned for anything"
    );
    learned.news_applied();
    learned.note_running(open(1, 40.0, 2));
    assert!(!learned.has_news());
    learned.note_ended(BatchId(1), took(41.0, 42.0));
    assert!(learned.has_news());
    let young = open(2, 40.0, 0);
    let sooner = learned.brought_forward(young, seconds(80.0));
    assert!(
        sooner.is_some_and(|age| age >= seconds(41.0) && age < seconds(43.0)),
        "{sooner:?}"
    );
    assert_eq!(learned.brought_forward(young, seconds(41.0)), None);
    let late = learned.brought_forward(open(2, 70.0, 0), seconds(80.0));
    assert_eq!(late, Some(seconds(70.0)), "it is asked for now");
}

#[test]
fn jobs_that_take_no_time_are_looked_at_at_once() {
    assert_eq!(learned(&[0.0; 5]).first_wait(BatchId(1)), Duration::ZERO);
}

/// As the daemon learns it: of 64 jobs of 10 s one took 3000 s because of one slow server.
fn learn_of_one_slow_server(lane: &mut Lane) {
    for number in 0..64 {
        let whole = if number == 60 { 3000.0 } else { 10.0 };
        let servers = ServerEnds {
            half: seconds(9.9),
            most: seconds(10.0),
        };
        let took = Took {
            servers: Some(servers),
            ..took(whole, whole + 0.2)
        };
        lane.learned.note_ended(BatchId(100_000 + number), took);
    }
    lane.learned.news_applied();
}

#[test]
fn behind_jobs_that_hang_another_one_is_asked_for_in_time() {
    for hanging in [1, 3, 4, 8] {
        for others in 0..12 {
            let history: Vec<f64> = (0..64).map(|n| 9.5 + 0.01 * f64::from(n)).collect();
            let mut durations = vec![7200.0; hanging];
            durations.extend(vec![9.8; others]);
            durations.push(10.6);
            let cost = Lane::new(&history, 5.0, durations).run();
            let late = cost.delays[hanging + others] * 10.6;
            assert!(late < 300.0, "{hanging} hang, {others} others: {late} s");

            let mut durations = vec![7200.0; hanging + others];
            durations.push(100.0);
            let cost = Lane::new(&[], 1.2, durations).run();
            let late = cost.delays[hanging + others] * 100.0;
            assert!(late < 300.0, "without history, {hanging} hang: {late} s");
        }
    }
}

#[test]
fn one_long_job_that_is_remembered_does_not_delay_the_others() {
    let mut lane = Lane::new(&[], 0.5, vec![12.0; 200]);
    learn_of_one_slow_server(&mut lane);
    let cost = lane.run();
    let worst = cost.delays.iter().copied().fold(0.0, f64::max) * 12.0;
    assert!(worst < 120.0, "the cloud became slower: {worst} s");

    let mut durations = vec![2900.0; 4];
    durations.extend(vec![9.9; 60]);
    durations.push(10.6);
    let mut lane = Lane::new(&[], 5.0, durations);
    learn_of_one_slow_server(&mut lane);
    let cost = lane.run();
    let late = cost.delays[64] * 10.6;
    assert!(late < 300.0, "four slow ones run: {late} s");
}

#[test]
fn a_young_leader_is_looked_at_no_sooner_than_allowed() {
    let mut learned = learned(&[]);
    let job = open(43, 1.932, 58);
    learned.note_running(job);
    assert!(learned.next_wait(job) >= TIMES.step_min());
}

/// The first look is planned a little later than the end that it is to show.
#[test]
fn a_job_that_has_outlasted_the_first_end_is_looked_at_again_soon_if_seen_before_the_first_look() {
    for (history, age) in [(1915.375, 32.12), (692.066, 32.0), (692.066, 33.0)] {
        let mut learned = learned(&[history]);
        let job = open(1, age, 1);
        learned.note_running(job);
        assert!(learned.next_wait(job) <= seconds(33.0), "{history}, {age}");
    }
}

proptest! {
    #[test]
    fn every_job_is_seen_to_end_whatever_the_others_did(
        durations in prop::collection::vec(0.01f64..2000.0, 1..60),
        history in prop::collection::vec(0.0f64..2000.0, 0..40),
        gap in 0.0f64..100.0,
    ) {
        let count = durations.len();
        let cost = Lane::new(&history, gap, durations).run();
        prop_assert_eq!(cost.looks.len(), count);
        prop_assert!(cost.delays.iter().all(|delay| delay.is_finite() && *delay >= -1e-6));
    }

    #[test]
    fn looks_at_one_job_are_no_further_apart_than_configured(
        history in prop::collection::vec(0.0f64..2000.0, 0..40),
        age in 0.0f64..5000.0,
        looks in 1u32..1000,
        number in 1i64..1000,
    ) {
        let mut learned = learned(&history);
        let job = open(number, age, looks);
        learned.note_running(job);
        let wait = learned.next_wait(job);
        // What is not known of the servers of ended jobs counts as ended after this and one interval.
        let most = if age < TIMES.first.as_secs_f64() { 36.7 } else { 33.0 };
        prop_assert!(wait <= seconds(most), "{wait:?}");
        prop_assert!(wait >= TIMES.step_min());
    }

    #[test]
    fn first_looks_stay_within_what_was_learned(
        history in prop::collection::vec(0.0f64..2000.0, 1..40),
        number in 1i64..1000,
    ) {
        let longest = history.iter().copied().fold(0.0, f64::max);
        let wait = learned(&history).first_wait(BatchId(number));
        prop_assert!(wait <= seconds(longest * 1.04 + 1e-6));
    }
}
