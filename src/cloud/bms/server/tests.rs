use proptest::prelude::*;
use reqwest::header::HeaderMap;

use super::*;

const NOW: UtcMillis = UtcMillis(1_795_262_400_000);

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

/// The view of a server with these v1 fields; a field given as `-` is left out.
fn view(status: &str, vm: &str, power: &str, task: &str) -> (Power, Activity) {
    let fields = [
        ("status", status),
        ("OS-EXT-STS:vm_state", vm),
        ("OS-EXT-STS:power_state", power),
        ("OS-EXT-STS:task_state", task),
    ];
    let given = fields.iter().filter(|(_, value)| *value != "-");
    let given: serde_json::Map<_, _> = given
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    let body = serde_json::json!({ "server": given }).to_string();
    match show(200, &body, "s") {
        Ok(Sighting::Present(view)) => (view.power, view.activity),
        other => panic!("{body}: {other:?}"),
    }
}

const RUNNING: ServerView = ServerView::of(Power::On, Activity::Idle);
const STOPPED: ServerView = ServerView::of(Power::Off, Activity::Idle);

#[test]
fn the_documented_list_and_details_are_read() {
    let listed = read_list(&answer(200, example!("bms-server-list")), NOW)
        .expect("a list")
        .servers;
    assert_eq!(
        listed,
        [
            Listed {
                id: id("b544be62-1b3b-4982-ad98-572b002ac23b"),
                view: Some(RUNNING),
                name: "bms-test1".to_owned(),
                status: "ACTIVE".to_owned(),
            },
            Listed {
                id: id("a1541cfc-8ac3-43e9-a70d-b8d4b395b256"),
                view: Some(STOPPED),
                name: "bms_test2".to_owned(),
                status: "SHUTOFF".to_owned(),
            },
        ]
    );
    for (body, asked) in [
        (
            example!("bms-server-detail"),
            "53206ed0-56de-4d6b-b7ee-ffc62ca26f43",
        ),
        (
            example!("nova-server-detail"),
            "95BF2490-5428-432c-ad9b-5e3406f869dd",
        ),
    ] {
        assert_eq!(show(200, body, asked), Ok(Sighting::Present(RUNNING)));
    }
}

