//! When an action may be sent: the windows and freezes of the config, by the clock on the wall of
//! their time zones. Pure: the time is an argument, and the zones are part of the program.
//!
//! A span is a question about the wall clock at one instant. So the hour that a clock change skips
//! never comes, and the one that it repeats counts twice, as the clock shows them. When the answer
//! changes is found by asking again at each instant at which it can: a mark of the wall clock, or a
//! clock change.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::model::{Hold, HoldKind, PowerAction, TargetName, UtcMillis};

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;
/// No opening is looked for beyond this.
const HORIZON: Duration = Duration::from_secs(366 * 86_400);

/// The windows and freezes of one target. By default none: every action may be sent at any time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Windows {
    /// The spans in which these actions may be sent; the others may at any time.
    pub spans: BTreeMap<PowerAction, Vec<Span>>,
    /// Days on which nothing is sent that interrupts a server.
    pub freezes: Vec<Freeze>,
}

/// Whether an action may be sent at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowState {
    /// It may, until then; none: for a year at least.
    Open {
        /// When that ends.
        until: Option<UtcMillis>,
    },
    /// It may not, until then; none: not within a year.
    Closed {
        /// When it may be sent again.
        until: Option<UtcMillis>,
        /// A sentence for the operator, which names the opening.
        why: String,
    },
}

impl WindowState {
    /// When this state ends.
    pub fn until(&self) -> Option<UtcMillis> {
        match self {
            Self::Open { until } | Self::Closed { until, .. } => *until,
        }
    }
}

/// The hold of a closed window; none while it is open.
pub fn hold(
    target: &TargetName,
    action: PowerAction,
    state: WindowState,
    now: UtcMillis,
) -> Option<Hold> {
    let WindowState::Closed { until, why } = state else {
        return None;
    };
    Some(Hold {
        target: Some(target.clone()),
        action: Some(action),
        label: None,
        kind: HoldKind::Window,
        reason: why,
        since: now,
        until,
    })
}

impl Windows {
    /// True if there is a time at which this action may not be sent.
    pub fn limit(&self, action: PowerAction) -> bool {
        self.spans.contains_key(&action) || self.frozen_days(action).next().is_some()
    }

    /// Whether `action` may be sent at `now`, and when that changes.
    pub fn state(&self, action: PowerAction, now: UtcMillis) -> WindowState {
        let until = self.next_change(action, now, now + HORIZON);
        if self.is_open(action, now) {
            return WindowState::Open { until };
        }
        let why = self.why_closed(action, now, until);
        WindowState::Closed { until, why }
    }

    /// The longest time without an opening that begins within a year of `now`: from when, and for
    /// how long. Freezes do not count, since they are meant to keep requests waiting.
    pub fn longest_closure(
        &self,
        action: PowerAction,
        now: UtcMillis,
    ) -> Option<(UtcMillis, Duration)> {
        let spans = Self {
            spans: self.spans.clone(),
            freezes: Vec::new(),
        };
        let end = now + HORIZON;
        let mut longest = None;
        let mut at = now;
        while at < end {
            let next = spans.next_change(action, at, end).unwrap_or(end);
            let lasts = next.since(at);
            if !spans.is_open(action, at) && longest.is_none_or(|(_, longer)| lasts > longer) {
                longest = Some((at, lasts));
            }
            at = next;
        }
        longest
    }

    fn is_open(&self, action: PowerAction, at: UtcMillis) -> bool {
        let spans = self.spans.get(&action);
        let is_in_window = spans.is_none_or(|spans| spans.iter().any(|span| span.contains(at)));
        is_in_window && !self.frozen_days(action).any(|days| days.contains(at))
    }

    fn frozen_days(&self, action: PowerAction) -> impl Iterator<Item = &Freeze> {
        self.freezes.iter().filter(move |_| action.interrupts())
    }

    /// When `action` may be sent, or no longer; none: not up to `end`.
    fn next_change(
        &self,
        action: PowerAction,
        now: UtcMillis,
        end: UtcMillis,
    ) -> Option<UtcMillis> {
        let is_open = self.is_open(action, now);
        let mut at = now;
        loop {
            at = self.next_mark(action, at)?;
            if at > end {
                return None;
            }
            if self.is_open(action, at) != is_open {
                return Some(at);
            }
        }
    }

    /// The first instant after `at` at which the answer may change; none: there is nothing to
    /// change it.
    fn next_mark(&self, action: PowerAction, at: UtcMillis) -> Option<UtcMillis> {
        let spans = self.spans.get(&action).into_iter().flatten();
        let of_spans = spans.map(|span| span.zone.next_mark(at, &[span.from, span.to]));
        let of_days = self
            .frozen_days(action)
            .map(|days| days.zone.next_mark(at, &[]));
        of_spans.chain(of_days).min()
    }

