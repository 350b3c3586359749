//! What goes wrong, and when: `[[faults]]` of a scenario, and the choice of those that strike a
//! call or a server. Stays away from carrying them out; `world` and the services do that.
//!
//! A fault has a `kind`, the kind's own keys, and conditions. All conditions given must hold; at
//! least one is needed.
//!
//! | condition | meaning |
//! | --- | --- |
//! | `chance` | 0.0 to 1.0, drawn for each call, or for each server where the fault is about servers |
//! | `calls` | the n-th calls of their kind and service, from 1; for faults of jobs and servers, of the submits |
//! | `servers` | ids, or numbers from 1 in the order of the service's list; the call names one of them, or the fault is about them |
//! | `service` | `bms` or `clouddc`; left out: both, but numbers in `servers` count in the list of `bms` |
//! | `on` | only for faults of calls: any of `submit`, `job`, `list`, `show`, `token`; left out: all but `token` |
//! | `limit_above` | only list calls that ask for more servers a page than this |
//! | `pages` | only list calls for these pages, from 1 |
//! | `jobs` | only queries of the n-th jobs that were accepted, from 1 |
//!
//! A fault without `chance` and `calls` is permanent: `servers = [3]` with `on = ["show"]` is a
//! server that can never be shown; with `slow` and a very long `delay_ms` it is a server whose show
//! hangs.
//!
//! `service` alone is not enough of a condition. `on` calls CloudDC's power call a `submit`, and
//! its counts a `list`.
//!
//! | kind | own keys (defaults) | effect |
//! | --- | --- | --- |
//! | `throttle` | `retry_after_s` (none), `retry_after_date` (false) | 429, `APIGW.0308`; nothing carried out; the wait may be days, and an HTTP date |
//! | `error_before`, `error_after` | `status` (503; 502) | a 5xx before, after the call is carried out |
//! | `drop_before`, `drop_after` | | the connection closes without an answer, before or after the call is carried out |
//! | `refuse` | `code` (`BMS.0212`; with `service = "clouddc"`: `CloudDC.0000`), `message`, `status` (400) | the call is refused; nothing carried out |
//! | `conflict` | `message` (names the server) | 409 in the native form, `conflictingRequest`; nothing carried out |
//! | `acts_anyway` | `every` (1), `delay_ms` (0) | a submit that is not accepted is carried out anyway, `delay_ms` later, on every n-th of its servers that accepts it; can be combined with other faults, but not with those of a gateway that does not pass the call on (401, 429, 503, a redirect) |
//! | `expired_token` | `code` (`APIGW.0301` or `APIGW.0307`) | 401; nothing carried out |
//! | `redirect` | `status` (302) | a redirect to a path that leads nowhere; nothing carried out |
//! | `malformed_body`, `html_body`, `truncated_body` | | carried out, but the answer cannot be read; HTML keeps the status |
//! | `oversized_body` | `bytes` (16777216) | carried out; this many blanks follow the answer |
//! | `odd_answer` | `oddity` (needed) | carried out; the answer has bytes that are no UTF-8 (`bad_utf8`) or half a surrogate pair (`lone_surrogate`) in a name or text, a key twice (`doubled_keys`), a byte order mark (`bom`), or comes compressed without being asked (`gzip`) |
//! | `slow` | `delay_ms` (5000) | the answer takes this much longer; can be combined with other faults |
//! | `job_vanishes`, `job_never_ends` | | BMS: servers do their part, but the job is unknown, or all of it stays `RUNNING` |
//! | `sub_job_fails` | `code` (`BMS.3037`), `message`, `acts_after_ms` (none) | BMS: the server's sub-job fails and its power stays; with `acts_after_ms` it fails at once, and the operation begins anyway, this long after the call |
//! | `sub_job_without_id`, `sub_job_left_out` | | BMS: the server's sub-job does not name it; is not in the answer at all |
//! | `operation_fails` | `code` (`CloudDC.0006`), `message`, `acts_after_ms` (none) | CloudDC: the server's operation ends `…-failed` with this `error` and its power stays; with `acts_after_ms` it begins once more, this long after that, and succeeds |
//! | `operation_never_ends` | | the server stays in its transition, its sub-job `RUNNING`, its operation `…-processing` |
//! | `missing`, `locked` | | the server does not exist; refuses power actions (chosen once, when the world is made) |

