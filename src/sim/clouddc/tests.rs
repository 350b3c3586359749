use std::collections::BTreeMap;

use PowerAction::{Reboot, Start, Stop};

use super::super::answer::Delivery;
use super::super::record::Call;
use super::super::world::World;
use super::*;

fn at(ms: i64) -> UtcMillis {
    UtcMillis(1_704_164_645_000 + ms)
}

fn read(text: &str) -> World {
    World::new(Scenario::from_toml(text).expect(text))
}

/// Ten servers, every second one running from the first on, none with an operation so far;
/// operations take exactly 2 s.
fn world(keys: &str) -> World {
    read(&format!(
        "[clouddc]\nservers = 10\noperation_ms = [2000, 2000]\nfirst_states = []\n{keys}\n"
    ))
}

/// The same with one fault.
fn world_with_fault(fault: &str) -> World {
    world(&format!("[[faults]]\n{fault}"))
}

fn ids(world: &World, numbers: &[usize]) -> Vec<ServerId> {
    let all = world.server_ids(Service::CloudDc);
    numbers
        .iter()
        .map(|number| all[number - 1].clone())
        .collect()
}

const RUNNING: [usize; 2] = [1, 3];
const STOPPED: [usize; 2] = [2, 4];

/// The ids in the answer to a power call that was accepted.
fn listed(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.value());
    let servers = answer.value()["physical_servers"]
        .as_array()
        .cloned()
        .expect("a list");
    servers
        .into_iter()
        .map(|server| server["id"].clone())
        .collect()
}

fn refused(answer: &Answer) -> (u16, String) {
    let body = answer.value();
    let keys: Vec<&String> = body
        .as_object()
        .unwrap_or_else(|| panic!("no object: {body}"))
        .keys()
        .collect();
    assert_eq!(keys, ["error_code", "error_msg"]);
    (
        answer.status,
        body["error_code"].as_str().expect("a text").to_owned(),
    )
}

fn invalid_call() -> (u16, String) {
    (400, "CloudDC.0000".to_owned())
}

/// `power_state` and `operation_state` of a server.
fn state(world: &mut World, ms: i64, id: &ServerId) -> (String, Option<String>) {
    let answer = world.clouddc_show(at(ms), id);
    assert_eq!(answer.status, 200, "{}", answer.value());
    let word = |key: &str| answer.value()[key].as_str().map(str::to_owned);
    (
        word("power_state").expect("a text"),
        word("operation_state"),
    )
}

fn is(power: &str, operation: &str) -> (String, Option<String>) {
    (power.to_owned(), Some(operation.to_owned()))
}

fn done(world: &World) -> Vec<ServerId> {
    world
        .ledger()
        .iter()
        .map(|entry| entry.server_id.clone())
        .collect()
}

#[test]
fn one_bad_server_fails_the_whole_call_and_nothing_runs() {
    let mut world = world("[[faults]]\nkind = \"locked\"\nservice = \"clouddc\"\nservers = [5]");
    let running = ids(&world, &RUNNING)[0].clone();
    let stopped = ids(&world, &STOPPED)[0].clone();
    let locked = ids(&world, &[5])[0].clone();
    let missing = ServerId("no-such-server".into());
    for (action, good, bad, code) in [
        (Start, &stopped, &missing, "CloudDC.0001"),
        (Stop, &running, &locked, "CloudDC.0002"),
        (Start, &stopped, &running, "CloudDC.0004"),
        (Stop, &running, &stopped, "CloudDC.0004"),
        (Reboot, &running, &stopped, "CloudDC.0005"),
    ] {
        let answer = world.power_state(at(0), action, &[good.clone(), bad.clone()]);
        assert_eq!(refused(&answer), (400, code.to_owned()));
        let text = answer.value()["error_msg"].to_string();
        assert!(text.contains(&bad.0) && !text.contains(&good.0), "{text}");
    }
    assert!(world.ledger().is_empty());
    assert_eq!(state(&mut world, 0, &running), ("on".into(), None));
}

#[test]
fn a_refused_call_may_keep_the_server_to_itself() {
    let mut world = world("refusal_names_server = false");
    let asked = ids(&world, &[1, 2]);
    let text = world.power_state(at(0), Start, &asked).value()["error_msg"].to_string();
    assert!(asked.iter().all(|id| !text.contains(&id.0)), "{text}");
}

