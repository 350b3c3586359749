//! The floor: the least durable work that takes rows to stored outcomes, in a process of its own.
//! Claim, call, job id, outcomes a thousand at a time; no retries, no errors, no second requests.
//!
//! One connection with `synchronous=FULL`, a partial index in the order of the claim, 16 calls in
//! flight, at most 8 answers in memory. It knows how long a job takes.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde::Deserialize;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::common::far::utc_now;
use super::common::one_index;
use super::common::process::{self, Usage};

const ROLE: &str = "floor";
const BATCH: u32 = 1000;
const SUBMITS_MAX: usize = 16;
const ANSWERS_MAX: usize = 8;

/// A floor that has drained its table.
pub(crate) struct Drained {
    /// From the first read to the last stored outcome.
    pub(crate) wall: Duration,
    pub(crate) usage: Usage,
    /// Bytes.
    pub(crate) written: u64,
}

/// Fills a new table; returns the bytes written for it.
pub(crate) async fn fill(path: &Path, servers: &[String]) -> u64 {
    let before = process::bytes_written("self");
    let mut writer = one_index::create(path).await;
    sqlx::query(
        "INSERT INTO requests (server_id, action) SELECT value, 'reboot' FROM json_each(?)",
    )
    .bind(serde_json::to_string(servers).expect("text"))
    .execute(&mut writer)
    .await
    .expect("inserted");
    writer.close().await.expect("closed");
    process::bytes_written("self") - before
}

