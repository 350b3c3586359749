//! `plan`: which calls would leave now, what holds the rest, and how long it takes. Also what other
//! commands show before they ask. The answer is the daemon's; here is the reading of arguments.

use super::args::{self, JsonArg, QueueArgs};
use super::output;
use super::{Context, Exit, Failure};
use crate::daemon::{self, ForecastQuery, NewShare, Outlook};
use crate::model::{
    LaneKind, Leader, Order, OrderState, PowerAction, RequestState, Share, Standing,
};
use crate::model::{TargetName, UtcMillis};
use crate::store::QueueClient;
use crate::store::client::{Access, AskedFor, NewOrder, NewRequest};

mod told;

pub(super) use told::{expiry_warning, text};

/// What has not been inserted comes after all that has.
const FIRST_NEW_ID: i64 = i64::MAX / 2;
/// Stands for the id of a request that is not inserted yet.
pub(super) const NOT_INSERTED: i64 = i64::MAX;
/// How long an order with waves has, where nobody says so: what the schema gives it.
const ORDER_LIFE: std::time::Duration = std::time::Duration::from_secs(7 * 86_400);

/// Show which calls would be made now, what holds the rest, and when the last will have ended.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It changes nothing. It assumes that nobody does anything, that all requests succeed, and that jobs take as long as those \
before. With --database, or if you cannot read the config, it goes by what the daemon has noted in the queue; limits, \
guards and windows are not known then.

Examples:
  poweryard plan
  poweryard plan --label patch-day --json")]
pub(super) struct PlanArgs {
    /// Only requests with exactly this label; the others take part, but are not shown.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Only requests of this target.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: PlanArgs) -> Result<Exit, Failure> {
    let settings = args::settings(context, &args.queue);
    let mut client = args.queue.open(context, Access::Read).await?;
    let query = ForecastQuery {
        settings: settings.as_ref(),
        asked: AskedFor {
            label: args.label,
            target: args.target,
            ..AskedFor::default()
        },
        ..ForecastQuery::default()
    };
    let outlook = daemon::forecast(&mut client, &query, args::now()).await?;
    let labels = daemon::labels_leaving(&mut client, &outlook).await?;
    client.close().await?;
    if args.json.json {
        output::json(&told::object(&outlook, &labels))?;
    } else {
        output::print(&text(&outlook, &labels))?;
    }
    Ok(Exit::Done)
}

/// What will become of requests that are not inserted yet.
pub(super) async fn of_new(
    context: &Context,
    queue: &QueueArgs,
    client: &mut QueueClient,
    (order, requests): (Option<&NewOrder>, &[NewRequest]),
) -> Result<Outlook, Failure> {
    let now = args::now();
    let settings = args::settings(context, queue);
    let mut new: Vec<NewShare> = Vec::new();
    for request in requests {
        match new.iter_mut().find(|share| is_like(share, request)) {
            Some(share) => share.servers.push(request.server_id.clone()),
            None => new.extend(new_share(client, request, order.is_some(), now).await?),
        }
    }
    lead_new(&mut new);
    for share in &mut new {
        share.share.requests = share.servers.len() as u64;
    }
    let query = ForecastQuery {
        settings: settings.as_ref(),
        new_order: order.and_then(|order| new_order(order, &new)),
        new,
        ..ForecastQuery::default()
    };
    Ok(daemon::forecast(client, &query, now).await?)
}

/// What will become of requests of the queue, as if they were approved.
pub(super) async fn as_approved(
    context: &Context,
    queue: &QueueArgs,
    client: &mut QueueClient,
    asked: AskedFor,
) -> Result<Outlook, Failure> {
    let settings = args::settings(context, queue);
    let query = ForecastQuery {
        settings: settings.as_ref(),
        asked,
        as_approved: true,
        ..ForecastQuery::default()
    };
    Ok(daemon::forecast(client, &query, args::now()).await?)
}

