//! Arguments that several commands share: the queue, ids, times and words. Opens the queue; has no
//! SQL.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};
use jiff::Timestamp;

use super::{COMMON_OPTIONS, Context, Failure, output};
use crate::model::{PowerAction, RequestId, RequestState, UtcMillis};
use crate::settings::{QueueSettings, Settings};
use crate::store::QueueClient;
use crate::store::client::{Access, Actor, Selection};

/// Which queue a command uses; by default the one of the config.
#[derive(Debug, Default, clap::Args)]
pub(super) struct QueueArgs {
    /// The queue's file. Without it, the config says which file; with it, the config is not read.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    #[arg(help_heading = COMMON_OPTIONS)]
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
    pub(super) async fn open(
        &self,
        context: &Context,
        access: Access,
    ) -> Result<QueueClient, Failure> {
        Ok(QueueClient::open(&self.path(context)?, access).await?)
    }

    /// True if `--database` names the queue, so that the config is not read.
    pub(super) fn is_named(&self) -> bool {
        self.database.is_some()
    }
}

/// The config, if this user can read it and the queue is not named without it.
pub(super) fn settings(context: &Context, queue: &QueueArgs) -> Option<Settings> {
    if queue.is_named() {
        return None;
    }
    Settings::load(&context.config).ok()
}

/// Which queued requests are meant.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "label", "target"]))]
pub(super) struct QueuedArgs {
    /// The requests' ids.
    #[arg(value_name = "ID")]
    ids: Vec<RequestId>,
    /// All queued requests with exactly this label.
    #[arg(long, short, value_name = "TEXT")]
    label: Option<String>,
    /// All queued requests of this target and --action.
    #[arg(long, short, value_name = "NAME", requires = "action")]
    target: Option<String>,
    /// start, stop or reboot; with --target.
    #[arg(long, value_name = "ACTION", value_parser = actions(), requires = "target")]
    action: Option<PowerAction>,
}

impl QueuedArgs {
    pub(super) fn selection(&self) -> Selection {
        Selection {
            ids: (!self.ids.is_empty()).then(|| unique(&self.ids)),
            label: self.label.clone(),
            target: self.target.clone(),
            action: self.action,
            ..Selection::default()
        }
    }
}

/// `--json`.
#[derive(Debug, clap::Args)]
pub(super) struct JsonArg {
    /// Print the result as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// The present time; each command reads it once.
pub(super) fn now() -> UtcMillis {
    UtcMillis(Timestamp::now().as_millisecond())
}

/// `start`, `stop` or `reboot`.
pub(super) fn actions() -> impl TypedValueParser<Value = PowerAction> {
    ActionParser {
        words: &["start", "stop", "reboot"],
        read: |word| word.parse().ok(),
    }
}

/// What `enqueue` takes.
pub(super) fn asked() -> impl TypedValueParser<Value = Asked> {
    ActionParser {
        words: &["start", "stop", "reboot", POWER_CYCLE],
        read: |word| match word {
            POWER_CYCLE => Some(Asked::PowerCycle),
            _ => word.parse().ok().map(Asked::Action),
        },
    }
}

const POWER_CYCLE: &str = "power-cycle";

/// What is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// One request.
    Action(PowerAction),
    /// A stop, and a start that waits for it.
    PowerCycle,
}

/// A parser of our own, because clap suggests the word with the most similar letters, and that may
/// be another action: restart is not start.
#[derive(Debug, Clone, Copy)]
struct ActionParser<T> {
    words: &'static [&'static str],
    read: fn(&str) -> Option<T>,
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for ActionParser<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        _: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let word = value.to_string_lossy();
        (self.read)(&word).ok_or_else(|| {
            let hint = action_hint(&word, self.words.contains(&POWER_CYCLE))
                .map(|hint| format!("; {hint}"))
                .unwrap_or_default();
            let word = output::visible(&word);
            let known = one_of(self.words);
            let sentence = format!("invalid value '{word}': an action is {known}{hint}\n");
            clap::Error::raw(ErrorKind::InvalidValue, sentence).with_cmd(command)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.words.iter().copied().map(PossibleValue::new)))
    }
}