/// Runs the floor as a process.
pub(crate) fn run(path: &Path, base_url: &str, job: Duration) -> Drained {
    let program = std::env::current_exe().expect("this program");
    let mut child: Child = Command::new(program)
        .arg(ROLE)
        .arg(path)
        .arg(base_url)
        .arg(job.as_millis().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut said = String::new();
    let stdout = child.stdout.take().expect("piped");
    std::io::BufReader::new(stdout)
        .read_line(&mut said)
        .expect("it says how long it took");
    let id = child.id();
    let mut microseconds = said
        .split_whitespace()
        .map(|text| Duration::from_micros(text.parse().expect("microseconds")));
    let wall = microseconds.next().expect("the wall time");
    // Its database thread has ended.
    let cpu = microseconds.next().expect("the processor time");
    let drained = Drained {
        wall,
        usage: Usage {
            cpu,
            ..process::usage(id)
        },
        written: process::bytes_written(&id.to_string()),
    };
    drop(child.stdin.take());
    child.wait().expect("it ends");
    drained
}

/// Becomes the floor, if this process was started as one; then it does not return.
pub(crate) fn run_if_asked() {
    let args: Vec<String> = std::env::args().collect();
    let [_, role, path, base_url, job_ms] = args.as_slice() else {
        return;
    };
    if role != ROLE {
        return;
    }
    let job = Duration::from_millis(job_ms.parse().expect("milliseconds"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let wall = runtime.block_on(drain(Path::new(path), base_url, job));
    println!("{} {}", wall.as_micros(), process::own_cpu().as_micros());
    std::io::stdout().flush().expect("said");
    // Until its usage has been read.
    let _ = std::io::stdin().lines().next();
    std::process::exit(0);
}

enum Event {
    Accepted {
        batch: i64,
        job: String,
    },
    /// Each request with its error, or none.
    Ended(Vec<(i64, Option<String>)>),
}

async fn drain(path: &Path, base_url: &str, takes: Duration) -> Duration {
    // As the daemon does; http needs none, but reqwest wants one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().build().expect("a client");
    let mut writer = one_index::open(path).await;
    let answers = Arc::new(Semaphore::new(ANSWERS_MAX));
    let begun = Instant::now();
    let mut calls: JoinSet<Event> = JoinSet::new();
    let mut members: std::collections::HashMap<i64, Vec<(i64, String)>> = Default::default();
    let mut submitting = 0;
    let mut rows_left = true;
    let mut batches = 0;
    loop {
        while rows_left && submitting < SUBMITS_MAX {
            batches += 1;
            let claimed = claim(&mut writer, batches).await;
            rows_left = !claimed.is_empty();
            if !rows_left {
                break;
            }
            let body = action_body(&claimed);
            members.insert(batches, claimed);
            let url = format!("{base_url}/v1/p/baremetalservers/action");
            calls.spawn(submit(client.clone(), url, body, batches));
            submitting += 1;
        }
        let Some(event) = calls.join_next().await else {
            break;
        };
        match event.expect("a call ends") {
            Event::Accepted { batch, job } => {
                submitting -= 1;
                note_job(&mut writer, batch, &job).await;
                let url = format!("{base_url}/v1/p/jobs/{job}");
                let servers = members.remove(&batch).unwrap_or_default();
                let answers = Arc::clone(&answers);
                calls.spawn(follow(client.clone(), url, servers, takes, answers));
            }
            Event::Ended(outcomes) => store_outcomes(&mut writer, &outcomes).await,
        }
    }
    let wall = begun.elapsed();
    writer.close().await.expect("closed");
    wall
}

async fn claim(writer: &mut SqliteConnection, batch: i64) -> Vec<(i64, String)> {
    sqlx::query_as(
        "UPDATE requests SET status = 'claimed', batch_id = ?1
         WHERE id IN (SELECT id FROM requests WHERE status = 'pending' AND action = 'reboot'
                      ORDER BY priority DESC, id LIMIT 0 + ?2)
         RETURNING id, server_id",
    )
    .bind(batch)
    .bind(BATCH)
    .fetch_all(writer)
    .await
    .expect("claimed")
}

async fn note_job(writer: &mut SqliteConnection, batch: i64, job: &str) {
    sqlx::query("INSERT INTO batches (id, job_id) VALUES (?, ?)")
        .bind(batch)
        .bind(job)
        .execute(writer)
        .await
        .expect("stored");
}

async fn store_outcomes(writer: &mut SqliteConnection, outcomes: &[(i64, Option<String>)]) {
    sqlx::query(
        "UPDATE requests SET status = CASE WHEN j.value ->> 1 IS NULL THEN 'succeeded' ELSE 'failed' END,
             error = j.value ->> 1, finished_at = ?2
         FROM json_each(?1) j WHERE requests.id = j.value ->> 0",
    )
    .bind(serde_json::to_string(outcomes).expect("text"))
    .bind(utc_now().to_string())
    .execute(writer)
    .await
    .expect("stored");
}

fn action_body(claimed: &[(i64, String)]) -> String {
    let servers: Vec<_> = claimed
        .iter()
        .map(|(_, server)| serde_json::json!({ "id": server }))
        .collect();
    serde_json::json!({ "reboot": { "type": "HARD", "servers": servers } }).to_string()
}

async fn submit(client: Client, url: String, body: String, batch: i64) -> Event {
    #[derive(Deserialize)]
    struct Accepted {
        job_id: String,
    }
    let answer = client.post(url).body(body).send().await.expect("answered");
    let answer = answer.bytes().await.expect("read");
    let accepted: Accepted = serde_json::from_slice(&answer).expect("a job");
    Event::Accepted {
        batch,
        job: accepted.job_id,
    }
}

#[derive(Deserialize)]
struct JobAnswer<'a> {
    status: &'a str,
    #[serde(borrow)]
    entities: Entities<'a>,
}

#[derive(Deserialize)]
struct Entities<'a> {
    #[serde(borrow)]
    sub_jobs: Vec<SubJob<'a>>,
}

#[derive(Deserialize)]
struct SubJob<'a> {
    #[serde(borrow)]
    entities: OneServer<'a>,
    error_code: Option<&'a str>,
}

#[derive(Deserialize)]
struct OneServer<'a> {
    server_id: &'a str,
}

/// Asks for a job as soon as it is done, and again a little later if it is not.
async fn follow(
    client: Client,
    url: String,
    members: Vec<(i64, String)>,
    takes: Duration,
    answers: Arc<Semaphore>,
) -> Event {
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    let _one_answer = answers.acquire().await.expect("never closed");
    loop {
        let answer = client.get(&url).send().await.expect("answered");
        let answer = answer.bytes().await.expect("read");
        let job: JobAnswer<'_> = serde_json::from_slice(&answer).expect("a job's state");
        if job.status == "SUCCESS" {
            let by_server: std::collections::HashMap<&str, Option<&str>> = job
                .entities
                .sub_jobs
                .iter()
                .map(|sub_job| (sub_job.entities.server_id, sub_job.error_code))
                .collect();
            let outcome = |(id, server): &(i64, String)| {
                let error = by_server.get(server.as_str()).expect("all are told");
                (*id, error.map(str::to_owned))
            };
            return Event::Ended(members.iter().map(outcome).collect());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
