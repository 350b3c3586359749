//! `/`: everything at a glance.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use maud::{Markup, html};

use super::act::{Deed, link};
use super::chart::Chart;
use super::filter::Filter;
use super::format::{
    dash, label, number, parameter, request, requests, sentence, span_of, state, text,
    text_or_dash, time, time_or_dash,
};
use super::layout::Layout;
use super::table::{numbers, table, texts};
use super::{Answer, Trouble};
use crate::model::{HoldKind, RequestState, Role, UtcMillis};
use crate::store::client::{
    BatchNote, EndedCount, Glance, HoldRecord, OrderNote, TargetHealth, WaitingGroup,
};
use crate::web::Site;
use crate::web::access::Caller;

pub(super) async fn show(State(site): State<Arc<Site>>, caller: Caller) -> Answer {
    let reading = site
        .glance
        .get()
        .await
        .map_err(|why| Trouble::unreadable(&why))?;
    let glance = reading.glance(caller.targets());
    let layout = Layout {
        title: "Overview",
        trouble: glance.trouble.as_deref(),
        caller: &caller,
        as_of: Some(glance.as_of),
    };
    let may_act = caller.may(Role::Operator);
    Ok(super::html(layout.page(content(&glance, may_act))))
}

fn content(glance: &Glance, may_act: bool) -> Markup {
    html! {
        p.headline id="headline" data-live { (text(&glance.headline)) }
        (part("queue", "Queue", queue(glance)))
        (part("waiting", "Waiting, by reason", waiting(glance, may_act)))
        @if !glance.orders.is_empty() { (part("orders", "Orders with waves", orders(glance, may_act))) }
        (part("batches", "On their way", batches(glance)))
        (part("ended", "Ended", charts(glance)))
        (part("errors", "Failures of the last day, by error", errors(glance)))
        (part("failures", "Newest failures", failures(glance)))
        (part("holds", "Holds", holds(glance, may_act)))
        (part("targets", "Targets", targets(glance, may_act)))
    }
}

/// A section that the script replaces when it has changed.
fn part(id: &str, title: &str, content: Markup) -> Markup {
    html! {
        section id=(id) data-live aria-labelledby={ (id) "-head" } {
            h2 id={ (id) "-head" } { (title) }
            (content)
        }
    }
}

fn nothing(sentence: &str) -> Markup {
    html! { p.nothing { (sentence) } }
}

/// What is known of one target and action.
#[derive(Default)]
struct Lane {
    queued: i64,
    oldest: Option<String>,
    running: i64,
    hour: Ends,
    day: Ends,
}

#[derive(Default)]
struct Ends {
    succeeded: i64,
    failed: i64,
    unknown: i64,
    other: i64,
}

impl Ends {
    fn add(&mut self, count: &EndedCount) {
        match count.state.parse() {
            Ok(RequestState::Succeeded) => self.succeeded += count.count,
            Ok(RequestState::Failed) => self.failed += count.count,
            Ok(RequestState::Unknown) => self.unknown += count.count,
            _ => self.other += count.count,
        }
    }

    /// Each number leads to its requests.
    fn cells(&self, lane: &str, since: &str) -> [Markup; 3] {
        let kinds = [
            (self.succeeded, "succeeded"),
            (self.failed + self.unknown, "failed,unknown"),
            (self.other, "cancelled,expired,rejected"),
        ];
        kinds.map(|(count, states)| {
            requests(
                count,
                &format!("/requests?state={states}&since={since}&{lane}"),
            )
        })
    }
}

fn lanes(glance: &Glance) -> BTreeMap<(&str, &str), Lane> {
    let mut lanes: BTreeMap<(&str, &str), Lane> = BTreeMap::new();
    for count in &glance.queue {
        let lane = lanes.entry((&count.target, &count.action)).or_default();
        if count.state == RequestState::Queued.as_str() {
            lane.queued += count.count;
            lane.oldest = count.oldest_created_at.clone();
        } else {
            lane.running += count.count;
        }
    }
    for count in &glance.ended.hour {
        lanes
            .entry((&count.target, &count.action))
            .or_default()
            .hour
            .add(count);
    }
    for count in &glance.ended.day {
        lanes
            .entry((&count.target, &count.action))
            .or_default()
            .day
            .add(count);
    }
    lanes
}

