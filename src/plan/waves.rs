//! Decides when the next wave of an order leaves, how many servers it has, and what is said of one
//! that waits. Pure: knows nothing of SQL, programs or clocks.

use std::fmt;
use std::time::Duration;

use crate::model::{LetGo, Order, OrderNews, OrderState, UtcMillis};

/// A number of servers, or a share of those of the order, as it is written: `3`, `5%`, `0.5%`.
///
/// Shares are whole numbers of a fraction of a percent, so that 7 % of 100 servers are 7 and not 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many servers.
    Servers(u64),
    /// So many of `of` parts of them.
    Share {
        /// The digits, without the point.
        parts: u64,
        /// 100 for whole percents, 1000 for tenths of one, and so on.
        of: u64,
    },
}

impl Amount {
    /// Reads one; the schema lets no other text in.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.replace(' ', "");
        let Some(share) = text.strip_suffix('%') else {
            return whole(&text).map(Self::Servers);
        };
        let (whole_part, fraction) = share.split_once('.').unwrap_or((share, ""));
        let parts = whole(&format!("{whole_part}{fraction}"))?;
        let digits = u32::try_from(fraction.len()).ok()?;
        let of = 100 * 10_u64.checked_pow(digits)?;
        (parts <= of).then_some(Self::Share { parts, of })
    }

    /// How many of `servers` that are, rounded up; at least one.
    fn size(self, servers: u64) -> u64 {
        let size = match self {
            Self::Servers(size) => size,
            Self::Share { parts, of } => up(product(servers, parts).div_ceil(u128::from(of))),
        };
        size.max(1)
    }

    /// True if `failed` of `servers` are more than this.
    fn is_exceeded(self, failed: u64, servers: u64) -> bool {
        match self {
            Self::Servers(most) => failed > most,
            Self::Share { parts, of } => product(failed, of) > product(servers, parts),
        }
    }
}

fn whole(text: &str) -> Option<u64> {
    let is_short = (1..10).contains(&text.len());
    let has_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (is_short && has_digits)
        .then(|| text.parse().ok())
        .flatten()
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

fn up(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Reads `90s`, `10m`, `2h` or `1d`.
pub fn read_pause(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(whole(number)?.saturating_mul(seconds)))
}

/// What the gate of the config says of the next wave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// There is none.
    Absent,
    /// It has not been asked.
    Unasked,
    /// It is being asked; what it said the last time.
    Asked(Option<String>),
    /// It lets the wave go.
    Yes,
    /// It does not, with its last words, and is asked again at this time.
    No(String, UtcMillis),
}

/// What comes next for an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// All of its requests have ended.
    Done,
    /// The present wave has room: more servers join it.
    Take,
    /// This wave is opened, for so many servers.
    Open {
        /// Its number.
        wave: u64,
        /// How many servers it lets go.
        size: u64,
    },
    /// Nothing leaves.
    Wait(Wait),
}

/// An order that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// What is to be stored of it.
    pub news: OrderNews,
    /// The gate is to be asked now.
    pub asks_gate: bool,
}

/// Decides.
pub fn next(order: &Order, gate: &Gate, now: UtcMillis) -> Next {
    if !order.is_unfinished && (order.servers > 0 || order.is_past) {
        return Next::Done;
    }
    if order.wave_size == 0 {
        return if order.has_due {
            order.open(order.wave)
        } else {
            Next::Wait(order.waiting(None))
        };
    }
    let has_room = order.wave_taken < order.wave_size && order.over_at.is_none();
    if has_room && order.has_due {
        return Next::Take;
    }
    if order.is_on_its_way {
        let reason = order.has_due.then(|| order.progress());
        return Next::Wait(order.waiting(reason));
    }
    // A clock that was set back must not stretch a pause.
    let over_at = order.over_at.map_or(now, |at| at.min(now));
    if !order.has_due {
        let mut wait = order.waiting(None);
        wait.news.over_at = Some(over_at);
        return Next::Wait(wait);
    }
    match order.obstacle(gate, over_at, now) {
        None => order.open(order.wave + 1),
        Some(obstacle) => Next::Wait(order.held(&obstacle, Some(over_at))),
    }
}

