//! Notices other programs' commits within milliseconds, and costs next to nothing while there are
//! none.
//!
//! The folder is watched, not the file: the `-wal` comes and goes. The notification comes before
//! the commit can be seen (with `synchronous=FULL` always), so the queue is looked at once and
//! again a little later.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::{Store, file};

/// Looks after a notification. Later ones cover slow disks; the daemon's safety interval covers the
/// rest.
const LOOKS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(25),
];
/// Before a look is tried again that came while the daemon used the queue. Each page that it writes
/// makes a notification: those of this time are one.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Between looks where the folder cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Tells when somebody else has committed.
#[derive(Debug)]
pub struct Changes {
    notify: Arc<Notify>,
    watcher: JoinHandle<()>,
}

impl Changes {
    /// Starts watching.
    pub(in crate::store) fn watch(store: Arc<Store>) -> Self {
        let notify = Arc::new(Notify::new());
        let watcher = tokio::spawn(watch(store, Arc::clone(&notify)));
        Self { notify, watcher }
    }

    /// Resolves once for any number of commits since it last did.
    pub async fn changed(&mut self) {
        self.notify.notified().await;
    }

    /// Stops watching; the store is no longer in use when this returns.
    pub async fn end(self) {
        self.watcher.abort();
        // An aborted task is an error here, and what is wanted.
        let _ = self.watcher.await;
    }
}

async fn watch(store: Arc<Store>, told: Arc<Notify>) {
    if let Err(error) = follow_notifications(&store, &told).await {
        warn!(
            "cannot watch the queue's folder: {error}; checking the queue every {POLL_INTERVAL:?} instead"
        );
    }
    let mut version = None;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        look(&store, &mut version, &told).await;
    }
}

/// Returns only with an error.
async fn follow_notifications(store: &Store, notify: &Notify) -> std::io::Result<()> {
    let inotify = Inotify::init()?;
    inotify.watches().add(
        file::folder_of(store.path()),
        WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO,
    )?;
    let file = store.path().file_name().unwrap_or_default().to_owned();
    let mut events = inotify.into_event_stream([0; 4096])?;
    let mut version = None;
    let mut looks = LOOKS.iter();
    loop {
        let pause = looks.clone().next().copied();
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) if concerns(event.name.as_deref(), &file) => looks = LOOKS.iter(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(std::io::Error::other("the notifications ended")),
            },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                // A commit that is found does not end the looks: the notification may have been about the next one.
                if look(store, &mut version, notify).await {
                    looks.next();
                } else {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
            }
        }
    }
}

/// The file itself or its `-wal`; our lock file and foreign files are no news.
pub(in crate::store) fn concerns(name: Option<&OsStr>, file: &OsStr) -> bool {
    let (Some(name), Some(file)) = (name.and_then(OsStr::to_str), file.to_str()) else {
        return true;
    };
    name.strip_prefix(file)
        .is_some_and(|rest| rest.is_empty() || rest == "-wal" || rest == "-journal")
}

/// Notifies if another connection has committed since the last look. False if the daemon uses the
/// queue at this moment.
async fn look(store: &Store, version: &mut Option<i64>, notify: &Notify) -> bool {
    match store.data_version().await {
        Ok(None) => return false,
        Ok(now) if *version == now => return true,
        Ok(now) => *version = now,
        Err(error) => debug!("cannot check the queue for changes: {error}"),
    }
    notify.notify_one();
    true
}
