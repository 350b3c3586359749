//! The server that people and programs on other machines reach: who is let in, what each role may
//! do, and what the API answers, by HTTP against the real daemon and the simulated cloud.

mod common;
#[path = "common/process.rs"]
mod process;

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use common::{Yard, secret};
use process::{Daemon, PATIENCE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, redirect};
use tokio::net::TcpListener;

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
        let port = free_port().await;
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

/// A port that nobody has at this moment.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    listener.local_addr().expect("an address").port()
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
    let begun = Instant::now();
    let right = server.get("/metrics").bearer_auth(READER);
    assert_eq!(status(right).await, StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_millis(1000));
    let guesses = (0..12).map(|number| {
        let guess = format!("wrong-token-{number}-0123456789");
        status(server.get("/metrics").bearer_auth(guess))
    });
    let answers = futures_util::future::join_all(guesses).await;
    let refused = answers
        .iter()
        .filter(|status| **status == StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.count() >= 8, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_everybody_may_read_and_nobody_may_do_anything() {
    let yard = Yard::new(QUICK).await;
    let port = free_port().await;
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