#[test]
fn refused_servers_can_be_left_out_or_listed_but_are_never_acted_on() {
    for (refusals, shown) in [("left_out", 1), ("listed", 5)] {
        let faults = "[[faults]]\nkind = \"locked\"\nservice = \"clouddc\"\nservers = [6]";
        let mut world = world(&format!("refusals = \"{refusals}\"\n{faults}"));
        let busy = ids(&world, &[8]);
        world.power_state(at(0), Start, &busy);
        let asked = [
            ids(&world, &[1, 2, 6, 8]),
            vec![ServerId("no-such-server".into())],
        ]
        .concat();
        let answer = world.power_state(at(1), Start, &asked);
        let good = asked[1].clone();
        assert_eq!(listed(&answer).len(), shown, "{refusals}");
        assert!(
            listed(&answer).contains(&good.0.clone().into()),
            "{refusals}"
        );
        assert_eq!(done(&world), [busy[0].clone(), good], "{refusals}");
        assert_eq!(
            state(&mut world, 1, &asked[0]),
            ("on".into(), None),
            "{refusals}"
        );
    }
}

#[test]
fn a_busy_server_refuses_whatever_comes_next_even_before_that_shows() {
    let mut world = world("processing_after_ms = [500, 500]");
    let running = ids(&world, &RUNNING);
    listed(&world.power_state(at(0), Reboot, &running[..1]));
    assert_eq!(state(&mut world, 499, &running[0]), ("on".into(), None));
    assert_eq!(
        refused(&world.power_state(at(499), Stop, &running)),
        (400, "CloudDC.0003".into())
    );
    assert_eq!(
        refused(&world.power_state(at(1999), Stop, &running)),
        (400, "CloudDC.0003".into())
    );
    listed(&world.power_state(at(2000), Stop, &running));
    assert_eq!(world.ledger().len(), 3);
}

#[test]
fn already_so_can_run_and_change_nothing() {
    let mut world = world("already_so = \"accepted\"");
    let running = ids(&world, &RUNNING);
    let stopped = ids(&world, &STOPPED);
    listed(&world.power_state(at(0), Start, &running));
    listed(&world.power_state(at(0), Stop, &stopped));
    assert_eq!(
        state(&mut world, 1999, &running[0]),
        is("on", "power-on-processing")
    );
    assert_eq!(
        state(&mut world, 2000, &running[0]),
        is("on", "power-on-succeed")
    );
    assert_eq!(
        state(&mut world, 2000, &stopped[0]),
        is("off", "power-off-succeed")
    );
    assert_eq!(
        refused(&world.power_state(at(2000), Reboot, &stopped)),
        (400, "CloudDC.0005".into())
    );
    assert_eq!(world.ledger().len(), 4);
}

#[test]
fn a_call_takes_one_to_fifty_different_servers() {
    let mut world = read("[clouddc]\nservers = 60\nrunning = 0.0\n");
    let all = world.server_ids(Service::CloudDc);
    let twice = [all[0].clone(), ServerId(all[0].0.to_uppercase())];
    for ids in [&all[..51], &[], &twice] {
        assert_eq!(
            refused(&world.power_state(at(0), Start, ids)),
            invalid_call()
        );
    }
    assert!(world.ledger().is_empty());
    assert_eq!(
        listed(&world.power_state(at(0), Start, &all[..50])).len(),
        50
    );
    assert_eq!(world.ledger().len(), 50);
}

