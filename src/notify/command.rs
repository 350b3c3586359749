//! A hook that is a program: it gets one JSON object on its stdin and a time limit, after which it
//! is killed with all that it started. Processes that it leaves in the background are not waited
//! for.

use std::pin::pin;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How much of its stderr is logged.
const STDERR_MAX: usize = 500;

/// How long the rest of its stderr is waited for once it has ended.
const STDERR_PATIENCE: Duration = Duration::from_millis(100);

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

/// Runs `command` (a program and its arguments) with `text` on stdin.
///
/// # Errors
/// A sentence: it could not be started, ended with another code than 0, or took longer than
/// `timeout`.
pub(super) async fn run(command: &[String], text: &str, timeout: Duration) -> Result<(), String> {
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
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let stdin = child.stdin.take();
    let stderr = child.stderr.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // If the program does not read all of it, only its exit code counts.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
    };
    let heard = Mutex::new(Vec::new());
    let listen = async {
        let Some(mut stderr) = stderr else { return };
        let mut part = [0; STDERR_MAX];
        while let Ok(length @ 1..) = stderr.read(&mut part).await {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let room = STDERR_MAX.saturating_sub(heard.len());
            heard.extend_from_slice(&part[..length.min(room)]);
        }
    };
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
        let _ = tokio::time::timeout(STDERR_PATIENCE, talk).await;
    }
    let said = one_line(&heard.lock().unwrap_or_else(PoisonError::into_inner));
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if said.is_empty() => Err(format!("{program} ended with {status}")),
        Ok(status) => Err(format!("{program} ended with {status}: {said}")),
        Err(error) => Err(format!("{program} was lost: {error}")),
    }
}

fn one_line(said: &[u8]) -> String {
    String::from_utf8_lossy(said)
        .trim()
        .replace(char::is_control, " ")
}