/// Why the next wave does not leave although the one before is over.
enum Obstacle<'a> {
    NobodySucceeded,
    Failures,
    Pause(&'a str, UtcMillis),
    Unreadable,
    Gate { said: Option<&'a str>, is_due: bool },
}

impl Order {
    fn open(&self, wave: u64) -> Next {
        let size = match self.let_go {
            Some(LetGo::Rest) => Some(self.servers.max(1)),
            Some(LetGo::Wave) | None => self.size_of(wave),
        };
        match size {
            Some(size) => Next::Open { wave, size },
            None => Next::Wait(self.held(&Obstacle::Unreadable, self.over_at)),
        }
    }

    /// The last size of the list repeats.
    fn size_of(&self, wave: u64) -> Option<u64> {
        let sizes: Vec<&str> = self.waves.split(',').collect();
        let place = usize::try_from(wave.saturating_sub(1)).unwrap_or(usize::MAX);
        let size = sizes.get(place.min(sizes.len() - 1))?;
        Some(Amount::read(size)?.size(self.servers))
    }

    fn obstacle<'a>(
        &'a self,
        gate: &'a Gate,
        over_at: UtcMillis,
        now: UtcMillis,
    ) -> Option<Obstacle<'a>> {
        if self.let_go.is_some() {
            return None;
        }
        if !self.has_success {
            return Some(Obstacle::NobodySucceeded);
        }
        let Some(most) = Amount::read(&self.failures_max) else {
            return Some(Obstacle::Unreadable);
        };
        if most.is_exceeded(self.failed, self.servers) {
            return Some(Obstacle::Failures);
        }
        if let Some(text) = &self.pause {
            let Some(pause) = read_pause(text) else {
                return Some(Obstacle::Unreadable);
            };
            let until = over_at + pause;
            if until > now {
                return Some(Obstacle::Pause(text, until));
            }
        }
        match gate {
            Gate::Absent | Gate::Yes => None,
            Gate::Unasked => Some(Obstacle::Gate {
                said: None,
                is_due: true,
            }),
            Gate::Asked(said) => Some(Obstacle::Gate {
                said: said.as_deref(),
                is_due: false,
            }),
            Gate::No(said, at) => Some(Obstacle::Gate {
                said: Some(said),
                is_due: *at <= now,
            }),
        }
    }

    fn waiting(&self, reason: Option<String>) -> Wait {
        let news = OrderNews {
            state: OrderState::Open,
            over_at: None,
            reason,
            until: None,
        };
        Wait {
            news,
            asks_gate: false,
        }
    }

    fn held(&self, obstacle: &Obstacle<'_>, over_at: Option<UtcMillis>) -> Wait {
        let (state, until) = match obstacle {
            Obstacle::Pause(_, until) => (OrderState::Open, Some(*until)),
            Obstacle::Gate { said: None, .. } => (OrderState::Open, None),
            _ => (OrderState::Held, None),
        };
        let news = OrderNews {
            state,
            over_at,
            reason: Some(self.sentence(obstacle)),
            until,
        };
        Wait {
            news,
            asks_gate: matches!(obstacle, Obstacle::Gate { is_due: true, .. }),
        }
    }

    fn progress(&self) -> String {
        format!(
            "wave {} of order '{}' ({} of {}) is on its way; wave {} waits for its end",
            self.wave,
            self.label,
            self.wave_taken,
            Servers(self.servers),
            self.wave + 1
        )
    }

    fn sentence(&self, obstacle: &Obstacle<'_>) -> String {
        let wave = format!("wave {} of order '{}'", self.wave, self.label);
        let next = self.wave + 1;
        let ended = self.ended();
        let what = match obstacle {
            Obstacle::Unreadable => {
                return format!(
                    "waves, failures_max or pause of order '{}' cannot be read",
                    self.label
                );
            }
            Obstacle::NobodySucceeded => format!("{wave} is over, but nobody succeeded ({ended})"),
            Obstacle::Failures => {
                let most = if self.failures_max == "0" {
                    "more than none".to_owned()
                } else {
                    format!("more than {}", self.failures_max)
                };
                format!(
                    "{wave} failed for {} of {}, {} of {} in all: {most}",
                    self.failed_in_wave,
                    Servers(self.wave_taken),
                    self.failed,
                    self.servers
                )
            }
            Obstacle::Pause(pause, until) => {
                return format!(
                    "{wave} is over ({ended}); after its pause of {pause} wave {next} may leave at {until}"
                );
            }
            Obstacle::Gate { said: None, .. } => {
                return format!(
                    "{wave} is over ({ended}); the gate is being asked about wave {next}"
                );
            }
            Obstacle::Gate {
                said: Some(said), ..
            } => {
                format!(
                    "{wave} is over ({ended}); the gate does not let wave {next} go yet: {said}"
                )
            }
        };
        format!(
            "{what}; `poweryard resume --label {}` sends wave {next} in spite of that",
            in_shell(&self.label)
        )
    }

    /// Such as `1 of its 25 servers failed`.
    fn ended(&self) -> String {
        format!(
            "{} of {} failed, {} of {} in all",
            self.failed_in_wave,
            Servers(self.wave_taken),
            self.failed,
            self.servers
        )
    }
}

