//! `/act`: what operators do to everything that a filter finds. First a page that says how many of
//! what it is about, then a form that does it, then the result for each request.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::filter::Filter;
use super::format::{number, request, state, text};
use super::layout::Layout;
use super::table::{numbers, table, texts};
use super::{Answer, Trouble, html as answer, open};
use crate::model::{LetGo, RequestState, Role, UtcMillis, counted};
use crate::store::QueueClient;
use crate::store::client::{
    Access, Actor, Approval, Done, Lets, RequestResult, Resumed, SelectedCount, Selection,
    Unapproved,
};
use crate::web::Site;
use crate::web::access::Caller;
use crate::web::api::allowed_to;
use crate::web::glance::now;

/// Results that are listed one by one; the counts are of all of them.
const RESULTS_MAX: usize = 5_000;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Deed {
    Cancel,
    Retry,
    Approve,
    Pause,
    Resume,
}

impl Deed {
    fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Approve => "approve",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Cancel => "Cancel",
            Self::Retry => "Retry",
            Self::Approve => "Approve",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
        }
    }

    /// What it does, in a sentence.
    fn sentence(self) -> &'static str {
        match self {
            Self::Cancel => {
                "Requests that are queued are withdrawn; those that have been sent are kept."
            }
            Self::Retry => {
                "For each request that has failed, a new one is inserted. Servers with a later request are left alone."
            }
            Self::Approve => {
                "Requests that are queued and not yet approved may leave in spite of the guard; none that come later."
            }
            Self::Pause => {
                "Nothing new is sent until somebody ends the pause; what runs is still followed."
            }
            Self::Resume => {
                "Ends the pause with exactly these words; of a label without a pause, lets the order's next wave go."
            }
        }
    }

    /// True if it is about requests, and false if it is about a target, an action or a label.
    fn is_about_requests(self) -> bool {
        match self {
            Self::Cancel | Self::Retry | Self::Approve => true,
            Self::Pause | Self::Resume => false,
        }
    }
}

/// The address that asks before it is done.
fn address(deed: Deed, filter: &Filter) -> String {
    let parameters = filter.parameters();
    let and = if parameters.is_empty() { "" } else { "&" };
    format!("/act?deed={}{and}{parameters}", deed.word())
}

/// A link to the page that asks.
pub(super) fn link(deed: Deed, filter: &Filter, words: &str) -> Markup {
    html! { a.deed href=(address(deed, filter)) { (words) } }
}

/// Links to several.
pub(super) fn bar(deeds: &[Deed], filter: &Filter, what: &str) -> Markup {
    html! {
        p.deeds {
            span { "With " (what) ": " }
            @for deed in deeds { (link(*deed, filter, deed.title())) " " }
        }
    }
}

/// What is asked about.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    deed: Deed,
}

/// What the form says besides the filter.
#[derive(Debug, Deserialize)]
pub(super) struct Ordered {
    deed: Deed,
    #[serde(default)]
    reason: String,
    /// How many requests the person was told of, or has typed.
    #[serde(default)]
    requests: String,
    /// Let all remaining waves go.
    #[serde(default)]
    rest: String,
}

/// The requests that it would be done to.
#[derive(Default)]
struct Affected {
    counts: Vec<SelectedCount>,
    requests: u64,
    /// What is approved, if that is asked about.
    unapproved: Unapproved,
}

pub(super) async fn confirm(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Query(asked): Query<Asked>,
    Query(filter): Query<Filter>,
) -> Answer {
    caller.require(Role::Operator)?;
    let now = now();
    let mut door = open(&site, Access::Read).await?;
    let client = &mut door.client;
    let which = meant(asked.deed, &filter, client, &caller, now).await?;
    let affected = affected(client, asked.deed, &which).await?;
    door.close().await?;
    Ok(question(asked.deed, &filter, &affected, &caller, None))
}

/// The selection, limited to what this caller may change.
async fn meant(
    deed: Deed,
    filter: &Filter,
    client: &mut QueueClient,
    caller: &Caller,
    now: UtcMillis,
) -> Result<Selection, Trouble> {
    if deed.is_about_requests() && filter.is_empty() {
        let sentence = "nothing is selected; filter the requests first";
        return Err(Trouble::bad_request(sentence));
    }
    let mut which = filter.selection(client, caller, now).await?;
    which.allowed = allowed_to(caller);
    Ok(which)
}

