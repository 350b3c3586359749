//! `top`: the queue, live, on the whole terminal. Reads when something has changed, at most once a
//! second; draws what has changed; does nothing but what its keys ask for.

use std::io::IsTerminal;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::args::{self, QueueArgs};
use super::explain;
use super::servers;
use super::terminal;
use super::{Context, Exit, Failure};
use crate::model::LetGo;
use crate::store::client::{
    Access, Actor, Filter, Glance, Glancer, Lets, RequestRecord, Selection, scope_name,
};
use crate::store::{QueueClient, StoreError};

mod app;
mod draw;
mod filter;
mod screen;

use app::{App, Dialog, HoldChange, Tab, Wish};
use draw::Drawing;
use filter::Words;
use screen::TakenTerminal;

/// How often the file is asked whether anything has changed.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Readings follow each other no faster than this.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// What depends on the time alone is read again after this, such as a hold that has ended.
const REREAD_INTERVAL: Duration = Duration::from_secs(10);
/// Ages are drawn anew after this, even if nothing has changed.
const PAINT_INTERVAL: Duration = Duration::from_secs(1);
/// Nothing happens more often than this without a key.
const TICK_MIN: Duration = Duration::from_millis(50);
/// Requests that are listed.
const LISTED_MAX: u32 = 500;

/// Watch the queue, live, on the whole terminal.
///
/// Shows what the page shows: counts, what waits and why, batches, failures, targets, orders. Keys
/// list requests, explain one, pause and resume; `?` shows all keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs a terminal of 80 columns and 24 rows or more. Pausing and resuming is noted with your name.

Example: poweryard top")]
pub(super) struct TopArgs {
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: TopArgs) -> Result<Exit, Failure> {
    let path = args.queue.path(context)?;
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "top needs a terminal; `poweryard status` and `poweryard wait` do without one"
                .to_owned(),
        ));
    }
    let mut client = QueueClient::open(&path, Access::Read).await?;
    let mut app = App::new(path.display().to_string(), args::who());
    let place = WatchedQueue {
        context,
        queue: &args.queue,
        path: &path,
    };
    let mut signals = Signals::listen().map_err(no_terminal)?;
    let mut screen = TakenTerminal::take().map_err(no_terminal)?;
    let ended = watch(place, &mut client, &mut app, &mut screen, &mut signals).await;
    drop(screen);
    client.close().await?;
    ended.map(|()| Exit::Done)
}

fn no_terminal(source: std::io::Error) -> Failure {
    Failure::File {
        what: "use the terminal".to_owned(),
        source,
    }
}

/// Which queue is watched.
#[derive(Clone, Copy)]
struct WatchedQueue<'a> {
    context: &'a Context,
    queue: &'a QueueArgs,
    path: &'a Path,
}

/// The signals that end it, so that the terminal is given back first.
struct Signals {
    all: Vec<Signal>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        let mut all = Vec::with_capacity(kinds.len());
        for kind in kinds {
            all.push(signal(kind)?);
        }
        Ok(Self { all })
    }

    async fn any(&mut self) {
        let waits = self.all.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(waits).await;
    }
}

/// What a reading has found.
struct Seen {
    glance: Glance,
    /// The requests that these words choose; none if they were not asked for.
    requests: Option<(Words, Result<Vec<RequestRecord>, Failure>)>,
}

/// A reading on its way, with the reader that comes back from it.
type PendingReading = Pin<Box<dyn Future<Output = (Glancer, Result<Seen, StoreError>)>>>;