/// Such as `1 server`.
struct Servers(u64);

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} server{ending}", self.0)
    }
}

/// A label as a shell reads it back.
fn in_shell(label: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+,".contains(c);
    if !label.is_empty() && label.chars().all(is_plain) {
        label.to_owned()
    } else {
        format!("'{}'", label.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    /// Wave 2 of 500 servers is over, 25 servers have had their turn in it, and more are due.
    fn order() -> Order {
        Order {
            label: "kernel".to_owned(),
            waves: "1, 5%, 25%".to_owned(),
            failures_max: "2%".to_owned(),
            pause: None,
            state: OrderState::Open,
            wave: 2,
            wave_size: 25,
            wave_taken: 25,
            over_at: None,
            let_go: None,
            servers: 500,
            is_unfinished: true,
            is_on_its_way: false,
            has_due: true,
            has_success: true,
            failed: 0,
            failed_in_wave: 0,
            is_past: false,
        }
    }

    fn waits(next: Next) -> Wait {
        match next {
            Next::Wait(wait) => wait,
            other => panic!("{other:?}"),
        }
    }

    fn held(order: &Order, gate: &Gate) -> Wait {
        waits(next(order, gate, NOW))
    }

    #[test]
    fn sizes_are_rounded_up_and_the_last_one_repeats() {
        let fresh = Order {
            wave: 1,
            wave_size: 0,
            wave_taken: 0,
            servers: 510,
            ..order()
        };
        let size = |wave| fresh.size_of(wave);
        assert_eq!([1, 2, 3, 4, 90].map(size), [1, 26, 128, 128, 128].map(Some));
        assert_eq!(
            next(&fresh, &Gate::Unasked, NOW),
            Next::Open { wave: 1, size: 1 },
            "no gate before the first"
        );
    }

    #[test]
    fn shares_are_exact() {
        for (text, servers, size) in [
            ("7%", 100, 7),
            ("0.1%", 1000, 1),
            ("0.1%", 1001, 2),
            ("33.3%", 1000, 333),
            ("100%", 7, 7),
            ("1%", 0, 1),
        ] {
            assert_eq!(
                Amount::read(text).map(|amount| amount.size(servers)),
                Some(size),
                "{text} of {servers}"
            );
        }
        for text in ["", "%", "-1", "5 5x", "101%", "1.%.", "1e3", "12345678901"] {
            assert_eq!(Amount::read(text), None, "{text}");
        }
        let two = Amount::read("2%").expect("it reads");
        assert!(!two.is_exceeded(10, 500) && two.is_exceeded(11, 500) && two.is_exceeded(1, 49));
        assert!(Amount::read("0").expect("it reads").is_exceeded(1, 500));
    }

    #[test]
    fn a_pause_is_a_number_and_a_unit() {
        let seconds = |text| read_pause(text).map(|pause| pause.as_secs());
        assert_eq!(
            ["90s", "10m", "2h", "1d"].map(seconds),
            [90, 600, 7200, 86_400].map(Some)
        );
        assert_eq!(["", "s", "5", "5w", "é"].map(seconds), [None; 5]);
    }

    #[test]
    fn the_next_wave_leaves_when_the_one_before_went_well() {
        let open = Next::Open { wave: 3, size: 125 };
        assert_eq!(next(&order(), &Gate::Absent, NOW), open);
        assert_eq!(
            next(
                &Order {
                    failed: 10,
                    failed_in_wave: 10,
                    ..order()
                },
                &Gate::Yes,
                NOW
            ),
            open
        );
    }

    #[test]
    fn failures_hold_the_next_wave_and_name_the_counts() {
        let failed = Order {
            failed: 11,
            failed_in_wave: 3,
            ..order()
        };
        let wait = held(&failed, &Gate::Yes);
        assert_eq!(
            (wait.news.state, wait.news.over_at),
            (OrderState::Held, Some(NOW))
        );
        let reason = wait.news.reason.expect("a reason");
        assert!(reason.starts_with("wave 2 of order 'kernel' failed for 3 of 25 servers, 11 of 500 in all: more than 2%"), "{reason}");
        assert!(
            reason.contains("`poweryard resume --label kernel`"),
            "{reason}"
        );
    }

    #[test]
    fn a_wave_in_which_nobody_succeeded_holds_the_next() {
        let nobody = Order {
            has_success: false,
            failures_max: "100%".to_owned(),
            ..order()
        };
        assert_eq!(held(&nobody, &Gate::Absent).news.state, OrderState::Held);
    }

    #[test]
    fn an_operator_lets_a_wave_or_all_the_rest_go() {
        let stuck = Order {
            has_success: false,
            failed: 25,
            pause: Some("9d".to_owned()),
            ..order()
        };
        let no = Gate::No("sick".to_owned(), NOW);
        let go = |let_go| {
            next(
                &Order {
                    let_go,
                    ..stuck.clone()
                },
                &no,
                NOW,
            )
        };
        assert!(matches!(go(None), Next::Wait(_)));
        assert_eq!(go(Some(LetGo::Wave)), Next::Open { wave: 3, size: 125 });
        assert_eq!(go(Some(LetGo::Rest)), Next::Open { wave: 3, size: 500 });
        let on_its_way = Order {
            is_on_its_way: true,
            let_go: Some(LetGo::Rest),
            ..stuck
        };
        assert!(
            matches!(next(&on_its_way, &no, NOW), Next::Wait(_)),
            "only once it is over"
        );
    }

    #[test]
    fn a_pause_is_counted_from_the_end_of_the_wave() {
        let mut paused = Order {
            pause: Some("10m".to_owned()),
            ..order()
        };
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(
            held(&paused, &Gate::Yes).news.until,
            Some(NOW + minutes(10))
        );
        paused.over_at = Some(NOW.before(minutes(4)));
        let wait = held(&paused, &Gate::Yes);
        assert_eq!(
            (wait.news.until, wait.news.state),
            (Some(NOW + minutes(6)), OrderState::Open)
        );
        paused.over_at = Some(NOW + minutes(60));
        assert_eq!(
            held(&paused, &Gate::Yes).news.until,
            Some(NOW + minutes(10)),
            "a clock that was set back"
        );
        paused.over_at = Some(NOW.before(minutes(10)));
        assert!(matches!(next(&paused, &Gate::Yes, NOW), Next::Open { .. }));
    }

    #[test]
    fn a_gate_is_asked_last_and_again_after_a_while() {
        assert!(held(&order(), &Gate::Unasked).asks_gate);
        assert!(!held(&order(), &Gate::Asked(None)).asks_gate);
        let failed = Order {
            failed: 11,
            ..order()
        };
        assert!(!held(&failed, &Gate::Unasked).asks_gate);
        let no = held(
            &order(),
            &Gate::No("node 7 is sick".to_owned(), NOW + Duration::from_secs(60)),
        );
        assert!(!no.asks_gate && no.news.state == OrderState::Held);
        assert!(
            no.news
                .reason
                .is_some_and(|reason| reason.contains("node 7 is sick"))
        );
        assert!(held(&order(), &Gate::No("sick".to_owned(), NOW)).asks_gate);
    }

    #[test]
    fn servers_join_a_wave_with_room_until_it_is_over() {
        let room = Order {
            wave_taken: 20,
            is_on_its_way: true,
            ..order()
        };
        assert_eq!(next(&room, &Gate::Absent, NOW), Next::Take);
        let none_due = Order {
            has_due: false,
            ..room.clone()
        };
        assert_eq!(held(&none_due, &Gate::Absent).news.reason, None);
        let over = Order {
            over_at: Some(NOW),
            is_on_its_way: false,
            ..room
        };
        assert_eq!(
            next(&over, &Gate::Absent, NOW),
            Next::Open { wave: 3, size: 125 }
        );
    }

    #[test]
    fn a_retry_opens_the_end_of_its_wave_again() {
        let again = Order {
            over_at: Some(NOW),
            is_on_its_way: true,
            ..order()
        };
        let wait = held(&again, &Gate::Absent);
        assert_eq!(
            (wait.news.over_at, wait.news.state),
            (None, OrderState::Open)
        );
    }

    #[test]
    fn an_order_is_done_when_all_that_it_had_has_ended() {
        let ended = Order {
            is_unfinished: false,
            has_due: false,
            ..order()
        };
        assert_eq!(next(&ended, &Gate::Absent, NOW), Next::Done);
        let empty = Order {
            servers: 0,
            wave_size: 0,
            ..ended
        };
        assert_eq!(
            held(&empty, &Gate::Absent).news.reason,
            None,
            "its requests may still come"
        );
        assert_eq!(
            next(
                &Order {
                    is_past: true,
                    ..empty
                },
                &Gate::Absent,
                NOW
            ),
            Next::Done
        );
    }

    proptest! {
        #[test]
        fn no_wave_opens_against_the_rules(
            (wave_size, wave_taken, servers) in (0u64..50, 0u64..50, 1u64..200),
            (failed, most) in (0u64..30, 0u64..30),
            flags in prop::array::uniform5(any::<bool>()),
            (over_ago, pause) in (prop::option::of(0u64..200), 0u64..100),
            let_go in 0usize..3,
        ) {
            let [is_on_its_way, has_due, has_success, is_unfinished, gate_says_yes] = flags;
            let order = Order {
                wave_size, wave_taken, servers, failed, is_on_its_way, has_due, has_success, is_unfinished,
                failures_max: most.to_string(),
                pause: Some(format!("{pause}s")),
                over_at: over_ago.map(|ago| NOW.before(Duration::from_secs(ago))),
                let_go: [None, Some(LetGo::Wave), Some(LetGo::Rest)][let_go],
                ..order()
            };
            let gate = if gate_says_yes { Gate::Yes } else { Gate::Unasked };
            match next(&order, &gate, NOW) {
                Next::Open { wave, size } => {
                    prop_assert!(has_due && size > 0);
                    if wave_size == 0 {
                        prop_assert_eq!(wave, order.wave);
                    } else {
                        prop_assert_eq!(wave, order.wave + 1);
                        prop_assert!(!is_on_its_way);
                        let may = has_success && failed <= most && gate_says_yes && pause <= over_ago.unwrap_or(0);
                        prop_assert!(may || order.let_go.is_some());
                    }
                    prop_assert!(order.let_go == Some(LetGo::Rest) || size <= servers.div_ceil(4).max(1));
                }
                Next::Take => prop_assert!(wave_taken < wave_size && has_due && over_ago.is_none()),
                Next::Done => prop_assert!(!is_unfinished),
                Next::Wait(wait) => {
                    // Nobody who is due waits without a word.
                    prop_assert!(wait.news.reason.is_some() || !has_due);
                }
            }
        }
    }
}
