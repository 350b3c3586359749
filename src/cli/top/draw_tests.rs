//! What is where on the screen, at the smallest size and at a large one.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::cli::top::app::Wish;
use crate::model::{PowerAction, RequestState};
use crate::store::client::{
    BatchNote, BatchRecord, DaemonNote, Ended, EndedCount, ErrorCount, HoldRecord, OrderNote,
    OrderRecord, OutcomeSlot, OverviewCount, RequestRecord, StateCount, TargetHealth, TargetNote,
    WaitingGroup,
};

const NOW: &str = "2026-01-31T22:10:00.000Z";

fn now() -> UtcMillis {
    NOW.parse().expect("a time")
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn hold(kind: &str, reason: &str) -> HoldRecord {
    HoldRecord {
        target: some("eu"),
        action: some("stop"),
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        since: "2026-01-31T22:00:00.000Z".to_owned(),
        ..HoldRecord::default()
    }
}

fn failure(id: i64) -> RequestRecord {
    RequestRecord {
        id,
        server_id: format!("server-{id}"),
        name: some(&format!("gpu-{id:04}")),
        target: "eu".to_owned(),
        action: "stop".to_owned(),
        state: "failed".to_owned(),
        error_code: some("BMS.0040"),
        label: some("evac"),
        created_at: "2026-01-31T22:00:00.000Z".to_owned(),
        finished_at: some("2026-01-31T22:05:00.000Z"),
        ..RequestRecord::default()
    }
}

fn glance() -> Glance {
    let count = |state: &str, count: i64| OverviewCount {
        target: "eu".to_owned(),
        action: "stop".to_owned(),
        state: state.to_owned(),
        count,
        oldest_created_at: some("2026-01-31T20:00:00.000Z"),
    };
    let ended = |state: &str, count: i64| EndedCount {
        target: "eu".to_owned(),
        action: "stop".to_owned(),
        state: state.to_owned(),
        error_code: None,
        count,
    };
    let group = |kind: &str, reason: &str, count: i64| WaitingGroup {
        target: some("eu"),
        action: some("stop"),
        label: None,
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        until: some("2026-01-31T22:40:00.000Z"),
        ends: "they are sent automatically as the budget allows".to_owned(),
        count,
    };
    Glance {
        as_of: now(),
        headline: "In the last hour 4,940 off, 59 failed; 245 on their way; 430 waiting: 280 for the budget until 22:40, 150 paused."
            .to_owned(),
        trouble: some("59 failed"),
        daemon: DaemonNote {
            running: Some(true),
            pid: Some(7),
            since: some(NOW),
            waits: None,
        },
        queue: vec![count("queued", 430), count("running", 245)],
        oldest_ready: Vec::new(),
        oldest_waiting_since: some("2026-01-31T20:00:00.000Z"),
        waiting: vec![
            group("budget", "the budget of stop on target eu is used up", 280),
            group("operator", "stop on target eu paused by bob: rack 7 is moved", 150),
        ],
        holds: vec![
            hold("operator", "stop on target eu paused by bob: rack 7 is moved"),
            hold("budget", "the budget of stop on target eu is used up"),
        ],
        orders: vec![OrderNote {
            order: OrderRecord {
                label: "kernel".to_owned(),
                waves: "1, 5%".to_owned(),
                state: "held".to_owned(),
                wave: 2,
                servers: 5000,
                wave_size: 250,
                wave_servers: 250,
                expires_at: some("2026-02-07T22:00:00.000Z"),
                ..OrderRecord::default()
            },
            targets: vec!["eu".to_owned()],
            hold: Some(hold("wave", "wave 3 waits: 3 of 251 servers failed")),
            requests: vec![StateCount {
                state: "succeeded".to_owned(),
                count: 248,
            }],
        }],
        batches: vec![BatchNote {
            batch: BatchRecord {
                id: 12,
                target: "eu".to_owned(),
                action: "stop".to_owned(),
                state: "tracking".to_owned(),
                server_count: 998,
                job_id: some("job-1"),
                intent_at: "2026-01-31T22:09:20.000Z".to_owned(),
                ..BatchRecord::default()
            },
            known: 753,
            elapsed_ms: 40_000,
            usual_ms: Some(45_000),
        }],
        batches_left_out: 0,
        ended: Ended {
            counted_since: None,
            hour: vec![ended("succeeded", 4940), ended("failed", 59)],
            day: vec![ended("succeeded", 4940), ended("failed", 59)],
            minutes: (0..60)
                .map(|minute| OutcomeSlot {
                    at: now(),
                    succeeded: minute,
                    failed: minute % 7,
                    unknown: 0,
                    other: 0,
                })
                .collect(),
            hours: Vec::new(),
            errors: vec![ErrorCount {
                state: "failed".to_owned(),
                error_code: some("BMS.0040"),
                message: some("failed to stop the BMS"),
                count: 59,
                newest_id: 99,
            }],
            newest_failures: (1..30).map(failure).collect(),
        },
        targets: vec![TargetHealth {
            note: TargetNote {
                target: "eu".to_owned(),
                service: "bms".to_owned(),
                endpoint: "https://bms.example.test".to_owned(),
                project_id: "p".to_owned(),
                submits_per_minute: 50,
                pace_per_minute: 25,
                throttles: 0,
                calls_last_minute: 12,
                inventory_at: some("2026-01-31T22:00:00.000Z"),
                inventory_error: None,
                updated_at: NOW.to_owned(),
            },
            breaker: None,
            credentials: Some(hold("credentials", "the cloud refuses the key")),
        }],
    }
}

fn app() -> App {
    let mut app = App::new("/var/lib/poweryard/queue.db".to_owned(), "alice".to_owned());
    app.glance = Some(glance());
    app.requests = (1..100).map(failure).collect();
    app
}

/// The screen as text, line by line.
fn shown(app: &App, columns: u16, rows: u16) -> Vec<String> {
    shown_with(app, columns, rows, true)
}

fn shown_with(app: &App, columns: u16, rows: u16, has_colours: bool) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("a screen");
    let look = Look {
        has_colours,
        now: now(),
    };
    terminal
        .draw(|frame| draw(frame, app, look))
        .expect("drawn");
    let buffer = terminal.backend().buffer();
    if !has_colours {
        let is_bare =
            |cell: &ratatui::buffer::Cell| cell.fg == Color::Reset && cell.bg == Color::Reset;
        assert!(
            buffer.content.iter().all(is_bare),
            "a colour in spite of NO_COLOR"
        );
    }
    buffer
        .content
        .chunks(usize::from(columns))
        .map(|line| line.iter().map(|cell| cell.symbol()).collect())
        .collect()
}

