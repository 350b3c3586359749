//! Windows and freezes as the contract has them: its own reading of spans, and of three zones by
//! their rules for a year, which owe nothing to a zone database. Pure.

use std::collections::BTreeMap;

use super::Broken;
use super::rng::Rng;
use poweryard::model::{PowerAction, UtcMillis};
use poweryard::plan::windows;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;
/// Of days since 1970-01-01, which was a Thursday; from Monday on.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Where the clock on the wall hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zone {
    Utc,
    Berlin,
    NewYork,
    LordHowe,
}

impl Zone {
    pub(super) const ALL: [Self; 4] = [Self::Utc, Self::Berlin, Self::NewYork, Self::LordHowe];

    fn name(self) -> &'static str {
        match self {
            Self::Utc => "UTC",
            Self::Berlin => "Europe/Berlin",
            Self::NewYork => "America/New_York",
            Self::LordHowe => "Australia/Lord_Howe",
        }
    }

    /// When its clock is changed in 2080, and by how many minutes it is ahead of UTC from then on.
    /// Until the first change it is as after the last one. Europe: the last Sundays of March and
    /// October, 01:00 UTC. America: the second Sunday of March, the first of November, 02:00 there.
    /// Lord Howe: the first Sundays of April and October, 02:00 there, by half an hour.
    pub(super) fn changes(self) -> &'static [(UtcMillis, i64)] {
        match self {
            Self::Utc => &[],
            Self::Berlin => &[
                (UtcMillis(3_479_072_400_000), 120),
                (UtcMillis(3_497_216_400_000), 60),
            ],
            Self::NewYork => &[
                (UtcMillis(3_477_279_600_000), -240),
                (UtcMillis(3_497_839_200_000), -300),
            ],
            Self::LordHowe => &[
                (UtcMillis(3_479_641_200_000), 630),
                (UtcMillis(3_495_367_800_000), 660),
            ],
        }
    }

    /// The first midnight of its wall clock after `at`.
    pub(super) fn midnight_after(self, at: UtcMillis) -> UtcMillis {
        let past = self.wall(at).rem_euclid(DAY_MS);
        at.moved(DAY_MS - past)
    }

    fn wall(self, at: UtcMillis) -> i64 {
        let changes = self.changes();
        let past = changes.iter().rev().find(|(change, _)| *change <= at);
        let minutes = past.or(changes.last()).map_or(0, |(_, minutes)| *minutes);
        at.0 + minutes * MINUTE_MS
    }
}

/// `Mon 20:00-06:00 Europe/Berlin`.
#[derive(Debug, Clone)]
struct Span {
    /// First and last day of the week; none: every day.
    days: Option<(i64, i64)>,
    /// Minutes of the day; an end that is not later is on the next day.
    from: i64,
    to: i64,
    zone: Zone,
}

impl Span {
    fn text(&self) -> String {
        let days = match self.days {
            None => String::new(),
            Some((first, last)) if first == last => format!("{} ", DAYS[first as usize]),
            Some((first, last)) => format!("{}..{} ", DAYS[first as usize], DAYS[last as usize]),
        };
        let time = |minutes: i64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        format!(
            "{days}{}-{} {}",
            time(self.from),
            time(self.to),
            self.zone.name()
        )
    }

    fn begins_on(&self, day: i64) -> bool {
        let of_week = (day + 3).rem_euclid(7);
        self.days.is_none_or(|(first, last)| {
            if first <= last {
                (first..=last).contains(&of_week)
            } else {
                of_week >= first || of_week <= last
            }
        })
    }

    fn contains(&self, at: UtcMillis) -> bool {
        let wall = self.zone.wall(at);
        let day = wall.div_euclid(DAY_MS);
        let minute = wall.rem_euclid(DAY_MS) / MINUTE_MS;
        if self.from < self.to {
            return self.begins_on(day) && minute >= self.from && minute < self.to;
        }
        let since_today = self.begins_on(day) && minute >= self.from;
        let since_yesterday = self.begins_on(day - 1) && minute < self.to;
        since_today || since_yesterday
    }
}

