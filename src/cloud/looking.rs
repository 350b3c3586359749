//! Looking at servers in as few calls as possible: by the list, page by page, or one by one.
//!
//! Owns that choice, the end of a list, and the rule that a server which the list leaves out is
//! read alone before anything is concluded about it. One unreadable server hides none of the
//! others. Knows no paths and no bodies: how a page and a server are read is each service's own.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::page_sizes::{PageSizes, Remembered};
use super::show_history::ShowHistory;
use super::{Observed, not_sent};
use crate::model::{
    CallError, Extent, Fault, ListedServer, Listing, ServerId, ServerView, Sighting,
};

/// The list is read up to this many pages; servers that are not found by then are read by id.
pub(super) const PAGES_MAX: usize = 100;

/// Up to this many servers are read one by one even if the list has a single page: a page of 1000
/// takes longer.
const SHOWS_MIN: usize = 3;

/// Shows under way at a time.
const SHOWS_AT_ONCE: usize = 4;

/// Most shows in one look: after a list they are for the few servers that it left out, without a
/// list they are a try. The others get their turn in the next look. Documented is a rate of 1000
/// shows a minute; real accounts have far less.
const SHOWS_MAX: usize = 1000;
const SHOWS_WITHOUT_LIST_MAX: usize = 50;

/// After this many failed shows in one look no other one begins; it is fewer if nothing at all
/// could be read.
const SHOWS_FAILED_MAX: usize = 8;
const SHOWS_FAILED_ALONE_MAX: usize = 3;

/// For this long the first show runs alone, unless the list has been read: four refused signatures
/// at a time would soon lock the key.
const HEAD_START: Duration = Duration::from_secs(1);

/// A show that takes this many times as long as the slowest answer of its look is given up.
const SLOWER_MAX: u32 = 4;

/// A look that has lasted this long does not retry a failed page, and begins no further show.
const SPAN_MAX: Duration = Duration::from_secs(30);

/// HTTP 503.
const SERVICE_UNAVAILABLE: u16 = 503;

/// Pages of the smallest size that may be left out of one listing.
const PAGES_SKIPPED_MAX: usize = 3;

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Whose it is.
    pub id: ServerId,
    /// Its state; none if the list calls the server deleted.
    pub view: Option<ServerView>,
    /// Its name, see `ListedServer`.
    pub name: String,
    /// The cloud's own word for its state.
    pub status: String,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<P> {
    /// What it lists; entries without an id are left out.
    pub servers: Vec<Listed>,
    /// Where the next page is; none: this was the last.
    pub next: Option<P>,
    /// The cloud leaves servers out that this key may not list.
    pub is_filtered: bool,
}

/// What a list is read for.
#[derive(Clone, Copy)]
enum Goal<'a> {
    /// Until all of these have been seen.
    See(&'a HashSet<&'a ServerId>),
    /// To its end, or so many pages.
    ReadAll { pages_max: usize },
}

impl Goal<'_> {
    fn pages_max(&self) -> usize {
        match self {
            Self::See(_) => PAGES_MAX,
            Self::ReadAll { pages_max } => *pages_max,
        }
    }

    fn is_reached(&self, look: &LookSoFar) -> bool {
        match self {
            Self::See(wanted) => look.observed.sightings.len() == wanted.len(),
            Self::ReadAll { .. } => false,
        }
    }

    /// The wanted server with this id, as it was asked for.
    fn wanted(&self, id: &ServerId) -> Option<&ServerId> {
        match self {
            Self::See(wanted) => wanted.get(id).copied(),
            Self::ReadAll { .. } => None,
        }
    }
}

/// A service whose servers can be read from a list or shown one by one.
pub(crate) trait ServerReader: Sync {
    /// Where a page is: a number, or a marker.
    type Place: Clone + Send;

    /// Where the first page is.
    fn first_page(&self) -> Self::Place;

    /// Reads one page of `limit` servers, in one call where all goes well.
    fn page(
        &self,
        place: Self::Place,
        limit: usize,
    ) -> impl Future<Output = Result<Page<Self::Place>, CallError>> + Send;

    /// Where the page after the one at `place` is, if that can be told without having read it.
    fn page_after(&self, place: &Self::Place, limit: usize) -> Option<Self::Place>;

    /// Shows one server, in one call.
    fn show(&self, server: &ServerId) -> impl Future<Output = Result<Sighting, CallError>> + Send;
}

/// What is remembered of one project from look to look.
#[derive(Debug)]
pub(crate) struct Looking {
    memory: Mutex<Memory>,
    /// Once something was read and no show has ended for this long, or for several times the
    /// slowest answer, the look ends: the results of other servers must not become old because of
    /// one that never answers.
    hurry: Duration,
}

