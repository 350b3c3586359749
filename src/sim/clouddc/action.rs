//! The body of `PUT …/physicalservers/power-state`: read strictly, as a service that knows its own
//! document. Changes nothing.

use serde::Deserialize;

use crate::model::{PowerAction, ServerId};

/// Most servers in one call.
const SERVERS_MAX: usize = 50;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    action: ActionWord,
    server_id_set: Vec<ServerId>,
}

#[derive(Deserialize)]
enum ActionWord {
    #[serde(rename = "power on")]
    PowerOn,
    #[serde(rename = "power off")]
    PowerOff,
    #[serde(rename = "rebooting")]
    Rebooting,
}

/// Reads an action and its servers; `None` for any other body, also one without `server_id_set`.
///
/// The document marks the ids as optional and does not say what a call without them does; here it
/// is refused.
pub(in crate::sim) fn read(body: &[u8]) -> Option<(PowerAction, Vec<ServerId>)> {
    let body: Body = serde_json::from_slice(body).ok()?;
    let action = match body.action {
        ActionWord::PowerOn => PowerAction::Start,
        ActionWord::PowerOff => PowerAction::Stop,
        ActionWord::Rebooting => PowerAction::Reboot,
    };
    Some((action, body.server_id_set))
}

/// True for 1 to 50 ids, none of them twice. What the service does with a repeated one is not
/// documented.
pub(super) fn is_valid_set(ids: &[ServerId]) -> bool {
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    (1..=SERVERS_MAX).contains(&ids.len()) && distinct.len() == ids.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_bodies_are_read() {
        for (word, action) in [
            ("power on", PowerAction::Start),
            ("power off", PowerAction::Stop),
            ("rebooting", PowerAction::Reboot),
        ] {
            let body = format!(r#"{{"action": "{word}", "server_id_set": ["a", "b"]}}"#);
            let ids = vec![ServerId("a".into()), ServerId("b".into())];
            assert_eq!(read(body.as_bytes()), Some((action, ids)));
        }
        let example =
            include_bytes!("../../../tests/fixtures/api-examples/clouddc-power-request.json");
        assert_eq!(read(example).expect("printed in the document").1.len(), 1);
    }

    #[test]
    fn other_bodies_are_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"action":"power on"}"#,
            r#"{"action":"power on","server_id_set":null}"#,
            r#"{"action":"power on","server_id_set":"a"}"#,
            r#"{"action":"power on","server_id_set":[{"id":"a"}]}"#,
            r#"{"server_id_set":["a"]}"#,
            r#"{"action":"reboot","server_id_set":["a"]}"#,
            r#"{"action":"power-on","server_id_set":["a"]}"#,
            r#"{"action":"Power On","server_id_set":["a"]}"#,
            r#"{"action":"power on","server_id_set":["a"],"type":"SOFT"}"#,
        ] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
    }
}
