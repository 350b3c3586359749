//! `serve`: the daemon, until it is told to stop. Reads config and secrets, catches signals; the rest is `daemon`.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Context, Exit, Failure};
use crate::daemon;
use crate::settings::{SecretRules, Settings};

/// Run the daemon: take in requests, submit them in batches, follow them, store what became of each.
///
/// Ends on SIGTERM or SIGINT once the calls in flight are answered and stored.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard --config /etc/poweryard/poweryard.toml serve")]
pub(super) struct Args {}

pub(super) async fn run(context: &Context, Args {}: Args) -> Result<Exit, Failure> {
    let settings = Settings::load(&context.config)?;
    let clouds = daemon::connect_all(&settings, &SecretRules::from_env(&settings.queue.database))?;
    daemon::run(&settings, clouds, told_to_stop()?).await?;
    Ok(Exit::Done)
}

/// Resolves on SIGTERM or SIGINT. The signals are caught from this call on.
pub(super) fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let catch = |kind| signal(kind).map_err(Failure::Runtime);
    let (mut terminate, mut interrupt): (Signal, Signal) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
