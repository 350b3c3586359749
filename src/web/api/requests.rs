//! Requests: inserted, listed, and one with all that is known of it.

#![expect(unused_qualifications, reason = "utoipa's macros write some")]

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::door::{Door, open, seen_by};
use super::input::{JsonText, Params, time, words};
use super::problem::{Problem, RowNote};
use super::rows::{RequestRow, RequestRows, resolve};
use super::tagged::tagged;
use crate::model::{PowerAction, RequestState, Role};
use crate::store::QueueClient;
use crate::store::client::{
    Access, AttemptRecord, BatchRecord, Cursor, RequestRecord, Selection, Submitted, WrongRow,
};
use crate::web::Site;
use crate::web::access::Caller;

/// Requests of one page, if no other number is asked for.
const USUAL_LIMIT: u32 = 100;
const KNOWN: [&str; 10] = [
    "state",
    "target",
    "action",
    "label",
    "server",
    "error_code",
    "since",
    "until",
    "limit",
    "cursor",
];

/// The requests that were inserted, or were there before.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Inserted {
    /// Their ids, in the order given; for a glob, one for each server that it matches.
    ids: Vec<i64>,
    /// Rows whose server no list has shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<RowNote>,
}

/// Which requests to list; what is left out restricts nothing.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "it describes the parameters; they are read one by one"
)]
pub(super) struct ListParams {
    /// In one of these states, separated by commas.
    #[param(style = Form, explode = false)]
    state: Option<Vec<RequestState>>,
    /// Of this target.
    target: Option<String>,
    /// With this action.
    action: Option<PowerAction>,
    /// With exactly this label.
    label: Option<String>,
    /// For this server: an id, a name, or a glob over names.
    server: Option<String>,
    /// With exactly this code.
    error_code: Option<String>,
    /// That ended at this time or later, or were inserted then and have not ended.
    since: Option<String>,
    /// That ended before this time, or were inserted before it and have not ended.
    until: Option<String>,
    /// At most so many, from 1 to 1000; 100 if it is left out. A page may have fewer although there
    /// are more: `next` says so.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// One page of requests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequestPage {
    /// The newest first: by their ends if only ended ones are asked for, otherwise by their ids.
    requests: Vec<RequestRecord>,
    /// The `cursor` of the next page; null: there is none.
    next: Option<String>,
}

/// A request with its attempts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequestDetail {
    /// Its row.
    request: RequestRecord,
    /// Why it has not been sent yet; null unless it is queued.
    waiting: Option<String>,
    /// What it was carried by, the oldest first.
    attempts: Vec<AttemptRecord>,
    /// The batch that carries it, or carried it last.
    batch: Option<BatchRecord>,
}

