//! Completions: the shell runs the program with the words so far, and gets labels, targets, names
//! and ids from the queue. Silent and fast when there is no queue, or none that may be read.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::CompleteEnv;

use super::output::visible;
use super::{Cli, config_file};
use crate::settings::QueueSettings;
use crate::store::client::{Access, Meant, NewestText};
use crate::store::{QueueClient, StoreError};

/// The scripts of the shells set it to their name.
pub(super) const VARIABLE: &str = "POWERYARD_COMPLETE";

/// What is not there by then is not offered: somebody waits at the prompt.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a shell that asks for completions, and ends the process. Returns if none asks.
pub fn answer_shell() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// The command line, with what the queue can complete.
pub(super) fn command() -> Command {
    with_candidates(Cli::command())
}

/// What an argument stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArgumentKind {
    Label,
    Target,
    Server,
    Request(Meant),
    Newest(NewestText),
}

/// By the names of the arguments, which mean the same in every command.
fn with_candidates(command: Command) -> Command {
    let name = command.get_name().to_owned();
    let command = command.mut_args(|arg| match kind_of(&name, &arg) {
        Some(kind) => arg.add(ArgValueCompleter::new(move |current: &OsStr| {
            candidates(kind, current)
        })),
        None => arg,
    });
    command.mut_subcommands(with_candidates)
}

fn kind_of(command: &str, arg: &Arg) -> Option<ArgumentKind> {
    if !arg.get_action().takes_values() {
        return None;
    }
    match arg.get_id().as_str() {
        "label" => Some(ArgumentKind::Label),
        "target" => Some(ArgumentKind::Target),
        "server" | "servers" | "patterns" => Some(ArgumentKind::Server),
        "error" => Some(ArgumentKind::Newest(NewestText::ErrorCode)),
        "requested_by" => Some(ArgumentKind::Newest(NewestText::RequestedBy)),
        "id" | "ids" | "after" => Some(ArgumentKind::Request(match command {
            "cancel" | "approve" => Meant::Queued,
            "wait" | "enqueue" => Meant::Unfinished,
            "retry" => Meant::NotSucceeded,
            _ => Meant::Any,
        })),
        _ => None,
    }
}

/// What may follow; nothing after any error.
fn candidates(kind: ArgumentKind, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let is_bash = std::env::var_os("_CLAP_COMPLETE_COMP_TYPE").is_some();
    let typed = if is_bash {
        current.replace('\\', "")
    } else {
        current.to_owned()
    };
    let words: Vec<OsString> = std::env::args_os().collect();
    let found = found_in_time(kind, &typed, &words).unwrap_or_default();
    let safe = found.into_iter().filter(|(word, _)| is_typeable(word));
    safe.map(|(word, help)| {
        // The other shells do it themselves.
        let word = if is_bash { escaped(&word) } else { word };
        CompletionCandidate::new(word).help(help.map(|help| visible(&help).into()))
    })
    .collect()
}

/// The words, each with what it means, where that helps.
type FoundWords = Vec<(String, Option<String>)>;

fn found_in_time(kind: ArgumentKind, typed: &str, words: &[OsString]) -> Option<FoundWords> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .ok()?;
    let asked = async {
        let queue = queue_of(words)?;
        let mut client = QueueClient::open(&queue, Access::Read).await.ok()?;
        let found = ask(&mut client, kind, typed, words).await.ok();
        client.close().await.ok();
        found
    };
    let found = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.ok() });
    // A query that takes longer is not waited for.
    runtime.shutdown_background();
    found.flatten()
}