async fn watch(
    place: WatchedQueue<'_>,
    client: &mut QueueClient,
    app: &mut App,
    screen: &mut TakenTerminal,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut keys = EventStream::new();
    let mut pulse = Pulse::new(Glancer::new(place.path));
    let mut painted_at = None;
    loop {
        pulse.begin_reading(client, app).await?;
        if painted_at.is_none_or(|at: Instant| at.elapsed() >= PAINT_INTERVAL) {
            paint(app, screen)?;
            painted_at = Some(Instant::now());
        }
        let tick = sleep_until(pulse.next_poll.max(Instant::now() + TICK_MIN));
        tokio::select! {
            () = signals.any() => return Ok(()),
            event = keys.next() => {
                painted_at = None;
                let tab = app.tab;
                let wish = match event {
                    Some(Ok(Event::Key(key))) => app.on_key(key),
                    // The next drawing asks for the size.
                    Some(Ok(_)) => None,
                    // Nobody is at the terminal any more.
                    Some(Err(_)) | None => return Ok(()),
                };
                match wish {
                    Some(Wish::Quit) => return Ok(()),
                    Some(wish) => {
                        fulfil(place, client, app, wish).await;
                        pulse.hurry();
                    }
                    None if app.tab != tab => pulse.hurry(),
                    None => {}
                }
            }
            found = pulse.reading() => {
                painted_at = None;
                if !take_in(app, found) {
                    pulse.hurry();
                }
            }
            () = tick => {}
        }
    }
}

/// Takes over what a reading has found. False if other requests are wanted by now.
fn take_in(app: &mut App, found: Result<Seen, StoreError>) -> bool {
    let seen = match found {
        Ok(seen) => seen,
        Err(error) => {
            app.trouble = Some(error.to_string());
            return true;
        }
    };
    app.glance = Some(seen.glance);
    app.trouble = None;
    match seen.requests {
        Some((words, _)) if words != app.words => false,
        Some((_, Ok(requests))) => {
            app.requests = requests;
            true
        }
        Some((_, Err(failure))) => {
            app.requests.clear();
            app.trouble = Some(failure.to_string());
            true
        }
        None => app.tab != Tab::Requests,
    }
}

/// Only cells that differ from what is on the screen are written.
fn paint(app: &App, screen: &mut TakenTerminal) -> Result<(), Failure> {
    let look = Drawing {
        has_colours: terminal::wants_colours(),
        now: args::now(),
    };
    let drawn = screen.terminal.draw(|frame| draw::draw(frame, app, look));
    drawn.map(|_| ()).map_err(no_terminal)
}

/// When to read.
struct Pulse {
    /// None while a reading is on its way.
    glancer: Option<Glancer>,
    reading: Option<PendingReading>,
    version: Option<i64>,
    began_at: Instant,
    next_poll: Instant,
    is_stale: bool,
    pause: Duration,
}

impl Pulse {
    fn new(glancer: Glancer) -> Self {
        let now = Instant::now();
        Self {
            glancer: Some(glancer),
            reading: None,
            version: None,
            began_at: now,
            next_poll: now,
            is_stale: true,
            pause: Duration::ZERO,
        }
    }

    /// The next reading is wanted as soon as one may be made.
    fn hurry(&mut self) {
        self.is_stale = true;
        self.next_poll = Instant::now();
    }

    /// Asks whether the queue has changed, and begins a reading if it has and the last one is long
    /// enough ago.
    async fn begin_reading(&mut self, client: &mut QueueClient, app: &App) -> Result<(), Failure> {
        let now = Instant::now();
        if now < self.next_poll || self.reading.is_some() {
            return Ok(());
        }
        self.next_poll = now + POLL_INTERVAL;
        let version = client.data_version().await?;
        if self.version != Some(version) || now - self.began_at >= REREAD_INTERVAL {
            self.is_stale = true;
        }
        self.version = Some(version);
        if !self.is_stale || (now - self.began_at < self.pause) {
            return Ok(());
        }
        let Some(mut glancer) = self.glancer.take() else {
            return Ok(());
        };
        self.is_stale = false;
        self.began_at = now;
        // Words may need a walk through the whole queue.
        let wanted = app.tab == Tab::Requests || app.words == Words::default();
        let words = wanted.then(|| app.words.clone());
        let path = client.path().to_owned();
        self.reading = Some(Box::pin(async move {
            let found = read(&mut glancer, &path, words).await;
            (glancer, found)
        }));
        Ok(())
    }

