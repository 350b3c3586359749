//! What several commands take: which queue, ids, times and words. Opens the queue; has no SQL.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;

use super::{Context, Failure};
use crate::model::{PowerAction, RequestId, RequestState, UtcMillis};
use crate::settings::QueueSettings;
use crate::store::Desk;
use crate::store::desk::Access;

/// Which queue a command uses.
#[derive(Debug, clap::Args)]
pub(super) struct QueueArgs {
    /// The queue's file, instead of the one that the config names; the config is not read then.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

impl QueueArgs {
    /// The queue's file.
    pub(super) fn path(&self, context: &Context) -> Result<PathBuf, Failure> {
        let path = match &self.database {
            Some(path) => path.clone(),
            None => QueueSettings::load(&context.config)?.database,
        };
        Ok(context.queue.get_or_init(|| path).clone())
    }

    /// Opens the queue.
    pub(super) async fn open(&self, context: &Context, access: Access) -> Result<Desk, Failure> {
        Ok(Desk::open(&self.path(context)?, access).await?)
    }

    /// True if the config was not asked for.
    pub(super) fn is_named(&self) -> bool {
        self.database.is_some()
    }
}

/// `--json`.
#[derive(Debug, clap::Args)]
pub(super) struct JsonArg {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// The present moment, read once a command.
pub(super) fn now() -> UtcMillis {
    UtcMillis(Timestamp::now().as_millisecond())
}

/// `start`, `stop` or `reboot`.
pub(super) fn actions() -> impl TypedValueParser<Value = PowerAction> {
    PossibleValuesParser::new(PowerAction::ALL.iter().map(|action| action.as_str()))
        .try_map(|word| word.parse::<PowerAction>())
}

/// The states of a request.
pub(super) fn states() -> impl TypedValueParser<Value = RequestState> {
    PossibleValuesParser::new(RequestState::ALL.iter().map(|state| state.as_str()))
        .try_map(|word| word.parse::<RequestState>())
}

/// A span such as `90s` or `2h`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|error| format!("{error}; a span is written as 90s, 15m or 2h"))
}

/// A time ahead: `+2h` becomes the queue's own form; anything else is for the schema to read.
pub(super) fn ahead(text: &str, now: UtcMillis) -> Result<String, String> {
    match text.strip_prefix('+') {
        Some(ahead) => span(ahead).map(|ahead| (now + ahead).to_string()),
        None => Ok(text.to_owned()),
    }
}

/// A time past: `2h` is two hours ago; anything else is a time as a producer may write it.
pub(super) async fn past(desk: &mut Desk, text: &str, now: UtcMillis) -> Result<String, Failure> {
    if let Ok(ago) = span(text) {
        return Ok(now.before(ago).to_string());
    }
    desk.read_time(text).await?.ok_or_else(|| {
        Failure::Usage(format!(
            "--since {text}: neither a span such as 2h nor a UTC time such as 2026-01-31 or 2026-01-31 22:00"
        ))
    })
}

/// Ids as they were named, each once.
pub(super) fn unique(ids: &[RequestId]) -> Vec<i64> {
    let mut seen = BTreeSet::new();
    ids.iter().map(|id| id.0).filter(|id| seen.insert(*id)).collect()
}

/// Who asks: the login user, also behind sudo. None if the environment does not say.
pub(super) fn login_user() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .filter_map(std::env::var_os)
        .map(|name| name.to_string_lossy().into_owned())
        .find(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_ahead_is_relative_only_with_a_plus() {
        let now: UtcMillis = "2026-01-31T22:00:00.000Z".parse().expect("a time");
        assert_eq!(ahead("+2h", now).as_deref(), Ok("2026-02-01T00:00:00.000Z"));
        assert_eq!(ahead("2026-02-01 06:00", now).as_deref(), Ok("2026-02-01 06:00"));
        assert!(ahead("+2 parsecs", now).is_err());
    }
}
