//! The whole simulated cloud as a value: every call takes the time as an argument and returns its
//! answer. No clock, no sockets, no tasks, so a simulation under virtual time can call it in
//! process.
//!
//! Each call goes through the same steps: count it, draw its latency, take a place in its rate
//! window, draw its faults, carry it out, spoil the answer, keep a record.

use std::collections::BTreeMap;
use std::time::Duration;

use super::answer::Answer;
use super::auth::Auth;
use super::bms::{self, Bms, ListQuery};
use super::call_context::{About, CallContext, Chances};
use super::clouddc::{self, CloudDc, PageQuery};
use super::faults::{FaultKind, FaultPlan};
use super::late::LateAct;
use super::rates::RateWindow;
use super::record::{Call, CallRecord, LedgerEntry, ServerSummary};
use super::scenario::Scenario;
use super::scenario::clouddc::ThrottleBody;
use super::strike::{self, Instead};
use crate::model::{JobId, PowerAction, ServerId, Service, UtcMillis};

/// The simulated cloud.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) scenario: Scenario,
    pub(super) auth: Auth,
    chances: Chances,
    faults: FaultPlan,
    /// Each service has its own windows and counts; `None` is the identity service.
    windows: BTreeMap<(Option<Service>, Call), RateWindow>,
    counts: BTreeMap<(Option<Service>, Call), u64>,
    calls: Vec<CallRecord>,
    ledger: Vec<LedgerEntry>,
    /// What will begin later, whatever was said of it.
    late: Vec<LateAct>,
    /// What has begun in that way, or would have if its server had taken it.
    acted_late: Vec<LateAct>,
    bms: Bms,
    clouddc: CloudDc,
}

impl World {
    /// A fresh cloud.
    pub fn new(scenario: Scenario) -> Self {
        let faults = FaultPlan::new(&scenario.faults, |service| scenario.server_ids(service));
        let bms = Bms::new(&scenario, &faults);
        let clouddc = CloudDc::new(&scenario, &faults);
        Self {
            auth: Auth::new(
                scenario.credentials.clone(),
                Duration::from_secs(scenario.token_lifetime_s),
            ),
            chances: Chances::new(scenario.seed),
            faults,
            windows: BTreeMap::new(),
            counts: BTreeMap::new(),
            calls: Vec::new(),
            ledger: Vec::new(),
            late: Vec::new(),
            acted_late: Vec::new(),
            bms,
            clouddc,
            scenario,
        }
    }

    /// Start, stop or reboot of `ids`: the BMS action call, past authentication.
    pub fn submit(&mut self, now: UtcMillis, action: PowerAction, ids: &[ServerId]) -> Answer {
        self.handle_call(
            now,
            About::submit(Service::Bms, action, ids),
            |world, context| {
                let Self {
                    bms,
                    faults,
                    chances,
                    ledger,
                    late,
                    ..
                } = world;
                bms.submit(
                    action,
                    ids,
                    context.surroundings(faults, &mut chances.others, ledger, late),
                )
            },
        )
    }

    /// The BMS action call with a body that is still to be read.
    pub(super) fn submit_body(&mut self, now: UtcMillis, body: &[u8]) -> Answer {
        match bms::read_action(body) {
            Ok((action, ids)) => self.submit(now, action, &ids),
            Err(refusal) => {
                let about = About::read(Some(Service::Bms), Call::Submit, &[]);
                self.handle_call(now, about, |_, _| refusal.answer())
            }
        }
    }

    /// The BMS job query, past authentication.
    pub fn job(&mut self, now: UtcMillis, id: &JobId) -> Answer {
        let job = self.bms.job_number(&id.0);
        let about = About {
            job,
            ..About::read(Some(Service::Bms), Call::Job, &[])
        };
        self.handle_call(now, about, |world, _| world.bms.job(now, &id.0))
    }

    /// One page of the BMS list, past authentication.
    pub fn list(&mut self, now: UtcMillis, query: &ListQuery) -> Answer {
        let about = About {
            page: Some(query.page()),
            ..About::read(Some(Service::Bms), Call::List, &[])
        };
        self.handle_call(now, about, |world, _| world.bms.list(now, query))
    }

    /// One BMS server, past authentication.
    pub fn show(&mut self, now: UtcMillis, id: &ServerId) -> Answer {
        let about = About::read(Some(Service::Bms), Call::Show, std::slice::from_ref(id));
        self.handle_call(now, about, |world, _| world.bms.show(now, id))
    }

