//! The Bare Metal Server service: servers, jobs, and the four calls on them. Time is an argument;
//! nothing here waits.
//!
//! An operation enters the ledger at the moment it begins on its server, that is when the call is
//! accepted: what has begun cannot be undone. A sub-job that fails is not in the ledger. Failing
//! starts and stops show their transition and fall back; a failing reboot never touches its server,
//! since a reboot that has begun has happened. Left open by the documents and decided here: a
//! server named twice in one body makes it invalid (`BMS.0018`).

mod action;
mod job;
mod print;
mod server;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;

use super::answer::Answer;
use super::call_context::{PageAsked, Surroundings};
use super::faults::{FaultKind, FaultPlan, Scope};
use super::late::LateAct;
use super::record::{LedgerEntry, OnOff, ServerSummary};
use super::rng::Rng;
use super::scenario::{BmsScenario, MissingShow, Refusals, Scenario, is_running_at_first};
use crate::model::{JobId, PowerAction, ServerId, Service, UtcMillis};

pub(super) use action::read as read_action;
use job::{Job, SubJob};
use print::Printer;
pub(super) use server::Refusal;
use server::{Operation, Server};

/// Most servers in one submit call, and in one page of the list.
const SERVERS_MAX: usize = 1000;
/// The size of a page when neither limit nor offset is given.
const PAGE_DEFAULT: usize = 25;

/// The query of a list call; absent values take the documented defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// `limit`: servers a page; 25, or 1000 when `offset` is given.
    pub limit: Option<usize>,
    /// `offset`: the page's number, from 1.
    pub offset: Option<usize>,
    /// `status`: exactly this word.
    pub status: Option<String>,
    /// `name`: part of the name.
    pub name: Option<String>,
}

impl ListQuery {
    /// The page that it asks for.
    pub(super) fn page(&self) -> PageAsked {
        let limit = self.limit.unwrap_or(if self.offset.is_some() {
            SERVERS_MAX
        } else {
            PAGE_DEFAULT
        });
        PageAsked {
            number: self.offset.unwrap_or(1),
            limit,
        }
    }
}

/// The service's whole state.
#[derive(Debug, Clone)]
pub(super) struct Bms {
    settings: BmsScenario,
    printer: Printer,
    servers: Vec<Server>,
    by_id: HashMap<ServerId, usize>,
    jobs: HashMap<String, Job>,
}

impl Bms {
    /// Makes the servers; `missing` and `locked` faults are drawn here, once.
    pub(super) fn new(scenario: &Scenario, faults: &FaultPlan) -> Self {
        let mut rng = Rng::new(scenario.seed, "bms server faults");
        let ids = scenario.server_ids(Service::Bms);
        let by_id = ids.iter().cloned().zip(0..).collect();
        let share = scenario.bms.running.0;
        let mut servers = Vec::with_capacity(ids.len());
        for (index, id) in ids.into_iter().enumerate() {
            let kinds = faults.strike_server(Scope::Server, Service::Bms, 0, &id, &mut rng);
            let mut server = Server::new(id, index, is_running_at_first(index, share));
            server.is_missing = kinds.contains(&FaultKind::Missing);
            server.is_locked = kinds.contains(&FaultKind::Locked);
            servers.push(server);
        }
        let project = scenario.credentials.project_id.clone();
        let idle_task_state = scenario.bms.idle_task_state;
        let printer = Printer {
            project,
            idle_task_state,
        };
        Self {
            settings: scenario.bms.clone(),
            printer,
            servers,
            by_id,
            jobs: HashMap::new(),
        }
    }

    /// `POST …/baremetalservers/action`
    pub(super) fn submit(
        &mut self,
        action: PowerAction,
        ids: &[ServerId],
        around: Surroundings<'_>,
    ) -> Answer {
        if ids.is_empty() || ids.len() > SERVERS_MAX {
            let text = "The number of baremetal servers is out of range for one REquest.";
            return Answer::refusal(400, "BMS.0205", text);
        }
        if ids.iter().collect::<HashSet<_>>().len() < ids.len() {
            return Answer::refusal(400, "BMS.0018", "Request parameter is invalid.");
        }
        let found: Vec<Result<usize, Refusal>> = ids
            .iter()
            .map(|id| self.find(around.now, action, id))
            .collect();
        match (
            self.settings.refusals,
            found.iter().find_map(|found| found.as_ref().err()),
        ) {
            (Refusals::Batch, Some(refusal)) => refusal.answer(),
            (Refusals::Batch, None) | (Refusals::SubJob, _) => {
                self.accept(action, ids, found, around)
            }
        }
    }

