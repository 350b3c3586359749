//! The far side: a server that speaks the wire format of BMS, takes every call and does nothing. It
//! runs in a process of its own, which is this benchmark again.
//!
//! A POST is answered with a job id after the latency; the job is done some time later; a GET is
//! answered after the latency with one sub-job for each server, about 280 bytes each.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use poweryard::model::UtcMillis;
use serde::Deserialize;

use super::process;

const ROLE: &str = "far-side";

/// How the far side behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Of each call.
    pub(crate) latency: Duration,
    /// From the answer to a POST until its job is done.
    pub(crate) job: Duration,
}

/// Calls since it was last asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    pub(crate) submits: u64,
    pub(crate) queries: u64,
    /// When the POSTs arrived, on the clock of `monotonic_ns`.
    pub(crate) arrivals_ns: Vec<u64>,
}

/// A far side that runs.
pub(crate) struct FarSide {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    base_url: String,
}

impl FarSide {
    pub(crate) fn start(manner: Manner) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .arg(ROLE)
            .arg(manner.latency.as_millis().to_string())
            .arg(manner.job.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut port = String::new();
        stdout.read_line(&mut port).expect("it says its port");
        let base_url = format!("http://127.0.0.1:{}", port.trim());
        Self {
            child,
            stdin,
            stdout,
            base_url,
        }
    }

    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// What it has used of the processor so far: it must be idle for most of a run.
    pub(crate) fn cpu(&self) -> Duration {
        process::usage(self.child.id()).cpu
    }

    /// The calls since this was last asked; their jobs are forgotten.
    pub(crate) fn take_calls(&mut self) -> Calls {
        writeln!(self.stdin, "calls").expect("it listens");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it answers");
        let mut numbers = line.split_whitespace().filter_map(|text| text.parse().ok());
        Calls {
            submits: numbers.next().unwrap_or(0),
            queries: numbers.next().unwrap_or(0),
            arrivals_ns: numbers.collect(),
        }
    }
}

impl Drop for FarSide {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same clock in every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Milliseconds since 1970.
pub(crate) fn utc_now() -> UtcMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UtcMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Becomes the far side, if this process was started as one; then it does not return.
pub(crate) fn run_if_asked() {
    let args: Vec<String> = std::env::args().collect();
    let [_, role, latency, job] = args.as_slice() else {
        return;
    };
    if role != ROLE {
        return;
    }
    let ms = |text: &str| Duration::from_millis(text.parse().expect("milliseconds"));
    let far = Arc::new(Far {
        manner: Manner {
            latency: ms(latency),
            job: ms(job),
        },
        known: Mutex::default(),
    });
    let listener = Arc::clone(&far);
    std::thread::spawn(move || listener.answer_questions());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(serve(far));
}

struct Far {
    manner: Manner,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    jobs: HashMap<String, Job>,
    calls: Calls,
    last_job: u64,
}

struct Job {
    begin: UtcMillis,
    servers: Vec<String>,
}

impl Far {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process with the one that started it.
    fn answer_questions(&self) {
        for _question in std::io::stdin().lines().map_while(Result::ok) {
            let mut known = self.known();
            let calls = std::mem::take(&mut known.calls);
            known.jobs.clear();
            let arrivals = calls.arrivals_ns.iter().map(|ns| format!(" {ns}"));
            let arrivals: String = arrivals.collect();
            println!("{} {}{arrivals}", calls.submits, calls.queries);
        }
        std::process::exit(0);
    }
}

async fn serve(far: Arc<Far>) {
    let app = Router::new()
        .route("/v1/{project}/baremetalservers/action", post(submit))
        .route("/v1/{project}/jobs/{job}", get(query))
        .with_state(far);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a free port");
    println!("{}", listener.local_addr().expect("bound").port());
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await.expect("it serves");
}

#[derive(Deserialize)]
struct Action<'a> {
    #[serde(borrow)]
    servers: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    id: &'a str,
}

async fn submit(State(far): State<Arc<Far>>, body: Bytes) -> (StatusCode, String) {
    let arrived_ns = monotonic_ns();
    let actions: HashMap<&str, Action<'_>> = match serde_json::from_slice(&body) {
        Ok(actions) => actions,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()),
    };
    let entries = actions.into_values().flat_map(|action| action.servers);
    let servers = entries.map(|entry| entry.id.to_owned()).collect();
    wait(far.manner.latency).await;
    let mut known = far.known();
    known.calls.submits += 1;
    known.calls.arrivals_ns.push(arrived_ns);
    known.last_job += 1;
    let id = format!("{:032x}", known.last_job);
    let job = Job {
        begin: utc_now(),
        servers,
    };
    known.jobs.insert(id.clone(), job);
    (StatusCode::OK, format!("{{\"job_id\":\"{id}\"}}"))
}

async fn query(
    State(far): State<Arc<Far>>,
    Path((_, id)): Path<(String, String)>,
) -> (StatusCode, String) {
    wait(far.manner.latency).await;
    let mut known = far.known();
    known.calls.queries += 1;
    let Some(job) = known.jobs.get(&id) else {
        let unknown = r#"{"error":{"code":"Common.0011","message":"jobId is invalid."}}"#;
        return (StatusCode::BAD_REQUEST, unknown.to_owned());
    };
    (StatusCode::OK, job.print(&id, far.manner.job))
}

impl Job {
    fn print(&self, id: &str, takes: Duration) -> String {
        let ends = self.begin + takes;
        let begin = self.begin;
        let (status, end) = if ends <= utc_now() {
            ("SUCCESS", ends.to_string())
        } else {
            ("RUNNING", String::new())
        };
        let mut out = String::with_capacity(300 * self.servers.len() + 300);
        out.push_str("{\"entities\":{\"sub_jobs\":[");
        for (number, server) in self.servers.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let written = write!(
                out,
                "{comma}{{\"status\":\"{status}\",\"entities\":{{\"server_id\":\"{server}\"}},\"job_id\":\"{number:032x}\",\
                 \"job_type\":\"baremetalSingleOperate\",\"begin_time\":\"{begin}\",\"end_time\":\"{end}\",\
                 \"error_code\":null,\"fail_reason\":null}}"
            );
            written.expect("a String takes any text");
        }
        let total = self.servers.len();
        let written = write!(
            out,
            "],\"sub_jobs_total\":{total}}},\"status\":\"{status}\",\"job_id\":\"{id}\",\
             \"job_type\":\"baremetalBatchOperate\",\"begin_time\":\"{begin}\",\"end_time\":\"{end}\",\
             \"error_code\":null,\"fail_reason\":null}}"
        );
        written.expect("a String takes any text");
        out
    }
}

async fn wait(latency: Duration) {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}
