//! The inventory: keeps the table `servers` from lists, those that are read for looks and its own,
//! and answers those who wish for a fresh one.
//!
//! It comes last: a list is read only where no other call of the target would have to wait for it,
//! and is written a chunk at a time. A target whose list cannot be read keeps its rows; its calls
//! and looks go on as before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::holds::Holds;
use super::target::keys::{self, RefusedKeys};
use super::target::{Target, Targets};
use super::task::Round;
use crate::cloud::LIST_PAGES_MAX;
use crate::model::{CallError, Extent, HoldKind, Listing, Now, Steady, TargetName, UtcMillis};
use crate::store::{InventorySync, Snapshot, Store, StoreError};
use stock::{Arrival, Stock, Write};

mod stock;

/// Between two chunks that are written: producers get their turn.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);
/// A wish for a fresh inventory waits this long for the cloud; then it is told why it cannot be had.
const HELD_PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Inventory {
    store: Arc<Store>,
    stocks: BTreeMap<TargetName, Stock>,
    /// Wishes for a fresh one, each with the time at which it was first seen.
    wishes: BTreeMap<i64, Steady>,
    /// No chunk is written before this.
    chunk_after: Steady,
}

/// The pass of one round.
pub(super) struct InventoryPass<'a> {
    pub(super) inventory: &'a mut Inventory,
    pub(super) targets: &'a mut Targets,
    pub(super) holds: &'a Holds,
    pub(super) keys: &'a RefusedKeys,
    pub(super) seen: &'a Snapshot,
    pub(super) round: &'a mut Round,
    /// A submit call leaves at the end of this round.
    pub(super) is_claiming: bool,
}

/// Why a target is not asked for its list at this moment.
struct Refrain {
    until: UtcMillis,
    reason: String,
}

impl Inventory {
    /// Knows nothing yet.
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            stocks: BTreeMap::new(),
            wishes: BTreeMap::new(),
            chunk_after: Steady::default(),
        }
    }

    /// New settings are in force. What failed is tried again at once if somebody asked for them.
    pub(super) fn apply(&mut self, targets: &Targets, is_asked_for: bool) {
        self.stocks.retain(|name, _| targets.contains_key(name));
        if is_asked_for {
            self.stocks.values_mut().for_each(Stock::forgive);
        }
    }

    /// A look has read the list, or a part of it. `began`: when, if that is known.
    pub(super) fn take_in(
        &mut self,
        target: &Target,
        listing: Option<Listing>,
        began: Option<Steady>,
        now: Now,
    ) {
        let stock = self.stocks.get_mut(target.name());
        if let (Some(stock), Some(listing)) = (stock, listing) {
            let arrival = Arrival {
                listing,
                began,
                is_own: false,
            };
            stock.take(arrival, target.inventory_interval(), now);
        }
    }

    /// The list of this target was asked for, at `began`.
    pub(super) fn list_ended(
        &mut self,
        target: &Target,
        answer: Result<Listing, CallError>,
        began: Steady,
        now: Now,
    ) {
        let name = target.name();
        let interval = target.inventory_interval();
        let Some(stock) = self.stocks.get_mut(name) else {
            return;
        };
        let had_failed = stock.has_failed();
        let trouble = what_failed(&answer).cloned();
        let count = answer.as_ref().map_or(0, |listing| listing.servers.len());
        match answer {
            Ok(listing) => {
                let arrival = Arrival {
                    listing,
                    began: Some(began),
                    is_own: true,
                };
                stock.take(arrival, interval, now);
            }
            Err(error) => stock.failed(&error, began, interval, now),
        }
        match trouble {
            Some(error) if !had_failed => {
                let age = stock
                    .read_at()
                    .map(|at| format!("; what is known of them is from {at}"))
                    .unwrap_or_default();
                warn!(target = %name, "the list of servers of target \"{name}\" cannot be read: {error}{age}");
            }
            None if had_failed && !stock.has_failed() => {
                info!(target = %name, "the list of servers of target \"{name}\" can be read again: {count} servers");
            }
            _ => {}
        }
    }
}

/// What ended the reading of a list early.
pub(super) fn what_failed(answer: &Result<Listing, CallError>) -> Option<&CallError> {
    match answer {
        Ok(Listing {
            extent: Extent::CutShort(error),
            ..
        }) => Some(error),
        Err(error) => Some(error),
        Ok(_) => None,
    }
}

