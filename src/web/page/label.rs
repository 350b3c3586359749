//! `/label/L`: what became of an order, of each server the newest request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use maud::{Markup, html};

use super::act::{self, Deed};
use super::filter::Filter;
use super::format::{
    command, label, number, request, shown_label, state, text, text_or_dash, time, time_or_dash,
};
use super::layout::Layout;
use super::table::{numbers, table, texts};
use super::{Answer, Trouble, html as answer, open, requests};
use crate::model::{RequestState, Role, UtcMillis, counted, quoted};
use crate::store::client::{Access, Allowed, LabelView, OrderRecord, Page, Selection};
use crate::web::Site;
use crate::web::access::Caller;
use crate::web::api::seen_by;
use crate::web::glance::now;
use crate::web::shared_read::SharedRead;

/// Of the newest that did not succeed.
const LIMIT: u32 = 20;
/// Labels of which the last reading is kept.
const LABELS_MAX: usize = 64;

/// What is shown of a label.
struct Story {
    view: LabelView,
    newest: Page,
}

/// A label, and the targets that somebody sees of it.
type Key = (String, Option<Vec<String>>);

/// What was read of labels last: a large one takes long, and many may look at the same.
#[derive(Default)]
pub(in crate::web) struct Labels(Mutex<BTreeMap<Key, Arc<SharedRead<Option<Story>>>>>);

impl Labels {
    fn of(&self, key: &Key) -> Arc<SharedRead<Option<Story>>> {
        let mut labels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() >= LABELS_MAX && !labels.contains_key(key) {
            labels.clear();
        }
        Arc::clone(labels.entry(key.clone()).or_default())
    }
}

pub(super) async fn show(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Path(wanted): Path<String>,
) -> Answer {
    let allowed = seen_by(&caller);
    let key = (wanted.clone(), allowed.targets.clone());
    let shared = site.labels.of(&key);
    let read = Story::read(Arc::clone(&site), wanted.clone(), allowed);
    let story = shared.get(read).await.map_err(Trouble::later)?;
    let Some(story) = story.as_ref() else {
        let shown = shown_label(&wanted);
        return Err(Trouble::not_found(format!(
            "no request has the label '{shown}'"
        )));
    };
    let title = format!("Label {}", shown_label(&wanted));
    let trouble = trouble(&story.view);
    let layout = Layout {
        title: &title,
        trouble: trouble.as_deref(),
        caller: &caller,
        as_of: Some(story.view.as_of),
    };
    let filter = Filter::of_label(&wanted);
    let content = html! {
        @if caller.may(Role::Operator) {
            (act::bar(
                &[Deed::Cancel, Deed::Retry, Deed::Approve, Deed::Pause, Deed::Resume],
                &filter,
                "all requests of this label",
            ))
        }
        section id="label" data-live aria-label="What became of it" {
            (content(&story.view, &story.newest, story.view.as_of))
        }
        (commands(&wanted))
    };
    Ok(answer(layout.page(content)))
}

impl Story {
    /// None if no request has the label, of those that may be seen.
    async fn read(
        site: Arc<Site>,
        wanted: String,
        allowed: Allowed,
    ) -> Result<Option<Self>, Trouble> {
        let mut door = open(&site, Access::Read).await?;
        let client = &mut door.client;
        let view = client
            .label_view(&wanted, allowed.targets.as_deref(), now())
            .await?;
        let Some(view) = view else {
            return Ok(None);
        };
        let bad = Selection {
            label: Some(wanted),
            states: vec![
                RequestState::Failed,
                RequestState::Unknown,
                RequestState::Rejected,
                RequestState::Expired,
            ],
            allowed,
            ..Selection::default()
        };
        let newest = client.page(&bad, None, LIMIT).await?;
        door.close().await?;
        Ok(Some(Self { view, newest }))
    }
}