/// True if this request has all in common with those.
fn is_like(new: &NewShare, request: &NewRequest) -> bool {
    let share = &new.share;
    share.target.0 == request.target
        && share.action.as_str() == request.action
        && share.priority == request.priority
        && new.label == request.label
        && new.after_id == request.after_id
}

/// None for an action that nobody knows, which the schema refuses.
async fn new_share(
    client: &mut QueueClient,
    request: &NewRequest,
    has_waves: bool,
    now: UtcMillis,
) -> Result<Option<NewShare>, Failure> {
    let Ok(action) = request.action.parse::<PowerAction>() else {
        return Ok(None);
    };
    let time = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
    let due_at: Option<UtcMillis> = time(&request.not_before);
    let order = match &request.label {
        Some(label) => client.order(label).await?,
        None => None,
    };
    let of_order = match &order {
        Some(order) => time(&order.expires_at),
        None => has_waves.then(|| now + ORDER_LIFE),
    };
    let standing = match (leader(client, request.after_id).await?, due_at) {
        (Some(leader), _) => Standing::After(leader),
        (None, Some(at)) if at > now => Standing::Later(at),
        (None, _) => Standing::Ready,
    };
    let share = Share {
        target: TargetName(request.target.clone()),
        action,
        kind: LaneKind {
            has_override: request.override_reason.is_some(),
            ..LaneKind::default()
        },
        priority: request.priority,
        standing,
        label: request.label.clone(),
        has_turn: order.is_none() && !has_waves,
        requests: 0,
        first_id: FIRST_NEW_ID,
        expires_at: time(&request.expires_at).or(of_order),
        is_protected: false,
        is_counted: false,
        is_asked: true,
    };
    Ok(Some(NewShare {
        share,
        requested_by: request.requested_by.clone(),
        label: request.label.clone(),
        after_id: request.after_id,
        servers: vec![request.server_id.clone()],
    }))
}

/// What is known of the request that is waited for; none: none is, or it has succeeded.
async fn leader(client: &mut QueueClient, id: Option<i64>) -> Result<Option<Leader>, Failure> {
    let Some(id) = id else {
        return Ok(None);
    };
    // One that is not inserted yet is waited for, and others that do not exist the schema refuses.
    let Ok(before) = client.request(id).await else {
        return Ok(Some(Leader::default()));
    };
    let due_at = before.not_before.and_then(|at| at.parse().ok());
    let leader = Leader {
        action: before.action.parse().ok(),
        due_at,
    };
    let is_over = before.state == RequestState::Succeeded.as_str();
    Ok((!is_over).then_some(leader))
}

/// Requests that wait for others which are not inserted yet either wait for these.
fn lead_new(new: &mut [NewShare]) {
    let mut leaders = new
        .iter()
        .filter(|share| share.after_id != Some(NOT_INSERTED));
    let Some(first) = leaders.next() else {
        return;
    };
    let leader = Leader {
        action: Some(first.share.action),
        due_at: match first.share.standing {
            Standing::Later(at) => Some(at),
            _ => None,
        },
    };
    for share in new {
        if share.after_id == Some(NOT_INSERTED) {
            share.share.standing = Standing::After(leader);
        }
    }
}

/// The order as it will be.
fn new_order(order: &NewOrder, new: &[NewShare]) -> Option<Order> {
    let servers = new.iter().map(|share| share.servers.len() as u64).max()?;
    Some(Order {
        label: order.label.clone(),
        waves: order.waves.clone(),
        failures_max: order.failures_max.clone().unwrap_or_else(|| "0".to_owned()),
        pause: order.pause.clone(),
        state: OrderState::Open,
        wave: 1,
        wave_size: 0,
        wave_taken: 0,
        over_at: None,
        let_go: None,
        servers,
        is_unfinished: true,
        is_on_its_way: false,
        has_due: true,
        has_success: false,
        failed: 0,
        failed_in_wave: 0,
        is_past: false,
    })
}
