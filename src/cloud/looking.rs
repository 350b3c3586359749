//! Looking at servers in as few calls as can be: by the list, page by page, or one by one.
//!
//! Owns that choice, the end of a list, and the rule that a server which the list leaves out is shown alone before
//! anything is said of it. Knows no paths and no bodies: how a page and a server are read is each service's own.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{CallError, Fault};
use crate::model::{Activity, Power, ServerId, ServerView, Sighting};

/// The list is read up to this many pages; whoever is not found by then is asked for by name.
const PAGES_MAX: usize = 100;

/// So few servers are shown one by one even where the list is a single page: a page of 1000 takes longer.
const SHOWS_MIN: usize = 3;

/// Shows under way at a time.
const SHOWS_AT_ONCE: usize = 4;

/// An entry of a list; without a view if the list calls the server deleted.
pub type Listed = (ServerId, Option<ServerView>);

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<P> {
    /// What it lists; entries without an id are left out.
    pub servers: Vec<Listed>,
    /// Where the next page is; none: this was the last.
    pub next: Option<P>,
}

/// A service whose servers can be read from a list or shown one by one.
pub(crate) trait ServerReader: Sync {
    /// Where a page is: a number, or a marker.
    type Place: Send;

    /// Where the first page is.
    fn first_page(&self) -> Self::Place;

    /// Reads one page, in one call where all goes well.
    fn page(&self, place: Self::Place) -> impl Future<Output = Result<Page<Self::Place>, CallError>> + Send;

    /// Shows one server, in one call.
    fn show(&self, server: &ServerId) -> impl Future<Output = Result<Sighting, CallError>> + Send;
}

/// What is remembered of one project's list from look to look.
#[derive(Debug, Default)]
pub(crate) struct Looking {
    /// Pages of the last listing that was read to its end, or more if one went further; 0 before the first.
    pages_known: AtomicUsize,
}

impl Looking {
    /// Sees each of `servers`, once: see `PowerCloud::observe`.
    ///
    /// # Errors
    /// The first page or show that fails; but see `show_among`.
    pub(crate) async fn observe(
        &self,
        reader: &impl ServerReader,
        servers: &[ServerId],
    ) -> Result<HashMap<ServerId, Sighting>, CallError> {
        let mut wanted: HashSet<&ServerId> = servers.iter().collect();
        let mut seen = HashMap::with_capacity(wanted.len());
        if wanted.len() > SHOWS_MIN.max(self.pages_known.load(Ordering::Relaxed)) {
            seen = self.list(reader, &wanted).await?;
        }
        // In the caller's order, so that the same question makes the same calls.
        let mut is_unseen = |id: &&ServerId| wanted.remove(*id) && !seen.contains_key(*id);
        let mut unseen: Vec<ServerId> = servers.iter().filter(&mut is_unseen).cloned().collect();
        let alone = servers.len() == 1;
        // The first goes alone: four refused signatures at a time would soon lock the key.
        if let Some(first) = unseen.pop() {
            seen.extend([show_among(reader, first, alone).await?]);
        }
        let shows = stream::iter(unseen).map(|server| show_among(reader, server, alone));
        let shown: Vec<_> = shows.buffer_unordered(SHOWS_AT_ONCE).try_collect().await?;
        seen.extend(shown);
        Ok(seen)
    }

    /// Reads the list until every wanted server has been seen, or to its end.
    ///
    /// The end is a page that names no next one, or one without anything new: a list that goes in circles ends too.
    async fn list(
        &self,
        reader: &impl ServerReader,
        wanted: &HashSet<&ServerId>,
    ) -> Result<HashMap<ServerId, Sighting>, CallError> {
        let mut seen = HashMap::with_capacity(wanted.len());
        let mut known = HashSet::new();
        let mut place = Some(reader.first_page());
        let mut pages = 0;
        while let Some(here) = place.filter(|_| pages < PAGES_MAX) {
            let page = reader.page(here).await?;
            pages += 1;
            let before = known.len();
            for (server, view) in page.servers {
                if let (Some(asked), Some(view)) = (wanted.get(&server), view) {
                    seen.insert((*asked).clone(), Sighting::Present(view));
                }
                known.insert(server);
            }
            place = page.next.filter(|_| known.len() > before);
            let at_least = if place.is_some() { self.pages_known.load(Ordering::Relaxed) } else { 0 };
            self.pages_known.store(pages.max(at_least), Ordering::Relaxed);
            if seen.len() == wanted.len() {
                break;
            }
        }
        Ok(seen)
    }
}

/// Shows one server of those asked for. Unless it is `alone`, a refusal about it must not hide the others' states: then
/// it is an unclear sighting, which proves nothing.
async fn show_among(
    reader: &impl ServerReader,
    server: ServerId,
    alone: bool,
) -> Result<(ServerId, Sighting), CallError> {
    let unclear = ServerView::of(Power::Unclear, Activity::Other);
    match reader.show(&server).await {
        Err(CallError { fault: Fault::Refused(_), .. }) if !alone => Ok((server, Sighting::Present(unclear))),
        shown => shown.map(|sighting| (server, sighting)),
    }
}