fn trouble(view: &LabelView) -> Option<String> {
    let parts = [
        (view.counts.failed, "failed"),
        (view.counts.unknown, "unknown"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = parts
        .map(|(count, word)| format!("{} {word}", shown(*count)))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn shown(count: u64) -> String {
    number(i64::try_from(count).unwrap_or(i64::MAX))
}

fn content(view: &LabelView, newest: &Page, now: UtcMillis) -> Markup {
    html! {
        p.headline { (headline(view)) }
        (bar(view))
        (facts(view, now))
        @if let Some(order) = &view.order { h2 { "Waves" } (waves(order, now)) }
        @if !view.waiting.is_empty() { h2 { "Waiting, by reason" } (waiting(view, now)) }
        @if !view.not_succeeded.is_empty() {
            h2 { "Not succeeded, by error" }
            (not_succeeded(view))
            h2 { "The newest of all that did not succeed" }
            (table("Also requests that were tried again since", &requests::COLUMNS, requests::rows(&newest.requests, now)))
        }
    }
}

/// Each kind of outcome with its number and class, as far as there are any.
fn outcomes(view: &LabelView) -> Vec<(u64, &'static str, &'static str)> {
    let counts = &view.counts;
    let all = [
        (counts.off, "off", "good"),
        (counts.on, "on", "good"),
        (counts.rebooted, "rebooted", "good"),
        (counts.failed, "failed", "bad"),
        (counts.unknown, "unknown", "doubtful"),
        (counts.left_out, "cancelled, expired or rejected", "neutral"),
        (counts.running, "running", "moving"),
        (counts.queued, "waiting", "waiting"),
    ];
    all.into_iter().filter(|(count, _, _)| *count > 0).collect()
}

fn headline(view: &LabelView) -> String {
    let parts: Vec<String> = outcomes(view)
        .into_iter()
        .map(|(count, word, _)| format!("{} {word}", shown(count)))
        .collect();
    format!(
        "{} of {}.",
        parts.join(", "),
        counted(view.servers, "server")
    )
}

/// The headline drawn; the text beside it says the same.
fn bar(view: &LabelView) -> Markup {
    let outcomes = outcomes(view);
    let all = view.servers.max(1);
    let mut at = 0;
    let mut bars = Vec::new();
    for (count, _, class) in outcomes {
        let end = at + count;
        let (x, next) = (600 * at / all, 600 * end / all);
        bars.push((x, (next - x).max(2), class));
        at = end;
    }
    html! {
        svg.whole aria-hidden="true" viewBox="0 0 600 20" preserveAspectRatio="none" {
            @for (x, width, class) in bars { rect class=(class) x=(x) y="0" width=(width) height="20" {} }
        }
    }
}

fn facts(view: &LabelView, now: UtcMillis) -> Markup {
    html! {
        dl.facts {
            dt { "Requests" } dd { (shown(view.requests)) ", of each server the newest counts" }
            dt { "Last moved" } dd { (time_or_dash(view.last_moved_at.as_deref(), now)) }
            @match (&view.expected_end, &view.no_expectation) {
                (Some(end), _) => { dt { "Expected to end" } dd { (time(&end.to_string(), now)) } }
                (None, Some(why)) => { dt { "Expected to end" } dd { "not known: " (text(why)) } }
                (None, None) => {}
            }
        }
    }
}

fn waves(order: &OrderRecord, now: UtcMillis) -> Markup {
    html! {
        dl.facts {
            dt { "State" } dd { (state(&order.state)) }
            dt { "Wave" } dd {
                (number(order.wave)) ": " (number(order.wave_servers)) " of " (number(order.wave_size)) " servers sent"
            }
            dt { "Sizes" } dd { (text(&order.waves)) }
            dt { "Failures at most" } dd { (text(&order.failures_max)) }
            dt { "Pause between waves" } dd { (text_or_dash(order.pause.as_deref())) }
            dt { "Expires" } dd { (time_or_dash(order.expires_at.as_deref(), now)) }
        }
    }
}

fn waiting(view: &LabelView, now: UtcMillis) -> Markup {
    let columns = [
        numbers("Servers"),
        texts("Why"),
        texts("Until"),
        texts("For example"),
    ];
    let rows = view.waiting.iter().map(|reason| {
        vec![
            html! { (shown(reason.servers)) },
            html! { (text(&reason.reason)) },
            time_or_dash(reason.until.as_deref(), now),
            request(reason.first_id),
        ]
    });
    table(
        "Servers that wait for the same reason",
        &columns,
        rows.collect(),
    )
}

fn not_succeeded(view: &LabelView) -> Markup {
    let columns = [
        numbers("Servers"),
        texts("Action"),
        texts("Ended as"),
        texts("Error"),
        texts("One of them says"),
        texts("For example"),
    ];
    let rows = view.not_succeeded.iter().map(|outcome| {
        let filter = Filter {
            state: outcome.state.clone(),
            error: outcome.error_code.clone().unwrap_or_default(),
            action: outcome.action.clone(),
            ..Filter::of_label(&view.label)
        };
        vec![
            html! { a href={ "/requests?" (filter.parameters()) } { (shown(outcome.servers)) } },
            html! { (text(&outcome.action)) },
            state(&outcome.state),
            text_or_dash(outcome.error_code.as_deref()),
            text_or_dash(outcome.error_message.as_deref()),
            request(outcome.first_id),
        ]
    });
    table(
        "Servers whose newest request ended with the same error",
        &columns,
        rows.collect(),
    )
}

fn commands(wanted: &str) -> Markup {
    let word = quoted(wanted);
    html! {
        details.commands {
            summary { "Commands for this label" }
            p { (command(&format!("poweryard report --label {word}"))) }
            p { (command(&format!("poweryard retry --label {word}"))) }
            p { (command(&format!("poweryard cancel --label {word}"))) }
        }
        p { a href={ "/requests?label=" (super::format::parameter(wanted)) } { "All requests of " } (label(wanted)) }
    }
}
