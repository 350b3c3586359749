//! What callers from elsewhere cost: a POST of 10,000 rows, and a drain with and without readers of
//! the API beside it, in turns.
//!
//! `cargo bench --bench web [-- --quick] [-- --rows N --readers R --followers F --runs N]`
//!
//! Each reader asks once a second, for the status, a page of requests or one request; each follower
//! has the events open. They run in this process, on the same cores as the daemon.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use poweryard::model::UtcMillis;
use reqwest::{Client, Response, StatusCode};
use serde_json::json;
use sqlx::Connection;
use tokio::task::JoinSet;

#[path = "common/mod.rs"]
mod common;

use common::far::{FarSide, Manner, utc_now};
use common::figures::{Figures, ratio};
use common::yard::Yard;
use common::{ids, process, yard};

const TOKEN: &str = "a-token-for-the-benchmark";
const PATHS: [&str; 3] = ["status", "requests?limit=100", "requests/1"];

#[derive(Debug, Parser)]
struct Args {
    /// One run of a few seconds.
    #[arg(long)]
    quick: bool,
    /// Rows that are drained.
    #[arg(long)]
    rows: Option<usize>,
    /// Readers, each of which asks once a second.
    #[arg(long, default_value_t = 200)]
    readers: usize,
    /// Followers of the events.
    #[arg(long, default_value_t = 50)]
    followers: usize,
    /// Runs of each kind.
    #[arg(long)]
    runs: Option<usize>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A daemon that serves, with an empty queue.
struct Server {
    yard: Yard,
    base: String,
}

fn main() {
    common::far::run_if_asked();
    let args = Args::parse();
    let is_test = common::is_test();
    let rows = match args.rows {
        Some(rows) => rows,
        None if is_test => 1_000,
        None if args.quick => 10_000,
        None => 100_000,
    };
    let usual_runs = if is_test || args.quick { 1 } else { 5 };
    let runs = args.runs.unwrap_or(usual_runs);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        insert(if is_test { 100 } else { 10_000 }, runs).await;
        drain(rows, runs, &args).await;
    });
}

impl Server {
    async fn new(far: &FarSide) -> Self {
        let yard = Yard::new(far.base_url(), Duration::ZERO).await;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let token = yard.path().join("access_key").with_file_name("token");
        fs::copy(yard.path().join("access_key"), &token).expect("a file of mode 600");
        fs::write(&token, TOKEN).expect("written");
        let path = yard.path().join("poweryard.toml");
        let config = fs::read_to_string(&path).expect("written before");
        let listen = format!(
            "[listen]\naddress = \"{address}\"\n[[listen.tokens]]\nname = \"bench\"\nrole = \"operator\"\ntoken_file = \"{}\"\n",
            token.display()
        );
        fs::write(&path, config + &listen).expect("written");
        Self {
            yard,
            base: format!("http://{address}/api/v1"),
        }
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().expect("a client")
}

/// How long a POST of so many rows takes. They are not due, so that nothing else happens.
async fn insert(rows: usize, runs: usize) {
    let far = FarSide::start(Manner {
        latency: Duration::ZERO,
        job: Duration::ZERO,
    });
    let mut took = Figures::default();
    for run in 0..runs {
        let server = Server::new(&far).await;
        let daemon = server.yard.start_ready();
        let servers = ids::random_ids(rows, run as u64);
        let body: Vec<_> = servers
            .iter()
            .map(|server| json!({"server_id": server, "action": "stop", "label": "bench", "not_before": "2036-01-01"}))
            .collect();
        let request = client()
            .post(format!("{}/requests", server.base))
            .bearer_auth(TOKEN)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&body).expect("text"));
        let begun = Instant::now();
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 201);
        answer.bytes().await.expect("a body");
        took.push_ms(begun.elapsed());
        process::end(daemon);
    }
    println!("\nPOST of {rows} rows: {took:.0} ms");
}