    /// Power on, power off or reboot of `ids`: the CloudDC power call, past authentication.
    pub fn power_state(&mut self, now: UtcMillis, action: PowerAction, ids: &[ServerId]) -> Answer {
        self.handle_call(
            now,
            About::submit(Service::CloudDc, action, ids),
            |world, context| {
                let Self {
                    clouddc,
                    faults,
                    chances,
                    ledger,
                    late,
                    ..
                } = world;
                clouddc.power_state(
                    action,
                    ids,
                    context.surroundings(faults, &mut chances.clouddc, ledger, late),
                )
            },
        )
    }

    /// The CloudDC power call with a body that is still to be read.
    pub(super) fn power_state_body(&mut self, now: UtcMillis, body: &[u8]) -> Answer {
        match clouddc::read_action(body) {
            Some((action, ids)) => self.power_state(now, action, &ids),
            None => {
                let about = About::read(Some(Service::CloudDc), Call::Submit, &[]);
                self.handle_call(now, about, |_, _| clouddc::invalid())
            }
        }
    }

    /// One page of the CloudDC list, past authentication.
    pub fn clouddc_list(&mut self, now: UtcMillis, query: &PageQuery) -> Answer {
        let page = Some(self.clouddc.page(query));
        let about = About {
            page,
            ..About::read(Some(Service::CloudDc), Call::List, &[])
        };
        self.handle_call(now, about, |world, _| world.clouddc.list(now, query))
    }

    /// How many CloudDC servers are on and off, past authentication; counts as a list call.
    pub fn clouddc_status(&mut self, now: UtcMillis) -> Answer {
        let about = About::read(Some(Service::CloudDc), Call::List, &[]);
        self.handle_call(now, about, |world, _| world.clouddc.status(now))
    }

    /// One CloudDC server, past authentication.
    pub fn clouddc_show(&mut self, now: UtcMillis, id: &ServerId) -> Answer {
        let about = About::read(Some(Service::CloudDc), Call::Show, std::slice::from_ref(id));
        self.handle_call(now, about, |world, _| world.clouddc.show(now, id))
    }

