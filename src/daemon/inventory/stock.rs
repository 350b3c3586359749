//! What is known of one target's servers: which of them have to be written, and when their list is
//! read again. Pure: reads nothing and writes no row.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use crate::model::{
    CallError, Extent, Fault, ListedServer, Listing, Now, Origin, ServerId, Steady, UtcMillis,
};
use crate::store::{GoneChunk, InventoryNote, SEEN_AT_AGE_MAX, SERVERS_CHUNK};

/// After a failure the list is tried again after this, doubling, and no later than usual.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// Where the list is not read automatically, one that failed is not tried again before this.
const INTERVAL_WITHOUT: Duration = Duration::from_secs(600);
/// Lists that are read for looks tell the queue this often that the inventory is fresh.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Stock {
    /// Where the servers are.
    origin: Origin,
    /// As the queue has it.
    note: InventoryNote,
    /// The servers of lists as they are in the queue, by their ids.
    stored: HashMap<u64, StoredServer>,
    /// What the queue had from earlier runs has been compared with a whole list.
    is_compared: bool,
    unwritten: VecDeque<Unwritten>,
    walk: Option<Walk>,
    /// The last try whose results are not all in the queue yet.
    ending: Option<Attempt>,
    /// The last one whose results are.
    ended: Option<Attempt>,
    failures: u32,
    /// The list is not read automatically before this.
    due_at: Steady,
    /// The cloud wants to be left alone until then.
    throttled_until: Steady,
}

/// A server's row: what it says, as a hash, and its `seen_at`.
#[derive(Clone, Copy)]
struct StoredServer {
    content: u64,
    seen_at: UtcMillis,
}

/// What a list showed and the queue does not have.
struct Unwritten {
    servers: Vec<ListedServer>,
    at: UtcMillis,
}

/// The walk through the queue's rows for those that a whole list lacks.
struct Walk {
    listed: HashSet<u64>,
    at: UtcMillis,
    after: String,
}

/// One try to read the list in full.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    began: Steady,
    note: InventoryNote,
}

/// A list, and how it came.
pub(super) struct Arrival {
    pub(super) listing: Listing,
    /// When its reading began; none: it is not known.
    pub(super) began: Option<Steady>,
    /// It was read for the inventory.
    pub(super) is_own: bool,
}

