//! `enqueue`: one request a server, all of them or none. Checks what the schema could only refuse without naming the place.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::args::{self, QueueArgs};
use super::wait::{self, Followed};
use super::{Context, Exit, Failure, output};
use crate::model::{PowerAction, RequestId, ServerId};
use crate::store::desk::{Access, NewRequest};

/// Insert requests, one a server, in one transaction; prints their ids, one a line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Times are UTC unless they carry an offset: 2026-01-31, '2026-01-31 22:00', 2026-01-31T22:00:00+01:00, or +2h from now.

Examples:
  poweryard enqueue stop 616fb98f-46ca-475e-917e-2563e5a8cd19
  poweryard enqueue reboot --from-file rack7.txt --label patch-day --not-before '2026-02-01 02:00' --expires-at '2026-02-01 05:00'
  poweryard enqueue start --from-file - --key wake-2026-02-01 --wait < servers.txt")]
pub(super) struct Args {
    /// What to do: start, stop or reboot. Stop and reboot are forced; the clouds have no soft ones.
    #[arg(value_parser = args::actions())]
    action: PowerAction,
    /// The servers' ids. A server may be named only once.
    #[arg(value_name = "SERVER")]
    servers: Vec<String>,
    /// More servers from a file, one id a line; `-` reads stdin. Blank lines and # comments are skipped.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// A [targets.NAME] of the daemon's config.
    #[arg(long, value_name = "NAME", default_value = "default")]
    target: String,
    /// Higher goes first, -100 to 100.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-100..=100))]
    priority: i64,
    /// Not sent before this time.
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Not sent after this time.
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Wait until this request has succeeded; cancelled if it ends in another way.
    #[arg(long, value_name = "ID")]
    after: Option<RequestId>,
    /// Refused if a request with this key exists, so that a call can be repeated safely. Several servers get KEY:SERVER.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Free text to find the requests by.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Who asks; by default the login user (SUDO_USER, USER or LOGNAME).
    #[arg(long, value_name = "TEXT")]
    requested_by: Option<String>,
    /// Follow the requests to their ends, and exit as `wait` does; the summary goes to stderr.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let requests = requests(&args, servers(&args)?)?;
    let mut desk = args.queue.open(context, Access::Write).await?;
    let ids = desk.enqueue(&requests).await?;
    let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
    output::print(&lines)?;
    if !args.wait {
        desk.close().await?;
        return Ok(Exit::Done);
    }
    let followed = Followed::to_the_end(&mut desk, ids, None).await?;
    output::note(wait::summary(&followed).trim_end());
    Ok(followed.exit())
}

/// The servers that were named, each once.
fn servers(args: &Args) -> Result<Vec<String>, Failure> {
    let mut servers = args.servers.clone();
    for server in &servers {
        check_server(server, "")?;
    }
    if let Some(file) = &args.from_file {
        servers.extend(listed(&read(file)?, &shown(file))?);
    }
    if servers.is_empty() {
        return Err(Failure::Usage("no server is named; give server ids or --from-file".to_owned()));
    }
    let mut seen = BTreeSet::new();
    match servers.iter().find(|server| !seen.insert(ServerId((*server).clone()))) {
        Some(twice) => Err(Failure::Usage(format!("server {twice} is named twice; each gets one request a call"))),
        None => Ok(servers),
    }
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() }
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let outcome = match file == Path::new("-") {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => std::fs::read_to_string(file),
    };
    outcome.map_err(|source| Failure::File { what: format!("read the servers from {}", shown(file)), source })
}

/// One id a line; `#` begins a comment.
fn listed(text: &str, file: &str) -> Result<Vec<String>, Failure> {
    let mut servers = Vec::new();
    // Editors on Windows leave a byte order mark in front.
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let id = line.split('#').next().unwrap_or_default().trim();
        if !id.is_empty() {
            check_server(id, &format!("{file}:{}: ", number + 1))?;
            servers.push(id.to_owned());
        }
    }
    Ok(servers)
}

fn check_server(id: &str, place: &str) -> Result<(), Failure> {
    match ServerId::is_valid(id) {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "{place}'{}' is no server id; one has 1 to 64 characters of A-Z a-z 0-9 and -",
            output::visible(id)
        ))),
    }
}

fn requests(args: &Args, servers: Vec<String>) -> Result<Vec<NewRequest>, Failure> {
    let now = args::now();
    let time = |option: &str, text: &Option<String>| {
        let read = text.as_deref().map(|text| args::ahead(text, now)).transpose();
        read.map_err(|problem| Failure::Usage(format!("{option}: {problem}")))
    };
    let not_before = time("--not-before", &args.not_before)?;
    let expires_at = time("--expires-at", &args.expires_at)?;
    let requested_by = args.requested_by.clone().or_else(args::login_user);
    let several = servers.len() > 1;
    let request = |server_id: String| NewRequest {
        action: args.action.as_str().to_owned(),
        target: args.target.clone(),
        priority: args.priority,
        not_before: not_before.clone(),
        expires_at: expires_at.clone(),
        after_id: args.after.map(|id| id.0),
        request_key: args.key.as_ref().map(|key| if several { format!("{key}:{server_id}") } else { key.clone() }),
        label: args.label.clone(),
        requested_by: requested_by.clone(),
        server_id,
    };
    Ok(servers.into_iter().map(request).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_have_comments_blanks_and_foreign_line_ends() {
        let text = "\u{feff}# rack 7\r\n\r\nserver-1\r\n  server-2  # the noisy one\n";
        assert_eq!(listed(text, "f").expect("two servers"), ["server-1", "server-2"]);
    }

    #[test]
    fn a_bad_line_is_named_by_file_and_number() {
        let error = listed("server-1\nserver 2\n", "rack.txt").expect_err("a blank inside");
        assert!(error.to_string().starts_with("rack.txt:2: 'server 2'"), "{error}");
    }
}