mod table;

use std::collections::HashSet;

use serde::Deserialize;

use super::call_context::About;
use super::record::Call;
use super::rng::Rng;
use super::scenario::Chance;
use crate::model::{PowerAction, ServerId, Service};

pub(super) use table::read_faults;

/// One `[[faults]]` entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// When it does.
    pub when: When,
}

/// What goes wrong; the table at the head of this module tells more of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// 429; nothing carried out.
    Throttle {
        /// Seconds in `Retry-After`.
        retry_after_s: Option<u32>,
        /// Written as an HTTP date.
        as_date: bool,
    },
    /// A 5xx; nothing carried out.
    ErrorBefore {
        /// 500 to 599.
        status: u16,
    },
    /// A 5xx although the call is carried out.
    ErrorAfter {
        /// 500 to 599.
        status: u16,
    },
    /// No answer; nothing carried out.
    DropBefore,
    /// No answer although the call is carried out.
    DropAfter,
    /// A refusal; nothing carried out.
    Refuse {
        /// 200 to 599: some refusals come with odd ones.
        status: u16,
        /// The service's code.
        code: String,
        /// Its text.
        message: String,
    },
    /// 409 in the native form; nothing carried out.
    Conflict {
        /// Its text; `None`: one that names the server.
        message: Option<String>,
    },
    /// A submit that is not accepted is carried out anyway.
    ActsAnyway {
        /// On every n-th of its servers.
        every: usize,
        /// How much later.
        delay_ms: u64,
    },
    /// 401; nothing carried out.
    ExpiredToken {
        /// `APIGW.0301` or `APIGW.0307`.
        code: String,
    },
    /// A redirect; nothing carried out.
    Redirect {
        /// 300 to 399.
        status: u16,
    },
    /// Half the answer, as if it were whole.
    MalformedBody,
    /// A proxy's page instead of the answer, with the answer's status.
    HtmlBody,
    /// The connection closes in the middle of the answer's body.
    TruncatedBody,
    /// Blanks after the answer.
    OversizedBody {
        /// How many.
        bytes: usize,
    },
    /// An answer that only a tolerant reader reads.
    OddAnswer {
        /// What is odd about it.
        oddity: Oddity,
    },
    /// A late answer.
    Slow {
        /// How much later.
        delay_ms: u64,
    },
    /// The job is unknown from the start; servers do their part.
    JobVanishes,
    /// The job and its sub-jobs stay `RUNNING`; servers do their part.
    JobNeverEnds,
    /// The server's sub-job fails; its power stays.
    SubJobFails {
        /// The sub-job's code.
        code: String,
        /// Its text.
        message: String,
        /// The operation begins anyway, this long after the call.
        acts_after_ms: Option<u64>,
    },
    /// The server's sub-job does not name it.
    SubJobWithoutId,
    /// The server's sub-job is not in the answer.
    SubJobLeftOut,
    /// The server's operation ends `…-failed`; its power stays.
    OperationFails {
        /// `error_code` of the server's `error`.
        code: String,
        /// Its `error_msg`.
        message: String,
        /// It begins once more, this long after it has failed, and succeeds.
        acts_after_ms: Option<u64>,
    },
    /// The server stays in its transition, its sub-job `RUNNING`, its operation `…-processing`.
    OperationNeverEnds,
    /// The server does not exist.
    Missing,
    /// The server refuses power actions.
    Locked,
}

/// What is odd about an answer that is otherwise complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// Bytes that are no UTF-8 in the first name or text.
    BadUtf8,
    /// Half a surrogate pair in the first name or text.
    LoneSurrogate,
    /// A repeated key; the second one has the true value.
    DoubledKeys,
    /// A byte order mark before the body.
    Bom,
    /// Compressed, with a `Content-Encoding`, although nobody asked for it.
    Gzip,
}