#[test]
fn a_body_without_ids_or_with_another_word_is_refused_and_counts() {
    let mut world = world("");
    let id = &ids(&world, &RUNNING)[0];
    for body in [
        r#"{"action":"power off"}"#.to_owned(),
        r#"{"action":"power off","server_id_set":[]}"#.to_owned(),
        format!(r#"{{"action":"stop","server_id_set":["{id}"]}}"#),
    ] {
        assert_eq!(
            refused(&world.power_state_body(at(0), body.as_bytes())),
            invalid_call()
        );
    }
    assert_eq!(
        world
            .calls()
            .iter()
            .filter(|call| call.call == Call::Submit)
            .count(),
        3
    );
    let body = format!(r#"{{"action":"power off","server_id_set":["{id}"]}}"#);
    assert_eq!(
        listed(&world.power_state_body(at(0), body.as_bytes())),
        [id.0.as_str()]
    );
    assert!(world.ledger().iter().all(|entry| entry.action == Stop) && world.ledger().len() == 1);
}

#[test]
fn ids_in_the_answer_can_be_the_printed_template() {
    let mut world = world("answer_ids = \"template\"");
    let running = ids(&world, &RUNNING);
    let answer = world.power_state(at(0), Stop, &running[..1]);
    let example = include_str!(
        "../../../tests/fixtures/api-examples/clouddc-power-response-documented-template-bug.json"
    );
    assert_eq!(
        answer.value(),
        serde_json::from_str::<Value>(example).expect("JSON")
    );
    assert_eq!(done(&world), running[..1]);
}

#[test]
fn a_stop_is_followed_in_the_server_and_the_power_changes_at_its_end() {
    let mut world = world("");
    let id = ids(&world, &RUNNING)[0].clone();
    let answer = world.power_state(at(0), Stop, std::slice::from_ref(&id));
    assert_eq!(listed(&answer), [id.0.as_str()]);
    assert_eq!(state(&mut world, 0, &id), is("on", "power-off-processing"));
    assert_eq!(
        state(&mut world, 1999, &id),
        is("on", "power-off-processing")
    );
    assert_eq!(state(&mut world, 2000, &id), is("off", "power-off-succeed"));
    assert_eq!(
        state(&mut world, 1_000_000_000, &id),
        is("off", "power-off-succeed")
    );
    let [entry] = world.ledger() else {
        panic!("one operation")
    };
    assert_eq!(
        (entry.at, entry.service, entry.action),
        (at(0), Service::CloudDc, Stop)
    );
    assert_eq!(
        entry.batch.0, answer.request_id,
        "there is no job to name it after"
    );
}

#[test]
fn a_reboot_that_ends_where_an_old_one_stood_looks_the_same() {
    let mut world = read(
        "[clouddc]\nservers = 2\noperation_ms = [100, 100]\nfirst_states = [\"reboot-succeed\"]\n",
    );
    let id = ids(&world, &[1])[0].clone();
    let before = world.clouddc_show(at(0), &id).body;
    listed(&world.power_state(at(0), Reboot, std::slice::from_ref(&id)));
    assert_eq!(state(&mut world, 99, &id), is("on", "reboot-processing"));
    assert_eq!(world.clouddc_show(at(100), &id).body, before);
}

#[test]
fn an_operation_can_end_before_it_shows() {
    let mut world = world("processing_after_ms = [3000, 3000]");
    let id = ids(&world, &RUNNING)[0].clone();
    listed(&world.power_state(at(0), Reboot, std::slice::from_ref(&id)));
    assert_eq!(state(&mut world, 1999, &id), ("on".into(), None));
    assert_eq!(state(&mut world, 2000, &id), is("on", "reboot-succeed"));
}

#[test]
fn older_words_of_power_show_while_an_operation_does() {
    let mut world = world("transition_words = true\nprocessing_after_ms = [100, 100]");
    let running = ids(&world, &RUNNING);
    let stopped = ids(&world, &STOPPED);
    world.power_state(at(0), Stop, &running[..1]);
    world.power_state(at(0), Reboot, &running[1..]);
    world.power_state(at(0), Start, &stopped);
    assert_eq!(state(&mut world, 99, &running[0]), ("on".into(), None));
    assert_eq!(
        state(&mut world, 100, &running[0]),
        is("powering-off", "power-off-processing")
    );
    assert_eq!(
        state(&mut world, 100, &running[1]),
        is("rebooting", "reboot-processing")
    );
    assert_eq!(
        state(&mut world, 100, &stopped[0]),
        is("powering-on", "power-on-processing")
    );
    let counts =
        |world: &mut World, ms| world.clouddc_status(at(ms)).value()["server_power_status"].clone();
    assert_eq!(
        counts(&mut world, 100),
        json!({"on": 3, "off": 3, "unknown": 4})
    );
    assert_eq!(
        counts(&mut world, 2000),
        json!({"on": 6, "off": 4, "unknown": 0})
    );
}

#[test]
fn a_good_part_of_the_servers_already_stands_at_reboot_succeed() {
    let mut world = read("[clouddc]\nservers = 1000\n");
    let mut words = BTreeMap::<String, usize>::new();
    let page = world
        .clouddc_list(
            at(0),
            &PageQuery {
                limit: Some(1000),
                ..PageQuery::default()
            },
        )
        .value();
    for server in page["servers"].as_array().expect("a list") {
        let word = server["operation_state"].as_str().unwrap_or("none");
        assert_eq!(
            server.get("error").is_some(),
            word.ends_with("-failed"),
            "{server}"
        );
        *words.entry(word.to_owned()).or_default() += 1;
    }
    let kinds: Vec<&str> = words.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        [
            "none",
            "power-off-succeed",
            "power-on-succeed",
            "reboot-failed",
            "reboot-succeed"
        ]
    );
    assert!((300..450).contains(&words["reboot-succeed"]), "{words:?}");
}

#[test]
fn first_states_are_drawn_from_the_scenarios_words() {
    let mut world = read(
        "[clouddc]\nservers = 3\nfirst_states = [\"power-off-failed\"]\nno_operation_state = \"null\"\n",
    );
    let id = ids(&world, &[3])[0].clone();
    assert_eq!(state(&mut world, 0, &id), is("on", "power-off-failed"));
    let error =
        json!({"error_code": FAILED_CODE, "error_msg": FAILED_TEXT, "error_type": "operation"});
    assert_eq!(world.clouddc_show(at(0), &id).value()["error"], error);
    let wrong = Scenario::from_toml("[clouddc]\nfirst_states = [\"reboot-processing\"]\n")
        .expect_err("not from before");
    assert!(wrong.to_string().contains("reboot-processing"), "{wrong}");
}

#[test]
fn a_failing_operation_leaves_the_power_and_the_ledger_alone() {
    for (action, numbers, words) in [
        (Stop, RUNNING, "power-off"),
        (Start, STOPPED, "power-on"),
        (Reboot, RUNNING, "reboot"),
    ] {
        let fault = format!(
            "kind = \"operation_fails\"\ncode = \"C.1\"\nmessage = \"m\"\nservers = [{}]",
            numbers[0]
        );
        let mut world = world_with_fault(&fault);
        let servers = ids(&world, &numbers);
        let (before, _) = state(&mut world, 0, &servers[0]);
        listed(&world.power_state(at(0), action, &servers));
        assert_eq!(
            state(&mut world, 1999, &servers[0]),
            is(&before, &format!("{words}-processing"))
        );
        assert_eq!(
            state(&mut world, 2000, &servers[0]),
            is(&before, &format!("{words}-failed"))
        );
        let error = world.clouddc_show(at(2000), &servers[0]).value()["error"].clone();
        assert_eq!(
            error,
            json!({"error_code": "C.1", "error_msg": "m", "error_type": "operation"})
        );
        assert_eq!(done(&world), servers[1..]);
        listed(&world.power_state(at(2000), action, &servers[..1]));
        assert_eq!(
            world
                .clouddc_show(at(2000), &servers[0])
                .value()
                .get("error"),
            None,
            "a new operation shows"
        );
    }
}

#[test]
fn an_operation_can_hang_and_keep_its_server_busy() {
    let mut world =
        world_with_fault("kind = \"operation_never_ends\"\nservice = \"clouddc\"\nservers = [1]");
    let running = ids(&world, &RUNNING);
    listed(&world.power_state(at(0), Stop, &running));
    assert_eq!(
        state(&mut world, 1_000_000, &running[0]),
        is("on", "power-off-processing")
    );
    assert_eq!(
        state(&mut world, 1_000_000, &running[1]),
        is("off", "power-off-succeed")
    );
    assert_eq!(
        refused(&world.power_state(at(1_000_000), Reboot, &running[..1])),
        (400, "CloudDC.0003".into())
    );
    assert_eq!(done(&world), running);
}

/// All pages: the ids in order, the sizes, the last `page_info`. Takes the marker out of whatever
/// leads to the next page.
fn walk(world: &mut World, limit: Option<usize>) -> (Vec<ServerId>, Vec<u64>, Value) {
    let mut query = PageQuery {
        limit,
        ..PageQuery::default()
    };
    let mut found = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let page = world.clouddc_list(at(0), &query).value();
        let servers = page["servers"].as_array().expect("a list");
        found.extend(
            servers
                .iter()
                .map(|server| ServerId(server["id"].as_str().expect("a text").to_owned())),
        );
        let info = page["page_info"].clone();
        sizes.push(info["current_count"].as_u64().expect("a number"));
        assert_eq!(page["count"], 10_000);
        let Some(next) = info["next_marker"].as_str() else {
            return (found, sizes, info);
        };
        let marker = next
            .split_once("?marker=")
            .map_or(next, |(_, rest)| rest.split('&').next().unwrap_or(rest));
        query.marker = Some(ServerId(marker.to_owned()));
    }
}

