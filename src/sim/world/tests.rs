use serde_json::Value;

use super::super::answer::Delivery;
use super::super::faults::{FaultKind, When};
use super::super::record::OnOff;
use super::super::scenario::Chance;
use super::*;
use PowerAction::{Reboot, Start, Stop};

fn at(ms: i64) -> UtcMillis {
    UtcMillis(1_704_164_645_000 + ms)
}

/// Ten servers, every second one running from the first on; operations take exactly 2 s.
fn world(more: &str) -> World {
    let text = format!("{more}\n[bms]\nservers = 10\noperation_ms = [2000, 2000]\n");
    World::new(Scenario::from_toml(&text).expect(more))
}

/// The same with keys of `[bms]`.
fn bms_world(keys: &str) -> World {
    let text = format!("[bms]\nservers = 10\noperation_ms = [2000, 2000]\n{keys}\n");
    World::new(Scenario::from_toml(&text).expect(keys))
}

/// The same with one fault.
fn world_with_fault(fault: &str) -> World {
    world(&format!("[[faults]]\n{fault}\n"))
}

fn ids(world: &World, numbers: &[usize]) -> Vec<ServerId> {
    let all = world.server_ids(Service::Bms);
    numbers
        .iter()
        .map(|number| all[number - 1].clone())
        .collect()
}

const RUNNING: [usize; 2] = [1, 3];
const STOPPED: [usize; 2] = [2, 4];

fn code(answer: &Answer) -> String {
    let body = answer.value();
    let code = body["error"]["code"]
        .as_str()
        .or(body["error_code"].as_str());
    code.unwrap_or_else(|| panic!("no code in {body}"))
        .to_owned()
}

fn job_id(answer: &Answer) -> JobId {
    assert_eq!(answer.status, 200, "{}", answer.value());
    JobId(
        answer.value()["job_id"]
            .as_str()
            .expect("a job id")
            .to_owned(),
    )
}

fn report(world: &mut World, ms: i64, job: &JobId) -> Value {
    let answer = world.job(at(ms), job);
    assert_eq!(answer.status, 200, "{}", answer.value());
    answer.value()
}

fn sub_jobs(report: &Value) -> Vec<&Value> {
    report["entities"]["sub_jobs"]
        .as_array()
        .expect("a list")
        .iter()
        .collect()
}

fn power(world: &mut World, ms: i64, id: &ServerId) -> OnOff {
    world
        .servers(at(ms))
        .into_iter()
        .find(|server| server.server_id == *id)
        .expect("it exists")
        .power
}

#[test]
fn a_stop_runs_its_job_and_then_the_servers_are_off() {
    let mut world = world("");
    let ids = ids(&world, &RUNNING);
    let job = job_id(&world.submit(at(0), Stop, &ids));
    assert_eq!(job.0.len(), 32);

    let running = report(&mut world, 1999, &job);
    assert_eq!(
        (running["status"].as_str(), running["end_time"].as_str()),
        (Some("RUNNING"), Some(""))
    );
    assert_eq!(running.get("error_code"), None);
    assert_eq!(running["entities"]["sub_jobs_total"], 2);
    assert_eq!(power(&mut world, 1999, &ids[0]), OnOff::On);

    let done = report(&mut world, 2000, &job);
    assert_eq!(
        (done["status"].as_str(), done["job_type"].as_str()),
        (Some("SUCCESS"), Some("baremetalBatchOperate"))
    );
    assert_eq!(done["end_time"], "2024-01-02T03:04:07.000Z");
    assert_eq!(done.get("error_code"), Some(&Value::Null));
    let first = sub_jobs(&done)[0];
    assert_eq!(first["entities"]["server_id"], ids[0].0);
    assert_eq!(
        (first["job_type"].as_str(), first["begin_time"].as_str()),
        (
            Some("baremetalSingleOperate"),
            Some("2024-01-02T03:04:05.000Z")
        )
    );
    assert_eq!(power(&mut world, 2000, &ids[0]), OnOff::Off);
}