    fn why_closed(&self, action: PowerAction, now: UtcMillis, until: Option<UtcMillis>) -> String {
        let freeze = self.frozen_days(action).find(|days| days.contains(now));
        let closed = match freeze {
            Some(days) => format!("{action} is frozen (freeze = \"{days}\")"),
            None => format!("{action} is outside its window"),
        };
        let Some(until) = until else {
            return format!("{closed}, and no window opens within a year");
        };
        let spans = self.spans.get(&action).into_iter().flatten();
        let opening = spans
            .filter(|span| span.contains(until))
            .map(|span| &span.zone);
        let zone = opening.chain(freeze.map(|days| &days.zone)).next();
        let local = zone
            .map(|zone| format!(" ({})", zone.show(until)))
            .unwrap_or_default();
        format!("{closed} until {until}{local}")
    }
}

/// `"Mon..Fri 20:00-06:00 Europe/Berlin"`: times of the day on some days of the week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    text: String,
    /// From Monday on.
    days: [bool; 7],
    /// In milliseconds of the day.
    from: i64,
    /// Likewise; not after `from`: on the next day.
    to: i64,
    zone: Zone,
}

/// How to write a span, at the end of a message.
const SPAN_EXAMPLE: &str = "write for example \"Mon..Fri 20:00-06:00 Europe/Berlin\"";

impl Span {
    /// Reads a span as the config has it.
    ///
    /// # Errors
    /// A sentence that says what is wrong and how to write it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace().peekable();
        let begins_with_times = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let days = match words.next_if(|word| !begins_with_times(word)) {
            Some(days) => days_of(days)?,
            None => [true; 7],
        };
        let times = words
            .next()
            .ok_or_else(|| format!("{text:?} has no times; {SPAN_EXAMPLE}"))?;
        let (from, to) = times_of(times)?;
        let zone = Zone::parse(words.next())?;
        if let Some(word) = words.next() {
            return Err(format!("{word:?} is too much; {SPAN_EXAMPLE}"));
        }
        Ok(Self {
            text: text.to_owned(),
            days,
            from,
            to,
            zone,
        })
    }

    fn contains(&self, at: UtcMillis) -> bool {
        let wall = self.zone.wall(at);
        let begins_on = |day: i64| self.days[weekday(day)];
        if self.from < self.to {
            return begins_on(wall.day) && (self.from..self.to).contains(&wall.time);
        }
        (begins_on(wall.day) && wall.time >= self.from)
            || (begins_on(wall.day - 1) && wall.time < self.to)
    }
}

/// As it was written.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `"2026-12-20..2027-01-03 Europe/Berlin"`: whole days on which nothing is interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    text: String,
    /// Days since 1970-01-01.
    first: i64,
    /// Likewise; it is frozen, too.
    last: i64,
    zone: Zone,
}

/// How to write a freeze, at the end of a message.
const FREEZE_EXAMPLE: &str = "write for example \"2026-12-20..2027-01-03 Europe/Berlin\"";

impl Freeze {
    /// Reads a freeze as the config has it.
    ///
    /// # Errors
    /// A sentence that says what is wrong and how to write it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let days = words
            .next()
            .ok_or_else(|| format!("{text:?} has no date; {FREEZE_EXAMPLE}"))?;
        let (first, last) = days.split_once("..").unwrap_or((days, days));
        let first = date(first)?;
        let last = date(last)?;
        if last < first {
            return Err(format!("{days:?} ends before it begins; {FREEZE_EXAMPLE}"));
        }
        let zone = Zone::parse(words.next())?;
        if let Some(word) = words.next() {
            return Err(format!("{word:?} is too much; {FREEZE_EXAMPLE}"));
        }
        Ok(Self {
            text: text.to_owned(),
            first,
            last,
            zone,
        })
    }

    /// True if all of it has passed.
    pub fn is_over(&self, now: UtcMillis) -> bool {
        self.zone.wall(now).day > self.last
    }

    /// How long it lasts, by a clock that is never changed.
    pub fn length(&self) -> Duration {
        let days = u64::try_from(self.last - self.first + 1).unwrap_or(0);
        Duration::from_secs(days.saturating_mul(86_400))
    }

    fn contains(&self, at: UtcMillis) -> bool {
        (self.first..=self.last).contains(&self.zone.wall(at).day)
    }
}

/// As it was written.
impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A time zone by the program's own copy of the zone database.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Zone {
    name: String,
    rules: TimeZone,
}

/// What a clock on the wall shows.
#[derive(Debug, Clone, Copy)]
struct Wall {
    /// Days since 1970-01-01.
    day: i64,
    /// Milliseconds of the day.
    time: i64,
}

