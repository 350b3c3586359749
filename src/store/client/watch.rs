//! Notices that somebody has written to a queue, without opening it: for those who show it.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use futures_util::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};

use crate::store::sqlite::{changes, file};

/// Watches the folder of a queue.
pub struct QueueWatch {
    events: EventStream<[u8; 4096]>,
    file: OsString,
}

impl QueueWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The folder cannot be watched.
    pub fn begin(queue: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        inotify.watches().add(
            file::folder_of(queue),
            WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO,
        )?;
        Ok(Self {
            events: inotify.into_event_stream([0; 4096])?,
            file: queue.file_name().unwrap_or_default().to_owned(),
        })
    }

    /// Resolves once for any number of writes since it last did. What was written can be seen a few
    /// milliseconds later.
    ///
    /// # Errors
    /// The folder is watched no more.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.is_about_queue().await? {}
        while let Some(news) = self.is_about_queue().now_or_never() {
            news?;
        }
        Ok(())
    }

    async fn is_about_queue(&mut self) -> io::Result<bool> {
        let ended = || io::Error::other("the notifications ended");
        let event = self.events.next().await.ok_or_else(ended)??;
        Ok(changes::concerns(event.name.as_deref(), &self.file))
    }
}
