use proptest::prelude::*;
use reqwest::header::HeaderMap;

use super::*;

const NOW: UtcMillis = UtcMillis(1_795_262_400_000);
const FIRST: &str = "616fb98f-46ca-475e-917e-2563e5a8cd19";
const SECOND: &str = "726fb98f-46ca-475e-917e-2563e5a8cd20";
const THIRD: &str = "836fb98f-46ca-475e-917e-2563e5a8cd21";

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

fn job(body: &str) -> JobReport {
    read_job(&answer(200, body), NOW).expect(body)
}

/// (server, status, error code) of each sub-job.
fn sub_jobs(report: &JobReport) -> Vec<(Option<&str>, JobStatus, Option<&str>)> {
    let code = |sub_job: &SubJob| sub_job.error.as_ref().map(|_| ()).is_some();
    report
        .sub_jobs
        .iter()
        .map(|sub_job| {
            let error = code(sub_job).then(|| {
                sub_job
                    .error
                    .as_ref()
                    .map_or("", |error| error.code.as_str())
            });
            (
                sub_job.server.as_ref().map(|server| server.0.as_str()),
                sub_job.status,
                error,
            )
        })
        .collect()
}

#[test]
fn every_example_of_a_job_is_read() {
    use JobStatus::{Failed, Pending, Succeeded};
    type Read = (
        JobStatus,
        Option<&'static str>,
        Vec<(Option<&'static str>, JobStatus, Option<&'static str>)>,
    );
    let cases: [(&str, Read); 9] = [
        (example!("bms-job-init"), (Pending, None, vec![])),
        (
            example!("bms-job-running"),
            (
                Pending,
                None,
                vec![
                    (Some(FIRST), Pending, None),
                    (Some(SECOND), Succeeded, None),
                ],
            ),
        ),
        (
            example!("bms-job-success"),
            (
                Succeeded,
                None,
                vec![
                    (Some(FIRST), Succeeded, None),
                    (Some(SECOND), Succeeded, None),
                ],
            ),
        ),
        (
            example!("bms-job-success-documented"),
            (
                Succeeded,
                None,
                vec![(
                    Some("bae51750-0089-41a1-9b18-5c777978ff6d"),
                    Succeeded,
                    None,
                )],
            ),
        ),
        (
            example!("bms-job-partial-failure"),
            (
                Failed,
                Some("Common.0021"),
                vec![
                    (Some(FIRST), Succeeded, None),
                    (Some(SECOND), Failed, Some("BMS.0038")),
                    (Some(THIRD), Failed, Some("BMS.3037")),
                ],
            ),
        ),
        (
            example!("bms-job-parent-success-child-fail"),
            (
                Succeeded,
                None,
                vec![
                    (Some(FIRST), Succeeded, None),
                    (Some(SECOND), Failed, Some("BMS.0040")),
                ],
            ),
        ),
        (
            example!("bms-job-fail-no-sub-jobs"),
            (Failed, Some("BMS.0006"), vec![]),
        ),
        (
            example!("bms-job-fail-sub-job-without-server-id"),
            (
                Failed,
                Some("Common.0021"),
                vec![
                    (Some(FIRST), Succeeded, None),
                    (None, Failed, Some("BMS.1007")),
                ],
            ),
        ),
        (
            example!("bms-job-missing-one-server"),
            (Succeeded, None, vec![(Some(FIRST), Succeeded, None)]),
        ),
    ];
    for (body, (status, code, subs)) in cases {
        let report = job(body);
        assert_eq!(report.status, status, "{body}");
        assert_eq!(
            report.error.as_ref().map(|error| error.code.as_str()),
            code,
            "{body}"
        );
        assert_eq!(sub_jobs(&report), subs, "{body}");
    }
}

#[test]
fn a_running_job_seen_in_the_wild_is_read() {
    let report = job(example!("ecs-job-running-observed"));
    let server = Some("1c74e090-c569-4b52-9eaa-fd34776cec28");
    assert_eq!(sub_jobs(&report), [(server, JobStatus::Pending, None)]);
    assert_eq!((report.status, report.duration), (JobStatus::Pending, None));
}

