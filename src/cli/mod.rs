//! The command line: one file per command. Owns arguments, wording and exit codes; has no SQL and
//! decides nothing about power.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::builder::TypedValueParser;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::logging::{self, LogFormat};

mod approve;
mod args;
mod cancel;
mod check;
mod db;
mod demo;
mod enqueue;
mod explain;
mod failure;
mod generate;
mod inventory;
mod list;
mod output;
mod override_windows;
mod pause;
mod report;
mod retry;
mod serve;
mod servers;
mod show;
mod simulate;
mod status;
mod undo;
mod wait;

pub use failure::{Exit, Failure};

/// Where the config is unless another file is named.
const CONFIG: &str = "/etc/poweryard/poweryard.toml";

/// Carries out queued power requests for bare-metal servers.
#[derive(Debug, Parser)]
#[command(
    name = "poweryard",
    version,
    about,
    arg_required_else_help = true,
    max_term_width = 110
)]
#[command(
    after_help = "Example: poweryard enqueue stop 616fb98f-46ca-475e-917e-2563e5a8cd19 --wait"
)]
pub struct Cli {
    /// The config file.
    #[arg(long, global = true, value_name = "FILE", env = "POWERYARD_CONFIG")]
    #[arg(default_value = CONFIG, value_hint = clap::ValueHint::FilePath)]
    #[arg(value_parser = clap::builder::OsStringValueParser::new().map(config_file))]
    config: PathBuf,

    /// Format of the log lines on stderr; RUST_LOG sets their level (default info).
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

/// An empty variable counts as not set.
fn config_file(name: OsString) -> PathBuf {
    if name.is_empty() {
        PathBuf::from(CONFIG)
    } else {
        PathBuf::from(name)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Demo(demo::DemoArgs),
    Enqueue(enqueue::EnqueueArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Explain(explain::ExplainArgs),
    Status(status::StatusArgs),
    Report(report::ReportArgs),
    Inventory(inventory::InventoryArgs),
    Wait(wait::WaitArgs),
    Cancel(cancel::CancelArgs),
    Approve(approve::ApproveArgs),
    Retry(retry::RetryArgs),
    Undo(undo::UndoArgs),
    Override(override_windows::OverrideArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Check(check::CheckArgs),
    Db(db::DbArgs),
    Simulate(simulate::SimulateArgs),
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

/// What every command may need in addition to its own arguments.
#[derive(Debug)]
struct Context {
    /// `--config`.
    config: PathBuf,
    /// The queue that the command uses, once it is known; errors name it.
    queue: OnceLock<PathBuf>,
}

/// Runs the command that was asked for; an error goes to stderr as one sentence with its causes.
pub fn main(cli: Cli) -> ExitCode {
    let ended = start(cli).unwrap_or_else(|failure| {
        output::note(&failure.sentence());
        failure.exit()
    });
    ended.into()
}

fn start(cli: Cli) -> Result<Exit, Failure> {
    // The demo shows a progress bar and a table; log lines about its deliberate faults would hide
    // them.
    let level = if matches!(cli.command, Command::Demo(_)) {
        LevelFilter::ERROR
    } else {
        LevelFilter::INFO
    };
    logging::init(cli.log_format, level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    let context = Context {
        config: cli.config,
        queue: OnceLock::new(),
    };
    runtime
        .block_on(run(&context, cli.command))
        .map_err(|failure| match context.queue.get() {
            Some(queue) => failure.on(queue),
            None => failure,
        })
}

async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Serve(args) => serve::run(context, args).await,
        // Boxed because it contains a whole daemon.
        Command::Demo(args) => Box::pin(demo::run(context, args)).await,
        Command::Enqueue(args) => enqueue::run(context, args).await,
        Command::List(args) => list::run(context, args).await,
        Command::Show(args) => show::run(context, args).await,
        Command::Explain(args) => explain::run(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Report(args) => report::run(context, args).await,
        Command::Inventory(args) => inventory::run(context, args).await,
        Command::Wait(args) => wait::run(context, args).await,
        Command::Cancel(args) => cancel::run(context, args).await,
        Command::Approve(args) => approve::run(context, args).await,
        Command::Retry(args) => retry::run(context, args).await,
        Command::Undo(args) => undo::run(context, args).await,
        Command::Override(args) => override_windows::run(context, args).await,
        Command::Pause(args) => pause::pause(context, args).await,
        Command::Resume(args) => pause::resume(context, args).await,
        Command::Check(args) => check::run(context, args).await,
        Command::Db(args) => db::run(context, args).await,
        Command::Simulate(args) => simulate::run(args).await,
        Command::Generate(args) => generate::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_shows_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            let parts: Vec<_> = match sub.get_subcommands().count() {
                0 => vec![sub],
                _ => sub.get_subcommands().collect(),
            };
            for part in parts {
                let help = part
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    help.contains("poweryard "),
                    "{} has no example",
                    part.get_name()
                );
            }
        }
    }
}