#[test]
fn pages_lead_to_the_end_by_id_and_by_url() {
    for (form, none) in [("id", "null"), ("url", "omitted")] {
        let text = format!(
            "[clouddc]\nservers = 10000\nnext_marker = \"{form}\"\nno_next_marker = \"{none}\"\n"
        );
        let mut world = read(&text);
        let (found, sizes, last) = walk(&mut world, Some(1000));
        assert_eq!(found, world.server_ids(Service::CloudDc));
        assert_eq!(sizes, [1000; 10], "a full last page leads nowhere either");
        assert_eq!(last.get("next_marker").is_some(), none == "null");
        let (found, sizes, _) = walk(&mut world, Some(999));
        assert_eq!((found.len(), sizes.len(), sizes[10]), (10_000, 11, 10));
    }
}

#[test]
fn page_sizes_are_bent_into_their_bounds() {
    let mut world = read("[clouddc]\nservers = 1200\n");
    let mut size = |limit| {
        world
            .clouddc_list(
                at(0),
                &PageQuery {
                    limit,
                    ..PageQuery::default()
                },
            )
            .value()
    };
    let sizes = [None, Some(0), Some(1), Some(11), Some(5000)].map(|limit| {
        size(limit)["page_info"]["current_count"]
            .as_u64()
            .expect("a number")
    });
    assert_eq!(sizes, [10, 10, 10, 11, 1000]);
}

