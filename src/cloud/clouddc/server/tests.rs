use proptest::prelude::*;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::*;

const NOW: UtcMillis = UtcMillis(1_795_262_400_000);
const ID: &str = "01939592-e8fe-7d9b-9332-4589486377a4";

macro_rules! example {
    ($name:literal) => {
        include_str!(concat!(
            "../../../../tests/fixtures/api-examples/",
            $name,
            ".json"
        ))
    };
}

fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status,
        headers: HeaderMap::new(),
        body: body.as_bytes().to_vec(),
        ..Answer::default()
    }
}

fn id(text: &str) -> ServerId {
    ServerId(text.to_owned())
}

fn show(status: u16, body: &str, asked: &str) -> Result<Sighting, Fault> {
    read_show(&answer(status, body), &id(asked), NOW).map_err(|error| error.fault)
}

fn list(body: &str) -> Page<String> {
    read_list(&answer(200, body), NOW).expect("a list")
}

/// The view of the server that this body shows.
fn view_of(body: &Value) -> ServerView {
    match show(200, &body.to_string(), "s") {
        Ok(Sighting::Present(view)) => view,
        other => panic!("{body}: {other:?}"),
    }
}

/// Power, activity and last operation of a server with these two words; a word given as `-` is left
/// out.
fn states(power: &str, operation: &str) -> (Power, Activity, Option<Operation>) {
    let fields = [
        ("id", "s"),
        ("power_state", power),
        ("operation_state", operation),
    ];
    let given = fields.iter().filter(|(_, word)| *word != "-");
    let body: serde_json::Map<_, _> = given
        .map(|(name, word)| ((*name).to_owned(), json!(word)))
        .collect();
    let view = view_of(&Value::Object(body));
    (view.power, view.activity, view.operation)
}

fn operation(action: PowerAction, status: JobStatus) -> Option<Operation> {
    Some(Operation { action, status })
}

#[test]
fn every_example_is_read_as_expected() {
    use PowerAction::{Reboot, Start, Stop};
    let view = |power, activity, operation| ServerView {
        operation,
        ..ServerView::of(power, activity)
    };
    let failed = Complaint {
        code: "CloudDC.0000".to_owned(),
        message: "example failure text".to_owned(),
        class: CodeClass::ServerFailed,
    };
    for (body, expected) in [
        (
            example!("clouddc-server-power-on-processing"),
            view(
                Power::Off,
                Activity::PoweringOn,
                operation(Start, JobStatus::Pending),
            ),
        ),
        (
            example!("clouddc-server-power-on-succeed"),
            view(
                Power::On,
                Activity::Idle,
                operation(Start, JobStatus::Succeeded),
            ),
        ),
        (
            example!("clouddc-server-reboot-succeed"),
            view(
                Power::On,
                Activity::Idle,
                operation(Reboot, JobStatus::Succeeded),
            ),
        ),
        (
            example!("clouddc-server-power-off-failed"),
            ServerView {
                error: Some(failed),
                ..view(
                    Power::On,
                    Activity::Idle,
                    operation(Stop, JobStatus::Failed),
                )
            },
        ),
    ] {
        assert_eq!(
            show(200, body, ID),
            Ok(Sighting::Present(expected)),
            "{body}"
        );
        let wrapped = format!("{{\"server\":{body}}}");
        assert_eq!(show(200, &wrapped, ID), show(200, body, ID), "{wrapped}");
    }
    let page = list(example!("clouddc-server-list"));
    let running = view(
        Power::On,
        Activity::Idle,
        operation(Start, JobStatus::Succeeded),
    );
    assert_eq!(
        page,
        Page {
            servers: vec![Listed {
                id: id(ID),
                view: Some(running),
                name: "rack07-node12".to_owned(),
                status: "power-on-succeed".to_owned(),
            }],
            next: Some(ID.to_owned()),
            is_filtered: false,
        }
    );
}

#[test]
fn each_operation_word_tells_its_action_and_how_it_stands() {
    for (start, action, activity) in [
        ("power-on", PowerAction::Start, Activity::PoweringOn),
        ("power-off", PowerAction::Stop, Activity::PoweringOff),
        ("reboot", PowerAction::Reboot, Activity::Rebooting),
    ] {
        let read = |end: &str| {
            let (power, activity, operation) = states("on", &format!("{start}-{end}"));
            assert_eq!(power, Power::On);
            (activity, operation)
        };
        assert_eq!(
            read("processing"),
            (activity, operation(action, JobStatus::Pending))
        );
        assert_eq!(
            read("succeed"),
            (Activity::Idle, operation(action, JobStatus::Succeeded))
        );
        assert_eq!(
            read("FAILED"),
            (Activity::Idle, operation(action, JobStatus::Failed))
        );
        assert_eq!(read("paused"), (Activity::Other, None));
    }
}

#[test]
fn a_server_without_an_operation_is_idle() {
    assert_eq!(states("on", "-"), (Power::On, Activity::Idle, None));
    assert_eq!(states("off", ""), (Power::Off, Activity::Idle, None));
    assert_eq!(
        view_of(&json!({"power_state": "off", "operation_state": null})).activity,
        Activity::Idle
    );
    assert_eq!(
        states("unknown", "-"),
        (Power::Unclear, Activity::Idle, None)
    );
}

