//! Hooks: tells a command or a URL when requests failed or ended `unknown`. Bounded, retried a few
//! times, and never in the way of the daemon's loop: events that do not fit are dropped and
//! counted.
//!
//! An event is one stored step of a batch. Each hook has its own queue and its own task, so that a
//! hook that hangs does not delay the other. A hook may get the same event twice if it took too
//! long to confirm it. Decides nothing about requests.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::lifecycle::{Event, Step};
use crate::meter::{Meter, Told};
use crate::model::{
    Batch, BatchId, JobId, PowerAction, RequestState, TargetName, UtcMillis, counted,
};
use crate::pace;
use crate::settings::NotifySettings;
use crate::store::QueueClient;
use crate::store::client::Access;

pub(crate) mod command;
mod webhook;

use webhook::Webhook;

/// Most events that wait for one hook.
const EVENTS_MAX: usize = 256;
/// Most requests in them: the event of a full batch has a thousand.
const REQUESTS_MAX: usize = 20_000;
/// How often an event is tried before it is given up.
const TRIES_MAX: u32 = 3;
/// How long a stop waits for deliveries in progress.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the queue is asked for labels; without them an event is sent anyway.
const LABELS_PATIENCE: Duration = Duration::from_secs(2);

/// The two hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Command,
    Url,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Url => "url",
        }
    }
}

/// Where the daemon puts events for its hooks. The default drops them.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Option<Arc<Shared>>);

/// The tasks that call the hooks.
#[derive(Debug)]
pub struct Deliveries {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Shared {
    database: PathBuf,
    meter: Arc<Meter>,
    settings: Mutex<Option<Arc<NotifySettings>>>,
    /// None once the daemon stops.
    queues: Mutex<Option<[Queue; 2]>>,
    /// Dropping is logged once, until there is room again.
    overflows: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    kind: Kind,
    events: mpsc::Sender<Waiting>,
    /// One permit per request.
    room: Arc<Semaphore>,
}

/// An event in a queue, with the permits that it occupies.
#[derive(Debug)]
struct Waiting {
    event: Arc<HookEvent>,
    _room: OwnedSemaphorePermit,
}

/// The requests that one stored step ended as `failed` or `unknown`.
#[derive(Debug)]
struct HookEvent {
    target: TargetName,
    action: PowerAction,
    batch: BatchId,
    job: Option<JobId>,
    at: UtcMillis,
    requests: Vec<EndedRequest>,
}

/// One request that failed or ended `unknown`.
#[derive(Debug, Clone, Serialize)]
struct EndedRequest {
    id: i64,
    server_id: String,
    state: &'static str,
    evidence: &'static str,
    error_code: Option<String>,
    error_message: Option<String>,
    label: Option<String>,
    requested_by: Option<String>,
}

impl Notifier {
    /// Starts the tasks of both hooks, whether or not they are configured yet. `database`: where
    /// labels are read from.
    pub fn start(
        settings: Option<NotifySettings>,
        database: PathBuf,
        meter: Arc<Meter>,
    ) -> (Self, Deliveries) {
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let (command, command_events) = queue(Kind::Command);
        let (url, url_events) = queue(Kind::Url);
        let shared = Arc::new(Shared {
            database,
            meter,
            settings: Mutex::new(settings.map(Arc::new)),
            queues: Mutex::new(Some([command, url])),
            overflows: AtomicBool::new(false),
        });
        for (kind, events) in [(Kind::Command, command_events), (Kind::Url, url_events)] {
            tasks.spawn(work(Arc::clone(&shared), kind, events, stopping.clone()));
        }
        (
            Self(Some(Arc::clone(&shared))),
            Deliveries {
                shared,
                tasks,
                stop,
            },
        )
    }

    /// Uses other hooks from the next event on.
    pub fn take_up(&self, settings: Option<&NotifySettings>) {
        if let Some(shared) = &self.0 {
            *shared
                .settings
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = settings.cloned().map(Arc::new);
        }
    }