/// The next thing to write.
pub(super) enum Write<'a> {
    /// Nothing.
    Nothing,
    /// These servers, as a list showed them at this time.
    Servers(&'a [ListedServer], UtcMillis),
    /// Those behind `after` that are not in the whole list of this time.
    Gone { after: &'a str, at: UtcMillis },
    /// That a try has ended.
    Note(&'a InventoryNote),
}

impl Stock {
    /// As the queue knows it.
    pub(super) fn new(origin: Origin, note: InventoryNote) -> Self {
        Self {
            origin,
            note,
            stored: HashMap::new(),
            is_compared: false,
            unwritten: VecDeque::new(),
            walk: None,
            ending: None,
            ended: None,
            failures: 0,
            due_at: Steady::default(),
            throttled_until: Steady::default(),
        }
    }

    pub(super) fn is_of(&self, origin: &Origin) -> bool {
        self.origin == *origin
    }

    /// The time from which on the list is read automatically.
    pub(super) fn due_at(&self) -> Steady {
        self.due_at.max(self.throttled_until)
    }

    pub(super) fn throttled_until(&self) -> Steady {
        self.throttled_until
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// The list may be tried again at once: somebody has perhaps fixed what was wrong.
    pub(super) fn forgive(&mut self) {
        if self.has_failed() {
            self.due_at = Steady::default();
        }
        self.throttled_until = Steady::default();
    }

    /// How the last try that began at `since` or later has ended, once all of it is in the queue:
    /// with this error, if with any.
    pub(super) fn end_since(&self, since: Steady) -> Option<Option<&str>> {
        let ended = self.ended.as_ref().filter(|ended| ended.began >= since)?;
        Some(ended.note.error.as_deref())
    }

    /// True if a try that began at `since` or later is being written.
    pub(super) fn is_ending_since(&self, since: Steady) -> bool {
        self.ending
            .as_ref()
            .is_some_and(|ending| ending.began >= since)
    }

    /// A list was read, or a part of one. `interval`: how often it is read automatically.
    ///
    /// What looks have seen of a list that was never read in full is no inventory: most servers
    /// would be missing in it.
    pub(super) fn take(&mut self, arrival: Arrival, interval: Option<Duration>, now: Now) {
        let Arrival {
            listing,
            began,
            is_own,
        } = arrival;
        let Listing { servers, extent } = listing;
        let begins_one = interval.is_some() && extent.is_full();
        if !is_own && self.note.read_at.is_none() && !begins_one {
            return;
        }
        let listed = self.compare(servers, now.utc);
        if extent == Extent::Whole && self.lacks_some(&listed) {
            self.walk = Some(Walk {
                listed,
                at: now.utc,
                after: String::new(),
            });
        }
        match extent {
            Extent::Whole | Extent::Filtered => {
                let began = began.unwrap_or_default();
                self.read_in_full(began, is_own, interval, now);
            }
            Extent::Part if is_own => self.due_at = now.steady,
            Extent::CutShort(error) if is_own => {
                self.failed(&error, began.unwrap_or_default(), interval, now);
            }
            Extent::Part | Extent::CutShort(_) => {}
        }
    }

    /// The list could not be read. The rows stay as they are.
    pub(super) fn failed(
        &mut self,
        error: &CallError,
        began: Steady,
        interval: Option<Duration>,
        now: Now,
    ) {
        let interval = interval.unwrap_or(INTERVAL_WITHOUT);
        let doubled = RETRY_FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let mut wait = doubled.min(interval);
        match &error.fault {
            // Another try costs another bad signature.
            Fault::Credentials => wait = interval,
            Fault::Throttled { retry_after, .. } => {
                let named = retry_after.or(error.retry_after).unwrap_or_default();
                self.throttled_until = later(now.steady, named);
            }
            _ => {}
        }
        self.due_at = later(now.steady, wait);
        self.ending = Some(Attempt {
            began,
            note: InventoryNote {
                read_at: self.note.read_at,
                error: Some(error.to_string()),
            },
        });
    }

    fn read_in_full(&mut self, began: Steady, is_own: bool, interval: Option<Duration>, now: Now) {
        self.failures = 0;
        self.due_at = later(now.steady, interval.unwrap_or(INTERVAL_WITHOUT));
        let is_fresh = |at: UtcMillis| now.utc.since(at) < NOTE_INTERVAL;
        let is_noted = self.note.error.is_none() && self.note.read_at.is_some_and(is_fresh);
        let note = InventoryNote {
            read_at: Some(now.utc),
            error: None,
        };
        let note = if is_noted && !is_own {
            self.note.clone()
        } else {
            note
        };
        self.ending = Some(Attempt { began, note });
    }

    /// Keeps what has to be written, and returns who is listed.
    fn compare(&mut self, servers: Vec<ListedServer>, at: UtcMillis) -> HashSet<u64> {
        let mut listed = HashSet::with_capacity(servers.len());
        let mut changed = Vec::new();
        for mut server in servers {
            if !ServerId::is_valid(&server.id.0) {
                continue;
            }
            server.id = ServerId(ServerId::as_stored(&server.id.0));
            let key = key_of(&server.id);
            listed.insert(key);
            let stored = self.stored.get(&key);
            let is_stored = stored.is_some_and(|stored| {
                let is_new = stored.seen_at <= at && at.since(stored.seen_at) < SEEN_AT_AGE_MAX;
                stored.content == content_of(&server) && is_new
            });
            if !is_stored {
                changed.push(server);
            }
        }
        if !changed.is_empty() {
            self.unwritten.push_back(Unwritten {
                servers: changed,
                at,
            });
        }
        listed
    }

    /// True if the queue may have servers that are not among these.
    fn lacks_some(&self, listed: &HashSet<u64>) -> bool {
        !self.is_compared || self.stored.keys().any(|key| !listed.contains(key))
    }

    /// What to write next.
    pub(super) fn next_write(&self) -> Write<'_> {
        if let Some(unwritten) = self.unwritten.front() {
            let count = unwritten.servers.len().min(SERVERS_CHUNK);
            return Write::Servers(&unwritten.servers[..count], unwritten.at);
        }
        if let Some(walk) = &self.walk {
            return Write::Gone {
                after: &walk.after,
                at: walk.at,
            };
        }
        match &self.ending {
            Some(ending) => Write::Note(&ending.note),
            None => Write::Nothing,
        }
    }

    pub(super) fn has_to_write(&self) -> bool {
        !matches!(self.next_write(), Write::Nothing)
    }

    /// Ends the last try if the queue has all of it.
    pub(super) fn end_if_written(&mut self) {
        let is_noted = !self.has_news();
        if matches!(self.next_write(), Write::Note(_)) && is_noted {
            self.noted();
        }
    }

    /// True if the whole list of the walk has this server.
    pub(super) fn is_listed(&self, server: &str) -> bool {
        let key = key_of(&ServerId(server.to_owned()));
        let walk = self.walk.as_ref();
        walk.is_none_or(|walk| walk.listed.contains(&key))
    }

    /// The next servers are in the queue.
    pub(super) fn servers_written(&mut self) {
        let Some(unwritten) = self.unwritten.front_mut() else {
            return;
        };
        let seen_at = unwritten.at;
        let count = unwritten.servers.len().min(SERVERS_CHUNK);
        for server in unwritten.servers.drain(..count) {
            let content = content_of(&server);
            let stored = StoredServer { content, seen_at };
            self.stored.insert(key_of(&server.id), stored);
        }
        if unwritten.servers.is_empty() {
            self.unwritten.pop_front();
        }
    }

    /// The walk has come so far.
    pub(super) fn walked(&mut self, chunk: GoneChunk) {
        for server in chunk.gone {
            // Once it returns, its row has to be written.
            self.stored.remove(&key_of(&ServerId(server)));
        }
        match (&mut self.walk, chunk.next) {
            (Some(walk), Some(next)) => walk.after = next,
            _ => {
                self.walk = None;
                self.is_compared = true;
            }
        }
    }

    /// True if the queue does not have the note of the last try.
    pub(super) fn has_news(&self) -> bool {
        let ending = self.ending.as_ref();
        ending.is_some_and(|ending| ending.note != self.note)
    }

    /// The last try is in the queue.
    pub(super) fn noted(&mut self) {
        if let Some(ended) = self.ending.take() {
            self.note = ended.note.clone();
            self.ended = Some(ended);
        }
    }

    /// When the list was last read in full.
    pub(super) fn read_at(&self) -> Option<UtcMillis> {
        self.note.read_at
    }
}

fn later(now: Steady, wait: Duration) -> Steady {
    Steady(now.0.saturating_add(wait))
}

fn key_of(server: &ServerId) -> u64 {
    hash_of(server)
}

fn content_of(server: &ListedServer) -> u64 {
    let power = server.power.as_str();
    hash_of(&(&server.name, power, &server.status, server.locked))
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Power, Service};

    const INTERVAL: Option<Duration> = Some(Duration::from_secs(600));

    fn at(seconds: u64) -> Now {
        Now {
            utc: UtcMillis(1_800_000_000_000) + Duration::from_secs(seconds),
            steady: Steady(Duration::from_secs(seconds)),
        }
    }

    fn stock() -> Stock {
        let origin = Origin {
            service: Service::Bms,
            endpoint: String::new(),
            project_id: String::new(),
        };
        Stock::new(origin, InventoryNote::default())
    }

    fn server(number: usize) -> ListedServer {
        ListedServer {
            id: ServerId(format!("server-{number}")),
            name: format!("name-{number}"),
            power: Power::On,
            status: "ACTIVE".to_owned(),
            locked: false,
        }
    }

    fn own(count: usize, extent: Extent, now: Now) -> Arrival {
        Arrival {
            listing: Listing {
                servers: (0..count).map(server).collect(),
                extent,
            },
            began: Some(now.steady),
            is_own: true,
        }
    }

    fn seen(count: usize, extent: Extent, now: Now) -> Arrival {
        Arrival {
            is_own: false,
            ..own(count, extent, now)
        }
    }

    fn error(fault: Fault) -> CallError {
        CallError {
            fault,
            status: Some(500),
            code: String::new(),
            message: "no".to_owned(),
            request_id: None,
            retry_after: None,
        }
    }

    /// Writes all that there is; how many servers, and how many walks.
    fn write_all(stock: &mut Stock) -> (usize, usize) {
        let (mut servers, mut walks) = (0, 0);
        loop {
            match stock.next_write() {
                Write::Nothing => return (servers, walks),
                Write::Servers(some, _) => {
                    assert!(some.len() <= SERVERS_CHUNK);
                    servers += some.len();
                    stock.servers_written();
                }
                Write::Gone { .. } => {
                    walks += 1;
                    stock.walked(GoneChunk::default());
                }
                Write::Note(_) => stock.noted(),
            }
        }
    }

    #[test]
    fn a_quiet_fleet_is_written_once_and_then_every_hour() {
        let mut stock = stock();
        stock.take(own(10_000, Extent::Whole, at(0)), INTERVAL, at(0));
        assert_eq!(write_all(&mut stock), (10_000, 1));
        for minutes in [10, 20, 59] {
            let now = at(minutes * 60);
            stock.take(own(10_000, Extent::Whole, now), INTERVAL, now);
            assert_eq!(write_all(&mut stock), (0, 0), "{minutes}");
            assert_eq!(stock.read_at(), Some(now.utc));
        }
        stock.take(own(10_000, Extent::Whole, at(3600)), INTERVAL, at(3600));
        assert_eq!(write_all(&mut stock), (10_000, 0));
    }

    #[test]
    fn only_a_whole_list_sends_somebody_to_look_for_the_gone() {
        let mut stock = stock();
        stock.take(own(10, Extent::Whole, at(0)), INTERVAL, at(0));
        write_all(&mut stock);
        for extent in [
            Extent::Part,
            Extent::Filtered,
            Extent::CutShort(Box::new(error(Fault::Unavailable))),
        ] {
            stock.take(own(3, extent, at(1)), INTERVAL, at(1));
            assert_eq!(write_all(&mut stock), (0, 0));
        }
        stock.take(own(3, Extent::Whole, at(2)), INTERVAL, at(2));
        assert_eq!(write_all(&mut stock), (0, 1));
    }

    #[test]
    fn a_look_counts_once_the_list_was_read_in_full() {
        let mut stock = stock();
        stock.take(seen(3, Extent::Part, at(0)), INTERVAL, at(0));
        assert_eq!(write_all(&mut stock), (0, 0));
        stock.take(seen(3, Extent::Whole, at(0)), None, at(0));
        assert_eq!(write_all(&mut stock), (0, 0), "nobody wants an inventory");
        stock.take(seen(3, Extent::Whole, at(0)), INTERVAL, at(0));
        assert_eq!(write_all(&mut stock), (3, 1));
        assert_eq!(stock.due_at(), at(600).steady, "it is fresh");
        stock.take(seen(5, Extent::Part, at(1)), INTERVAL, at(1));
        assert_eq!(write_all(&mut stock), (2, 0));
    }

    #[test]
    fn looks_do_not_note_each_time_that_the_inventory_is_fresh() {
        let mut stock = stock();
        stock.take(own(3, Extent::Whole, at(0)), INTERVAL, at(0));
        write_all(&mut stock);
        stock.take(seen(3, Extent::Whole, at(30)), INTERVAL, at(30));
        assert!(!stock.has_news());
        write_all(&mut stock);
        assert!(stock.end_since(at(30).steady).is_some());
        stock.take(seen(3, Extent::Whole, at(61)), INTERVAL, at(61));
        assert!(stock.has_news());
    }

    #[test]
    fn a_list_that_fails_is_tried_again_later_and_later() {
        let mut stock = stock();
        let mut now = at(0);
        for wait in [30, 60, 120, 240, 480, 600, 600] {
            let began = now.steady;
            stock.failed(&error(Fault::Unavailable), began, INTERVAL, now);
            write_all(&mut stock);
            assert_eq!(stock.due_at().since(now.steady).as_secs(), wait);
            assert!(matches!(stock.end_since(began), Some(Some(_))));
            now = Now {
                steady: stock.due_at(),
                ..now
            };
        }
        stock.forgive();
        assert_eq!(stock.due_at(), Steady::default());
    }

    #[test]
    fn a_throttled_list_waits_as_long_as_the_cloud_says() {
        let mut stock = stock();
        let throttled = Fault::Throttled {
            retry_after: Some(Duration::from_secs(7_200)),
            limit: None,
        };
        stock.failed(&error(throttled), at(0).steady, INTERVAL, at(0));
        assert_eq!(stock.due_at(), at(7_200).steady);
        assert_eq!(stock.throttled_until(), at(7_200).steady);
    }

    #[test]
    fn a_server_that_was_gone_is_written_when_it_returns() {
        let mut stock = stock();
        stock.take(own(3, Extent::Whole, at(0)), INTERVAL, at(0));
        write_all(&mut stock);
        stock.take(own(2, Extent::Whole, at(1)), INTERVAL, at(1));
        assert!(stock.is_listed("SERVER-1") && !stock.is_listed("server-2"));
        stock.walked(GoneChunk {
            gone: vec!["server-2".to_owned()],
            next: None,
        });
        write_all(&mut stock);
        stock.take(own(3, Extent::Whole, at(2)), INTERVAL, at(2));
        assert_eq!(write_all(&mut stock), (1, 0));
    }
}
