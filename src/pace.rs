//! How fast to submit and when to look: rolling window, throttling, backoff, learned durations.
//!
//! Pure: time comes in as an argument, jitter from a seed. The only user of the `backoff` crate.
//! Knows nothing of SQL or HTTP.

use std::collections::VecDeque;
use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;

use crate::model::{SPLITMIX_STEP, UtcMillis, splitmix};

mod durations;
mod looks;

pub use durations::usual_duration;
pub use looks::{ENDED_MAX, LearnedTimes, OpenJob, Took};

/// The span that `submits_per_minute` speaks of.
const WINDOW: Duration = Duration::from_secs(60);
/// Without a named wait: after the first throttled call, and at most. Source: the contract; vendor
/// FAQs advise 2 to 5 s.
const THROTTLE_FIRST: Duration = Duration::from_secs(2);
const THROTTLE_MAX: Duration = Duration::from_secs(60);
/// The longest wait that the cloud may name: what is longer is a slip of its clock.
const NAMED_WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// A lowered rate rises again by a quarter after each quiet span of this length.
const QUIET: Duration = Duration::from_secs(300);

/// Looks at one target's servers that are due no further apart than this are made as one.
pub const JOIN_WITHIN: Duration = Duration::from_secs(2);
/// Reboots that could pass unseen are looked at closely: this often, for `CLOSE_SPAN`. How long
/// CloudDC shows a reboot under way is not documented; a bare-metal server takes minutes to
/// restart.
pub const CLOSE_INTERVAL: Duration = Duration::from_millis(500);
/// How long after the call such reboots are looked at closely.
pub const CLOSE_SPAN: Duration = Duration::from_secs(60);
/// Looks of one row may be this far apart even if the settling time is very short.
const PROOF_GAP_MIN: Duration = Duration::from_secs(2);

/// How fast one target's submit calls may follow one another.
///
/// At most `rate` calls in any 60 s. A call occupies its place from its start until 60 s after its
/// end, so that the cloud's own count, taken somewhere between the two, cannot exceed ours.
#[derive(Debug, Clone)]
pub struct Pace {
    configured: u32,
    rate: u32,
    open: u32,
    ended: VecDeque<UtcMillis>,
    throttles: u32,
    blocked_until: Option<UtcMillis>,
    quiet_since: UtcMillis,
}

impl Pace {
    /// A pace of `configured` calls a minute that remembers when the calls of an earlier run
    /// `ended`, in any order.
    pub fn new(
        configured: u32,
        ended: impl IntoIterator<Item = UtcMillis>,
        now: UtcMillis,
    ) -> Self {
        let mut ended: Vec<_> = ended
            .into_iter()
            .filter(|&end| now.since(end) < WINDOW)
            .map(|end| end.min(now))
            .collect();
        // Calls end in another order than they were made; the window is emptied from its front.
        ended.sort_unstable();
        Self {
            configured,
            rate: configured,
            open: 0,
            ended: ended.into(),
            throttles: 0,
            blocked_until: None,
            quiet_since: now,
        }
    }

    /// Takes over what an earlier run had learned: the lowered rate and the throttled calls in a
    /// row.
    pub fn resume(&mut self, rate: u32, throttles: u32) {
        self.rate = rate.clamp(1, self.configured);
        self.throttles = throttles;
    }

    /// Takes a new configured rate, after a reload.
    pub fn reconfigure(&mut self, configured: u32) {
        if self.rate == self.configured {
            self.rate = configured;
        }
        self.configured = configured;
        self.rate = self.rate.min(configured);
    }

