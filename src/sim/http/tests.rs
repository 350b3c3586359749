use std::net::Ipv4Addr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::signature;
use super::*;

async fn start(scenario: &str) -> SimCloud {
    let scenario = Scenario::from_toml(scenario).expect("a valid scenario");
    SimCloud::start((Ipv4Addr::LOCALHOST, 0).into(), scenario)
        .await
        .expect("a free port")
}

/// A signed request, written as a client would send it.
fn signed(cloud: &SimCloud, method: &str, path_and_query: &str, body: &str) -> String {
    let (path, query) = path_and_query
        .split_once('?')
        .unwrap_or((path_and_query, ""));
    let date: String = now().to_string()[..19]
        .chars()
        .filter(|c| !"-:".contains(*c))
        .collect();
    let headers = [
        ("host", cloud.address.to_string()),
        ("x-sdk-date", format!("{date}Z")),
    ];
    let request = Request {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()))
            .collect(),
        body: body.as_bytes().to_vec(),
    };
    let signature = signature::expected(&request, "host;x-sdk-date", "poweryard-sim-secret-key")
        .expect("signable");
    let authorization = format!(
        "SDK-HMAC-SHA256 Access=POWERYARDSIMAK, SignedHeaders=host;x-sdk-date, Signature={signature}"
    );
    let [host, date] = headers.map(|(_, value)| value);
    format!(
        "{method} {path_and_query} HTTP/1.1\r\nHost: {host}\r\nX-Sdk-Date: {date}\r\nAuthorization: {authorization}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request on a fresh connection and reads until the other side closes it.
async fn exchange(cloud: &SimCloud, request: &str) -> String {
    let mut stream = TcpStream::connect(cloud.address).await.expect("it listens");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = Vec::new();
    // A cut connection may end in a reset; what came before it is what counts.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

const PROJECT: &str = "/v1/bbf1946d374b44a0a2a95533562ba954";

async fn stop_first(cloud: &SimCloud) -> String {
    let id = &cloud.server_ids(Service::Bms)[0];
    let body = format!(r#"{{"os-stop":{{"servers":[{{"id":"{id}"}}]}}}}"#);
    exchange(
        cloud,
        &signed(
            cloud,
            "POST",
            &format!("{PROJECT}/baremetalservers/action"),
            &body,
        ),
    )
    .await
}

#[tokio::test]
async fn a_signed_stop_is_answered_with_a_job_over_http() {
    let cloud = start("[bms]\nservers = 4\n").await;
    let answer = stop_first(&cloud).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("x-request-id: ") && answer.contains(r#"{"job_id":""#),
        "{answer}"
    );
    assert_eq!(
        (
            cloud.ledger().len(),
            cloud.calls().len(),
            cloud.servers().len()
        ),
        (1, 1, 104)
    );
    let list = signed(
        &cloud,
        "GET",
        &format!("{PROJECT}/baremetalservers/detail?limit=2&offset=2"),
        "",
    );
    let listed = exchange(&cloud, &list).await;
    assert!(
        listed.contains("bms-0003") && !listed.contains("bms-0001"),
        "{listed}"
    );
}

const POWER_STATE: &str = "/v1/bbf1946d374b44a0a2a95533562ba954/physicalservers/power-state";

#[tokio::test]
async fn a_signed_power_off_is_carried_out_and_followed_over_http() {
    let cloud = start("[clouddc]\nservers = 12\noperation_ms = [60000, 60000]\n").await;
    let id = &cloud.server_ids(Service::CloudDc)[0];
    let body = format!(r#"{{"action":"power off","server_id_set":["{id}"]}}"#);
    let answer = exchange(&cloud, &signed(&cloud, "PUT", POWER_STATE, &body)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.ends_with(&format!(r#"{{"physical_servers":[{{"id":"{id}"}}]}}"#)),
        "{answer}"
    );
    assert!(
        answer.contains(&format!("x-request-id: {}", cloud.ledger()[0].batch)),
        "{answer}"
    );
    let shown = exchange(
        &cloud,
        &signed(
            &cloud,
            "GET",
            &format!("{PROJECT}/physicalservers/{id}"),
            "",
        ),
    )
    .await;
    assert!(
        shown.contains(r#""operation_state":"power-off-processing""#),
        "{shown}"
    );
    let query = format!("{PROJECT}/physicalservers?limit=10&marker={id}&manage_state=in-use");
    let listed = exchange(&cloud, &signed(&cloud, "GET", &query, "")).await;
    assert!(
        listed.contains("clouddc-0011") && !listed.contains("clouddc-0001"),
        "{listed}"
    );
    let counts = exchange(
        &cloud,
        &signed(
            &cloud,
            "GET",
            &format!("{PROJECT}/physicalservers/status"),
            "",
        ),
    )
    .await;
    assert!(
        counts.ends_with(r#"{"server_power_status":{"off":6,"on":6,"unknown":0}}"#),
        "{counts}"
    );
}

#[tokio::test]
async fn the_body_of_a_power_call_is_signed_too() {
    let cloud = start("").await;
    let [id, other] = [0, 2].map(|index| cloud.server_ids(Service::CloudDc)[index].to_string());
    let body = format!(r#"{{"action":"rebooting","server_id_set":["{id}"]}}"#);
    let changed = signed(&cloud, "PUT", POWER_STATE, &body).replace(&id, &other);
    let answer = exchange(&cloud, &changed).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains("signature mismatch"),
        "{answer}"
    );
    let unsigned = format!(
        "PUT {POWER_STATE} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(&cloud, &unsigned).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains("x-auth-token not found"),
        "{answer}"
    );
    assert!(cloud.ledger().is_empty());
    assert!(
        cloud
            .calls()
            .iter()
            .all(|call| call.service == Some(Service::CloudDc) && call.status == 401)
    );
}

#[tokio::test]
async fn an_unsigned_call_is_a_401() {
    let cloud = start("").await;
    let request = format!("GET {PROJECT}/jobs/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    let answer = exchange(&cloud, &request).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains("x-auth-token not found"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_dropped_answer_closes_the_connection_without_a_byte() {
    for (kind, carried_out) in [("drop_before", 0), ("drop_after", 1)] {
        let cloud = start(&format!("[[faults]]\nkind = \"{kind}\"\nchance = 1.0\n")).await;
        assert_eq!(stop_first(&cloud).await, "");
        assert_eq!(cloud.ledger().len(), carried_out, "{kind}");
    }
}

#[tokio::test]
async fn a_truncated_answer_promises_more_than_it_brings() {
    let cloud = start("[[faults]]\nkind = \"truncated_body\"\nchance = 1.0\n").await;
    let answer = stop_first(&cloud).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let promised = 45; // {"job_id":"…32 digits…"}
    assert!(
        head.contains(&format!("content-length: {promised}")),
        "{head}"
    );
    assert_eq!(body.len(), promised / 2);
}

#[tokio::test]
async fn an_oversized_answer_is_padded_with_blanks() {
    let cloud =
        start("[[faults]]\nkind = \"oversized_body\"\nbytes = 200000\nchance = 1.0\n").await;
    let answer = stop_first(&cloud).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("content-length: 200045"), "{head}");
    assert!(body.len() > 200_000 && body.trim_end().ends_with("\"}"));
}

#[tokio::test]
async fn a_slow_answer_takes_its_time() {
    let cloud = start("[[faults]]\nkind = \"slow\"\ndelay_ms = 60\nchance = 1.0\n").await;
    let begin = Instant::now();
    assert!(stop_first(&cloud).await.starts_with("HTTP/1.1 200 "));
    assert!(begin.elapsed().as_millis() >= 60);
}

#[tokio::test]
async fn stopping_cuts_open_connections_and_frees_the_port() {
    let cloud = start("").await;
    let address = cloud.address;
    let mut idle = TcpStream::connect(address).await.expect("it listens");
    idle.write_all(b"GET /_sim/ledger HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .expect("it reads");
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.expect("an answer");
    cloud.stop().await;
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    let again = SimCloud::start(address, Scenario::default()).await;
    assert!(again.is_ok(), "{:?}", again.err());
}
