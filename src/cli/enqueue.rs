//! `enqueue`: one request per server, all of them or none. Checks what the schema would refuse
//! without saying which argument or line is wrong.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::args::{self, Asked, QueueArgs};
use super::servers::{self, Reading, Word};
use super::wait::{self, Followed};
use super::{Context, Exit, Failure, output};
use crate::model::{HoldKind, PowerAction, RequestId, UtcMillis, counted};
use crate::plan::windows::WindowState;
use crate::settings::Settings;
use crate::store::client::{Access, Cycle, NewOrder, NewRequest};
use crate::store::{QueueClient, StoreError};

/// Insert one request for each server, all in one transaction; print their ids, one per line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Times are UTC unless they have an offset: 2026-01-31, '2026-01-31 22:00', 2026-01-31T22:00:00+01:00, or +2h from now.
If a call with --key was interrupted, repeat it with --if-absent.
power-cycle prints the id of the stop, then that of the start, for each server. --after, --not-before and --expires-at are \
for the stop; the start waits for it. The keys are KEY:stop:SERVER and KEY:start:SERVER.

Examples:
  poweryard enqueue stop 616fb98f-46ca-475e-917e-2563e5a8cd19
  poweryard enqueue reboot --from-file rack7.txt --label patch --not-before +8h --expires-at +11h
  poweryard enqueue reboot --from-file fleet.txt --label kernel --waves 1,5%,25% --failures-max 2% --pause 10m
  poweryard enqueue start --from-file - --key wake-2026-02-01 --if-absent --wait < servers.txt")]
pub(super) struct EnqueueArgs {
    /// What to do: start, stop, reboot, or power-cycle: a stop, and a start once that has succeeded.
    /// Stop and reboot are always forced; the clouds have no soft ones.
    #[arg(value_parser = args::asked())]
    action: Asked,
    /// Ids, names, or globs over names ('gpu-*') of servers. A server may be named only once.
    #[arg(value_name = "SERVER")]
    servers: Vec<String>,
    /// Read more servers from a file, one per line; `-` reads stdin. Blank lines and # comments
    /// are skipped.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// Take every SERVER as an id, whatever the inventory says.
    #[arg(long)]
    ids: bool,
    /// A target of the daemon's config, [targets.NAME].
    #[arg(long, value_name = "NAME", default_value = "default")]
    target: String,
    /// -100 to 100; higher goes first.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    #[arg(value_parser = priority)]
    priority: i64,
    /// Do not send before this time.
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Do not send after this time; the requests expire then.
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Send only after this request has succeeded; cancel if it ends in another way.
    #[arg(long, value_name = "ID")]
    after: Option<RequestId>,
    /// Give each request the key KEY:SERVER. A request whose key exists is refused, so a call can
    /// be repeated safely.
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key: Option<String>,
    /// Skip servers whose key exists, and print the ids of the requests that have it.
    #[arg(long, requires = "key")]
    if_absent: bool,
    /// Free text by which the requests can be found.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Send in waves of so many servers, numbers or shares, of which the last repeats; the requests of
    /// the label are then an order.
    #[arg(long, value_name = "SIZES", requires = "label")]
    waves: Option<String>,
    /// The next wave does not leave if more servers of the order failed: a number or a share.
    #[arg(long, value_name = "N", requires = "waves")]
    failures_max: Option<String>,
    /// How long the next wave waits after the end of one, such as 90s or 10m.
    #[arg(long, value_name = "SPAN", requires = "waves")]
    pause: Option<String>,
    /// Who asks for this; by default the login user (SUDO_USER, USER or LOGNAME).
    #[arg(long, value_name = "TEXT")]
    requested_by: Option<String>,
    /// Send the requests outside windows and freezes, too; the reason is noted in the queue.
    #[arg(long, value_name = "TEXT")]
    override_reason: Option<String>,
    /// Wait until the requests have ended, and exit as `wait` does; the summary goes to stderr.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: EnqueueArgs) -> Result<Exit, Failure> {
    let words = words(&args)?;
    let mut client = args.queue.open(context, Access::Write).await?;
    let reading = Reading {
        target: &args.target,
        only_ids: args.ids,
    };
    let servers = servers::ids(&mut client, &words, reading).await?;
    let times = Times::read(&mut client, &args).await?;
    let order = order(&args, &times);
    let inserted = match args.action {
        Asked::Action(action) => {
            let requests = requests(&args, &times, &servers, action);
            client
                .enqueue_in(order.as_ref(), &requests, args.if_absent)
                .await
        }
        Asked::PowerCycle => {
            let cycles = cycles(&args, &times, &servers);
            client
                .enqueue_cycles(order.as_ref(), &cycles, args.if_absent)
                .await
        }
    };
    let (ids, skipped) = inserted.map_err(in_options)?;
    if let Some(warning) = args::stranger(context, &args.queue, &mut client, &args.target).await? {
        output::note(&warning);
    }
    if let Some(warning) = early_expiry(context, &args, &times, &mut client).await? {
        output::note(&warning);
    }
    if skipped > 0 {
        output::note(&format!(
            "note: skipped {}: the key exists; the id of the earlier request is printed",
            counted(skipped, "server")
        ));
    }
    let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
    output::print(&lines)?;
    if !args.wait {
        client.close().await?;
        return Ok(Exit::Done);
    }
    let followed = Followed::to_the_end(&mut client, ids.clone(), ids, None).await?;
    output::note(wait::summary(&followed).trim_end());
    Ok(followed.exit())
}

