//! `simulate`: the simulated cloud alone, until it is stopped. Knows no queue and no config.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::serve::told_to_stop;
use super::{Exit, Failure, output};
use crate::sim::{Scenario, SimCloud};

/// Run the simulated cloud. The first line on stdout is its base URL.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
GET /_sim/ledger lists the operations that were really carried out, GET /_sim/servers the servers.

Example: poweryard simulate --listen 127.0.0.1:8080 --scenario config/scenario.toml")]
pub(super) struct SimulateArgs {
    /// Address to listen on; port 0 takes any free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A TOML file with servers, timing and faults; by default 1,000 BMS and 100 CloudDC servers
    /// and no faults.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
}

pub(super) async fn run(args: SimulateArgs) -> Result<Exit, Failure> {
    let scenario = match &args.scenario {
        Some(file) => read(file)?,
        None => Scenario::default(),
    };
    // Signals are caught before the URL is printed, so that one right after it is not missed.
    let stop = told_to_stop()?;
    let listening = SimCloud::start(args.listen, scenario).await;
    let cloud = listening.map_err(|source| Failure::File {
        what: format!("listen on {}", args.listen),
        source,
    })?;
    output::print(&format!("{}\n", cloud.base_url()))?;
    stop.await;
    cloud.stop().await;
    Ok(Exit::Done)
}

fn read(file: &Path) -> Result<Scenario, Failure> {
    let what = format!("read the scenario {}", file.display());
    let text = std::fs::read_to_string(file).map_err(|source| Failure::File {
        what: what.clone(),
        source,
    })?;
    Scenario::from_toml(&text).map_err(|error| Failure::Usage(format!("cannot {what}: {error}")))
}
