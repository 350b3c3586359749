//! `GET /events`: what changes, as it changes. One reader of the queue serves all who follow; it
//! reads when the queue's folder says that somebody has written, at most once a second, and not at
//! all while nobody follows.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tracing::debug;

use super::input::Params;
use super::problem::Problem;
use super::reads::view;
use super::views::{Sight, View};
use crate::store::client::QueueWatch;
use crate::web::access::{Caller, Entrance};
use crate::web::server::GuestLink;
use crate::web::{Site, SiteLink};

/// Who follows at a time.
const FOLLOWERS_MAX: usize = 128;
/// A reading that is at most so old is shared, so that one after this shows what was written before.
const PAUSE: Duration = Duration::from_secs(1);
/// Charts move and waits end without anybody writing.
const WITHOUT_NEWS: Duration = Duration::from_secs(10);
/// Something is sent at least this often, so that both ends notice when the other one is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A client comes again after this: its token may have been withdrawn.
const FOLLOWED_MAX: Duration = Duration::from_secs(15 * 60);

/// Those who follow.
pub(in crate::web) struct Followers {
    /// What was last seen, for each set of targets that somebody sees.
    channels: Mutex<Channels>,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Channels {
    of: BTreeMap<Sight, watch::Sender<Seen>>,
    /// Somebody reads for them.
    is_served: bool,
}

/// A view, and what is new in it.
#[derive(Debug, Clone)]
struct Seen {
    /// Counts what was sent.
    number: u64,
    view: Arc<View>,
    change: Arc<str>,
}

impl Default for Followers {
    fn default() -> Self {
        Self {
            channels: Mutex::default(),
            places: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        }
    }
}

impl Followers {
    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what is seen of these targets, from `view` on.
    fn join(&self, site: &Arc<Site>, sight: Sight, view: Arc<View>) -> watch::Receiver<Seen> {
        let mut channels = self.channels();
        let first = || Seen {
            number: 0,
            view,
            change: Arc::from(""),
        };
        let receiver = channels
            .of
            .entry(sight)
            .or_insert_with(|| watch::channel(first()).0)
            .subscribe();
        if !channels.is_served {
            channels.is_served = true;
            tokio::spawn(serve(Arc::downgrade(site)));
        }
        receiver
    }

    /// The sets of targets for which somebody follows. If there are none, nobody reads from now on.
    fn sights(&self) -> Vec<Sight> {
        let mut channels = self.channels();
        channels
            .of
            .retain(|_, channel| channel.receiver_count() > 0);
        channels.is_served = !channels.of.is_empty();
        channels.of.keys().cloned().collect()
    }

    /// Tells those who follow these targets, if anything has changed.
    fn tell(&self, sight: &Sight, view: Arc<View>) {
        let channels = self.channels();
        let Some(channel) = channels.of.get(sight) else {
            return;
        };
        channel.send_if_modified(|seen| {
            let Some(change) = view.change_since(&seen.view) else {
                return false;
            };
            *seen = Seen {
                number: seen.number + 1,
                view,
                change: change.into(),
            };
            true
        });
    }
}

/// Reads for those who follow, until nobody does.
async fn serve(site: SiteLink) {
    let mut watch = None;
    loop {
        let Some(site) = site.upgrade() else {
            return;
        };
        let sights = site.followers.sights();
        if sights.is_empty() {
            return;
        }
        match site.glance.get().await {
            Ok(reading) => {
                for sight in &sights {
                    let view = site.views.of(&reading, sight);
                    site.followers.tell(sight, view);
                }
            }
            Err(why) => debug!("nothing new for those who follow: {why}"),
        }
        if watch.is_none() {
            watch = QueueWatch::begin(&site.database)
                .inspect_err(|why| debug!("the queue's folder cannot be watched: {why}"))
                .ok();
        }
        drop(site);
        await_news(&mut watch).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns when somebody has written, or after a while.
async fn await_news(watch: &mut Option<QueueWatch>) {
    let Some(watching) = watch else {
        return;
    };
    let news = tokio::time::timeout(WITHOUT_NEWS, watching.changed()).await;
    if let Ok(Err(why)) = news {
        debug!("the queue's folder is watched no more: {why}");
        *watch = None;
    }
}

/// Follow what changes: `snapshot` first, which is what `/status` says, then `change` with the parts
/// of it that have changed.
#[utoipa::path(
    get, path = "/events",
    responses((status = 200, description = "Server-sent events", body = String, content_type = "text/event-stream"))
)]
pub(super) async fn events(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Extension(entrance): Extension<Arc<Entrance>>,
    Extension(activity): Extension<GuestLink>,
    params: Params,
) -> Result<Response, Problem> {
    params.require_known(&[])?;
    let places = Arc::clone(&site.followers.places);
    let place = places
        .try_acquire_owned()
        .map_err(|_| Problem::busy("too many others follow the events at present"))?;
    let sight: Sight = caller.targets().map(<[_]>::to_vec);
    let view = view(&site, &sight).await?;
    let seen = site.followers.join(&site, sight, view);
    if let Some(activity) = activity.upgrade() {
        activity.follow();
    }
    let follower = Follower {
        site: Arc::downgrade(&site),
        entrance,
        seen,
        sent: None,
        until: Instant::now() + FOLLOWED_MAX,
        _place: place,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT);
    Ok(Sse::new(events).keep_alive(heartbeat).into_response())
}

/// Somebody who follows.
struct Follower {
    site: SiteLink,
    /// That let them in.
    entrance: Arc<Entrance>,
    seen: watch::Receiver<Seen>,
    /// The number of what was sent last.
    sent: Option<u64>,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event; none: the client has to come again.
    async fn next(&mut self) -> Option<Event> {
        if self.sent.is_some() {
            tokio::time::timeout_at(self.until, self.seen.changed())
                .await
                .ok()?
                .ok()?;
        }
        // Tokens may have been withdrawn.
        let present = self.site.upgrade()?.entrance()?;
        if !Arc::ptr_eq(&present, &self.entrance) {
            return None;
        }
        let seen = self.seen.borrow_and_update().clone();
        // Who was too slow for a change gets everything again.
        let is_next = self.sent.is_some_and(|sent| sent + 1 == seen.number);
        self.sent = Some(seen.number);
        Some(if is_next {
            Event::default().event("change").data(&*seen.change)
        } else {
            let whole = String::from_utf8_lossy(&seen.view.body);
            Event::default().event("snapshot").data(whole)
        })
    }
}
