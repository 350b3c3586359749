//! Orders with waves: their requests are read, their waves opened, and what holds the next one is
//! said. A chunk a round. When a wave leaves is decided in `plan::waves`.
//!
//! In memory is only what the gate has said, and where the reading is; after a restart the gate is
//! simply asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use tracing::{info, warn};

use super::task::{GateCall, GateSaid, Round};
use crate::model::{HoldKind, Now, OrderId, OrderNews, OrderState, Steady, UtcMillis};
use crate::plan::waves::{self, Gate, Next, Wait};
use crate::settings::WavesSettings;
use crate::store::{KnownOrder, NewWave, Snapshot, Store, StoreError};

/// Orders whose news are stored in one round.
const NEWS_MAX: usize = 10;
/// The steady clock and the time of day may differ by so much about when a wait is over.
const TICK: Duration = Duration::from_millis(1);
/// Between two walks through the orders that are done.
const DONE_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Orders {
    settings: WavesSettings,
    /// The queue as it was at the last look; none: look at once.
    looked_at: Option<(i64, i64)>,
    /// Look again at this time, whatever the queue says.
    again_at: Option<UtcMillis>,
    /// The order that was served last: those behind it come first.
    served: OrderId,
    /// The orders of the last look, but for those that are done since.
    known: BTreeSet<OrderId>,
    /// How often orders have vanished from the queue.
    vanished: u64,
    done: DoneWalk,
    talks: BTreeMap<OrderId, Talk>,
}

/// A walk through the orders that are done, for those that have got more requests.
#[derive(Default)]
struct DoneWalk {
    /// The queue as it was when the last walk began; none: there was none.
    begun_at: Option<(i64, i64)>,
    /// Behind the last order that was looked at; none: no walk is on.
    after: Option<OrderId>,
    /// No walk begins before this.
    not_before: Steady,
}

/// What the gate was asked about, and what it said.
struct Talk {
    wave: u64,
    /// What it said when it did not let the wave go.
    refusal: Option<String>,
    /// When it answered, and whether that was yes; none: it is being asked.
    answer: Option<(Now, bool)>,
}

impl Orders {
    pub(super) fn new(settings: WavesSettings) -> Self {
        Self {
            settings,
            looked_at: None,
            again_at: None,
            served: OrderId(0),
            known: BTreeSet::new(),
            vanished: 0,
            done: DoneWalk::default(),
            talks: BTreeMap::new(),
        }
    }

    /// Another gate is asked from now on.
    pub(super) fn apply(&mut self, settings: &WavesSettings) {
        if self.settings != *settings {
            self.settings = settings.clone();
            self.talks.clear();
            self.looked_at = None;
        }
    }

    /// How often orders have vanished from the queue: what they held is let out then.
    pub(super) fn vanished(&self) -> u64 {
        self.vanished
    }

