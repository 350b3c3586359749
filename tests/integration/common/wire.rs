//! The other end of a client's wire: a few lines of TCP, whose answers may be wrong in every way;
//! and what a client of it needs to be made. Knows nothing of what a test asserts, nor of any
//! service's bodies.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::PROJECT;
use poweryard::cloud::auth::{AccessKeys, Password};
use poweryard::cloud::{Clock, Credentials, Observed};
use poweryard::model::{CallError, Fault, ServerId, Service, Sighting, TargetName, UtcMillis};
use poweryard::plan::windows::Windows;
use poweryard::settings::{AuthSettings, TargetSettings};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

// ----------------------------------------------------------------------------------------------
// the other end

/// A request as it came over the wire.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) connection: usize,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// What the other end does with a request.
pub(crate) enum Reply {
    /// A whole answer.
    Http(u16, Vec<(&'static str, String)>, String),
    /// These bytes, then the connection ends.
    Raw(Vec<u8>),
    /// A 200 whose body has no end before so many bytes.
    Flood(usize),
}

pub(crate) fn ok(body: impl Into<String>) -> Reply {
    Reply::Http(200, vec![], body.into())
}

/// A server on a loopback port that keeps what it was asked.
pub(crate) struct Cloud {
    pub(crate) port: u16,
    pub(crate) received: Arc<Mutex<Vec<Received>>>,
    pub(crate) written: Arc<AtomicUsize>,
}

impl Cloud {
    /// Starts; `reply` gets each request and how many came before it.
    pub(crate) async fn start(
        reply: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let port = listener.local_addr().expect("an address").port();
        let (received, written) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicUsize::new(0)),
        );
        let cloud = Self {
            port,
            received: Arc::clone(&received),
            written: Arc::clone(&written),
        };
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            let mut connection = 0;
            while let Ok((stream, _)) = listener.accept().await {
                connection += 1;
                let (received, written) = (Arc::clone(&received), Arc::clone(&written));
                tokio::spawn(serve(
                    stream,
                    connection,
                    Arc::clone(&reply),
                    received,
                    written,
                ));
            }
        });
        cloud
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("not poisoned").clone()
    }

    /// Three submits by `method` had a connection each, and all reads another one together.
    pub(crate) fn assert_three_submits_connected_anew(&self, method: &str) {
        let connections = |method: &str| -> Vec<usize> {
            self.received()
                .iter()
                .filter(|sent| sent.method == method)
                .map(|sent| sent.connection)
                .collect()
        };
        let (mut submits, reads) = (connections(method), connections("GET"));
        submits.dedup();
        assert_eq!(submits.len(), 3);
        assert!(
            reads
                .iter()
                .all(|connection| *connection == reads[0] && !submits.contains(connection)),
            "{reads:?} {submits:?}"
        );
    }
}