#[test]
fn the_older_words_for_power_tell_an_activity() {
    for (word, activity) in [
        ("powering-on", Activity::PoweringOn),
        ("powering-off", Activity::PoweringOff),
        ("Rebooting", Activity::Rebooting),
    ] {
        assert_eq!(states(word, "-"), (Power::Unclear, activity, None));
    }
    // What is left of an earlier operation does not end a transition.
    let left = operation(PowerAction::Reboot, JobStatus::Succeeded);
    assert_eq!(
        states("rebooting", "reboot-succeed"),
        (Power::Unclear, Activity::Rebooting, left)
    );
    let pending = operation(PowerAction::Stop, JobStatus::Pending);
    assert_eq!(
        states("powering-off", "power-off-processing"),
        (Power::Unclear, Activity::PoweringOff, pending)
    );
}

#[test]
fn unknown_words_and_contradictions_prove_nothing() {
    for (power, operation) in [
        ("on", "power-cycle-processing"),
        ("on", "reboot"),
        ("on", "reboot-"),
        ("on", "rebööt-succeed"),
        ("paused", "-"),
        ("-", "-"),
        ("rebooting", "power-off-processing"),
        ("powering-on", "reboot-processing"),
        ("powering-on", "a-new-word"),
    ] {
        assert_eq!(
            states(power, operation).1,
            Activity::Other,
            "{power} {operation}"
        );
    }
    for power in ["paused", "-", "1", "powering-on", "unknown"] {
        assert_eq!(
            states(power, "power-on-succeed").0,
            Power::Unclear,
            "{power}"
        );
    }
}

#[test]
fn an_error_reads_as_this_servers_failure_whatever_its_code() {
    for code in ["CloudDC.0000", "BMS.0038", "APIGW.0308", "", "7"] {
        let error = json!({"error_code": code, "error_msg": "no\npower", "error_type": "t"});
        let read = view_of(&json!({"power_state": "on", "error": error}))
            .error
            .expect("a complaint");
        assert_eq!(
            (read.code.as_str(), read.message.as_str(), read.class),
            (code, "no power", CodeClass::ServerFailed)
        );
    }
    let only_type = view_of(&json!({"id": "s", "error": [{"error_type": "hardware"}]}))
        .error
        .expect("a complaint");
    assert_eq!(only_type.message, "hardware");
    for none in [
        json!(null),
        json!({}),
        json!([]),
        json!(""),
        json!({"error_code": null}),
        json!(3),
    ] {
        assert_eq!(
            view_of(&json!({"id": "s", "error": none})).error,
            None,
            "{none}"
        );
    }
}

#[test]
fn what_no_document_calls_a_lock_is_none() {
    for manage in ["maintain", "offboarding", "frozen", "onboard", "in-use"] {
        let body = json!({"power_state": "on", "manage_state": manage, "frozen_state": 1, "health_state": "Critical"});
        assert_eq!(
            view_of(&body),
            ServerView::of(Power::On, Activity::Idle),
            "{manage}"
        );
    }
}

