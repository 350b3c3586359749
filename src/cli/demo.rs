//! `demo`: everything on one machine, without config or account: a simulated cloud with both
//! services, the real daemon, and rows inserted by plain SQL. At the end the outcomes are compared
//! with what the cloud really did; the rules of that are in `demo/agreement`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::output;
use super::{Context, Exit, Failure};
use crate::daemon::{self, Links};
use crate::model::{PowerAction, ServerId, Service, counted};
use crate::settings::{SecretRules, Settings};
use crate::sim::{Scenario, SimCloud};
use crate::store::client::{Access, Filter, NewRequest};
use crate::store::{QueueClient, Store};

mod agreement;
mod progress;

/// The targets of the demo's config, in the order of their requests.
const TARGETS: [(&str, Service); 2] = [("default", Service::Bms), ("clouddc", Service::CloudDc)];

/// What is asked for, server by server.
const ACTIONS: [PowerAction; 3] = [PowerAction::Stop, PowerAction::Start, PowerAction::Reboot];

/// What goes wrong in the demo: some of every kind that the daemon must handle.
const FAULTS: &str = include_str!("demo/faults.toml");
/// Faults that name servers, which must exist.
const LOST_ANSWERS: &str = include_str!("demo/lost_answers.toml");

/// Run the real daemon on a new queue against a simulated cloud; needs no config and no account.
///
/// Three quarters of the servers belong to the BMS service (target "default"), the others to
/// CloudDC (target "clouddc").
///
/// Exit code: 0 when every request has ended and its outcome agrees with what the cloud did.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard demo --servers 20000")]
pub(super) struct DemoArgs {
    /// Number of servers; each gets one request.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    servers: u32,
    /// Folder for the queue, config and keys; created if it does not exist. Default: a new
    /// temporary folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) async fn run(_: &Context, args: DemoArgs) -> Result<Exit, Failure> {
    let dir = folder(args.dir)?;
    let database = dir.join("queue.db");
    if database.exists() {
        return Err(Failure::Usage(format!(
            "{} already exists; the demo needs a new queue: name another folder with --dir",
            database.display()
        )));
    }
    let clouddc = args.servers / 4;
    let cloud = start_cloud(args.servers - clouddc, clouddc).await?;
    let config = write_config(&dir, &cloud.base_url())?;
    let settings = Settings::load(&config)?;
    let clouds = daemon::connect_all(&settings, &SecretRules::new(&database, None))?;
    Store::open(&database).await?.close().await?;
    output::print(&format!(
        "simulated cloud  {}, some servers are faulty\n{:<17}{} BMS servers\n{:<17}{clouddc} CloudDC servers\nqueue            {}\n",
        cloud.base_url(),
        "  default",
        args.servers - clouddc,
        "  clouddc",
        database.display()
    ))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = daemon::run(&settings, clouds, Links::default(), async {
        let _ = stopped.await;
    });
    let follow = async {
        let agreed = insert_and_follow(&database, &cloud).await;
        let _ = stop.send(());
        agreed
    };
    let serve = async { serve.await.map_err(Failure::from) };
    let ((), exit) = tokio::try_join!(serve, follow)?;
    output::print(&format!(
        "\nLook around: poweryard --config {} list --state failed\n",
        config.display()
    ))?;
    cloud.stop().await;
    Ok(exit)
}

async fn insert_and_follow(database: &Path, cloud: &SimCloud) -> Result<Exit, Failure> {
    let mut client = QueueClient::open(database, Access::Write).await?;
    let requests: Vec<NewRequest> = TARGETS
        .iter()
        .flat_map(|target| requests(cloud, target))
        .collect();
    let (ids, _) = client.enqueue(&requests, false).await?;
    let actions = "stop, start and reboot mixed";
    output::print(&format!(
        "inserted         {} in one transaction: {actions}\n",
        counted(ids.len(), "request")
    ))?;
    let named = ids
        .into_iter()
        .zip(requests.iter().map(|request| request.target.clone()));
    progress::to_the_end(&mut client, named).await?;
    let rows = client
        .list(&Filter {
            limit: u32::MAX,
            ..Filter::default()
        })
        .await?;
    client.close().await?;
    output::print(&format!("\n{}\n", progress::outcome_table(&rows)))?;
    let ledger = cloud.ledger();
    let calls = cloud.calls();
    let disagreements = agreement::disagreements(&rows, service_of, &ledger, &cloud.servers());
    for (name, service) in TARGETS {
        let of_it = calls.iter().filter(|call| call.service == Some(service));
        let (submits, others): (Vec<_>, Vec<_>) = of_it.partition(|call| call.action.is_some());
        let operations = ledger
            .iter()
            .filter(|entry| entry.service == service)
            .count();
        output::print(&format!(
            "{name:<9}{}, {}; the cloud carried out {}\n",
            counted(submits.len(), "submit call"),
            counted(others.len(), "other"),
            counted(operations, "operation"),
        ))?;
    }
    match disagreements.as_slice() {
        [] => {
            output::print(
                "\nEvery outcome agrees with what the cloud did; no server was rebooted twice.\n",
            )?;
            Ok(Exit::Done)
        }
        some => {
            output::print(&format!(
                "\nThe cloud did something else in {}:\n{}\n",
                counted(some.len(), "case"),
                some.join("\n")
            ))?;
            Ok(Exit::Otherwise)
        }
    }
}

