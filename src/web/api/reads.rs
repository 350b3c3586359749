//! What is only read: the queue at a glance, orders, servers.

#![expect(unused_qualifications, reason = "utoipa's macros write some")]

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::door::{Door, open, seen_by};
use super::input::Params;
use super::problem::Problem;
use super::tagged::{tagged, with_tag};
use super::views::{Sight, View};
use crate::store::client::{Access, Glance, OrderNote, ServerRecord, ServersWanted};
use crate::web::Site;
use crate::web::access::Caller;

/// Servers of one page, if no other number is asked for.
const USUAL_LIMIT: u32 = 1000;

/// Orders with waves.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OrderList {
    /// Those that are not done, and those that were done in the last day.
    orders: Vec<OrderNote>,
}

/// One page of servers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServerPage {
    /// As lists have shown them, by target and id.
    servers: Vec<ServerRecord>,
    /// The `cursor` of the next page; null: there is none.
    next: Option<String>,
}

/// Which servers to list; what is left out restricts nothing.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "it describes the parameters; they are read one by one"
)]
pub(super) struct ServerParams {
    /// Of this target.
    target: Option<String>,
    /// With this id or name, or with a name that matches this glob.
    server: Option<String>,
    /// At most so many, from 1 to 1000; 1000 if it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// What this caller sees of the queue at a glance.
pub(super) async fn view(site: &Site, sight: &Sight) -> Result<Arc<View>, Problem> {
    let reading = site.glance.get().await.map_err(Problem::busy)?;
    Ok(site.views.of(&reading, sight))
}

/// The queue at a glance.
#[utoipa::path(
    get, path = "/status",
    responses((status = 200, description = "Counts, holds, batches, orders, targets, and what ended lately", body = Glance))
)]
pub(super) async fn status(
    State(site): State<Arc<Site>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    params.require_known(&[])?;
    let view = view(&site, &caller.targets().map(<[_]>::to_vec)).await?;
    Ok(with_tag(&headers, view.body.clone(), &view.tag))
}

/// Orders with waves, and how far they are.
#[utoipa::path(
    get, path = "/orders",
    responses((status = 200, description = "The orders", body = OrderList))
)]
pub(super) async fn orders(
    State(site): State<Arc<Site>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    params.require_known(&[])?;
    let reading = site.glance.get().await.map_err(Problem::busy)?;
    let orders = reading.glance(caller.targets()).orders;
    Ok(tagged(&headers, &OrderList { orders }))
}

/// Servers as lists have shown them.
#[utoipa::path(
    get, path = "/servers", params(ServerParams),
    responses((status = 200, description = "One page", body = ServerPage))
)]
pub(super) async fn servers(
    State(site): State<Arc<Site>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    params.require_known(&["target", "server", "limit", "cursor"])?;
    let limit = params.limit(USUAL_LIMIT)?;
    let after = params.read("cursor", |text| {
        text.split_once('/')
            .map(|(target, id)| (target.to_owned(), id.to_owned()))
            .ok_or_else(|| format!("{text:?} is not a cursor that a page has given"))
    })?;
    let mut door = open(&site, Access::Read).await?;
    let Door { client, .. } = &mut door;
    let allowed = seen_by(&caller);
    let which = ServersWanted {
        target: params.get("target"),
        word: params.get("server"),
        after: after
            .as_ref()
            .map(|(target, id)| (target.as_str(), id.as_str())),
        allowed: &allowed,
    };
    let mut servers = client.servers_page(&which, limit.saturating_add(1)).await?;
    door.close().await?;
    let is_full = servers.len() > limit as usize;
    servers.truncate(limit as usize);
    let last = servers.last().filter(|_| is_full);
    let next = last.map(|last| format!("{}/{}", last.target, last.server_id));
    Ok(tagged(&headers, &ServerPage { servers, next }))
}
