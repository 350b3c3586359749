//! `serve`: the daemon, until it is told to stop. Reads config and secrets, catches signals; the
//! rest is `daemon`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::{Context, Exit, Failure, status};
use crate::daemon::{self, Observers, Reload, systemd};
use crate::meter::Meter;
use crate::model::TargetName;
use crate::notify::Notifier;
use crate::settings::{SecretContent, SecretRules, SecretStamp, Settings, TargetSettings};
use crate::store::{Running, StoreError, daemon_on};
use crate::web::{StatusText, Web};

/// A replaced secret is noticed within this time without a signal.
const SECRETS_INTERVAL: Duration = Duration::from_secs(30);

/// Run the daemon: take in requests, submit them in batches, follow them, store what became of
/// each.
///
/// SIGHUP reloads config and secrets. SIGTERM or SIGINT ends it once the calls in flight are
/// answered and stored.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard --config /etc/poweryard/poweryard.toml serve")]
pub(super) struct ServeArgs {
    /// Log what would be sent; send and change nothing, take no lock.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(context: &Context, args: ServeArgs) -> Result<Exit, Failure> {
    let settings = Settings::load(&context.config)?;
    if args.dry_run {
        daemon::dry_run(&settings, told_to_stop()?).await?;
        return Ok(Exit::Done);
    }
    let rules = SecretRules::from_env(&settings.queue.database);
    let meter = Arc::new(Meter::new());
    let mut web = Web::new(
        &settings,
        &rules,
        Arc::clone(&meter),
        status_of(&settings.queue.database),
    );
    let secrets = Secrets::take(&settings, &rules);
    let clouds = daemon::connect_all(&settings, &rules)?;
    // Before anything is served: a page of a daemon that cannot start tells nobody anything.
    if let running @ Running::Yes(_) = daemon_on(&settings.queue.database) {
        let path = settings.queue.database.clone();
        return Err(StoreError::DaemonRuns {
            path,
            pid: running.pid(),
        }
        .into());
    }
    if let Err(source) = web.listen(settings.listen).await {
        return Err(cannot_listen(&settings, source));
    }
    let (sender, reloads) = mpsc::channel(1);
    let reloader = Reloader {
        config: context.config.clone(),
        settings: settings.clone(),
        secrets,
        sender,
        web,
    };
    let hangup = signal(SignalKind::hangup()).map_err(Failure::Runtime)?;
    tokio::spawn(reloader.run(hangup));
    let database = settings.queue.database.clone();
    let (notifier, deliveries) =
        Notifier::start(settings.notify.clone(), database, Arc::clone(&meter));
    let observers = Observers { meter, notifier };
    let ended = daemon::run_observed(&settings, clouds, reloads, observers, told_to_stop()?).await;
    deliveries.finish().await;
    ended?;
    Ok(Exit::Done)
}

fn status_of(database: &Path) -> StatusText {
    let database = database.to_owned();
    Arc::new(move || {
        let database = database.clone();
        Box::pin(async move { status::text_of(&database).await })
    })
}

/// Another daemon on the same queue is the likeliest to have the address, and the better thing to
/// say.
fn cannot_listen(settings: &Settings, source: io::Error) -> Failure {
    let database = &settings.queue.database;
    match (daemon_on(database), settings.listen) {
        (running @ Running::Yes(_), _) => StoreError::DaemonRuns {
            path: database.clone(),
            pid: running.pid(),
        }
        .into(),
        (_, Some(address)) => Failure::Listen { address, source },
        (_, None) => Failure::Runtime(source),
    }
}

/// Resolves on SIGTERM or SIGINT. The signals are caught from this call on.
pub(super) fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let catch = |kind| signal(kind).map_err(Failure::Runtime);
    let mut terminate: Signal = catch(SignalKind::terminate())?;
    let mut interrupt: Signal = catch(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Brings new settings and secrets to the daemon: on SIGHUP, and secrets also by itself.
struct Reloader {
    config: PathBuf,
    /// What the daemon goes by at present.
    settings: Settings,
    /// The secret files as they were when they were read.
    secrets: Secrets,
    sender: mpsc::Sender<Reload>,
    web: Web,
}

impl Reloader {
    async fn run(mut self, mut hangup: Signal) {
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => {
                    info!("reloading {}", self.config.display());
                    systemd::reloading();
                    systemd::reloaded(self.reload().await);
                }
                () = tokio::time::sleep(SECRETS_INTERVAL) => {
                    self.look_at_secrets().await;
                }
            }
        }
    }

    /// Takes up secrets whose content has changed. A file that was written anew with the same bytes
    /// is no new secret.
    async fn look_at_secrets(&mut self) {
        let rules = SecretRules::from_env(&self.settings.queue.database);
        if Secrets::stamps(&self.settings, &rules) == self.secrets.stamps {
            return;
        }
        let secrets = Secrets::take(&self.settings, &rules);
        if secrets.contents == self.secrets.contents
            && daemon::connect_all(&self.settings, &rules).is_ok()
        {
            self.secrets = secrets;
            return;
        }
        info!("a secret file has changed; taking it up");
        self.hand_over(self.settings.clone(), false).await;
    }

    /// Reads the config anew. True if the daemon goes on with it.
    async fn reload(&mut self) -> bool {
        match Settings::load(&self.config) {
            Ok(settings) => self.hand_over(settings, true).await,
            Err(mistakes) => {
                error!("the new config is refused and the old one stays: {mistakes}");
                false
            }
        }
    }

    /// True if the daemon goes on with these settings and what their secret files hold now.
    async fn hand_over(&mut self, settings: Settings, is_asked_for: bool) -> bool {
        let rules = SecretRules::from_env(&settings.queue.database);
        let secrets = Secrets::take(&settings, &rules);
        let clouds = match daemon::connect_all(&settings, &rules) {
            Ok(clouds) => clouds,
            Err(error) => {
                error!("the new secrets are refused and the old ones stay: {error}");
                // Said once; the next change of the files is another one, also if it only closes a
                // file to others.
                self.secrets = Secrets {
                    contents: BTreeMap::new(),
                    ..secrets
                };
                return false;
            }
        };
        let (accepted, answer) = oneshot::channel();
        let reload = Reload {
            settings: settings.clone(),
            clouds,
            is_asked_for,
            accepted,
        };
        let goes_on = self.sender.send(reload).await.is_ok() && answer.await.is_ok();
        if goes_on {
            self.web.take_up(&settings, &rules).await;
            self.settings = settings;
            self.secrets = secrets;
        }
        goes_on
    }
}

/// The secret files of all targets: how they look from outside, and what they hold.
#[derive(PartialEq)]
struct Secrets {
    stamps: BTreeMap<TargetName, SecretStamp>,
    contents: BTreeMap<TargetName, SecretContent>,
}

impl Secrets {
    /// The files are looked at before they are read, so that a change in between is noticed.
    fn take(settings: &Settings, rules: &SecretRules) -> Self {
        let stamps = Self::stamps(settings, rules);
        let content =
            |target: &TargetSettings| (target.name.clone(), SecretContent::take(target, rules));
        Self {
            stamps,
            contents: settings.targets.iter().map(content).collect(),
        }
    }

    fn stamps(settings: &Settings, rules: &SecretRules) -> BTreeMap<TargetName, SecretStamp> {
        let stamp =
            |target: &TargetSettings| (target.name.clone(), SecretStamp::take(target, rules));
        settings.targets.iter().map(stamp).collect()
    }
}