#[test]
fn some_sub_jobs_end_before_others() {
    let text = "[bms]\nservers = 100\nrunning = 1.0\noperation_ms = [1000, 3000]\n";
    let mut world = World::new(Scenario::from_toml(text).expect("valid"));
    let all = world.server_ids(Service::Bms);
    let job = job_id(&world.submit(at(0), Stop, &all));
    let ended = |world: &mut World, ms| {
        let report = report(world, ms, &job);
        sub_jobs(&report)
            .iter()
            .filter(|sub_job| sub_job["status"] == "SUCCESS")
            .count()
    };
    assert_eq!(ended(&mut world, 999), 0);
    assert!((20..80).contains(&ended(&mut world, 2000)));
    assert_eq!(ended(&mut world, 3000), 100);
}

#[test]
fn one_bad_server_fails_the_whole_batch_and_nothing_runs() {
    let mut world = world("");
    let stopped = ids(&world, &STOPPED);
    for (action, servers, expected) in [
        (
            Start,
            vec![stopped[0].clone(), ids(&world, &RUNNING)[0].clone()],
            "BMS.0038",
        ),
        (
            Start,
            vec![stopped[0].clone(), ServerId("no-such-server".into())],
            "BMS.0040",
        ),
        (
            Reboot,
            vec![ids(&world, &RUNNING)[0].clone(), stopped[0].clone()],
            "BMS.0039",
        ),
    ] {
        let answer = world.submit(at(0), action, &servers);
        assert_eq!((answer.status, code(&answer)), (400, expected.to_owned()));
    }
    assert!(world.ledger().is_empty());
    let list = world.list(at(0), &ListQuery::default()).value();
    let servers = list["servers"].as_array().expect("a list");
    assert!(
        servers
            .iter()
            .all(|server| server.get("OS-EXT-STS:task_state").is_none())
    );
}

#[test]
fn a_busy_server_refuses_whatever_comes_next() {
    let mut world = world("");
    let running = ids(&world, &RUNNING);
    job_id(&world.submit(at(0), Reboot, &running[..1]));
    assert_eq!(code(&world.submit(at(1999), Reboot, &running)), "BMS.0037");
    job_id(&world.submit(at(2000), Reboot, &running));
    assert_eq!(world.ledger().len(), 3);
}

#[test]
fn refusals_can_fail_their_own_sub_job_instead() {
    let mut world = bms_world("refusals = \"sub_job\"");
    let missing = ServerId("no-such-server".into());
    let asked = [
        ids(&world, &STOPPED)[..1].to_vec(),
        ids(&world, &RUNNING)[..1].to_vec(),
        vec![missing.clone()],
    ]
    .concat();
    let job = job_id(&world.submit(at(0), Start, &asked));
    let done = report(&mut world, 2000, &job);
    assert_eq!(
        (done["status"].as_str(), done["error_code"].as_str()),
        (Some("FAIL"), Some("Common.0021"))
    );
    let codes: Vec<_> = sub_jobs(&done)
        .iter()
        .map(|sub_job| sub_job["error_code"].clone())
        .collect();
    assert_eq!(codes, [Value::Null, "BMS.0038".into(), "BMS.0040".into()]);
    assert_eq!(sub_jobs(&done)[2]["entities"]["server_id"], missing.0);
    assert_eq!(
        world
            .ledger()
            .iter()
            .map(|entry| &entry.server_id)
            .collect::<Vec<_>>(),
        [&asked[0]]
    );
}

#[test]
fn batches_have_the_documented_size() {
    let text = "[bms]\nservers = 1001\nrunning = 0.0\n";
    let mut world = World::new(Scenario::from_toml(text).expect("valid"));
    let all = world.server_ids(Service::Bms);
    assert_eq!(code(&world.submit(at(0), Start, &all)), "BMS.0205");
    assert_eq!(code(&world.submit(at(0), Start, &[])), "BMS.0205");
    assert_eq!(
        code(&world.submit(
            at(0),
            Start,
            &[all[0].clone(), ServerId(all[0].0.to_uppercase())]
        )),
        "BMS.0018"
    );
    job_id(&world.submit(at(0), Start, &all[..1000]));
    assert_eq!(world.ledger().len(), 1000);
}

#[test]
fn ids_are_compared_without_case() {
    let mut world = world("");
    let id = ServerId(ids(&world, &STOPPED)[0].0.to_uppercase());
    job_id(&world.submit(at(0), Start, std::slice::from_ref(&id)));
    assert_eq!(world.ledger()[0].server_id.0, id.0.to_lowercase());
}

