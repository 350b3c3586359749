//! The CloudDC client on the wire: what it sends, what it makes of connections that misbehave, and
//! how many calls it takes to look at servers.
//!
//! The other end is a few lines of TCP, so that answers may be wrong in every way. Nothing here
//! waits for time to pass. What the two services share (TLS, proxies, the life of a token) is in
//! `bms_wire`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::PROJECT;
use crate::common::wire::{
    self, Cloud, REFUSED, Received, Reply, assert_as_captured,
    assert_as_captured_but_for_the_target, capture, clock, fault, iam, ids, keys, ok, password,
    refuse, shown, unused_port,
};
use poweryard::cloud::{CloudDc, PowerCloud, connect};
use poweryard::model::{
    Activity, CallError, CodeClass, Fault, JobId, JobStatus, Operation, Power, PowerAction,
    ServerId, ServerView, Service, Sighting, Tracking,
};
use poweryard::settings::TargetSettings;
use serde_json::{Value, json};

const SERVER: &str = "01939592-e8fe-7d9b-9332-4589486377a4";
const ACCEPTED: &str = include_str!("../fixtures/api-examples/clouddc-power-response.json");
const RUNNING: Sighting = Sighting::Present(ServerView::of(Power::On, Activity::Idle));

fn target(port: u16) -> TargetSettings {
    wire::target(Service::CloudDc, port)
}

fn client(cloud: &Cloud) -> CloudDc {
    CloudDc::new(
        &target(cloud.port),
        keys("EXAMPLEAK00000000001", None),
        clock(),
    )
    .expect("a client")
}

async fn stop_one(clouddc: &CloudDc) -> Result<Tracking, CallError> {
    clouddc.submit(PowerAction::Stop, &ids(&[SERVER])).await
}

async fn show_one(clouddc: &CloudDc) -> Result<Sighting, CallError> {
    let servers = ids(&[SERVER]);
    clouddc
        .observe(&servers)
        .await
        .and_then(|seen| shown(seen, &servers[0]))
}

/// A server as the list and the show call print it.
fn running(id: &str) -> Value {
    json!({ "id": id, "power_state": "on", "operation_state": null, "manage_state": "in-use" })
}

fn no_such_server() -> Reply {
    Reply::Http(
        404,
        vec![],
        r#"{"error_code":"CloudDC.0404","error_msg":"no such server"}"#.to_owned(),
    )
}

/// The value of `name` in a request's query, still encoded.
fn parameter<'a>(request: &'a Received, name: &str) -> Option<&'a str> {
    let (_, query) = request.target.split_once('?')?;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// How a project's list names its next page.
#[derive(Clone, Copy)]
enum Markers {
    /// By the last id of this page, on every page, also on the last.
    Always,
    /// By the last id, but on the last page.
    UntilTheEnd,
    /// As an address, on another host.
    Addresses,
    /// As an address, encoded as a whole.
    EncodedAddresses,
}

/// Answers as a project of servers `server-0`, `server-1`, … would.
fn project(
    count: usize,
    markers: Markers,
) -> impl Fn(&Received, usize) -> Reply + Send + Sync + 'static {
    let number = |id: &str| {
        id.strip_prefix("server-")
            .and_then(|number| number.parse::<usize>().ok())
    };
    move |request, _| {
        if !request.target.contains('?') {
            let id = request.target.rsplit('/').next().expect("a segment");
            return match number(id).filter(|number| *number < count) {
                Some(_) => ok(running(id).to_string()),
                None => no_such_server(),
            };
        }
        let limit: usize = parameter(request, "limit")
            .and_then(|limit| limit.parse().ok())
            .expect("a limit");
        let from = parameter(request, "marker")
            .map_or(0, |marker| number(marker).expect("a marker of ours") + 1);
        let to = count.min(from + limit);
        let last = (from < to).then(|| format!("server-{}", to - 1));
        let next = match markers {
            Markers::Always => last,
            Markers::UntilTheEnd => last.filter(|_| to < count),
            Markers::Addresses => {
                last.map(|id| format!("https://elsewhere.example/v1/p?limit=1000&marker={id}"))
            }
            Markers::EncodedAddresses => last.map(|id| {
                format!(
                    "https%3A%2F%2Felsewhere.example%2Fv1%3Fmarker%3D{}",
                    id.replace('-', "%2D")
                )
            }),
        };
        let servers: Vec<_> = (from..to)
            .map(|n| running(&format!("server-{n}")))
            .collect();
        let info =
            json!({ "next_marker": next, "previous_marker": null, "current_count": servers.len() });
        // `count` is wrong on purpose: nothing may depend on it.
        ok(json!({ "servers": servers, "page_info": info, "count": 1 }).to_string())
    }
}

