//! `/request/ID`: one request, step by step, with the evidence.

use std::sync::Arc;

use axum::extract::{Path, State};
use maud::{Markup, html};

use super::act::{self, Deed};
use super::filter::Filter;
use super::format::{
    command, dash, label, number, request, sentence, server, state, text, text_or_dash, time,
    time_or_dash,
};
use super::layout::Layout;
use super::{Answer, Trouble, html as answer, open};
use crate::model::{RequestState, Role, UtcMillis};
use crate::store::client::{Access, AttemptRecord, RequestRecord};
use crate::web::Site;
use crate::web::access::Caller;
use crate::web::glance::now;

/// What is shown of one request.
struct Story {
    request: RequestRecord,
    attempts: Vec<AttemptRecord>,
    /// The sentences of `poweryard explain`.
    sentences: Vec<String>,
    now: UtcMillis,
}

pub(super) async fn show(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer {
    let unknown = || Trouble::not_found(format!("there is no request {}", text(&id)));
    let id: i64 = id.parse().map_err(|_| unknown())?;
    let mut door = open(&site, Access::Read).await?;
    let client = &mut door.client;
    let found = client.request(id).await?;
    if !caller.sees(&found.target) {
        return Err(unknown());
    }
    let explained = (site.explain)(id).await;
    let story = Story {
        attempts: client.attempts(id).await?,
        request: found,
        sentences: explained.map_err(|why| Trouble::unreadable(&why))?,
        now: now(),
    };
    door.close().await?;
    let title = format!("Request {id}");
    let layout = Layout {
        title: &title,
        trouble: None,
        caller: &caller,
        as_of: Some(story.now),
    };
    let content = html! {
        (deeds(&story.request, &caller))
        section id="story" data-live aria-label="What became of it" { (story.content()) }
    };
    Ok(answer(layout.page(content)))
}

fn deeds(request: &RequestRecord, caller: &Caller) -> Markup {
    let filter = Filter::of_id(request.id);
    let state = request.state.parse().ok();
    let deeds: &[Deed] = match state {
        Some(RequestState::Queued) if request.approved_by.is_none() => {
            &[Deed::Cancel, Deed::Approve]
        }
        Some(RequestState::Queued) => &[Deed::Cancel],
        Some(RequestState::Failed | RequestState::Unknown) => &[Deed::Retry],
        _ => &[],
    };
    html! {
        @if caller.may(Role::Operator) && !deeds.is_empty() { (act::bar(deeds, &filter, "this request")) }
    }
}

impl Story {
    fn content(&self) -> Markup {
        html! {
            p.headline {
                (state(&self.request.state)) " " (text(&self.request.action)) " of "
                (server(&self.request.server_id, self.request.name.as_deref()))
            }
            @for said in &self.sentences { p { (sentence(said)) } }
            h2 { "Step by step" }
            (self.steps())
            h2 { "What it says" }
            (self.facts())
            h2 { "Commands" }
            p { (command(&format!("poweryard explain {}", self.request.id))) }
            @if let Some(next) = self.next_command() { p { (command(&next)) } }
        }
    }

    /// What somebody may want to do next.
    fn next_command(&self) -> Option<String> {
        let id = self.request.id;
        match self.request.state.parse().ok()? {
            RequestState::Queued => Some(format!("poweryard cancel {id}")),
            RequestState::Failed | RequestState::Unknown => Some(format!("poweryard retry {id}")),
            state @ (RequestState::Cancelled | RequestState::Expired | RequestState::Rejected) => {
                Some(format!("poweryard retry {id} --state {state}"))
            }
            RequestState::Running | RequestState::Succeeded => None,
        }
    }

    fn steps(&self) -> Markup {
        let request = &self.request;
        html! {
            ol.steps {
                li {
                    (time(&request.created_at, self.now)) " inserted"
                    @if let Some(who) = &request.requested_by { " by " (text(who)) }
                }
                @if let Some(at) = &request.not_before { li { (time(at, self.now)) " not due before this" } }
                @if let Some(id) = request.after_id { li { "waits for request " (super::format::request(id)) } }
                @if let Some(who) = &request.approved_by { li { "approved by " (text(who)) } }
                @if let Some(wave) = request.wave { li { "let go in wave " (number(wave)) } }
                @for attempt in &self.attempts { (self.step(attempt)) }
                @if let Some(at) = &request.retry_at { li { (time(at, self.now)) " not tried again before this" } }
                @if let Some(at) = &request.finished_at {
                    li {
                        (time(at, self.now)) " " (state(&request.state)) ", evidence: "
                        (text(request.evidence.as_deref().unwrap_or("none")))
                        @if let Some(code) = &request.error_code { "; " strong { (text(code)) } }
                        @if let Some(message) = &request.error_message { " " (text(message)) }
                    }
                }
            }
        }
    }

    fn step(&self, attempt: &AttemptRecord) -> Markup {
        // How its last call ended is how the request ended.
        let is_end = attempt.finished_at == self.request.finished_at;
        html! {
            li {
                (time(&attempt.started_at, self.now)) " sent in batch " (attempt.batch_id)
                @if let Some(job) = &attempt.job_id { ", job " code { (text(job)) } }
                @match &attempt.result {
                    Some(_) if is_end => {}
                    Some(result) => {
                        "; it came back as " (text(result))
                        @if let Some(code) = &attempt.error_code { ": " strong { (text(code)) } }
                        @if let Some(message) = &attempt.error_message { " " (text(message)) }
                        @if let Some(at) = &attempt.finished_at { ", " (time(at, self.now)) }
                    }
                    None => { "; it is on its way" }
                }
            }
        }
    }

    fn facts(&self) -> Markup {
        let one = &self.request;
        html! {
            dl.facts {
                dt { "Server" } dd { (server(&one.server_id, one.name.as_deref())) }
                dt { "Target" } dd { (text(&one.target)) }
                dt { "Label" } dd { (one.label.as_deref().map_or_else(dash, label)) }
                dt { "Priority" } dd { (number(one.priority)) }
                dt { "Key" } dd { (text_or_dash(one.request_key.as_deref())) }
                dt { "Asked for by" } dd { (text_or_dash(one.requested_by.as_deref())) }
                dt { "May leave outside windows" } dd { (text_or_dash(one.override_reason.as_deref())) }
                dt { "Waits for" } dd { (one.after_id.map_or_else(dash, request)) }
                dt { "Expires" } dd { (time_or_dash(one.expires_at.as_deref(), self.now)) }
                dt { "Attempts" } dd { (number(one.attempts)) }
            }
        }
    }
}