/// Such as `start, stop or reboot`.
fn one_of(words: &[&str]) -> String {
    match words {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        _ => words.join(", "),
    }
}

/// The right word for what the user means, never one for another action.
fn action_hint(word: &str, knows_cycles: bool) -> Option<&'static str> {
    match word.to_lowercase().replace(['-', '_', ' '], "").as_str() {
        "reboot" | "restart" | "reset" => Some("use reboot"),
        "stop" | "off" | "shutdown" | "halt" | "poweroff" | "down" => Some("use stop"),
        "start" | "on" | "poweron" | "up" => Some("use start"),
        "cycle" | "powercycle" if knows_cycles => Some("use power-cycle"),
        "cycle" | "powercycle" => Some("a power cycle is a stop and a start"),
        _ => None,
    }
}

/// The states of a request.
pub(super) fn states() -> impl TypedValueParser<Value = RequestState> {
    PossibleValuesParser::new(RequestState::ALL.iter().map(|state| state.as_str()))
        .try_map(|word| word.parse::<RequestState>())
}

/// A duration such as `90s` or `2h`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|error| format!("{error}; write a duration such as 90s, 15m or 2h"))
}

/// What an option for a time accepts.
const TIME_FORMS: &str = "a UTC time such as 2026-01-31, '2026-01-31 22:00' or 2026-01-31T22:00:00+01:00 (a real date from 2000 to \
     2099, optionally with a time)";

/// A time ahead in the queue's own form: `+2h` or `2h` from now, or a time as a producer may write
/// it. `option` is named in the error.
pub(super) async fn ahead(
    client: &mut QueueClient,
    option: &str,
    text: &str,
    now: UtcMillis,
) -> Result<String, Failure> {
    if let Ok(ahead) = span(text.strip_prefix('+').unwrap_or(text)) {
        return Ok((now + ahead).to_string());
    }
    client.read_time(&sqlite_time(text)).await?.ok_or_else(|| {
        let text = output::visible(text);
        Failure::Usage(format!(
            "{option} {text}: write a time from now such as +2h, or {TIME_FORMS}"
        ))
    })
}

/// A time past: `2h` is two hours ago; anything else is a time as a producer may write it.
pub(super) async fn past(
    client: &mut QueueClient,
    text: &str,
    now: UtcMillis,
) -> Result<String, Failure> {
    past_of(client, "--since", text, now).await
}

/// As `past`; `option` is named in the error.
pub(super) async fn past_of(
    client: &mut QueueClient,
    option: &str,
    text: &str,
    now: UtcMillis,
) -> Result<String, Failure> {
    if let Ok(ago) = span(text) {
        return Ok(now.before(ago).to_string());
    }
    client.read_time(&sqlite_time(text)).await?.ok_or_else(|| {
        Failure::Usage(format!(
            "{option} {}: write a duration such as 2h (two hours ago), or {TIME_FORMS}",
            output::visible(text)
        ))
    })
}

/// Rewrites the forms that the schema accepts but SQLite does not: t and z, ` UTC`, +0100 and +01.
fn sqlite_time(text: &str) -> String {
    let Some((day, rest)) = text.split_at_checked(10) else {
        return text.to_owned();
    };
    let rest = rest.to_ascii_uppercase();
    if let Some(time) = rest.strip_suffix(" UTC") {
        return format!("{day}{time}Z");
    }
    let Some(sign) = rest.rfind(['+', '-']) else {
        return format!("{day}{rest}");
    };
    let (time, offset) = rest.split_at(sign);
    match offset.len() {
        3 => format!("{day}{time}{offset}:00"),
        5 if offset.is_ascii() => format!("{day}{time}{}:{}", &offset[..3], &offset[3..]),
        _ => format!("{day}{rest}"),
    }
}

/// A warning about a target that is known neither to the config nor to the last daemon: a user who
/// mistypes a name believes that something is held or will be sent. None if no target is known at
/// all.
pub(super) async fn stranger(
    context: &Context,
    queue: &QueueArgs,
    client: &mut QueueClient,
    target: &str,
) -> Result<Option<String>, Failure> {
    let mut known: BTreeSet<String> = client
        .targets(now())
        .await?
        .into_iter()
        .map(|note| note.target)
        .collect();
    if !queue.is_named() {
        // If this user cannot read the config, or it has mistakes, only the daemon's note counts.
        let settings = Settings::load(&context.config).ok();
        known.extend(
            settings
                .into_iter()
                .flat_map(|settings| settings.targets)
                .map(|target| target.name.to_string()),
        );
    }
    Ok(stranger_among(target, &known))
}

