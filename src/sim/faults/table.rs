//! A `[[faults]]` entry as the file has it, and its rules. The only place that knows which kind
//! takes which keys.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Fault, FaultKind, Oddity, Scope, ServerRef, When};
use crate::model::Service;
use crate::sim::clouddc;
use crate::sim::record::Call;
use crate::sim::scenario::Chance;

/// Reads `[[faults]]`. An error of a whole fault names it by its place, since TOML knows only where
/// the first one begins.
pub(in crate::sim) fn read_faults<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Fault>, D::Error> {
    let tables = Vec::<FaultTable>::deserialize(deserializer)?;
    let mut faults = Vec::with_capacity(tables.len());
    for (table, number) in tables.into_iter().zip(1..) {
        let fault = Fault::try_from(table)
            .map_err(|reason| D::Error::custom(format!("fault {number}: {reason}")))?;
        faults.push(fault);
    }
    Ok(faults)
}

/// The file's shape of a fault: all keys of all kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultTable {
    kind: KindWord,
    service: Option<Service>,
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
    retry_after_date: Option<bool>,
    every: Option<usize>,
    acts_after_ms: Option<u64>,
    oddity: Option<Oddity>,
    limit_above: Option<usize>,
    #[serde(default)]
    pages: Vec<usize>,
    #[serde(default)]
    jobs: Vec<usize>,
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
    Conflict,
    ActsAnyway,
    ExpiredToken,
    Redirect,
    MalformedBody,
    HtmlBody,
    TruncatedBody,
    OversizedBody,
    OddAnswer,
    Slow,
    JobVanishes,
    JobNeverEnds,
    SubJobFails,
    SubJobWithoutId,
    SubJobLeftOut,
    OperationFails,
    OperationNeverEnds,
    Missing,
    Locked,
}

impl TryFrom<FaultTable> for Fault {
    type Error = String;

