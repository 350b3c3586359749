//! A hook that is a program: one JSON object on its stdin, a time limit, and an end for all that it started.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// So much of what it says on stderr stands in the log.
const STDERR_MAX: usize = 500;

/// Ends the program's whole group when dropped: a shell's children would live on otherwise.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Usually all of them have ended by themselves.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs `command` (a program and its arguments) with `text` on stdin.
///
/// # Errors
/// A sentence: it could not be started, ended with another code than 0, or took longer than `timeout`.
pub(super) async fn run(command: &[String], text: &str, timeout: Duration) -> Result<(), String> {
    let [program, args @ ..] = command else { return Err("there is no command".to_owned()) };
    let mut child = Command::new(program)
        .args(args)
        // They are about this process, not about its hooks.
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
    let _group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that does not read to the end is judged by its exit code alone.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
    };
    let listen = async {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(STDERR_MAX as u64).read_to_end(&mut said).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&said).trim().replace(char::is_control, " ")
    };
    let all = async { tokio::join!(feed, listen, child.wait()) };
    let Ok(((), said, ended)) = tokio::time::timeout(timeout, all).await else {
        return Err(format!("{program} took longer than {} and was ended", humantime::format_duration(timeout)));
    };
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if said.is_empty() => Err(format!("{program} ended with {status}")),
        Ok(status) => Err(format!("{program} ended with {status}: {said}")),
        Err(error) => Err(format!("{program} was lost: {error}")),
    }
}
