//! `db`: the queue's file itself: its schema, a copy, old rows, and what a restore put on hold.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::args::{self, QueueArgs, ReasonArg};
use super::output;
use super::{Context, Exit, Failure};
use crate::daemon;
use crate::model::counted;
use crate::settings::QueueSettings;
use crate::store::client::Access;
use crate::store::{Prune, Running, Store, daemon_on};

mod export;

/// Pause between two steps of a prune, in which producers can write.
const STEP_PAUSE: Duration = Duration::from_millis(20);

/// Maintain the queue's file.
#[derive(Debug, clap::Args)]
pub(super) struct DbArgs {
    #[command(subcommand)]
    command: DbCommand,
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    Migrate(MigrateArgs),
    Backup(BackupArgs),
    Export(ExportArgs),
    Prune(PruneArgs),
    Release(ReleaseArgs),
}

/// Write what has ended, with its attempts, and what people did, as JSON lines.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line is an object with its \"type\": first all outcomes in the order of their ends, behind each its attempts; then all \
actions (operator_actions) in the order of their times. FILE has mode 0600 and is replaced in one step. For exports that \
follow each other without gap, give --until a time that is a minute past.

Examples:
  poweryard db export /var/backups/poweryard/2026-01.jsonl --since 2026-01-01 --until 2026-02-01
  poweryard db export - --since 24h")]
struct ExportArgs {
    /// The file to write; `-`: stdout.
    #[arg(value_name = "FILE")]
    to: PathBuf,
    /// What ended or was done at this time or later: a UTC time, or 2h for two hours ago.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// What ended or was done before this time; without it, before now.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    queue: QueueArgs,
}

/// Create the queue, or bring its schema up to date. Refused while a daemon runs on it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard db migrate --database /var/lib/poweryard/queue.db")]
struct MigrateArgs {
    #[command(flatten)]
    queue: QueueArgs,
}

/// Write a checked copy of the queue, even while the daemon and producers use it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The copy has mode 0600. It replaces FILE in one step after it has passed SQLite's integrity check. To restore it: stop the \
daemon; remove queue.db, queue.db-wal and queue.db-shm; copy FILE to queue.db with the owner, group and mode of the old \
file; leave queue.db.epoch where it is; start the daemon. Unfinished requests are then on hold: see `poweryard db release`.

Example: poweryard db backup /var/backups/poweryard/queue.db")]
struct BackupArgs {
    /// The file to write.
    #[arg(value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    queue: QueueArgs,
}

/// Delete requests that ended long ago, with their attempts and batches, in small steps.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --older-than the config's queue.retention applies, which the daemon also applies automatically. Requests that \
another one still waits for (after_id) stay, and so do batches that still count in a budget of their target.
With queue.export_before_prune what is deleted is written down first; exit code 3 if that fails, and the rest stays. With \
--database the folder is the one that the daemon uses.

Example: poweryard db prune --older-than 30d")]
struct PruneArgs {
    /// Delete requests that ended longer ago than this, such as 30d.
    #[arg(long, value_name = "TIME", value_parser = args::span)]
    older_than: Option<Duration>,
    #[command(flatten)]
    queue: QueueArgs,
}

/// Release or cancel the requests that were put on hold after a restore.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A daemon that is started on an older copy of the queue sends nothing, because requests that are queued in the copy may have \
been carried out since. Look at `poweryard list --state queued` first. New requests get higher ids than any given before.

Example: poweryard db release --drop")]
struct ReleaseArgs {
    /// Cancel what was queued in the copy; only requests inserted later are sent.
    #[arg(long)]
    drop: bool,
    #[command(flatten)]
    reason: ReasonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: DbArgs) -> Result<Exit, Failure> {
    match args.command {
        DbCommand::Migrate(args) => migrate(&args.queue.path(context)?).await,
        DbCommand::Backup(args) => backup(context, &args).await,
        DbCommand::Export(args) => export::run(context, &args).await,
        DbCommand::Prune(args) => prune(context, &args).await,
        DbCommand::Release(args) => release(context, &args).await,
    }
}

async fn backup(context: &Context, args: &BackupArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    client.backup(&args.to, args::now()).await?;
    client.close().await?;
    output::print(&format!("wrote a checked copy to {}\n", args.to.display()))?;
    Ok(Exit::Done)
}

async fn prune(context: &Context, args: &PruneArgs) -> Result<Exit, Failure> {
    let settings = if args.queue.is_named() {
        None
    } else {
        Some(QueueSettings::load(&context.config)?)
    };
    let age = match (args.older_than, &settings) {
        (Some(age), _) => Some(age),
        (None, Some(settings)) => settings.retention,
        (None, None) => {
            return Err(Failure::Usage(
                "with --database the config is not read; give --older-than, too".to_owned(),
            ));
        }
    };
    let Some(age) = age else {
        output::print("queue.retention is \"forever\": nothing is deleted\n")?;
        return Ok(Exit::Done);
    };
    let mut client = args.queue.open(context, Access::Write).await?;
    // What is recorded is as old as the daemon would say, even if somebody has just set the clock.
    let now = client.dated(daemon::now()).await?;
    let cutoff = now.before(age);
    let export_to = match settings {
        Some(settings) => settings.export_before_prune,
        // Without the config, what the daemon does counts.
        None => client.export_note().await?.dir.map(PathBuf::from),
    };
    let mut prune = Prune::default();
    while !prune.done {
        prune = client
            .prune(prune, cutoff, now, export_to.as_deref())
            .await?;
        tokio::time::sleep(STEP_PAUSE).await;
    }
    client.close().await?;
    let requests = counted(prune.requests, "request");
    let batches = counted(prune.batches, "batch");
    let before = export_to
        .map(|dir| format!("; they were written to {} first", dir.display()))
        .unwrap_or_default();
    output::print(&format!(
        "deleted {requests} and {batches} that ended before {cutoff}{before}\n"
    ))?;
    Ok(Exit::Done)
}

async fn release(context: &Context, args: &ReleaseArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let released = client
        .release(args.reason.actor(&args::who()), args.drop)
        .await?;
    client.close().await?;
    output::print(&match (released, args.drop) {
        (None, _) => "nothing is on hold after a restore\n".to_owned(),
        (Some(_), false) => {
            "released: requests that were queued in the restored copy can be sent now\n".to_owned()
        }
        (Some(cancelled), true) => {
            format!(
                "released: cancelled {} that were queued in the restored copy\n",
                counted(cancelled, "request")
            )
        }
    })?;
    Ok(Exit::Done)
}

async fn migrate(path: &Path) -> Result<Exit, Failure> {
    // No lock is taken: each migration is one transaction, so a daemon that starts at the same time
    // does no harm.
    if let running @ Running::Yes(_) = daemon_on(path) {
        return Err(Failure::StopFirst {
            path: path.to_owned(),
            pid: running.pid(),
        });
    }
    Store::open(path).await?.close().await?;
    output::print(&format!("{} has the current schema\n", path.display()))?;
    Ok(Exit::Done)
}
