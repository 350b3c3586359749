//! The BMS client on the wire: what it sends, and what it makes of connections that misbehave.
//!
//! The other end is a few lines of TCP, so that answers may be wrong in every way. Nothing here
//! waits for time to pass, except for a connect timeout of a tenth of a second.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::PROJECT;
use crate::common::wire::{
    self, Cloud, REFUSED, Reply, assert_as_captured, clock, fault, iam, ids, keys, ok, password,
    refuse, shown, unused_port,
};
use poweryard::cloud::{Bms, Clock, LIST_PAGES_MAX, PowerCloud, connect};
use poweryard::model::{
    Activity, CallError, CodeClass, Extent, Fault, JobId, JobStatus, Power, PowerAction, ServerId,
    ServerView, Service, Sighting, Tracking, UtcMillis,
};
use poweryard::settings::TargetSettings;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

const FIRST: &str = "616fb98f-46ca-475e-917e-2563e5a8cd19";
const SECOND: &str = "726fb98f-46ca-475e-917e-2563e5a8cd20";
const ACCEPTED: &str = include_str!("../fixtures/api-examples/bms-submit-response.json");

fn target(port: u16) -> TargetSettings {
    wire::target(Service::Bms, port)
}

fn with_token(port: u16, iam_port: u16) -> TargetSettings {
    wire::with_token(target(port), iam_port)
}

fn client(cloud: &Cloud) -> Bms {
    Bms::new(
        &target(cloud.port),
        keys("EXAMPLEAK00000000001", None),
        clock(),
    )
    .expect("a client")
}

async fn stop_one(bms: &Bms) -> Result<Tracking, CallError> {
    bms.submit(PowerAction::Stop, &ids(&[FIRST])).await
}

/// A server as the list and the show call print it.
fn running(id: &str) -> Value {
    json!({ "id": id, "status": "ACTIVE", "OS-EXT-STS:vm_state": "active", "OS-EXT-STS:power_state": 1 })
}

const RUNNING: Sighting = Sighting::Present(ServerView::of(Power::On, Activity::Idle));

// ----------------------------------------------------------------------------------------------
// what is sent

#[tokio::test]
async fn power_calls_go_out_as_the_vendors_client_sends_them() {
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let bms = client(&cloud);
    for action in [PowerAction::Start, PowerAction::Stop, PowerAction::Reboot] {
        let tracking = bms
            .submit(action, &ids(&[FIRST, SECOND]))
            .await
            .expect("accepted");
        assert_eq!(
            tracking,
            Tracking::Job(JobId("70a599e0-31e7-49b7-b260-868f441e862b".to_owned()))
        );
    }
    let sent = cloud.received();
    assert_eq!(sent.len(), 3);
    for (sent, call) in sent.iter().zip([
        "bms.batch_start",
        "bms.batch_stop_hard",
        "bms.batch_reboot_hard",
    ]) {
        assert_as_captured(sent, call);
    }
}

#[tokio::test]
async fn temporary_keys_send_their_token_signed() {
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let keys = keys(
        "EXAMPLETEMPAK0000001",
        Some("gQpjbi1ub3J0aC0x+EXAMPLE/SECURITY=TOKEN=="),
    );
    let bms = Bms::new(&target(cloud.port), keys, clock()).expect("a client");
    bms.submit(PowerAction::Start, &ids(&[FIRST]))
        .await
        .expect("accepted");
    let sent = &cloud.received()[0];
    assert_as_captured(sent, "bms.batch_start_temporary_credentials");
    assert!(
        sent.header("authorization")
            .is_some_and(|text| text.contains(";x-security-token, "))
    );
}

#[tokio::test]
async fn jobs_and_servers_are_asked_for_as_the_vendors_client_does() {
    let cloud = Cloud::start(|request, _| {
        ok(match request.target.contains("/jobs/") {
            true => include_str!("../fixtures/api-examples/bms-job-success-documented.json"),
            false => include_str!("../fixtures/api-examples/bms-server-detail.json"),
        })
    })
    .await;
    let bms = client(&cloud);
    let report = bms
        .job(&JobId("2c9eb2c5544cbf6101544f0602af2b4f".to_owned()))
        .await
        .expect("a report");
    assert_eq!(report.status, JobStatus::Succeeded);
    let server = ids(&["53206ed0-56de-4d6b-b7ee-ffc62ca26f43"]);
    let seen = bms.observe(&server).await.expect("seen").sightings;
    assert_eq!(seen.get(&server[0]), Some(&RUNNING));
    assert_as_captured(&cloud.received()[0], "bms.show_job");
    assert_as_captured(&cloud.received()[1], "bms.show_server");
}

