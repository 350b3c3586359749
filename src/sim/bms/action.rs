//! The body of `POST …/baremetalservers/action`: read strictly, as a service that knows its own
//! document. Changes nothing.

use serde::Deserialize;

use super::server::Refusal;
use crate::model::{PowerAction, ServerId};

/// Exactly one of the three must be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    #[serde(rename = "os-start")]
    start: Option<StartBody>,
    #[serde(rename = "os-stop")]
    stop: Option<StopBody>,
    reboot: Option<RebootBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartBody {
    servers: Vec<ServerBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StopBody {
    #[serde(rename = "type")]
    _type: Option<TypeWord>,
    servers: Vec<ServerBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RebootBody {
    #[serde(rename = "type")]
    _type: TypeWord,
    servers: Vec<ServerBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerBody {
    id: ServerId,
}

/// Both words are taken and neither matters: `SOFT` "takes no effect", every stop and reboot is
/// forced.
#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum TypeWord {
    Soft,
    Hard,
}

/// Reads an action and its servers, or says why not: `BMS.0001` for what is no JSON, `BMS.0018` for
/// what is another body.
pub(in crate::sim) fn read(body: &[u8]) -> Result<(PowerAction, Vec<ServerId>), Refusal> {
    let parsed: ActionBody = serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            return invalid();
        }
        Refusal::new(
            "BMS.0001",
            format!("Fail to parse request, reason: {error}."),
        )
    })?;
    let (action, servers) = match (parsed.start, parsed.stop, parsed.reboot) {
        (Some(body), None, None) => (PowerAction::Start, body.servers),
        (None, Some(body), None) => (PowerAction::Stop, body.servers),
        (None, None, Some(body)) => (PowerAction::Reboot, body.servers),
        _ => return Err(invalid()),
    };
    Ok((
        action,
        servers.into_iter().map(|server| server.id).collect(),
    ))
}

fn invalid() -> Refusal {
    Refusal::new("BMS.0018", "Request parameter is invalid.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> String {
        read(body.as_bytes()).expect_err(body).code
    }

    #[test]
    fn the_documented_bodies_are_read() {
        for (body, action) in [
            (
                r#"{"os-start":{"servers":[{"id":"a"},{"id":"b"}]}}"#,
                PowerAction::Start,
            ),
            (
                r#"{"os-stop":{"servers":[{"id":"a"},{"id":"b"}]}}"#,
                PowerAction::Stop,
            ),
            (
                r#"{"os-stop":{"type":"SOFT","servers":[{"id":"a"},{"id":"b"}]}}"#,
                PowerAction::Stop,
            ),
            (
                r#"{"reboot":{"type":"HARD","servers":[{"id":"a"},{"id":"b"}]}}"#,
                PowerAction::Reboot,
            ),
        ] {
            let ids = vec![ServerId("a".into()), ServerId("b".into())];
            assert_eq!(read(body.as_bytes()).expect(body), (action, ids));
        }
    }

    #[test]
    fn other_bodies_are_refused() {
        for body in [
            r#"{}"#,
            r#"{"os-start":{"servers":[{"id":"a"}]},"os-stop":{"servers":[{"id":"a"}]}}"#,
            r#"{"os-start":{"type":"HARD","servers":[{"id":"a"}]}}"#,
            r#"{"reboot":{"servers":[{"id":"a"}]}}"#,
            r#"{"reboot":{"type":"hard","servers":[{"id":"a"}]}}"#,
            r#"{"os-stop":{"servers":["a"]}}"#,
            r#"{"os-stop":{"servers":{"id":"a"}}}"#,
            r#"{"power-cycle":{"servers":[{"id":"a"}]}}"#,
            r#"[]"#,
            r#"{"os-start":null}"#,
        ] {
            assert_eq!(code(body), "BMS.0018", "{body}");
        }
        assert_eq!(code(r#"{"os-start""#), "BMS.0001");
        assert_eq!(code(""), "BMS.0001");
    }
}
