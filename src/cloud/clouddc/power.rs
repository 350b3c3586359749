//! The power call of CloudDC: its body, and what its answer says. Pure: values in, values out.
//!
//! What happens to the servers afterwards is read by `server`.

use serde_json::{Map, Value, json};

use crate::cloud::answer::{Answer, CallKind};
use crate::cloud::complaint::find_complaint;
use crate::model::{CallError, PowerAction, ServerId, Service, Tracking, UtcMillis};

/// The body of a power call. `server_id_set` is always there: what the call does without it is not
/// documented.
pub fn body(action: PowerAction, servers: &[ServerId]) -> Value {
    let word = match action {
        PowerAction::Start => "power on",
        PowerAction::Stop => "power off",
        PowerAction::Reboot => "rebooting",
    };
    let servers: Vec<_> = servers.iter().map(|server| &server.0).collect();
    json!({ "action": word, "server_id_set": servers })
}

/// How an accepted power call is followed: by the servers' states.
///
/// Any 2xx whose body is a JSON object without a complaint is an acceptance. The documents print
/// 200 alone, and a list of ids that are not strings (`{"$ref": …}`), so neither the list nor its
/// ids are required. They do not say whether refused servers are left out of it; the servers' own
/// states will show. The object is required because something in front of the service may answer
/// with a web page, half an answer or nothing.
///
/// # Errors
/// Everything else. A success that is no such object is `Lost`, unless the gateway's code in it
/// says more.
pub fn read_submit(answer: &Answer, now: UtcMillis) -> Result<Tracking, CallError> {
    let body: Option<Map<String, Value>> = answer.success();
    match body
        .map(Value::Object)
        .filter(|body| find_complaint(body).is_none())
    {
        Some(_) => Ok(Tracking::ServerState),
        None => Err(answer.error_of(Service::CloudDc, CallKind::Submit, now)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::model::{CodeClass, Fault};

    const NOW: UtcMillis = UtcMillis(1_795_262_400_000);

    macro_rules! example {
        ($name:literal) => {
            include_str!(concat!(
                "../../../tests/fixtures/api-examples/",
                $name,
                ".json"
            ))
        };
    }

    fn submit(status: u16, body: impl AsRef<[u8]>) -> Result<Tracking, Fault> {
        let answer = Answer {
            status,
            headers: HeaderMap::new(),
            body: body.as_ref().to_vec(),
            ..Answer::default()
        };
        read_submit(&answer, NOW).map_err(|error| error.fault)
    }

    #[test]
    fn a_power_call_has_the_documented_body() {
        let documented: Value =
            serde_json::from_str(example!("clouddc-power-request")).expect("JSON");
        let servers = [ServerId("01939592-e8fe-7d9b-9332-4589486377a4".to_owned())];
        assert_eq!(body(PowerAction::Start, &servers), documented);
        assert_eq!(body(PowerAction::Stop, &servers)["action"], "power off");
        assert_eq!(body(PowerAction::Reboot, &servers)["action"], "rebooting");
    }

    #[test]
    fn the_status_accepts_whatever_the_list_of_ids_looks_like() {
        for body in [
            example!("clouddc-power-response"),
            example!("clouddc-power-response-documented-template-bug"),
            r#"{"physical_servers":[]}"#,
            r#"{"physical_servers":null}"#,
            "{}",
        ] {
            assert_eq!(submit(200, body), Ok(Tracking::ServerState), "{body}");
            assert_eq!(submit(202, body), Ok(Tracking::ServerState), "{body}");
        }
    }

    #[test]
    fn a_success_that_is_not_the_services_or_complains_is_lost() {
        let accepted = example!("clouddc-power-response");
        let truncated = &accepted[..accepted.len() / 2];
        for body in [
            "",
            "<html>",
            "[]",
            "null",
            "\"ok\"",
            "1",
            truncated,
            example!("clouddc-error-400"),
        ] {
            assert_eq!(submit(200, body), Err(Fault::Lost), "{body}");
        }
        assert_eq!(submit(204, ""), Err(Fault::Lost));
    }

    #[test]
    fn refusals_get_their_faults() {
        let body = example!("clouddc-error-400");
        assert_eq!(
            submit(400, body),
            Err(Fault::Refused(CodeClass::Other)),
            "no code is documented: look"
        );
        assert_eq!(submit(401, body), Err(Fault::Credentials));
        assert_eq!(submit(403, body), Err(Fault::Permission));
        assert_eq!(submit(404, body), Err(Fault::Refused(CodeClass::Other)));
        assert_eq!(submit(404, "<html>"), Err(Fault::Configuration));
        assert_eq!(submit(500, body), Err(Fault::Lost));
        assert_eq!(submit(302, body), Err(Fault::Configuration));
        assert!(matches!(
            submit(429, "\"overloaded\""),
            Err(Fault::Throttled { .. })
        ));
    }

    proptest! {
        #[test]
        fn garbage_is_no_acceptance_and_never_called_not_carried_out(
            status in prop_oneof![200_u16..300, 500_u16..600],
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            // Two bytes are enough for an empty object.
            prop_assume!(body.first() != Some(&b'{'));
            prop_assert_eq!(submit(status, body), Err(Fault::Lost));
        }
    }
}