#[test]
fn a_server_is_missing_only_if_the_service_itself_says_so() {
    let missing = Ok(Sighting::Missing);
    assert_eq!(show(404, example!("clouddc-error-400"), "s"), missing);
    assert_eq!(
        show(
            404,
            r#"{"error_code":404,"error_msg":"no such server"}"#,
            "s"
        ),
        missing
    );
    assert_eq!(
        show(404, example!("gateway-error-404-api"), "s"),
        Err(Fault::Configuration)
    );
    assert_eq!(
        show(404, r#"{"error_code":"APIG.9999","error_msg":"?"}"#, "s"),
        Err(Fault::Configuration)
    );
    for body in ["", "<html>", "{}", "[]"] {
        assert_eq!(show(404, body, "s"), Err(Fault::Configuration), "{body}");
    }
    let refused = Err(Fault::Refused(CodeClass::Other));
    for body in [
        r#"{"timestamp":1,"status":404,"error":"Not Found","path":"/v1/p/physicalservers/s"}"#,
        r#"{"message":"no route matched"}"#,
        r#"{"error_code":"X.1"}"#,
        r#"{"error_code":"IAM.9999","error_msg":"?"}"#,
        example!("nova-error-not-found"),
    ] {
        assert_eq!(show(404, body, "s"), refused, "{body}");
    }
    assert_eq!(show(400, example!("clouddc-error-400"), "s"), refused);
    assert_eq!(
        show(400, example!("bms-submit-error-not-exist"), "s"),
        refused,
        "another service's code"
    );
    assert_eq!(
        show(500, example!("clouddc-error-400"), "s"),
        Err(Fault::Unavailable)
    );
}

#[test]
fn an_answer_that_shows_no_server_or_another_one_is_not_believed() {
    for body in [
        "",
        "{}",
        "null",
        "<html>",
        r#"{"id":"other","power_state":"on"}"#,
        r#"{"server":{}}"#,
        r#"{"server":null}"#,
        r#"["s","on"]"#,
        r#"{"server":["s","on"]}"#,
        example!("clouddc-server-status"),
        example!("clouddc-server-list"),
        example!("clouddc-error-400"),
    ] {
        assert_eq!(show(200, body, "s"), Err(Fault::Unavailable), "{body}");
    }
    let odd = r##"{"id":{"$ref":"#/definitions/UUID"},"power_state":"on"}"##;
    assert_eq!(
        show(200, odd, "s"),
        Ok(Sighting::Present(ServerView::of(Power::On, Activity::Idle)))
    );
}

#[test]
fn a_page_names_the_next_one_or_is_the_last() {
    let next = |info: &str| {
        list(&format!(
            r#"{{"servers":[],"page_info":{info},"count":99}}"#
        ))
        .next
    };
    assert_eq!(next(r#"{"next_marker":"a"}"#).as_deref(), Some("a"));
    assert_eq!(next(r#"{"next_marker":7}"#).as_deref(), Some("7"));
    assert_eq!(
        next(r#"[{"next_marker":"https://h/p?limit=10&marker=b"}]"#).as_deref(),
        Some("b")
    );
    for info in [
        "null",
        "{}",
        "\"\"",
        r#"{"next_marker":null}"#,
        r#"{"next_marker":""}"#,
        r#"{"previous_marker":"a"}"#,
    ] {
        assert_eq!(next(info), None, "{info}");
    }
    assert_eq!(
        list(r#"{"servers":null}"#),
        Page {
            servers: vec![],
            next: None,
            is_filtered: false,
        }
    );
}

#[test]
fn an_unreadable_list_shows_nobody_missing() {
    for body in [
        "",
        "{}",
        "<html>",
        r#"{"count":3}"#,
        r#"{"servers":[{"id":"a"#,
    ] {
        let error = read_list(&answer(200, body), NOW).expect_err("unreadable");
        assert_eq!(error.fault, Fault::Unavailable, "{body}");
    }
    let odd = r#"{"servers":[null,3,{"power_state":"on"},{"id":{}},{"id":"a","power_state":{}}]}"#;
    assert_eq!(
        list(odd).servers,
        [Listed {
            id: id("a"),
            view: Some(ServerView::of(Power::Unclear, Activity::Other)),
            name: String::new(),
            status: String::new(),
        }]
    );
}

/// JSON that holds the service's own names and words, put together at random.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        "[a-z-]{0,12}",
        "(power-on|power-off|reboot)-(processing|succeed|failed|x)",
        "(on|off|powering-on|rebooting|unknown|s)",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    let name = prop_oneof![
        4 => proptest::sample::select(vec![
            "id", "servers", "server", "power_state", "operation_state", "error", "error_code", "error_msg", "error_type",
            "page_info", "next_marker", "physical_servers",
        ]).prop_map(str::to_owned),
        1 => "[a-z_]{0,6}",
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(status in 200_u16..600, body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let answer = Answer { status, body, ..Answer::default() };
        let _ = read_list(&answer, NOW);
        prop_assert_ne!(read_show(&answer, &id("s"), NOW), Ok(Sighting::Missing));
    }

    #[test]
    fn no_json_is_misread(status in prop_oneof![Just(200_u16), 200..300_u16, 400..600_u16], body in any_json()) {
        let success = status < 300;
        let text = body.to_string();
        match show(status, &text, "s") {
            Ok(Sighting::Missing) => {
                prop_assert_eq!(status, 404);
                prop_assert!(!body["error_code"].is_null() && !body["error_msg"].is_null());
            }
            Ok(Sighting::Present(view)) => {
                prop_assert!(success && body.is_object());
                prop_assert!(!view.locked);
                prop_assert!(view.error.is_none_or(|error| error.class == CodeClass::ServerFailed));
                // Nothing that is being done is shown as over, and nothing idle without a word that says so.
                let pending = view.operation.is_some_and(|operation| operation.status == JobStatus::Pending);
                prop_assert!(!(pending && view.activity == Activity::Idle));
                let told = ["power_state", "operation_state"].iter().any(|name| text.contains(name));
                prop_assert!(told || view.activity == Activity::Other);
            }
            Err(fault) => prop_assert!(!success || fault == Fault::Unavailable, "{:?}", fault),
        }
        let answer = answer(status, &text);
        match read_list(&answer, NOW) {
            Ok(_) => prop_assert!(success && body.get("servers").is_some()),
            Err(error) => prop_assert!(!success || error.fault == Fault::Unavailable, "{:?}", error),
        }
        let submitted = super::super::power::read_submit(&answer, NOW);
        match submitted.map_err(|error| error.fault) {
            Ok(_) => prop_assert!(success && body.is_object()),
            Err(fault) if success || status >= 500 => prop_assert_eq!(fault, Fault::Lost),
            Err(Fault::Refused(class)) => prop_assert!(matches!(class, CodeClass::Other | CodeClass::BatchInvalid)),
            Err(_) => {}
        }
    }
}
