//! What people do to requests, from elsewhere: the same functions as the commands', limited to what
//! the token allows.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::ToSchema;

use super::door::{Door, allowed_to, open};
use super::input::{JsonText, time};
use super::problem::Problem;
use crate::model::{LetGo, PowerAction, RequestState, Role};
use crate::store::QueueClient;
use crate::store::client::{Access, Actor, Allowed, Approval, Done, Selection, another_number};
use crate::web::Site;
use crate::web::access::Caller;
use crate::web::glance::now;

/// Ids of one call.
const IDS_MAX: usize = 10_000;
/// Of a label, a target, a code: what is asked for is noted in the queue, word for word.
const CHARS_MAX: usize = 256;

/// Which requests are meant: those that fit everything that is given. Something has to be given.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestChoice {
    /// These.
    #[schema(max_items = 10000)]
    ids: Option<Vec<i64>>,
    /// With exactly this label.
    #[schema(max_length = 256)]
    label: Option<String>,
    /// Of this target.
    #[schema(max_length = 256)]
    target: Option<String>,
    /// With this action.
    action: Option<PowerAction>,
    /// In one of these states; by ids, in any.
    #[serde(default)]
    #[schema(required = false)]
    states: Vec<RequestState>,
    /// With exactly this code.
    #[schema(max_length = 256)]
    error_code: Option<String>,
    /// That ended at this time or later, or were inserted then and have not ended.
    since: Option<String>,
    /// That ended before this time, or were inserted before it and have not ended.
    until: Option<String>,
    /// Why; it is kept with who did it.
    #[schema(max_length = 1024)]
    reason: Option<String>,
    /// To approve: how many requests that are; another number approves nothing.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 4_294_967_295_i64)]
    requests: Option<u32>,
}

/// What to hold or to let go: a target, an action, a label, or what they have in common.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseScope {
    /// Only this target.
    #[schema(max_length = 256)]
    target: Option<String>,
    /// Only this action.
    action: Option<PowerAction>,
    /// Only requests with exactly this label.
    #[schema(max_length = 256)]
    label: Option<String>,
    /// Every action on every target; then nothing else is given. To resume: every pause.
    #[serde(default)]
    #[schema(required = false)]
    everything: bool,
    /// To resume an order: all of its waves that remain, not only the next.
    #[serde(default)]
    #[schema(required = false)]
    rest: bool,
    /// Why; it is shown with the hold.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

impl RequestChoice {
    async fn selection(
        &self,
        client: &mut QueueClient,
        allowed: Allowed,
    ) -> Result<Selection, Problem> {
        let number = self.ids.as_ref().map_or(0, Vec::len);
        if number > IDS_MAX {
            return Err(Problem::unprocessable(format!(
                "there are more than {IDS_MAX} ids; send them in several calls"
            )));
        }
        require_short("label", self.label.as_deref())?;
        require_short("target", self.target.as_deref())?;
        require_short("error_code", self.error_code.as_deref())?;
        Ok(Selection {
            ids: self.ids.clone(),
            label: self.label.clone(),
            target: self.target.clone(),
            action: self.action,
            servers: None,
            states: self.states.clone(),
            error_code: self.error_code.clone(),
            since: time(client, "since", self.since.as_deref()).await?,
            until: time(client, "until", self.until.as_deref()).await?,
            allowed,
        })
    }
}

/// Cancel what is queued. A producer may cancel what it asked for itself.
#[utoipa::path(
    post, path = "/cancel", request_body = RequestChoice,
    responses((status = 200, description = "What came of it", body = Done))
)]
pub(super) async fn cancel(
    State(site): State<Arc<Site>>,
    caller: Caller,
    body: JsonText,
) -> Result<Response, Problem> {
    caller.require(Role::Producer)?;
    let chosen: RequestChoice = body.object()?;
    let mut allowed = allowed_to(&caller);
    if !caller.may(Role::Operator) {
        allowed.requested_by = Some(caller.name().to_owned());
    }
    let mut door = open(&site, Access::Write).await?;
    let Door { client, .. } = &mut door;
    let which = chosen.selection(client, allowed).await?;
    let done = client
        .cancel(actor(&caller, &chosen.reason), &which)
        .await?;
    door.close().await?;
    Ok(Json(done).into_response())
}

/// Insert a new request for each that failed.
#[utoipa::path(
    post, path = "/retry", request_body = RequestChoice,
    responses((status = 200, description = "What came of it", body = Done))
)]
pub(super) async fn retry(
    State(site): State<Arc<Site>>,
    caller: Caller,
    body: JsonText,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    let chosen: RequestChoice = body.object()?;
    let mut door = open(&site, Access::Write).await?;
    let Door { client, .. } = &mut door;
    let which = chosen.selection(client, allowed_to(&caller)).await?;
    let done = client.retry(actor(&caller, &chosen.reason), &which).await?;
    door.close().await?;
    Ok(Json(done).into_response())
}