    /// None if a call may leave now, else when to ask again.
    pub fn wait(&mut self, now: UtcMillis) -> Option<UtcMillis> {
        self.recover(now);
        // After a clock that stepped back, a call of the "future" counts as one of now.
        self.ended.iter_mut().for_each(|end| *end = (*end).min(now));
        while self
            .ended
            .front()
            .is_some_and(|&end| now.since(end) >= WINDOW)
        {
            self.ended.pop_front();
        }
        if let Some(until) = self.blocked_until.filter(|&until| until > now) {
            return Some(until);
        }
        self.blocked_until = None;
        let taken = self.open as usize + self.ended.len();
        if taken < self.rate as usize {
            return None;
        }
        // The place of the call that must leave the window first; with only open calls the end of
        // one wakes us.
        let excess = taken - self.rate as usize;
        let freeing = self.ended.get(excess).or(self.ended.back());
        Some(freeing.map_or(now + WINDOW, |&end| end + WINDOW))
    }

    /// A call leaves.
    pub fn call_started(&mut self) {
        self.open += 1;
    }

    /// A call ended, however it went.
    pub fn call_ended(&mut self, now: UtcMillis) {
        self.open = self.open.saturating_sub(1);
        self.ended.push_back(now);
    }

    /// The cloud throttled or could not be reached: nothing leaves until the time returned. A
    /// `limit` that the gateway named becomes the rate; without one the rate is halved.
    pub fn throttled(
        &mut self,
        now: UtcMillis,
        retry_after: Option<Duration>,
        limit: Option<(u32, Duration)>,
    ) -> UtcMillis {
        let named = limit.and_then(|(calls, span)| {
            let per_minute =
                f64::from(calls) * WINDOW.as_secs_f64() / span.as_secs_f64().max(0.001);
            (per_minute >= 1.0).then_some(per_minute.min(f64::from(u32::MAX)) as u32)
        });
        let lowered = if self.is_blocked(now) {
            self.rate
        } else {
            self.rate / 2
        };
        self.rate = named.unwrap_or(lowered).clamp(1, self.rate);
        self.quiet_since = now;
        self.hold_back(now, retry_after)
    }

    /// The cloud could not be reached: nothing leaves until the time returned. The rate stays.
    ///
    /// While nothing leaves, only calls that were open beside a failed one can fail: the same
    /// trouble, which counts once.
    pub fn hold_back(&mut self, now: UtcMillis, retry_after: Option<Duration>) -> UtcMillis {
        if let Some(blocked_until) = self.blocked_until.filter(|&until| until > now) {
            let until =
                retry_after.map_or(blocked_until, |wait| blocked_until.max(now + bounded(wait)));
            self.blocked_until = Some(until);
            return until;
        }
        let wait = retry_after
            .unwrap_or_else(|| exponential(THROTTLE_FIRST, 2.0, THROTTLE_MAX, self.throttles));
        self.throttles = self.throttles.saturating_add(1);
        let until = now + bounded(wait);
        self.blocked_until = Some(until);
        until
    }

    /// True while nothing leaves.
    pub fn is_blocked(&self, now: UtcMillis) -> bool {
        self.blocked_until.is_some_and(|until| until > now)
    }

    /// Somebody has perhaps fixed what kept calls back: a call finds out.
    pub fn unblock(&mut self) {
        self.blocked_until = None;
    }

    /// The service answered a call: it can be reached.
    pub fn answered(&mut self) {
        self.throttles = 0;
    }

    /// Calls a minute at present.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Throttled or failed calls in a row.
    pub fn throttles(&self) -> u32 {
        self.throttles
    }

    /// The clock was moved by so many milliseconds, and with it every time that is remembered here.
    pub fn moved(&mut self, by_ms: i64) {
        self.ended
            .iter_mut()
            .for_each(|end| *end = end.moved(by_ms));
        self.blocked_until = self.blocked_until.map(|until| until.moved(by_ms));
        self.quiet_since = self.quiet_since.moved(by_ms);
    }

    fn recover(&mut self, now: UtcMillis) {
        while self.rate < self.configured && now.since(self.quiet_since) >= QUIET {
            self.rate = (self.rate + (self.rate / 4).max(1)).min(self.configured);
            self.quiet_since = self.quiet_since + QUIET;
        }
    }
}

