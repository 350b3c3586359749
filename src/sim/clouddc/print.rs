//! How the list and the show call print a server: every documented field, as text. Decides nothing.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use super::server::{Failure, Server, Shown};
use crate::model::UtcMillis;
use crate::sim::answer::in_quotes;
use crate::sim::scenario::clouddc::LockedShows;
use crate::sim::scenario::{CloudDcScenario, Unset};

/// Servers in one rack.
const RACK_SERVERS: usize = 20;

/// Prints servers of one project.
#[derive(Debug, Clone)]
pub(super) struct Printer {
    project: String,
    locked_shows: LockedShows,
    no_operation_state: Unset,
    transition_words: bool,
}

impl Printer {
    pub(super) fn new(project: &str, settings: &CloudDcScenario) -> Self {
        let CloudDcScenario {
            locked_shows,
            no_operation_state,
            transition_words,
            ..
        } = *settings;
        Self {
            project: project.to_owned(),
            locked_shows,
            no_operation_state,
            transition_words,
        }
    }

    /// Appends `server` as it is at `now`.
    pub(super) fn write(&self, out: &mut String, server: &Server, now: UtcMillis) {
        let shown = server.shown(now, self.transition_words);
        let written = write_identity(out, server, &self.project)
            .and_then(|()| self.write_management(out, server))
            .and_then(|()| self.write_power(out, &shown))
            .and_then(|()| write_hardware(out, server));
        written.expect("a String takes any text");
    }

    /// `manage_state` of this server.
    pub(super) fn manage_state(&self, server: &Server) -> &'static str {
        match self.locked_shows {
            LockedShows::Maintain if server.is_locked => "maintain",
            LockedShows::Frozen if server.is_locked => "frozen",
            LockedShows::Maintain | LockedShows::Frozen | LockedShows::FrozenState => "in-use",
        }
    }

    /// `power_state` of this server.
    pub(super) fn power_state(&self, server: &Server, now: UtcMillis) -> &'static str {
        server.shown(now, self.transition_words).power_state
    }

    fn write_management(&self, out: &mut String, server: &Server) -> fmt::Result {
        write!(
            out,
            r#""manage_state":"{}","health_state":"OK","#,
            self.manage_state(server)
        )?;
        match self.locked_shows {
            LockedShows::FrozenState => {
                write!(out, r#""frozen_state":{},"#, u8::from(server.is_locked))
            }
            LockedShows::Maintain | LockedShows::Frozen => Ok(()),
        }
    }

    fn write_power(&self, out: &mut String, shown: &Shown<'_>) -> fmt::Result {
        write!(out, r#""power_state":"{}","#, shown.power_state)?;
        match self.no_operation_state.field(shown.operation_state) {
            Some(Some(word)) => write!(out, r#""operation_state":"{word}","#)?,
            Some(None) => out.write_str(r#""operation_state":null,"#)?,
            None => {}
        }
        match shown.failure {
            Some(failure) => write!(out, r#""error":{},"#, error(failure)),
            None => Ok(()),
        }
    }
}

fn error(failure: &Failure) -> Value {
    json!({"error_code": failure.code, "error_msg": failure.message, "error_type": "operation"})
}

fn write_identity(out: &mut String, server: &Server, project: &str) -> fmt::Result {
    let id = &server.id;
    let name = in_quotes(&server.name);
    write!(
        out,
        r#"{{"id":"{id}","name":"{name}","project_id":"{project}","#
    )?;
    out.write_str(
        r#""domain_id":"d78cbac186b744899480f25bd022f000","onboard_time":"2026-01-01T00:00:00Z","#,
    )
}

fn write_hardware(out: &mut String, server: &Server) -> fmt::Result {
    let rack = server.index / RACK_SERVERS + 1;
    let unit = server.index % RACK_SERVERS + 1;
    let number = server.index + 1;
    write!(
        out,
        r#""location":{{"dc":"dc1","rack":"rack{rack:02}","unit":"{unit}"}},"#
    )?;
    write!(
        out,
        r#""hardware_attributes":{{"sn":"2102313CNX10K{number:07}","manufacturer":"Huawei","#
    )?;
    out.write_str(r#""model":"2288H V5"},"tags":[]}"#)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::server::Ended;
    use super::*;
    use crate::model::{PowerAction, ServerId};

    fn server() -> Server {
        Server::new(
            ServerId("01939592-e8fe-7d9b-9332-4589486377a4".into()),
            0,
            true,
        )
    }

    fn print(server: &Server, settings: &CloudDcScenario) -> Value {
        let mut out = String::new();
        Printer::new("p", settings).write(&mut out, server, UtcMillis(0));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    fn keys(server: &Value) -> Vec<&String> {
        server.as_object().expect("an object").keys().collect()
    }

    #[test]
    fn a_printed_server_has_the_fields_of_the_examples() {
        let mut failed = server();
        let failure = Failure {
            code: "C.1".into(),
            message: "\"quoted\"".into(),
        };
        failed.last = Some(Ended {
            action: PowerAction::Stop,
            failure: Some(failure),
        });
        let printed = print(&failed, &CloudDcScenario::default());
        let example = include_str!(
            "../../../tests/fixtures/api-examples/clouddc-server-power-off-failed.json"
        );
        let example: Value = serde_json::from_str(example).expect("JSON");
        assert_eq!(keys(&printed), keys(&example));
        for part in ["error", "location", "hardware_attributes"] {
            assert_eq!(keys(&printed[part]), keys(&example[part]));
        }
        assert_eq!(
            (&printed["operation_state"], &printed["power_state"]),
            (&"power-off-failed".into(), &"on".into())
        );
        assert_eq!(printed["error"]["error_msg"], "\"quoted\"");
    }

    #[test]
    fn no_operation_is_left_out_or_null() {
        for (no_operation_state, expected) in
            [(Unset::Omitted, None), (Unset::Null, Some(&Value::Null))]
        {
            let settings = CloudDcScenario {
                no_operation_state,
                ..CloudDcScenario::default()
            };
            let printed = print(&server(), &settings);
            assert_eq!(printed.get("operation_state"), expected);
            assert_eq!(printed.get("error"), None);
        }
    }

    #[test]
    fn a_locked_server_is_told_in_one_of_three_ways() {
        let locked = Server {
            is_locked: true,
            ..server()
        };
        let told = |server: &Server, locked_shows| {
            let printed = print(
                server,
                &CloudDcScenario {
                    locked_shows,
                    ..CloudDcScenario::default()
                },
            );
            (
                printed["manage_state"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                printed["frozen_state"].as_u64(),
            )
        };
        assert_eq!(
            told(&locked, LockedShows::Maintain),
            ("maintain".into(), None)
        );
        assert_eq!(told(&locked, LockedShows::Frozen), ("frozen".into(), None));
        assert_eq!(
            told(&locked, LockedShows::FrozenState),
            ("in-use".into(), Some(1))
        );
        assert_eq!(
            told(&server(), LockedShows::Maintain),
            ("in-use".into(), None)
        );
        assert_eq!(
            told(&server(), LockedShows::FrozenState),
            ("in-use".into(), Some(0))
        );
    }
}