    /// The index of the server, if it takes `action` at this moment.
    fn find(
        &mut self,
        now: UtcMillis,
        action: PowerAction,
        id: &ServerId,
    ) -> Result<usize, Refusal> {
        let &index = self.by_id.get(id).ok_or_else(Refusal::missing)?;
        self.servers[index].settle(now);
        self.servers[index].refusal(action).map_or(Ok(index), Err)
    }

    /// Begins every operation that is not refused, and makes the job.
    fn accept(
        &mut self,
        action: PowerAction,
        ids: &[ServerId],
        found: Vec<Result<usize, Refusal>>,
        mut around: Surroundings<'_>,
    ) -> Answer {
        let number = around.rng.next_u128();
        let job_id = JobId(format!("{number:032x}"));
        let mut sub_jobs = Vec::with_capacity(ids.len());
        for (id, found) in ids.iter().zip(found) {
            sub_jobs.push(match found {
                Ok(index) => self.begin(action, index, &job_id, &mut around),
                Err(refusal) => SubJob::refused(id, around.now, refusal),
            });
        }
        let is_vanished = around.struck.contains(&FaultKind::JobVanishes);
        let never_ends = around.struck.contains(&FaultKind::JobNeverEnds);
        let place = self.jobs.len() + 1;
        let job = Job {
            number,
            place,
            begin: around.now,
            sub_jobs,
            polls: 0,
            is_vanished,
            never_ends,
        };
        self.jobs.insert(job.id(), job);
        Answer::json(200, &json!({"job_id": job_id}))
    }

    /// Begins one server's operation with the faults that strike it.
    fn begin(
        &mut self,
        action: PowerAction,
        index: usize,
        job: &JobId,
        around: &mut Surroundings<'_>,
    ) -> SubJob {
        let server = &mut self.servers[index];
        let kinds = around.faults.strike_server(
            Scope::Operation,
            Service::Bms,
            around.nth,
            &server.id,
            around.rng,
        );
        let mut sub_job = SubJob::plain(
            &server.id,
            around.now,
            self.settings.operation_ms.draw_ms(around.rng),
        );
        let mut acts_after = None;
        for kind in kinds {
            match kind {
                FaultKind::SubJobFails {
                    code,
                    message,
                    acts_after_ms,
                } => {
                    sub_job.failure = Some(Refusal { code, message });
                    acts_after = acts_after_ms;
                }
                FaultKind::SubJobWithoutId => sub_job.names_server = false,
                FaultKind::SubJobLeftOut => sub_job.is_listed = false,
                FaultKind::OperationNeverEnds => sub_job.end = None,
                _ => {}
            }
        }
        if let Some(ms) = acts_after {
            // The failure is reported at once, before the operation begins.
            let duration_ms = sub_job
                .end
                .map_or(0, |end| u64::try_from(end.0 - around.now.0).unwrap_or(0));
            sub_job.end = Some(around.now);
            around.late.push(LateAct {
                at: around.now + Duration::from_millis(ms),
                service: Service::Bms,
                server_id: server.id.clone(),
                action,
                batch: job.clone(),
                duration_ms,
            });
            return sub_job;
        }
        let succeeds = sub_job.failure.is_none();
        if succeeds || shows_when_it_fails(action) {
            server.begin(Operation {
                action,
                begin: around.now,
                end: sub_job.end,
                succeeds,
            });
        }
        if succeeds {
            let server_id = server.id.clone();
            let batch = job.clone();
            around.ledger.push(LedgerEntry {
                at: around.now,
                service: Service::Bms,
                server_id,
                action,
                batch,
            });
        }
        sub_job
    }

    /// An operation that was reported as failed or refused begins anyway, if the server accepts it
    /// at that time.
    pub(super) fn act_late(&mut self, act: &LateAct, ledger: &mut Vec<LedgerEntry>) {
        if let Ok(index) = self.find(act.at, act.action, &act.server_id) {
            let end = Some(act.at + Duration::from_millis(act.duration_ms));
            self.servers[index].begin(Operation {
                action: act.action,
                begin: act.at,
                end,
                succeeds: true,
            });
            ledger.push(act.entry());
        }
    }

