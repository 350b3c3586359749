//! The server that people and programs on other machines reach: who is let in, what each role may
//! do, and what the API answers, by HTTP against the real daemon and the simulated cloud.

use std::fmt::Write as _;
use std::fs;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::common::process::{self, Daemon};
use crate::common::wire::unused_port;
use crate::common::{self, PATIENCE, Yard, secret, text, wait_for};
use futures_util::future::{Either, join_all, select};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, redirect};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const QUICK: &str = "[bms]\nservers = 100\nrunning = 1.0\noperation_ms = [10, 20]\n";
const READER: &str = "reader-token-0123456789";
const PRODUCER: &str = "producer-token-0123456789";
const OPERATOR: &str = "operator-token-0123456789";

/// A yard with a running daemon that serves, and a token of each role.
struct Server {
    yard: Yard,
    daemon: Daemon,
    base: String,
    client: Client,
}

impl Server {
    async fn start(more: &str) -> Self {
        Self::start_in(Yard::new(QUICK).await, more).await
    }

    /// `more`: lines of `[listen]`, then of `[[listen.tokens]]` beside the usual ones.
    async fn start_in(yard: Yard, more: &str) -> Self {
        let port = unused_port().await;
        let tokens = tokens(&yard);
        let lines = format!("[listen]\naddress = \"127.0.0.1:{port}\"\n{more}{tokens}");
        Self::with_lines(yard, port, &lines).await
    }

    async fn with_lines(yard: Yard, port: u16, lines: &str) -> Self {
        let config = yard.write_config();
        let text = fs::read_to_string(&config).expect("written");
        fs::write(&config, format!("{text}{lines}")).expect("written");
        let server = Self {
            daemon: Daemon::start(&config),
            yard,
            base: format!("http://127.0.0.1:{port}"),
            client: client(),
        };
        server.until_ready().await;
        server
    }

    async fn until_ready(&self) {
        let ends = Instant::now() + PATIENCE;
        loop {
            let asked = self.get("/readyz").send().await;
            if asked.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return;
            }
            assert!(Instant::now() < ends, "it is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base))
    }

    /// Signs in, and returns the cookie.
    async fn sign_in(&self, token: &str) -> String {
        let answer = self
            .post("/login")
            .body(format!("token={token}"))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let cookie = header(&answer, "set-cookie");
        for wanted in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
            assert!(cookie.contains(wanted), "{cookie}");
        }
        cookie.split(';').next().expect("a pair").to_owned()
    }
}

/// The usual tokens as config, with their files.
fn tokens(yard: &Yard) -> String {
    let mut lines = String::new();
    for (name, token) in [
        ("reader", READER),
        ("producer", PRODUCER),
        ("operator", OPERATOR),
    ] {
        let file = secret(yard.dir.path(), name, token).display().to_string();
        writeln!(
            lines,
            "[[listen.tokens]]\nname = \"{name}-1\"\nrole = \"{name}\"\ntoken_file = \"{file}\""
        )
        .expect("text");
    }
    lines
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .expect("a client")
}