/// Approve what is queued and unapproved; `requests` is how many those are.
#[utoipa::path(
    post, path = "/approve", request_body = RequestChoice,
    responses(
        (status = 200, description = "What came of it", body = Done),
        (status = 409, description = "It is another number of requests; nothing is approved", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn approve(
    State(site): State<Arc<Site>>,
    caller: Caller,
    body: JsonText,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    let chosen: RequestChoice = body.object()?;
    let Some(number) = chosen.requests.map(u64::from) else {
        return Err(Problem::unprocessable(
            "requests is missing: the number of the requests that are to be approved",
        ));
    };
    let mut door = open(&site, Access::Write).await?;
    let Door { client, .. } = &mut door;
    let which = chosen.selection(client, allowed_to(&caller)).await?;
    let seen = client.unapproved(&which).await?;
    if seen.requests() != number || number == 0 {
        return Err(another(number, seen.requests()));
    }
    let actor = actor(&caller, &chosen.reason);
    let approval = client.approve(actor, &which, &seen).await?;
    door.close().await?;
    match approval {
        Approval::Done(done) => Ok(Json(done).into_response()),
        Approval::Another(waiting) => Err(another(number, waiting)),
    }
}

fn another(number: u64, waiting: u64) -> Problem {
    Problem::new(StatusCode::CONFLICT, another_number(number, waiting))
}

/// Hold a target, an action or a label: nothing new is sent.
#[utoipa::path(
    post, path = "/pause", request_body = PauseScope,
    responses((status = 200, description = "How many queued requests it holds", body = Done))
)]
pub(super) async fn pause(
    State(site): State<Arc<Site>>,
    caller: Caller,
    body: JsonText,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    let scope: PauseScope = body.object()?;
    let which = scope.selection(&caller)?;
    let mut door = open(&site, Access::Write).await?;
    let actor = actor(&caller, &scope.reason);
    let paused = door.client.pause(actor, &which, now()).await?;
    door.close().await?;
    Ok(Json(paused.done()).into_response())
}

/// End a pause that was made with the same words, or let the held wave of an order go.
#[utoipa::path(
    post, path = "/resume", request_body = PauseScope,
    responses(
        (status = 200, description = "How many queued requests it is about", body = Done),
        (status = 409, description = "There is nothing to resume", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    State(site): State<Arc<Site>>,
    caller: Caller,
    body: JsonText,
) -> Result<Response, Problem> {
    caller.require(Role::Operator)?;
    let scope: PauseScope = body.object()?;
    let which = scope.selection(&caller)?;
    let mut door = open(&site, Access::Write).await?;
    let actor = actor(&caller, &scope.reason);
    let resumed = if scope.everything {
        door.client.resume_all(actor).await?
    } else {
        let what = if scope.rest { LetGo::Rest } else { LetGo::Wave };
        door.client.resume(actor, &which, what).await?
    };
    door.close().await?;
    match resumed.why_nothing() {
        None => Ok(Json(resumed.done()).into_response()),
        Some(why) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("nothing to resume: {why}"),
        )),
    }
}

impl PauseScope {
    fn selection(&self, caller: &Caller) -> Result<Selection, Problem> {
        let is_named = self.target.is_some() || self.action.is_some() || self.label.is_some();
        if is_named == self.everything {
            return Err(Problem::unprocessable(
                "name a target, an action or a label, or say \"everything\": true",
            ));
        }
        require_short("label", self.label.as_deref())?;
        require_short("target", self.target.as_deref())?;
        let allowed = allowed_to(caller);
        if self.everything && !allowed.is_everything() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!("the token {} is not for everything", caller.name()),
            ));
        }
        Ok(Selection {
            target: self.target.clone(),
            action: self.action,
            label: self.label.clone(),
            allowed,
            ..Selection::default()
        })
    }
}

fn require_short(name: &str, text: Option<&str>) -> Result<(), Problem> {
    if text.is_some_and(|text| text.chars().count() > CHARS_MAX) {
        return Err(Problem::unprocessable(format!(
            "{name} has at most {CHARS_MAX} characters"
        )));
    }
    Ok(())
}

fn actor<'a>(caller: &'a Caller, reason: &'a Option<String>) -> Actor<'a> {
    Actor {
        who: caller.name(),
        reason: reason.as_deref(),
    }
}