/// Pages and shows among the requests since the first `before`.
fn calls(cloud: &Cloud, before: usize) -> (usize, usize) {
    let received = cloud.received();
    let pages = received[before..]
        .iter()
        .filter(|sent| sent.target.contains('?'))
        .count();
    (pages, received.len() - before - pages)
}

// ----------------------------------------------------------------------------------------------
// what is sent

#[tokio::test]
async fn power_calls_go_out_as_the_vendors_client_sends_them() {
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let clouddc = client(&cloud);
    for action in [PowerAction::Start, PowerAction::Stop, PowerAction::Reboot] {
        assert_eq!(
            clouddc.submit(action, &ids(&[SERVER])).await,
            Ok(Tracking::ServerState)
        );
    }
    let sent = cloud.received();
    assert_eq!(sent.len(), 3);
    for (sent, call) in
        sent.iter()
            .zip(["clouddc.power_on", "clouddc.power_off", "clouddc.rebooting"])
    {
        assert_as_captured(sent, call);
    }
}

#[tokio::test]
async fn servers_are_asked_for_as_the_vendors_client_does() {
    let cloud = Cloud::start(|request, before| {
        ok(match (before, request.target.contains('?')) {
            (0, _) => {
                include_str!("../fixtures/api-examples/clouddc-server-power-on-processing.json")
                    .to_owned()
            }
            (1, true) => {
                include_str!("../fixtures/api-examples/clouddc-server-list.json").to_owned()
            }
            (_, true) => {
                json!({ "servers": [running("a"), running("b"), running("c")] }).to_string()
            }
            (_, false) => unreachable!("nobody is left out"),
        })
    })
    .await;
    let clouddc = client(&cloud);
    let operation = Some(Operation {
        action: PowerAction::Start,
        status: JobStatus::Pending,
    });
    let starting = ServerView {
        operation,
        ..ServerView::of(Power::Off, Activity::PoweringOn)
    };
    assert_eq!(show_one(&clouddc).await, Ok(Sighting::Present(starting)));
    assert_eq!(
        clouddc
            .observe(&ids(&[SERVER, "a", "b", "c"]))
            .await
            .expect("seen")
            .sightings
            .len(),
        4
    );
    let sent = cloud.received();
    assert_as_captured(&sent[0], "clouddc.show_server");
    assert_as_captured_but_for_the_target(&sent[1], "clouddc.list_servers");
    assert_as_captured_but_for_the_target(&sent[2], "clouddc.list_servers");
    // The vendor's client was asked for one state; every state is wanted here.
    let captured = capture("clouddc.list_servers")["request_target"]
        .as_str()
        .expect("text")
        .to_owned();
    let captured = captured.replace("manage_state=in-use&", "");
    assert_eq!(
        sent[1].target,
        captured.split_once("&marker=").expect("a marker").0
    );
    assert_eq!(sent[2].target, captured);
    assert_eq!(sent.len(), 3);
}

#[tokio::test]
async fn a_batch_of_no_too_many_or_unreadable_servers_is_not_sent() {
    let cloud = Cloud::start(|_, _| ok(ACCEPTED)).await;
    let clouddc = client(&cloud);
    let many: Vec<_> = (0..51).map(|n| ServerId(format!("server-{n}"))).collect();
    for servers in [
        vec![],
        many.clone(),
        ids(&[SERVER, "status"]),
        ids(&["STATUS"]),
        ids(&["../x"]),
    ] {
        let refused = clouddc.submit(PowerAction::Stop, &servers).await;
        assert_eq!(
            fault(refused),
            Fault::Refused(CodeClass::BatchInvalid),
            "{servers:?}"
        );
    }
    assert!(cloud.received().is_empty());
    assert_eq!(
        clouddc.submit(PowerAction::Stop, &many[..50]).await,
        Ok(Tracking::ServerState)
    );
    let body: Value = serde_json::from_slice(&cloud.received()[0].body).expect("JSON");
    assert_eq!(body["server_id_set"].as_array().expect("a list").len(), 50);
}