#[derive(Debug, Default)]
struct Memory {
    /// Pages of the last listing that was read to its end, or more if one went further; 0 before
    /// the first.
    pages_known: usize,
    page_sizes: Remembered,
    show_history: ShowHistory,
}

/// One look as far as it has come.
#[derive(Default)]
struct LookSoFar {
    observed: Observed,
    /// Why all or part of the list could not be read.
    list_failure: Option<CallError>,
    was_listed: bool,
    /// True once a page was read.
    list_was_read: bool,
    /// What the list showed, asked for or not.
    listed: Vec<ListedServer>,
    /// The last page that was read was the last one of the list.
    end_was_read: bool,
    /// A page lacked what this key may not list.
    is_filtered: bool,
    /// How long the slowest answer took.
    slowest: Duration,
}

impl LookSoFar {
    /// True once anything was read, so that the cloud is there and takes our key.
    fn has_read(&self) -> bool {
        self.list_was_read || !self.observed.sightings.is_empty()
    }

    fn is_over(&self) -> bool {
        self.observed.ended_by.is_some()
    }

    fn saw(&mut self, server: ServerId, sighting: Sighting) {
        self.observed.failures.remove(&server);
        self.observed.sightings.insert(server, sighting);
    }

    fn failed(&mut self, server: ServerId, error: CallError) {
        // "Try later" may concern one server; if it concerns all, nothing else can be read either.
        if error.status != Some(SERVICE_UNAVAILABLE) {
            self.end_if_it_concerns_all(&error);
        }
        self.observed.failures.insert(server, error);
    }

    /// Another call would get the same answer, or make things worse.
    fn end_if_it_concerns_all(&mut self, error: &CallError) {
        match error.fault {
            Fault::Throttled { .. } | Fault::Credentials | Fault::Unreachable => {
                self.observed.ended_by.get_or_insert_with(|| error.clone());
            }
            Fault::Unavailable
            | Fault::Permission
            | Fault::Configuration
            | Fault::Refused(_)
            | Fault::Lost => {}
        }
    }

    /// A server that could not be shown may still be in the list; and if the list can be read, the
    /// cloud works.
    fn needs_the_list(&self) -> bool {
        !self.was_listed
            && !self.has_read()
            && !self.is_over()
            && self.observed.failures.values().any(leaves_hope_for_list)
    }

    fn saw_page(&mut self, servers: Vec<Listed>, goal: Goal<'_>) {
        for entry in servers {
            let Some(view) = entry.view else {
                continue;
            };
            self.listed.push(ListedServer {
                id: entry.id.clone(),
                name: entry.name,
                power: view.power,
                status: entry.status,
                locked: view.locked,
            });
            if let Some(asked) = goal.wanted(&entry.id) {
                self.saw(asked.clone(), Sighting::Present(view));
            }
        }
    }

    /// What the list showed; none if no page of it was read.
    fn listing(&mut self) -> Option<Listing> {
        if !self.list_was_read {
            return None;
        }
        let extent = match &self.list_failure {
            Some(error) => Extent::CutShort(Box::new(error.clone())),
            None if !self.end_was_read => Extent::Part,
            None if self.is_filtered => Extent::Filtered,
            None => Extent::Whole,
        };
        Some(Listing {
            servers: std::mem::take(&mut self.listed),
            extent,
        })
    }

    /// The result. An error only where nothing could be read, and for a reason that is not one
    /// server's own.
    fn end(mut self, servers: &[ServerId]) -> Result<Observed, CallError> {
        if !self.has_read()
            && let Some(error) = self.reason_for_all(servers)
        {
            return Err(error);
        }
        self.observed.listing = self.listing();
        let why = self
            .observed
            .ended_by
            .clone()
            .or(self.list_failure)
            .unwrap_or_else(not_asked);
        for server in servers {
            if !self.observed.sightings.contains_key(server)
                && !self.observed.failures.contains_key(server)
            {
                self.observed.failures.insert(server.clone(), why.clone());
            }
        }
        Ok(self.observed)
    }

    fn reason_for_all(&self, servers: &[ServerId]) -> Option<CallError> {
        if let Some(error) = &self.observed.ended_by {
            return Some(error.clone());
        }
        let failures = servers
            .iter()
            .filter_map(|server| self.observed.failures.get(server));
        let failures: Vec<&CallError> = failures.collect();
        // The service itself has answered about a server.
        if failures
            .iter()
            .any(|error| matches!(error.fault, Fault::Refused(_)))
        {
            return None;
        }
        let first = failures.first().copied();
        self.list_failure.as_ref().or(first).cloned()
    }
}