#[test]
fn an_unknown_marker_is_invalid_and_so_is_a_whole_url() {
    let mut world = world("next_marker = \"url\"");
    for marker in [
        "no-such-server",
        "",
        "https://clouddc.invalid/v1/p/physicalservers?marker=a",
    ] {
        let query = PageQuery {
            marker: Some(ServerId(marker.into())),
            ..PageQuery::default()
        };
        assert_eq!(
            refused(&world.clouddc_list(at(0), &query)),
            invalid_call(),
            "{marker}"
        );
    }
}

#[test]
fn the_list_filters_by_manage_state_on_every_page() {
    let fault = "[[faults]]\nkind = \"locked\"\nservice = \"clouddc\"\nservers = [1, 2, 3, 30]";
    let mut world = read(&format!("[clouddc]\nservers = 30\n{fault}\n"));
    let mut page = |word: &str, marker: Option<ServerId>| {
        let query = PageQuery {
            marker,
            manage_state: Some(word.into()),
            ..PageQuery::default()
        };
        let body = world.clouddc_list(at(0), &query).value();
        (
            body["page_info"].clone(),
            body["count"].as_u64().expect("a number"),
        )
    };
    assert_eq!(page("maintain", None).0["current_count"], 4);
    let (info, count) = page("in-use", None);
    assert_eq!((count, &info["current_count"]), (26, &10.into()));
    let marker = |info: &Value| {
        Some(ServerId(
            info["next_marker"].as_str().expect("more").to_owned(),
        ))
    };
    let (info, _) = page("in-use", marker(&info));
    let (info, _) = page("in-use", marker(&info));
    assert_eq!(
        (&info["current_count"], &info["next_marker"]),
        (&6.into(), &Value::Null),
        "the locked 30th is no more"
    );
    assert_eq!(page("ready", None).1, 0);
}