/// One day, or two.
#[derive(Debug, Clone)]
struct Freeze {
    first: i64,
    last: i64,
    zone: Zone,
}

impl Freeze {
    fn text(&self) -> String {
        let date = |day: i64| UtcMillis(day * DAY_MS).to_string()[..10].to_owned();
        format!(
            "{}..{} {}",
            date(self.first),
            date(self.last),
            self.zone.name()
        )
    }

    fn contains(&self, at: UtcMillis) -> bool {
        let day = self.zone.wall(at).div_euclid(DAY_MS);
        (self.first..=self.last).contains(&day)
    }
}

/// Those of one target.
#[derive(Debug, Clone, Default)]
pub(super) struct Calendar {
    spans: BTreeMap<PowerAction, Vec<Span>>,
    freezes: Vec<Freeze>,
}

impl Calendar {
    /// Spans that open and close within the hour after `begin`, and now and then a freeze that
    /// begins or ends at a midnight.
    pub(super) fn drawn(rng: &mut Rng, begin: UtcMillis, zone: Zone) -> Self {
        let mut calendar = Self::default();
        for action in PowerAction::ALL {
            if !rng.permille(450) {
                continue;
            }
            let spans = calendar.spans.entry(*action).or_default();
            for _ in 0..rng.between(1, 3) {
                spans.push(span(rng, begin, zone));
            }
        }
        if rng.permille(150) || calendar.spans.is_empty() {
            let today = zone.wall(begin).div_euclid(DAY_MS);
            let first = today + rng.between(0, 2) as i64 - 1;
            let last = first + rng.between(0, 1) as i64;
            calendar.freezes.push(Freeze { first, last, zone });
        }
        calendar
    }

    /// As the config has it.
    pub(super) fn settings(&self) -> Result<windows::Windows, Broken> {
        let mut read = windows::Windows::default();
        for (action, spans) in &self.spans {
            for span in spans {
                let parsed = windows::Span::parse(&span.text()).map_err(Broken)?;
                read.spans.entry(*action).or_default().push(parsed);
            }
        }
        for freeze in &self.freezes {
            let parsed = windows::Freeze::parse(&freeze.text()).map_err(Broken)?;
            read.freezes.push(parsed);
        }
        Ok(read)
    }

    /// True if it limits when anything is sent.
    pub(super) fn is_any(&self) -> bool {
        !self.spans.is_empty() || !self.freezes.is_empty()
    }

    /// True if requests without a reason of their own may leave at this moment.
    pub(super) fn is_open(&self, action: PowerAction, at: UtcMillis) -> bool {
        let spans = self.spans.get(&action);
        let is_in_window = spans.is_none_or(|spans| spans.iter().any(|span| span.contains(at)));
        let interrupts = action != PowerAction::Start;
        let is_frozen = interrupts && self.freezes.iter().any(|freeze| freeze.contains(at));
        is_in_window && !is_frozen
    }
}

fn span(rng: &mut Rng, begin: UtcMillis, zone: Zone) -> Span {
    let wall = zone.wall(begin);
    let minute = wall.rem_euclid(DAY_MS) / MINUTE_MS;
    let from = (minute + rng.between(0, 60) as i64 - 25).rem_euclid(24 * 60);
    let length = *rng.pick(&[1, 3, 10, 30, 90, 600]).unwrap_or(&10);
    let to = (from + length).rem_euclid(24 * 60);
    let today = (wall.div_euclid(DAY_MS) + 3).rem_euclid(7);
    let days = match rng.between(0, 9) {
        0 => Some((today, today)),
        1 => Some(((today + 6) % 7, today)),
        2 => Some((4, 1)),
        3 => Some((0, 4)),
        _ => None,
    };
    Span {
        days,
        from,
        to,
        zone,
    }
}