/// What a fault strikes, and thereby when it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// A call, whatever it is.
    Call,
    /// A job, when it is accepted.
    Job,
    /// One server's part of a submit, when it is accepted.
    Operation,
    /// A server, when the world is made.
    Server,
}

impl FaultKind {
    pub(super) fn scope(&self) -> Scope {
        match self {
            Self::Throttle { .. }
            | Self::ErrorBefore { .. }
            | Self::ErrorAfter { .. }
            | Self::DropBefore
            | Self::DropAfter
            | Self::Refuse { .. }
            | Self::Conflict { .. }
            | Self::ActsAnyway { .. }
            | Self::ExpiredToken { .. }
            | Self::Redirect { .. }
            | Self::MalformedBody
            | Self::HtmlBody
            | Self::TruncatedBody
            | Self::OversizedBody { .. }
            | Self::OddAnswer { .. }
            | Self::Slow { .. } => Scope::Call,
            Self::JobVanishes | Self::JobNeverEnds => Scope::Job,
            Self::SubJobFails { .. }
            | Self::SubJobWithoutId
            | Self::SubJobLeftOut
            | Self::OperationFails { .. }
            | Self::OperationNeverEnds => Scope::Operation,
            Self::Missing | Self::Locked => Scope::Server,
        }
    }

    /// The service whose kind it is: only BMS has jobs, only CloudDC servers that remember an
    /// operation. `None`: both.
    pub(super) fn service(&self) -> Option<Service> {
        match self {
            Self::JobVanishes
            | Self::JobNeverEnds
            | Self::SubJobFails { .. }
            | Self::SubJobWithoutId
            | Self::SubJobLeftOut => Some(Service::Bms),
            Self::OperationFails { .. } => Some(Service::CloudDc),
            Self::Throttle { .. }
            | Self::ErrorBefore { .. }
            | Self::ErrorAfter { .. }
            | Self::DropBefore
            | Self::DropAfter
            | Self::Refuse { .. }
            | Self::Conflict { .. }
            | Self::ActsAnyway { .. }
            | Self::ExpiredToken { .. }
            | Self::Redirect { .. }
            | Self::MalformedBody
            | Self::HtmlBody
            | Self::TruncatedBody
            | Self::OversizedBody { .. }
            | Self::OddAnswer { .. }
            | Self::Slow { .. }
            | Self::OperationNeverEnds
            | Self::Missing
            | Self::Locked => None,
        }
    }
}

impl Fault {
    /// The only service that it strikes; `None`: any.
    fn service(&self) -> Option<Service> {
        self.kind.service().or(self.when.service)
    }

    /// The service in whose list its servers' numbers count.
    pub(super) fn numbered_service(&self) -> Service {
        self.service().unwrap_or(Service::Bms)
    }

    /// True if it may strike `service`; `None` is the identity service.
    fn strikes(&self, service: Option<Service>) -> bool {
        self.service().is_none_or(|own| service == Some(own))
    }
}

/// The conditions of a fault: all that are given must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct When {
    /// The service; `None`: any.
    pub service: Option<Service>,
    /// The kinds of calls; empty: all but `token`.
    pub on: Vec<Call>,
    /// How likely; `None`: certain.
    pub chance: Option<Chance>,
    /// The n-th calls of their kind, from 1; empty: any.
    pub calls: Vec<u64>,
    /// The servers; empty: any.
    pub servers: Vec<ServerRef>,
    /// Only lists of more servers a page.
    pub limit_above: Option<usize>,
    /// Only these pages of a list, from 1; empty: any call.
    pub pages: Vec<usize>,
    /// Only queries of these jobs, from 1; empty: any call.
    pub jobs: Vec<usize>,
}

/// A server in a scenario: by id, or by its number from 1 in the order of its service's list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ServerRef {
    /// Its number, from 1.
    Number(usize),
    /// Its id.
    Id(ServerId),
}