fn service_of(target: &str) -> Option<Service> {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    found.map(|(_, service)| *service)
}

/// One request for each server of a target.
fn requests(cloud: &SimCloud, (target, service): &(&str, Service)) -> Vec<NewRequest> {
    let servers = cloud.server_ids(*service).into_iter();
    servers
        .zip(ACTIONS.into_iter().cycle())
        .map(|(server, action)| request(target, server, action))
        .collect()
}

fn request(target: &str, server: ServerId, action: PowerAction) -> NewRequest {
    NewRequest {
        server_id: server.0,
        action: action.as_str().to_owned(),
        target: target.to_owned(),
        priority: 0,
        not_before: None,
        expires_at: None,
        after_id: None,
        request_key: None,
        label: Some("demo".to_owned()),
        requested_by: Some("demo".to_owned()),
        override_reason: None,
    }
}

async fn start_cloud(bms: u32, clouddc: u32) -> Result<SimCloud, Failure> {
    let lost_answers = if clouddc > 0 { LOST_ANSWERS } else { "" };
    let text = format!(
        "{FAULTS}\n{lost_answers}\n[bms]\nservers = {bms}\nrunning = 0.6\n[clouddc]\nservers = {clouddc}\nrunning = 0.6\n"
    );
    let scenario = Scenario::from_toml(&text).map_err(|error| Failure::Usage(error.to_string()))?;
    SimCloud::start(([127, 0, 0, 1], 0).into(), scenario)
        .await
        .map_err(|source| Failure::File {
            what: "listen on 127.0.0.1".to_owned(),
            source,
        })
}

fn folder(dir: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let dir = dir.unwrap_or_else(|| {
        std::env::temp_dir().join(format!("poweryard-demo-{}", std::process::id()))
    });
    make_folder(&dir).map_err(|source| Failure::File {
        what: format!("use the folder {}", dir.display()),
        source,
    })
}

/// Makes it if it is missing, and returns its full path.
fn make_folder(dir: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    fs::canonicalize(dir)
}

/// Writes a config like an operator's, so that other commands can be tried after the demo.
fn write_config(dir: &Path, endpoint: &str) -> Result<PathBuf, Failure> {
    let default = Scenario::default().credentials;
    write(&dir.join("access-key"), &default.access_key)?;
    write(&dir.join("secret-key"), &default.secret_key)?;
    let mut text = format!("[queue]\ndatabase = \"{}/queue.db\"\n", dir.display());
    for (name, service) in TARGETS {
        text.push_str(&format!(
            r#"
[targets.{name}]
service = "{service}"
endpoint = "{endpoint}"
project_id = "{project}"
allow_http = true
submits_per_minute = 6000
first_look = "500ms"
look_interval_max = "1s"
settle_time = "3s"
look_time_limit = "20s"

[targets.{name}.auth]
kind = "aksk"
access_key_file = "{dir}/access-key"
secret_key_file = "{dir}/secret-key"
"#,
            dir = dir.display(),
            project = default.project_id,
        ));
    }
    let config = dir.join("poweryard.toml");
    write(&config, &text)?;
    Ok(config)
}

fn write(path: &Path, content: &str) -> Result<(), Failure> {
    write_private(path, content).map_err(|source| Failure::File {
        what: format!("write {}", path.display()),
        source,
    })
}

/// Only this user may read it.
fn write_private(path: &Path, content: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content.as_bytes())
}