/// Insert requests: all of them or none, at most 10,000.
///
/// `requested_by` becomes the token's name. A row whose `request_key` exists for the same server,
/// action and target is that request, and its id is in the answer.
#[utoipa::path(
    post, path = "/requests", request_body = Vec<RequestRow>,
    responses(
        (status = 201, description = "They are inserted", body = Inserted),
        (status = 200, description = "All of them were there before", body = Inserted),
        (status = 409, description = "A key belongs to a request for something else; nothing is inserted", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn insert(
    State(site): State<Arc<Site>>,
    caller: Caller,
    body: JsonText,
) -> Result<Response, Problem> {
    caller.require(Role::Producer)?;
    let rows = RequestRows::read(&body.0)?;
    rows.require_allowed(&caller)?;
    let mut door = open(&site, Access::Read).await?;
    let resolved = resolve(&mut door.client, &rows, &caller).await?;
    door.close().await?;
    let mut door = open(&site, Access::Write).await?;
    let submitted = door
        .client
        .submit(&resolved.requests, &seen_by(&caller))
        .await?;
    door.close().await?;
    let notes = |wrong: Vec<WrongRow>| {
        let mut notes: Vec<RowNote> = wrong
            .into_iter()
            .map(|wrong| RowNote {
                index: resolved.row_of(wrong.row),
                message: wrong.sentence,
            })
            .collect();
        notes.dedup();
        notes
    };
    match submitted {
        Submitted::Done { ids, new } => {
            let status = if new > 0 {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            let warnings = resolved.warnings;
            Ok((status, Json(Inserted { ids, warnings })).into_response())
        }
        Submitted::Wrong(wrong) => Err(Problem::unprocessable(
            "nothing is inserted: some rows are wrong",
        )
        .with_errors(notes(wrong))),
        Submitted::KeyTaken(taken) => Err(Problem::new(
            StatusCode::CONFLICT,
            "nothing is inserted: some keys belong to requests for something else",
        )
        .with_errors(notes(taken))),
    }
}

/// List requests, the newest first.
#[utoipa::path(
    get, path = "/requests", params(ListParams),
    responses((status = 200, description = "One page", body = RequestPage))
)]
pub(super) async fn list(
    State(site): State<Arc<Site>>,
    caller: Caller,
    params: Params,
    headers: axum::http::HeaderMap,
) -> Result<Response, Problem> {
    params.require_known(&KNOWN)?;
    let limit = params.limit(USUAL_LIMIT)?;
    let before = params.read("cursor", |text| {
        text.parse::<Cursor>().map_err(|error| error.to_string())
    })?;
    let mut which = Selection {
        label: params.get("label").map(str::to_owned),
        target: params.get("target").map(str::to_owned),
        action: params.read("action", |text| {
            text.parse::<PowerAction>()
                .map_err(|error| error.to_string())
        })?,
        states: params
            .read("state", words::<RequestState>)?
            .unwrap_or_default(),
        error_code: params.get("error_code").map(str::to_owned),
        allowed: seen_by(&caller),
        ..Selection::default()
    };
    let mut door = open(&site, Access::Read).await?;
    let Door { client, .. } = &mut door;
    which.since = time(client, "since", params.get("since")).await?;
    which.until = time(client, "until", params.get("until")).await?;
    if let Some(word) = params.get("server") {
        which.servers = Some(servers(client, word, which.target.as_deref(), &caller).await?);
    }
    let page = client.page(&which, before.as_ref(), limit).await?;
    door.close().await?;
    let page = RequestPage {
        requests: page.requests,
        next: page.next.map(|cursor| cursor.to_string()),
    };
    Ok(tagged(&headers, &page))
}

/// The ids that a word stands for, among what this caller sees; a word that stands for nothing is
/// taken as an id.
async fn servers(
    client: &mut QueueClient,
    word: &str,
    target: Option<&str>,
    caller: &Caller,
) -> Result<Vec<String>, Problem> {
    use crate::model::ServerId;
    use crate::store::client::Meaning;
    let found = match client.meanings(target, &[word.to_owned()]).await?.pop() {
        Some(Meaning::Id(server) | Meaning::Name(server)) => vec![server],
        Some(Meaning::Glob(servers) | Meaning::Ambiguous(servers)) => servers,
        Some(Meaning::UnlistedId(_) | Meaning::Nothing) | None => Vec::new(),
    };
    let seen = found
        .into_iter()
        .filter(|server| caller.sees(&server.target));
    let mut ids: Vec<String> = seen.map(|server| server.server_id).collect();
    if ids.is_empty() {
        ids.push(ServerId::as_stored(word));
    }
    Ok(ids)
}

/// One request with its attempts, its batch, and why it waits.
#[utoipa::path(
    get, path = "/requests/{id}", params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "It", body = RequestDetail),
        (status = 404, description = "There is no such request", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: axum::http::HeaderMap,
) -> Result<Response, Problem> {
    params.require_known(&[])?;
    let id: i64 = id
        .parse()
        .map_err(|_| Problem::bad_request(format!("{id:?} is not the id of a request")))?;
    let mut door = open(&site, Access::Read).await?;
    let Door { client, .. } = &mut door;
    let request = client.request(id).await?;
    if !caller.sees(&request.target) {
        return Err(Problem::not_found(format!("there is no request {id}")));
    }
    let batch = match request.batch_id {
        Some(batch) => client.batch(batch).await?,
        None => None,
    };
    let detail = RequestDetail {
        waiting: client.waiting_reason(id).await?,
        attempts: client.attempts(id).await?,
        batch,
        request,
    };
    door.close().await?;
    Ok(tagged(&headers, &detail))
}