#[test]
fn pages_are_numbered_from_one_and_end_with_a_short_one() {
    let mut world = World::new(Scenario::default());
    let all = world.server_ids(Service::Bms);
    let mut page = |limit, offset| {
        let answer = world.list(
            at(0),
            &ListQuery {
                limit,
                offset,
                ..ListQuery::default()
            },
        );
        let body = answer.value();
        let servers = body["servers"].as_array().cloned().unwrap_or_default();
        (
            answer.status,
            servers.len(),
            servers.first().map(|server| server["id"].clone()),
            body["count"].as_u64(),
        )
    };
    assert_eq!(
        page(None, None),
        (200, 25, Some(all[0].0.clone().into()), Some(1000))
    );
    assert_eq!(page(None, Some(1)).1, 1000);
    assert_eq!(
        page(Some(300), Some(4)),
        (200, 100, Some(all[900].0.clone().into()), Some(1000))
    );
    assert_eq!(page(Some(300), Some(5)).1, 0);
    assert_eq!(
        [
            page(Some(0), None).0,
            page(Some(1001), None).0,
            page(None, Some(0)).0
        ],
        [400, 400, 400]
    );
}

#[test]
fn the_list_filters_by_status_and_name() {
    let mut world = world("");
    let running = ids(&world, &RUNNING);
    job_id(&world.submit(at(0), Reboot, &running));
    let mut count = |status: &str, name: &str| {
        let query = ListQuery {
            status: Some(status.into()),
            name: Some(name.into()),
            ..ListQuery::default()
        };
        world.list(at(10), &query).value()["count"].as_u64()
    };
    assert_eq!(
        (
            count("ACTIVE", "bms"),
            count("HARD_REBOOT", "bms"),
            count("SHUTOFF", "0004")
        ),
        (Some(3), Some(2), Some(1))
    );
}

#[test]
fn a_missing_server_is_in_no_list_and_its_show_is_as_the_scenario_says() {
    for (word, status) in [("error", 400), ("not_found", 404), ("deleted", 200)] {
        let fault = "[[faults]]\nkind = \"missing\"\nservers = [1]";
        let text = format!("{fault}\n[bms]\nservers = 3\nmissing_show = \"{word}\"\n");
        let mut world = World::new(Scenario::from_toml(&text).expect("valid"));
        let missing = ids(&world, &[1]);
        assert_eq!(world.list(at(0), &ListQuery::default()).value()["count"], 2);
        assert_eq!(world.show(at(0), &missing[0]).status, status, "{word}");
        assert_eq!(code(&world.submit(at(0), Stop, &missing)), "BMS.0040");
        assert_eq!(
            world
                .servers(at(0))
                .iter()
                .filter(|server| server.service == Service::Bms)
                .count(),
            2
        );
    }
}

#[test]
fn a_scenario_can_be_written_in_rust() {
    let when = When {
        chance: Some(Chance::clamped(1.0)),
        ..When::default()
    };
    let mut world = World::new(Scenario::default().with_fault(FaultKind::DropAfter, when));
    assert_eq!(
        world.list(at(0), &ListQuery::default()).delivery,
        Delivery::Dropped
    );
}

#[test]
fn a_locked_server_says_so_and_refuses() {
    let mut world = world_with_fault("kind = \"locked\"\nservers = [1]");
    let id = ids(&world, &[1]);
    assert_eq!(world.show(at(0), &id[0]).value()["server"]["locked"], true);
    assert_eq!(code(&world.submit(at(0), Stop, &id)), "BMS.0605");
}

#[test]
fn a_job_can_begin_with_empty_init_answers() {
    let mut world = bms_world("init_polls = 2");
    let servers = ids(&world, &RUNNING);
    let job = job_id(&world.submit(at(0), Stop, &servers));
    for _ in 0..2 {
        let init = report(&mut world, 0, &job);
        assert_eq!(
            (
                init["status"].as_str(),
                init["entities"]["sub_jobs_total"].as_u64()
            ),
            (Some("INIT"), Some(0))
        );
    }
    assert_eq!(report(&mut world, 0, &job)["status"], "RUNNING");
}

#[test]
fn an_unknown_job_is_a_400() {
    let answer = world("").job(at(0), &JobId("0".repeat(32)));
    assert_eq!(
        (answer.status, code(&answer)),
        (400, "Common.0011".to_owned())
    );
}