#[tokio::test]
async fn the_call_that_counts_servers_is_never_made() {
    let cloud = Cloud::start(project(2, Markers::UntilTheEnd)).await;
    let clouddc = client(&cloud);
    for id in ["status", "Status", "../status"] {
        let seen = clouddc.observe(&ids(&[id])).await.expect("a look");
        assert_eq!(
            fault(shown(seen, &ServerId(id.to_owned()))),
            Fault::Refused(CodeClass::BatchInvalid),
            "{id}"
        );
    }
    assert!(cloud.received().is_empty());
    let asked = ids(&["server-0", "status", "server-1", "server-2"]);
    let seen = clouddc.observe(&asked).await.expect("seen");
    let expected = [
        Some(&RUNNING),
        None,
        Some(&RUNNING),
        Some(&Sighting::Missing),
    ];
    assert_eq!(
        asked
            .iter()
            .map(|server| seen.sightings.get(server))
            .collect::<Vec<_>>(),
        expected
    );
    assert_eq!(
        fault(shown(seen, &asked[1])),
        Fault::Refused(CodeClass::BatchInvalid)
    );
    assert_eq!(calls(&cloud, 0), (1, 1));
}

#[tokio::test]
async fn a_job_is_not_asked_for_because_there_are_none() {
    let cloud = Cloud::start(|_, _| ok("{}")).await;
    let error = client(&cloud)
        .job(&JobId("1".to_owned()))
        .await
        .expect_err("no jobs");
    assert_eq!(error.fault, Fault::Refused(CodeClass::JobUnknown));
    assert_eq!(
        error.to_string(),
        "CloudDC has no jobs, so there is no job '1'"
    );
    assert!(cloud.received().is_empty());
}

// ----------------------------------------------------------------------------------------------
// observing

#[tokio::test]
async fn every_form_of_marker_leads_on_and_missing_servers_are_confirmed() {
    for (markers, pages) in [
        (Markers::Always, 4),
        (Markers::UntilTheEnd, 3),
        (Markers::Addresses, 4),
        (Markers::EncodedAddresses, 4),
    ] {
        let cloud = Cloud::start(project(2500, markers)).await;
        let asked = ids(&["server-3", "SERVER-1004", "gone", "server-2499"]);
        let seen = client(&cloud)
            .observe(&asked)
            .await
            .expect("seen")
            .sightings;
        let expected = [&RUNNING, &RUNNING, &Sighting::Missing, &RUNNING];
        assert_eq!(
            asked.iter().map(|server| &seen[server]).collect::<Vec<_>>(),
            expected
        );
        assert_eq!((seen.len(), calls(&cloud, 0)), (4, (pages, 1)));
        let targets: Vec<_> = cloud
            .received()
            .into_iter()
            .map(|sent| sent.target)
            .collect();
        let list = format!("/v1/{PROJECT}/physicalservers?limit=1000");
        assert_eq!(
            targets[..2],
            [list.clone(), format!("{list}&marker=server-999")]
        );
    }
}