/// A wait between a tenth of a second and a year.
fn bounded(wait: Duration) -> Duration {
    wait.clamp(Duration::from_millis(100), NAMED_WAIT_MAX)
}

/// When one target may be asked again after the cloud throttled a read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reads {
    until: Option<UtcMillis>,
    throttles: u32,
}

impl Reads {
    /// What an earlier run left: nothing is asked before `until`.
    pub fn resumed(until: Option<UtcMillis>) -> Self {
        Self {
            until,
            throttles: 0,
        }
    }

    /// A read was throttled: nothing is asked until the time returned, which is as long as the
    /// cloud named, a year at most, else 2 s doubling to 60 s. Reads that were open beside a
    /// throttled one count once.
    pub fn throttled(&mut self, now: UtcMillis, retry_after: Option<Duration>) -> UtcMillis {
        let present = self.wait(now);
        let until = match (retry_after, present) {
            (Some(wait), _) => now + bounded(wait),
            (None, Some(until)) => until,
            (None, None) => now + exponential(THROTTLE_FIRST, 2.0, THROTTLE_MAX, self.throttles),
        };
        if present.is_none() {
            self.throttles = self.throttles.saturating_add(1);
        }
        let until = present.map_or(until, |present| present.max(until));
        self.until = Some(until);
        until
    }

    /// A read was answered.
    pub fn answered(&mut self) {
        self.throttles = 0;
    }

    /// None if the target may be asked now, else when.
    pub fn wait(&self, now: UtcMillis) -> Option<UtcMillis> {
        self.until.filter(|&until| until > now)
    }

    /// The end of the last wait, past or not.
    pub fn until(&self) -> Option<UtcMillis> {
        self.until
    }

    /// The clock was moved by so many milliseconds.
    pub fn moved(&mut self, by_ms: i64) {
        self.until = self.until.map(|until| until.moved(by_ms));
    }
}

/// When to look, for one target.
#[derive(Debug, Clone, Copy)]
pub struct LookTimes {
    /// From the submit to the first look, without history.
    pub first: Duration,
    /// Looks at a job that takes longer than expected are at most this far apart.
    pub interval_max: Duration,
}

impl LookTimes {
    /// The wait after the look number `looks` (1 is the first), without history: a fraction of the
    /// time already waited, so that a job of an hour is not asked for every two seconds, growing
    /// from a quarter of the first look's wait to `interval_max`.
    pub fn next_look(&self, looks: u32, seed: u64) -> Duration {
        jittered(self.step(looks), seed)
    }

    fn step(&self, looks: u32) -> Duration {
        exponential(
            self.step_min(),
            1.5,
            self.interval_max,
            looks.saturating_sub(1),
        )
    }

    /// The shortest wait between two looks.
    fn step_min(&self) -> Duration {
        (self.first / 4)
            .max(Duration::from_millis(20))
            .min(self.interval_max)
    }
}