fn press(app: &mut App, code: KeyCode) -> Option<Wish> {
    app.on_key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_in(app: &mut App, text: &str) {
    for char in text.chars() {
        assert_eq!(press(app, KeyCode::Char(char)), None);
    }
}

#[test]
fn the_overview_fits_80_by_24_with_all_that_matters() {
    let screen = shown(&app(), 80, 24).join("\n");
    for part in [
        "poweryard  /var/lib/poweryard/queue.db",
        "daemon running",
        "as of 22:10:00 UTC",
        " 1 Overview ",
        "4,940 off, 59 failed",
        "430",
        "budget",
        "753/998",
        "40s of 45s",
        "BMS.0040",
        "kernel",
        "25/50",
        "held",
        "DONE/MIN",
        "q quit",
    ] {
        assert!(screen.contains(part), "{part} in\n{screen}");
    }
}

#[test]
fn a_large_screen_shows_whole_reasons_beside_each_other() {
    let lines = shown(&app(), 200, 50);
    let screen = lines.join("\n");
    for part in [
        "the budget of stop on target eu is used",
        "753/998",
        "failed to stop the BMS",
    ] {
        assert!(screen.contains(part), "{part} in\n{screen}");
    }
    let beside = lines
        .iter()
        .any(|line| line.contains("QUEUE") && line.contains("BATCH"));
    assert!(beside, "two columns in\n{screen}");
}

#[test]
fn every_page_and_dialog_draws_at_any_size() {
    let mut app = app();
    let keys = ['1', '2', '3', '4', '5', '6', '7', '?', 'p', 'r', '/'];
    for (columns, rows) in [(80, 24), (200, 50), (40, 10), (10, 3), (1, 1), (500, 5)] {
        for key in keys {
            app.dialog = None;
            press(&mut app, KeyCode::Char(key));
            shown_with(&app, columns, rows, false);
        }
        app.dialog = None;
    }
    app.glance = None;
    for key in keys {
        app.dialog = None;
        press(&mut app, KeyCode::Char(key));
        shown(&app, 80, 24);
    }
}

#[test]
fn a_chosen_row_is_in_sight_and_explained() {
    let mut app = app();
    press(&mut app, KeyCode::Char('2'));
    press(&mut app, KeyCode::End);
    let screen = shown(&app, 80, 24).join("\n");
    assert!(screen.contains("gpu-0099"), "{screen}");
    assert_eq!(press(&mut app, KeyCode::Enter), Some(Wish::Explain(99)));
    press(&mut app, KeyCode::Home);
    assert_eq!(press(&mut app, KeyCode::Enter), Some(Wish::Explain(1)));
    press(&mut app, KeyCode::Char('5'));
    press(&mut app, KeyCode::Down);
    assert_eq!(press(&mut app, KeyCode::Enter), Some(Wish::Explain(2)));
}

#[test]
fn a_whole_reason_can_be_read_where_the_row_has_no_room() {
    let mut app = app();
    press(&mut app, KeyCode::Char('3'));
    assert_eq!(press(&mut app, KeyCode::Enter), None);
    let screen = shown(&app, 80, 24).join("\n");
    assert!(
        screen.contains("the budget of stop on target eu is used up"),
        "{screen}"
    );
    press(&mut app, KeyCode::Esc);
    assert_eq!(app.dialog, None);
}

#[test]
fn words_are_typed_and_taken_with_enter() {
    let mut app = app();
    assert_eq!(press(&mut app, KeyCode::Char('/')), None);
    type_in(&mut app, "failed label:evac");
    assert_eq!(press(&mut app, KeyCode::Enter), Some(Wish::Read));
    assert_eq!(app.words.filter().states, [RequestState::Failed]);
    let screen = shown(&app, 80, 24).join("\n");
    assert!(screen.contains("only: failed label:evac"), "{screen}");
}

#[test]
fn a_pause_asks_what_and_why_and_says_as_whom() {
    let mut app = app();
    press(&mut app, KeyCode::Char('4'));
    press(&mut app, KeyCode::Char('p'));
    let screen = shown(&app, 80, 24).join("\n");
    assert!(screen.contains("▶ stop on target eu"), "{screen}");
    assert!(screen.contains("every action on every target"), "{screen}");
    press(&mut app, KeyCode::Enter);
    type_in(&mut app, "move");
    let screen = shown(&app, 80, 24).join("\n");
    assert!(screen.contains("As alice. Why? move"), "{screen}");
    let scope = Selection::of_lane("eu", PowerAction::Stop);
    assert_eq!(
        press(&mut app, KeyCode::Enter),
        Some(Wish::Do(Deed::Pause, scope, "move".to_owned()))
    );
    assert_eq!(app.dialog, None);
}

#[test]
fn a_resume_offers_the_pauses_and_held_waves_that_are_there() {
    let mut app = app();
    press(&mut app, KeyCode::Char('r'));
    press(&mut app, KeyCode::Down);
    press(&mut app, KeyCode::Enter);
    assert_eq!(
        press(&mut app, KeyCode::Enter),
        Some(Wish::Do(
            Deed::Resume,
            Selection::of_label("kernel"),
            String::new()
        ))
    );
    app.glance = Some(Glance {
        holds: Vec::new(),
        orders: Vec::new(),
        ..glance()
    });
    press(&mut app, KeyCode::Char('r'));
    assert_eq!(app.dialog, None);
    assert!(app.note.is_some());
}

#[test]
fn escape_leaves_a_dialog_and_q_is_a_letter_in_one() {
    let mut app = app();
    press(&mut app, KeyCode::Char('/'));
    type_in(&mut app, "q");
    press(&mut app, KeyCode::Esc);
    assert_eq!(app.dialog, None);
    assert_eq!(press(&mut app, KeyCode::Char('q')), Some(Wish::Quit));
    press(&mut app, KeyCode::Char('p'));
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(app.on_key(interrupt), Some(Wish::Quit));
}

#[test]
fn nothing_that_others_wrote_steers_the_terminal() {
    let mut app = app();
    app.requests[0].label = some("a\u{1b}[2Jb\u{202e}c");
    app.requests[0].name = some("x\ny");
    press(&mut app, KeyCode::Char('2'));
    let screen = shown(&app, 200, 50).join("");
    assert!(!screen.contains(['\u{1b}', '\n', '\u{202e}']), "{screen}");
    assert!(screen.contains("\\u{1b}[2J"), "{screen}");
}

#[test]
fn room_is_shared_and_the_modest_leave_theirs_to_others() {
    assert_eq!(shared(&[1, 10, 3], 20), [1, 10, 3]);
    assert_eq!(shared(&[1, 10, 3], 8), [1, 4, 3]);
    assert_eq!(shared(&[5, 5], 0), [0, 0]);
    assert_eq!(shared(&[], 7), Vec::<u16>::new());
}