#[tokio::test]
async fn a_circular_list_is_left_and_servers_it_left_out_are_asked_for() {
    // (what each page names as the next one, pages that are read)
    for (next, pages) in [
        // Itself, from the second time on: a first page has no marker.
        (["a", "a", "a"], 2),
        (["a", "b", "a"], 3),
        (["https://h/p", "-", "-"], 1),
    ] {
        let cloud = Cloud::start(move |request, before| match request.target.contains('?') {
            true => {
                let page = before.min(2);
                // The first two pages are new, and then they come again.
                let servers: Vec<_> = (0..10)
                    .map(|n| running(&format!("server-{}", 10 * (before % 2) + n)))
                    .collect();
                ok(
                    json!({ "servers": servers, "page_info": { "next_marker": next[page] } })
                        .to_string(),
                )
            }
            false => ok(running(request.target.rsplit('/').next().expect("a segment")).to_string()),
        })
        .await;
        let seen = client(&cloud)
            .observe(&ids(&["server-1", "server-2", "server-3", "x"]))
            .await
            .expect("seen")
            .sightings;
        assert_eq!(seen[&ServerId("x".to_owned())], RUNNING);
        assert_eq!(calls(&cloud, 0), (pages, 1), "{next:?}");
    }
}

#[tokio::test]
async fn an_empty_page_ends_the_list_whatever_it_names() {
    let cloud = Cloud::start(|request, _| match request.target.contains('?') {
        true => ok(
            json!({ "servers": [], "page_info": { "next_marker": "a" }, "count": 5000 })
                .to_string(),
        ),
        false => no_such_server(),
    })
    .await;
    let seen = client(&cloud)
        .observe(&ids(&["a", "b", "c", "d"]))
        .await
        .expect("seen")
        .sightings;
    assert!(seen.values().all(|sighting| *sighting == Sighting::Missing));
    assert_eq!(calls(&cloud, 0), (1, 4));
}

#[tokio::test]
async fn a_404_that_is_not_the_services_shows_nobody_missing() {
    for (body, expected) in [
        (
            include_str!("../fixtures/api-examples/gateway-error-404-api.json"),
            Fault::Configuration,
        ),
        ("<html>404</html>", Fault::Configuration),
        ("", Fault::Configuration),
        (
            r#"{"status":404,"error":"Not Found","path":"/v1"}"#,
            Fault::Refused(CodeClass::Other),
        ),
    ] {
        let cloud = Cloud::start(move |_, _| Reply::Http(404, vec![], body.to_owned())).await;
        assert_eq!(fault(show_one(&client(&cloud)).await), expected, "{body}");
    }
    let cloud = Cloud::start(|_, _| no_such_server()).await;
    assert_eq!(show_one(&client(&cloud)).await, Ok(Sighting::Missing));
}

#[tokio::test]
async fn one_server_that_cannot_be_shown_does_not_hide_the_others() {
    let cloud = Cloud::start(|request, _| match request.target.ends_with("/odd") {
        true => Reply::Http(
            400,
            vec![],
            include_str!("../fixtures/api-examples/clouddc-error-400.json").to_owned(),
        ),
        false => ok(running("fine").to_string()),
    })
    .await;
    let clouddc = client(&cloud);
    let seen = clouddc.observe(&ids(&["odd", "fine"])).await.expect("seen");
    assert_eq!(seen.sightings[&ServerId("fine".to_owned())], RUNNING);
    assert_eq!(
        fault(shown(seen, &ServerId("odd".to_owned()))),
        Fault::Refused(CodeClass::Other)
    );
    let seen = clouddc
        .observe(&ids(&["odd"]))
        .await
        .expect("the cloud has answered");
    assert_eq!(
        fault(shown(seen, &ServerId("odd".to_owned()))),
        Fault::Refused(CodeClass::Other)
    );
}

/// Pages and shows of a look, in a project of 10,000 servers on ten pages.
#[tokio::test]
async fn looking_takes_as_many_calls_as_the_list_has_pages_and_no_more() {
    // (servers followed, spread over the project; the first look; later looks)
    for (followed, first, later) in [
        (1, (0, 1), (0, 1)),
        (10, (10, 0), (0, 10)),
        (50, (10, 0), (10, 0)),
        (500, (10, 0), (10, 0)),
        (5000, (10, 0), (10, 0)),
    ] {
        let cloud = Cloud::start(project(10_000, Markers::Always)).await;
        let clouddc = client(&cloud);
        let servers: Vec<_> = (1..=followed)
            .map(|n| ServerId(format!("server-{}", n * 10_000 / followed - 1)))
            .collect();
        let mut looks = Vec::new();
        for _ in 0..2 {
            let before = cloud.received().len();
            let seen = clouddc.observe(&servers).await.expect("seen").sightings;
            assert!(seen.len() == followed && seen.values().all(|sighting| *sighting == RUNNING));
            looks.push(calls(&cloud, before));
        }
        assert_eq!(looks, [first, later], "{followed}");
    }
}