    /// The end of the reading that is on its way; never, if none is.
    async fn reading(&mut self) -> Result<Seen, StoreError> {
        let Some(reading) = &mut self.reading else {
            return std::future::pending().await;
        };
        let (glancer, found) = reading.await;
        self.reading = None;
        self.glancer = Some(glancer);
        // A large queue takes longer to read; then it is done less often, and leaves the disk to the
        // daemon.
        self.pause = READ_INTERVAL.max(self.began_at.elapsed() * 4);
        found
    }
}

async fn read(
    glancer: &mut Glancer,
    path: &Path,
    words: Option<Words>,
) -> Result<Seen, StoreError> {
    let glance = glancer.read(args::now()).await?.glance(None);
    let requests = match words {
        Some(words) => {
            let found = requests(path, &words).await;
            Some((words, found))
        }
        None => None,
    };
    Ok(Seen { glance, requests })
}

/// The requests that the words choose, newest first.
async fn requests(path: &Path, words: &Words) -> Result<Vec<RequestRecord>, Failure> {
    let mut client = QueueClient::open(path, Access::Read).await?;
    let mut filter = Filter {
        limit: LISTED_MAX,
        ..words.filter().clone()
    };
    if let Some(word) = words.server() {
        let target = filter.target.clone();
        let found = servers::filter(&mut client, word, target.as_deref(), false).await?;
        filter.servers = Some(found);
    }
    if let Some(since) = words.since() {
        let since = args::past_of(&mut client, "since:", since, args::now()).await?;
        filter.since = Some(since);
    }
    let found = client.list(&filter).await?;
    client.close().await?;
    Ok(found)
}

/// Does what a key asked for, and says what came of it.
async fn fulfil(place: WatchedQueue<'_>, client: &mut QueueClient, app: &mut App, wish: Wish) {
    let came_of_it = match wish {
        Wish::Quit | Wish::Read => Ok(()),
        Wish::Explain(id) => explain::sentences_of(place.context, place.queue, client, id)
            .await
            .map(|lines| {
                app.dialog = Some(Dialog::Text {
                    title: format!("Request {id}"),
                    lines,
                    scroll: 0,
                });
            }),
        Wish::Do(deed, scope, reason) => perform(place, &app.who, deed, &scope, &reason)
            .await
            .map(|said| app.note = Some(said)),
    };
    if let Err(failure) = came_of_it {
        app.note = Some(failure.to_string());
    }
}

/// Pauses or resumes, as the commands do.
async fn perform(
    place: WatchedQueue<'_>,
    who: &str,
    deed: HoldChange,
    scope: &Selection,
    reason: &str,
) -> Result<String, Failure> {
    let actor = Actor {
        who,
        reason: Some(reason).filter(|reason| !reason.trim().is_empty()),
    };
    let name = scope_name(
        scope.target.as_deref(),
        scope.action.map(|action| action.as_str()),
        scope.label.as_deref(),
    );
    let mut client = QueueClient::open(place.path, Access::Write).await?;
    let said = match deed {
        HoldChange::Pause => {
            let paused = client.pause(actor, scope, args::now()).await?;
            let word = if paused.is_new {
                "paused"
            } else {
                "already paused"
            };
            format!("{word}: {name}")
        }
        HoldChange::Resume => {
            let resumed = client.resume(actor, scope, LetGo::Wave).await?;
            match (resumed.pauses, resumed.lets) {
                (0, Some(Lets::Goes(wave))) => format!("let go: wave {wave}"),
                (0, _) => format!("nothing to resume: there is no pause for {name}"),
                _ => format!("resumed: {name}"),
            }
        }
    };
    client.close().await?;
    Ok(said)
}