async fn affected(
    client: &mut QueueClient,
    deed: Deed,
    which: &Selection,
) -> Result<Affected, Trouble> {
    if deed == Deed::Approve {
        let unapproved = client.unapproved(which).await?;
        let requests = unapproved.requests();
        let counts = unapproved.counts.iter().map(|count| SelectedCount {
            target: count.target.clone(),
            action: count.action.clone(),
            state: RequestState::Queued.as_str().to_owned(),
            requests: count.requests,
        });
        return Ok(Affected {
            counts: counts.collect(),
            requests,
            unapproved,
        });
    }
    let counts = match narrowed(deed, which) {
        Some(which) => match client.selected(&which).await {
            // A pause of everything selects no requests in particular.
            Err(_) if !deed.is_about_requests() => Vec::new(),
            found => found?,
        },
        None => Vec::new(),
    };
    let all = counts
        .iter()
        .map(|count| u64::try_from(count.requests).unwrap_or(0));
    Ok(Affected {
        requests: all.sum(),
        counts,
        unapproved: Unapproved::default(),
    })
}

/// Without states that it leaves alone anyway; none if it leaves all of them alone. A filter that
/// names states means those.
fn narrowed(deed: Deed, which: &Selection) -> Option<Selection> {
    let names_some = !which.states.is_empty() || which.ids.is_some();
    let states = match deed {
        Deed::Retry if names_some => which.states.clone(),
        Deed::Retry => vec![RequestState::Failed],
        Deed::Cancel if which.ids.is_some() => which.states.clone(),
        Deed::Cancel if names_some && !which.states.contains(&RequestState::Queued) => return None,
        _ => vec![RequestState::Queued],
    };
    Some(Selection {
        states,
        ..which.clone()
    })
}

/// The page that asks.
fn question(
    deed: Deed,
    filter: &Filter,
    affected: &Affected,
    caller: &Caller,
    remark: Option<&str>,
) -> Response {
    let title = format!("{}?", deed.title());
    let layout = Layout {
        title: &title,
        trouble: None,
        caller,
        // It is not read again by itself: somebody is about to confirm what it says.
        as_of: None,
    };
    let is_about_requests = deed.is_about_requests();
    let is_empty = is_about_requests && affected.requests == 0;
    let content = html! {
        @if let Some(remark) = remark { p role="alert" { (text(remark)) } }
        p { (subject(deed, filter)) }
        p { (deed.sentence()) }
        @if is_empty {
            p.nothing { "No request matches that this could be done to." }
        } @else {
            @if !affected.counts.is_empty() { (counts(affected)) }
            (form(deed, filter, affected, caller))
        }
        p { a href={ "/requests?" (filter.parameters()) } { "To these requests" } " " a href="/" { "To the overview" } }
    };
    answer(layout.page(content))
}

fn subject(deed: Deed, filter: &Filter) -> Markup {
    html! {
        @if deed.is_about_requests() {
            "This is about the requests with: " strong { (filter.words()) } "."
        } @else {
            "This is about: " strong { (filter.scope()) } "."
        }
    }
}

fn counts(affected: &Affected) -> Markup {
    let columns = [
        texts("Target"),
        texts("Action"),
        texts("State"),
        numbers("Requests"),
    ];
    let rows = affected.counts.iter().map(|count| {
        vec![
            html! { (text(&count.target)) },
            html! { (text(&count.action)) },
            state(&count.state),
            html! { (number(count.requests)) },
        ]
    });
    table("What it is about at this moment", &columns, rows.collect())
}

