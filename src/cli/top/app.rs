//! What `top` shows and what its keys do. Draws nothing, reads nothing: a key returns what is to be
//! read or done.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::filter::Words;
use crate::cli::panels::idle_holds;
use crate::model::PowerAction;
use crate::store::client::{Glance, RequestRecord, Selection};

/// A page of `top`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    /// A little of everything.
    Overview,
    /// Requests, the newest first.
    Requests,
    /// Why requests wait, and holds.
    Waiting,
    /// Batches on their way.
    Batches,
    /// What failed lately.
    Failures,
    /// Targets and how they are.
    Targets,
    /// Orders with waves.
    Orders,
}

impl Tab {
    /// In the order of their keys, from 1.
    pub(super) const ALL: [Self; 7] = [
        Self::Overview,
        Self::Requests,
        Self::Waiting,
        Self::Batches,
        Self::Failures,
        Self::Targets,
        Self::Orders,
    ];

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Requests => "Requests",
            Self::Waiting => "Waiting",
            Self::Batches => "Batches",
            Self::Failures => "Failures",
            Self::Targets => "Targets",
            Self::Orders => "Orders",
        }
    }

    /// Its place in `ALL`.
    pub(super) fn number(self) -> usize {
        Self::ALL.iter().position(|tab| *tab == self).unwrap_or(0)
    }

    fn moved(self, by: usize) -> Self {
        Self::ALL[(self.number() + by) % Self::ALL.len()]
    }
}

/// What lies over the page.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Dialog {
    /// The keys.
    Help,
    /// Text to read, such as an explanation.
    Text {
        /// What it is about.
        title: String,
        /// Paragraphs.
        lines: Vec<String>,
        /// Lines that are scrolled past.
        scroll: u16,
    },
    /// Words that choose requests are typed.
    Filter {
        /// What has been typed.
        typed: String,
    },
    /// What is to be paused or resumed is chosen.
    Choose {
        /// Which of the two.
        deed: HoldChange,
        /// What can be chosen.
        scopes: Vec<Selection>,
        /// Which one is chosen now.
        at: usize,
    },
    /// The reason is typed.
    Reason {
        /// Pause or resume.
        deed: HoldChange,
        /// What.
        scope: Box<Selection>,
        /// What has been typed.
        typed: String,
    },
}

/// What an operator does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldChange {
    /// Nothing new leaves.
    Pause,
    /// The pause ends, or a held wave goes.
    Resume,
}

impl HoldChange {
    /// The word for it.
    pub(super) const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "Pause",
            Self::Resume => "Resume",
        }
    }
}

/// What a key asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wish {
    /// The end.
    Quit,
    /// Everything anew.
    Read,
    /// The explanation of a request.
    Explain(i64),
    /// A deed, with its reason.
    Do(HoldChange, Box<Selection>, String),
}

/// All that is on the screen.
#[derive(Debug)]
pub(super) struct App {
    /// The queue's file.
    pub(super) queue: String,
    /// Who is at the keyboard.
    pub(super) who: String,
    /// The page that is shown.
    pub(super) tab: Tab,
    /// The chosen row of each page.
    pub(super) chosen: [usize; Tab::ALL.len()],
    /// What lies over the page.
    pub(super) dialog: Option<Dialog>,
    /// Which requests are listed.
    pub(super) words: Words,
    /// The last reading.
    pub(super) glance: Option<Glance>,
    /// The requests that are listed.
    pub(super) requests: Vec<RequestRecord>,
    /// What came of the last wish, until the next key.
    pub(super) note: Option<String>,
    /// Why the last reading failed.
    pub(super) trouble: Option<String>,
}

impl App {
    /// Nothing has been read yet.
    pub(super) fn new(queue: String, who: String) -> Self {
        Self {
            queue,
            who,
            tab: Tab::Overview,
            chosen: [0; Tab::ALL.len()],
            dialog: None,
            words: Words::default(),
            glance: None,
            requests: Vec::new(),
            note: None,
            trouble: None,
        }
    }

    /// The chosen row of the page that is shown.
    pub(super) fn row(&self) -> usize {
        self.chosen[self.tab.number()].min(self.rows().saturating_sub(1))
    }

    /// Rows of the page that is shown, of which one can be chosen.
    fn rows(&self) -> usize {
        let Some(glance) = &self.glance else {
            return 0;
        };
        match self.tab {
            Tab::Overview => 0,
            Tab::Requests => self.requests.len(),
            Tab::Waiting => glance.waiting.len() + idle_holds(glance).count(),
            Tab::Batches => glance.batches.len(),
            Tab::Failures => glance.ended.newest_failures.len(),
            Tab::Targets => glance.targets.len(),
            Tab::Orders => glance.orders.len(),
        }
    }

