//! The properties of the simulated cloud: the scenario file, its defaults and its rules. Runs
//! nothing.
//!
//! Every key may be left out; `config/scenario.toml` lists all of them with their defaults. Unknown
//! keys are errors. Ranges are `[least, most]` pairs of milliseconds, chances go from 0.0 to 1.0.

mod bms;
pub mod clouddc;
mod field_types;

use serde::Deserialize;

use super::faults::{Fault, FaultKind, ServerRef, When, read_faults};
use super::record::Call;
use super::rng::Rng;
use crate::model::{ServerId, Service};

pub use bms::{BmsScenario, MissingShow, ParentOnFailure, Refusals};
pub use clouddc::CloudDcScenario;
pub use field_types::{Chance, Span, Unset};

/// A whole scenario. `Scenario::default()`: 1,000 BMS servers and 100 CloudDC servers, half of them
/// running, operations of 1 to 3 s, no faults, no rates.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// `seed`: decides ids, durations and faults by chance; default 1.
    pub seed: u64,
    /// `token_lifetime_s`: how long an issued token is valid, in seconds; default 86400.
    pub token_lifetime_s: u64,
    /// `[credentials]`: who may call.
    pub credentials: Credentials,
    /// `[latency]`: how long an answer takes.
    pub latency: Latency,
    /// `[rates]`: calls allowed in any 60 s.
    pub rates: Rates,
    /// `[bms]`: the Bare Metal Server service.
    pub bms: BmsScenario,
    /// `[clouddc]`: the Cloud Data Center service.
    pub clouddc: CloudDcScenario,
    /// `[[faults]]`: what goes wrong; see [`Fault`].
    #[serde(deserialize_with = "read_faults")]
    pub faults: Vec<Fault>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 1,
            token_lifetime_s: 24 * 60 * 60,
            credentials: Credentials::default(),
            latency: Latency::default(),
            rates: Rates::default(),
            bms: BmsScenario::default(),
            clouddc: CloudDcScenario::default(),
            faults: Vec::new(),
        }
    }
}

/// `[credentials]`: the one user, its access key and its project.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Credentials {
    /// `access_key`; default `POWERYARDSIMAK`.
    pub access_key: String,
    /// `secret_key`; default `poweryard-sim-secret-key`.
    pub secret_key: String,
    /// `security_token`: makes the key pair a temporary one that must come with this token;
    /// default "" (a permanent pair).
    pub security_token: String,
    /// `user`: the IAM user's name; default `sim`.
    pub user: String,
    /// `password`; default `sim-password`.
    pub password: String,
    /// `domain`: the account's name; default `sim`.
    pub domain: String,
    /// `project_id`; default `bbf1946d374b44a0a2a95533562ba954`.
    pub project_id: String,
    /// `project_name`; default `sim`.
    pub project_name: String,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            access_key: "POWERYARDSIMAK".into(),
            secret_key: "poweryard-sim-secret-key".into(),
            security_token: String::new(),
            user: "sim".into(),
            password: "sim-password".into(),
            domain: "sim".into(),
            project_id: "bbf1946d374b44a0a2a95533562ba954".into(),
            project_name: "sim".into(),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key", &self.access_key)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// `[latency]`: from a call's arrival to the first byte of its answer, a range in ms; default `[0,
/// 0]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Latency {
    /// `submit_ms`
    pub submit_ms: Span,
    /// `job_ms`
    pub job_ms: Span,
    /// `list_ms`
    pub list_ms: Span,
    /// `show_ms`
    pub show_ms: Span,
    /// `token_ms`
    pub token_ms: Span,
}

impl Latency {
    pub(super) fn of(&self, call: Call) -> Span {
        match call {
            Call::Submit => self.submit_ms,
            Call::Job => self.job_ms,
            Call::List => self.list_ms,
            Call::Show => self.show_ms,
            Call::Token => self.token_ms,
        }
    }
}

/// `[rates]`: calls of one kind allowed in any 60 s, separately for each service; 0, the default:
/// no limit. Documented for BMS: 50, 2000, 500 and 1000; for CloudDC: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// `submits_per_minute`: start, stop and reboot together.
    pub submits_per_minute: u32,
    /// `jobs_per_minute`
    pub jobs_per_minute: u32,
    /// `lists_per_minute`
    pub lists_per_minute: u32,
    /// `shows_per_minute`
    pub shows_per_minute: u32,
    /// `retry_after_s`: the `Retry-After` of a 429, in seconds; 0, the default: no such header.
    pub retry_after_s: u32,
    /// `refused_calls_count`: a call answered 429 takes a place in the window too; default true.
    pub refused_calls_count: bool,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            submits_per_minute: 0,
            jobs_per_minute: 0,
            lists_per_minute: 0,
            shows_per_minute: 0,
            retry_after_s: 0,
            refused_calls_count: true,
        }
    }
}

impl Rates {
    pub(super) fn of(&self, call: Call) -> u32 {
        match call {
            Call::Submit => self.submits_per_minute,
            Call::Job => self.jobs_per_minute,
            Call::List => self.lists_per_minute,
            Call::Show => self.shows_per_minute,
            Call::Token => 0,
        }
    }
}