#[tokio::test]
async fn the_list_is_left_as_soon_as_everyone_has_been_seen() {
    let cloud = Cloud::start(project(10_000, Markers::Always)).await;
    let servers: Vec<_> = (0..50).map(|n| ServerId(format!("server-{n}"))).collect();
    assert_eq!(
        client(&cloud)
            .observe(&servers)
            .await
            .expect("seen")
            .sightings
            .len(),
        50
    );
    assert_eq!(calls(&cloud, 0), (1, 0));
}

// ----------------------------------------------------------------------------------------------
// misbehaviour

#[tokio::test]
async fn a_foreign_200_is_lost_after_a_submit_and_shows_no_state() {
    let truncated = &ACCEPTED[..ACCEPTED.len() / 2];
    for body in ["", "<html>200</html>", "[]", "null", "accepted", truncated] {
        let cloud = Cloud::start(move |_, _| ok(body)).await;
        let clouddc = client(&cloud);
        assert_eq!(fault(stop_one(&clouddc).await), Fault::Lost, "{body:?}");
        assert_eq!(cloud.received().len(), 1, "never sent twice: {body:?}");
        assert_eq!(
            fault(show_one(&clouddc).await),
            Fault::Unavailable,
            "{body:?}"
        );
    }
}

#[tokio::test]
async fn the_status_of_a_power_call_counts_not_the_ids_in_its_answer() {
    let odd = include_str!(
        "../fixtures/api-examples/clouddc-power-response-documented-template-bug.json"
    );
    for body in [odd, r#"{"physical_servers":[]}"#, "{}"] {
        let cloud = Cloud::start(move |_, _| ok(body)).await;
        assert_eq!(
            stop_one(&client(&cloud)).await,
            Ok(Tracking::ServerState),
            "{body}"
        );
    }
}

#[tokio::test]
async fn refusals_of_a_power_call_get_their_faults() {
    let body = include_str!("../fixtures/api-examples/clouddc-error-400.json");
    let throttled = |limit| Fault::Throttled {
        retry_after: Some(Duration::from_secs(7)),
        limit,
    };
    for (status, body, expected) in [
        (400, body, Fault::Refused(CodeClass::Other)),
        (403, body, Fault::Permission),
        (500, body, Fault::Lost),
        (503, "", Fault::Lost),
        (429, body, throttled(None)),
        (429, "\"The request is overloaded.\"", throttled(None)),
        (
            429,
            "over ratelimit,limit:10,time:1 minute",
            throttled(Some((10, Duration::from_secs(60)))),
        ),
        (429, "", throttled(None)),
        (
            429,
            include_str!("../fixtures/api-examples/gateway-error-429-throttled.json"),
            throttled(Some((50, Duration::from_secs(60)))),
        ),
    ] {
        let cloud = Cloud::start(move |_, _| {
            Reply::Http(
                status,
                vec![("retry-after", "7".to_owned())],
                body.to_owned(),
            )
        })
        .await;
        assert_eq!(
            fault(stop_one(&client(&cloud)).await),
            expected,
            "{status} {body}"
        );
        assert_eq!(cloud.received().len(), 1, "{status} {body}");
    }
}

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
        let clouddc = client(&cloud);
        assert_eq!(fault(stop_one(&clouddc).await), Fault::Configuration);
        assert_eq!(fault(show_one(&clouddc).await), Fault::Configuration);
        assert_eq!(cloud.received().len(), 2);
    }
    assert!(other.received().is_empty());
}