    /// Takes a key.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        self.note = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Some(Wish::Quit);
        }
        match self.dialog.take() {
            Some(dialog) => self.on_key_in(dialog, key),
            None => self.on_key_of_page(key),
        }
    }

    fn on_key_of_page(&mut self, key: KeyEvent) -> Option<Wish> {
        match key.code {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Char('?' | 'h') => self.dialog = Some(Dialog::Help),
            KeyCode::Char(digit @ '1'..='7') => {
                let number = digit as usize - '1' as usize;
                self.tab = Tab::ALL[number];
            }
            KeyCode::Tab | KeyCode::Right => self.tab = self.tab.moved(1),
            KeyCode::BackTab | KeyCode::Left => self.tab = self.tab.moved(Tab::ALL.len() - 1),
            KeyCode::Up | KeyCode::Char('k') => self.choose(|row| row.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(|row| row + 1),
            KeyCode::PageUp => self.choose(|row| row.saturating_sub(10)),
            KeyCode::PageDown => self.choose(|row| row + 10),
            KeyCode::Home => self.choose(|_| 0),
            KeyCode::End => self.choose(|_| usize::MAX),
            KeyCode::Enter | KeyCode::Char('e' | 'x') => return self.explain(),
            KeyCode::Char('/' | 'f') => {
                self.tab = Tab::Requests;
                self.dialog = Some(Dialog::Filter {
                    typed: self.words.text().to_owned(),
                });
            }
            KeyCode::Char('p') => self.offer(HoldChange::Pause, self.scopes_to_pause()),
            KeyCode::Char('r') => self.offer(HoldChange::Resume, self.scopes_to_resume()),
            _ => {}
        }
        None
    }

    fn choose(&mut self, next: impl FnOnce(usize) -> usize) {
        let last = self.rows().saturating_sub(1);
        let row = self.row();
        self.chosen[self.tab.number()] = next(row).min(last);
    }

    /// The chosen request, where one can be chosen; else what there is to read of the row.
    fn explain(&mut self) -> Option<Wish> {
        let row = self.row();
        let glance = self.glance.as_ref()?;
        let chosen = match self.tab {
            Tab::Requests => self.requests.get(row).map(|request| request.id),
            Tab::Failures => glance
                .ended
                .newest_failures
                .get(row)
                .map(|failed| failed.id),
            _ => None,
        };
        if let Some(id) = chosen {
            return Some(Wish::Explain(id));
        }
        let text = match self.tab {
            Tab::Waiting => match glance.waiting.get(row) {
                Some(group) => Some((group.reason.clone(), group.ends.clone())),
                None => idle_holds(glance)
                    .nth(row - glance.waiting.len())
                    .map(|hold| (hold.reason.clone(), "it holds no request now".to_owned())),
            },
            Tab::Orders => glance
                .orders
                .get(row)
                .and_then(|order| order.hold.as_ref())
                .map(|hold| (hold.reason.clone(), String::new())),
            Tab::Batches => glance.batches.get(row).map(|open| {
                let job = open.batch.job_id.clone().unwrap_or_default();
                let error = open.batch.read_error.clone().unwrap_or_default();
                (format!("job {job}"), error)
            }),
            Tab::Targets => glance.targets.get(row).map(|target| {
                let holds = [&target.credentials, &target.breaker];
                let reasons: Vec<&str> = holds
                    .into_iter()
                    .flatten()
                    .map(|hold| hold.reason.as_str())
                    .collect();
                (target.note.endpoint.clone(), reasons.join("; "))
            }),
            Tab::Overview | Tab::Requests | Tab::Failures => None,
        };
        let (first, second) = text?;
        let lines = [first, second];
        self.dialog = Some(Dialog::Text {
            title: self.tab.name().to_owned(),
            lines: lines.into_iter().filter(|line| !line.is_empty()).collect(),
            scroll: 0,
        });
        None
    }

    fn offer(&mut self, deed: HoldChange, scopes: Vec<Selection>) {
        if scopes.is_empty() {
            self.note = Some("nothing is paused, and no wave is held".to_owned());
        } else {
            self.dialog = Some(Dialog::Choose {
                deed,
                scopes,
                at: 0,
            });
        }
    }

    /// From the narrowest that the chosen row speaks of to everything.
    fn scopes_to_pause(&self) -> Vec<Selection> {
        let (target, action, label) = self.place_of_row();
        let action: Option<PowerAction> = action.and_then(|action| action.parse().ok());
        let mut scopes = Vec::new();
        if label.is_some() {
            scopes.push(Selection {
                label,
                ..Selection::default()
            });
        }
        if target.is_some() && action.is_some() {
            scopes.push(Selection {
                target: target.clone(),
                action,
                ..Selection::default()
            });
        }
        let mut targets: Vec<String> = self
            .glance
            .iter()
            .flat_map(|glance| &glance.targets)
            .map(|target| target.note.target.clone())
            .collect();
        // The one of the row comes first.
        targets.sort_by_key(|name| Some(name) != target.as_ref());
        scopes.extend(targets.into_iter().map(|target| Selection {
            target: Some(target),
            ..Selection::default()
        }));
        scopes.push(Selection::default());
        scopes
    }

    /// Target, action and label of the chosen row.
    fn place_of_row(&self) -> (Option<String>, Option<String>, Option<String>) {
        let row = self.row();
        let of_request = |request: &RequestRecord| {
            (
                Some(request.target.clone()),
                Some(request.action.clone()),
                request.label.clone(),
            )
        };
        let Some(glance) = &self.glance else {
            return (None, None, None);
        };
        let found = match self.tab {
            Tab::Overview => None,
            Tab::Requests => self.requests.get(row).map(of_request),
            Tab::Failures => glance.ended.newest_failures.get(row).map(of_request),
            Tab::Waiting => glance.waiting.get(row).map(|group| {
                (
                    group.target.clone(),
                    group.action.clone(),
                    group.label.clone(),
                )
            }),
            Tab::Batches => glance.batches.get(row).map(|open| {
                (
                    Some(open.batch.target.clone()),
                    Some(open.batch.action.clone()),
                    None,
                )
            }),
            Tab::Targets => glance
                .targets
                .get(row)
                .map(|target| (Some(target.note.target.clone()), None, None)),
            Tab::Orders => glance
                .orders
                .get(row)
                .map(|order| (None, None, Some(order.order.label.clone()))),
        };
        found.unwrap_or_default()
    }

    /// The pauses that stand, and the orders whose next wave is held.
    fn scopes_to_resume(&self) -> Vec<Selection> {
        let Some(glance) = &self.glance else {
            return Vec::new();
        };
        let pauses = glance.holds.iter().filter(|hold| hold.kind == "operator");
        let mut scopes: Vec<Selection> = pauses
            .map(|hold| Selection {
                target: hold.target.clone(),
                action: hold.action.as_deref().and_then(|word| word.parse().ok()),
                label: hold.label.clone(),
                ..Selection::default()
            })
            .collect();
        let waves = glance.orders.iter().filter(|order| order.hold.is_some());
        for order in waves {
            let scope = Selection {
                label: Some(order.order.label.clone()),
                ..Selection::default()
            };
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        scopes
    }

    fn on_key_in(&mut self, dialog: Dialog, key: KeyEvent) -> Option<Wish> {
        if key.code == KeyCode::Esc {
            return None;
        }
        match dialog {
            Dialog::Help => None,
            Dialog::Text {
                title,
                lines,
                scroll,
            } => {
                let scroll = match key.code {
                    KeyCode::Up | KeyCode::Char('k') => scroll.saturating_sub(1),
                    KeyCode::Down | KeyCode::Char('j') => scroll.saturating_add(1),
                    KeyCode::PageUp => scroll.saturating_sub(10),
                    KeyCode::PageDown => scroll.saturating_add(10),
                    _ => return None,
                };
                self.dialog = Some(Dialog::Text {
                    title,
                    lines,
                    scroll,
                });
                None
            }
            Dialog::Filter { typed } => self.on_key_of_filter(typed, key),
            Dialog::Choose { deed, scopes, at } => self.on_key_of_choice(deed, scopes, at, key),
            Dialog::Reason { deed, scope, typed } => {
                if key.code == KeyCode::Enter {
                    return Some(Wish::Do(deed, scope, typed));
                }
                self.dialog = Some(Dialog::Reason {
                    deed,
                    scope,
                    typed: edited(typed, key),
                });
                None
            }
        }
    }

    fn on_key_of_filter(&mut self, typed: String, key: KeyEvent) -> Option<Wish> {
        if key.code != KeyCode::Enter {
            self.dialog = Some(Dialog::Filter {
                typed: edited(typed, key),
            });
            return None;
        }
        self.words = Words::read(&typed);
        self.chosen[Tab::Requests.number()] = 0;
        Some(Wish::Read)
    }

    fn on_key_of_choice(
        &mut self,
        deed: HoldChange,
        mut scopes: Vec<Selection>,
        at: usize,
        key: KeyEvent,
    ) -> Option<Wish> {
        let at = match key.code {
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => (at + 1).min(scopes.len().saturating_sub(1)),
            KeyCode::Enter => {
                self.dialog = Some(Dialog::Reason {
                    deed,
                    scope: Box::new(scopes.swap_remove(at)),
                    typed: String::new(),
                });
                return None;
            }
            _ => at,
        };
        self.dialog = Some(Dialog::Choose { deed, scopes, at });
        None
    }
}

/// The longest text that is typed here, as the queue takes it.
const TYPED_MAX: usize = 256;

fn edited(mut typed: String, key: KeyEvent) -> String {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Backspace => {
            typed.pop();
        }
        KeyCode::Char('u') if is_control => typed.clear(),
        KeyCode::Char(char) if !is_control && typed.chars().count() < TYPED_MAX => typed.push(char),
        _ => {}
    }
    typed
}