async fn ask(
    client: &mut QueueClient,
    kind: ArgumentKind,
    typed: &str,
    words: &[OsString],
) -> Result<FoundWords, StoreError> {
    let texts = match kind {
        ArgumentKind::Label => client.labels(typed).await?,
        ArgumentKind::Newest(column) => client.newest_texts(column, typed).await?,
        ArgumentKind::Target => {
            let mut names = client.target_names().await?;
            names.retain(|name| name.starts_with(typed));
            names
        }
        ArgumentKind::Server => {
            let target = value_of(words, &["--target", "-t"]);
            client.server_names(target.as_deref(), typed).await?
        }
        ArgumentKind::Request(meant) => {
            let requests = client.newest_requests(meant, typed).await?;
            let described = requests.into_iter().map(|request| {
                let help = format!("{} {}, {}", request.action, request.server, request.state);
                (request.id.to_string(), Some(help))
            });
            return Ok(described.collect());
        }
    };
    Ok(texts.into_iter().map(|text| (text, None)).collect())
}

/// The queue that the command would use.
fn queue_of(words: &[OsString]) -> Option<PathBuf> {
    if let Some(database) = value_of(words, &["--database"]) {
        return Some(PathBuf::from(database));
    }
    let config = value_of(words, &["--config"])
        .map(OsString::from)
        .or_else(|| std::env::var_os("POWERYARD_CONFIG"))
        .unwrap_or_default();
    let settings = QueueSettings::load(&config_file(config)).ok()?;
    Some(settings.database)
}

/// The value of an option in words that need not be a whole command line yet.
fn value_of(words: &[OsString], names: &[&str]) -> Option<String> {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let after = words
        .windows(2)
        .filter(|pair| names.contains(&pair[0]))
        .map(|pair| pair[1]);
    let joined = words.iter().filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        names.contains(&name).then_some(value)
    });
    after
        .chain(joined)
        .last()
        .filter(|value| !value.is_empty())
        .map(str::to_owned)
}

/// Labels and names are anybody's: what a line cannot hold is not offered.
fn is_typeable(word: &str) -> bool {
    !word.is_empty() && !word.chars().any(char::is_control)
}

/// As bash reads it as one word that means itself.
fn escaped(word: &str) -> String {
    let mut safe = String::with_capacity(word.len());
    for char in word.chars() {
        if char.is_ascii() && !char.is_ascii_alphanumeric() && !"-_.,:/@%+=".contains(char) {
            safe.push('\\');
        }
        safe.push(char);
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_with_candidates_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_are_found_in_half_a_command_line() {
        let line = words("poweryard -- poweryard list --target eu --database=/q.db -l");
        assert_eq!(value_of(&line, &["--target", "-t"]).as_deref(), Some("eu"));
        assert_eq!(value_of(&line, &["--database"]).as_deref(), Some("/q.db"));
        assert_eq!(value_of(&line, &["--config"]), None);
        assert_eq!(value_of(&words("list --target"), &["--target"]), None);
        assert_eq!(queue_of(&line), Some(PathBuf::from("/q.db")));
    }

    #[test]
    fn a_label_runs_nothing_when_bash_reads_it() {
        assert_eq!(escaped("patch-day"), "patch-day");
        assert_eq!(escaped("$(rm -rf *)"), "\\$\\(rm\\ -rf\\ \\*\\)");
        assert!(is_typeable("Größe 電") && !is_typeable("a\nb") && !is_typeable(""));
    }

    #[test]
    fn without_a_queue_nothing_is_offered_and_nothing_said() {
        let line = words("poweryard list --database /no/such.db");
        assert_eq!(found_in_time(ArgumentKind::Label, "", &line), None);
    }

    #[test]
    fn every_argument_for_a_label_or_target_is_completed() {
        fn count(command: &Command, id: &str) -> usize {
            let own = command
                .get_arguments()
                .filter(|arg| arg.get_id() == id && arg.get::<ArgValueCompleter>().is_some())
                .count();
            own + command
                .get_subcommands()
                .map(|sub| count(sub, id))
                .sum::<usize>()
        }
        for id in ["label", "target", "ids", "servers"] {
            assert!(count(&command(), id) > 0, "{id}");
        }
    }
}
