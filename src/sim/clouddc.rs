//! The Cloud Data Center service: physical servers, their operations, and the four calls on them.
//! Time is an argument; nothing here waits. There are no jobs: what became of a call is in the
//! servers' `operation_state`.
//!
//! An operation enters the ledger when its call is accepted, since what has begun cannot be undone;
//! one that will fail is not in the ledger and leaves the power as it was. The power changes when
//! the operation ends.

mod action;
mod page;
mod print;
mod refusal;
mod server;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::Answer;
use super::call_context::{PageAsked, Surroundings};
use super::faults::{FaultKind, FaultPlan, Scope};
use super::late::LateAct;
use super::record::{LedgerEntry, OnOff, ServerSummary};
use super::rng::Rng;
use super::scenario::clouddc::{AnswerIds, FirstState, MissingShow, Refusals};
use super::scenario::{CloudDcScenario, Scenario, is_running_at_first};
use crate::model::{JobId, PowerAction, ServerId, Service, UtcMillis};

pub(super) use action::read as read_action;
use page::Markers;
pub use page::PageQuery;
use print::Printer;
use refusal::Reason;
pub(super) use refusal::{FAILED_CODE, FAILED_TEXT, INVALID_CODE, INVALID_TEXT, invalid};
use server::{Ended, Failure, Operation, Server};

/// The service's whole state.
#[derive(Debug, Clone)]
pub(super) struct CloudDc {
    settings: CloudDcScenario,
    printer: Printer,
    markers: Markers,
    servers: Vec<Server>,
    by_id: HashMap<ServerId, usize>,
}

impl CloudDc {
    /// Makes the servers; what they remember, and `missing` and `locked` faults, are drawn here,
    /// once.
    pub(super) fn new(scenario: &Scenario, faults: &FaultPlan) -> Self {
        let settings = &scenario.clouddc;
        let mut fault_rng = Rng::new(scenario.seed, "clouddc server faults");
        let mut state_rng = Rng::new(scenario.seed, "clouddc first states");
        let ids = scenario.server_ids(Service::CloudDc);
        let by_id = ids.iter().cloned().zip(0..).collect();
        let share = settings.running.0;
        let mut servers = Vec::with_capacity(ids.len());
        for (index, id) in ids.into_iter().enumerate() {
            let kinds =
                faults.strike_server(Scope::Server, Service::CloudDc, 0, &id, &mut fault_rng);
            let mut server = Server::new(id, index, is_running_at_first(index, share));
            server.is_missing = kinds.contains(&FaultKind::Missing);
            server.is_locked = kinds.contains(&FaultKind::Locked);
            server.last = state_rng
                .pick(&settings.first_states)
                .copied()
                .and_then(left_from_before);
            servers.push(server);
        }
        let project = &scenario.credentials.project_id;
        let printer = Printer::new(project, settings);
        let markers = Markers::new(project, settings);
        Self {
            settings: settings.clone(),
            printer,
            markers,
            servers,
            by_id,
        }
    }

    /// `PUT …/physicalservers/power-state`
    pub(super) fn power_state(
        &mut self,
        action: PowerAction,
        ids: &[ServerId],
        mut around: Surroundings<'_>,
    ) -> Answer {
        if !action::is_valid_set(ids) {
            return invalid();
        }
        let found: Vec<Result<usize, Reason>> = ids
            .iter()
            .map(|id| self.find(around.now, action, id))
            .collect();
        let refused = ids
            .iter()
            .zip(&found)
            .find_map(|(id, found)| Some((id, (*found).err()?)));
        if let (Refusals::Batch, Some((id, reason))) = (self.settings.refusals, refused) {
            return reason.answer(400, self.settings.refusal_names_server.then_some(id));
        }
        for &index in found.iter().flatten() {
            self.begin(action, index, &mut around);
        }
        let lists_all = self.settings.refusals == Refusals::Listed;
        let mut listed: Vec<Value> = Vec::with_capacity(ids.len());
        for (id, found) in ids.iter().zip(&found) {
            if lists_all || found.is_ok() {
                listed.push(json!({"id": self.answer_id(id)}));
            }
        }
        Answer::json(200, &json!({"physical_servers": listed}))
    }