/// The order of a call with waves.
fn order(args: &EnqueueArgs, times: &Times) -> Option<NewOrder> {
    Some(NewOrder {
        label: args.label.clone()?,
        waves: args.waves.clone()?,
        failures_max: args.failures_max.clone(),
        pause: args.pause.clone(),
        expires_at: times.expires_at.clone(),
    })
}

/// The words that name servers, on the command line and in the file.
fn words(args: &EnqueueArgs) -> Result<Vec<Word>, Failure> {
    let mut words: Vec<Word> = args
        .servers
        .iter()
        .map(|server| Word::argument(server))
        .collect();
    if let Some(file) = &args.from_file {
        words.extend(listed(&read(file)?, &shown(file)));
    }
    if words.is_empty() {
        return Err(Failure::Usage(
            "no server given; name servers, or use --from-file".to_owned(),
        ));
    }
    Ok(words)
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let outcome = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    outcome.map_err(|source| Failure::File {
        what: format!("read the servers from {}", shown(file)),
        source,
    })
}

/// One server per line; `#` begins a comment, at the beginning or behind a blank.
fn listed(text: &str, file: &str) -> Vec<Word> {
    let mut words = Vec::new();
    // Editors on Windows leave a byte order mark in front.
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let word = without_comment(line).trim();
        if !word.is_empty() {
            words.push(Word::line(word, file, number + 1));
        }
    }
    words
}

fn without_comment(line: &str) -> &str {
    let mut hashes = line.match_indices('#').map(|(at, _)| at);
    let begins_comment = |at: &usize| {
        line[..*at]
            .chars()
            .next_back()
            .is_none_or(char::is_whitespace)
    };
    match hashes.find(begins_comment) {
        Some(at) => &line[..at],
        None => line,
    }
}

fn priority(text: &str) -> Result<i64, String> {
    let priority: Option<i64> = text.trim().parse().ok();
    let in_range = priority.filter(|priority| (-100..=100).contains(priority));
    in_range.ok_or_else(|| "a whole number from -100 to 100".to_owned())
}

/// The schema's sentences name columns, but the user knows the options.
fn in_options(error: StoreError) -> StoreError {
    let StoreError::Refused(mut sentence) = error else {
        return error;
    };
    for (column, option) in [
        ("not_before", "--not-before"),
        ("expires_at", "--expires-at"),
        ("after_id", "--after"),
        ("request_key must", "--key with the server must"),
        ("requested_by", "--requested-by"),
        ("label must", "--label must"),
        ("override_reason must", "--override-reason must"),
        ("target must", "--target must"),
        ("waves must", "--waves must"),
        ("failures_max must", "--failures-max must"),
        ("pause must", "--pause must"),
    ] {
        sentence = sentence.replace(column, option);
    }
    if sentence.contains("is already used by request") {
        sentence.push_str("; with --if-absent such servers are skipped");
    }
    StoreError::Refused(sentence)
}

/// The times of a call, in the queue's own form.
struct Times {
    not_before: Option<String>,
    expires_at: Option<String>,
}

impl Times {
    async fn read(client: &mut QueueClient, args: &EnqueueArgs) -> Result<Self, Failure> {
        let now = args::now();
        let mut times = Self {
            not_before: None,
            expires_at: None,
        };
        if let Some(text) = &args.not_before {
            times.not_before = Some(args::ahead(client, "--not-before", text, now).await?);
        }
        if let Some(text) = &args.expires_at {
            times.expires_at = Some(args::ahead(client, "--expires-at", text, now).await?);
        }
        Ok(times)
    }
}