/// True for a failure of a show after which the list may still be read.
fn leaves_hope_for_list(error: &CallError) -> bool {
    match error.fault {
        Fault::Unavailable | Fault::Lost => true,
        Fault::Refused(_) => error.status.is_some(),
        Fault::Throttled { .. } => error.status == Some(SERVICE_UNAVAILABLE),
        _ => false,
    }
}

fn not_asked() -> CallError {
    not_sent(Fault::Unavailable, "it is read in the next look".to_owned())
}

fn no_end() -> CallError {
    let what = format!("the list of servers has no end, or more than {PAGES_MAX} pages");
    not_sent(Fault::Unavailable, what)
}

impl Looking {
    /// `settle_time`: the target's proofs need looks without long gaps for this time.
    pub(crate) fn new(settle_time: Duration) -> Self {
        Self {
            memory: Mutex::default(),
            hurry: settle_time / 8,
        }
    }

    /// Sees each of `servers`, once: see `PowerCloud::observe`.
    ///
    /// # Errors
    /// See `PowerCloud::observe`.
    pub(crate) async fn observe(
        &self,
        reader: &impl ServerReader,
        servers: &[ServerId],
    ) -> Result<Observed, CallError> {
        let wanted: HashSet<&ServerId> = servers.iter().collect();
        let mut look = LookSoFar::default();
        let list_first = {
            let memory = self.memory();
            let many = wanted.len() > SHOWS_MIN.max(memory.pages_known);
            // The list may have servers that could not be shown last time.
            many || wanted
                .iter()
                .any(|server| memory.show_history.has_failed(server))
        };
        if list_first {
            self.list(reader, Goal::See(&wanted), &mut look).await;
        }
        if !look.is_over() {
            self.show(reader, servers, &mut look).await;
        }
        if look.needs_the_list() {
            self.list(reader, Goal::See(&wanted), &mut look).await;
        }
        look.end(servers)
    }