    /// The index of the server, if it takes `action` at this moment.
    fn find(
        &mut self,
        now: UtcMillis,
        action: PowerAction,
        id: &ServerId,
    ) -> Result<usize, Reason> {
        let &index = self.by_id.get(id).ok_or(Reason::Missing)?;
        self.servers[index].settle(now);
        self.servers[index]
            .refusal(action, self.settings.already_so)
            .map_or(Ok(index), Err)
    }

    /// Begins one server's operation with the faults that strike it.
    fn begin(&mut self, action: PowerAction, index: usize, around: &mut Surroundings<'_>) {
        let later = |span_ms| around.now + Duration::from_millis(span_ms);
        let server = &mut self.servers[index];
        let kinds = around.faults.strike_server(
            Scope::Operation,
            Service::CloudDc,
            around.nth,
            &server.id,
            around.rng,
        );
        let end = Some(later(self.settings.operation_ms.draw_ms(around.rng)));
        let shows_from = later(self.settings.processing_after_ms.draw_ms(around.rng));
        let mut operation = Operation {
            action,
            shows_from,
            end,
            failure: None,
        };
        let mut acts_after = None;
        for kind in kinds {
            match kind {
                FaultKind::OperationFails {
                    code,
                    message,
                    acts_after_ms,
                } => {
                    operation.failure = Some(Failure { code, message });
                    acts_after = acts_after_ms;
                }
                FaultKind::OperationNeverEnds => operation.end = None,
                _ => {}
            }
        }
        if operation.failure.is_none() {
            let server_id = server.id.clone();
            let batch = JobId(around.request_id.to_owned());
            around.ledger.push(LedgerEntry {
                at: around.now,
                service: Service::CloudDc,
                server_id,
                action,
                batch,
            });
        }
        if let (Some(ms), Some(end)) = (acts_after, operation.end) {
            around.late.push(LateAct {
                at: end + Duration::from_millis(ms),
                service: Service::CloudDc,
                server_id: server.id.clone(),
                action,
                batch: JobId(around.request_id.to_owned()),
                duration_ms: u64::try_from(end.0 - around.now.0).unwrap_or(0),
            });
        }
        server.operation = Some(operation);
    }

    /// An operation that failed or was refused begins anyway, if the server accepts it at that
    /// time.
    pub(super) fn act_late(&mut self, act: &LateAct, ledger: &mut Vec<LedgerEntry>) {
        if let Ok(index) = self.find(act.at, act.action, &act.server_id) {
            let end = Some(act.at + Duration::from_millis(act.duration_ms));
            let operation = Operation {
                action: act.action,
                shows_from: act.at,
                end,
                failure: None,
            };
            self.servers[index].operation = Some(operation);
            ledger.push(act.entry());
        }
    }

    /// How long an operation will take, in ms.
    pub(super) fn draw_operation_ms(&self, rng: &mut Rng) -> u64 {
        self.settings.operation_ms.draw_ms(rng)
    }

    /// The page that a query asks for.
    pub(super) fn page(&self, query: &PageQuery) -> PageAsked {
        let begin = query
            .marker
            .as_ref()
            .and_then(|marker| self.by_id.get(marker))
            .map_or(0, |&index| index + 1);
        PageAsked {
            number: begin.div_ceil(query.size()) + 1,
            limit: query.size(),
        }
    }

    fn answer_id(&self, id: &ServerId) -> Value {
        match self.settings.answer_ids {
            AnswerIds::Plain => json!(id),
            AnswerIds::Template => json!({"$ref": "#/definitions/UUID"}),
        }
    }