fn queue(glance: &Glance) -> Markup {
    let lanes = lanes(glance);
    if lanes.is_empty() {
        return nothing("Nothing waits or runs, and nothing has ended in the last day.");
    }
    let columns = [
        texts("Target"),
        texts("Action"),
        numbers("Waiting"),
        texts("Oldest"),
        numbers("Running"),
        numbers("Succeeded, 1 h"),
        numbers("Failed or unknown, 1 h"),
        numbers("Other ends, 1 h"),
        numbers("Succeeded, 24 h"),
        numbers("Failed or unknown, 24 h"),
        numbers("Other ends, 24 h"),
    ];
    let rows = lanes.into_iter().map(|((target, action), lane)| {
        let parameters = format!("target={}&action={}", parameter(target), parameter(action));
        let mut row = vec![
            html! { (text(target)) },
            html! { (text(action)) },
            requests(lane.queued, &format!("/requests?state=queued&{parameters}")),
            time_or_dash(lane.oldest.as_deref(), glance.as_of),
            requests(
                lane.running,
                &format!("/requests?state=running&{parameters}"),
            ),
        ];
        row.extend(lane.hour.cells(&parameters, "1h"));
        row.extend(lane.day.cells(&parameters, "24h"));
        row
    });
    html! {
        (table("Requests by target and action", &columns, rows.collect()))
        (counted_since(glance))
    }
}

/// Says so if not all of the day is counted yet.
fn counted_since(glance: &Glance) -> Markup {
    let day_ago = glance.as_of.moved(-24 * 3_600_000);
    html! {
        @match glance.ended.counted_since {
            Some(since) if since > day_ago => {
                p.note { "Ends are counted since " (time(&since.to_string(), glance.as_of)) "; earlier ones follow." }
            }
            _ => {}
        }
    }
}

fn waiting(glance: &Glance, may_act: bool) -> Markup {
    if glance.waiting.is_empty() {
        return nothing("Nothing waits.");
    }
    let columns = [
        numbers("Requests"),
        texts("Target"),
        texts("Action"),
        texts("Label"),
        texts("Why"),
        texts("Until"),
        texts("What ends it"),
    ];
    let rows = glance.waiting.iter().map(|group| {
        vec![
            html! { (number(group.count)) },
            text_or_dash(group.target.as_deref()),
            text_or_dash(group.action.as_deref()),
            group.label.as_deref().map_or_else(dash, label),
            html! { (sentence(&group.reason)) },
            time_or_dash(group.until.as_deref(), glance.as_of),
            html! { (sentence(&group.ends)) @if may_act { (way_out(group)) } },
        ]
    });
    table(
        "Requests that wait for the same reason",
        &columns,
        rows.collect(),
    )
}

/// What an operator can do about it here.
fn way_out(group: &WaitingGroup) -> Markup {
    let filter = Filter {
        target: group.target.clone().unwrap_or_default(),
        action: group.action.clone().unwrap_or_default(),
        label: group.label.clone().unwrap_or_default(),
        ..Filter::default()
    };
    html! {
        @match group.kind.parse() {
            Ok(HoldKind::Approval) => { " " (link(Deed::Approve, &filter, "Approve these")) }
            Ok(HoldKind::Wave) => {
                " " (link(Deed::Resume, &Filter::of_label(&filter.label), "Let the next wave go"))
            }
            _ => {}
        }
    }
}

fn orders(glance: &Glance, may_act: bool) -> Markup {
    let columns = [
        texts("Order"),
        texts("State"),
        numbers("Wave"),
        texts("Sizes"),
        texts("Sent"),
        texts("Its requests"),
        texts("What holds it"),
        texts("Expires"),
    ];
    let rows = glance
        .orders
        .iter()
        .map(|note| order(note, glance.as_of, may_act));
    table(
        "Orders that are not done, or were done in the last day",
        &columns,
        rows.collect(),
    )
}

