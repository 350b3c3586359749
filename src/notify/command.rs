//! A program that is told or asked something: it gets one JSON object on its stdin and a time limit,
//! after which it is killed with all that it started. Processes that it leaves in the background are
//! not waited for.

use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How much is kept of what it says.
const SAID_MAX: usize = 500;

/// How long the rest of what it says is waited for once it has ended.
const SAID_PATIENCE: Duration = Duration::from_millis(100);

/// Kills the program's whole process group when dropped, unless the program has ended: otherwise a
/// shell's children would continue.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Usually all of them have ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Which part of what a program says is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The beginning of its stderr; its stdout goes nowhere.
    Beginning,
    /// The end of both.
    End,
}

/// Runs `command` (a program and its arguments) with `text` on stdin.
///
/// # Errors
/// A sentence: it could not be started, ended with another code than 0, or took longer than
/// `timeout`.
pub(super) async fn run(command: &[String], text: &str, timeout: Duration) -> Result<(), String> {
    let program = command.first().map(String::as_str).unwrap_or_default();
    let (status, said) = converse(command, text, timeout, Part::Beginning).await?;
    let said = one_line(&said);
    if status.success() {
        Ok(())
    } else if said.is_empty() {
        Err(format!("{program} ended with {status}"))
    } else {
        Err(format!("{program} ended with {status}: {said}"))
    }
}

/// As `run`, for a program that is asked something: 0 means yes.
///
/// # Errors
/// The last line that it has said, if it said anything; else as `run`.
pub(crate) async fn ask(command: &[String], text: &str, timeout: Duration) -> Result<(), String> {
    let program = command.first().map(String::as_str).unwrap_or_default();
    let (status, said) = converse(command, text, timeout, Part::End).await?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    match last {
        _ if status.success() => Ok(()),
        Some(line) => Err(line.replace(char::is_control, " ")),
        None => Err(format!("{program} ended with {status}")),
    }
}

async fn converse(
    command: &[String],
    text: &str,
    timeout: Duration,
    part: Part,
) -> Result<(ExitStatus, Vec<u8>), String> {
    let [program, args @ ..] = command else {
        return Err("there is no command".to_owned());
    };
    let mut child = Command::new(program)
        .args(args)
        // They concern this process, not its hooks.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(match part {
            Part::Beginning => Stdio::null(),
            Part::End => Stdio::piped(),
        })
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // If the program does not read all of it, only its exit code counts.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
    };
    let heard = Mutex::new(Vec::new());
    let listen = async { tokio::join!(hear(stdout, &heard, part), hear(stderr, &heard, part)) };
    let mut talk = pin!(async { tokio::join!(feed, listen) });
    // Only the program's own end counts. Children that it leaves behind may keep stdin and stderr
    // open.
    let end = async {
        let mut over = pin!(child.wait());
        tokio::select! {
            ended = &mut over => (ended, false),
            _ = &mut talk => (over.await, true),
        }
    };
    let Ok((ended, all_heard)) = tokio::time::timeout(timeout, end).await else {
        return Err(format!(
            "{program} took longer than {} and was killed",
            humantime::format_duration(timeout)
        ));
    };
    group.0 = None;
    if !all_heard {
        let _ = tokio::time::timeout(SAID_PATIENCE, talk).await;
    }
    let said = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    match ended {
        Ok(status) => Ok((status, said)),
        Err(error) => Err(format!("{program} was lost: {error}")),
    }
}

async fn hear(from: Option<impl AsyncRead + Unpin>, heard: &Mutex<Vec<u8>>, part: Part) {
    let Some(mut from) = from else { return };
    let mut some = [0; SAID_MAX];
    while let Ok(length @ 1..) = from.read(&mut some).await {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend_from_slice(&some[..length]);
        let surplus = heard.len().saturating_sub(SAID_MAX);
        match part {
            Part::Beginning => heard.truncate(SAID_MAX),
            Part::End => drop(heard.drain(..surplus)),
        }
    }
}

fn one_line(said: &[u8]) -> String {
    String::from_utf8_lossy(said)
        .trim()
        .replace(char::is_control, " ")
}