#[test]
fn failing_sub_jobs_leave_the_power_and_the_ledger_alone() {
    for (action, numbers) in [(Stop, RUNNING), (Start, STOPPED), (Reboot, RUNNING)] {
        let fault = format!(
            "kind = \"sub_job_fails\"\ncode = \"BMS.3037\"\nservers = [{}]",
            numbers[0]
        );
        let mut world = world_with_fault(&fault);
        let servers = ids(&world, &numbers);
        let before = power(&mut world, 0, &servers[0]);
        let job = job_id(&world.submit(at(0), action, &servers));
        let during = world.show(at(1), &servers[0]).value();
        assert_eq!(
            during["server"].get("OS-EXT-STS:task_state").is_some(),
            action != Reboot,
            "{action}"
        );
        let done = report(&mut world, 2000, &job);
        assert_eq!(
            (
                done["status"].as_str(),
                sub_jobs(&done)[0]["error_code"].as_str()
            ),
            (Some("FAIL"), Some("BMS.3037"))
        );
        assert_eq!(power(&mut world, 2000, &servers[0]), before);
        assert_eq!(
            world
                .ledger()
                .iter()
                .map(|entry| &entry.server_id)
                .collect::<Vec<_>>(),
            [&servers[1]]
        );
    }
}

#[test]
fn a_parent_can_claim_success_beside_a_failed_sub_job() {
    let fault = "[[faults]]\nkind = \"sub_job_fails\"\nservers = [1]";
    let bms = "[bms]\nservers = 3\noperation_ms = [0, 0]\nparent_on_failure = \"success\"\nsub_jobs_without_id = true";
    let mut world = World::new(Scenario::from_toml(&format!("{fault}\n{bms}")).expect("valid"));
    let servers = ids(&world, &[1, 3]);
    let job = job_id(&world.submit(at(0), Stop, &servers));
    let done = report(&mut world, 0, &job);
    assert_eq!(
        (done["status"].as_str(), done.get("error_code")),
        (Some("SUCCESS"), Some(&Value::Null))
    );
    assert_eq!(sub_jobs(&done)[0]["status"], "FAIL");
    assert_eq!(sub_jobs(&done)[0]["entities"].get("server_id"), None);
    assert_eq!(sub_jobs(&done)[1]["entities"]["server_id"], servers[1].0);
}

#[test]
fn sub_jobs_can_lack_an_id_or_be_left_out() {
    let mut world = world_with_fault(
        "kind = \"sub_job_without_id\"\nservers = [1]\n[[faults]]\nkind = \"sub_job_left_out\"\nservers = [3]",
    );
    let servers = ids(&world, &RUNNING);
    let job = job_id(&world.submit(at(0), Stop, &servers));
    let done = report(&mut world, 2000, &job);
    assert_eq!(
        (
            done["status"].as_str(),
            done["entities"]["sub_jobs_total"].as_u64()
        ),
        (Some("SUCCESS"), Some(1))
    );
    assert_eq!(sub_jobs(&done)[0]["entities"], serde_json::json!({}));
    assert_eq!(world.ledger().len(), 2);
}

#[test]
fn jobs_can_vanish_or_never_end_while_servers_do_their_part() {
    let mut world = world_with_fault(
        "kind = \"job_vanishes\"\ncalls = [1]\n[[faults]]\nkind = \"job_never_ends\"\ncalls = [2]",
    );
    let running = ids(&world, &RUNNING);
    let vanished = job_id(&world.submit(at(0), Stop, &running[..1]));
    let endless = job_id(&world.submit(at(0), Stop, &running[1..]));
    assert_eq!(code(&world.job(at(0), &vanished)), "Common.0011");
    let late = report(&mut world, 1_000_000, &endless);
    assert_eq!(
        (
            late["status"].as_str(),
            sub_jobs(&late)[0]["status"].as_str()
        ),
        (Some("RUNNING"), Some("RUNNING"))
    );
    assert!(
        running
            .iter()
            .all(|id| power(&mut world, 2000, id) == OnOff::Off)
    );
    assert_eq!(world.ledger().len(), 2);
}