fn order(note: &OrderNote, now: UtcMillis, may_act: bool) -> Vec<Markup> {
    let order = &note.order;
    let hold = note.hold.as_ref();
    vec![
        label(&order.label),
        state(&order.state),
        html! { (number(order.wave)) },
        html! { (text(&order.waves)) },
        html! {
            (number(order.wave_servers)) " of " (number(order.wave_size)) " in this wave; "
            (number(order.servers)) " servers in all"
        },
        html! {
            @if note.requests.is_empty() { (dash()) }
            ul.counts { @for count in &note.requests { li { (number(count.count)) " " (state(&count.state)) } } }
        },
        html! {
            @match hold { Some(hold) => (sentence(&hold.reason)), None => (dash()) }
            @if may_act && hold.is_some() {
                " " (link(Deed::Resume, &Filter::of_label(&order.label), "Let the next wave go"))
            }
        },
        time_or_dash(order.expires_at.as_deref(), now),
    ]
}

fn batches(glance: &Glance) -> Markup {
    if glance.batches.is_empty() {
        return nothing("No batch is on its way.");
    }
    let columns = [
        numbers("Batch"),
        texts("Target"),
        texts("Action"),
        texts("State"),
        texts("Known"),
        texts("Time so far"),
        texts("Job"),
        texts("Next look"),
    ];
    let rows = glance.batches.iter().map(|note| batch(note, glance.as_of));
    html! {
        (table("Batches that are not done", &columns, rows.collect()))
        @if glance.batches_left_out > 0 {
            p.note { (number(i64::try_from(glance.batches_left_out).unwrap_or(i64::MAX))) " more batches are not shown." }
        }
    }
}

fn batch(note: &BatchNote, now: UtcMillis) -> Vec<Markup> {
    let batch = &note.batch;
    let of = format!("{} of {}", number(note.known), number(batch.server_count));
    let time_so_far = match note.usual_ms {
        Some(usual) => format!("{} of about {}", span_of(note.elapsed_ms), span_of(usual)),
        None => format!(
            "{}; the usual time is not known yet",
            span_of(note.elapsed_ms)
        ),
    };
    vec![
        html! { (batch.id) },
        html! { (text(&batch.target)) },
        html! { (text(&batch.action)) },
        state(&batch.state),
        html! {
            progress value=(note.known) max=(batch.server_count) aria-label={ "Batch " (batch.id) ": servers whose outcome is known" } { (of) }
            " " (of)
        },
        html! {
            @if let Some(usual) = note.usual_ms.filter(|usual| *usual > 0) {
                progress.time value=(note.elapsed_ms.min(usual)) max=(usual) aria-label={ "Batch " (batch.id) ": time of the usual time" } {}
                " "
            }
            (time_so_far)
        },
        text_or_dash(batch.job_id.as_deref()),
        html! {
            (time_or_dash(batch.next_look_at.as_deref(), now))
            @if let Some(why) = &batch.read_error { " The last look failed: " (text(why)) }
        },
    ]
}

fn charts(glance: &Glance) -> Markup {
    let minutes = Chart {
        id: "minutes",
        title: "The last hour, by minute",
        slots: &glance.ended.minutes,
        label: 11..16,
    };
    let hours = Chart {
        id: "hours",
        title: "The last day, by hour",
        slots: &glance.ended.hours,
        label: 5..16,
    };
    html! {
        div.charts { (minutes.draw()) (hours.draw()) }
        (counted_since(glance))
    }
}

fn errors(glance: &Glance) -> Markup {
    if glance.ended.errors.is_empty() {
        return nothing("Nothing has failed in the last day.");
    }
    let columns = [
        numbers("Requests"),
        texts("Ended as"),
        texts("Error"),
        texts("The newest one says"),
        texts("Newest"),
    ];
    let rows = glance.ended.errors.iter().map(|error| {
        let filter = Filter {
            state: error.state.clone(),
            error: error.error_code.clone().unwrap_or_default(),
            since: "24h".to_owned(),
            ..Filter::default()
        };
        vec![
            html! { a href={ "/requests?" (filter.parameters()) } { (number(error.count)) } },
            state(&error.state),
            text_or_dash(error.error_code.as_deref()),
            text_or_dash(error.message.as_deref()),
            request(error.newest_id),
        ]
    });
    table("Failures with the same error", &columns, rows.collect())
}