fn form(deed: Deed, filter: &Filter, affected: &Affected, caller: &Caller) -> Markup {
    let all = counted(affected.requests, "request");
    html! {
        form.act method="post" action="/act" {
            input type="hidden" name="form_token" value=(caller.form_token().unwrap_or_default());
            input type="hidden" name="deed" value=(deed.word());
            (filter.hidden())
            @if deed == Deed::Approve {
                p {
                    label for="requests" { "Type the number of requests that you approve (" (affected.requests) ")" }
                    input id="requests" name="requests" inputmode="numeric" pattern="[0-9]+" autocomplete="off" required;
                }
            } @else {
                input type="hidden" name="requests" value=(affected.requests);
            }
            p {
                label for="reason" { "Reason (is stored with your name)" }
                input id="reason" name="reason" maxlength="1024" autocomplete="off";
            }
            @if deed == Deed::Resume && !filter.label.is_empty() {
                p {
                    input id="rest" type="checkbox" name="rest" value="yes";
                    label for="rest" { "Of an order with waves: let all remaining waves go, not only the next" }
                }
            }
            p {
                button.deed {
                    @if deed.is_about_requests() { (deed.title()) " " (all) } @else { (deed.title()) }
                }
            }
        }
    }
}

/// What was done.
struct Outcome {
    sentence: String,
    results: Vec<RequestResult>,
}

pub(super) async fn perform(State(site): State<Arc<Site>>, caller: Caller, form: Bytes) -> Answer {
    caller.require(Role::Operator)?;
    let now = now();
    let (ordered, filter) = read(&form)?;
    let mut door = open(&site, Access::Write).await?;
    let client = &mut door.client;
    let which = meant(ordered.deed, &filter, client, &caller, now).await?;
    let affected = affected(client, ordered.deed, &which).await?;
    if let Some(remark) = ordered.why_ask_again(&affected) {
        return Ok(question(
            ordered.deed,
            &filter,
            &affected,
            &caller,
            Some(&remark),
        ));
    }
    let outcome = ordered.perform(client, &which, &affected, &caller).await?;
    door.close().await?;
    Ok(told(ordered.deed, &filter, &outcome, &caller))
}

/// What a form says is written as in an address.
fn read(form: &Bytes) -> Result<(Ordered, Filter), Trouble> {
    let wrong = || Trouble::bad_request("the form is not one of this page");
    let fields = std::str::from_utf8(form).map_err(|_| wrong())?;
    // In an address it would end the fields, and a shorter filter selects more.
    if fields.contains('#') {
        return Err(wrong());
    }
    let address: Uri = format!("/act?{fields}").parse().map_err(|_| wrong())?;
    let Query(ordered) = Query::try_from_uri(&address).map_err(|_| wrong())?;
    let Query(filter) = Query::try_from_uri(&address).map_err(|_| wrong())?;
    Ok((ordered, filter))
}

impl Ordered {
    /// How many requests the person knows of.
    fn known(&self) -> Option<u64> {
        self.requests.trim().replace(',', "").parse().ok()
    }

    /// The number of requests is not the one that the person knows of.
    fn why_ask_again(&self, affected: &Affected) -> Option<String> {
        if !self.deed.is_about_requests() {
            return None;
        }
        let now = counted(affected.requests, "request");
        match self.known() {
            Some(known) if known == affected.requests => None,
            // Some have left meanwhile, as they do; fewer were seen than are there is another thing.
            Some(known) if known > affected.requests && self.deed != Deed::Approve => None,
            Some(known) => Some(format!(
                "Nothing was done: you confirmed {known}, and it is {now} now."
            )),
            None => Some(format!(
                "Nothing was done: type the number of requests; it is {now} now."
            )),
        }
    }

    async fn perform(
        &self,
        client: &mut QueueClient,
        which: &Selection,
        affected: &Affected,
        caller: &Caller,
    ) -> Result<Outcome, Trouble> {
        let reason = self.reason.trim();
        let actor = Actor {
            who: caller.name(),
            reason: (!reason.is_empty()).then_some(reason),
        };
        Ok(match self.deed {
            Deed::Cancel => of_requests(client.cancel(actor, which).await?, "cancelled"),
            Deed::Retry => of_requests(client.retry(actor, which).await?, "tried again"),
            Deed::Approve => match client.approve(actor, which, &affected.unapproved).await? {
                Approval::Done(done) => of_requests(done, "approved"),
                Approval::Another(left) => nothing_approved(left),
            },
            Deed::Pause => {
                let paused = client.pause(actor, which, now()).await?;
                let word = if paused.is_new {
                    "Paused"
                } else {
                    "It was paused already"
                };
                Outcome {
                    sentence: format!("{word}: {}.", counted(paused.requests, "queued request")),
                    results: Vec::new(),
                }
            }
            Deed::Resume => {
                let what = if self.rest.is_empty() {
                    LetGo::Wave
                } else {
                    LetGo::Rest
                };
                let resumed = client.resume(actor, which, what).await?;
                Outcome {
                    sentence: said_of_resume(&resumed),
                    results: Vec::new(),
                }
            }
        })
    }
}