#[test]
fn an_operation_can_hang() {
    let mut world = world_with_fault("kind = \"operation_never_ends\"\nservers = [1]");
    let running = ids(&world, &RUNNING);
    let job = job_id(&world.submit(at(0), Stop, &running));
    let late = report(&mut world, 1_000_000, &job);
    let statuses: Vec<_> = sub_jobs(&late)
        .iter()
        .map(|sub_job| sub_job["status"].as_str())
        .collect();
    assert_eq!(
        (late["status"].as_str(), statuses),
        (Some("RUNNING"), vec![Some("RUNNING"), Some("SUCCESS")])
    );
    let shown = world.show(at(1_000_000), &running[0]).value();
    assert_eq!(shown["server"]["OS-EXT-STS:task_state"], "powering-off");
}

/// What a fault of calls does to the first submit: the answer, and how many servers were really
/// stopped.
fn first_submit(fault: &str) -> (Answer, usize) {
    let mut world = world_with_fault(&format!("{fault}\ncalls = [1]"));
    let running = ids(&world, &RUNNING);
    let answer = world.submit(at(0), Stop, &running);
    (answer, world.ledger().len())
}

#[test]
fn faults_before_the_work_carry_nothing_out() {
    for (fault, status, expected) in [
        ("kind = \"throttle\"\nretry_after_s = 3", 429, "APIGW.0308"),
        ("kind = \"error_before\"", 503, "APIGW.0613"),
        ("kind = \"error_before\"\nstatus = 500", 500, "APIGW.0201"),
        ("kind = \"refuse\"", 400, "BMS.0212"),
        (
            "kind = \"refuse\"\ncode = \"BMS.0006\"\nstatus = 403",
            403,
            "BMS.0006",
        ),
        ("kind = \"expired_token\"", 401, "APIGW.0301"),
        (
            "kind = \"expired_token\"\ncode = \"APIGW.0307\"",
            401,
            "APIGW.0307",
        ),
    ] {
        let (answer, carried_out) = first_submit(fault);
        assert_eq!(
            (answer.status, code(&answer).as_str(), carried_out),
            (status, expected, 0),
            "{fault}"
        );
    }
    let (throttled, _) = first_submit("kind = \"throttle\"\nretry_after_s = 3");
    assert_eq!(throttled.headers, [("Retry-After", "3".to_owned())]);
    let text = throttled.value()["error_msg"].to_string();
    assert!(
        text.contains("policy user over ratelimit,limit:50,time:1 minute"),
        "{text}"
    );
    let (redirect, carried_out) = first_submit("kind = \"redirect\"");
    assert_eq!(
        (redirect.status, redirect.headers, carried_out),
        (302, vec![("Location", "/moved".to_owned())], 0)
    );
    let (dropped, carried_out) = first_submit("kind = \"drop_before\"");
    assert_eq!((dropped.delivery, carried_out), (Delivery::Dropped, 0));
}

#[test]
fn faults_after_the_work_hide_that_it_was_carried_out() {
    let (error, carried_out) = first_submit("kind = \"error_after\"\nstatus = 504");
    assert_eq!(
        (error.status, code(&error).as_str(), carried_out),
        (504, "APIGW.0201", 2)
    );
    let (dropped, carried_out) = first_submit("kind = \"drop_after\"");
    assert_eq!((dropped.delivery, carried_out), (Delivery::Dropped, 2));
    let (html, carried_out) = first_submit("kind = \"html_body\"");
    assert_eq!(
        (html.status, html.content_type, html.value(), carried_out),
        (200, "text/html", Value::Null, 2)
    );
    let (malformed, carried_out) = first_submit("kind = \"malformed_body\"");
    assert_eq!(
        (
            malformed.status,
            malformed.value(),
            malformed.delivery,
            carried_out
        ),
        (200, Value::Null, Delivery::Whole, 2)
    );
    let (truncated, carried_out) = first_submit("kind = \"truncated_body\"");
    assert_eq!(
        (truncated.delivery, carried_out),
        (
            Delivery::Truncated {
                bytes: truncated.body.len() / 2
            },
            2
        )
    );
    let (oversized, carried_out) = first_submit("kind = \"oversized_body\"\nbytes = 99");
    assert_eq!(
        (oversized.delivery, carried_out),
        (Delivery::Padded { bytes: 99 }, 2)
    );
}