fn failures(glance: &Glance) -> Markup {
    if glance.ended.newest_failures.is_empty() {
        return nothing("Nothing has failed in the last day.");
    }
    let rows = super::requests::rows(&glance.ended.newest_failures, glance.as_of);
    html! {
        (table("The newest first", &super::requests::COLUMNS, rows))
        p { a href="/requests?state=failed,unknown,expired,rejected" { "All failures" } }
    }
}

fn holds(glance: &Glance, may_act: bool) -> Markup {
    if glance.holds.is_empty() {
        return html! {
            (nothing("Nothing is held."))
            @if may_act { p { (link(Deed::Pause, &Filter::default(), "Pause everything")) } }
        };
    }
    let columns = [
        texts("Kind"),
        texts("Target"),
        texts("Action"),
        texts("Label"),
        texts("Why"),
        texts("Since"),
        texts("Until"),
    ];
    let rows = glance
        .holds
        .iter()
        .map(|hold| hold_row(hold, glance.as_of, may_act));
    html! {
        (table("Why requests are not sent", &columns, rows.collect()))
        @if may_act { p { (link(Deed::Pause, &Filter::default(), "Pause everything")) } }
    }
}

fn hold_row(hold: &HoldRecord, now: UtcMillis, may_act: bool) -> Vec<Markup> {
    let filter = Filter {
        target: hold.target.clone().unwrap_or_default(),
        action: hold.action.clone().unwrap_or_default(),
        label: hold.label.clone().unwrap_or_default(),
        ..Filter::default()
    };
    let is_pause = hold.kind == HoldKind::Operator.as_str();
    vec![
        html! { (text(&hold.kind)) },
        hold.target
            .as_deref()
            .map_or_else(|| html! { "all" }, |target| html! { (text(target)) }),
        hold.action
            .as_deref()
            .map_or_else(|| html! { "all" }, |action| html! { (text(action)) }),
        hold.label.as_deref().map_or_else(dash, label),
        html! {
            (sentence(&hold.reason))
            @if is_pause && may_act { " " (link(Deed::Resume, &filter, "End this pause")) }
        },
        time(&hold.since, now),
        time_or_dash(hold.until.as_deref(), now),
    ]
}

fn targets(glance: &Glance, may_act: bool) -> Markup {
    if glance.targets.is_empty() {
        return nothing("The daemon has not noted any target yet.");
    }
    let columns = [
        texts("Target"),
        texts("Service"),
        numbers("Calls in 60 s"),
        numbers("Pace a minute"),
        numbers("Configured"),
        texts("Breaker"),
        texts("Credentials"),
        texts("Servers listed"),
        texts("Noted"),
    ];
    let rows = glance
        .targets
        .iter()
        .map(|target| target_row(target, glance.as_of, may_act));
    table("Each target's pace and health", &columns, rows.collect())
}

fn target_row(target: &TargetHealth, now: UtcMillis, may_act: bool) -> Vec<Markup> {
    let note = &target.note;
    let filter = Filter {
        target: note.target.clone(),
        ..Filter::default()
    };
    vec![
        html! { (text(&note.target)) @if may_act { " " (link(Deed::Pause, &filter, "Pause")) } },
        html! { (text(&note.service)) },
        html! { (number(note.calls_last_minute)) },
        html! { (number(note.pace_per_minute)) },
        html! { (number(note.submits_per_minute)) },
        health(target.breaker.as_ref()),
        health(target.credentials.as_ref()),
        html! {
            (time_or_dash(note.inventory_at.as_deref(), now))
            @if let Some(error) = &note.inventory_error { " The last try failed: " (text(error)) }
        },
        time(&note.updated_at, now),
    ]
}

fn health(hold: Option<&HoldRecord>) -> Markup {
    html! {
        @match hold {
            Some(hold) => { span.bad { "held" } ": " (text(&hold.reason)) }
            None => { "ok" }
        }
    }
}
