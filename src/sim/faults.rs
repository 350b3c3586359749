//! What goes wrong, and when: `[[faults]]` of a scenario, and the choice of those that strike a call or a server.
//! Stays away from carrying them out; `world` and `bms` do that.
//!
//! A fault has a `kind`, the kind's own keys, and conditions. All conditions given must hold; at least one is needed.
//!
//! | condition | meaning |
//! | --- | --- |
//! | `chance` | 0.0 to 1.0, drawn for each call, or for each server where the fault is about servers |
//! | `calls` | the n-th calls of their kind, from 1; for faults of jobs and servers, of the submits |
//! | `servers` | ids, or numbers from 1 in the order of the list; the call names one of them, or the fault is about them |
//! | `on` | only for faults of calls: any of `submit`, `job`, `list`, `show`, `token`; left out: all but `token` |
//!
//! | kind | own keys (defaults) | effect |
//! | --- | --- | --- |
//! | `throttle` | `retry_after_s` (none) | 429, `APIGW.0308`; nothing carried out |
//! | `error_before`, `error_after` | `status` (503; 502) | a 5xx before, after the call is carried out |
//! | `drop_before`, `drop_after` | | the connection closes without an answer, before or after the call is carried out |
//! | `refuse` | `code` (`BMS.0212`), `message`, `status` (400) | the call is refused; nothing carried out |
//! | `expired_token` | `code` (`APIGW.0301` or `APIGW.0307`) | 401; nothing carried out |
//! | `redirect` | `status` (302) | a redirect to a path that leads nowhere; nothing carried out |
//! | `malformed_body`, `html_body`, `truncated_body` | | carried out, but the answer cannot be read; HTML keeps the status |
//! | `oversized_body` | `bytes` (16777216) | carried out; so many blanks follow the answer |
//! | `slow` | `delay_ms` (5000) | the answer takes so much longer; goes along with other faults |
//! | `job_vanishes`, `job_never_ends` | | servers do their part, but the job is unknown, or all of it `RUNNING` for ever |
//! | `sub_job_fails` | `code` (`BMS.3037`), `message` | the server's sub-job fails and its power stays |
//! | `sub_job_without_id`, `sub_job_left_out` | | the server's sub-job does not name it; is not in the answer at all |
//! | `operation_never_ends` | | the server stays in its transition, its sub-job `RUNNING` |
//! | `missing`, `locked` | | the server does not exist; refuses power actions (chosen once, when the world is made) |

mod table;

use std::collections::HashSet;

use serde::Deserialize;

use super::record::Call;
use super::rng::Rng;
use super::scenario::Chance;
use crate::model::ServerId;

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
    /// A late answer.
    Slow {
        /// By so much later.
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
    },
    /// The server's sub-job does not name it.
    SubJobWithoutId,
    /// The server's sub-job is not in the answer.
    SubJobLeftOut,
    /// The server stays in its transition, its sub-job `RUNNING`.
    OperationNeverEnds,
    /// The server does not exist.
    Missing,
    /// The server refuses power actions.
    Locked,
}

/// What a fault strikes, and thereby when it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// A call, whatever it is.
    Call,
    /// A job, when it is accepted.
    Job,
    /// One server's part of a job, when it is accepted.
    SubJob,
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
            | Self::ExpiredToken { .. }
            | Self::Redirect { .. }
            | Self::MalformedBody
            | Self::HtmlBody
            | Self::TruncatedBody
            | Self::OversizedBody { .. }
            | Self::Slow { .. } => Scope::Call,
            Self::JobVanishes | Self::JobNeverEnds => Scope::Job,
            Self::SubJobFails { .. } | Self::SubJobWithoutId | Self::SubJobLeftOut | Self::OperationNeverEnds => {
                Scope::SubJob
            }
            Self::Missing | Self::Locked => Scope::Server,
        }
    }
}

/// The conditions of a fault: all that are given must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct When {
    /// The kinds of calls; empty: all but `token`.
    pub on: Vec<Call>,
    /// How likely; `None`: certain.
    pub chance: Option<Chance>,
    /// The n-th calls of their kind, from 1; empty: any.
    pub calls: Vec<u64>,
    /// The servers; empty: any.
    pub servers: Vec<ServerRef>,
}

/// A server in a scenario: by id, or by its number from 1 in the order of the list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ServerRef {
    /// Its number, from 1.
    Number(usize),
    /// Its id.
    Id(ServerId),
}

/// The faults of a scenario with their servers looked up, ready to be drawn from.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultPlan {
    faults: Vec<(Fault, HashSet<ServerId>)>,
}

impl FaultPlan {
    /// `ids` are all servers, in the order of the list.
    pub(super) fn new(faults: &[Fault], ids: &[ServerId]) -> Self {
        let look_up = |server: &ServerRef| match server {
            ServerRef::Number(number) => number.checked_sub(1).and_then(|index| ids.get(index)).cloned(),
            ServerRef::Id(id) => Some(id.clone()),
        };
        let resolve = |fault: &Fault| (fault.clone(), fault.when.servers.iter().filter_map(look_up).collect());
        Self { faults: faults.iter().map(resolve).collect() }
    }

    /// The faults that strike the `nth` call of this kind, in the order of the scenario. `named` are the servers in it.
    pub(super) fn strike_call(&self, call: Call, nth: u64, named: &[ServerId], rng: &mut Rng) -> Vec<FaultKind> {
        let concerns = |fault: &Fault| match fault.kind.scope() {
            Scope::Call if fault.when.on.is_empty() => call != Call::Token,
            Scope::Call => fault.when.on.contains(&call),
            Scope::Job => call == Call::Submit,
            Scope::SubJob | Scope::Server => false,
        };
        self.faults
            .iter()
            .filter(|(fault, servers)| {
                concerns(fault)
                    && (servers.is_empty() && fault.when.servers.is_empty()
                        || named.iter().any(|id| servers.contains(id)))
                    && fault.when.is_due(nth, rng)
            })
            .map(|(fault, _)| fault.kind.clone())
            .collect()
    }

    /// The faults of this scope that strike one server in the `nth` submit.
    pub(super) fn strike_server(&self, scope: Scope, nth: u64, id: &ServerId, rng: &mut Rng) -> Vec<FaultKind> {
        self.faults
            .iter()
            .filter(|(fault, servers)| {
                fault.kind.scope() == scope
                    && (fault.when.servers.is_empty() || servers.contains(id))
                    && fault.when.is_due(nth, rng)
            })
            .map(|(fault, _)| fault.kind.clone())
            .collect()
    }
}

impl When {
    fn is_due(&self, nth: u64, rng: &mut Rng) -> bool {
        (self.calls.is_empty() || self.calls.contains(&nth)) && self.chance.is_none_or(|Chance(p)| rng.happens(p))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::Scenario;
    use super::*;

    #[test]
    fn conditions_are_joined_by_and() {
        let ids = [ServerId("a".into()), ServerId("b".into())];
        let text = "[[faults]]\nkind = \"drop_after\"\non = [\"submit\"]\ncalls = [2]\nservers = [2]\n";
        let plan = FaultPlan::new(&Scenario::from_toml(text).expect("valid").faults, &ids);
        let mut rng = Rng::new(1, "test");
        let mut strikes = |call, nth, named: &[ServerId]| plan.strike_call(call, nth, named, &mut rng).len();
        assert_eq!(strikes(Call::Submit, 2, &ids), 1);
        assert_eq!(strikes(Call::Submit, 1, &ids), 0);
        assert_eq!(strikes(Call::Submit, 2, &ids[..1]), 0);
        assert_eq!(strikes(Call::Show, 2, &ids), 0);
    }
}