async fn drain(rows: usize, runs: usize, args: &Args) {
    let far = FarSide::start(Manner {
        latency: Duration::ZERO,
        job: Duration::ZERO,
    });
    let mut alone = Figures::default();
    let mut beside = Figures::default();
    let answers = Arc::new(Answers::default());
    for run in 0..runs {
        let servers = ids::random_ids(rows, run as u64);
        alone.push(drain_once(&far, &servers, None).await);
        let crowd = Crowd {
            readers: args.readers,
            followers: args.followers,
            answers: Arc::clone(&answers),
        };
        beside.push(drain_once(&far, &servers, Some(crowd)).await);
    }
    println!(
        "\ndrain of {rows} rows, {runs} runs in turns, wall s\n  alone                                {alone:.2}\n  \
         beside {:>3} readers and {:>2} followers   {beside:.2}\n  ratio {:.2}; {} answers, {} failed, {} events",
        args.readers,
        args.followers,
        ratio(&beside, &alone),
        answers.good.load(Ordering::Relaxed),
        answers.failed.load(Ordering::Relaxed),
        answers.events.load(Ordering::Relaxed),
    );
}

/// What the crowd was told.
#[derive(Default)]
struct Answers {
    good: AtomicU64,
    failed: AtomicU64,
    events: AtomicU64,
}

/// The request that somebody asked for is not there yet.
fn is_early(answer: &Response) -> bool {
    answer.status() == StatusCode::NOT_FOUND
}

impl Answers {
    /// The first one is shown.
    fn note_failure(&self, what: &str) {
        if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
            println!("  an answer that failed: {what}");
        }
    }
}

/// Those who look on.
struct Crowd {
    readers: usize,
    followers: usize,
    answers: Arc<Answers>,
}

/// From the first call to the last outcome, in seconds. The crowd is there before the rows.
async fn drain_once(far: &FarSide, servers: &[String], crowd: Option<Crowd>) -> f64 {
    let server = Server::new(far).await;
    let daemon = server.yard.start_ready();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    if let Some(crowd) = crowd {
        crowd.gather(&server.base, &is_over, &mut tasks);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.yard.insert(servers).await;
    let mut reader = server.yard.producer().await;
    yard::wait_until_done(&mut reader).await;
    let ended = utc_now();
    is_over.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    let begun: String = sqlx::query_scalar("SELECT min(submitted_at) FROM power_requests")
        .fetch_one(&mut reader)
        .await
        .expect("readable");
    reader.close().await.expect("closed");
    process::end(daemon);
    let begun: UtcMillis = begun.parse().expect("a time");
    ended.since(begun).as_secs_f64()
}

impl Crowd {
    fn gather(&self, base: &str, is_over: &Arc<AtomicBool>, tasks: &mut JoinSet<()>) {
        let client = client();
        for number in 0..self.readers {
            let url = format!("{base}/{}", PATHS[number % PATHS.len()]);
            let (client, is_over) = (client.clone(), Arc::clone(is_over));
            let answers = Arc::clone(&self.answers);
            tasks.spawn(async move {
                // Not all at the same moment.
                tokio::time::sleep(Duration::from_millis(5 * number as u64)).await;
                while !is_over.load(Ordering::Relaxed) {
                    let asked = client.get(&url).bearer_auth(TOKEN).send().await;
                    match asked {
                        Ok(answer) if answer.status().is_success() || is_early(&answer) => {
                            answers.good.fetch_add(1, Ordering::Relaxed);
                        }
                        other => answers.note_failure(&format!("{url}: {other:?}")),
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        }
        for _ in 0..self.followers {
            let url = format!("{base}/events");
            let (client, answers) = (client.clone(), Arc::clone(&self.answers));
            tasks.spawn(async move {
                loop {
                    let asked = client.get(&url).bearer_auth(TOKEN).send().await;
                    if let Ok(mut answer) = asked {
                        while let Ok(Some(_)) = answer.chunk().await {
                            answers.events.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
    }
}