    /// `GET …/physicalservers`
    pub(super) fn list(&mut self, now: UtcMillis, query: &PageQuery) -> Answer {
        let begin = match query.marker.as_ref().map(|marker| self.by_id.get(marker)) {
            None => 0,
            Some(Some(&index)) => index + 1,
            Some(None) => return invalid(),
        };
        let Self {
            printer, servers, ..
        } = self;
        let matches = |server: &Server| {
            let is_wanted = |word: &String| printer.manage_state(server) == word;
            !server.is_missing && query.manage_state.as_ref().is_none_or(is_wanted)
        };
        let count = servers.iter().filter(|server| matches(server)).count();
        let mut rest = servers[begin..].iter_mut().filter(|server| matches(server));
        let mut text = String::from(r#"{"servers":["#);
        let mut ids = Vec::new();
        for server in rest.by_ref().take(query.size()) {
            server.settle(now);
            text.push_str(if ids.is_empty() { "" } else { "," });
            printer.write(&mut text, server, now);
            ids.push(server.id.clone());
        }
        let page_info =
            self.markers
                .page_info(query, &ids, query.marker.is_none(), rest.next().is_none());
        text.push_str(&format!(
            r#"],"page_info":{},"count":{count}}}"#,
            json!(page_info)
        ));
        Answer::json_text(200, text)
    }

    /// `GET …/physicalservers/{id}`
    pub(super) fn show(&mut self, now: UtcMillis, id: &ServerId) -> Answer {
        let found = self.by_id.get(id).map(|&index| &mut self.servers[index]);
        let Some(server) = found.filter(|server| !server.is_missing) else {
            let status = match self.settings.missing_show {
                MissingShow::Error => 400,
                MissingShow::NotFound => 404,
            };
            return Reason::Missing.answer(status, Some(id));
        };
        server.settle(now);
        let mut text = String::new();
        self.printer.write(&mut text, server, now);
        Answer::json_text(200, text)
    }

    /// `GET …/physicalservers/status`: how many servers are on and off; one in a transition is
    /// neither.
    pub(super) fn status(&mut self, now: UtcMillis) -> Answer {
        let mut on = 0;
        let mut off = 0;
        let mut unknown = 0;
        for server in self.servers.iter_mut().filter(|server| !server.is_missing) {
            server.settle(now);
            *match self.printer.power_state(server, now) {
                "on" => &mut on,
                "off" => &mut off,
                _ => &mut unknown,
            } += 1;
        }
        Answer::json(
            200,
            &json!({"server_power_status": {"on": on, "off": off, "unknown": unknown}}),
        )
    }

    /// Gives the server another name; nothing if there is none with this id.
    pub(super) fn rename(&mut self, id: &ServerId, name: &str) {
        if let Some(&index) = self.by_id.get(id) {
            self.servers[index].name = name.to_owned();
        }
    }

    /// Has the server vanish or return; nothing if there is none with this id.
    pub(super) fn set_missing(&mut self, id: &ServerId, is_missing: bool) {
        if let Some(&index) = self.by_id.get(id) {
            self.servers[index].is_missing = is_missing;
        }
    }

    /// The servers that exist, as they are at `now`.
    pub(super) fn summaries(&mut self, now: UtcMillis) -> Vec<ServerSummary> {
        let mut summaries = Vec::with_capacity(self.servers.len());
        for server in self.servers.iter_mut().filter(|server| !server.is_missing) {
            server.settle(now);
            summaries.push(ServerSummary {
                service: Service::CloudDc,
                server_id: server.id.clone(),
                name: server.name.clone(),
                power: OnOff::from(server.is_on),
                locked: server.is_locked,
            });
        }
        summaries
    }
}

/// What a server remembers of an operation before the first call.
fn left_from_before(state: FirstState) -> Option<Ended> {
    let (action, succeeded) = state.operation()?;
    let failure = (!succeeded).then(|| Failure {
        code: FAILED_CODE.to_owned(),
        message: FAILED_TEXT.to_owned(),
    });
    Some(Ended { action, failure })
}

#[cfg(test)]
mod tests;
