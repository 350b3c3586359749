//! One life of a daemon: the real store, client and dispatcher, as `daemon::run` puts them
//! together, and a fuse that ends it before a commit. Knows nothing of schedules.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::SecretString;
use tokio::sync::oneshot;

use super::wire::{Cloud, SimWire};
use super::{Broken, store_options};
use poweryard::cloud::auth::{AccessKeys, Password};
use poweryard::cloud::{self, Clock, Credentials, PowerCloud};
use poweryard::daemon::{Dispatcher, LoopPolicy, Reload, ReloadError, Stop};
use poweryard::model::{TargetName, UtcMillis};
use poweryard::settings::{AuthSettings, Settings};
use poweryard::sim::scenario;
use poweryard::store::{Prune, QueueLock, Store, StoreError, StoreOptions};

/// A daemon that lives.
pub(super) struct Daemon {
    pub(super) dispatcher: Dispatcher,
    pub(super) policy: LoopPolicy,
    /// It was asked to stop.
    pub(super) stop: Option<Stop>,
    store: Arc<Store>,
    lock: QueueLock,
}

/// The secrets that a daemon is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    /// Those that the cloud takes.
    Right,
    /// Somebody has put wrong ones in their place.
    Wrong,
}

impl Daemon {
    /// As `daemon::run` begins.
    pub(super) async fn start(
        path: &Path,
        settings: &Settings,
        secrets: Secrets,
        cloud: &Cloud,
        fuse: &Arc<Fuse>,
    ) -> Result<Self, StoreError> {
        let lock = QueueLock::take(path, cloud.moment().utc)?;
        let commits = Arc::clone(fuse);
        let options = StoreOptions {
            allow_commit: Some(Arc::new(move || commits.allows())),
            ..store_options()
        };
        let store = Arc::new(Store::open_with(path, &options).await?);
        if let Err(error) = store.begin_epoch(cloud.moment().utc).await {
            close(store).await;
            return Err(error);
        }
        let made = match clouds(settings, secrets, cloud) {
            Ok(clouds) => {
                Dispatcher::new(Arc::clone(&store), settings, clouds, cloud.moment()).await
            }
            Err(error) => Err(StoreError::Unreadable(error.0)),
        };
        match made {
            Ok(dispatcher) => Ok(Self {
                dispatcher,
                policy: LoopPolicy::default(),
                stop: None,
                store,
                lock,
            }),
            Err(error) => {
                close(store).await;
                Err(error)
            }
        }
    }

    /// Nothing of it is left; the connection is closed before this returns.
    pub(super) async fn end(self) {
        drop(self.dispatcher);
        close(self.store).await;
        drop(self.lock);
    }

    /// As `daemon::run` ends after an orderly stop.
    pub(super) async fn end_epoch(&self) -> Result<(), StoreError> {
        self.store.end_epoch().await
    }

    /// As a SIGHUP: new settings, and clients with these secrets, which are new ones.
    pub(super) async fn reload(
        &mut self,
        settings: &Settings,
        secrets: Secrets,
        cloud: &Cloud,
    ) -> Result<(), ReloadError> {
        let (accepted, _) = oneshot::channel();
        let clouds =
            clouds(settings, secrets, cloud).map_err(|error| StoreError::Unreadable(error.0))?;
        let reload = Reload {
            settings: settings.clone(),
            clouds,
            is_asked_for: true,
            accepted,
        };
        self.dispatcher.reload(reload, cloud.moment().utc).await
    }

    /// As `db prune`, for what ended before `cutoff`.
    pub(super) async fn prune(
        &self,
        cutoff: UtcMillis,
        now: UtcMillis,
    ) -> Result<Prune, StoreError> {
        self.store.prune(Prune::default(), cutoff, now).await
    }
}

async fn close(store: Arc<Store>) {
    if let Ok(store) = Arc::try_unwrap(store) {
        let _ = store.close().await;
    }
}

fn clouds(
    settings: &Settings,
    given: Secrets,
    simulated: &Cloud,
) -> Result<BTreeMap<TargetName, Arc<dyn PowerCloud>>, Broken> {
    let mut clouds: BTreeMap<_, Arc<dyn PowerCloud>> = BTreeMap::new();
    for target in &settings.targets {
        let mut secrets = scenario::Credentials::default();
        if given == Secrets::Wrong {
            secrets.secret_key = "wrong".into();
            secrets.password = "wrong".into();
        }
        let credentials = match target.auth {
            AuthSettings::AkSk { .. } => Credentials::AkSk(AccessKeys {
                access_key: secrets.access_key,
                secret_key: SecretString::from(secrets.secret_key),
                security_token: None,
            }),
            AuthSettings::Token { .. } => Credentials::Password(Password {
                domain: secrets.domain,
                username: secrets.user,
                password: SecretString::from(secrets.password),
            }),
        };
        let time = simulated.clone();
        let clock: Clock = Arc::new(move || time.moment().utc);
        let wire = SimWire {
            cloud: simulated.clone(),
            timeout: target.request_timeout,
        };
        let client = cloud::over(Box::new(wire), target, credentials, clock);
        clouds.insert(
            target.name.clone(),
            client.map_err(|error| Broken(error.to_string()))?,
        );
    }
    Ok(clouds)
}

/// Counts commits over all lives, and ends a life before one of them.
#[derive(Debug, Default)]
pub(super) struct Fuse {
    commits: AtomicU64,
    /// 0: never.
    ends_before: AtomicU64,
    blown: AtomicBool,
    /// After how many commits somebody asks the daemon to stop, and what tells it.
    halts: Mutex<Option<(u64, Arc<AtomicBool>)>>,
    /// Commits that fail without ending the daemon: after so many others (0: none), so many.
    fails: Mutex<(u64, u64)>,
}

impl Fuse {
    /// From now on the commit after `more` others ends the daemon.
    pub(super) fn set(&self, more: u64) {
        self.ends_before
            .store(self.commits() + more + 1, Ordering::SeqCst);
    }

    /// After `more` other commits the next `times` fail, as when a producer takes the lock in the
    /// middle of a step.
    pub(super) fn fail(&self, more: u64, times: u64) {
        *self.fails.lock().unwrap_or_else(PoisonError::into_inner) =
            (self.commits() + more + 1, times);
    }

    /// Somebody asks for a stop once `more` other commits are done.
    pub(super) fn halt(&self, more: u64, halt: Arc<AtomicBool>) {
        *self.halts.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((self.commits() + more, halt));
    }

    /// The daemon is dead: nothing it writes any more counts.
    pub(super) fn is_blown(&self) -> bool {
        self.blown.load(Ordering::SeqCst)
    }

    /// For the next life.
    pub(super) fn replace(&self) {
        *self.halts.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.ends_before.store(0, Ordering::SeqCst);
        self.blown.store(false, Ordering::SeqCst);
    }

    /// Commits so far.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    fn allows(&self) -> bool {
        if self.is_blown() {
            return false;
        }
        if self.commits() + 1 == self.ends_before.load(Ordering::SeqCst) {
            self.blown.store(true, Ordering::SeqCst);
            return false;
        }
        let mut fails = self.fails.lock().unwrap_or_else(PoisonError::into_inner);
        if fails.1 > 0 && self.commits() + 1 >= fails.0 {
            fails.1 -= 1;
            return false;
        }
        let commits = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        let halts = self.halts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, halt)) = halts.as_ref().filter(|(at, _)| commits >= *at) {
            halt.store(true, Ordering::SeqCst);
        }
        true
    }
}