#[tokio::test]
async fn a_marker_that_is_an_address_sends_nothing_there() {
    let other = Cloud::start(|_, _| ok(r#"{"servers":[]}"#)).await;
    let address = format!("http://127.0.0.1:{}/v1/x?marker=m", other.port);
    let cloud = Cloud::start(
        move |request, _| match request.target.contains("marker=m") {
            true => ok(json!({ "servers": [running("d")] }).to_string()),
            false => {
                let servers = ["a", "b", "c"].map(running);
                ok(
                    json!({ "servers": servers, "page_info": { "next_marker": address } })
                        .to_string(),
                )
            }
        },
    )
    .await;
    assert_eq!(
        client(&cloud)
            .observe(&ids(&["a", "b", "c", "d"]))
            .await
            .expect("seen")
            .sightings
            .len(),
        4
    );
    assert_eq!(calls(&cloud, 0), (2, 0));
    assert!(other.received().is_empty());
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    // A server that cannot be shown is looked for in the list, in ever smaller pages; each answer
    // is cut off.
    const FLOOD: usize = 500_000_000;
    for submit in [true, false] {
        let cloud = Cloud::start(|_, _| Reply::Flood(FLOOD)).await;
        let clouddc = client(&cloud);
        let error = match submit {
            true => stop_one(&clouddc).await.expect_err("too large"),
            false => show_one(&clouddc).await.expect_err("too large"),
        };
        assert_eq!(
            error.fault,
            if submit {
                Fault::Lost
            } else {
                Fault::Unavailable
            }
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
        "HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n{\"physical_servers\":[]}",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"phy",
        "HTTP/1.1 400 Bad\r\ncontent-length: 55\r\n\r\n{\"err",
        "garbage that is no HTTP\r\n\r\n",
    ] {
        let cloud = Cloud::start(move |_, _| Reply::Raw(answer.as_bytes().to_vec())).await;
        let clouddc = client(&cloud);
        assert_eq!(fault(stop_one(&clouddc).await), Fault::Lost, "{answer:?}");
        assert_eq!(cloud.received().len(), 1, "never sent twice: {answer:?}");
        assert_eq!(
            fault(show_one(&clouddc).await),
            Fault::Unavailable,
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let port = unused_port().await;
    let clouddc = connect(&target(port), None, keys("AK", None), clock()).expect("a client");
    let refused = clouddc.submit(PowerAction::Start, &ids(&[SERVER])).await;
    assert_eq!(fault(refused), Fault::Unreachable);
}

#[tokio::test]
async fn every_submit_opens_a_connection_of_its_own() {
    let cloud = Cloud::start(|request, _| match request.method.as_str() {
        "PUT" => ok(ACCEPTED),
        _ => ok(running(SERVER).to_string()),
    })
    .await;
    let clouddc = client(&cloud);
    for _ in 0..3 {
        show_one(&clouddc).await.expect("seen");
        stop_one(&clouddc).await.expect("accepted");
    }
    cloud.assert_three_submits_connected_anew("PUT");
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
    let cloud = Cloud::start(|_, _| refuse(REFUSED)).await;
    assert_eq!(fault(stop_one(&client(&cloud)).await), Fault::Credentials);
    assert_eq!(cloud.received().len(), 2);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let cloud = Cloud::start(move |request, _| match request.header("x-auth-token") {
        Some("token-2") => ok(ACCEPTED),
        _ => refuse(include_str!(
            "../fixtures/api-examples/gateway-error-401-token-update.json"
        )),
    })
    .await;
    let iam = iam().await;
    let settings = wire::with_token(target(cloud.port), iam.port);
    let clouddc = CloudDc::new(&settings, password(), clock()).expect("a client");
    stop_one(&clouddc)
        .await
        .expect("accepted with the second token");
    assert_eq!((cloud.received().len(), iam.received().len()), (2, 2));
    assert_eq!(cloud.received()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_code_of_another_service_never_makes_a_power_call_go_out_twice() {
    for status in [400, 500] {
        let body = r#"{"error_code":"Common.0013","error_msg":"Invalid token."}"#;
        let cloud = Cloud::start(move |_, _| Reply::Http(status, vec![], body.to_owned())).await;
        let expected = if status == 500 {
            Fault::Lost
        } else {
            Fault::Refused(CodeClass::Other)
        };
        assert_eq!(fault(stop_one(&client(&cloud)).await), expected);
        assert_eq!(cloud.received().len(), 1);
    }
}
