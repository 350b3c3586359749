//! What is where on the screen, at the smallest size and at a large one.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::cli::glance_for_tests::{failure, glance, now, some};
use crate::cli::top::app::Wish;
use crate::model::{PowerAction, RequestState};

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
    let look = Drawing {
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
        "DONE/H",
        "FAILED/MIN",
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
        Some(Wish::Do(
            HoldChange::Pause,
            Box::new(scope),
            "move".to_owned()
        ))
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
            HoldChange::Resume,
            Box::new(Selection::of_label("kernel")),
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