fn header(answer: &Response, name: &str) -> String {
    let value = answer.headers().get(name);
    let value = value.and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.expect("an answer").status()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_only_health_and_the_way_in_are_open() {
    let server = Server::start("").await;
    for path in ["/healthz", "/readyz", "/login"] {
        assert_eq!(status(server.get(path)).await, StatusCode::OK, "{path}");
    }
    for path in [
        "/",
        "/metrics",
        "/api/v1/status",
        "/api/v1/none",
        "/none",
        "/label/x",
        "/%2e%2e/etc/passwd",
    ] {
        let answer = server.get(path).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert!(header(&answer, "www-authenticate").starts_with("Bearer"));
    }
    for path in ["/", "/metrics"] {
        let request = server.get(path).bearer_auth(READER);
        assert_eq!(status(request).await, StatusCode::OK, "{path}");
    }
    let person = server.get("/").header("accept", "text/html");
    let answer = person.send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(header(&answer, "location"), "/login");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_tells_browsers_to_be_careful() {
    let server = Server::start("").await;
    for path in ["/", "/login", "/none", "/api/v1/none"] {
        let answer = server.get(path).bearer_auth(READER).send().await;
        let answer = answer.expect("an answer");
        let policy = header(&answer, "content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'")
                && policy.contains("frame-ancestors 'none'")
                && !policy.contains("unsafe-inline"),
            "{policy}"
        );
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        assert_eq!(header(&answer, "referrer-policy"), "same-origin");
        assert_eq!(header(&answer, "cache-control"), "no-store");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_name_or_a_foreign_page_gets_nothing() {
    let server = Server::start("hosts = [\"power.example.com\"]\n").await;
    for (host, wanted) in [
        ("evil.example", StatusCode::MISDIRECTED_REQUEST),
        ("127.0.0.1.evil.example", StatusCode::MISDIRECTED_REQUEST),
        ("Power.example.com:8443", StatusCode::OK),
        ("localhost", StatusCode::OK),
    ] {
        let request = server.get("/metrics").bearer_auth(READER);
        assert_eq!(status(request.header("host", host)).await, wanted, "{host}");
    }
    for origin in ["null", "http://evil.example", "http://127.0.0.1:1"] {
        let request = server.get("/metrics").bearer_auth(READER);
        let request = request.header("origin", origin);
        assert_eq!(status(request).await, StatusCode::FORBIDDEN, "{origin}");
    }
    let own = server.base.clone();
    let request = server.get("/metrics").bearer_auth(READER);
    assert_eq!(status(request.header("origin", own)).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_with_a_token_and_ends_by_signing_out() {
    let server = Server::start("").await;
    let cookie = server.sign_in(READER).await;
    let page = || server.get("/").header("cookie", &cookie);
    assert_eq!(status(page()).await, StatusCode::OK);
    // Without the session's own form, another page could sign a person out.
    let forged = server
        .post("/logout")
        .header("cookie", &cookie)
        .header("origin", &server.base)
        .body("form_token=0000");
    assert_eq!(status(forged).await, StatusCode::FORBIDDEN);
    let silent = server.post("/logout").header("cookie", &cookie);
    assert_eq!(status(silent).await, StatusCode::FORBIDDEN);
    assert_eq!(status(page()).await, StatusCode::OK);
    let other = server.get("/").header("cookie", "poweryard_session=0123");
    assert_eq!(status(other).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_are_answered_ever_later_and_right_ones_at_once() {
    let server = Server::start("").await;
    let begun = Instant::now();
    for _ in 0..3 {
        let wrong = server.get("/metrics").bearer_auth("wrong-token-0123456789");
        assert_eq!(status(wrong).await, StatusCode::UNAUTHORIZED);
    }
    // 250, 500 and 1000 ms.
    assert!(begun.elapsed() >= Duration::from_millis(1750));
    // The next wrong one is answered after 2 s; a right one that is sent with it overtakes it.
    let wrong = pin!(status(
        server.get("/metrics").bearer_auth("wrong-token-0123456789")
    ));
    let right = pin!(status(server.get("/metrics").bearer_auth(READER)));
    match select(wrong, right).await {
        Either::Left(_) => panic!("the wrong token was answered first"),
        Either::Right((answer, wrong)) => {
            assert_eq!(answer, StatusCode::OK);
            assert_eq!(wrong.await, StatusCode::UNAUTHORIZED);
        }
    }
    // The next one is delayed by 4 s, those after it by 8 s. Four are at a time, and one more for
    // each core that looked before another had noted its own: so however slowly they come, no more
    // are answered than fit into the time that it took.
    let at_once = 4 + std::thread::available_parallelism().map_or(1, usize::from);
    let begun = Instant::now();
    let guesses = (0..12).map(|number| {
        let guess = format!("wrong-token-{number}-0123456789");
        status(server.get("/metrics").bearer_auth(guess))
    });
    let answers = join_all(guesses).await;
    let answered = |wanted| answers.iter().filter(|answer| **answer == wanted).count();
    let (wrong, refused) = (
        answered(StatusCode::UNAUTHORIZED),
        answered(StatusCode::TOO_MANY_REQUESTS),
    );
    assert!(refused > 0, "{answers:?}");
    assert_eq!(wrong + refused, answers.len(), "{answers:?}");
    let delayed = Duration::from_secs(8 * wrong as u64).saturating_sub(Duration::from_secs(4));
    let took = begun.elapsed();
    assert!(
        delayed <= took * at_once as u32,
        "{answers:?} within {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_everybody_may_read_and_nobody_may_do_anything() {
    let yard = Yard::new(QUICK).await;
    let port = unused_port().await;
    let lines = format!("[listen]\naddress = \"127.0.0.1:{port}\"\n");
    let server = Server::with_lines(yard, port, &lines).await;
    for path in ["/", "/metrics"] {
        assert_eq!(status(server.get(path)).await, StatusCode::OK, "{path}");
    }
    let answer = server.get("/login").send().await.expect("an answer");
    assert_eq!(header(&answer, "location"), "/");
    let forms = server
        .client
        .request(Method::POST, format!("{}/login", server.base));
    assert_eq!(status(forms.body("token=x")).await, StatusCode::SEE_OTHER);
}

/// A token that may stop servers of target `other` alone.
const NARROW: &str = "narrow-token-0123456789";

fn narrow_token(yard: &Yard) -> String {
    let file = secret(yard.dir.path(), "narrow", NARROW)
        .display()
        .to_string();
    format!(
        "[[listen.tokens]]\nname = \"narrow-1\"\nrole = \"operator\"\ntargets = [\"other\"]\nactions = [\"stop\"]\ntoken_file = \"{file}\"\n"
    )
}

impl Server {
    /// With a second target, `other`, and the narrow token.
    async fn with_two_targets() -> Self {
        let yard = Yard::new(QUICK).await;
        let port = unused_port().await;
        let config = fs::read_to_string(yard.write_config()).expect("written");
        let (_, target) = config.split_once("[targets.default]").expect("a target");
        let other = format!("[targets.other]{target}")
            .replace("[targets.default.auth]", "[targets.other.auth]")
            .replace(common::PROJECT, "0123456789abcdef0123456789abcdef");
        let (tokens, narrow) = (tokens(&yard), narrow_token(&yard));
        let lines = format!("{other}[listen]\naddress = \"127.0.0.1:{port}\"\n{tokens}{narrow}");
        Self::with_lines(yard, port, &lines).await
    }

    async fn call(&self, path: &str, token: &str, body: &Value) -> (StatusCode, Value) {
        let text = serde_json::to_vec(body).expect("text");
        let request = self.post(path).bearer_auth(token).body(text);
        read(request.header("content-type", "application/json")).await
    }

    async fn read(&self, path: &str, token: &str) -> (StatusCode, Value) {
        read(self.get(path).bearer_auth(token)).await
    }
}

/// An answer as JSON. Every error is a problem with its own status and a sentence.
async fn read(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    let kind = header(&answer, "content-type");
    let value: Value =
        serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    if status.is_success() {
        assert_eq!(kind, "application/json");
    } else {
        assert_eq!(kind, "application/problem+json", "{value}");
        assert_eq!(value["status"], status.as_u16());
        assert!(
            value["detail"].as_str().is_some_and(|said| said.len() > 10),
            "{value}"
        );
    }
    (status, value)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_inserted_together_and_their_ids_come_in_their_order() {
    let server = Server::start("").await;
    let mut producer = server.yard.producer().await;
    let rows = json!([
        {"server_id": server.yard.server(3), "action": "reboot", "label": "x", "priority": 5},
        {"server": server.yard.server(1), "action": "stop", "request_key": "k-1"},
        {"server": server.yard.server(2), "action": "stop", "request_key": "k-2", "not_before": "2036-01-01"},
    ]);
    let (status, value) = server.call("/api/v1/requests", PRODUCER, &rows).await;
    assert_eq!(
        (status, &value["ids"]),
        (StatusCode::CREATED, &json!([1, 2, 3]))
    );
    let who = "SELECT group_concat(DISTINCT requested_by) FROM power_requests";
    assert_eq!(text(&mut producer, who).await, "producer-1");
    // Again: only what has no key is new.
    let (status, value) = server.call("/api/v1/requests", PRODUCER, &rows).await;
    assert_eq!(
        (status, &value["ids"]),
        (StatusCode::CREATED, &json!([4, 2, 3]))
    );
    let (status, value) = server
        .call("/api/v1/requests", PRODUCER, &json!([rows[1], rows[2]]))
        .await;
    assert_eq!((status, &value["ids"]), (StatusCode::OK, &json!([2, 3])));
    let other =
        json!([rows[1], {"server": server.yard.server(9), "action": "stop", "request_key": "k-2"}]);
    let (status, value) = server.call("/api/v1/requests", PRODUCER, &other).await;
    assert_eq!(
        (status, &value["errors"][0]["index"]),
        (StatusCode::CONFLICT, &json!(1))
    );
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE state = 'succeeded'",
        "3",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_row_is_named_and_none_is_inserted() {
    let server = Server::start("").await;
    let mut producer = server.yard.producer().await;
    let rows = json!([
        {"server_id": "a", "action": "stop"},
        {"server_id": "no server", "action": "stop"},
        {"server_id": "b", "action": "start", "priority": 1000},
        {"server_id": "c", "action": "start", "not_before": "22:00"},
        {"server_id": "d", "action": "start", "after_id": 4711},
        {"server_id": "e", "action": "off"},
    ]);
    let (status, value) = server.call("/api/v1/requests", PRODUCER, &rows).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let errors = value["errors"].as_array().expect("errors");
    let rows: Vec<_> = errors.iter().map(|error| error["index"].clone()).collect();
    assert_eq!(rows, [1, 2, 3, 4, 5].map(Value::from), "{value}");
    assert!(
        errors[1]["message"]
            .as_str()
            .is_some_and(|said| said.contains("priority")),
        "the schema's sentence: {value}"
    );
    for (body, wanted) in [
        (json!({}), StatusCode::BAD_REQUEST),
        (json!([{"server": "a"}]), StatusCode::UNPROCESSABLE_ENTITY),
        (
            json!([{"server": "a", "action": "stop", "state": "queued"}]),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            json!([{"server": "a", "action": "stop", "approved_by": "me"}]),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            json!([{"server": "a", "action": "stop", "requested_by": "me"}]),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            json!([{"server": "a", "action": "stop", "override_reason": "now"}]),
            StatusCode::FORBIDDEN,
        ),
    ] {
        assert_eq!(
            server.call("/api/v1/requests", PRODUCER, &body).await.0,
            wanted,
            "{body}"
        );
    }
    let many = vec![json!({"server_id": "a", "action": "stop"}); 10_001];
    let (status, _) = server
        .call("/api/v1/requests", PRODUCER, &many.into())
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let broken = server
        .post("/api/v1/requests")
        .bearer_auth(PRODUCER)
        .body("[{");
    let (status, _) = read(broken.header("content-type", "application/json")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let form = server
        .post("/api/v1/requests")
        .bearer_auth(PRODUCER)
        .body("[]");
    assert_eq!(read(form).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM power_requests").await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_with_an_answer() {
    let server = Server::start("").await;
    for length in [8 * 1024 * 1024 + 1, 20 * 1024 * 1024] {
        let request = server.post("/api/v1/requests").bearer_auth(PRODUCER);
        let request = request.header("content-type", "application/json");
        let (status, _) = read(request.body(vec![b' '; length])).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_stand_for_servers_as_they_do_in_commands() {
    let mut yard = Yard::new(QUICK).await;
    yard.set("inventory_interval = \"10m\"");
    let server = Server::start_in(yard, "").await;
    let mut producer = server.yard.producer().await;
    wait_for(&mut producer, "SELECT count(*) FROM servers", "100").await;
    let name = text(&mut producer, "SELECT min(name) FROM servers").await;
    let unlisted = "00000000-0000-4000-8000-000000000000";
    let rows = json!([
        {"server": name, "action": "stop", "not_before": "2036-01-01"},
        {"server": unlisted, "action": "stop", "not_before": "2036-01-01"},
        {"server": format!("{}?", &name[..name.len() - 1]), "action": "start", "not_before": "2036-01-01"},
    ]);
    let (status, value) = server.call("/api/v1/requests", PRODUCER, &rows).await;
    assert_eq!(status, StatusCode::CREATED, "{value}");
    assert_eq!(value["warnings"][0]["index"], 1, "{value}");
    assert!(
        value["ids"].as_array().is_some_and(|ids| ids.len() > 5),
        "the glob: {value}"
    );
    let rows = json!([{"server": name, "action": "stop"}, {"server": "nobody", "action": "stop"}]);
    let (status, value) = server.call("/api/v1/requests", PRODUCER, &rows).await;
    assert_eq!(
        (status, &value["errors"][0]["index"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!(1))
    );
    let (_, page) = server
        .read(
            &format!("/api/v1/requests?server={name}&state=queued&action=stop"),
            READER,
        )
        .await;
    assert_eq!(page["requests"].as_array().map(Vec::len), Some(1), "{page}");
    let (_, page) = server.read("/api/v1/servers?limit=60", READER).await;
    assert_eq!(page["servers"].as_array().map(Vec::len), Some(60));
    let next = page["next"].as_str().expect("a cursor");
    let (_, page) = server
        .read(&format!("/api/v1/servers?limit=60&cursor={next}"), READER)
        .await;
    assert_eq!(
        (page["servers"].as_array().map(Vec::len), &page["next"]),
        (Some(40), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_requests_are_complete_and_tagged() {
    let server = Server::start("").await;
    let rows: Vec<Value> = (1..=25)
        .map(|number| json!({"server_id": format!("s-{number}"), "action": "stop", "label": "x", "not_before": "2036-01-01"}))
        .collect();
    server
        .call("/api/v1/requests", PRODUCER, &rows.into())
        .await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let (status, page) = server
            .read(
                &format!("/api/v1/requests?label=x&limit=10{cursor}"),
                READER,
            )
            .await;
        assert_eq!(status, StatusCode::OK);
        seen.extend(
            page["requests"]
                .as_array()
                .expect("rows")
                .iter()
                .map(|row| row["id"].clone()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (1..=25).rev().map(Value::from).collect::<Vec<_>>());
    let ask = |tag: &str| {
        let request = server
            .get("/api/v1/requests?label=x&limit=1")
            .bearer_auth(READER);
        request.header("if-none-match", tag).send()
    };
    let first = ask("\"none\"").await.expect("an answer");
    let tag = header(&first, "etag");
    assert_eq!(
        ask(&tag).await.expect("an answer").status(),
        StatusCode::NOT_MODIFIED
    );
    server
        .call(
            "/api/v1/requests",
            PRODUCER,
            &json!([{"server_id": "z", "action": "stop", "label": "x"}]),
        )
        .await;
    assert_eq!(ask(&tag).await.expect("an answer").status(), StatusCode::OK);
    for wrong in [
        "limit=0",
        "limit=x",
        "cursor=x",
        "state=gone",
        "since=22:00",
        "colour=red",
        "label=x&label=y",
    ] {
        let (status, _) = server
            .read(&format!("/api/v1/requests?{wrong}"), READER)
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    let (status, detail) = server.read("/api/v1/requests/1", READER).await;
    assert_eq!(
        (status, &detail["request"]["server_id"]),
        (StatusCode::OK, &json!("s-1"))
    );
    assert!(
        detail["waiting"]
            .as_str()
            .is_some_and(|why| why.starts_with("not due until")),
        "{detail}"
    );
    assert_eq!(
        server.read("/api/v1/requests/4711", READER).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        server.read("/api/v1/requests/x", READER).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        server.read("/api/v1/nothing", READER).await.0,
        StatusCode::NOT_FOUND
    );
    let wrong = server
        .client
        .delete(format!("{}/api/v1/requests", server.base))
        .bearer_auth(READER);
    let wrong = wrong.send().await.expect("an answer");
    assert_eq!(wrong.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(header(&wrong, "allow").contains("POST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_it_is_for_and_is_named_where_it_may_not() {
    let server = Server::start("").await;
    let queued =
        json!([{"server_id": "a", "action": "stop", "label": "x", "not_before": "2036-01-01"}]);
    server.call("/api/v1/requests", OPERATOR, &queued).await;
    server.call("/api/v1/requests", PRODUCER, &queued).await;
    let label = json!({"label": "x"});
    for (path, body, least) in [
        ("/api/v1/requests", &queued, "producer"),
        ("/api/v1/cancel", &label, "producer"),
        ("/api/v1/retry", &label, "operator"),
        (
            "/api/v1/approve",
            &json!({"label": "x", "requests": 1}),
            "operator",
        ),
        ("/api/v1/pause", &label, "operator"),
        ("/api/v1/resume", &label, "operator"),
    ] {
        let (status, value) = server.call(path, READER, body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        let said = value["detail"].as_str().unwrap_or_default();
        assert!(said.contains(least) && said.contains("reader"), "{said}");
        if least == "operator" {
            assert_eq!(
                server.call(path, PRODUCER, body).await.0,
                StatusCode::FORBIDDEN,
                "{path}"
            );
        }
    }
    // A producer cancels what it asked for itself, and nothing else.
    let (status, done) = server
        .call("/api/v1/cancel", PRODUCER, &json!({"ids": [1, 2]}))
        .await;
    assert_eq!(
        (status, &done["done"]),
        (StatusCode::OK, &json!(1)),
        "{done}"
    );
    assert_eq!(done["results"][0]["ok"], false, "{done}");
    let (_, done) = server
        .call(
            "/api/v1/cancel",
            OPERATOR,
            &json!({"ids": [1], "reason": "wrong rack"}),
        )
        .await;
    assert_eq!(done["done"], 1, "{done}");
    let mut producer = server.yard.producer().await;
    let who = "SELECT group_concat(who || ' ' || action || ' ' || requests || ' ' || ifnull(reason, '-'), '; ') FROM operator_actions WHERE action = 'cancel'";
    assert_eq!(
        text(&mut producer, who).await,
        "producer-1 cancel 1 -; operator-1 cancel 1 wrong rack"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_from_elsewhere_is_done_as_by_the_commands() {
    let server = Server::start("").await;
    let mut producer = server.yard.producer().await;
    let pause = json!({"target": "default", "action": "stop", "reason": "rack 7"});
    let (status, _) = server.call("/api/v1/pause", OPERATOR, &pause).await;
    assert_eq!(status, StatusCode::OK);
    let hold = "SELECT reason FROM holds WHERE kind = 'operator'";
    assert_eq!(
        text(&mut producer, hold).await,
        "stop on target default paused by operator-1: rack 7"
    );
    let rows = json!([{"server_id": "a", "action": "stop", "label": "x"}, {"server_id": "b", "action": "stop", "label": "x"}]);
    server.call("/api/v1/requests", OPERATOR, &rows).await;
    let (status, value) = server
        .call(
            "/api/v1/approve",
            OPERATOR,
            &json!({"label": "x", "requests": 3}),
        )
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{value}");
    let (_, done) = server
        .call(
            "/api/v1/approve",
            OPERATOR,
            &json!({"label": "x", "requests": 2}),
        )
        .await;
    assert_eq!(
        (&done["done"], done["results"].as_array().map(Vec::len)),
        (&json!(2), Some(2))
    );
    let by = "SELECT group_concat(DISTINCT approved_by) FROM power_requests";
    assert_eq!(text(&mut producer, by).await, "operator-1");
    assert_eq!(
        server
            .call("/api/v1/resume", OPERATOR, &json!({"target": "default"}))
            .await
            .0,
        StatusCode::CONFLICT
    );
    let (status, _) = server
        .call(
            "/api/v1/resume",
            OPERATOR,
            &json!({"target": "default", "action": "stop"}),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    // Servers that the cloud does not know.
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE state = 'failed'",
        "2",
    )
    .await;
    let (_, done) = server
        .call("/api/v1/retry", OPERATOR, &json!({"label": "x"}))
        .await;
    assert_eq!(
        (&done["done"], &done["results"][0]["new_id"]),
        (&json!(2), &json!(3)),
        "{done}"
    );
    for (path, body, wanted) in [
        (
            "/api/v1/cancel",
            json!({}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "/api/v1/cancel",
            json!({"ids": [4711]}),
            StatusCode::NOT_FOUND,
        ),
        ("/api/v1/pause", json!({}), StatusCode::UNPROCESSABLE_ENTITY),
        (
            "/api/v1/pause",
            json!({"everything": true, "label": "x"}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "/api/v1/cancel",
            json!({"label": "x".repeat(257)}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "/api/v1/retry",
            json!({"label": "x", "colour": "red"}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "/api/v1/approve",
            json!({"label": "x"}),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
    ] {
        assert_eq!(
            server.call(path, OPERATOR, &body).await.0,
            wanted,
            "{path} {body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_sees_and_touches_its_own_targets_and_actions_alone() {
    let server = Server::with_two_targets().await;
    let of = |target: &str, action: &str| json!([{"server_id": "a", "target": target, "action": action, "label": "x", "not_before": "2036-01-01"}]);
    server
        .call("/api/v1/requests", OPERATOR, &of("default", "stop"))
        .await;
    let (status, _) = server
        .call("/api/v1/requests", NARROW, &of("other", "stop"))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    server
        .call("/api/v1/requests", OPERATOR, &of("other", "start"))
        .await;
    for (target, action) in [("default", "stop"), ("other", "start"), ("other", "reboot")] {
        let (status, _) = server
            .call("/api/v1/requests", NARROW, &of(target, action))
            .await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{target} {action}");
    }
    let (_, page) = server.read("/api/v1/requests", NARROW).await;
    let ids: Vec<_> = page["requests"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["id"].clone())
        .collect();
    assert_eq!(ids, [json!(3), json!(2)]);
    assert_eq!(
        server.read("/api/v1/requests/1", NARROW).await.0,
        StatusCode::NOT_FOUND
    );
    let (_, status) = server.read("/api/v1/status", NARROW).await;
    assert!(!status.to_string().contains("\"default\""), "{status}");
    assert_eq!(
        status["targets"].as_array().map(Vec::len),
        Some(1),
        "{status}"
    );
    let (_, page) = server.read("/api/v1/servers", NARROW).await;
    assert_eq!(page["servers"], json!([]));
    // What waits for another target's request, or shares a label with one.
    let after = json!([{"server_id": "b", "target": "other", "action": "stop", "after_id": 1}]);
    assert_eq!(
        server.call("/api/v1/requests", NARROW, &after).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(
        server
            .call("/api/v1/cancel", NARROW, &json!({"ids": [1]}))
            .await
            .0,
        StatusCode::NOT_FOUND
    );
    let (_, done) = server
        .call("/api/v1/cancel", NARROW, &json!({"label": "x"}))
        .await;
    assert_eq!(done["done"], 1, "{done}");
    for scope in [
        json!({"everything": true}),
        json!({"target": "default", "action": "stop"}),
        json!({"target": "other"}),
        json!({"label": "x"}),
    ] {
        assert_eq!(
            server.call("/api/v1/pause", NARROW, &scope).await.0,
            StatusCode::FORBIDDEN,
            "{scope}"
        );
    }
    let own = json!({"target": "other", "action": "stop"});
    assert_eq!(
        server.call("/api/v1/pause", NARROW, &own).await.0,
        StatusCode::OK
    );
}

/// The next event that follows.
async fn next_event(answer: &mut Response, rest: &mut String) -> Option<(String, Value)> {
    let next = async {
        loop {
            if let Some((event, more)) = rest.split_once("\n\n") {
                let event = event.to_owned();
                *rest = more.to_owned();
                let name = event.lines().find_map(|line| line.strip_prefix("event: "));
                let data = event.lines().find_map(|line| line.strip_prefix("data: "));
                if let Some((name, data)) = name.zip(data) {
                    let data = serde_json::from_str(data).expect("JSON");
                    return Some((name.to_owned(), data));
                }
                continue;
            }
            let chunk = answer.chunk().await.ok()??;
            rest.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    tokio::time::timeout(PATIENCE, next)
        .await
        .expect("an event")
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_what_changed_to_those_who_may_see_it() {
    let server = Server::with_two_targets().await;
    let follow = |token: &'static str| server.get("/api/v1/events").bearer_auth(token).send();
    let mut all = follow(READER).await.expect("an answer");
    assert_eq!(header(&all, "content-type"), "text/event-stream");
    let mut narrow = follow(NARROW).await.expect("an answer");
    let (mut of_all, mut of_narrow) = (String::new(), String::new());
    let (name, snapshot) = next_event(&mut all, &mut of_all).await.expect("one");
    assert_eq!(
        (name.as_str(), snapshot["targets"].as_array().map(Vec::len)),
        ("snapshot", Some(2))
    );
    let (_, snapshot) = next_event(&mut narrow, &mut of_narrow).await.expect("one");
    assert_eq!(snapshot["targets"].as_array().map(Vec::len), Some(1));
    for target in ["default", "other"] {
        let rows = json!([{"server_id": "a", "target": target, "action": "stop", "not_before": "2036-01-01"}]);
        server.call("/api/v1/requests", OPERATOR, &rows).await;
    }
    loop {
        let (name, change) = next_event(&mut all, &mut of_all).await.expect("one");
        assert_eq!(name, "change");
        if change["queue"]
            .as_array()
            .is_some_and(|lanes| lanes.len() == 2)
        {
            break;
        }
    }
    loop {
        let (_, change) = next_event(&mut narrow, &mut of_narrow).await.expect("one");
        assert!(!change.to_string().contains("\"default\""), "{change}");
        if change["queue"][0]["target"] == "other" {
            break;
        }
    }
    // Whoever is let in by other settings than those in force has to come again.
    server.daemon.signal("-HUP");
    let mut ends = async || loop {
        if next_event(&mut all, &mut of_all).await.is_none() {
            return;
        }
        let rows = json!([{"server_id": "b", "action": "stop", "not_before": "2036-01-01"}]);
        server.call("/api/v1/requests", OPERATOR, &rows).await;
    };
    ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_taken_away_ends_its_sessions_too() {
    let server = Server::start("").await;
    let cookie = server.sign_in(READER).await;
    let by_cookie = || status(server.get("/metrics").header("cookie", &cookie));
    assert_eq!(by_cookie().await, StatusCode::OK);
    secret(server.yard.dir.path(), "reader", "another-token-0123456789");
    server.daemon.signal("-HUP");
    let ends = Instant::now() + PATIENCE;
    while by_cookie().await == StatusCode::OK {
        assert!(Instant::now() < ends, "the session stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let right = server
        .get("/metrics")
        .bearer_auth("another-token-0123456789");
    assert_eq!(status(right).await, StatusCode::OK);
    let old = server.get("/metrics").bearer_auth(READER);
    assert_eq!(status(old).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_queue_is_said_to_be_locked() {
    let server = Server::start("").await;
    let mut producer = server.yard.producer().await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut producer)
        .await
        .expect("the lock");
    let request = server.post("/api/v1/requests").bearer_auth(PRODUCER);
    let request = request.header("content-type", "application/json");
    let answer = request
        .body(r#"[{"server_id": "a", "action": "stop"}]"#)
        .send()
        .await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!header(&answer, "retry-after").is_empty());
    assert_eq!(
        server.read("/api/v1/requests", READER).await.0,
        StatusCode::OK
    );
    sqlx::query("ROLLBACK")
        .execute(&mut producer)
        .await
        .expect("the lock is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_do_not_keep_anybody_away() {
    let server = Server::start("").await;
    let address = server.base.trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for number in 0..600 {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        if number % 2 == 0 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: 127")
                .await
                .expect("sent");
        }
        idle.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(status(server.get("/healthz")).await, StatusCode::OK);
    // They would leave by themselves after 5 s.
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_is_dropped() {
    let server = Server::start("").await;
    let rows: Vec<Value> = (1..=2000)
        .map(|number| json!({"server_id": format!("s-{number}"), "action": "stop", "not_before": "2036-01-01"}))
        .collect();
    server
        .call("/api/v1/requests", PRODUCER, &rows.into())
        .await;
    let address = server.base.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.expect("connected");
    let ask = format!(
        "GET /api/v1/requests?limit=1000 HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {READER}\r\n\r\n"
    );
    stream
        .write_all(ask.repeat(60).as_bytes())
        .await
        .expect("sent");
    // The server notices nothing but that its bytes are not taken.
    tokio::time::sleep(Duration::from_secs(22)).await;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "the connection is still open");
    let answers = String::from_utf8_lossy(&bytes)
        .matches("HTTP/1.1 200")
        .count();
    assert!(answers < 60, "all {answers} were sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_does_not_become_a_header() {
    let server = Server::start("").await;
    for path in [
        "/%0d%0ax-evil:%201",
        "/api/v1/requests?label=%0d%0ax-evil:%201",
        "/api/v1/requests?%0d%0ax-evil:1=2",
        "/login?next=%0d%0ax-evil:%201",
    ] {
        let answer = server
            .get(path)
            .bearer_auth(READER)
            .send()
            .await
            .expect("an answer");
        assert!(answer.headers().get("x-evil").is_none(), "{path}");
    }
    let cookie = server
        .get("/")
        .header("cookie", "poweryard_session=a; poweryard_session=b; =; ;;");
    assert_eq!(status(cookie).await, StatusCode::UNAUTHORIZED);
}

/// A certificate for this machine that ends after so many days, with its key, beside the config.
fn write_certificate(yard: &Yard, days: i64) -> String {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    let now = jiff::Timestamp::now();
    let date = (now + jiff::SignedDuration::from_hours(24 * days))
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
    params.not_after = rcgen::date_time_ymd(date.year().into(), month, day);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("signed").pem();
    secret(yard.dir.path(), "key.pem", &key.serialize_pem());
    secret(yard.dir.path(), "cert.pem", &certificate);
    certificate
}

fn tls_lines(yard: &Yard) -> String {
    let dir = yard.dir.path().display();
    format!("tls_cert_file = \"{dir}/cert.pem\"\ntls_key_file = \"{dir}/key.pem\"\n")
}

fn trusting(certificate: &str) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificate = reqwest::Certificate::from_pem(certificate.as_bytes()).expect("PEM");
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(PATIENCE)
        .pool_max_idle_per_host(0)
        .tls_certs_only([certificate])
        .build()
        .expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_served_and_a_new_certificate_is_taken_up_by_a_reload() {
    let yard = Yard::new(QUICK).await;
    let port = unused_port().await;
    let first = write_certificate(&yard, 100);
    let (lines, tokens) = (tls_lines(&yard), tokens(&yard));
    let config = yard.write_config();
    let text = fs::read_to_string(&config).expect("written");
    let listen = format!("[listen]\naddress = \"127.0.0.1:{port}\"\n{lines}{tokens}");
    fs::write(&config, format!("{text}{listen}")).expect("written");
    let server = Server {
        daemon: Daemon::start(&config),
        yard,
        base: format!("https://127.0.0.1:{port}"),
        client: trusting(&first),
    };
    server.until_ready().await;
    assert_eq!(
        status(server.get("/metrics").bearer_auth(READER)).await,
        StatusCode::OK
    );
    let signed_in = server.post("/login").body(format!("token={READER}"));
    let signed_in = signed_in.send().await.expect("an answer");
    assert!(header(&signed_in, "set-cookie").ends_with("; Secure"));
    let plain = client()
        .get(format!("http://127.0.0.1:{port}/healthz"))
        .send()
        .await;
    assert!(plain.is_err());
    let metrics = server
        .get("/metrics")
        .bearer_auth(READER)
        .send()
        .await
        .expect("an answer");
    let metrics = metrics.text().await.expect("text");
    let left = metrics
        .lines()
        .find_map(|line| line.strip_prefix("poweryard_certificate_remaining_seconds{} "));
    let left: f64 = left.and_then(|left| left.parse().ok()).expect("the metric");
    assert!((98.0..100.0).contains(&(left / 86_400.0)), "{left}");

    let second = write_certificate(&server.yard, 10);
    server.daemon.signal("-HUP");
    let ends = Instant::now() + PATIENCE;
    let by_second = trusting(&second);
    let health = format!("{}/healthz", server.base);
    while by_second.get(&health).send().await.is_err() {
        assert!(Instant::now() < ends, "the old certificate stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = check(&config);
    assert!(
        said.contains("warning  listen.tls_cert_file: the certificate is valid only until"),
        "{said}"
    );

    // A certificate that cannot be used leaves the one before in force.
    secret(server.yard.dir.path(), "cert.pem", "no certificate");
    server.daemon.signal("-HUP");
    assert!(check(&config).contains("error    listen.tls_cert_file"));
    assert_eq!(
        by_second
            .get(&health)
            .send()
            .await
            .expect("an answer")
            .status(),
        StatusCode::OK
    );
}

/// What `check` says.
fn check(config: &std::path::Path) -> String {
    let said = process::poweryard()
        .arg("--config")
        .arg(config)
        .arg("check")
        .output()
        .expect("it runs");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_certificate_or_token_the_daemon_does_not_start() {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    let text = fs::read_to_string(&config).expect("written");
    let lines = format!(
        "{text}[listen]\naddress = \"127.0.0.1:{}\"\n{}{}",
        unused_port().await,
        tls_lines(&yard),
        tokens(&yard)
    );
    fs::write(&config, &lines).expect("written");
    let ends_with_78 = async || {
        let mut daemon = Daemon::start(&config);
        assert_eq!(daemon.exit_code().await, Some(78));
    };
    ends_with_78().await;
    write_certificate(&yard, -1);
    ends_with_78().await;
    assert!(
        check(&config).contains("error    listen.tls_cert_file: the certificate was valid until")
    );
    write_certificate(&yard, 100);
    secret(yard.dir.path(), "reader", "short");
    ends_with_78().await;
    secret(yard.dir.path(), "reader", PRODUCER);
    ends_with_78().await;
    let readable = secret(yard.dir.path(), "reader", READER);
    fs::set_permissions(
        &readable,
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .expect("mode set");
    ends_with_78().await;
    let said = check(&config);
    assert!(
        said.contains("error    listen.tokens (reader-1): token_file") && !said.contains(READER),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_leave_the_queue_in_one_file_when_the_daemon_stops() {
    let server = Server::start("").await;
    for _ in 0..3 {
        let (status, _) = server.read("/api/v1/requests", READER).await;
        assert_eq!(status, StatusCode::OK);
    }
    let Server { yard, daemon, .. } = server;
    assert_eq!(daemon.stop().await, Some(0));
    let left: Vec<_> = fs::read_dir(yard.dir.path())
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("queue.db-"))
        .filter(|name| name.ends_with("-wal") || name.ends_with("-shm"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}