#[test]
fn faults_strike_reads_too_and_can_be_kept_to_them() {
    let mut world =
        world_with_fault("kind = \"error_before\"\non = [\"list\", \"show\"]\nchance = 1.0");
    let running = ids(&world, &RUNNING);
    let job = job_id(&world.submit(at(0), Stop, &running));
    assert_eq!(world.job(at(0), &job).status, 200);
    assert_eq!(world.list(at(0), &ListQuery::default()).status, 503);
    assert_eq!(world.show(at(0), &running[0]).status, 503);
}

#[test]
fn answers_are_slow_by_latency_and_by_fault() {
    let text =
        "[latency]\nlist_ms = [40, 40]\n[[faults]]\nkind = \"slow\"\ndelay_ms = 500\ncalls = [2]\n";
    let mut world = World::new(Scenario::from_toml(text).expect("valid"));
    let mut delay = || world.list(at(0), &ListQuery::default()).delay.as_millis();
    assert_eq!((delay(), delay(), delay()), (40, 540, 40));
}

#[test]
fn the_rate_window_refuses_and_opens_again() {
    let mut world =
        world("[rates]\nsubmits_per_minute = 2\nretry_after_s = 7\nrefused_calls_count = false");
    let servers = ids(&world, &[1, 3, 5]);
    job_id(&world.submit(at(0), Stop, &servers[..1]));
    job_id(&world.submit(at(1), Stop, &servers[1..2]));
    let refused = world.submit(at(2), Stop, &servers[2..]);
    assert_eq!(
        (
            refused.status,
            code(&refused).as_str(),
            world.ledger().len()
        ),
        (429, "APIGW.0308", 2)
    );
    assert_eq!(refused.headers, [("Retry-After", "7".to_owned())]);
    assert!(
        refused.value()["error_msg"]
            .to_string()
            .contains("limit:2,time:1 minute")
    );
    job_id(&world.submit(at(60_000), Stop, &servers[2..]));
}