fn stranger_among(target: &str, known: &BTreeSet<String>) -> Option<String> {
    if known.is_empty() || known.contains(target) {
        return None;
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Some(output::visible(&format!(
        "warning: there is no target {target} in the config, so its requests are held; known targets: {}",
        known.join(", ")
    )))
}

/// The ids in the order given, without repetitions.
pub(super) fn unique(ids: &[RequestId]) -> Vec<i64> {
    let mut seen = BTreeSet::new();
    ids.iter()
        .map(|id| id.0)
        .filter(|id| seen.insert(*id))
        .collect()
}

/// Who asks: the login user, also with sudo. If the environment does not say, the user's name from
/// /etc/passwd.
pub(super) fn login_user() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .filter_map(std::env::var_os)
        .map(|name| name.to_string_lossy().into_owned())
        .find(|name| !name.is_empty())
        .or_else(|| {
            let users = std::fs::read_to_string("/etc/passwd").ok()?;
            name_of(&users, rustix::process::getuid().as_raw())
        })
}

/// Who does something, as it is stored.
pub(super) fn who() -> String {
    login_user().unwrap_or_else(|| "an operator".to_owned())
}

/// `--reason`.
#[derive(Debug, clap::Args)]
pub(super) struct ReasonArg {
    /// Why; kept in operator_actions with who did it.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl ReasonArg {
    /// Who does it, and why.
    pub(super) fn actor<'a>(&'a self, who: &'a str) -> Actor<'a> {
        Actor {
            who,
            reason: self.reason.as_deref(),
        }
    }
}

/// The name of a user id, from the text of /etc/passwd.
fn name_of(users: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let user = users
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&uid))?;
    user.split(':').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_never_another_action() {
        for (word, hint) in [
            ("restart", "reboot"),
            ("OFF", "stop"),
            ("power-off", "stop"),
            ("on", "start"),
            ("Stop", "stop"),
        ] {
            assert_eq!(
                action_hint(word, true),
                Some(format!("use {hint}").as_str()),
                "{word}"
            );
        }
        assert_eq!(action_hint("explode", true), None);
        assert_eq!(action_hint("cycle", true), Some("use power-cycle"));
        assert!(
            action_hint("cycle", false).is_some_and(|hint| hint.contains("a stop and a start"))
        );
    }

    #[test]
    fn times_are_brought_to_the_forms_that_sqlite_reads() {
        for (written, read) in [
            ("2026-01-31", "2026-01-31"),
            ("2026-01-31t22:00z", "2026-01-31T22:00Z"),
            ("2026-01-31 22:00 UTC", "2026-01-31 22:00Z"),
            ("2026-01-31 22:00 +0100", "2026-01-31 22:00 +01:00"),
            ("2026-01-31 22:00-01", "2026-01-31 22:00-01:00"),
            ("2026-01-31 22:00+01:00", "2026-01-31 22:00+01:00"),
            ("22:00", "22:00"),
        ] {
            assert_eq!(sqlite_time(written), read);
        }
    }

    #[test]
    fn a_mistyped_target_is_warned_about_where_any_is_known() {
        let known = BTreeSet::from(["default".to_owned(), "eu".to_owned()]);
        assert_eq!(stranger_among("eu", &known), None);
        assert_eq!(stranger_among("eu", &BTreeSet::new()), None);
        let warning = stranger_among("defualt", &known).expect("a warning");
        assert!(
            warning.contains("defualt") && warning.contains("default, eu"),
            "{warning}"
        );
    }

    #[test]
    fn a_user_id_has_its_name_from_the_list_of_users() {
        let users = "root:x:0:0::/root:/bin/sh\nops:x:1000:1000::/home/ops:/bin/sh\n";
        assert_eq!(name_of(users, 1000).as_deref(), Some("ops"));
        assert_eq!(name_of(users, 7), None);
    }
}