#[test]
fn a_finished_jobs_duration_is_the_clouds_own() {
    assert_eq!(
        job(example!("bms-job-success")).duration,
        Some(Duration::from_millis(127_500))
    );
    assert_eq!(
        job(r#"{"status":"SUCCESS","begin_time":"2024-01-02T03:04:05Z","end_time":1}"#).duration,
        None
    );
    let backwards = r#"{"status":"SUCCESS","begin_time":"2024-01-02T03:04:05Z","end_time":"2024-01-01T00:00:00Z"}"#;
    assert_eq!(job(backwards).duration, None);
}

#[test]
fn errors_carry_their_class_and_the_most_concrete_text() {
    let report = job(example!("bms-job-partial-failure"));
    let error = report.sub_jobs[1].error.as_ref().expect("an error");
    assert_eq!(error.class, CodeClass::AlreadyInTargetState);
    assert_eq!(error.message, "Server is running, not allow to start.");
    let nested = r#"{"status":"FAIL","entities":{"sub_jobs":[{"status":"FAIL","error_code":"Ecs.0204",
        "fail_reason":"Task-fail","entities":{"server_id":"s",
        "errorcode_message":"{\"forbidden\": {\"message\": \"No host\", \"code\": 403}}"}}]}}"#;
    assert_eq!(
        job(nested).sub_jobs[0]
            .error
            .as_ref()
            .map(|error| error.message.as_str()),
        Some("No host")
    );
}

#[test]
fn a_task_for_one_server_counts_as_one_sub_job() {
    let report = job(
        r#"{"status":"FAIL","error_code":"BMS.3037","fail_reason":"x","entities":{"server_id":"s1"}}"#,
    );
    assert_eq!(
        sub_jobs(&report),
        [(Some("s1"), JobStatus::Failed, Some("BMS.3037"))]
    );
}