#[test]
fn a_seed_repeats_every_answer() {
    let run = |seed| {
        let text = format!("seed = {seed}\n[[faults]]\nkind = \"error_after\"\nchance = 0.3\n");
        let mut world = World::new(Scenario::from_toml(&text).expect("valid"));
        let all = world.server_ids(Service::Bms);
        let mut answers = Vec::new();
        for pair in all.chunks(2).take(20) {
            answers.push(world.submit(at(0), Start, &pair[..1]));
        }
        answers
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn every_call_is_recorded_with_its_size() {
    let mut world = world_with_fault("kind = \"drop_after\"\non = [\"submit\"]\ncalls = [1]");
    let running = ids(&world, &RUNNING);
    world.submit(at(0), Stop, &running);
    world.show(at(5), &running[0]);
    let [submit, show] = world.calls() else {
        panic!("two calls")
    };
    assert_eq!(
        (submit.call, submit.action, submit.servers, submit.status),
        (Call::Submit, Some(Stop), 2, 0)
    );
    assert_eq!((submit.at, submit.delivery), (at(0), Delivery::Dropped));
    assert_eq!((show.call, show.servers, show.status), (Call::Show, 1, 200));
    assert!(show.bytes > 1000);
}

/// What the ledger has by then: numbers of servers, and ms.
fn begun(world: &mut World, ms: i64) -> Vec<(String, i64)> {
    world.act_late(at(ms));
    world
        .ledger()
        .iter()
        .map(|entry| (entry.server_id.0.clone(), entry.at.0 - at(0).0))
        .collect()
}

#[test]
fn a_refused_call_can_be_carried_out_late_on_some_of_its_servers() {
    let mut world = world(
        "[[faults]]\nkind = \"refuse\"\ncode = \"BMS.9999\"\ncalls = [1]\non = [\"submit\"]\n\
         [[faults]]\nkind = \"acts_anyway\"\nevery = 2\ndelay_ms = 5000\ncalls = [1]\n",
    );
    let ids = ids(&world, &[1, 3, 5]);
    assert_eq!(code(&world.submit(at(0), Reboot, &ids)), "BMS.9999");
    assert_eq!(begun(&mut world, 4999), []);
    assert_eq!(
        begun(&mut world, 5000),
        [(ids[0].0.clone(), 5000), (ids[2].0.clone(), 5000)]
    );
    let shown = world.show(at(5500), &ids[0]).value();
    assert_eq!(shown["server"]["OS-EXT-STS:task_state"], "rebooting");
}

#[test]
fn dropped_and_refused_calls_can_be_carried_out_all_the_same() {
    let mut dropped = world(
        "[[faults]]\nkind = \"drop_before\"\ncalls = [1]\non = [\"submit\"]\n\
         [[faults]]\nkind = \"acts_anyway\"\ncalls = [1]\n",
    );
    let running = ids(&dropped, &RUNNING);
    assert_eq!(
        dropped.submit(at(0), Stop, &running).delivery,
        Delivery::Dropped
    );
    assert_eq!(begun(&mut dropped, 0).len(), 2);
    let mut refused = world_with_fault("kind = \"acts_anyway\"\nchance = 1.0");
    let mixed = ids(&refused, &[1, 2]);
    assert_eq!(code(&refused.submit(at(0), Stop, &mixed)), "BMS.0039");
    assert_eq!(
        begun(&mut refused, 0),
        [(mixed[0].0.clone(), 0)],
        "the other one would not take it"
    );
    let accepted = ids(&refused, &[3]);
    job_id(&refused.submit(at(0), Stop, &accepted));
    assert_eq!(
        begun(&mut refused, 10).len(),
        2,
        "what is accepted is carried out once"
    );
}

#[test]
fn a_sub_job_can_call_its_own_operation_a_busy_server() {
    let mut world = world_with_fault(
        "kind = \"sub_job_fails\"\ncode = \"BMS.0037\"\nacts_after_ms = 300\nservers = [1]",
    );
    let ids = ids(&world, &RUNNING);
    let job = job_id(&world.submit(at(0), Reboot, &ids));
    let told = report(&mut world, 100, &job);
    let statuses: Vec<_> = sub_jobs(&told)
        .iter()
        .map(|sub_job| sub_job["status"].clone())
        .collect();
    assert_eq!(statuses, ["FAIL", "RUNNING"]);
    assert_eq!(
        begun(&mut world, 300),
        [(ids[1].0.clone(), 0), (ids[0].0.clone(), 300)]
    );
    assert_eq!(world.ledger()[1].batch, job);
}

#[test]
fn without_a_chance_a_fault_stays_with_a_server_a_page_or_a_job() {
    let mut world = world(
        "[[faults]]\nkind = \"error_before\"\non = [\"show\"]\nservers = [3]\n\
         [[faults]]\nkind = \"error_before\"\nlimit_above = 100\n\
         [[faults]]\nkind = \"error_before\"\npages = [2]\n\
         [[faults]]\nkind = \"error_before\"\njobs = [1]\n",
    );
    let all = ids(&world, &[1, 3]);
    for _ in 0..3 {
        assert_eq!(
            [&all[0], &all[1]].map(|id| world.show(at(0), id).status),
            [200, 503]
        );
    }
    let mut list = |limit, offset| {
        world
            .list(
                at(0),
                &ListQuery {
                    limit: Some(limit),
                    offset: Some(offset),
                    ..ListQuery::default()
                },
            )
            .status
    };
    assert_eq!(
        [list(101, 1), list(100, 1), list(4, 2), list(4, 3)],
        [503, 200, 503, 200]
    );
    let jobs =
        [0, 1].map(|index| job_id(&world.submit(at(0), Reboot, std::slice::from_ref(&all[index]))));
    assert_eq!(
        [0, 1, 0].map(|index: usize| world.job(at(9000), &jobs[index]).status),
        [503, 200, 503]
    );
}

#[test]
fn a_wait_can_be_days_as_a_date_and_a_conflict_names_its_server() {
    let mut world = world(
        "[[faults]]\nkind = \"throttle\"\nretry_after_s = 259200\nretry_after_date = true\ncalls = [1]\n\
         [[faults]]\nkind = \"conflict\"\nservers = [3]\n",
    );
    let ids = ids(&world, &RUNNING);
    let throttled = world.submit(at(0), Stop, &ids);
    assert_eq!(
        throttled.headers,
        [("Retry-After", "Fri, 05 Jan 2024 03:04:05 GMT".to_owned())]
    );
    let conflict = world.submit(at(0), Stop, &ids);
    let text = conflict.value()["conflictingRequest"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(conflict.status == 409 && text.contains(&ids[1].0), "{text}");
    assert_eq!(world.submit(at(0), Stop, &ids[..1]).status, 200);
}