#[test]
fn a_missing_server_is_nowhere_and_its_show_is_as_the_scenario_says() {
    for (word, status) in [("error", 400), ("not_found", 404)] {
        let fault = "[[faults]]\nkind = \"missing\"\nservice = \"clouddc\"\nservers = [1]";
        let mut world = world(&format!("missing_show = \"{word}\"\n{fault}"));
        let missing = ids(&world, &[1])[0].clone();
        for id in [&missing, &ServerId("no-such-server".into())] {
            assert_eq!(
                refused(&world.clouddc_show(at(0), id)),
                (status, "CloudDC.0001".into())
            );
        }
        assert_eq!(
            world.clouddc_list(at(0), &PageQuery::default()).value()["count"],
            9
        );
        assert_eq!(refused(&world.power_state(at(0), Stop, &[missing])).0, 400);
        assert_eq!(
            world.clouddc_status(at(0)).value()["server_power_status"],
            json!({"on": 4, "off": 5, "unknown": 0})
        );
        assert_eq!(
            world
                .servers(at(0))
                .iter()
                .filter(|server| server.service == Service::CloudDc)
                .count(),
            9
        );
    }
}

/// What a fault of calls does to the first power call: the answer, and how many servers were really
/// stopped.
fn first_call(fault: &str) -> (Answer, usize) {
    let mut world = world_with_fault(&format!("{fault}\ncalls = [1]"));
    let running = ids(&world, &RUNNING);
    let answer = world.power_state(at(0), Stop, &running);
    (answer, world.ledger().len())
}

#[test]
fn faults_before_the_work_carry_nothing_out() {
    for (fault, status, expected) in [
        ("kind = \"throttle\"", 429, "APIGW.0308"),
        ("kind = \"error_before\"\nstatus = 500", 500, "APIGW.0201"),
        (
            "kind = \"refuse\"\nservice = \"clouddc\"",
            400,
            "CloudDC.0000",
        ),
        (
            "kind = \"refuse\"\ncode = \"CloudDC.9999\"\nstatus = 403",
            403,
            "CloudDC.9999",
        ),
        ("kind = \"expired_token\"", 401, "APIGW.0301"),
    ] {
        let (answer, carried_out) = first_call(fault);
        let code = answer.value()["error_code"].clone();
        assert_eq!(
            (answer.status, code, carried_out),
            (status, expected.into(), 0),
            "{fault}"
        );
    }
    let (redirect, carried_out) = first_call("kind = \"redirect\"");
    assert_eq!((redirect.status, carried_out), (302, 0));
    let (dropped, carried_out) = first_call("kind = \"drop_before\"");
    assert_eq!((dropped.delivery, carried_out), (Delivery::Dropped, 0));
}

#[test]
fn faults_after_the_work_hide_that_it_was_carried_out() {
    for fault in [
        "error_after",
        "drop_after",
        "html_body",
        "malformed_body",
        "truncated_body",
        "oversized_body",
    ] {
        let (answer, carried_out) = first_call(&format!("kind = \"{fault}\""));
        assert_eq!(carried_out, 2, "{fault}");
        assert!(
            answer.status != 200 || answer.delivery != Delivery::Whole || answer.value().is_null(),
            "{fault}"
        );
    }
    let (slow, carried_out) = first_call("kind = \"slow\"\ndelay_ms = 70");
    assert_eq!(
        (slow.status, slow.delay.as_millis(), carried_out),
        (200, 70, 2)
    );
}

#[test]
fn a_429_can_be_a_string_of_two_kinds() {
    for (form, content_type, body) in [
        (
            "json_string",
            "application/json;charset=utf-8",
            "\"The request is overloaded.\"",
        ),
        ("text", "text/plain", "The request is overloaded."),
    ] {
        let throttle = "[[faults]]\nkind = \"throttle\"\nretry_after_s = 3\ncalls = [1]";
        let mut world = world(&format!(
            "throttle_body = \"{form}\"\n[rates]\nlists_per_minute = 1\n{throttle}"
        ));
        let running = ids(&world, &RUNNING);
        let throttled = world.power_state(at(0), Stop, &running);
        assert_eq!(
            (throttled.status, throttled.content_type, throttled.body),
            (429, content_type, body.into())
        );
        assert_eq!(throttled.headers, [("Retry-After", "3".to_owned())]);
        world.clouddc_list(at(0), &PageQuery::default());
        assert_eq!(
            world.clouddc_list(at(0), &PageQuery::default()).body,
            body.as_bytes(),
            "by rate too"
        );
        let bms = world.show(at(0), &running[0]);
        assert_eq!(
            (bms.status, &bms.value()["error_code"]),
            (429, &"APIGW.0308".into()),
            "not for BMS"
        );
    }
}

