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

use std::collections::HashSet;

use serde::Deserialize;

use super::record::Call;
use super::rng::Rng;
use super::scenario::Chance;
use crate::model::ServerId;

/// One `[[faults]]` entry.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "FaultTable")]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// When it does.
    pub when: When,
}

/// What goes wrong; the table at the head of this module tells the effects.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table at the head of this module describes each of them")]
pub enum FaultKind {
    Throttle { retry_after_s: Option<u32> },
    ErrorBefore { status: u16 },
    ErrorAfter { status: u16 },
    DropBefore,
    DropAfter,
    Refuse { status: u16, code: String, message: String },
    ExpiredToken { code: String },
    Redirect { status: u16 },
    MalformedBody,
    HtmlBody,
    TruncatedBody,
    OversizedBody { bytes: usize },
    Slow { delay_ms: u64 },
    JobVanishes,
    JobNeverEnds,
    SubJobFails { code: String, message: String },
    SubJobWithoutId,
    SubJobLeftOut,
    OperationNeverEnds,
    Missing,
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

/// The file's shape of a fault: all keys of all kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultTable {
    kind: KindWord,
    #[serde(default)]
    on: Vec<Call>,
    chance: Option<Chance>,
    #[serde(default)]
    calls: Vec<u64>,
    #[serde(default)]
    servers: Vec<ServerRef>,
    status: Option<u16>,
    code: Option<String>,
    message: Option<String>,
    bytes: Option<usize>,
    delay_ms: Option<u64>,
    retry_after_s: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindWord {
    Throttle,
    ErrorBefore,
    ErrorAfter,
    DropBefore,
    DropAfter,
    Refuse,
    ExpiredToken,
    Redirect,
    MalformedBody,
    HtmlBody,
    TruncatedBody,
    OversizedBody,
    Slow,
    JobVanishes,
    JobNeverEnds,
    SubJobFails,
    SubJobWithoutId,
    SubJobLeftOut,
    OperationNeverEnds,
    Missing,
    Locked,
}

impl TryFrom<FaultTable> for Fault {
    type Error = String;

    fn try_from(mut table: FaultTable) -> Result<Self, String> {
        let kind = table.take_kind()?;
        table.refuse_leftovers()?;
        let when = When { on: table.on, chance: table.chance, calls: table.calls, servers: table.servers };
        if when.chance.is_none() && when.calls.is_empty() && when.servers.is_empty() {
            return Err("a fault needs at least one of `chance`, `calls`, `servers`".into());
        }
        if kind.scope() != Scope::Call && !when.on.is_empty() {
            return Err("`on` goes only with faults of calls".into());
        }
        if kind.scope() == Scope::Server && !when.calls.is_empty() {
            return Err("`calls` does not go with `missing` and `locked`: they are chosen once".into());
        }
        if when.calls.contains(&0) || when.servers.contains(&ServerRef::Number(0)) {
            return Err("`calls` and `servers` count from 1".into());
        }
        Ok(Self { kind, when })
    }
}

impl FaultTable {
    /// Builds the kind out of its own keys, which it takes; those of other kinds stay behind.
    fn take_kind(&mut self) -> Result<FaultKind, String> {
        Ok(match self.kind {
            KindWord::Throttle => FaultKind::Throttle { retry_after_s: self.retry_after_s.take() },
            KindWord::ErrorBefore => FaultKind::ErrorBefore { status: self.take_status(503, 500..=599)? },
            KindWord::ErrorAfter => FaultKind::ErrorAfter { status: self.take_status(502, 500..=599)? },
            KindWord::DropBefore => FaultKind::DropBefore,
            KindWord::DropAfter => FaultKind::DropAfter,
            KindWord::Refuse => {
                let status = self.take_status(400, 400..=599)?;
                let (code, message) = self.take_complaint("BMS.0212", "System is overloaded, please try again later.");
                FaultKind::Refuse { status, code, message }
            }
            KindWord::ExpiredToken => FaultKind::ExpiredToken { code: self.take_token_code()? },
            KindWord::Redirect => FaultKind::Redirect { status: self.take_status(302, 300..=399)? },
            KindWord::MalformedBody => FaultKind::MalformedBody,
            KindWord::HtmlBody => FaultKind::HtmlBody,
            KindWord::TruncatedBody => FaultKind::TruncatedBody,
            KindWord::OversizedBody => FaultKind::OversizedBody { bytes: self.bytes.take().unwrap_or(16 << 20) },
            KindWord::Slow => FaultKind::Slow { delay_ms: self.delay_ms.take().unwrap_or(5000) },
            KindWord::JobVanishes => FaultKind::JobVanishes,
            KindWord::JobNeverEnds => FaultKind::JobNeverEnds,
            KindWord::SubJobFails => {
                let (code, message) =
                    self.take_complaint("BMS.3037", "Insufficient resources or failed to start the BMS.");
                FaultKind::SubJobFails { code, message }
            }
            KindWord::SubJobWithoutId => FaultKind::SubJobWithoutId,
            KindWord::SubJobLeftOut => FaultKind::SubJobLeftOut,
            KindWord::OperationNeverEnds => FaultKind::OperationNeverEnds,
            KindWord::Missing => FaultKind::Missing,
            KindWord::Locked => FaultKind::Locked,
        })
    }