/// A warning if the requests expire before the window of their action opens.
async fn early_expiry(
    context: &Context,
    args: &EnqueueArgs,
    times: &Times,
    client: &mut QueueClient,
) -> Result<Option<String>, Failure> {
    if args.override_reason.is_some() {
        return Ok(None);
    }
    let now = args::now();
    let settings = config(context, args);
    let time = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
    let due_at = time(&times.not_before).map_or(now, |at: UtcMillis| at.max(now));
    let expires_at = match time(&times.expires_at) {
        Some(at) => Some(at),
        None => client
            .usual_expiry(&args.target, args.label.as_deref(), due_at)
            .await?
            .or_else(|| Some(due_at + settings.as_ref()?.queue.default_ttl?)),
    };
    let Some(expires_at) = expires_at else {
        return Ok(None);
    };
    let closed = match window_in_config(settings.as_ref(), args, due_at) {
        Some(WindowState::Open { .. }) => None,
        Some(WindowState::Closed { until, why }) => Some((until, why)),
        // Without the config, what the daemon holds now is known.
        None => client
            .holds(now)
            .await?
            .into_iter()
            .filter(|hold| hold.kind == HoldKind::Window.as_str())
            .find(|hold| hold.covers(&args.target, args.action.first().as_str()))
            .map(|hold| (time(&hold.until), hold.reason)),
    };
    let closed = closed.filter(|(until, _)| until.is_none_or(|until| until >= expires_at));
    Ok(closed.map(|(_, why)| {
        output::visible(&format!(
            "warning: these requests expire at {expires_at}, before they can be sent: {why}; with --expires-at they wait longer, \
             with --override-reason they are sent anyway"
        ))
    }))
}

/// The config, if this user can read it and the queue is not named without it.
fn config(context: &Context, args: &EnqueueArgs) -> Option<Settings> {
    if args.queue.is_named() {
        return None;
    }
    Settings::load(&context.config).ok()
}

/// What the config says of the target's window at a time.
fn window_in_config(
    settings: Option<&Settings>,
    args: &EnqueueArgs,
    at: UtcMillis,
) -> Option<WindowState> {
    let mut targets = settings?.targets.iter();
    let target = targets.find(|target| target.name.0 == args.target)?;
    Some(target.windows.state(args.action.first(), at))
}

/// The keys are `K:stop:SERVER` and `K:start:SERVER`. A start waits for its stop and for nothing else,
/// and has no time of expiry of its own: a server that was switched off is to be switched on again.
fn cycles(args: &EnqueueArgs, times: &Times, servers: &[String]) -> Vec<Cycle> {
    let stops = requests(args, times, servers, PowerAction::Stop);
    let each = stops.into_iter().map(|stop| {
        let keyed = |action: PowerAction| {
            let key = args.key.as_ref()?;
            Some(format!("{key}:{action}:{}", stop.server_id))
        };
        let start = NewRequest {
            action: PowerAction::Start.as_str().to_owned(),
            request_key: keyed(PowerAction::Start),
            not_before: None,
            expires_at: None,
            after_id: None,
            ..stop.clone()
        };
        let request_key = keyed(PowerAction::Stop);
        let stop = NewRequest {
            request_key,
            ..stop.clone()
        };
        Cycle { stop, start }
    });
    each.collect()
}

fn requests(
    args: &EnqueueArgs,
    times: &Times,
    servers: &[String],
    action: PowerAction,
) -> Vec<NewRequest> {
    let requested_by = args.requested_by.clone().or_else(args::login_user);
    let mut requests = Vec::with_capacity(servers.len());
    for server_id in servers {
        requests.push(NewRequest {
            action: action.as_str().to_owned(),
            target: args.target.clone(),
            priority: args.priority,
            not_before: times.not_before.clone(),
            expires_at: times.expires_at.clone(),
            after_id: args.after.map(|id| id.0),
            request_key: args.key.as_ref().map(|key| format!("{key}:{server_id}")),
            label: args.label.clone(),
            requested_by: requested_by.clone(),
            override_reason: args.override_reason.clone(),
            server_id: server_id.clone(),
        });
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_have_comments_blanks_and_foreign_line_ends() {
        let text = "\u{feff}# rack 7\r\n\r\nserver-1\r\n  rack#7 left  # the noisy one\n";
        assert_eq!(
            listed(text, "f"),
            [
                Word::line("server-1", "f", 3),
                Word::line("rack#7 left", "f", 4)
            ]
        );
    }
}
