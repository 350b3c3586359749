use proptest::prelude::*;

use super::*;

fn at(text: &str) -> UtcMillis {
    text.parse().expect("a time")
}

fn stops(spans: &[&str]) -> Windows {
    windows(spans, &[])
}

fn windows(spans: &[&str], freezes: &[&str]) -> Windows {
    let spans: Vec<Span> = spans
        .iter()
        .map(|span| Span::parse(span).expect("a span"))
        .collect();
    let freezes = freezes
        .iter()
        .map(|days| Freeze::parse(days).expect("a freeze"));
    Windows {
        spans: BTreeMap::from([(PowerAction::Stop, spans)]),
        freezes: freezes.collect(),
    }
}

fn changes(windows: &Windows, from: &str, count: usize) -> Vec<String> {
    let mut now = at(from);
    let mut all = Vec::new();
    for _ in 0..count {
        let state = windows.state(PowerAction::Stop, now);
        let word = match state {
            WindowState::Open { .. } => "open",
            WindowState::Closed { .. } => "closed",
        };
        now = state.until().expect("it changes");
        all.push(format!("{word} until {now}").replace(":00.000Z", "Z"));
    }
    all
}

#[test]
fn a_span_over_midnight_belongs_to_the_day_on_which_it_begins() {
    let nights = stops(&["Mon..Fri 20:00-06:00 Europe/Berlin"]);
    // From a Friday noon on; in winter Berlin is an hour ahead of UTC.
    assert_eq!(
        changes(&nights, "2026-11-27T11:00:00Z", 4),
        [
            "closed until 2026-11-27T19:00Z",
            "open until 2026-11-28T05:00Z",
            "closed until 2026-11-30T19:00Z",
            "open until 2026-12-01T05:00Z",
        ]
    );
}

#[test]
fn spans_that_touch_are_one_window_and_days_wrap() {
    let weekend = stops(&["Fri 22:00-24:00", "Sat,Sun 00:00-24:00"]);
    assert_eq!(
        changes(&weekend, "2026-11-27T00:00:00Z", 2),
        [
            "closed until 2026-11-27T22:00Z",
            "open until 2026-11-30T00:00Z"
        ]
    );
    let wrapped = stops(&["Fri..Mon 00:00-24:00"]);
    assert_eq!(
        changes(&wrapped, "2026-11-26T12:00:00Z", 2),
        [
            "closed until 2026-11-27T00:00Z",
            "open until 2026-12-01T00:00Z"
        ]
    );
}

#[test]
fn an_hour_that_is_skipped_never_comes_and_one_that_is_repeated_comes_twice() {
    let spring = stops(&["02:15-02:45 Europe/Berlin"]);
    assert_eq!(
        changes(&spring, "2027-03-27T12:00:00Z", 1),
        ["closed until 2027-03-29T00:15Z"],
        "the night of the change has no such time"
    );
    let across = stops(&["01:00-02:30 Europe/Berlin"]);
    assert_eq!(
        changes(&across, "2027-03-27T23:30:00Z", 2),
        [
            "closed until 2027-03-28T00:00Z",
            "open until 2027-03-28T01:00Z"
        ],
        "the clock goes from two to three"
    );
    let autumn = stops(&["02:15-02:45 Europe/Berlin"]);
    assert_eq!(
        changes(&autumn, "2026-10-24T12:00:00Z", 4),
        [
            "closed until 2026-10-25T00:15Z",
            "open until 2026-10-25T00:45Z",
            "closed until 2026-10-25T01:15Z",
            "open until 2026-10-25T01:45Z",
        ]
    );
}

#[test]
fn new_york_and_the_half_hour_of_lord_howe_are_known() {
    let ny = stops(&["Sun 01:30-03:00 America/New_York"]);
    assert_eq!(
        changes(&ny, "2026-11-01T04:00:00Z", 4),
        [
            "closed until 2026-11-01T05:30Z",
            "open until 2026-11-01T06:00Z",
            "closed until 2026-11-01T06:30Z",
            "open until 2026-11-01T08:00Z",
        ]
    );
    // 2026-10-04 02:00 +10:30 becomes 02:30 +11.
    let lord_howe = stops(&["02:10-02:40 Australia/Lord_Howe"]);
    assert_eq!(
        changes(&lord_howe, "2026-10-03T12:00:00Z", 2),
        [
            "closed until 2026-10-03T15:30Z",
            "open until 2026-10-03T15:40Z"
        ]
    );
}

