//! `db export`: what has ended, and what people did, as JSON lines.

use std::io::{self, Write};
use std::path::Path;

use super::ExportArgs;
use crate::cli::args::{self, past_of};
use crate::cli::{Context, Exit, Failure, output};
use crate::model::{UtcMillis, counted};
use crate::store::client::{Access, NewFile};
use crate::store::{ExportPlace, ExportSpan, QueueClient, StoreError};

/// Where the lines go.
enum To {
    Stdout,
    File(NewFile),
}

pub(super) async fn run(context: &Context, args: &ExportArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let span = span(&mut client, args).await?;
    let mut to = if args.to == Path::new("-") {
        To::Stdout
    } else {
        To::File(NewFile::create(&args.to, client.path())?)
    };
    let mut place = Some(ExportPlace::default());
    let mut outcomes = 0;
    while let Some(after) = place {
        let chunk = client.export_outcomes(span, &after).await?;
        outcomes += chunk.rows;
        if !to.write(&chunk.lines)? {
            return Ok(Exit::Done);
        }
        place = chunk.next;
    }
    let mut place = Some(ExportPlace::default());
    let mut actions = 0;
    while let Some(after) = place {
        let chunk = client.export_actions(span, &after).await?;
        actions += chunk.rows;
        if !to.write(&chunk.lines)? {
            return Ok(Exit::Done);
        }
        place = chunk.next;
    }
    client.close().await?;
    let (outcomes, actions) = (counted(outcomes, "outcome"), counted(actions, "action"));
    if let To::File(file) = to {
        file.finish()?;
        let to = args.to.display();
        output::print(&format!("wrote {outcomes} and {actions} to {to}\n"))?;
    }
    Ok(Exit::Done)
}

async fn span(client: &mut QueueClient, args: &ExportArgs) -> Result<ExportSpan, Failure> {
    let now = args::now();
    let mut span = ExportSpan {
        since: None,
        until: now,
    };
    if let Some(since) = &args.since {
        span.since = Some(time(&past_of(client, "--since", since, now).await?)?);
    }
    if let Some(until) = &args.until {
        span.until = time(&past_of(client, "--until", until, now).await?)?;
    }
    Ok(span)
}

fn time(text: &str) -> Result<UtcMillis, StoreError> {
    text.parse()
        .map_err(|error| StoreError::Unreadable(format!("{error}")))
}

impl To {
    /// False once nobody reads any more.
    fn write(&mut self, lines: &str) -> Result<bool, Failure> {
        match self {
            Self::File(file) => {
                file.write(lines)?;
                Ok(true)
            }
            Self::Stdout => match io::stdout().lock().write_all(lines.as_bytes()) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                Err(error) => Err(Failure::Output(error)),
            },
        }
    }
}