impl InventoryPass<'_> {
    /// Writes one chunk, begins to read the lists that are due, and answers wishes.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        self.know_targets().await?;
        self.write().await?;
        let wanted = self.answer_wishes().await?;
        let names: Vec<TargetName> = self.targets.keys().cloned().collect();
        for name in names {
            self.read_if_due(&name, wanted.contains(&name));
        }
        Ok(())
    }

    async fn know_targets(&mut self) -> Result<(), StoreError> {
        for (name, target) in self.targets.iter() {
            let stock = self.inventory.stocks.get(name);
            if stock.is_some_and(|stock| stock.is_of(target.origin())) {
                continue;
            }
            let note = self.inventory.store.inventory_of(name).await?;
            let stock = Stock::new(target.origin().clone(), note);
            self.inventory.stocks.insert(name.clone(), stock);
        }
        Ok(())
    }

    /// One chunk of the first target that has something to write.
    async fn write(&mut self) -> Result<(), StoreError> {
        let now = self.round.now;
        let inventory = &mut *self.inventory;
        inventory
            .stocks
            .values_mut()
            .for_each(Stock::end_if_written);
        let mut stocks = inventory.stocks.iter_mut();
        let Some((name, stock)) = stocks.find(|(_, stock)| stock.has_to_write()) else {
            return Ok(());
        };
        let pause = inventory.chunk_after.since(now.steady);
        if !pause.is_zero() {
            self.round.wake(now.utc + pause);
            return Ok(());
        }
        write_chunk(&inventory.store, name, stock).await?;
        inventory.chunk_after = Steady(now.steady.0 + CHUNK_PAUSE);
        self.round.wake(now.utc + CHUNK_PAUSE);
        Ok(())
    }

    /// Ends the wishes that have come true or cannot, and returns whose lists the others want.
    async fn answer_wishes(&mut self) -> Result<BTreeSet<TargetName>, StoreError> {
        let now = self.round.now;
        let open: BTreeSet<i64> = self.seen.syncs.iter().map(|sync| sync.id).collect();
        self.inventory.wishes.retain(|id, _| open.contains(id));
        let mut wanted = BTreeSet::new();
        for sync in &self.seen.syncs {
            let wishes = &mut self.inventory.wishes;
            let since = *wishes.entry(sync.id).or_insert(now.steady);
            let mut errors = Vec::new();
            let mut is_open = false;
            for name in self.wished_for(sync) {
                match self.answer_of(&name, since) {
                    Answer::Read => {}
                    Answer::Failed(reason) => errors.push(format!("target {name}: {reason}")),
                    Answer::Coming => is_open = true,
                    Answer::Wanted => {
                        is_open = true;
                        wanted.insert(name);
                    }
                }
            }
            if !is_open {
                let error = (!errors.is_empty()).then(|| errors.join("; "));
                let store = &self.inventory.store;
                store.end_sync(sync.id, error.as_deref(), now.utc).await?;
            }
        }
        Ok(wanted)
    }

    fn wished_for(&self, sync: &InventorySync) -> Vec<TargetName> {
        match &sync.target {
            Some(name) => vec![name.clone()],
            None => self.targets.keys().cloned().collect(),
        }
    }

    fn answer_of(&self, name: &TargetName, since: Steady) -> Answer {
        let (Some(stock), Some(target)) = (self.inventory.stocks.get(name), self.targets.get(name))
        else {
            return Answer::Failed("it is not in the config".to_owned());
        };
        match stock.end_since(since) {
            Some(None) => return Answer::Read,
            Some(Some(error)) => return Answer::Failed(error.to_owned()),
            None if stock.is_ending_since(since) => return Answer::Coming,
            None => {}
        }
        match self.refrain(target, stock) {
            Some(refrain) if refrain.until > self.round.now.utc + HELD_PATIENCE => {
                Answer::Failed(format!(
                    "it is not asked until {}: {}",
                    refrain.until, refrain.reason
                ))
            }
            _ => Answer::Wanted,
        }
    }

    /// Until when the list is not asked for, and why.
    fn refrain(&self, target: &Target, stock: &Stock) -> Option<Refrain> {
        let now = self.round.now;
        let name = target.name();
        let own = stock.throttled_until().since(now.steady);
        let own = (!own.is_zero()).then(|| now.utc + own);
        let throttled = own.max(target.read_wait(now.utc)).map(|until| Refrain {
            until,
            reason: "the cloud throttles reads".to_owned(),
        });
        if self.keys.may_read_while_held(name, self.targets, now.utc) {
            return throttled;
        }
        let Some(until) = self.holds.credentials_until(name, now.utc) else {
            return throttled;
        };
        let of_key =
            self.holds.present().iter().find(|hold| {
                hold.kind == HoldKind::Credentials && hold.target.as_ref() == Some(name)
            });
        Some(Refrain {
            until,
            reason: of_key.map(|hold| hold.reason.clone()).unwrap_or_default(),
        })
    }

    fn read_if_due(&mut self, name: &TargetName, is_wanted: bool) {
        let now = self.round.now;
        let (Some(stock), Some(target)) = (self.inventory.stocks.get(name), self.targets.get(name))
        else {
            return;
        };
        let is_on = target.inventory_interval().is_some();
        if !is_wanted && (!is_on || stock.due_at() > now.steady) {
            if is_on {
                self.round.wake(now.utc + stock.due_at().since(now.steady));
            }
            return;
        }
        if let Some(refrain) = self.refrain(target, stock) {
            self.round.wake(refrain.until);
            return;
        }
        let is_first_in_line = target.is_key_accepted() || !self.is_claiming;
        // The end of what it waits for is followed by a round.
        if target.is_reading_servers()
            || !is_first_in_line
            || !keys::may_list(self.targets, name, now.steady)
        {
            return;
        }
        // Calls wait while the first one shows whether the key is accepted: it has to be short.
        let pages_max = if target.is_key_accepted() {
            LIST_PAGES_MAX
        } else {
            1
        };
        if let Some(target) = self.targets.get_mut(name) {
            self.round.tasks.push(target.list(pages_max, now));
        }
    }
}

/// What became of a wish at one target.
enum Answer {
    /// Its list was read.
    Read,
    /// It cannot be read.
    Failed(String),
    /// It was read, and is being written.
    Coming,
    /// It has to be read.
    Wanted,
}

async fn write_chunk(
    store: &Store,
    name: &TargetName,
    stock: &mut Stock,
) -> Result<(), StoreError> {
    match stock.next_write() {
        Write::Nothing => {}
        Write::Servers(servers, at) => {
            store.note_servers(name, servers, at).await?;
            stock.servers_written();
        }
        Write::Gone { after, at } => {
            let is_listed = |server: &str| stock.is_listed(server);
            let chunk = store.mark_gone(name, after, at, is_listed).await?;
            for server in &chunk.gone {
                info!(target = %name, server.id = %server, "server {server} of target \"{name}\" is no longer in the list");
            }
            stock.walked(chunk);
        }
        Write::Note(note) => {
            store.note_inventory(name, note).await?;
            stock.noted();
        }
    }
    Ok(())
}