    /// The clock was moved by this many milliseconds.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        self.again_at = self.again_at.map(|at| at.moved(by_ms));
        self.looked_at = None;
    }

    /// The gate has answered.
    pub(super) fn gate_said(&mut self, said: GateSaid, now: Now) {
        let GateSaid {
            order,
            wave,
            answer,
        } = said;
        let Some(talk) = self.talks.get_mut(&order) else {
            return;
        };
        if talk.wave != wave || talk.answer.is_some() {
            return;
        }
        talk.answer = Some((now, answer.is_ok()));
        if let Err(line) = answer {
            if talk.refusal.as_ref() != Some(&line) {
                info!(
                    wave,
                    "the gate of [waves] does not let the wave after {wave} go yet: {line}"
                );
            }
            talk.refusal = Some(line);
        }
        self.looked_at = None;
    }

    /// What is due for orders: a chunk of one of them, and the news of some.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn pass(
        &mut self,
        store: &Store,
        seen: &Snapshot,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        if seen.order_count == 0 && self.known.is_empty() {
            return Ok(());
        }
        self.look_at_done(store, seen, round).await?;
        let now = round.now;
        let is_due = self.again_at.is_some_and(|at| at <= now.utc);
        if self.looked_at == Some(seen.change_mark) && !is_due {
            if let Some(at) = self.again_at {
                round.wake(at);
            }
            return Ok(());
        }
        // Only a look that comes to its end is not made again.
        self.looked_at = None;
        let mut orders = store.open_orders(seen, now.utc).await?;
        self.again_at = None;
        self.notice_vanished(&orders);
        let served = self.served;
        orders.sort_by_key(|known| (known.id <= served, known.id));
        let mut news_left = NEWS_MAX;
        let mut is_over = true;
        for known in &orders {
            if news_left == 0 {
                is_over = false;
                break;
            }
            let did = self.serve(store, seen, known, round).await?;
            match did {
                Did::Nothing => {}
                Did::News => {
                    self.served = known.id;
                    news_left -= 1;
                }
                Did::Chunk => {
                    self.served = known.id;
                    is_over = false;
                    break;
                }
            }
        }
        if is_over {
            self.looked_at = Some(seen.change_mark);
        } else {
            round.wake_now();
        }
        if let Some(at) = self.again_at {
            round.wake(at);
        }
        Ok(())
    }

    fn look_again_at(&mut self, at: UtcMillis) {
        self.again_at = Some(self.again_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn look_again_now(&mut self, round: &mut Round) {
        self.looked_at = None;
        round.wake_now();
    }

    fn notice_vanished(&mut self, orders: &[KnownOrder]) {
        let present: BTreeSet<OrderId> = orders.iter().map(|known| known.id).collect();
        if self.known.difference(&present).next().is_some() {
            self.vanished += 1;
        }
        self.talks.retain(|id, _| present.contains(id));
        self.known = present;
    }

    /// Orders that were done are opened again if they have got requests.
    async fn look_at_done(
        &mut self,
        store: &Store,
        seen: &Snapshot,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = round.now;
        if self.done.after.is_none() {
            if self.done.begun_at == Some(seen.change_mark) {
                return Ok(());
            }
            let pause = self.done.not_before.since(now.steady);
            if !pause.is_zero() {
                round.wake(now.utc + pause);
                return Ok(());
            }
            self.done.begun_at = Some(seen.change_mark);
            self.done.not_before = Steady(now.steady.0 + DONE_PAUSE);
            self.done.after = Some(OrderId(0));
        }
        let Some(after) = self.done.after else {
            return Ok(());
        };
        let (joined, last) = store.joined_orders(after, seen).await?;
        for order in joined {
            store.read_order(order, seen, now.utc).await?;
            self.look_again_now(round);
        }
        self.done.after = last;
        if last.is_some() {
            round.wake_now();
        }
        Ok(())
    }

    async fn serve(
        &mut self,
        store: &Store,
        seen: &Snapshot,
        known: &KnownOrder,
        round: &mut Round,
    ) -> Result<Did, StoreError> {
        if known.is_unread {
            store.read_order(known.id, seen, round.now.utc).await?;
            return Ok(Did::Chunk);
        }
        let now = round.now;
        if known.order.is_on_its_way {
            // Whatever the gate has said, it did not know how this ends.
            self.talks.remove(&known.id);
        }
        let gate = self.gate(known, now);
        if let Gate::No(_, again_at) = gate {
            self.look_again_at(again_at.max(now.utc + TICK));
        }
        match waves::next(&known.order, &gate, now.utc) {
            Next::Done => {
                store.end_order(known.id, now.utc).await?;
                self.known.remove(&known.id);
                info!(order = %known.order.label, "order '{}' is done", known.order.label);
                Ok(Did::News)
            }
            Next::Take => {
                store.let_servers_go(known.id, None, now.utc).await?;
                Ok(Did::Chunk)
            }
            Next::Open { wave, size } => {
                self.open(store, known, NewWave { wave, size }, now).await?;
                Ok(Did::Chunk)
            }
            Next::Wait(wait) => self.wait(store, seen, known, &wait, round).await,
        }
    }

    async fn open(
        &mut self,
        store: &Store,
        known: &KnownOrder,
        new: NewWave,
        now: Now,
    ) -> Result<(), StoreError> {
        let label = &known.order.label;
        let taken = store.let_servers_go(known.id, Some(new), now.utc).await?;
        if taken > 0 {
            self.talks.remove(&known.id);
            info!(order = %label, wave = new.wave, servers = new.size, "wave {} of order '{label}' leaves: up to {} servers", new.wave, new.size);
        }
        Ok(())
    }

    async fn wait(
        &mut self,
        store: &Store,
        seen: &Snapshot,
        known: &KnownOrder,
        wait: &Wait,
        round: &mut Round,
    ) -> Result<Did, StoreError> {
        let now = round.now;
        let news = &wait.news;
        if let Some(at) = news.until {
            self.look_again_at(at.max(now.utc + TICK));
        }
        if wait.asks_gate {
            round.gates.push(self.ask_gate(known));
        }
        if is_stored(seen, known, news) {
            return Ok(Did::Nothing);
        }
        store.note_order(known.id, news, now.utc).await?;
        if news.state == OrderState::Held && known.order.state != OrderState::Held {
            let reason = news.reason.as_deref().unwrap_or_default();
            warn!(order = %known.order.label, wave = known.order.wave, "{reason}");
        }
        Ok(Did::News)
    }

    fn gate(&self, known: &KnownOrder, now: Now) -> Gate {
        if self.settings.gate.is_empty() {
            return Gate::Absent;
        }
        let talk = self.talks.get(&known.id);
        let Some(talk) = talk.filter(|talk| talk.wave == known.order.wave) else {
            return Gate::Unasked;
        };
        let Some((at, is_yes)) = talk.answer else {
            return Gate::Asked(talk.refusal.clone());
        };
        let age = now.steady.since(at.steady);
        let left = self.settings.gate_interval.saturating_sub(age);
        match &talk.refusal {
            // What it said some time ago may no longer be true.
            _ if is_yes && left.is_zero() => Gate::Unasked,
            _ if is_yes => Gate::Yes,
            Some(line) => Gate::No(line.clone(), now.utc + left),
            None => Gate::Unasked,
        }
    }

    fn ask_gate(&mut self, known: &KnownOrder) -> GateCall {
        let wave = known.order.wave;
        let refusal = self.talks.remove(&known.id).and_then(|talk| talk.refusal);
        self.talks.insert(
            known.id,
            Talk {
                wave,
                refusal,
                answer: None,
            },
        );
        GateCall {
            order: known.id,
            wave,
            command: self.settings.gate.clone(),
            text: described(known),
            timeout: self.settings.gate_timeout,
        }
    }
}

/// What was done for an order.
enum Did {
    Nothing,
    /// A row of it was written.
    News,
    /// Many rows were.
    Chunk,
}

/// True if the queue says already what is to be stored.
fn is_stored(seen: &Snapshot, known: &KnownOrder, news: &OrderNews) -> bool {
    let order = &known.order;
    let hold = seen.holds.iter().find(|hold| {
        hold.kind == HoldKind::Wave && hold.label.as_deref() == Some(order.label.as_str())
    });
    let is_hold_stored = match (&news.reason, hold) {
        (None, None) => true,
        (Some(reason), Some(hold)) => hold.reason == *reason && hold.until == news.until,
        _ => false,
    };
    is_hold_stored && order.state == news.state && order.over_at == news.over_at
}

/// The order as the gate gets it.
fn described(known: &KnownOrder) -> String {
    let order = &known.order;
    json!({
        "label": order.label,
        "waves": order.waves,
        "failures_max": order.failures_max,
        "pause": order.pause,
        "created_at": known.created_at,
        "expires_at": known.expires_at,
        "servers": order.servers,
        "failed": order.failed,
        "wave": order.wave,
        "wave_servers": order.wave_taken,
        "wave_failed": order.failed_in_wave,
        "next_wave": order.wave + 1,
    })
    .to_string()
}