impl ServerRef {
    /// The server, of those with these ids.
    fn id_among(&self, ids: &[ServerId]) -> Option<ServerId> {
        match self {
            Self::Number(number) => ids.get(number.checked_sub(1)?).cloned(),
            Self::Id(id) => Some(id.clone()),
        }
    }
}

impl Fault {
    fn concerns(&self, call: Call) -> bool {
        match self.kind.scope() {
            Scope::Call if matches!(self.kind, FaultKind::ActsAnyway { .. }) => {
                call == Call::Submit
            }
            Scope::Call if self.when.on.is_empty() => call != Call::Token,
            Scope::Call => self.when.on.contains(&call),
            Scope::Job => call == Call::Submit,
            Scope::Operation | Scope::Server => false,
        }
    }
}

/// The faults of a scenario with their servers looked up, ready to be drawn from.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultPlan {
    faults: Vec<(Fault, HashSet<ServerId>)>,
}

impl FaultPlan {
    /// `ids` tells all servers of a service, in the order of its list.
    pub(super) fn new(faults: &[Fault], ids: impl Fn(Service) -> Vec<ServerId>) -> Self {
        let bms = ids(Service::Bms);
        let clouddc = ids(Service::CloudDc);
        let mut resolved = Vec::with_capacity(faults.len());
        for fault in faults {
            let ids = match fault.numbered_service() {
                Service::Bms => &bms,
                Service::CloudDc => &clouddc,
            };
            let servers = fault.when.servers.iter();
            let servers = servers.filter_map(|server| server.id_among(ids)).collect();
            resolved.push((fault.clone(), servers));
        }
        Self { faults: resolved }
    }

    /// The faults that strike the `nth` call of this kind and service, in the order of the
    /// scenario.
    pub(super) fn strike_call(&self, about: About<'_>, nth: u64, rng: &mut Rng) -> Vec<FaultKind> {
        self.faults
            .iter()
            .filter(|(fault, servers)| {
                fault.concerns(about.call)
                    && fault.strikes(about.service)
                    && (servers.is_empty() && fault.when.servers.is_empty()
                        || about.servers.iter().any(|id| servers.contains(id)))
                    && fault.when.is_about(&about)
                    && fault.when.is_due(nth, rng)
            })
            .map(|(fault, servers)| name_culprit(&fault.kind, servers, &about))
            .collect()
    }

    /// The faults of this scope that strike one server of `service` in the `nth` submit.
    pub(super) fn strike_server(
        &self,
        scope: Scope,
        service: Service,
        nth: u64,
        id: &ServerId,
        rng: &mut Rng,
    ) -> Vec<FaultKind> {
        self.faults
            .iter()
            .filter(|(fault, servers)| {
                fault.kind.scope() == scope
                    && fault.strikes(Some(service))
                    && (fault.when.servers.is_empty() || servers.contains(id))
                    && fault.when.is_due(nth, rng)
            })
            .map(|(fault, _)| fault.kind.clone())
            .collect()
    }
}

/// A conflict without a text of its own names the server that it is about.
fn name_culprit(kind: &FaultKind, servers: &HashSet<ServerId>, about: &About<'_>) -> FaultKind {
    let FaultKind::Conflict { message: None } = kind else {
        return kind.clone();
    };
    let culprit = about
        .servers
        .iter()
        .find(|id| servers.contains(id))
        .or(about.servers.first());
    let culprit = culprit.map_or_else(String::new, ToString::to_string);
    let action = about.action.map_or("os-action", PowerAction::as_str);
    let message =
        format!("Cannot '{action}' instance {culprit} while it is in task_state powering-off");
    FaultKind::Conflict {
        message: Some(message),
    }
}

impl When {
    /// True if the call is of the pages and jobs that are asked for.
    fn is_about(&self, about: &About<'_>) -> bool {
        self.limit_above
            .is_none_or(|most| about.page.is_some_and(|page| page.limit > most))
            && (self.pages.is_empty()
                || about
                    .page
                    .is_some_and(|page| self.pages.contains(&page.number)))
            && (self.jobs.is_empty() || about.job.is_some_and(|job| self.jobs.contains(&job)))
    }