    /// Reads at most `pages_max` pages of the list: see `PowerCloud::list`.
    ///
    /// # Errors
    /// See `PowerCloud::list`.
    pub(crate) async fn read_list(
        &self,
        reader: &impl ServerReader,
        pages_max: usize,
    ) -> Result<Listing, CallError> {
        let mut look = LookSoFar::default();
        self.list(reader, Goal::ReadAll { pages_max }, &mut look)
            .await;
        let mut listing = look
            .listing()
            .ok_or_else(|| look.list_failure.unwrap_or_else(not_asked))?;
        if listing.extent == Extent::Part && pages_max >= PAGES_MAX {
            listing.extent = Extent::CutShort(Box::new(no_end()));
        }
        Ok(listing)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the list until its goal is reached, or to its end. A page that cannot be
    /// read is asked for in smaller pages; what was read before a failure counts.
    ///
    /// The end is a page that names no next one, or one without anything new: a list that goes in
    /// circles ends too.
    async fn list(&self, reader: &impl ServerReader, goal: Goal<'_>, look: &mut LookSoFar) {
        let before = self.memory().page_sizes;
        let (began, mut sizes, mut known) =
            (Instant::now(), PageSizes::begin(before), HashSet::new());
        let mut place = Some(reader.first_page());
        let mut calls = 0;
        let mut pages = 0;
        let mut skipped = 0;
        let mut failure = None;
        let mut hole = None;
        look.was_listed = true;
        while calls < PAGES_MAX
            && pages < goal.pages_max()
            && let Some(here) = place.take()
        {
            calls += 1;
            let asked_at = Instant::now();
            match reader.page(here.clone(), sizes.limit()).await {
                Ok(page) => {
                    look.slowest = look.slowest.max(asked_at.elapsed());
                    sizes.page_read();
                    pages += 1;
                    failure = None;
                    let known_before = known.len();
                    known.extend(page.servers.iter().map(|entry| entry.id.clone()));
                    look.end_was_read = page.next.is_none();
                    look.is_filtered |= page.is_filtered;
                    look.saw_page(page.servers, goal);
                    place = page.next.filter(|_| known.len() > known_before);
                    self.memory().learn_pages(calls, place.is_none());
                    if goal.is_reached(look) {
                        break;
                    }
                }
                Err(error) => {
                    look.end_if_it_concerns_all(&error);
                    let may_be_its_size =
                        matches!(error.fault, Fault::Unavailable | Fault::Refused(_));
                    failure = Some(error);
                    if !may_be_its_size || began.elapsed() > SPAN_MAX {
                        sizes.page_failed();
                        break;
                    }
                    if sizes.page_failed() {
                        place = Some(here);
                    } else if skipped < PAGES_SKIPPED_MAX {
                        skipped += 1;
                        hole = failure.clone();
                        place = reader.page_after(&here, sizes.limit());
                        sizes.page_skipped();
                    }
                }
            }
        }
        look.list_was_read = sizes.has_read();
        look.list_failure = hole.or(failure);
        self.memory().page_sizes = sizes.remember(before);
    }

    /// Shows the servers that have not been seen, one by one. Those that have waited longest come
    /// first, and those that failed last time come last.
    async fn show(&self, reader: &impl ServerReader, servers: &[ServerId], look: &mut LookSoFar) {
        // In the caller's order, so that the same question makes the same calls.
        let mut taken = HashSet::new();
        let mut servers_left = Vec::new();
        for id in servers {
            if !look.observed.sightings.contains_key(id) && taken.insert(id) {
                servers_left.push(id.clone());
            }
        }
        self.memory().show_history.order(&mut servers_left);
        let list_is_whole = look.was_listed && look.list_failure.is_none();
        servers_left.truncate(if list_is_whole {
            SHOWS_MAX
        } else {
            SHOWS_WITHOUT_LIST_MAX
        });
        let alone_in_look = servers.len() == 1;
        let mut servers_left = servers_left.into_iter();
        let began = Instant::now();
        let mut failed = 0;
        let mut alone = !look.has_read();
        let mut open = FuturesUnordered::new();
        let mut under_way = HashSet::new();
        loop {
            let enough = if look.has_read() {
                SHOWS_FAILED_MAX
            } else {
                SHOWS_FAILED_ALONE_MAX
            };
            let at_once = if alone { 1 } else { SHOWS_AT_ONCE };
            while open.len() < at_once
                && failed < enough
                && began.elapsed() < SPAN_MAX
                && let Some(server) = servers_left.next()
            {
                let patience = self.memory().show_history.patience(&server, alone_in_look);
                under_way.insert(server.clone());
                open.push(show_within(reader, server, patience));
            }
            let ended = if alone {
                match tokio::time::timeout(HEAD_START, open.next()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        alone = false;
                        continue;
                    }
                }
            } else if look.has_read() {
                let patience = self.hurry.max(look.slowest * SLOWER_MAX);
                match tokio::time::timeout(patience, open.next()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        open.clear();
                        failed += under_way.len();
                        for server in under_way.drain() {
                            self.memory().show_history.note(&server, true);
                            look.failed(server, no_answer_within(patience));
                        }
                        continue;
                    }
                }
            } else {
                open.next().await
            };
            let Some(ShownServer {
                server,
                sighting: shown,
                took,
            }) = ended
            else {
                break;
            };
            under_way.remove(&server);
            if shown.is_ok() {
                look.slowest = look.slowest.max(took);
            }
            alone &= shown.is_err();
            self.memory()
                .show_history
                .note(&server, shown.as_ref().is_err_and(is_its_own));
            match shown {
                Ok(sighting) => look.saw(server, sighting),
                Err(error) => {
                    failed += usize::from(!matches!(error.fault, Fault::Refused(_)));
                    look.failed(server, error);
                }
            }
            if look.is_over() {
                break;
            }
        }
    }
}

impl Memory {
    fn learn_pages(&mut self, pages: usize, is_the_end: bool) {
        self.pages_known = if is_the_end {
            pages
        } else {
            pages.max(self.pages_known)
        };
    }
}

/// The result of one show.
struct ShownServer {
    server: ServerId,
    sighting: Result<Sighting, CallError>,
    took: Duration,
}

/// Shows `server`, for no longer than `patience` if there is one.
async fn show_within(
    reader: &impl ServerReader,
    server: ServerId,
    patience: Option<Duration>,
) -> ShownServer {
    let began = Instant::now();
    let sighting = match patience {
        None => reader.show(&server).await,
        Some(patience) => tokio::time::timeout(patience, reader.show(&server))
            .await
            .unwrap_or_else(|_| Err(no_answer_within(patience))),
    };
    ShownServer {
        server,
        sighting,
        took: began.elapsed(),
    }
}

fn no_answer_within(patience: Duration) -> CallError {
    let message = format!(
        "no answer within {}",
        humantime::format_duration(whole_milliseconds(patience))
    );
    not_sent(Fault::Unavailable, message)
}

fn whole_milliseconds(span: Duration) -> Duration {
    Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// True for a failure that may concern this server only. An id that cannot be in a path can never
/// be read.
fn is_its_own(error: &CallError) -> bool {
    match error.fault {
        Fault::Unavailable | Fault::Lost | Fault::Permission | Fault::Configuration => true,
        Fault::Refused(_) => error.status.is_some(),
        Fault::Throttled { .. } => error.status == Some(SERVICE_UNAVAILABLE),
        Fault::Credentials | Fault::Unreachable => false,
    }
}

#[cfg(test)]
mod tests;