#[tokio::test]
async fn ids_that_cannot_stand_in_a_path_are_not_sent() {
    let cloud = Cloud::start(|_, _| ok("{}")).await;
    let bms = client(&cloud);
    assert_eq!(
        fault(bms.job(&JobId("../servers".to_owned())).await),
        Fault::Refused(CodeClass::JobUnknown)
    );
    let seen = bms.observe(&ids(&["../jobs"])).await.expect("a look");
    assert_eq!(
        fault(shown(seen, &ServerId("../jobs".to_owned()))),
        Fault::Refused(CodeClass::BatchInvalid)
    );
    assert_eq!(
        fault(bms.submit(PowerAction::Stop, &[]).await),
        Fault::Refused(CodeClass::BatchInvalid)
    );
    assert!(cloud.received().is_empty());
}

// ----------------------------------------------------------------------------------------------
// observing

#[tokio::test]
async fn many_servers_are_read_from_the_list_and_those_left_out_are_confirmed() {
    let cloud = Cloud::start(|request, _| {
        let page = |from: usize, count: usize| {
            let servers: Vec<_> = (from..from + count)
                .map(|n| running(&format!("server-{n}")))
                .collect();
            ok(json!({ "count": count, "servers": servers }).to_string())
        };
        match request.target.rsplit(['/', '=']).next() {
            Some("1") => page(0, 1000),
            Some("2") => page(1000, 5),
            Some("gone") => Reply::Http(
                404,
                vec![],
                json!({"itemNotFound": {"message": "-", "code": 404}}).to_string(),
            ),
            Some("deleted") => {
                ok(json!({ "server": { "id": "deleted", "status": "DELETED" } }).to_string())
            }
            Some(other) => ok(json!({ "server": running(other) }).to_string()),
            None => ok(""),
        }
    })
    .await;
    let bms = client(&cloud);
    let asked = ids(&[
        "server-3",
        "SERVER-1004",
        "gone",
        "deleted",
        "moved-between-pages",
    ]);
    let seen = bms.observe(&asked).await.expect("seen").sightings;
    let expected = [
        &RUNNING,
        &RUNNING,
        &Sighting::Missing,
        &Sighting::Missing,
        &RUNNING,
    ];
    assert_eq!(
        asked.iter().map(|server| &seen[server]).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(seen.len(), 5);
    let targets: Vec<_> = cloud
        .received()
        .into_iter()
        .map(|sent| sent.target)
        .collect();
    let list = format!(
        "/v1/{PROJECT}/baremetalservers/detail?enterprise_project_id=all_granted_eps&limit=1000&offset="
    );
    assert_eq!(targets[..2], [format!("{list}1"), format!("{list}2")]);
    assert_eq!(targets.len(), 5, "two pages and three shows: {targets:?}");
}

#[tokio::test]
async fn the_list_is_left_as_soon_as_everyone_has_been_seen() {
    let cloud = Cloud::start(|_, _| {
        let servers: Vec<_> = (0..1000).map(|n| running(&format!("server-{n}"))).collect();
        ok(json!({ "servers": servers }).to_string())
    })
    .await;
    let bms = client(&cloud);
    bms.observe(&ids(&["server-1", "server-2", "server-3", "server-4"]))
        .await
        .expect("seen");
    assert_eq!(cloud.received().len(), 1);
}

#[tokio::test]
async fn a_list_that_repeats_its_page_for_ever_is_left() {
    let cloud = Cloud::start(|request, _| match request.target.contains("/detail?") {
        true => {
            let servers: Vec<_> = (0..1000).map(|n| running(&format!("server-{n}"))).collect();
            ok(json!({ "servers": servers }).to_string())
        }
        false => Reply::Http(
            404,
            vec![],
            json!({"itemNotFound": {"message": "-", "code": 404}}).to_string(),
        ),
    })
    .await;
    let seen = client(&cloud)
        .observe(&ids(&["server-1", "server-2", "server-3", "x"]))
        .await
        .expect("seen")
        .sightings;
    assert_eq!(seen[&ServerId("x".to_owned())], Sighting::Missing);
    assert_eq!(cloud.received().len(), 3, "two pages and one show");
}

#[tokio::test]
async fn a_cloud_that_refuses_the_project_filter_is_listed_without_it() {
    let cloud = Cloud::start(
        |request, _| match request.target.contains("enterprise_project_id") {
            true => Reply::Http(
                400,
                vec![],
                r#"{"error":{"code":"BMS.0018","message":"invalid"}}"#.to_owned(),
            ),
            false => ok(
                json!({ "servers": (0..4).map(|n| running(&format!("s{n}"))).collect::<Vec<_>>() })
                    .to_string(),
            ),
        },
    )
    .await;
    let bms = client(&cloud);
    for _ in 0..2 {
        assert_eq!(
            bms.observe(&ids(&["s0", "s1", "s2", "s3"]))
                .await
                .expect("seen")
                .sightings
                .len(),
            4
        );
    }
    assert_eq!(cloud.received().len(), 3, "the refusal is remembered");
}

#[tokio::test]
async fn a_list_without_projects_that_the_key_may_not_see_is_filtered() {
    for (status, refusal, extent) in [
        (
            403,
            r#"{"error_code":"APIGW.0302","error_msg":"not authorized"}"#,
            Extent::Filtered,
        ),
        (
            400,
            r#"{"error":{"code":"BMS.0018","message":"invalid"}}"#,
            Extent::Whole,
        ),
    ] {
        let cloud = Cloud::start(move |request, _| {
            if request.target.contains("enterprise_project_id") {
                Reply::Http(status, vec![], refusal.to_owned())
            } else {
                ok(json!({ "servers": [running("s1")] }).to_string())
            }
        })
        .await;
        let listing = client(&cloud).list(LIST_PAGES_MAX).await.expect("listed");
        assert_eq!((listing.servers.len(), listing.extent), (1, extent));
    }
}

#[tokio::test]
async fn one_server_that_cannot_be_shown_does_not_hide_the_others() {
    let cloud = Cloud::start(|request, _| match request.target.ends_with("/odd") {
        true => Reply::Http(
            400,
            vec![],
            r#"{"error":{"code":"BMS.9999","message":"?"}}"#.to_owned(),
        ),
        false => ok(json!({ "server": running("fine") }).to_string()),
    })
    .await;
    let bms = client(&cloud);
    let seen = bms.observe(&ids(&["odd", "fine"])).await.expect("seen");
    assert_eq!(seen.sightings[&ServerId("fine".to_owned())], RUNNING);
    assert_eq!(
        fault(shown(seen, &ServerId("odd".to_owned()))),
        Fault::Refused(CodeClass::Other)
    );
    let seen = bms
        .observe(&ids(&["odd"]))
        .await
        .expect("the cloud has answered");
    assert_eq!(
        fault(shown(seen, &ServerId("odd".to_owned()))),
        Fault::Refused(CodeClass::Other)
    );
}

#[tokio::test]
async fn a_proxy_is_used_if_the_settings_name_one_and_its_password_is_not_told() {
    let proxy = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let through = |port: u16| TargetSettings {
        endpoint: "http://bms.example".parse().expect("a URL"),
        proxy: Some(
            format!("http://user:hush@127.0.0.1:{port}")
                .parse()
                .expect("a URL"),
        ),
        ..target(0)
    };
    let bms = Bms::new(&through(proxy.port), keys("AK", None), clock()).expect("a client");
    stop_one(&bms).await.expect("accepted");
    let sent = &proxy.received()[0];
    assert_eq!(
        sent.target,
        format!("http://bms.example/v1/{PROJECT}/baremetalservers/action")
    );
    assert_eq!(sent.header("host"), Some("bms.example"));
    let gone = unused_port().await;
    let bms = Bms::new(&through(gone), keys("AK", None), clock()).expect("a client");
    let error = stop_one(&bms).await.expect_err("no proxy there");
    assert_eq!(error.fault, Fault::Unreachable);
    let expected = format!(
        "could not connect to bms.example:80 through the proxy 127.0.0.1:{gone}: connection refused"
    );
    assert_eq!(error.message, expected);
}

/// A proxy in front of an `https` endpoint that answers `CONNECT` with `status`.
async fn through_a_proxy_that_says(status: u16) -> (CallError, Cloud) {
    let proxy =
        Cloud::start(move |_, _| Reply::Http(status, vec![], "<html>no</html>".to_owned())).await;
    let through = TargetSettings {
        endpoint: "https://bms.example".parse().expect("a URL"),
        ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ca.pem").into()),
        proxy: Some(
            format!("http://user@127.0.0.1:{}", proxy.port)
                .parse()
                .expect("a URL"),
        ),
        ..target(0)
    };
    let hush = "hush".into();
    let bms = connect(&through, Some(&hush), keys("AK", None), clock()).expect("a client");
    let error = bms
        .submit(PowerAction::Stop, &ids(&[FIRST]))
        .await
        .expect_err("refused");
    (error, proxy)
}

#[tokio::test]
async fn a_proxy_that_opens_no_way_is_named_and_gets_its_password() {
    for (status, fault, words) in [
        (407, Fault::Configuration, "proxy_password_file"),
        (
            403,
            Fault::Unreachable,
            "it refuses to connect to bms.example:443",
        ),
        (
            503,
            Fault::Unreachable,
            "it refuses to connect to bms.example:443",
        ),
    ] {
        let (error, proxy) = through_a_proxy_that_says(status).await;
        assert_eq!(error.fault, fault, "{error}");
        assert!(
            error.message.contains("answered, not the cloud") && error.message.contains(words),
            "{error}"
        );
        assert!(!error.to_string().contains("hush"), "{error}");
        let sent = &proxy.received()[0];
        assert_eq!(
            (sent.method.as_str(), sent.header("proxy-authorization")),
            ("CONNECT", Some("Basic dXNlcjpodXNo"))
        );
    }
}

// ----------------------------------------------------------------------------------------------
// odd answers

/// A 200 with these bytes and this `Content-Encoding`.
fn encoded(encoding: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\ncontent-length: {length}\r\n\r\n"
    );
    Reply::Raw([head.as_bytes(), body].concat())
}