    /// A step was stored: gives the requests that failed or ended `unknown` to the hooks. Never
    /// waits.
    pub fn stored(&self, batch: &Batch, step: &Step, now: UtcMillis) {
        let Some(shared) = &self.0 else { return };
        let Some(settings) = shared.settings() else {
            return;
        };
        let requests = ended_badly(batch, step);
        if requests.is_empty() {
            return;
        }
        let event = HookEvent {
            target: batch.target.clone(),
            action: batch.action,
            batch: batch.id,
            job: batch.job.clone(),
            at: now,
            requests,
        };
        shared.hand_in(&settings, Arc::new(event));
    }
}

fn queue(kind: Kind) -> (Queue, mpsc::Receiver<Waiting>) {
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    (
        Queue {
            kind,
            events,
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
        },
        queue,
    )
}

fn ended_badly(batch: &Batch, step: &Step) -> Vec<EndedRequest> {
    let bad = step
        .moves
        .iter()
        .filter_map(|(request, event)| match event {
            Event::Ended(end)
                if matches!(end.state, RequestState::Failed | RequestState::Unknown) =>
            {
                Some((request, end))
            }
            Event::Ended(_) | Event::Claimed | Event::Returned(_) => None,
        });
    let bad: std::collections::BTreeMap<_, _> = bad.collect();
    let of_batch = batch
        .members
        .iter()
        .filter_map(|member| Some((member, bad.get(&member.request)?)));
    let ended = of_batch.map(|(member, end)| EndedRequest {
        id: member.request.0,
        server_id: member.server.0.clone(),
        state: end.state.as_str(),
        evidence: end.evidence.as_str(),
        error_code: non_empty(&end.code),
        error_message: non_empty(&end.message),
        label: None,
        requested_by: None,
    });
    ended.collect()
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl Shared {
    fn settings(&self) -> Option<Arc<NotifySettings>> {
        self.settings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn hand_in(&self, settings: &NotifySettings, event: Arc<HookEvent>) {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let mut took = true;
        for queue in queues
            .iter()
            .flatten()
            .filter(|queue| settings.has(queue.kind))
        {
            let permits = u32::try_from(event.requests.len()).unwrap_or(u32::MAX);
            let room = Arc::clone(&queue.room).try_acquire_many_owned(permits).ok();
            let waiting = room.map(|_room| Waiting {
                event: Arc::clone(&event),
                _room,
            });
            took &= waiting.is_some_and(|waiting| queue.events.try_send(waiting).is_ok());
        }
        if took {
            self.overflows.store(false, Ordering::Relaxed);
            return;
        }
        self.meter.dropped(1);
        if !self.overflows.swap(true, Ordering::Relaxed) {
            warn!(
                batch.id = %event.batch,
                "the hooks of [notify] are too slow: events are dropped, beginning with batch {}; see poweryard_notify_dropped_total",
                event.batch
            );
        }
    }
}

impl NotifySettings {
    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Command => !self.command.is_empty(),
            Kind::Url => self.url.is_some(),
        }
    }
}

impl Deliveries {
    /// Accepts nothing more, tries each waiting event once, and ends within 5 s; the rest is
    /// dropped.
    pub async fn finish(mut self) {
        self.shared
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // If both tasks have already ended, there is nobody to tell.
        let _ = self.stop.send(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

/// Counts and logs the undelivered events when the hook's task ends, however it ends.
struct Rest {
    kind: Kind,
    meter: Arc<Meter>,
    events: mpsc::Receiver<Waiting>,
    /// An event is being delivered.
    busy: bool,
}

impl Drop for Rest {
    fn drop(&mut self) {
        let mut left = u64::from(self.busy);
        while self.events.try_recv().is_ok() {
            left += 1;
        }
        if left > 0 {
            self.meter.dropped(left);
            warn!(
                events.dropped = left,
                "stopping: {left} events were not delivered to the {} of [notify]",
                self.kind.as_str()
            );
        }
    }
}

async fn work(
    shared: Arc<Shared>,
    kind: Kind,
    events: mpsc::Receiver<Waiting>,
    stop: watch::Receiver<bool>,
) {
    let mut rest = Rest {
        kind,
        meter: Arc::clone(&shared.meter),
        events,
        busy: false,
    };
    let mut hook = Hook {
        kind,
        shared,
        webhook: None,
        stop,
    };
    while let Some(waiting) = rest.events.recv().await {
        rest.busy = true;
        let settings = hook.shared.settings();
        if let Some(settings) = settings.filter(|settings| settings.has(kind)) {
            hook.deliver(&settings, &waiting.event).await;
        }
        rest.busy = false;
    }
}

/// One hook while its task runs.
struct Hook {
    kind: Kind,
    shared: Arc<Shared>,
    /// The client for the URL, once it is needed.
    webhook: Option<Webhook>,
    stop: watch::Receiver<bool>,
}

impl Hook {
    /// Delivers one event, with a few tries if needed. No further try begins once the daemon stops.
    async fn deliver(&mut self, settings: &NotifySettings, event: &HookEvent) {
        let text = text(&self.shared, event).await;
        let name = self.kind.as_str();
        let batch = event.batch;
        let requests = counted(event.requests.len(), "request");
        for tries in 1..=TRIES_MAX {
            let Some(outcome) = self.call(settings, &text).await else {
                return;
            };
            let Err(why) = outcome else {
                debug!(batch.id = %batch, "notified the {name} of [notify] about {requests}");
                return self.shared.meter.told(name, Told::Delivered);
            };
            if tries < TRIES_MAX && !*self.stop.borrow() {
                info!(batch.id = %batch, "the {name} of [notify] failed and will be tried again: {why}");
                tokio::select! {
                    () = tokio::time::sleep(pace::hook_delay(tries - 1)) => continue,
                    _ = self.stop.changed() => {}
                }
            }
            self.shared.meter.told(name, Told::Failed);
            warn!(
                batch.id = %batch,
                tries,
                "gave up notifying the {name} of [notify] about batch {batch} ({requests}): {why}"
            );
            return;
        }
    }

    /// One try; none if the hook is not configured.
    async fn call(&mut self, settings: &NotifySettings, text: &str) -> Option<Result<(), String>> {
        match (self.kind, &settings.url) {
            (Kind::Command, _) => {
                Some(command::run(&settings.command, text, settings.timeout).await)
            }
            (Kind::Url, Some(url)) => {
                Some(webhook::post(&mut self.webhook, url, settings, text).await)
            }
            (Kind::Url, None) => None,
        }
    }
}

#[derive(Serialize)]
struct Message<'a> {
    target: &'a str,
    action: &'a str,
    batch_id: i64,
    job_id: Option<&'a str>,
    at: UtcMillis,
    requests: Vec<EndedRequest>,
}

/// The event as JSON, with the labels that the queue has for it.
async fn text(shared: &Shared, event: &HookEvent) -> String {
    let mut requests = event.requests.clone();
    match tokio::time::timeout(LABELS_PATIENCE, add_labels(shared, &mut requests)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("an event is sent to the hooks without labels: {error}"),
        Err(_) => debug!("an event is sent to the hooks without labels: the queue is slow"),
    }
    let message = Message {
        target: &event.target.0,
        action: event.action.as_str(),
        batch_id: event.batch.0,
        job_id: event.job.as_ref().map(|job| job.0.as_str()),
        at: event.at,
        requests,
    };
    serde_json::to_string(&message).unwrap_or_default()
}

async fn add_labels(
    shared: &Shared,
    requests: &mut [EndedRequest],
) -> Result<(), crate::store::StoreError> {
    let mut client = QueueClient::open(&shared.database, Access::Read).await?;
    let ids: Vec<i64> = requests.iter().map(|request| request.id).collect();
    let mut notes = client.producer_notes(&ids).await?;
    for request in requests {
        if let Some(note) = notes.remove(&request.id) {
            request.label = note.label;
            request.requested_by = note.requested_by;
        }
    }
    client.close().await
}
