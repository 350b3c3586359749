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

use super::{Context, Exit, Failure, args, explain};
use crate::daemon::{self, Links, Observers, Reload, systemd};
use crate::meter::Meter;
use crate::model::TargetName;
use crate::notify::Notifier;
use crate::settings::{SecretContent, SecretRules, SecretStamp, Settings};
use crate::store::{Running, StoreError, daemon_on};
use crate::web::{Entrance, EntranceError, Explain, Web};

/// A changed secret is noticed within this time, without a signal.
const SECRETS_INTERVAL: Duration = Duration::from_secs(30);

/// Run the daemon: send queued requests in batches, follow them, and store how each one ended.
///
/// SIGHUP reloads config and secrets. SIGTERM or SIGINT stops it; it first waits for the calls in
/// progress and stores their answers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard --config /etc/poweryard/poweryard.toml serve")]
pub(super) struct ServeArgs {
    /// Only log what would be sent: sends nothing, changes nothing, takes no lock.
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
        explain_of(context, &settings.queue.database),
    );
    let secrets = Secrets::take(&settings, &rules);
    let clouds = daemon::connect_all(&settings, &rules)?;
    let entrance = entrance(&settings, &rules)?;
    // Checked before anything is served: the page of a daemon that cannot start would be
    // misleading.
    if let running @ Running::Yes(_) = daemon_on(&settings.queue.database) {
        let path = settings.queue.database.clone();
        return Err(StoreError::DaemonRuns {
            path,
            pid: running.pid(),
        }
        .into());
    }
    if let Err(source) = web.listen(entrance) {
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
    let links = Links {
        reloads: Some(reloads),
        observers: Observers { meter, notifier },
    };
    let ended = daemon::run(&settings, clouds, links, told_to_stop()?).await;
    deliveries.finish().await;
    ended?;
    // The last line: what could not be stored or delivered was said before.
    info!("stopped");
    Ok(Exit::Done)
}

/// What the pages say of a single request.
fn explain_of(context: &Context, database: &Path) -> Explain {
    let config = context.config.clone();
    let database = database.to_owned();
    Arc::new(move |id| Box::pin(explain::for_page(config.clone(), database.clone(), id)))
}

/// Who may come in by `[listen]`.
fn entrance(settings: &Settings, rules: &SecretRules) -> Result<Option<Entrance>, EntranceError> {
    let Some(listen) = &settings.listen else {
        return Ok(None);
    };
    Entrance::load(listen, rules, args::now()).map(Some)
}