#[test]
fn each_service_has_its_own_rate_window_and_count() {
    let mut world = world(
        "[rates]\nsubmits_per_minute = 1\n[[faults]]\nkind = \"drop_after\"\non = [\"show\"]\ncalls = [2]",
    );
    let running = ids(&world, &[1, 3]);
    let bms = world.server_ids(Service::Bms);
    assert_eq!(world.submit(at(0), Stop, &bms[..1]).status, 200);
    listed(&world.power_state(at(0), Stop, &running[..1]));
    assert_eq!(
        [
            world.submit(at(1), Stop, &bms[2..3]).status,
            world.power_state(at(1), Stop, &running[1..]).status
        ],
        [429; 2]
    );
    let shows = [
        world.show(at(1), &bms[0]),
        world.clouddc_show(at(1), &running[0]),
    ]
    .map(|answer| answer.delivery);
    assert_eq!(
        shows,
        [Delivery::Whole; 2],
        "each is the first of its service"
    );
    assert_eq!(
        world.clouddc_show(at(1), &running[0]).delivery,
        Delivery::Dropped
    );
    let services = [Service::Bms, Service::CloudDc].map(|service| {
        world
            .calls()
            .iter()
            .filter(|call| call.service == Some(service) && call.call == Call::Submit)
            .count()
    });
    assert_eq!(services, [2, 2]);
}

#[test]
fn clouddc_calls_change_nothing_for_bms() {
    let text = "[[faults]]\nkind = \"error_after\"\nchance = 0.3\n";
    let answers = |with_others: bool| {
        let mut world = read(text);
        let bms = world.server_ids(Service::Bms);
        let others = world.server_ids(Service::CloudDc);
        let mut answers = Vec::new();
        for (id, other) in bms.iter().zip(&others).take(40) {
            if with_others {
                world.power_state(at(0), Reboot, std::slice::from_ref(other));
                world.clouddc_show(at(0), other);
            }
            answers.push(world.submit(at(0), Start, std::slice::from_ref(id)));
        }
        answers
    };
    assert_eq!(answers(true), answers(false));
}

#[test]
fn a_seed_repeats_every_answer() {
    let run = |seed| {
        let text = format!("seed = {seed}\n[[faults]]\nkind = \"operation_fails\"\nchance = 0.3\n");
        let mut world = read(&text);
        let all = world.server_ids(Service::CloudDc);
        let calls: Vec<Answer> = all
            .iter()
            .map(|id| world.power_state(at(0), Stop, std::slice::from_ref(id)))
            .collect();
        (
            calls,
            world.clouddc_list(
                at(2000),
                &PageQuery {
                    limit: Some(1000),
                    ..PageQuery::default()
                },
            ),
        )
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).1, run(2).1);
}

#[test]
fn failed_operations_can_begin_again_and_pages_stay_unreadable() {
    let mut world = read(
        "[clouddc]\nservers = 30\noperation_ms = [2000, 2000]\nfirst_states = []\n\
         [[faults]]\nkind = \"operation_fails\"\nacts_after_ms = 1000\nservers = [1]\n\
         [[faults]]\nkind = \"error_before\"\nservice = \"clouddc\"\npages = [2]\n",
    );
    let ids = ids(&world, &RUNNING);
    listed(&world.power_state(at(0), Reboot, &ids[..1]));
    world.act_late(at(2999));
    assert!(world.ledger().is_empty());
    world.act_late(at(3000));
    assert_eq!(world.ledger().len(), 1);
    let page = |marker| PageQuery {
        limit: Some(10),
        marker,
        manage_state: None,
    };
    let all = world.server_ids(Service::CloudDc);
    let statuses = [None, Some(all[9].clone()), Some(all[19].clone())]
        .map(|marker| world.clouddc_list(at(3000), &page(marker)).status);
    assert_eq!(statuses, [200, 503, 200]);
}
