//! Hooks: tells a command or a URL when requests failed or ended `unknown`. Bounded, tried again a
//! few times, and never in the way of the passes: what cannot wait is dropped and counted.
//!
//! An event is one stored step of a batch. Each hook has its own queue and its own task, so that
//! one that hangs does not hold up the other. A hook may be told twice of the same event, when it
//! took too long to say that it had understood. Decides nothing about requests.

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
use crate::model::{Batch, BatchId, JobId, PowerAction, RequestState, TargetName, UtcMillis};
use crate::pace;
use crate::settings::NotifySettings;
use crate::store::Desk;
use crate::store::desk::Access;

mod command;
mod webhook;

use webhook::Webhook;

/// Events that wait for one hook.
const EVENTS_MAX: usize = 256;
/// Requests in them: an event of a full batch holds a thousand.
const REQUESTS_MAX: usize = 20_000;
/// How often an event is told before it is given up.
const TRIES_MAX: u32 = 3;
/// How long a stop waits for what is being told.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long the queue is asked for labels; without them an event is told all the same.
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

/// Where the daemon hands in what its hooks are to be told. The default tells nobody.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Option<Arc<Shared>>);

/// The tasks that tell the hooks.
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
    /// What is dropped is said once, until there is room again.
    overflows: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    kind: Kind,
    events: mpsc::Sender<Waiting>,
    /// One permit a request.
    room: Arc<Semaphore>,
}

/// An event in a queue, with the room that it takes up there.
#[derive(Debug)]
struct Waiting {
    event: Arc<HookEvent>,
    _room: OwnedSemaphorePermit,
}

/// What one stored step ended badly.
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

    /// Goes on with other hooks, from the next event on.
    pub fn take_up(&self, settings: Option<&NotifySettings>) {
        if let Some(shared) = &self.0 {
            *shared
                .settings
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = settings.cloned().map(Arc::new);
        }
    }

    /// A step was stored: what it ended badly is handed to the hooks. Never waits.
    pub fn stored(&self, batch: &Batch, step: &Step, now: UtcMillis) {
        let Some(shared) = &self.0 else { return };
        let Some(settings) = shared.settings() else {
            return;
        };
        let requests = ended_badly(batch, step);
        if requests.is_empty() {
            return;
        }
        let (target, action, batch, job) = (
            batch.target.clone(),
            batch.action,
            batch.id,
            batch.job.clone(),
        );
        shared.hand_in(
            &settings,
            Arc::new(HookEvent {
                target,
                action,
                batch,
                job,
                at: now,
                requests,
            }),
        );
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
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let ended = of_batch.map(|(member, end)| EndedRequest {
        id: member.request.0,
        server_id: member.server.0.clone(),
        state: end.state.as_str(),
        evidence: end.evidence.as_str(),
        error_code: some(&end.code),
        error_message: some(&end.message),
        label: None,
        requested_by: None,
    });
    ended.collect()
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
                "the hooks of [notify] do not keep up: events are dropped from batch {} on; see poweryard_notify_dropped_total",
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
    /// Takes in nothing more, tells what waits once each, and ends within 5 s; what is left then is
    /// dropped.
    pub async fn finish(mut self) {
        self.shared
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Nobody listens where both tasks have ended, which is as good.
        let _ = self.stop.send(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

/// Counts and names what a hook was not told when its task ends, however it ends.
struct Rest {
    kind: Kind,
    meter: Arc<Meter>,
    events: mpsc::Receiver<Waiting>,
    /// An event is being told.
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
                "stopping: the {} of [notify] is not told of {left} events",
                self.kind.as_str()
            );
        }
    }
}

async fn work(
    shared: Arc<Shared>,
    kind: Kind,
    events: mpsc::Receiver<Waiting>,
    mut stop: watch::Receiver<bool>,
) {
    let mut rest = Rest {
        kind,
        meter: Arc::clone(&shared.meter),
        events,
        busy: false,
    };
    let mut webhook = None;
    while let Some(waiting) = rest.events.recv().await {
        rest.busy = true;
        if let Some(settings) = shared.settings().filter(|settings| settings.has(kind)) {
            let text = text(&shared, &waiting.event).await;
            tell(
                &shared,
                kind,
                &settings,
                &mut webhook,
                &waiting.event,
                &text,
                &mut stop,
            )
            .await;
        }
        rest.busy = false;
    }
}

/// Tells one event, a few times if need be. No further try is begun once the daemon stops.
async fn tell(
    shared: &Shared,
    kind: Kind,
    settings: &NotifySettings,
    webhook: &mut Option<Webhook>,
    event: &HookEvent,
    text: &str,
    stop: &mut watch::Receiver<bool>,
) {
    let (batch, count) = (event.batch, event.requests.len());
    for tries in 1..=TRIES_MAX {
        let told = match (kind, &settings.url) {
            (Kind::Command, _) => command::run(&settings.command, text, settings.timeout).await,
            (Kind::Url, Some(url)) => webhook::post(webhook, url, settings, text).await,
            (Kind::Url, None) => return,
        };
        let Err(why) = told else {
            debug!(batch.id = %batch, "the {} of [notify] was told of {count} requests", kind.as_str());
            return shared.meter.told(kind.as_str(), Told::Delivered);
        };
        let wait = pace::hook_delay(tries - 1);
        if tries < TRIES_MAX && !*stop.borrow() {
            info!(batch.id = %batch, "the {} of [notify] failed, to be tried again: {why}", kind.as_str());
            tokio::select! {
                () = tokio::time::sleep(wait) => continue,
                _ = stop.changed() => {}
            }
        }
        shared.meter.told(kind.as_str(), Told::Failed);
        warn!(
            batch.id = %batch,
            tries,
            "the {} of [notify] is given up for batch {batch}, {count} requests: {why}",
            kind.as_str()
        );
        return;
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
        Ok(Err(error)) => debug!("an event is told without labels: {error}"),
        Err(_) => debug!("an event is told without labels: the queue is slow"),
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
    let mut desk = Desk::open(&shared.database, Access::Read).await?;
    let ids: Vec<i64> = requests.iter().map(|request| request.id).collect();
    let mut notes = desk.producer_notes(&ids).await?;
    for request in requests {
        if let Some(note) = notes.remove(&request.id) {
            (request.label, request.requested_by) = (note.label, note.requested_by);
        }
    }
    desk.close().await
}