/// How often to look while a row of looks is to prove that a server stayed idle for `settle_time`:
/// several times in the longest gap that a row may have.
pub fn proof_interval(settle_time: Duration) -> Duration {
    (settle_time / 8).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

/// The longest gap between two looks of a row that proves something.
pub fn proof_gap_max(settle_time: Duration) -> Duration {
    (settle_time / 2).max(PROOF_GAP_MIN)
}

/// The wait before try number `tries` + 1 of a request that is worth another try: 10 s, doubling to
/// 5 min.
pub fn retry_delay(tries: u32, seed: u64) -> Duration {
    jittered(
        exponential(
            Duration::from_secs(10),
            2.0,
            Duration::from_secs(300),
            tries,
        ),
        seed,
    )
}

/// The wait before a busy server is tried again: 5 s, doubling to 5 min.
pub fn busy_delay(tries: u32, seed: u64) -> Duration {
    jittered(
        exponential(Duration::from_secs(5), 2.0, Duration::from_secs(300), tries),
        seed,
    )
}

/// The wait before a hook is told again: 1 s, then 4 s, up to 1 min.
pub fn hook_delay(tries: u32) -> Duration {
    exponential(Duration::from_secs(1), 4.0, Duration::from_secs(60), tries)
}

/// The wait before a server that has been busy for so long already is looked at again: a quarter of
/// it, 5 s to 5 min.
pub fn busy_wait(busy: Duration, seed: u64) -> Duration {
    jittered(
        (busy / 4).clamp(Duration::from_secs(5), Duration::from_secs(300)),
        seed,
    )
}

/// Interval number `steps` (0 is the first) of an exponential backoff.
///
/// `max_elapsed_time` is off, since it would end polling after 15 minutes of wall clock, and so is
/// the crate's own jitter, since it cannot be seeded.
fn exponential(initial: Duration, multiplier: f64, max: Duration, steps: u32) -> Duration {
    let mut backoff = ExponentialBackoffBuilder::new()
        .with_initial_interval(initial)
        .with_multiplier(multiplier)
        .with_max_interval(max)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    let mut wait = initial;
    for _ in 0..=steps.min(64) {
        wait = backoff.next_backoff().unwrap_or(max);
    }
    wait
}

/// `span` plus up to a tenth of it, decided by `seed`.
fn jittered(span: Duration, seed: u64) -> Duration {
    jittered_by(span, 0.1, seed)
}

/// `span` plus up to `most` of it, decided by `seed`.
fn jittered_by(span: Duration, most: f64, seed: u64) -> Duration {
    let z = splitmix(seed.wrapping_add(SPLITMIX_STEP));
    let share = (z >> 40) as f64 / (1u64 << 24) as f64;
    span.mul_f64(1.0 + share * most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);
    use proptest::prelude::*;

    const T0: UtcMillis = UtcMillis(1_800_000_000_000);

    fn after(seconds: u64) -> UtcMillis {
        T0 + Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_holds_in_any_minute_also_over_a_restart() {
        let mut pace = Pace::new(2, [T0], after(10));
        assert_eq!(pace.wait(after(10)), None);
        pace.call_started();
        pace.call_ended(after(11));
        assert_eq!(
            pace.wait(after(12)),
            Some(after(60)),
            "the call of the earlier run still counts"
        );
        assert_eq!(pace.wait(after(60)), None);
    }

    #[test]
    fn calls_of_an_earlier_run_leave_the_window_in_their_own_order() {
        let mut pace = Pace::new(2, [after(5), T0], after(10));
        assert_eq!(pace.wait(after(10)), Some(after(60)));
        assert_eq!(pace.wait(after(60)), None);
    }

    #[test]
    fn without_a_named_wait_the_waits_double_to_a_minute() {
        let mut pace = Pace::new(50, [], T0);
        let waits: Vec<_> = (0..7)
            .scan(T0, |now, _| {
                let until = pace.hold_back(*now, None);
                let wait = until.since(*now).as_secs();
                *now = until;
                Some(wait)
            })
            .collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn calls_that_were_open_together_and_fail_together_count_once() {
        let mut pace = Pace::new(48, [], T0);
        let first = pace.throttled(T0, None, None);
        for _ in 0..15 {
            assert_eq!(pace.throttled(T0, None, None), first);
        }
        assert_eq!(
            (first.since(T0).as_secs(), pace.rate(), pace.throttles()),
            (2, 24, 1)
        );
        let named = pace.throttled(
            T0,
            Some(Duration::from_secs(9)),
            Some((10, Duration::from_secs(60))),
        );
        assert_eq!(
            (named.since(T0).as_secs(), pace.rate()),
            (9, 10),
            "what the cloud names is heard all the same"
        );
        assert_eq!(
            pace.throttled(T0, Some(Duration::from_secs(3)), None),
            named,
            "the longest wait counts"
        );
        assert_eq!(pace.throttled(named, None, None).since(named).as_secs(), 4);
        assert_eq!((pace.rate(), pace.throttles()), (5, 2));
    }

    #[test]
    fn the_gateways_limit_becomes_the_rate_and_quiet_raises_it_again() {
        let mut pace = Pace::new(50, [], T0);
        let until = pace.throttled(T0, None, Some((10, Duration::from_secs(60))));
        assert_eq!((pace.rate(), pace.wait(T0)), (10, Some(until)));
        assert_eq!(pace.wait(after(3600 * 2)), None);
        assert_eq!(pace.rate(), 50);
    }

    proptest! {
        #[test]
        fn never_more_calls_than_the_rate_in_any_minute(
            rate in 1u32..20,
            steps in prop::collection::vec((0u64..20_000, 0u64..3_000), 1..200),
        ) {
            let mut pace = Pace::new(rate, [], T0);
            let mut now = T0;
            let mut calls: Vec<UtcMillis> = Vec::new();
            for (gap, length) in steps {
                now = now + Duration::from_millis(gap);
                if pace.wait(now).is_none() {
                    pace.call_started();
                    now = now + Duration::from_millis(length);
                    pace.call_ended(now);
                    calls.push(now);
                }
            }
            for (i, &first) in calls.iter().enumerate() {
                let within = calls[i..].iter().filter(|&&call| call.since(first) < WINDOW).count();
                prop_assert!(within <= rate as usize);
            }
        }

        #[test]
        fn looks_are_never_further_apart_than_configured(looks in 0u32..10_000, seed: u64) {
            let times = LookTimes { first: Duration::from_secs(2), interval_max: Duration::from_secs(30) };
            prop_assert!(times.next_look(looks, seed) <= Duration::from_secs(33));
            prop_assert!(times.next_look(looks, seed) >= Duration::from_millis(400));
        }
    }

    #[test]
    fn a_throttled_read_holds_the_others_as_long_as_named_up_to_a_year() {
        let mut reads = Reads::default();
        let day = Duration::from_secs(86_400);
        let until = reads.throttled(NOW, Some(day));
        assert_eq!((until, reads.wait(NOW)), (NOW + day, Some(NOW + day)));
        assert_eq!(
            reads.throttled(NOW, None),
            until,
            "one that was open beside it says nothing more"
        );
        assert_eq!(reads.wait(until), None);
        assert_eq!(reads.throttled(until, Some(day * 1000)), until + day * 365);
        assert_eq!(Reads::resumed(Some(until)).wait(NOW), Some(until));
    }

    #[test]
    fn throttled_reads_without_a_named_wait_wait_twice_as_long_each_time() {
        let (mut reads, mut now) = (Reads::default(), NOW);
        let waits = [2, 4, 8, 16, 32, 60, 60].map(|seconds| {
            let until = reads.throttled(now, None);
            assert_eq!(until.since(now), Duration::from_secs(seconds));
            until.since(std::mem::replace(&mut now, until))
        });
        reads.answered();
        assert_eq!(reads.throttled(now, None).since(now), waits[0]);
    }

    const MINUTE: Duration = Duration::from_secs(60);

    /// A rate of 50 that the gateway has lowered to `rate`, at `T0`.
    fn lowered_to(rate: u32) -> Pace {
        let mut pace = Pace::new(50, [], T0);
        pace.throttled(T0, None, Some((rate, MINUTE)));
        pace
    }

    #[test]
    fn a_lowered_rate_rises_by_a_quarter_after_each_quiet_span() {
        for (lowered, rates) in [(10, [10, 12, 15]), (1, [1, 2, 3])] {
            let mut pace = lowered_to(lowered);
            for (second, rate) in [299, 300, 600].into_iter().zip(rates) {
                pace.wait(after(second));
                assert_eq!(pace.rate(), rate, "{second} s");
            }
        }
    }

    #[test]
    fn what_an_earlier_run_had_learned_is_kept_within_the_configured_rate() {
        for (stored, rate) in [(10, 10), (0, 1), (99, 50)] {
            let mut pace = Pace::new(50, [], T0);
            pace.resume(stored, 3);
            assert_eq!((pace.rate(), pace.throttles()), (rate, 3));
        }
    }

    #[test]
    fn a_new_configured_rate_counts_at_once_unless_the_rate_was_lowered() {
        for (mut pace, configured, rate) in [
            (Pace::new(50, [], T0), 80, 80),
            (Pace::new(50, [], T0), 20, 20),
            (lowered_to(10), 80, 10),
            (lowered_to(10), 5, 5),
        ] {
            pace.reconfigure(configured);
            assert_eq!(pace.rate(), rate);
        }
    }

    #[test]
    fn an_open_call_occupies_its_place_until_a_minute_after_its_end() {
        let mut pace = Pace::new(2, [], T0);
        pace.call_started();
        assert_eq!(pace.wait(T0), None);
        pace.call_started();
        assert_eq!(pace.wait(after(10)), Some(after(70)));
        pace.call_ended(after(20));
        assert_eq!(pace.wait(after(30)), Some(after(80)));
        assert_eq!(pace.wait(after(80)), None);
    }

    #[test]
    fn calls_wait_until_the_time_named_and_no_longer() {
        let mut pace = Pace::new(50, [], T0);
        let until = pace.hold_back(T0, None);
        assert_eq!(pace.wait(T0), Some(until));
        assert_eq!(pace.wait(until), None);
        pace.hold_back(until, None);
        pace.unblock();
        assert_eq!(pace.wait(until), None);
        pace.answered();
        assert_eq!(pace.throttles(), 0);
    }

    #[test]
    fn a_clock_that_is_set_moves_all_that_is_remembered() {
        let mut pace = Pace::new(1, [T0], T0);
        let until = pace.hold_back(T0, Some(Duration::from_secs(30)));
        pace.moved(3_600_000);
        let later = after(3600);
        assert_eq!(pace.wait(later), Some(until.moved(3_600_000)));
        assert_eq!(pace.wait(later + MINUTE / 2), Some(later + MINUTE));
        let mut reads = Reads::resumed(Some(T0));
        reads.moved(-5);
        assert_eq!(reads.until(), Some(T0.moved(-5)));
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn waits_are_as_documented_and_at_most_a_tenth_longer() {
        let times = LookTimes {
            first: seconds(2.0),
            interval_max: seconds(30.0),
        };
        for (name, wait, least) in [
            ("next look", times.next_look(1, 1), 0.5),
            ("third look", times.next_look(2, 1), 0.75),
            ("retry", retry_delay(0, 1), 10.0),
            ("second retry", retry_delay(1, 1), 20.0),
            ("last retry", retry_delay(9, 1), 300.0),
            ("busy", busy_delay(0, 1), 5.0),
            ("hook", hook_delay(0), 1.0),
            ("second hook", hook_delay(1), 4.0),
            ("last hook", hook_delay(9), 60.0),
            ("busy for a second", busy_wait(seconds(1.0), 1), 5.0),
            ("busy for a minute", busy_wait(MINUTE, 1), 15.0),
            ("busy for a day", busy_wait(seconds(86_400.0), 1), 300.0),
        ] {
            assert!(
                wait >= seconds(least) && wait <= seconds(least * 1.1),
                "{name}: {wait:?}"
            );
        }
        assert_ne!(retry_delay(0, 1), retry_delay(0, 2));
    }

    #[test]
    fn a_proof_is_looked_at_several_times_in_its_longest_gap() {
        for (settle_time, interval, gap_max) in
            [(60.0, 5.0, 30.0), (8.0, 1.0, 4.0), (0.1, 0.1, 2.0)]
        {
            let settle_time = seconds(settle_time);
            assert_eq!(proof_interval(settle_time), seconds(interval));
            assert_eq!(proof_gap_max(settle_time), seconds(gap_max));
        }
    }
}
