//! `db`: the queue's file itself. Refuses while a daemon runs on it.

use std::path::Path;

use clap::Subcommand;

use super::args::QueueArgs;
use super::output;
use super::{Context, Exit, Failure};
use crate::store::{Store, StoreError, daemon_info};

/// Look after the queue's file.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: DbCommand,
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    Migrate(MigrateArgs),
}

/// Create the queue, or bring its schema up to date.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard db migrate --database /var/lib/poweryard/queue.db")]
struct MigrateArgs {
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.command {
        DbCommand::Migrate(args) => migrate(&args.queue.path(context)?).await,
    }
}

async fn migrate(path: &Path) -> Result<Exit, Failure> {
    // No lock is taken: a lock file that root leaves behind would keep the daemon's own user out. Each migration is one
    // transaction, so a daemon that starts at this very moment does no harm.
    if let Some(daemon) = daemon_info(path) {
        return Err(StoreError::DaemonRuns { path: path.to_owned(), pid: daemon.pid.to_string() }.into());
    }
    Store::open(path).await?.close().await?;
    output::print(&format!("{} has the current schema\n", path.display()))?;
    Ok(Exit::Done)
}
