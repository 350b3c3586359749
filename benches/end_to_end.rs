//! From rows to stored outcomes: the whole daemon against the simulated cloud on loopback, in one
//! process.
//!
//! `cargo bench --bench end_to_end [-- SERVERS LATENCY_MS OPERATION_MS RUNS]` prints the median and
//! the range of the wall time from the commit of all rows to the last stored outcome, the daemon's
//! start included, and the calls made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use poweryard::daemon;
use poweryard::model::Service;
use poweryard::settings::{SecretRules, Settings};
use poweryard::sim::{CallRecord, Scenario, SimCloud};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::runtime::Builder;

/// Servers, latency of a submit in ms, duration of an operation in ms, runs.
type Shape = (u64, u64, u64, u64);

const SHAPES: [Shape; 5] = [
    (10_000, 0, 0, 7),
    (10_000, 50, 0, 7),
    (10_000, 50, 2000, 5),
    (100_000, 0, 0, 5),
    (100_000, 50, 2000, 3),
];

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let shapes = match numbers.as_slice() {
        [servers, latency, operation, runs] => vec![(*servers, *latency, *operation, *runs)],
        _ => SHAPES.to_vec(),
    };
    println!("servers  latency_ms  operation_ms  wall_s median (min-max)  submit calls  job calls");
    for (servers, latency, operation, runs) in shapes {
        let mut walls = Vec::new();
        let mut calls = Vec::new();
        for _ in 0..runs {
            let (wall, made) = run(servers, latency, operation);
            walls.push(wall.as_secs_f64());
            calls = made;
        }
        walls.sort_by(f64::total_cmp);
        let (median, min, max) = (walls[walls.len() / 2], walls[0], walls[walls.len() - 1]);
        let submits = calls.iter().filter(|call| call.action.is_some()).count();
        let jobs = calls.len() - submits;
        println!(
            "{servers:>7}  {latency:>10}  {operation:>12}  {median:.3} ({min:.3}-{max:.3})  {submits:>12}  {jobs:>9}"
        );
    }
}

fn run(servers: u64, latency: u64, operation: u64) -> (Duration, Vec<CallRecord>) {
    let dir = tempfile::tempdir().expect("a folder");
    let (base_url, ids, stop_cloud) = start_cloud(servers, latency, operation);
    let settings = settings(dir.path(), &base_url);
    let clouds = daemon::connect_all(&settings, &SecretRules::new(&settings.queue.database, None))
        .expect("secrets");
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let wall = runtime.block_on(async {
        let store = poweryard::store::Store::open(&settings.queue.database).await.expect("a queue");
        store.close().await.expect("closed");
        let options = SqliteConnectOptions::new().filename(&settings.queue.database).disable_statement_logging();
        let mut producer = options.connect().await.expect("open");
        sqlx::query("INSERT INTO power_requests (server_id, action) SELECT value, 'reboot' FROM json_each(?)")
            .bind(ids)
            .execute(&mut producer)
            .await
            .expect("inserted");
        let started = Instant::now();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let daemon = daemon::run(&settings, clouds, daemon::Links::default(), async {
            let _ = stopped.await;
        });
        let watch = async {
            all_done(&mut producer).await;
            let wall = started.elapsed();
            let _ = stop.send(());
            wall
        };
        let (outcome, wall) = tokio::join!(daemon, watch);
        outcome.expect("the daemon ends well");
        producer.close().await.expect("closed");
        wall
    });
    (wall, stop_cloud())
}

async fn all_done(producer: &mut SqliteConnection) {
    loop {
        let open: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM power_requests WHERE gate IS NOT NULL)",
        )
        .fetch_one(&mut *producer)
        .await
        .expect("readable");
        if !open {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

type StopCloud = Box<dyn FnOnce() -> Vec<CallRecord>>;

/// The cloud's address, its servers as a JSON array, and what stops it.
fn start_cloud(servers: u64, latency: u64, operation: u64) -> (String, String, StopCloud) {
    let scenario = Scenario::from_toml(&format!(
        "[latency]\nsubmit_ms = [{latency}, {latency}]\n\
         [bms]\nservers = {servers}\nrunning = 1.0\noperation_ms = [{operation}, {operation}]\n"
    ))
    .expect("a valid scenario");
    let (sender, receiver) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let cloud = SimCloud::start(([127, 0, 0, 1], 0).into(), scenario)
                .await
                .expect("a free port");
            let ids: Vec<String> = cloud
                .server_ids(Service::Bms)
                .iter()
                .map(ToString::to_string)
                .collect();
            sender
                .send((cloud.base_url(), serde_json::to_string(&ids).expect("text")))
                .expect("sent");
            let _ = stopped.await;
            let calls = cloud.calls();
            cloud.stop().await;
            calls
        })
    });
    let (base_url, ids) = receiver.recv().expect("started");
    let finish = move || {
        let _ = stop.send(());
        thread.join().expect("the cloud ends well")
    };
    (base_url, ids, Box::new(finish))
}

fn settings(dir: &Path, endpoint: &str) -> Settings {
    for (name, content) in [
        ("access-key", "POWERYARDSIMAK"),
        ("secret-key", "poweryard-sim-secret-key"),
    ] {
        let path = dir.join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
    }
    let dir = dir.display();
    let text = format!(
        "[queue]\ndatabase = \"{dir}/queue.db\"\n[batch]\nlinger = \"0ms\"\n[targets.default]\nservice = \"bms\"\n\
         endpoint = \"{endpoint}\"\nproject_id = \"bbf1946d374b44a0a2a95533562ba954\"\nallow_http = true\n\
         submits_per_minute = 6000\nfirst_look = \"20ms\"\n[targets.default.auth]\nkind = \"aksk\"\n\
         access_key_file = \"{dir}/access-key\"\nsecret_key_file = \"{dir}/secret-key\"\n"
    );
    Settings::parse(&text, Path::new("bench.toml")).expect("valid")
}