#[test]
fn a_freeze_is_about_stops_and_reboots_and_lasts_whole_days() {
    let frozen = windows(
        &["20:00-06:00 Europe/Berlin"],
        &["2026-12-20..2027-01-03 Europe/Berlin"],
    );
    assert_eq!(
        changes(&frozen, "2026-12-19T20:00:00Z", 3),
        [
            "open until 2026-12-19T23:00Z",
            "closed until 2027-01-03T23:00Z",
            "open until 2027-01-04T05:00Z",
        ]
    );
    let now = at("2026-12-24T12:00:00Z");
    let reboots = frozen.state(PowerAction::Reboot, now);
    assert_eq!(reboots.until(), Some(at("2027-01-03T23:00:00Z")));
    assert!(matches!(reboots, WindowState::Closed { .. }));
    assert!(!frozen.limit(PowerAction::Start));
    assert_eq!(
        frozen.state(PowerAction::Start, now),
        WindowState::Open { until: None }
    );
}

#[test]
fn why_it_is_closed_names_the_opening_on_the_wall_and_in_utc() {
    let nights = windows(&["20:00-06:00 Europe/Berlin"], &["2026-12-24"]);
    let why = |time: &str| match nights.state(PowerAction::Stop, at(time)) {
        WindowState::Closed { why, .. } => why,
        open @ WindowState::Open { .. } => panic!("{open:?}"),
    };
    assert_eq!(
        why("2026-11-26T12:00:00Z"),
        "stop is outside its window until 2026-11-26T19:00:00.000Z (Thu 2026-11-26 20:00 Europe/Berlin)"
    );
    assert_eq!(
        why("2026-12-24T12:00:00Z"),
        "stop is frozen (freeze = \"2026-12-24\") until 2026-12-25T00:00:00.000Z (Fri 2026-12-25 01:00 Europe/Berlin)"
    );
}

#[test]
fn a_window_that_never_opens_has_no_opening() {
    let never = windows(&["00:00-24:00"], &["2026-01-01..2028-12-31"]);
    let now = at("2026-11-26T12:00:00Z");
    let WindowState::Closed { until: None, why } = never.state(PowerAction::Stop, now) else {
        panic!("it never opens")
    };
    assert!(why.ends_with("no window opens within a year"), "{why}");
    let always = stops(&["00:00-24:00"]);
    assert_eq!(
        always.state(PowerAction::Stop, now),
        WindowState::Open { until: None }
    );
}

#[test]
fn the_longest_closure_is_found_without_the_freezes() {
    let nights = windows(
        &["Mon..Fri 20:00-06:00", "Sat 10:00-11:00"],
        &["2026-12-01..2027-02-01"],
    );
    let (from, lasts) = nights
        .longest_closure(PowerAction::Stop, at("2026-11-26T12:00:00Z"))
        .expect("it closes");
    assert_eq!(from, at("2026-11-28T11:00:00Z"));
    assert_eq!(lasts, Duration::from_secs(57 * 3600));
    assert_eq!(
        nights.longest_closure(PowerAction::Start, at("2026-11-26T12:00:00Z")),
        None
    );
}