/// Why a text is not a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not TOML, an unknown key, or a value outside its bounds; the message names the line and the
    /// key, or the fault.
    #[error("not a scenario: {0}")]
    Toml(#[from] toml::de::Error),
    /// A fault is about a server that the scenario does not have.
    #[error(
        "not a scenario: `servers` of fault {fault} has the number {number}, but `{service}.servers` is {servers}"
    )]
    NoSuchServer {
        /// The fault's place in the file, from 1.
        fault: usize,
        /// The service whose servers are numbered.
        service: Service,
        /// The server's number.
        number: usize,
        /// How many servers there are.
        servers: usize,
    },
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// Not TOML, an unknown key, a value outside its bounds, or a fault that lacks or does not take
    /// a key.
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        for (fault, at) in scenario.faults.iter().zip(1..) {
            let service = fault.numbered_service();
            let servers = scenario.server_count(service);
            for server in &fault.when.servers {
                match *server {
                    ServerRef::Number(number) if number > servers => {
                        return Err(ScenarioError::NoSuchServer {
                            fault: at,
                            service,
                            number,
                            servers,
                        });
                    }
                    ServerRef::Number(_) | ServerRef::Id(_) => {}
                }
            }
        }
        Ok(scenario)
    }

    /// The ids of all servers of `service`, in the order of its list call; also those that a fault
    /// makes missing.
    pub fn server_ids(&self, service: Service) -> Vec<ServerId> {
        let mut rng = match service {
            Service::Bms => Rng::new(self.seed, "bms server ids"),
            Service::CloudDc => Rng::new(self.seed, "clouddc server ids"),
        };
        (0..self.server_count(service))
            .map(|_| ServerId(uuid(rng.next_u128())))
            .collect()
    }

    fn server_count(&self, service: Service) -> usize {
        match service {
            Service::Bms => self.bms.servers,
            Service::CloudDc => self.clouddc.servers,
        }
    }

    /// Adds a fault, for scenarios written in Rust.
    #[must_use]
    pub fn with_fault(mut self, kind: FaultKind, when: When) -> Self {
        self.faults.push(Fault { kind, when });
        self
    }
}

/// A version 4 UUID of these bits.
fn uuid(bits: u128) -> String {
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// True if the server with this index, from 0, runs at first: `share` of all do, spread evenly.
pub(super) fn is_running_at_first(index: usize, share: f64) -> bool {
    let running_before = (index as f64 * share).round();
    let running_after = ((index + 1) as f64 * share).round();
    running_after > running_before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_lists_every_key_with_its_default() {
        let text = include_str!("../../config/scenario.toml");
        assert_eq!(
            Scenario::from_toml(text).expect("the example is valid"),
            Scenario::default()
        );
        for (key, _) in text.parse::<toml::Table>().expect("the example is TOML") {
            assert_ne!(key, "faults", "the default has no faults");
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(
            Scenario::from_toml("").expect("nothing is required"),
            Scenario::default()
        );
    }

    #[test]
    fn errors_name_the_line_and_the_key() {
        let unknown = Scenario::from_toml("seed = 2\n[bms]\nservrs = 3\n")
            .expect_err("misspelt")
            .to_string();
        assert!(
            unknown.contains("line 3") && unknown.contains("servrs"),
            "{unknown}"
        );
        let chance = Scenario::from_toml("[bms]\nrunning = 1.5\n")
            .expect_err("too much")
            .to_string();
        assert!(
            chance.contains("line 2") && chance.contains("0.0 to 1.0"),
            "{chance}"
        );
        let range = Scenario::from_toml("[latency]\njob_ms = [5, 1]\n")
            .expect_err("backwards")
            .to_string();
        assert!(
            range.contains("line 2") && range.contains("[least, most]"),
            "{range}"
        );
    }

    #[test]
    fn a_fault_cannot_be_about_a_server_that_is_not_there() {
        let text = "[bms]\nservers = 3\n[[faults]]\nkind = \"locked\"\nservers = [3, 4]\n";
        let error = Scenario::from_toml(text)
            .expect_err("three servers")
            .to_string();
        assert!(
            error.contains("fault 1")
                && error.contains("number 4")
                && error.contains("bms.servers` is 3"),
            "{error}"
        );
        for own in [
            "kind = \"locked\"\nservice = \"clouddc\"",
            "kind = \"operation_fails\"",
        ] {
            let text = format!("[clouddc]\nservers = 2\n[[faults]]\n{own}\nservers = [3]\n");
            let error = Scenario::from_toml(&text)
                .expect_err("two servers")
                .to_string();
            assert!(
                error.contains("number 3") && error.contains("clouddc.servers` is 2"),
                "{error}"
            );
        }
    }

    #[test]
    fn server_ids_are_uuids_that_depend_on_the_seed_alone() {
        let [ids, others] =
            [Service::Bms, Service::CloudDc].map(|service| Scenario::default().server_ids(service));
        assert_eq!((ids.len(), others.len()), (1000, 100));
        assert_eq!(ids, Scenario::default().server_ids(Service::Bms));
        assert_ne!(
            ids,
            Scenario {
                seed: 2,
                ..Scenario::default()
            }
            .server_ids(Service::Bms)
        );
        assert_ne!(ids[..100], others);
        assert!(ids.iter().chain(&others).all(|id| ServerId::is_valid(&id.0)
            && id.0.len() == 36
            && id.0.as_bytes()[14] == b'4'));
    }

    #[test]
    fn credentials_do_not_print_their_secrets() {
        let printed = format!("{:?}", Credentials::default());
        assert!(
            !printed.contains("secret") && !printed.contains("sim-password"),
            "{printed}"
        );
    }
}