fn gzipped(body: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, body.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test]
async fn an_accepted_call_is_known_by_its_job_however_odd_the_answer() {
    let job = Tracking::Job(JobId("j-1".to_owned()));
    for body in [
        b"{\"note\":\"r\xc3\",\"job_id\":\"j-1\"}".as_slice(),
        br#"{"note":"\ud83d","job_id":"j-1"}"#,
        br#"{"job_id":"j-0","job_id":"j-1"}"#,
        b"\xef\xbb\xbf{\"job_id\":\"j-1\"}\n\0",
    ] {
        let cloud = Cloud::start(move |_, _| encoded("identity", body)).await;
        assert_eq!(
            stop_one(&client(&cloud)).await,
            Ok(job.clone()),
            "{}",
            String::from_utf8_lossy(body)
        );
    }
    let cloud = Cloud::start(|_, _| encoded("gzip", &gzipped(r#"{"job_id":"j-1"}"#))).await;
    assert_eq!(stop_one(&client(&cloud)).await, Ok(job));
    let cloud = Cloud::start(|_, _| encoded("br", b"\x0b\x02\x80")).await;
    let error = stop_one(&client(&cloud)).await.expect_err("not read");
    assert_eq!(error.fault, Fault::Lost);
    assert!(error.message.contains("Content-Encoding: br"), "{error}");
}

#[tokio::test]
async fn one_odd_entry_costs_a_page_nothing_but_itself() {
    let cloud = Cloud::start(
        |request, _| match request.target.rsplit(['/', '=']).next() {
            Some("1") => {
                let mut servers: Vec<Value> =
                    (0..997).map(|n| running(&format!("server-{n}"))).collect();
                servers.extend([json!("odd"), json!(null), json!([7])]);
                ok(json!({ "servers": servers }).to_string().replacen(
                    "ACTIVE",
                    "ACTIVE\",\"name\":\"\\ud83d",
                    1,
                ))
            }
            Some("2") => ok(json!({ "servers": [running("server-1000")] }).to_string()),
            _ => ok("{}"),
        },
    )
    .await;
    let asked = ids(&["server-0", "server-1", "server-996", "server-1000"]);
    let seen = client(&cloud).observe(&asked).await.expect("seen");
    assert_eq!(
        (seen.sightings.len(), cloud.received().len()),
        (4, 2),
        "{:?}",
        seen.failures
    );
}

#[tokio::test]
async fn a_cloud_that_quotes_our_key_does_not_make_us_repeat_it() {
    const KEY: &str = "EXAMPLEAK00000000001";
    let cloud = Cloud::start(|request, _| {
        let header = request.header("authorization").unwrap_or_default();
        let error =
            json!({ "code": format!("X.{KEY}"), "message": format!("bad header {header}") });
        let named = vec![("x-request-id", format!("req-{KEY}"))];
        match request.target.contains("/jobs/") {
            true => ok(
                json!({ "status": "FAIL", "fail_reason": format!("key {KEY} is frozen") })
                    .to_string(),
            ),
            false => Reply::Http(400, named, json!({ "error": error }).to_string()),
        }
    })
    .await;
    let bms = client(&cloud);
    let error = stop_one(&bms).await.expect_err("refused");
    assert!(
        !error.to_string().contains(KEY) && error.message.contains("Signature=***"),
        "{error}"
    );
    let report = bms.job(&JobId("1".to_owned())).await.expect("a report");
    assert_eq!(
        report.error.expect("a complaint").message,
        "key *** is frozen"
    );
    let looked = bms
        .observe(&ids(&[FIRST]))
        .await
        .expect("an answer about the server");
    assert!(!format!("{:?}", looked.failures).contains(KEY));
}

// ----------------------------------------------------------------------------------------------
// misbehaviour

#[tokio::test]
async fn a_redirect_is_not_followed_and_no_credential_reaches_the_other_host() {
    let other = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let elsewhere = format!("http://127.0.0.1:{}/v1/x", other.port);
    for status in [301, 302, 303, 307, 308] {
        let location = elsewhere.clone();
        let cloud = Cloud::start(move |_, _| {
            Reply::Http(status, vec![("location", location.clone())], String::new())
        })
        .await;
        let bms = client(&cloud);
        assert_eq!(fault(stop_one(&bms).await), Fault::Configuration);
        assert_eq!(
            fault(bms.job(&JobId("1".to_owned())).await),
            Fault::Configuration
        );
        assert_eq!(cloud.received().len(), 2);
    }
    assert!(other.received().is_empty());
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    const FLOOD: usize = 50_000_000;
    for submit in [true, false] {
        let cloud = Cloud::start(|_, _| Reply::Flood(FLOOD)).await;
        let bms = client(&cloud);
        let error = match submit {
            true => stop_one(&bms).await.expect_err("too large"),
            false => bms
                .job(&JobId("1".to_owned()))
                .await
                .expect_err("too large"),
        };
        assert_eq!(
            error.fault,
            if submit {
                Fault::Lost
            } else {
                Fault::Unavailable
            }
        );
        assert!(
            error
                .message
                .ends_with("answered with more than 16 MiB; the answer was cut off"),
            "{error}"
        );
        assert!(cloud.written.load(Ordering::SeqCst) < FLOOD);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_a_submit_is_lost() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n{\"job_id\": \"70a5",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"job",
        "HTTP/1.1 400 Bad\r\ncontent-length: 55\r\n\r\n{\"err",
        "garbage that is no HTTP\r\n\r\n",
    ] {
        let cloud = Cloud::start(move |_, _| Reply::Raw(answer.as_bytes().to_vec())).await;
        let bms = client(&cloud);
        assert_eq!(fault(stop_one(&bms).await), Fault::Lost, "{answer:?}");
        assert_eq!(cloud.received().len(), 1, "never sent twice: {answer:?}");
        assert_eq!(
            fault(bms.job(&JobId("1".to_owned())).await),
            Fault::Unavailable,
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_connection_is_unreachable_and_says_so_in_words() {
    let port = unused_port().await;
    let bms = Bms::new(&target(port), keys("AK", None), clock()).expect("a client");
    let error = stop_one(&bms).await.expect_err("nobody listens");
    assert_eq!(error.fault, Fault::Unreachable);
    assert_eq!(
        error.message,
        format!("could not connect to 127.0.0.1:{port}: connection refused")
    );
}

/// `ca.pem` is an authority whose key nobody has.
#[tokio::test]
async fn tls_that_never_answers_or_is_no_tls_is_unreachable() {
    let silent = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let port = silent.local_addr().expect("an address").port();
    let https = |port: u16| TargetSettings {
        endpoint: format!("https://127.0.0.1:{port}").parse().expect("a URL"),
        ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ca.pem").into()),
        connect_timeout: Duration::from_millis(100),
        allow_http: false,
        ..target(port)
    };
    let bms = Bms::new(&https(port), keys("AK", None), clock()).expect("a client");
    let error = stop_one(&bms).await.expect_err("no handshake");
    assert_eq!(error.fault, Fault::Unreachable);
    assert_eq!(
        error.message,
        format!("could not connect to 127.0.0.1:{port}: no connection within 100ms")
    );
    let plain = Cloud::start(|_, _| ok("")).await;
    let patient = TargetSettings {
        connect_timeout: Duration::from_secs(10),
        ..https(plain.port)
    };
    let bms = Bms::new(&patient, keys("AK", None), clock()).expect("a client");
    let error = stop_one(&bms).await.expect_err("no TLS");
    assert_eq!(error.fault, Fault::Unreachable);
    assert!(
        error.message.contains("the server may not speak TLS"),
        "{error}"
    );
    let plain = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let port = plain.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let patient = TargetSettings {
        connect_timeout: Duration::from_secs(10),
        ..https(port)
    };
    let bms = Bms::new(&patient, keys("AK", None), clock()).expect("a client");
    let error = stop_one(&bms).await.expect_err("no TLS");
    assert_eq!(error.fault, Fault::Unreachable);
    assert!(error.message.contains("it does not speak TLS"), "{error}");
}

#[tokio::test]
async fn every_submit_opens_a_connection_of_its_own_and_reads_keep_theirs() {
    let cloud = Cloud::start(|request, _| {
        ok(match request.method.as_str() {
            "POST" => ACCEPTED,
            _ => include_str!("../fixtures/api-examples/bms-job-init.json"),
        })
    })
    .await;
    let bms = client(&cloud);
    for _ in 0..3 {
        stop_one(&bms).await.expect("accepted");
        bms.job(&JobId("1".to_owned())).await.expect("a report");
    }
    cloud.assert_three_submits_connected_anew("POST");
}

// ----------------------------------------------------------------------------------------------
// credentials

#[tokio::test]
async fn one_refused_signature_is_made_again_exactly_once() {
    let cloud = Cloud::start(|_, before| {
        if before == 0 {
            refuse(REFUSED)
        } else {
            ok(ACCEPTED)
        }
    })
    .await;
    stop_one(&client(&cloud))
        .await
        .expect("accepted at the second try");
    assert_eq!(cloud.received().len(), 2);
    assert_eq!(cloud.received()[0].body, cloud.received()[1].body);
}

#[tokio::test]
async fn a_second_refusal_means_credentials_and_spares_the_key() {
    let cloud = Cloud::start(|_, _| refuse(REFUSED)).await;
    let bms = client(&cloud);
    assert_eq!(fault(stop_one(&bms).await), Fault::Credentials);
    assert_eq!(cloud.received().len(), 2);
    assert_eq!(fault(stop_one(&bms).await), Fault::Credentials);
    assert_eq!(
        cloud.received().len(),
        3,
        "a key refused twice is not signed with twice a call"
    );
}

#[tokio::test]
async fn a_locked_key_is_left_alone() {
    let locked = include_str!("../fixtures/api-examples/gateway-error-401-aksk-locked.json");
    let cloud = Cloud::start(move |_, _| refuse(locked)).await;
    assert_eq!(fault(stop_one(&client(&cloud)).await), Fault::Credentials);
    assert_eq!(cloud.received().len(), 1);
}

#[tokio::test]
async fn clients_that_share_a_key_say_so_without_telling_it() {
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let with = |credentials| Bms::new(&target(cloud.port), credentials, clock()).expect("a client");
    let (one, other) = (with(keys("FIRSTKEY", None)), with(keys("SECONDKEY", None)));
    assert_eq!(
        one.key().name().id,
        with(keys("FIRSTKEY", None)).key().name().id
    );
    assert_ne!(one.key().name().id, other.key().name().id);
    assert!(!one.key().name().id.contains("FIRSTKEY"));
}

#[tokio::test]
async fn a_token_is_bought_once_and_kept() {
    let (cloud, iam) = (Cloud::start(|_, _| ok(ACCEPTED)).await, iam().await);
    let bms = Bms::new(&with_token(cloud.port, iam.port), password(), clock()).expect("a client");
    let (one, two, three) = tokio::join!(bms.prepare(), bms.prepare(), bms.prepare());
    one.and(two).and(three).expect("a token");
    stop_one(&bms).await.expect("accepted");
    let sent = &cloud.received()[0];
    assert_eq!(
        (sent.header("x-auth-token"), sent.header("authorization")),
        (Some("token-1"), None)
    );
    assert_eq!(sent.header("x-project-id"), Some(PROJECT));
    assert_eq!(iam.received().len(), 1);
    assert_eq!(iam.received()[0].target, "/v3/auth/tokens?nocatalog=true");
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let update = include_str!("../fixtures/api-examples/gateway-error-401-token-update.json");
    let cloud = Cloud::start(move |request, _| match request.header("x-auth-token") {
        Some("token-2") => ok(ACCEPTED),
        _ => refuse(update),
    })
    .await;
    let iam = iam().await;
    let bms = Bms::new(&with_token(cloud.port, iam.port), password(), clock()).expect("a client");
    stop_one(&bms)
        .await
        .expect("accepted with the second token");
    stop_one(&bms).await.expect("accepted");
    assert_eq!((cloud.received().len(), iam.received().len()), (3, 2));
}

#[tokio::test]
async fn a_token_that_is_refused_again_means_credentials() {
    let cloud = Cloud::start(|_, _| refuse(REFUSED)).await;
    let iam = iam().await;
    let bms = Bms::new(&with_token(cloud.port, iam.port), password(), clock()).expect("a client");
    assert_eq!(fault(stop_one(&bms).await), Fault::Credentials);
    assert_eq!((cloud.received().len(), iam.received().len()), (2, 2));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let (cloud, iam) = (Cloud::start(|_, _| ok(ACCEPTED)).await, iam().await);
    let now = Arc::new(Mutex::new(UtcMillis(1_704_164_645_000)));
    let hand = Arc::clone(&now);
    let clock: Clock = Arc::new(move || *hand.lock().expect("not poisoned"));
    let bms = Bms::new(&with_token(cloud.port, iam.port), password(), clock).expect("a client");
    bms.prepare().await.expect("a token");
    let minutes = |minutes: u64| UtcMillis(1_704_164_645_000) + Duration::from_secs(60 * minutes);
    *now.lock().expect("not poisoned") = minutes(24 * 60 - 11);
    bms.prepare().await.expect("the token");
    assert_eq!(iam.received().len(), 1);
    *now.lock().expect("not poisoned") = minutes(24 * 60 - 10);
    bms.prepare().await.expect("a new token");
    assert_eq!(iam.received().len(), 2);
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_for_all_who_wait() {
    let wrong = include_str!("../fixtures/api-examples/iam-error-401.json");
    let iam = Cloud::start(move |_, _| refuse(wrong)).await;
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let bms = Bms::new(&with_token(cloud.port, iam.port), password(), clock()).expect("a client");
    let (one, two, three) = tokio::join!(bms.prepare(), bms.prepare(), stop_one(&bms));
    assert_eq!(
        (fault(one), fault(two), fault(three)),
        (Fault::Credentials, Fault::Credentials, Fault::Credentials)
    );
    assert_eq!((iam.received().len(), cloud.received().len()), (1, 0));
}

#[tokio::test]
async fn an_iam_that_is_away_keeps_the_submit_here() {
    let iam_port = unused_port().await;
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let bms = Bms::new(&with_token(cloud.port, iam_port), password(), clock()).expect("a client");
    assert_eq!(fault(stop_one(&bms).await), Fault::Unreachable);
    assert!(cloud.received().is_empty());
}

// ----------------------------------------------------------------------------------------------
// making a client

#[test]
fn clients_that_cannot_work_are_refused_with_a_reason() {
    let refused = |target: &TargetSettings| {
        connect(target, None, keys("AK", None), clock())
            .err()
            .expect("an error")
            .to_string()
    };
    let insecure = TargetSettings {
        allow_http: false,
        ..target(80)
    };
    assert_eq!(
        refused(&insecure),
        "127.0.0.1:80 is not an https address; set allow_http = true if that is intended"
    );
    let no_file = TargetSettings {
        ca_file: Some("/nonexistent/ca.pem".into()),
        ..target(80)
    };
    assert!(refused(&no_file).starts_with("ca_file /nonexistent/ca.pem cannot be used: "));
    let no_pem = TargetSettings {
        ca_file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()),
        ..target(80)
    };
    assert!(refused(&no_pem).ends_with("it contains no PEM certificate"));
}