    fn take_status(&mut self, default: u16, allowed: std::ops::RangeInclusive<u16>) -> Result<u16, String> {
        let status = self.status.take().unwrap_or(default);
        if allowed.contains(&status) {
            return Ok(status);
        }
        Err(format!("`status` is {status}; this kind takes {} to {}", allowed.start(), allowed.end()))
    }

    /// A code given without a message keeps a general text, never that of another code.
    fn take_complaint(&mut self, code: &str, message: &str) -> (String, String) {
        let text = if self.code.is_none() { message } else { "Refused by the scenario." };
        (self.code.take().unwrap_or_else(|| code.into()), self.message.take().unwrap_or_else(|| text.into()))
    }

    fn take_token_code(&mut self) -> Result<String, String> {
        let code = self.code.take().unwrap_or_else(|| "APIGW.0301".into());
        if code == "APIGW.0301" || code == "APIGW.0307" {
            return Ok(code);
        }
        Err(format!("`code` is {code}; this kind takes APIGW.0301 or APIGW.0307"))
    }

    fn refuse_leftovers(&self) -> Result<(), String> {
        let left = [
            ("status", self.status.is_some()),
            ("code", self.code.is_some()),
            ("message", self.message.is_some()),
            ("bytes", self.bytes.is_some()),
            ("delay_ms", self.delay_ms.is_some()),
            ("retry_after_s", self.retry_after_s.is_some()),
        ];
        match left.iter().find(|(_, is_left)| *is_left) {
            Some((key, _)) => Err(format!("`{key}` does not go with this kind of fault")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::Scenario;
    use super::*;

    fn faults(text: &str) -> Result<Vec<Fault>, String> {
        Scenario::from_toml(text).map(|scenario| scenario.faults).map_err(|error| error.to_string())
    }

    #[test]
    fn a_fault_is_read_with_its_kind_and_conditions() {
        let read = faults(
            "[[faults]]\nkind = \"error_after\"\nstatus = 504\non = [\"submit\"]\ncalls = [2, 4]\nservers = [1, \"ab-c\"]\n",
        )
        .expect("valid");
        let when = When {
            on: vec![Call::Submit],
            chance: None,
            calls: vec![2, 4],
            servers: vec![ServerRef::Number(1), ServerRef::Id(ServerId("ab-c".into()))],
        };
        assert_eq!(read, [Fault { kind: FaultKind::ErrorAfter { status: 504 }, when }]);
    }

    #[test]
    fn a_fault_that_makes_no_sense_is_refused_with_its_line() {
        for (text, part) in [
            ("kind = \"throttle\"", "at least one of"),
            ("kind = \"throttle\"\nchance = 1.0\nbytes = 5", "`bytes` does not go"),
            ("kind = \"error_before\"\nchance = 1.0\nstatus = 404", "500 to 599"),
            ("kind = \"missing\"\ncalls = [1]", "chosen once"),
            ("kind = \"sub_job_fails\"\nchance = 0.5\non = [\"job\"]", "only with faults of calls"),
            ("kind = \"slow\"\ncalls = [0]", "count from 1"),
            ("kind = \"expired_token\"\nchance = 1.0\ncode = \"X\"", "APIGW.0307"),
            ("kind = \"boom\"\nchance = 1.0", "boom"),
        ] {
            let error = faults(&format!("[[faults]]\n{text}\n")).expect_err(text);
            assert!(error.contains(part) && error.contains("line "), "{text}: {error}");
        }
    }

    #[test]
    fn conditions_are_joined_by_and() {
        let ids = [ServerId("a".into()), ServerId("b".into())];
        let text = "[[faults]]\nkind = \"drop_after\"\non = [\"submit\"]\ncalls = [2]\nservers = [2]\n";
        let plan = FaultPlan::new(&faults(text).expect("valid"), &ids);
        let mut rng = Rng::new(1, "test");
        let mut strikes = |call, nth, named: &[ServerId]| plan.strike_call(call, nth, named, &mut rng).len();
        assert_eq!(strikes(Call::Submit, 2, &ids), 1);
        assert_eq!(strikes(Call::Submit, 1, &ids), 0);
        assert_eq!(strikes(Call::Submit, 2, &ids[..1]), 0);
        assert_eq!(strikes(Call::Show, 2, &ids), 0);
    }
}