#[test]
fn what_does_not_read_is_named_in_a_sentence() {
    for (span, part) in [
        ("", "has no times"),
        ("Mon..Fri", "has no times"),
        ("Mun 20:00-06:00", "\"Mun\" is not a day; use Mon"),
        ("Mon.. 20:00-06:00", "\"\" is not a day"),
        ("20:00", "has no end"),
        ("20:00-25:00", "\"25:00\" is not a time"),
        ("20:00-24:01", "\"24:01\" is not a time"),
        ("20:00-6:0", "\"6:0\" is not a time"),
        ("+2:00-06:00", "is not a day"),
        ("2:-1-06:00", "is not a time"),
        ("20-06", "\"20\" is not a time"),
        ("24:00-06:00", "begins at the end of the day"),
        ("20:00-20:00", "begins and ends at the same time"),
        (
            "20:00-06:00 Europe/Berln",
            "\"Europe/Berln\" is not a time zone",
        ),
        ("20:00-06:00 +01:00", "\"+01:00\" is not a time zone"),
        ("20:00-06:00 UTC now", "\"now\" is too much"),
    ] {
        let error = Span::parse(span).expect_err(span);
        assert!(error.contains(part), "{span}: {error}");
    }
    for (days, part) in [
        ("", "has no date"),
        ("christmas", "is not a date"),
        ("2026-02-30", "\"2026-02-30\" is not a date"),
        ("1999-02-03", "is not a date"),
        ("2026-12-20..", "\"\" is not a date"),
        ("2027-01-03..2026-12-20", "ends before it begins"),
        ("2026-12-20..2027-01-03 Mars/Olympus", "is not a time zone"),
        ("2026-12-20 .. 2027-01-03", "is not a time zone"),
        ("2026-12-20 UTC now", "is too much"),
    ] {
        let error = Freeze::parse(days).expect_err(days);
        assert!(error.contains(part), "{days}: {error}");
    }
}

#[test]
fn days_and_zones_are_read_in_any_case() {
    let odd = stops(&["mon..WED 8:00-9:00 europe/berlin"]);
    assert_eq!(
        changes(&odd, "2026-11-26T12:00:00Z", 1),
        ["closed until 2026-11-30T07:00Z"]
    );
}

/// Asks minute by minute, by another way to the wall clock.
fn by_minutes(span: &str, now: UtcMillis) -> (bool, Option<UtcMillis>) {
    let words: Vec<&str> = span.split(' ').collect();
    let [days, times, zone] = words[..] else {
        panic!("days, times and zone")
    };
    let days: Vec<&str> = days.split(',').collect();
    let (from, to) = times.split_once('-').expect("two times");
    let is_in = |at: UtcMillis| {
        let local = Timestamp::from_millisecond(at.0)
            .expect("in range")
            .in_tz(zone)
            .expect("a zone");
        let time = local.strftime("%H:%M").to_string();
        let day = local.strftime("%a").to_string();
        let before = local
            .date()
            .yesterday()
            .expect("a date")
            .strftime("%a")
            .to_string();
        let begins_today = days.contains(&day.as_str()) && time.as_str() >= from;
        if from < to {
            return begins_today && time.as_str() < to;
        }
        begins_today || (days.contains(&before.as_str()) && time.as_str() < to)
    };
    let is_open = is_in(now);
    let mut at = UtcMillis(now.0.div_euclid(MINUTE_MS) * MINUTE_MS);
    for _ in 0..10 * 24 * 60 {
        at = at.moved(MINUTE_MS);
        if is_in(at) != is_open {
            return (is_open, Some(at));
        }
    }
    (is_open, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_next_change_is_what_a_scan_of_all_minutes_finds(
        day_bits in 1u8..128,
        from in 0u32..1440,
        length in 1u32..1440,
        zone in 0usize..5,
        near in 0usize..4,
        offset in -3 * 24 * 60..24 * 60i64,
        spare_ms in 0i64..60_000,
    ) {
        let zones = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "America/St_Johns"];
        let nights = ["2026-10-25T01:00:00Z", "2027-03-28T01:00:00Z", "2026-11-01T06:00:00Z", "2027-04-03T15:00:00Z"];
        let days: Vec<&str> = (0..7).filter(|day| day_bits & (1 << day) != 0).map(|day| DAYS[day]).collect();
        let to = (from + length) % 1440;
        let clock = |minutes: u32| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        let span = format!("{} {}-{} {}", days.join(","), clock(from), clock(to), zones[zone]);
        let now = at(nights[near]).moved(offset * MINUTE_MS + spare_ms);
        let (is_open, until) = by_minutes(&span, now);
        let state = stops(&[&span]).state(PowerAction::Stop, now);
        prop_assert_eq!(matches!(state, WindowState::Open { .. }), is_open, "{}", &span);
        if let Some(until) = until {
            prop_assert_eq!(state.until(), Some(until), "{}", &span);
        }
    }
}