    /// Starts the operations that are due by `now`. Every call does so first; called alone, it
    /// keeps the ledger up to date.
    pub fn act_late(&mut self, now: UtcMillis) {
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|a| a.at <= now);
        self.late = later;
        due.sort_by_key(|act| act.at);
        for act in &due {
            match act.service {
                Service::Bms => self.bms.act_late(act, &mut self.ledger),
                Service::CloudDc => self.clouddc.act_late(act, &mut self.ledger),
            }
        }
        self.acted_late.extend(due);
    }

    /// What will begin later, whatever was said of it.
    pub fn late_acts(&self) -> &[LateAct] {
        &self.late
    }

    /// What has begun although it had been denied, or would have if its server had taken it; in
    /// order.
    pub fn acted_late(&self) -> &[LateAct] {
        &self.acted_late
    }

    /// How often too many bad signatures in a row have locked the access key.
    pub fn key_locks(&self) -> u64 {
        self.auth.locks
    }

    /// Every power operation really carried out, in order.
    pub fn ledger(&self) -> &[LedgerEntry] {
        &self.ledger
    }

    /// The servers that exist, as they are at `now`; those of BMS first.
    pub fn servers(&mut self, now: UtcMillis) -> Vec<ServerSummary> {
        self.act_late(now);
        let mut summaries = self.bms.summaries(now);
        summaries.extend(self.clouddc.summaries(now));
        summaries
    }

    /// The ids of all servers of `service`, in the order of its list; also of those that a fault
    /// makes missing.
    pub fn server_ids(&self, service: Service) -> Vec<ServerId> {
        self.scenario.server_ids(service)
    }

    /// Gives a server another name: any text, since somebody may have chosen it.
    pub fn rename(&mut self, id: &ServerId, name: &str) {
        self.bms.rename(id, name);
        self.clouddc.rename(id, name);
    }

    /// Has a server vanish or return.
    pub fn set_missing(&mut self, id: &ServerId, is_missing: bool) {
        self.bms.set_missing(id, is_missing);
        self.clouddc.set_missing(id, is_missing);
    }

    /// Every call that arrived, in order.
    pub fn calls(&self) -> &[CallRecord] {
        &self.calls
    }

    /// Takes a call through all steps; `work` carries it out.
    pub(super) fn handle_call(
        &mut self,
        now: UtcMillis,
        about: About<'_>,
        work: impl FnOnce(&mut Self, &CallContext<'_>) -> Answer,
    ) -> Answer {
        self.act_late(now);
        let rng = self.chances.of(about.service);
        let request_id = rng.hex32();
        let kind = (about.service, about.call);
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        let nth = *count;
        let latency_ms = self.scenario.latency.of(about.call).draw_ms(rng);
        let rates = self.scenario.rates;
        let limit = rates.of(about.call);
        let throttle_body = self.throttle_body(about.service);
        let instead = Instead {
            service: about.service,
            now,
            request_id: &request_id,
            limit,
            throttle_body,
        };
        let window = self.windows.entry(kind).or_default();
        if !window.take(now, limit, rates.refused_calls_count) {
            let retry_after_s = Some(rates.retry_after_s).filter(|&seconds| seconds > 0);
            return self.finish(
                now,
                about,
                instead.throttled(retry_after_s, false),
                request_id,
                latency_ms,
            );
        }
        let struck = self
            .faults
            .strike_call(about, nth, self.chances.of(about.service));
        let context = CallContext {
            now,
            nth,
            struck: &struck,
            request_id: &request_id,
        };
        let refused = instead.before(&struck);
        let answer = match refused {
            Some(answer) => {
                if strike::may_reach_service(&answer) {
                    self.promise(&about, &context);
                }
                answer
            }
            None => {
                let answer = work(self, &context);
                if !answer.is_success() {
                    self.promise(&about, &context);
                }
                strike::after(answer, &struck, &request_id)
            }
        };
        self.act_late(now);
        self.finish(
            now,
            about,
            answer,
            request_id,
            latency_ms.saturating_add(strike::slowed_ms(&struck)),
        )
    }

    /// A submit that was not accepted is carried out anyway if a fault says so.
    fn promise(&mut self, about: &About<'_>, context: &CallContext<'_>) {
        let (Some(service), Some(action)) = (about.service, about.action) else {
            return;
        };
        for kind in context.struck {
            let FaultKind::ActsAnyway { every, delay_ms } = kind else {
                continue;
            };
            for server_id in about.servers.iter().step_by((*every).max(1)) {
                let duration_ms = match service {
                    Service::Bms => self.bms.draw_operation_ms(&mut self.chances.others),
                    Service::CloudDc => self.clouddc.draw_operation_ms(&mut self.chances.clouddc),
                };
                self.late.push(LateAct {
                    at: context.now + Duration::from_millis(*delay_ms),
                    service,
                    server_id: server_id.clone(),
                    action,
                    batch: JobId(context.request_id.to_owned()),
                    duration_ms,
                });
            }
        }
    }

    fn throttle_body(&self, service: Option<Service>) -> ThrottleBody {
        match service {
            Some(Service::CloudDc) => self.scenario.clouddc.throttle_body,
            Some(Service::Bms) | None => ThrottleBody::Gateway,
        }
    }

    /// Answers a call that may not come in; it is kept in the records, but draws no faults.
    pub(super) fn reject_call(
        &mut self,
        now: UtcMillis,
        service: Service,
        call: Call,
        refuse: impl FnOnce(&str) -> Answer,
    ) -> Answer {
        let about = About::read(Some(service), call, &[]);
        let request_id = self.chances.of(about.service).hex32();
        let refusal = refuse(&request_id);
        self.finish(now, about, refusal, request_id, 0)
    }

    /// A request id for an answer outside the counted calls.
    pub(super) fn request_id(&mut self) -> String {
        self.chances.others.hex32()
    }

    /// Random text for a token.
    pub(super) fn token_text(&mut self) -> String {
        (0..8).fold(String::from("MII"), |text, _| {
            text + &self.chances.others.hex32()
        })
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
            service: about.service,
            call: about.call,
            action: about.action,
            servers: about.servers.len(),
            status: answer.status,
            bytes: answer.body.len(),
            delivery: answer.delivery,
        });
        Answer {
            request_id,
            delay: Duration::from_millis(delay_ms),
            ..answer
        }
    }
}

#[cfg(test)]
mod tests;