#[test]
fn a_list_without_states_proves_nothing() {
    let listed = read_list(&answer(200, example!("nova-server-list")), NOW)
        .expect("a list")
        .servers;
    let view = listed[0].view.as_ref().expect("not deleted");
    assert_eq!(
        (view.power, view.activity),
        (Power::Unclear, Activity::Idle)
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
    assert_eq!(
        read_list(&answer(200, r#"{"servers":[]}"#), NOW).map(|page| page.servers),
        Ok(vec![])
    );
}

#[test]
fn stopping_and_starting_are_not_taken_for_running_and_stopped() {
    assert_eq!(
        view("ACTIVE", "active", "1", "powering-off"),
        (Power::On, Activity::PoweringOff)
    );
    assert_eq!(
        view("SHUTOFF", "stopped", "4", "powering-on"),
        (Power::Off, Activity::PoweringOn)
    );
    assert_eq!(
        view("ACTIVE", "active", "1", "deleting"),
        (Power::On, Activity::Other)
    );
    assert_eq!(
        view("ACTIVE", "active", "1", "a_new_word"),
        (Power::On, Activity::Other)
    );
}

#[test]
fn a_reboot_shows_in_the_task_or_in_the_status_alone() {
    for task in [
        "rebooting",
        "reboot_started",
        "reboot_started_hard",
        "rebooting_hard",
    ] {
        assert_eq!(
            view("ACTIVE", "active", "1", task).1,
            Activity::Rebooting,
            "{task}"
        );
    }
    for status in ["REBOOT", "HARD_REBOOT"] {
        assert_eq!(
            view(status, "active", "1", "-"),
            (Power::On, Activity::Rebooting)
        );
        assert_eq!(view(status, "reboot", "-", "-").1, Activity::Rebooting);
    }
    assert_eq!(
        view("ACTIVE", "reboot", "1", "-"),
        (Power::On, Activity::Rebooting)
    );
}

#[test]
fn both_clouds_words_for_stopped_are_read() {
    for (status, vm, power) in [
        ("SHUTOFF", "stopped", "4"),
        ("SHUTOFF", "shutoff", "3"),
        ("shutoff", "STOPPED", "0"),
        ("SHUTOFF", "-", "4"),
        ("STOPPED", "stopped", "-"),
    ] {
        assert_eq!(
            view(status, vm, power, "-"),
            (Power::Off, Activity::Idle),
            "{status} {vm} {power}"
        );
    }
}

#[test]
fn a_status_without_a_second_witness_is_unclear() {
    for status in ["ACTIVE", "SHUTOFF"] {
        assert_eq!(view(status, "-", "-", "-").0, Power::Unclear);
        assert_eq!(view(status, "-", "0", "-").0, Power::Unclear);
    }
    assert_eq!(view("-", "-", "1", "-").0, Power::Unclear);
}

#[test]
fn fields_that_contradict_one_another_are_unclear() {
    for (status, vm, power) in [
        ("ACTIVE", "active", "4"),
        ("ACTIVE", "stopped", "1"),
        ("SHUTOFF", "stopped", "1"),
        ("ACTIVE", "error", "1"),
        ("ACTIVE", "active", "6"),
        ("ACTIVE", "paused", "1"),
        ("SUSPENDED", "active", "1"),
    ] {
        assert_eq!(
            view(status, vm, power, "-").0,
            Power::Unclear,
            "{status} {vm} {power}"
        );
    }
    assert_eq!(view("ERROR", "error", "1", "-").0, Power::Faulty);
    assert_eq!(view("ERROR", "-", "-", "-").0, Power::Faulty);
    assert_eq!(
        view("BUILD", "building", "0", "-"),
        (Power::Unclear, Activity::Other)
    );
}

#[test]
fn short_names_and_odd_types_are_read() {
    let body = r#"{"server":{"id":"s","status":"SHUTOFF","vm_state":"stopped","task_state":null,"locked":"true",
        "OS-EXT-STS:power_state":4,"in_recycle_bin":false}}"#;
    let locked = ServerView {
        locked: true,
        ..STOPPED
    };
    assert_eq!(show(200, body, "S"), Ok(Sighting::Present(locked)));
}

#[test]
fn a_server_is_missing_only_if_the_service_itself_says_so() {
    let missing = Ok(Sighting::Missing);
    assert_eq!(show(404, example!("nova-error-not-found"), "s"), missing);
    assert_eq!(
        show(400, example!("bms-submit-error-not-exist"), "s"),
        missing
    );
    assert_eq!(
        show(404, example!("bms-submit-error-not-exist"), "s"),
        missing
    );
    assert_eq!(
        show(200, r#"{"server":{"id":"s","status":"DELETED"}}"#, "s"),
        missing
    );
    assert_eq!(
        show(404, example!("gateway-error-404-api"), "s"),
        Err(Fault::Configuration)
    );
    assert_eq!(show(404, "<html>", "s"), Err(Fault::Configuration));
    assert_eq!(show(404, "", "s"), Err(Fault::Configuration));
    assert_eq!(
        show(400, example!("bms-submit-error-locked"), "s"),
        Err(Fault::Refused(CodeClass::ServerPermanent))
    );
    assert_eq!(show(500, "", "s"), Err(Fault::Unavailable));
}

#[test]
fn another_servers_answer_is_not_believed() {
    let body = r#"{"server":{"id":"other","status":"ACTIVE","OS-EXT-STS:power_state":1}}"#;
    assert_eq!(show(200, body, "s"), Err(Fault::Unavailable));
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(status in 200_u16..600, body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let answer = Answer { status, body, ..Answer::default() };
        let _ = read_list(&answer, NOW);
        prop_assert_ne!(read_show(&answer, &id("s"), NOW), Ok(Sighting::Missing));
    }
}
