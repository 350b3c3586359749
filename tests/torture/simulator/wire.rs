//! The real client's wire, laid to a simulated cloud in this process: no socket, no waiting, the
//! same answers.
//!
//! Owns what the network does to an answer, as the HTTP client would report it. Knows nothing of
//! what answers mean.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Request;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use poweryard::cloud::answer::{Answer, CallKind};
use poweryard::cloud::http::{BODY_BYTES_MAX, Wire, not_answered};
use poweryard::model::CallError;
use poweryard::model::{Now, Steady, UtcMillis};
use poweryard::sim::{self, Delivery, LateAct, LedgerEntry, ServerSummary, World};

/// The simulated cloud, its time, and how long the present task's answers have taken so far.
#[derive(Clone)]
pub(super) struct Cloud {
    world: Arc<Mutex<World>>,
    now: Arc<AtomicI64>,
    /// How far the machine's time of day is off, in ms.
    off_ms: Arc<AtomicI64>,
    took_ms: Arc<AtomicI64>,
}

impl Cloud {
    pub(super) fn new(world: World, now: UtcMillis) -> Self {
        let clock = |ms| Arc::new(AtomicI64::new(ms));
        Self {
            world: Arc::new(Mutex::new(world)),
            now: clock(now.0),
            off_ms: clock(0),
            took_ms: clock(0),
        }
    }

    /// The true time, which the cloud keeps.
    pub(super) fn now(&self) -> UtcMillis {
        UtcMillis(self.now.load(Ordering::Relaxed))
    }

    /// What the machine's clocks show: somebody may have set its time of day, nobody can set the
    /// other one.
    pub(super) fn moment(&self) -> Now {
        let now = self.now();
        let utc = UtcMillis(now.0 + self.off_ms.load(Ordering::Relaxed));
        Now {
            utc,
            steady: Steady(now.since(UtcMillis(0))),
        }
    }

    /// The true time at which the machine's time of day is `utc`, if nobody sets it.
    pub(super) fn true_time(&self, utc: UtcMillis) -> UtcMillis {
        UtcMillis(utc.0 - self.off_ms.load(Ordering::Relaxed))
    }

    /// The machine's time of day is off by so much from now on.
    pub(super) fn set_clock(&self, off_ms: i64) {
        self.off_ms.store(off_ms, Ordering::Relaxed);
    }

    /// By how much it is off, in ms.
    pub(super) fn clock(&self) -> i64 {
        self.off_ms.load(Ordering::Relaxed)
    }

    /// Lets begin what was to begin by now.
    pub(super) fn act_late(&self) {
        let now = self.now();
        self.world().act_late(now);
    }

    /// When the next of these begins.
    pub(super) fn next_late_at(&self) -> Option<UtcMillis> {
        self.world().late_acts().iter().map(|act| act.at).min()
    }

    /// What has begun, from number `from` on, and what will begin later, whatever was said of it.
    pub(super) fn late_acts(&self, from: usize) -> Vec<LateAct> {
        let world = self.world();
        let begun = world.acted_late().get(from..).unwrap_or_default();
        begun.iter().chain(world.late_acts()).cloned().collect()
    }

    /// How many have begun.
    pub(super) fn acted_late(&self) -> usize {
        self.world().acted_late().len()
    }

    pub(super) fn set_now(&self, now: UtcMillis) {
        self.now.store(now.0, Ordering::Relaxed);
    }

    /// How long the answers since the last question took.
    pub(super) fn take_delay(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.took_ms.swap(0, Ordering::Relaxed)).unwrap_or(0))
    }

    /// The operations really carried out, from number `from` on.
    pub(super) fn ledger_from(&self, from: usize) -> Vec<LedgerEntry> {
        self.world()
            .ledger()
            .get(from..)
            .unwrap_or_default()
            .to_vec()
    }

    /// How often too many bad signatures in a row have locked the access key.
    pub(super) fn key_locks(&self) -> u64 {
        self.world().key_locks()
    }

    /// The servers as they are now.
    pub(super) fn servers(&self) -> Vec<ServerSummary> {
        let now = self.now();
        self.world().servers(now)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn took(&self, span: Duration) {
        self.took_ms.fetch_add(
            i64::try_from(span.as_millis()).unwrap_or(i64::MAX),
            Ordering::Relaxed,
        );
    }
}

/// A wire to `cloud` that waits for an answer no longer than `timeout`.
pub(super) struct SimWire {
    pub(super) cloud: Cloud,
    pub(super) timeout: Duration,
}

impl Wire for SimWire {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Answer, CallError>> {
        self.send_fresh(request, CallKind::Read)
    }

    fn send_fresh(
        &self,
        request: Request,
        kind: CallKind,
    ) -> BoxFuture<'_, Result<Answer, CallError>> {
        async move { self.exchange(&request, kind) }.boxed()
    }
}

impl SimWire {
    fn exchange(&self, request: &Request, kind: CallKind) -> Result<Answer, CallError> {
        let now = self.cloud.now();
        let answer = self.cloud.world().handle(now, &translated(request));
        if answer.delay > self.timeout {
            self.cloud.took(self.timeout);
            return Err(not_answered(kind, None, "not complete in time"));
        }
        self.cloud.took(answer.delay);
        deliver(answer, kind)
    }
}

/// What the HTTP client makes of the answer; see `cloud::http`.
fn deliver(answer: sim::Answer, kind: CallKind) -> Result<Answer, CallError> {
    let broken = |status, why| Err(not_answered(kind, status, why));
    let padding = match answer.delivery {
        Delivery::Dropped => return broken(None, "the connection was closed"),
        Delivery::Truncated { .. } => return broken(Some(answer.status), "the answer broke off"),
        Delivery::Padded { bytes } => bytes,
        Delivery::Whole => 0,
    };
    let too_large = || not_answered(kind, Some(answer.status), "the answer is too large");
    let headers = headers(&answer);
    let mut body = answer.body;
    if body.len() + padding > BODY_BYTES_MAX {
        return Err(too_large());
    }
    body.resize(body.len() + padding, b' ');
    Answer {
        status: answer.status,
        headers,
        body,
        ..Answer::default()
    }
    .decoded(BODY_BYTES_MAX)
    .ok_or_else(too_large)
}

fn headers(answer: &sim::Answer) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let fixed = [
        ("x-request-id", answer.request_id.as_str()),
        ("content-type", answer.content_type),
    ];
    let others = answer
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    for (name, value) in fixed.into_iter().chain(others) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
    headers
}

fn translated(request: &Request) -> sim::Request {
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        (
            name.as_str().to_owned(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        )
    };
    sim::Request {
        method: request.method().as_str().to_owned(),
        path: request.url().path().to_owned(),
        query: request.url().query().unwrap_or_default().to_owned(),
        headers: request.headers().iter().map(header).collect(),
        body: request
            .body()
            .and_then(reqwest::Body::as_bytes)
            .unwrap_or_default()
            .to_vec(),
    }
}
