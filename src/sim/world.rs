//! The whole simulated cloud as a value: every call takes the time as an argument and returns its answer.
//! No clock, no sockets, no tasks, so a simulation under virtual time can call it in process.
//!
//! Each call goes through the same steps: count it, draw its latency, take a place in its rate window, draw its faults,
//! carry it out, spoil the answer, keep a record.

use std::collections::BTreeMap;
use std::time::Duration;

use super::answer::Answer;
use super::bms::{self, Bms, ListQuery, Surroundings};
use super::faults::{FaultKind, FaultPlan};
use super::gate::Gate;
use super::rates::RateWindow;
use super::record::{Call, CallRecord, LedgerEntry, ServerSummary};
use super::rng::Rng;
use super::scenario::Scenario;
use super::strike;
use crate::model::{JobId, PowerAction, ServerId, UtcMillis};

/// The simulated cloud.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) scenario: Scenario,
    pub(super) gate: Gate,
    rng: Rng,
    faults: FaultPlan,
    windows: BTreeMap<Call, RateWindow>,
    counts: BTreeMap<Call, u64>,
    calls: Vec<CallRecord>,
    ledger: Vec<LedgerEntry>,
    bms: Bms,
}

/// What a call is about, for its record and its faults.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) call: Call,
    pub(super) action: Option<PowerAction>,
    pub(super) servers: &'a [ServerId],
}

/// What a call's work is told: its number among those of its kind, and the faults that struck it.
pub(super) struct Turn<'a> {
    pub(super) nth: u64,
    pub(super) struck: &'a [FaultKind],
}

impl World {
    /// A fresh cloud.
    pub fn new(scenario: Scenario) -> Self {
        let faults = FaultPlan::new(&scenario.faults, &scenario.server_ids());
        let bms = Bms::new(&scenario, &faults);
        Self {
            gate: Gate::new(scenario.credentials.clone(), Duration::from_secs(scenario.token_lifetime_s)),
            rng: Rng::new(scenario.seed, "calls"),
            faults,
            windows: BTreeMap::new(),
            counts: BTreeMap::new(),
            calls: Vec::new(),
            ledger: Vec::new(),
            bms,
            scenario,
        }
    }

    /// Start, stop or reboot of `ids`: the BMS action call, past authentication.
    pub fn submit(&mut self, now: UtcMillis, action: PowerAction, ids: &[ServerId]) -> Answer {
        let about = About { call: Call::Submit, action: Some(action), servers: ids };
        self.take_turn(now, about, |world, turn| {
            let Self { bms, faults, rng, ledger, .. } = world;
            bms.submit(action, ids, Surroundings { now, nth: turn.nth, faults, struck: turn.struck, rng, ledger })
        })
    }

    /// The BMS action call with a body that is still to be read.
    pub(super) fn submit_body(&mut self, now: UtcMillis, body: &[u8]) -> Answer {
        match bms::read_action(body) {
            Ok((action, ids)) => self.submit(now, action, &ids),
            Err(refusal) => {
                let about = About { call: Call::Submit, action: None, servers: &[] };
                self.take_turn(now, about, |_, _| refusal.answer())
            }
        }
    }

    /// The BMS job query, past authentication.
    pub fn job(&mut self, now: UtcMillis, id: &JobId) -> Answer {
        let about = About { call: Call::Job, action: None, servers: &[] };
        self.take_turn(now, about, |world, _| world.bms.job(now, &id.0))
    }

    /// One page of the BMS list, past authentication.
    pub fn list(&mut self, now: UtcMillis, query: &ListQuery) -> Answer {
        let about = About { call: Call::List, action: None, servers: &[] };
        self.take_turn(now, about, |world, _| world.bms.list(now, query))
    }

    /// One BMS server, past authentication.
    pub fn show(&mut self, now: UtcMillis, id: &ServerId) -> Answer {
        let about = About { call: Call::Show, action: None, servers: std::slice::from_ref(id) };
        self.take_turn(now, about, |world, _| world.bms.show(now, id))
    }

    /// Every power operation really carried out, in order.
    pub fn ledger(&self) -> &[LedgerEntry] {
        &self.ledger
    }

    /// The servers that exist, as they are at `now`.
    pub fn servers(&mut self, now: UtcMillis) -> Vec<ServerSummary> {
        self.bms.summaries(now)
    }

    /// The ids of all BMS servers of the scenario, in the order of the list; also of those that a fault makes missing.
    pub fn server_ids(&self) -> Vec<ServerId> {
        self.scenario.server_ids()
    }

    /// Every call that arrived, in order.
    pub fn calls(&self) -> &[CallRecord] {
        &self.calls
    }

    /// Takes a call through all steps; `work` carries it out.
    pub(super) fn take_turn(
        &mut self,
        now: UtcMillis,
        about: About<'_>,
        work: impl FnOnce(&mut Self, &Turn<'_>) -> Answer,
    ) -> Answer {
        let request_id = self.rng.hex32();
        let count = self.counts.entry(about.call).or_default();
        *count += 1;
        let nth = *count;
        let latency_ms = self.scenario.latency.of(about.call).draw_ms(&mut self.rng);
        let rates = self.scenario.rates;
        let limit = rates.of(about.call);
        let window = self.windows.entry(about.call).or_default();
        if !window.take(now, limit, rates.refused_calls_count) {
            let retry_after_s = Some(rates.retry_after_s).filter(|&seconds| seconds > 0);
            return self.finish(
                now,
                about,
                strike::throttled(limit, retry_after_s, &request_id),
                request_id,
                latency_ms,
            );
        }
        let struck = self.faults.strike_call(about.call, nth, about.servers, &mut self.rng);
        let turn = Turn { nth, struck: &struck };
        let answer = match strike::before(&struck, limit, now, &request_id) {
            Some(instead) => instead,
            None => strike::after(work(self, &turn), &struck, &request_id),
        };
        self.finish(now, about, answer, request_id, latency_ms.saturating_add(strike::slowed_ms(&struck)))
    }

    /// Answers a call that may not come in; it is kept in the records, but draws no faults.
    pub(super) fn turn_away(&mut self, now: UtcMillis, call: Call, refuse: impl FnOnce(&str) -> Answer) -> Answer {
        let request_id = self.rng.hex32();
        let refusal = refuse(&request_id);
        self.finish(now, About { call, action: None, servers: &[] }, refusal, request_id, 0)
    }

    /// A request id for an answer outside the counted calls.
    pub(super) fn request_id(&mut self) -> String {
        self.rng.hex32()
    }

    /// Random text for a token.
    pub(super) fn token_text(&mut self) -> String {
        (0..8).fold(String::from("MII"), |text, _| text + &self.rng.hex32())
    }

    fn finish(
        &mut self,
        now: UtcMillis,
        about: About<'_>,
        answer: Answer,
        request_id: String,
        delay_ms: u64,
    ) -> Answer {
        self.calls.push(CallRecord {
            at: now,
            call: about.call,
            action: about.action,
            servers: about.servers.len(),
            status: answer.status,
            bytes: answer.body.len(),
            delivery: answer.delivery,
        });
        Answer { request_id, delay: Duration::from_millis(delay_ms), ..answer }
    }
}

#[cfg(test)]
mod tests;