    fn try_from(mut table: FaultTable) -> Result<Self, String> {
        let kind = table.take_kind()?;
        table.refuse_leftovers()?;
        let FaultTable {
            service,
            on,
            chance,
            calls,
            servers,
            limit_above,
            pages,
            jobs,
            ..
        } = table;
        let when = When {
            service,
            on,
            chance,
            calls,
            servers,
            limit_above,
            pages,
            jobs,
        };
        let is_read = when.limit_above.is_some() || !when.pages.is_empty() || !when.jobs.is_empty();
        if when.chance.is_none() && when.calls.is_empty() && when.servers.is_empty() && !is_read {
            return Err(
                "a fault needs at least one of `chance`, `calls`, `servers`, `limit_above`, `pages`, `jobs`".into()
            );
        }
        if is_read && kind.scope() != Scope::Call {
            return Err("`limit_above`, `pages` and `jobs` go only with faults of calls".into());
        }
        if let (Some(own), Some(other)) = (kind.service(), when.service)
            && own != other
        {
            return Err(format!(
                "this kind of fault is one of {own}, not of {other}"
            ));
        }
        if when.service.is_some() && when.on.contains(&Call::Token) {
            return Err(
                "`service` does not go with `token`: the identity service serves both".into(),
            );
        }
        if kind.scope() != Scope::Call && !when.on.is_empty() {
            return Err("`on` goes only with faults of calls".into());
        }
        if kind.scope() == Scope::Server && !when.calls.is_empty() {
            return Err(
                "`calls` does not go with `missing` and `locked`: they are chosen once".into(),
            );
        }
        if when.pages.contains(&0) || when.jobs.contains(&0) {
            return Err("`pages` and `jobs` count from 1".into());
        }
        if matches!(kind, FaultKind::ActsAnyway { .. })
            && when.on.iter().any(|call| *call != Call::Submit)
        {
            return Err("`acts_anyway` is about submits alone".into());
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
            KindWord::Throttle => FaultKind::Throttle {
                retry_after_s: self.retry_after_s.take(),
                as_date: self.retry_after_date.take().unwrap_or(false),
            },
            KindWord::ErrorBefore => FaultKind::ErrorBefore {
                status: self.take_status(503, 500..=599)?,
            },
            KindWord::ErrorAfter => FaultKind::ErrorAfter {
                status: self.take_status(502, 500..=599)?,
            },
            KindWord::DropBefore => FaultKind::DropBefore,
            KindWord::DropAfter => FaultKind::DropAfter,
            KindWord::Refuse => {
                let status = self.take_status(400, 200..=599)?;
                let (code, message) = self.take_refusal();
                FaultKind::Refuse {
                    status,
                    code,
                    message,
                }
            }
            KindWord::Conflict => FaultKind::Conflict {
                message: self.message.take(),
            },
            KindWord::ActsAnyway => FaultKind::ActsAnyway {
                every: self.every.take().unwrap_or(1).max(1),
                delay_ms: self.delay_ms.take().unwrap_or(0),
            },
            KindWord::ExpiredToken => FaultKind::ExpiredToken {
                code: self.take_token_code()?,
            },
            KindWord::Redirect => FaultKind::Redirect {
                status: self.take_status(302, 300..=399)?,
            },
            KindWord::MalformedBody => FaultKind::MalformedBody,
            KindWord::HtmlBody => FaultKind::HtmlBody,
            KindWord::TruncatedBody => FaultKind::TruncatedBody,
            KindWord::OversizedBody => FaultKind::OversizedBody {
                bytes: self.bytes.take().unwrap_or(16 << 20),
            },
            KindWord::OddAnswer => match self.oddity.take() {
                Some(oddity) => FaultKind::OddAnswer { oddity },
                None => return Err("this kind of fault needs `oddity`".into()),
            },
            KindWord::Slow => FaultKind::Slow {
                delay_ms: self.delay_ms.take().unwrap_or(5000),
            },
            KindWord::JobVanishes => FaultKind::JobVanishes,
            KindWord::JobNeverEnds => FaultKind::JobNeverEnds,
            KindWord::SubJobFails => {
                let (code, message) = self.take_complaint(
                    "BMS.3037",
                    "Insufficient resources or failed to start the BMS.",
                );
                FaultKind::SubJobFails {
                    code,
                    message,
                    acts_after_ms: self.acts_after_ms.take(),
                }
            }
            KindWord::SubJobWithoutId => FaultKind::SubJobWithoutId,
            KindWord::SubJobLeftOut => FaultKind::SubJobLeftOut,
            KindWord::OperationFails => {
                let (code, message) =
                    self.take_complaint(clouddc::FAILED_CODE, clouddc::FAILED_TEXT);
                FaultKind::OperationFails {
                    code,
                    message,
                    acts_after_ms: self.acts_after_ms.take(),
                }
            }
            KindWord::OperationNeverEnds => FaultKind::OperationNeverEnds,
            KindWord::Missing => FaultKind::Missing,
            KindWord::Locked => FaultKind::Locked,
        })
    }

    fn take_status(
        &mut self,
        default: u16,
        allowed: std::ops::RangeInclusive<u16>,
    ) -> Result<u16, String> {
        let status = self.status.take().unwrap_or(default);
        if allowed.contains(&status) {
            return Ok(status);
        }
        Err(format!(
            "`status` is {status}; this kind takes {} to {}",
            allowed.start(),
            allowed.end()
        ))
    }

    fn take_refusal(&mut self) -> (String, String) {
        match self.service {
            Some(Service::CloudDc) => {
                self.take_complaint(clouddc::INVALID_CODE, clouddc::INVALID_TEXT)
            }
            Some(Service::Bms) | None => {
                self.take_complaint("BMS.0212", "System is overloaded, please try again later.")
            }
        }
    }

    /// A code given without a message keeps a general text, never that of another code.
    fn take_complaint(&mut self, code: &str, message: &str) -> (String, String) {
        let text = if self.code.is_none() {
            message
        } else {
            "Refused by the scenario."
        };
        (
            self.code.take().unwrap_or_else(|| code.into()),
            self.message.take().unwrap_or_else(|| text.into()),
        )
    }

    fn take_token_code(&mut self) -> Result<String, String> {
        let code = self.code.take().unwrap_or_else(|| "APIGW.0301".into());
        if code == "APIGW.0301" || code == "APIGW.0307" {
            return Ok(code);
        }
        Err(format!(
            "`code` is {code}; this kind takes APIGW.0301 or APIGW.0307"
        ))
    }

    fn refuse_leftovers(&self) -> Result<(), String> {
        let left = [
            ("status", self.status.is_some()),
            ("code", self.code.is_some()),
            ("message", self.message.is_some()),
            ("bytes", self.bytes.is_some()),
            ("delay_ms", self.delay_ms.is_some()),
            ("retry_after_s", self.retry_after_s.is_some()),
            ("retry_after_date", self.retry_after_date.is_some()),
            ("every", self.every.is_some()),
            ("acts_after_ms", self.acts_after_ms.is_some()),
            ("oddity", self.oddity.is_some()),
        ];
        match left.iter().find(|(_, is_left)| *is_left) {
            Some((key, _)) => Err(format!("`{key}` does not go with this kind of fault")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServerId;
    use crate::sim::scenario::Scenario;

    fn faults(text: &str) -> Result<Vec<Fault>, String> {
        Scenario::from_toml(text)
            .map(|scenario| scenario.faults)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_fault_is_read_with_its_kind_and_conditions() {
        let read = faults(
            "[[faults]]\nkind = \"error_after\"\nstatus = 504\nservice = \"bms\"\non = [\"submit\"]\ncalls = [2, 4]\nservers = [1, \"ab-c\"]\n",
        )
        .expect("valid");
        let when = When {
            service: Some(Service::Bms),
            on: vec![Call::Submit],
            chance: None,
            calls: vec![2, 4],
            servers: vec![ServerRef::Number(1), ServerRef::Id(ServerId("ab-c".into()))],
            ..When::default()
        };
        assert_eq!(
            read,
            [Fault {
                kind: FaultKind::ErrorAfter { status: 504 },
                when
            }]
        );
    }

    #[test]
    fn a_fault_that_makes_no_sense_is_refused_with_its_line() {
        for (text, part) in [
            ("kind = \"throttle\"", "at least one of"),
            (
                "kind = \"throttle\"\nchance = 1.0\nbytes = 5",
                "`bytes` does not go",
            ),
            (
                "kind = \"error_before\"\nchance = 1.0\nstatus = 404",
                "500 to 599",
            ),
            ("kind = \"missing\"\ncalls = [1]", "chosen once"),
            (
                "kind = \"sub_job_fails\"\nchance = 0.5\non = [\"job\"]",
                "only with faults of calls",
            ),
            ("kind = \"slow\"\ncalls = [0]", "count from 1"),
            (
                "kind = \"expired_token\"\nchance = 1.0\ncode = \"X\"",
                "APIGW.0307",
            ),
            ("kind = \"boom\"\nchance = 1.0", "boom"),
            ("kind = \"slow\"\nservice = \"bms\"", "at least one of"),
            ("kind = \"slow\"\nchance = 1.0\nservice = \"ecs\"", "ecs"),
            (
                "kind = \"slow\"\nchance = 1.0\nservice = \"bms\"\non = [\"token\"]",
                "does not go with `token`",
            ),
            (
                "kind = \"job_vanishes\"\nchance = 1.0\nservice = \"clouddc\"",
                "one of bms, not of clouddc",
            ),
            (
                "kind = \"operation_fails\"\nchance = 1.0\nservice = \"bms\"",
                "one of clouddc, not of bms",
            ),
            ("kind = \"odd_answer\"\nchance = 1.0", "needs `oddity`"),
            (
                "kind = \"odd_answer\"\nchance = 1.0\noddity = \"loud\"",
                "loud",
            ),
            (
                "kind = \"acts_anyway\"\nchance = 1.0\non = [\"list\"]",
                "submits alone",
            ),
            (
                "kind = \"locked\"\npages = [1]",
                "only with faults of calls",
            ),
            ("kind = \"slow\"\njobs = [0]", "count from 1"),
            (
                "kind = \"slow\"\nchance = 1.0\nacts_after_ms = 5",
                "`acts_after_ms` does not go",
            ),
        ] {
            let error = faults(&format!("[[faults]]\n{text}\n")).expect_err(text);
            assert!(
                error.contains(part) && error.contains("line "),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_refusal_has_a_code_of_its_service() {
        for (service, expected) in [("", "BMS.0212"), ("service = \"clouddc\"", "CloudDC.0000")] {
            let read = faults(&format!(
                "[[faults]]\nkind = \"refuse\"\nchance = 1.0\n{service}\n"
            ))
            .expect("valid");
            assert!(
                matches!(&read[0].kind, FaultKind::Refuse { code, .. } if code == expected),
                "{read:?}"
            );
        }
    }

    #[test]
    fn an_error_names_the_fault_in_question() {
        let text = "[[faults]]\nkind = \"slow\"\nchance = 0.1\n\n[[faults]]\nkind = \"slow\"\n";
        let error = faults(text).expect_err("the second has no condition");
        assert!(error.contains("fault 2: "), "{error}");
    }
}