    fn is_due(&self, nth: u64, rng: &mut Rng) -> bool {
        (self.calls.is_empty() || self.calls.contains(&nth))
            && self.chance.is_none_or(|Chance(p)| rng.happens(p))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::Scenario;
    use super::*;

    fn ids(names: &[&str]) -> Vec<ServerId> {
        names.iter().map(|name| ServerId((*name).into())).collect()
    }

    /// Servers `a` and `b` of BMS, `c` and `d` of CloudDC.
    fn plan(fault: &str) -> FaultPlan {
        let faults = Scenario::from_toml(&format!("[[faults]]\n{fault}\n"))
            .expect("valid")
            .faults;
        FaultPlan::new(&faults, |service| match service {
            Service::Bms => ids(&["a", "b"]),
            Service::CloudDc => ids(&["c", "d"]),
        })
    }

    /// How many faults strike a call of `service` that names `servers`.
    fn strikes(
        plan: &FaultPlan,
        service: Option<Service>,
        call: Call,
        nth: u64,
        servers: &[&str],
    ) -> usize {
        let servers = ids(servers);
        plan.strike_call(
            About::read(service, call, &servers),
            nth,
            &mut Rng::new(1, "test"),
        )
        .len()
    }

    #[test]
    fn conditions_are_joined_by_and() {
        let plan = plan("kind = \"drop_after\"\non = [\"submit\"]\ncalls = [2]\nservers = [2]");
        let bms = Some(Service::Bms);
        assert_eq!(strikes(&plan, bms, Call::Submit, 2, &["a", "b"]), 1);
        assert_eq!(strikes(&plan, bms, Call::Submit, 1, &["a", "b"]), 0);
        assert_eq!(strikes(&plan, bms, Call::Submit, 2, &["a"]), 0);
        assert_eq!(strikes(&plan, bms, Call::Show, 2, &["a", "b"]), 0);
    }

    #[test]
    fn a_fault_keeps_to_its_service_and_counts_servers_in_its_list() {
        let bms = Some(Service::Bms);
        let clouddc = Some(Service::CloudDc);
        let either = plan("kind = \"drop_after\"\nchance = 1.0");
        assert_eq!(
            [bms, clouddc].map(|service| strikes(&either, service, Call::List, 1, &[])),
            [1, 1]
        );
        let own = plan("kind = \"drop_after\"\nservice = \"clouddc\"\nchance = 1.0");
        assert_eq!(
            [bms, clouddc, None].map(|service| strikes(&own, service, Call::List, 1, &[])),
            [0, 1, 0]
        );
        let numbered = plan("kind = \"drop_after\"\nservice = \"clouddc\"\nservers = [2]");
        assert_eq!(
            ["b", "c", "d"].map(|id| strikes(&numbered, clouddc, Call::Submit, 1, &[id])),
            [0, 0, 1]
        );
        let by_id = plan("kind = \"drop_after\"\nservers = [\"D\"]");
        assert_eq!(strikes(&by_id, clouddc, Call::Submit, 1, &["c", "d"]), 1);
    }

    #[test]
    fn a_kind_of_one_service_alone_never_strikes_the_other() {
        let struck = |plan: &FaultPlan, service, id: &str| {
            let id = ServerId(id.into());
            plan.strike_server(Scope::Operation, service, 1, &id, &mut Rng::new(1, "test"))
                .len()
        };
        let fails = plan("kind = \"operation_fails\"\nservers = [1]");
        assert_eq!(
            (
                struck(&fails, Service::CloudDc, "c"),
                struck(&fails, Service::Bms, "a")
            ),
            (1, 0)
        );
        let sub_job = plan("kind = \"sub_job_fails\"\nchance = 1.0");
        assert_eq!(
            (
                struck(&sub_job, Service::CloudDc, "c"),
                struck(&sub_job, Service::Bms, "a")
            ),
            (0, 1)
        );
        let job = plan("kind = \"job_vanishes\"\nchance = 1.0");
        assert_eq!(
            strikes(&job, Some(Service::CloudDc), Call::Submit, 1, &["c"]),
            0
        );
    }
}