#[test]
fn odd_types_are_read_all_the_same() {
    let array = r#"{"status":"SUCCESS","entities":[{"sub_jobs_total":"1","sub_jobs":[
        {"status":"SUCCESS","entities":[{"server_id":7}]}, null, "x", 1]}],"end_time":null,"error_code":null}"#;
    assert_eq!(
        sub_jobs(&job(array)),
        [(Some("7"), JobStatus::Succeeded, None)]
    );
    for blank in [r#""""#, "null", "0", "[]", "{}"] {
        let body = format!(
            r#"{{"status":"RUNNING","entities":{{"sub_jobs":{blank}}},"new_field":{{"a":[1]}}}}"#
        );
        assert!(
            job(&body)
                .sub_jobs
                .iter()
                .all(|sub_job| sub_job.status == JobStatus::Pending),
            "{body}"
        );
        assert_eq!(
            job(&format!(r#"{{"status":"RUNNING","entities":{blank}}}"#)).sub_jobs,
            [],
            "{blank}"
        );
    }
    assert_eq!(
        job(r#"{"status":"FAIL","error_code":400}"#)
            .error
            .expect("an error")
            .code,
        "400"
    );
}

#[test]
fn words_that_no_document_lists_are_still_pending() {
    for word in ["PENDING_PAYMENT", "PARTIAL", "SUCCEEDED", "7"] {
        assert_eq!(
            job(&format!(r#"{{"status":"{word}"}}"#)).status,
            JobStatus::Pending,
            "{word}"
        );
    }
    assert_eq!(job(r#"{"status":"success"}"#).status, JobStatus::Succeeded);
}

#[test]
fn an_unknown_job_is_told_from_a_fault_and_from_a_wrong_address() {
    let fault = |status, body| {
        read_job(&answer(status, body), NOW)
            .expect_err("no job")
            .fault
    };
    let unknown = Fault::Refused(CodeClass::JobUnknown);
    assert_eq!(fault(400, example!("bms-job-unknown-id-error")), unknown);
    assert_eq!(fault(404, example!("nova-error-not-found")), unknown);
    assert_eq!(fault(404, ""), unknown);
    assert_eq!(
        fault(404, example!("gateway-error-404-api")),
        Fault::Configuration
    );
    for body in [
        "",
        "<html>",
        "{}",
        r#"{"status":null}"#,
        r#"{"job_id":"x"}"#,
        r#"{"status":"SUCC"#,
    ] {
        assert_eq!(fault(200, body), Fault::Unavailable, "{body}");
    }
    let throttled = Fault::Throttled {
        retry_after: None,
        limit: None,
    };
    assert_eq!(
        fault(
            202,
            r#"{"error":{"code":"Common.0024","message":"exceeds flow over limit"}}"#
        ),
        throttled
    );
}

#[test]
fn an_accepted_submit_gives_its_job() {
    let job = read_submit(&answer(200, example!("bms-submit-response")), NOW).expect("accepted");
    assert_eq!(job.0, "70a599e0-31e7-49b7-b260-868f441e862b");
    assert_eq!(
        read_submit(&answer(200, r#"{"job_id":12}"#), NOW)
            .expect("accepted")
            .0,
        "12"
    );
}

#[test]
fn a_success_without_a_usable_job_id_is_lost() {
    for body in [
        "",
        "{}",
        "<html>",
        r#"{"job_id":""}"#,
        r#"{"job_id":null}"#,
        r#"{"job_id":"../x"}"#,
        r#"{"job_id":".."}"#,
    ] {
        assert_eq!(
            read_submit(&answer(200, body), NOW)
                .expect_err("lost")
                .fault,
            Fault::Lost,
            "{body}"
        );
    }
}

#[test]
fn a_job_of_a_thousand_servers_is_read_whole() {
    let one = |n: usize| {
        format!(
            r#"{{"status":"SUCCESS","entities":{{"server_id":"server-{n}"}},"job_id":"{n}","error_code":null}}"#
        )
    };
    let all: Vec<_> = (0..1000).map(one).collect();
    let report = job(&format!(
        r#"{{"status":"SUCCESS","entities":{{"sub_jobs":[{}]}}}}"#,
        all.join(",")
    ));
    assert_eq!(report.sub_jobs.len(), 1000);
    assert_eq!(
        report.sub_jobs[999].server,
        Some(ServerId("server-999".to_owned()))
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(status in 200_u16..600, body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let answer = Answer { status, body, ..Answer::default() };
        let _ = read_job(&answer, NOW);
        prop_assert!(read_submit(&answer, NOW).is_err());
    }

    #[test]
    fn a_cut_off_job_is_unavailable_or_still_a_report(cut in 0_usize..1500) {
        let body = example!("bms-job-partial-failure");
        let cut = cut.min(body.len());
        if let Err(error) = read_job(&answer(200, &body[..cut]), NOW) {
            prop_assert_eq!(error.fault, Fault::Unavailable);
        }
    }
}

#[test]
fn a_finished_job_tells_when_its_servers_had_ended() {
    let with_ends = |ends: [&str; 4], end: &str| {
        let sub_jobs = ends.map(|end| format!(r#"{{"status":"SUCCESS","end_time":"{end}"}}"#));
        let sub_jobs = sub_jobs.join(",");
        job(&format!(
            r#"{{"status":"SUCCESS","begin_time":"2024-01-02T03:04:00Z","end_time":"{end}","entities":{{"sub_jobs":[{sub_jobs}]}}}}"#
        ))
    };
    let [a, b, c, d] = [10, 20, 30, 50].map(|second| format!("2024-01-02T03:04:{second}Z"));
    let ends = ServerEnds {
        half: Duration::from_secs(20),
        most: Duration::from_secs(30),
    };
    let all = [d.as_str(), &a, &c, &b];
    assert_eq!(with_ends(all, &d).server_ends, Some(ends));
    assert_eq!(with_ends(all, "").server_ends, None, "it still runs");
    assert_eq!(with_ends([&d, &a, &c, ""], &d).server_ends, None);
    assert_eq!(job(r#"{"status":"SUCCESS"}"#).server_ends, None);
}