    /// How long an operation will take, in ms.
    pub(super) fn draw_operation_ms(&self, rng: &mut Rng) -> u64 {
        self.settings.operation_ms.draw_ms(rng)
    }

    /// The number of this job among those accepted, from 1.
    pub(super) fn job_number(&self, id: &str) -> Option<usize> {
        self.jobs.get(id).map(|job| job.place)
    }

    /// `GET …/jobs/{id}`
    pub(super) fn job(&mut self, now: UtcMillis, id: &str) -> Answer {
        match self.jobs.get_mut(id).filter(|job| !job.is_vanished) {
            Some(job) => Answer::json_text(200, job.report(now, &self.settings)),
            None => Answer::refusal(400, "Common.0011", "Failed to query system tasks."),
        }
    }

    /// `GET …/baremetalservers/detail`
    pub(super) fn list(&mut self, now: UtcMillis, query: &ListQuery) -> Answer {
        let PageAsked {
            number: page,
            limit,
        } = query.page();
        if page == 0 || !(1..=SERVERS_MAX).contains(&limit) {
            return Answer::refusal(400, "BMS.0018", "Request parameter is invalid.");
        }
        let mut count = 0;
        let mut text = String::from(r#"{"servers":["#);
        let begin = (page - 1).saturating_mul(limit);
        for server in self.servers.iter_mut().filter(|server| !server.is_missing) {
            server.settle(now);
            if query
                .status
                .as_ref()
                .is_some_and(|status| server.shown(now).status != status)
                || query
                    .name
                    .as_ref()
                    .is_some_and(|name| !server.name.contains(name.as_str()))
            {
                continue;
            }
            if (begin..begin.saturating_add(limit)).contains(&count) {
                text.push_str(if count > begin { "," } else { "" });
                self.printer.write(&mut text, server, now);
            }
            count += 1;
        }
        text.push_str(&format!(r#"],"count":{count}}}"#));
        Answer::json_text(200, text)
    }

    /// `GET …/baremetalservers/{id}`
    pub(super) fn show(&mut self, now: UtcMillis, id: &ServerId) -> Answer {
        let found = self.by_id.get(id).map(|&index| &mut self.servers[index]);
        let Some(server) = found.filter(|server| !server.is_missing) else {
            return self.show_missing(id);
        };
        server.settle(now);
        let mut text = String::from(r#"{"server":"#);
        self.printer.write(&mut text, server, now);
        text.push('}');
        Answer::json_text(200, text)
    }

    fn show_missing(&self, id: &ServerId) -> Answer {
        match self.settings.missing_show {
            MissingShow::Error => Refusal::missing().answer(),
            MissingShow::NotFound => {
                let text = format!("Instance {id} could not be found.");
                Answer::json(
                    404,
                    &json!({"itemNotFound": {"message": text, "code": 404}}),
                )
            }
            MissingShow::Deleted => {
                Answer::json(200, &json!({"server": {"id": id, "status": "DELETED"}}))
            }
        }
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
                service: Service::Bms,
                server_id: server.id.clone(),
                name: server.name.clone(),
                power: OnOff::from(server.is_on),
                locked: server.is_locked,
            });
        }
        summaries
    }
}

impl Refusal {
    /// As the answer to a whole call.
    pub(super) fn answer(&self) -> Answer {
        Answer::refusal(400, &self.code, &self.message)
    }
}

impl SubJob {
    fn plain(id: &ServerId, now: UtcMillis, duration_ms: u64) -> Self {
        let end = Some(now + Duration::from_millis(duration_ms));
        Self {
            server: id.clone(),
            end,
            failure: None,
            names_server: true,
            is_listed: true,
        }
    }

    fn refused(id: &ServerId, now: UtcMillis, refusal: Refusal) -> Self {
        Self {
            failure: Some(refusal),
            ..Self::plain(id, now, 0)
        }
    }
}

/// True if a server is seen in the transition although it fails in the end. A reboot that is seen
/// is one that succeeds.
fn shows_when_it_fails(action: PowerAction) -> bool {
    match action {
        PowerAction::Start | PowerAction::Stop => true,
        PowerAction::Reboot => false,
    }
}