fn nothing_approved(there: u64) -> Outcome {
    let there = counted(there, "request");
    Outcome {
        sentence: format!("Nothing was approved: it is {there} now."),
        results: Vec::new(),
    }
}

fn of_requests(done: Done, word: &str) -> Outcome {
    let left = done.left_alone().count();
    let left = match left {
        0 => String::new(),
        left => format!(
            "; {} left alone",
            counted(u64::try_from(left).unwrap_or(u64::MAX), "request")
        ),
    };
    Outcome {
        sentence: format!("{} {word}{left}.", counted(done.done, "request")),
        results: done.results,
    }
}

fn said_of_resume(resumed: &Resumed) -> String {
    if let Some(why) = resumed.why_nothing() {
        return format!("Nothing to resume: {why}.");
    }
    match (resumed.pauses, &resumed.lets) {
        (0, Some(Lets::Goes(wave))) => format!("Let go: from wave {wave}."),
        (pauses, _) => format!("{} ended.", counted(pauses, "pause")),
    }
}

/// The page that tells what was done.
fn told(deed: Deed, filter: &Filter, outcome: &Outcome, caller: &Caller) -> Response {
    let title = format!("{}: done", deed.title());
    let layout = Layout {
        title: &title,
        trouble: None,
        caller,
        as_of: None,
    };
    let columns = [numbers("Request"), texts("Done"), texts("Result")];
    let shown = outcome.results.iter().take(RESULTS_MAX);
    let rows = shown.map(|result| {
        vec![
            request(result.id),
            html! { @if result.ok { "yes" } @else { span.bad { "no" } } },
            html! {
                "request " (result.id) " " (text(&result.message))
                @if let Some(new) = result.new_id { " " (request(new)) }
            },
        ]
    });
    let more = outcome.results.len().saturating_sub(RESULTS_MAX);
    let content = html! {
        p role="status" { strong { (text(&outcome.sentence)) } }
        p { (subject(deed, filter)) }
        @if !outcome.results.is_empty() { (table("Each request", &columns, rows.collect())) }
        @if more > 0 { p.note { "And " (more) " more." } }
        p { a href={ "/requests?" (filter.parameters()) } { "To these requests" } " " a href="/" { "To the overview" } }
    };
    answer(layout.page(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(deed: Deed, requests: &str) -> Ordered {
        Ordered {
            deed,
            reason: String::new(),
            requests: requests.to_owned(),
            rest: String::new(),
        }
    }

    #[test]
    fn more_than_was_confirmed_is_asked_about_again() {
        let affected = Affected {
            requests: 40,
            ..Affected::default()
        };
        let asks = |deed, requests| ordered(deed, requests).why_ask_again(&affected).is_some();
        assert!(!asks(Deed::Cancel, "40") && !asks(Deed::Cancel, "41"));
        assert!(asks(Deed::Cancel, "39") && asks(Deed::Cancel, "") && asks(Deed::Cancel, "many"));
        assert!(!asks(Deed::Approve, "40") && asks(Deed::Approve, "41"));
        assert!(!asks(Deed::Pause, ""));
    }

    #[test]
    fn a_form_holds_the_deed_and_the_filter() {
        let form = Bytes::from("label=patch+day&deed=retry&requests=3&form_token=x");
        let (ordered, filter) = read(&form).expect("a form");
        assert_eq!(
            (ordered.deed, ordered.requests.as_str()),
            (Deed::Retry, "3")
        );
        assert_eq!(filter, Filter::of_label("patch day"));
        assert!(read(&Bytes::from("deed=erase")).is_err());
        assert!(read(&Bytes::from("deed=cancel&label=a#b")).is_err());
    }
}