pub(crate) async fn serve(
    stream: TcpStream,
    connection: usize,
    reply: Arc<impl Fn(&Received, usize) -> Reply>,
    received: Arc<Mutex<Vec<Received>>>,
    written: Arc<AtomicUsize>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream, connection).await {
        let before = {
            let mut received = received.lock().expect("not poisoned");
            received.push(request.clone());
            received.len() - 1
        };
        let sent = match reply(&request, before) {
            Reply::Http(status, headers, body) => {
                let mut answer = Vec::new();
                write!(
                    answer,
                    "HTTP/1.1 {status} -\r\ncontent-length: {}\r\n",
                    body.len()
                )
                .expect("memory");
                headers
                    .iter()
                    .for_each(|(n, v)| write!(answer, "{n}: {v}\r\n").expect("memory"));
                write!(answer, "\r\n{body}").expect("memory");
                stream.write_all(&answer).await
            }
            Reply::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::Flood(bytes) => flood(&mut stream, bytes, &written).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

pub(crate) async fn flood(
    stream: &mut BufReader<TcpStream>,
    bytes: usize,
    written: &AtomicUsize,
) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let chunk = vec![b' '; 64 * 1024];
    while written.fetch_add(chunk.len(), Ordering::SeqCst) < bytes {
        stream.write_all(&chunk).await?;
    }
    Ok(())
}

pub(crate) async fn read_request(
    stream: &mut BufReader<TcpStream>,
    connection: usize,
) -> Option<Received> {
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .await
        .ok()
        .filter(|bytes| *bytes > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Received {
        method,
        target,
        headers,
        body: Vec::new(),
        connection,
    };
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

// ----------------------------------------------------------------------------------------------
// our end

pub(crate) fn target(service: Service, port: u16) -> TargetSettings {
    TargetSettings {
        name: TargetName("default".to_owned()),
        service,
        endpoint: format!("http://127.0.0.1:{port}").parse().expect("a URL"),
        project_id: PROJECT.to_owned(),
        submits_per_minute: 50,
        submits_open_max: 16,
        batch_servers_max: service.batch_servers_cap(),
        job_time_limit: Duration::from_secs(3600),
        look_time_limit: Duration::from_secs(900),
        settle_time: Duration::from_secs(60),
        first_look: Duration::from_secs(2),
        look_interval_max: Duration::from_secs(30),
        inventory_interval: None,
        connect_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(60),
        ca_file: None,
        proxy: None,
        proxy_password_file: None,
        allow_http: true,
        auth: AuthSettings::AkSk {
            access_key_file: "access".into(),
            secret_key_file: "secret".into(),
            security_token_file: None,
        },
        budgets: vec![],
        guards: vec![],
        windows: Windows::default(),
        protected: vec![],
    }
}

pub(crate) fn keys(access_key: &str, security_token: Option<&str>) -> Credentials {
    Credentials::AkSk(AccessKeys {
        access_key: access_key.to_owned(),
        secret_key: "ExampleSecretKey0000000000000000000000001".into(),
        security_token: security_token.map(Into::into),
    })
}

pub(crate) fn password() -> Credentials {
    let (domain, username) = ("sim".to_owned(), "sim".to_owned());
    Credentials::Password(Password {
        domain,
        username,
        password: "sim-password".into(),
    })
}

pub(crate) fn with_token(target: TargetSettings, iam_port: u16) -> TargetSettings {
    let auth = AuthSettings::Token {
        iam_endpoint: format!("http://127.0.0.1:{iam_port}")
            .parse()
            .expect("a URL"),
        domain: "sim".to_owned(),
        username: "sim".to_owned(),
        password_file: "password".into(),
    };
    TargetSettings { auth, ..target }
}

/// A clock that stands at 2024-01-02T03:04:05Z.
pub(crate) fn clock() -> Clock {
    Arc::new(|| UtcMillis(1_704_164_645_000))
}

pub(crate) fn ids(texts: &[&str]) -> Vec<ServerId> {
    texts
        .iter()
        .map(|text| ServerId((*text).to_owned()))
        .collect()
}

pub(crate) fn fault<T: std::fmt::Debug>(result: Result<T, CallError>) -> Fault {
    result.expect_err("an error").fault
}

/// What a look showed of one server.
pub(crate) fn shown(mut seen: Observed, server: &ServerId) -> Result<Sighting, CallError> {
    match seen.failures.remove(server) {
        Some(error) => Err(error),
        None => Ok(seen
            .sightings
            .remove(server)
            .expect("a sighting or a failure")),
    }
}

/// A port that nobody listens on.
pub(crate) async fn unused_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    listener.local_addr().expect("an address").port()
}

// ----------------------------------------------------------------------------------------------
// what is sent

pub(crate) fn capture(call: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("../../fixtures/wire-captures.json"))
        .expect("the fixture is JSON");
    let captures = all["captures"].as_array().expect("captures");
    captures
        .iter()
        .find(|capture| capture["call"] == call)
        .expect(call)
        .clone()
}

/// Asserts that `sent` is what the vendor's client sends, but for user agent, date, signature and
/// library headers.
pub(crate) fn assert_as_captured(sent: &Received, call: &str) {
    let capture = capture(call);
    assert_eq!(
        sent.target,
        capture["request_target"].as_str().expect("text"),
        "{call}"
    );
    assert_as_captured_but_for_the_target(sent, call);
}

/// As `assert_as_captured`, where our path or query is another.
pub(crate) fn assert_as_captured_but_for_the_target(sent: &Received, call: &str) {
    let capture = capture(call);
    assert_eq!(
        sent.method,
        capture["method"].as_str().expect("text"),
        "{call}"
    );
    let body = if sent.body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&sent.body).expect("JSON")
    };
    assert_eq!(body, capture["body_json"], "{call}");
    for pair in capture["headers"].as_array().expect("headers") {
        let (name, value) = (
            pair[0].as_str().expect("text"),
            pair[1].as_str().expect("text"),
        );
        let ours = sent.header(name);
        match name {
            "Content-Type" | "X-Project-Id" | "X-Security-Token" => {
                assert_eq!(ours, Some(value), "{call} {name}")
            }
            "X-Sdk-Date" => assert_eq!(ours, Some("20240102T030405Z"), "{call}"),
            "Authorization" => {
                let start = value.split(',').next().expect("a part");
                assert!(
                    ours.is_some_and(|ours| ours.starts_with(start)),
                    "{call} {ours:?}"
                );
            }
            "Host" => assert!(
                ours.is_some_and(|host| host.starts_with("127.0.0.1:")),
                "{call} {ours:?}"
            ),
            _ => {}
        }
    }
    assert_eq!(
        sent.header("user-agent"),
        Some(concat!("poweryard/", env!("CARGO_PKG_VERSION")))
    );
}

// ----------------------------------------------------------------------------------------------
// credentials

pub(crate) const REFUSED: &str =
    include_str!("../../fixtures/api-examples/gateway-error-401-signature.json");

pub(crate) fn refuse(body: &str) -> Reply {
    Reply::Http(401, vec![], body.to_owned())
}

/// An IAM that gives out `token-1`, `token-2`, … for a day each.
pub(crate) async fn iam() -> Cloud {
    Cloud::start(|_, before| {
        let body =
            r#"{"token":{"expires_at":"2024-01-03T03:04:05.000000Z","issued_at":"2024-01-02T03:04:05.000000Z"}}"#;
        Reply::Http(201, vec![("X-Subject-Token", format!("token-{}", before + 1))], body.to_owned())
    })
    .await
}