impl Zone {
    /// None: UTC.
    fn parse(name: Option<&str>) -> Result<Self, String> {
        let name = name.unwrap_or("UTC");
        let rules = TimeZone::get(name).map_err(|_| {
            format!("{name:?} is not a time zone; write a name such as Europe/Berlin or America/New_York, or UTC")
        })?;
        Ok(Self {
            name: name.to_owned(),
            rules,
        })
    }

    fn wall(&self, at: UtcMillis) -> Wall {
        let offset = self.rules.to_offset(timestamp(at)).seconds();
        let local = at.0.saturating_add(i64::from(offset) * 1000);
        Wall {
            day: local.div_euclid(DAY_MS),
            time: local.rem_euclid(DAY_MS),
        }
    }

    /// The first instant after `at` at which the wall clock shows midnight or one of `marks`, or is
    /// changed. Until the next change it runs evenly, so that no mark is missed.
    fn next_mark(&self, at: UtcMillis, marks: &[i64]) -> UtcMillis {
        let time = self.wall(at).time;
        let today = marks.iter().copied().filter(|mark| *mark > time);
        let mark = today.min().unwrap_or(DAY_MS).min(DAY_MS);
        let by_clock = at.moved(mark - time);
        let mut changes = self.rules.following(timestamp(at));
        match changes.next() {
            Some(change) => by_clock.min(UtcMillis(change.timestamp().as_millisecond())),
            None => by_clock,
        }
    }

    /// Such as `Thu 2026-11-26 20:00 Europe/Berlin`.
    fn show(&self, at: UtcMillis) -> String {
        let local = timestamp(at).to_zoned(self.rules.clone());
        format!("{} {}", local.strftime("%a %Y-%m-%d %H:%M"), self.name)
    }
}

fn timestamp(at: UtcMillis) -> Timestamp {
    let low = Timestamp::MIN.as_millisecond();
    let high = Timestamp::MAX.as_millisecond();
    Timestamp::from_millisecond(at.0.clamp(low, high)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// From Monday on; 1970-01-01 was a Thursday.
fn weekday(day: i64) -> usize {
    (day + 3).rem_euclid(7) as usize
}

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// `Mon..Fri`, `Sat,Sun`, or both forms mixed.
fn days_of(text: &str) -> Result<[bool; 7], String> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let mut day = day_of(first)?;
        let last = day_of(last)?;
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Ok(days)
}

fn day_of(word: &str) -> Result<usize, String> {
    let found = DAYS.iter().position(|day| day.eq_ignore_ascii_case(word));
    found.ok_or_else(|| format!("{word:?} is not a day; use {}", DAYS.join(", ")))
}

/// `20:00-06:00`, in milliseconds of the day.
fn times_of(text: &str) -> Result<(i64, i64), String> {
    let (from, to) = text
        .split_once('-')
        .ok_or_else(|| format!("{text:?} has no end; {SPAN_EXAMPLE}"))?;
    let from = time_of(from)?;
    let to = time_of(to)?;
    if from == DAY_MS {
        return Err(format!(
            "{text:?} begins at the end of the day; write 00:00 and the next day"
        ));
    }
    if from == to {
        return Err(format!(
            "{text:?} begins and ends at the same time; write 00:00-24:00 for whole days"
        ));
    }
    Ok((from, to))
}

fn time_of(word: &str) -> Result<i64, String> {
    let number = |digits: &str| {
        let is_short = (1..=2).contains(&digits.len());
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|_| is_short && is_number)
    };
    let parts = word.split_once(':');
    let parts = parts.filter(|(_, minutes)| minutes.len() == 2);
    let time = parts.and_then(|(hours, minutes)| Some((number(hours)?, number(minutes)?)));
    let minutes = time
        .filter(|(hours, minutes)| *minutes < 60 && hours * 60 + minutes <= 24 * 60)
        .map(|(hours, minutes)| hours * 60 + minutes);
    minutes
        .map(|minutes| minutes * MINUTE_MS)
        .ok_or_else(|| format!("{word:?} is not a time of the day; use 00:00 to 24:00"))
}

/// Days since 1970-01-01.
fn date(word: &str) -> Result<i64, String> {
    let is_in_form = word.len() == 10 && word.starts_with("20");
    let date: Option<Date> = word.parse().ok().filter(|_| is_in_form);
    let at = date.and_then(|date| date.to_zoned(TimeZone::UTC).ok());
    at.map(|at| at.timestamp().as_millisecond().div_euclid(DAY_MS))
        .ok_or_else(|| {
            format!("{word:?} is not a date from 2000 to 2099 that exists; {FREEZE_EXAMPLE}")
        })
}

#[cfg(test)]
mod tests;