/// Most likely another daemon on the same queue uses the address; then that is the error to report.
fn cannot_listen(settings: &Settings, source: io::Error) -> Failure {
    let database = &settings.queue.database;
    let address = settings.listen.as_ref().map(|listen| listen.address);
    match (daemon_on(database), address) {
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
    let mut terminate = catch_signal(SignalKind::terminate())?;
    let mut interrupt = catch_signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn catch_signal(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(Failure::Runtime)
}

/// Gives new settings and secrets to the daemon: on SIGHUP, and changed secrets automatically.
struct Reloader {
    config: PathBuf,
    /// The settings that the daemon uses at present.
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

    /// Applies secrets whose content has changed. A file that was rewritten with the same content
    /// is not a new secret.
    async fn look_at_secrets(&mut self) {
        let rules = SecretRules::from_env(&self.settings.queue.database);
        self.look_at_entrance(&rules);
        if Secrets::stamps(&self.settings, &rules) == self.secrets.stamps {
            return;
        }
        let secrets = Secrets {
            entrance: self.secrets.entrance.clone(),
            ..Secrets::take(&self.settings, &rules)
        };
        if secrets.contents == self.secrets.contents
            && daemon::connect_all(&self.settings, &rules).is_ok()
        {
            self.secrets = secrets;
            return;
        }
        info!("a secret file has changed; using the new secret");
        self.hand_over(self.settings.clone(), false).await;
    }

    /// Applies tokens and a certificate whose files have changed. The daemon's loop has nothing to do
    /// with them.
    fn look_at_entrance(&mut self, rules: &SecretRules) {
        let stamp = Secrets::entrance_stamp(&self.settings, rules);
        if stamp == self.secrets.entrance {
            return;
        }
        self.secrets.entrance = stamp;
        match entrance(&self.settings, rules) {
            Ok(entrance) => {
                info!("a token file or the certificate has changed; using the new one");
                self.web.take_up(&self.settings, rules, entrance);
            }
            Err(error) => {
                error!(
                    "the new token files or certificate are refused; the old ones stay in use: {error}"
                );
            }
        }
    }

    /// Reads the config again. True if the daemon uses it now.
    async fn reload(&mut self) -> bool {
        match Settings::load(&self.config) {
            Ok(settings) => self.hand_over(settings, true).await,
            Err(mistakes) => {
                error!("the new config is refused; the old one stays in force: {mistakes}");
                false
            }
        }
    }

    /// Passes settings, and the present content of their secret files, to the daemon. True if it
    /// uses them now.
    async fn hand_over(&mut self, settings: Settings, is_asked_for: bool) -> bool {
        let rules = SecretRules::from_env(&settings.queue.database);
        let mut secrets = Secrets::take(&settings, &rules);
        if !is_asked_for {
            secrets.entrance.clone_from(&self.secrets.entrance);
        }
        let clouds = match daemon::connect_all(&settings, &rules) {
            Ok(clouds) => clouds,
            Err(error) => {
                error!("the new secrets are refused; the old ones stay in use: {error}");
                // Reported once. Any next change of the files counts as new, even if it only takes
                // away other users' access.
                self.secrets = Secrets {
                    contents: BTreeMap::new(),
                    ..secrets
                };
                return false;
            }
        };
        // Tokens and certificate are looked at by themselves if nobody has asked: one that cannot be
        // used must not keep a target from its new key.
        let mut news = None;
        if is_asked_for {
            match entrance(&settings, &rules) {
                Ok(entrance) => news = Some(entrance),
                Err(error) => {
                    error!("the new config is refused; the old one stays in force: {error}");
                    return false;
                }
            }
        }
        let (accepted, answer) = oneshot::channel();
        let reload = Reload {
            settings: settings.clone(),
            clouds,
            is_asked_for,
            accepted,
        };
        let goes_on = self.sender.send(reload).await.is_ok() && answer.await.is_ok();
        if goes_on {
            if let Some(entrance) = news {
                self.web.take_up(&settings, &rules, entrance);
            }
            self.settings = settings;
            self.secrets = secrets;
        }
        goes_on
    }
}

/// The secret files of all targets: their metadata and digests of their content.
#[derive(PartialEq)]
struct Secrets {
    stamps: BTreeMap<TargetName, SecretStamp>,
    contents: BTreeMap<TargetName, SecretContent>,
    /// The metadata of the files that `[listen]` names.
    entrance: Option<SecretStamp>,
}

impl Secrets {
    /// The metadata is read before the content, so that a change in between is noticed.
    fn take(settings: &Settings, rules: &SecretRules) -> Self {
        let stamps = Self::stamps(settings, rules);
        let entrance = Self::entrance_stamp(settings, rules);
        let mut contents = BTreeMap::new();
        for target in &settings.targets {
            contents.insert(target.name.clone(), SecretContent::take(target, rules));
        }
        Self {
            stamps,
            contents,
            entrance,
        }
    }

    fn entrance_stamp(settings: &Settings, rules: &SecretRules) -> Option<SecretStamp> {
        let listen = settings.listen.as_ref()?;
        Some(SecretStamp::take_of_listen(listen, rules))
    }

    fn stamps(settings: &Settings, rules: &SecretRules) -> BTreeMap<TargetName, SecretStamp> {
        let mut stamps = BTreeMap::new();
        for target in &settings.targets {
            stamps.insert(target.name.clone(), SecretStamp::take(target, rules));
        }
        stamps
    }
}
