//! The `sqlite3` that producers on this machine would use: one that is too old cannot open the
//! queue. Runs it only to get its version.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Finding;

/// Older libraries fail at the queue's schema.
const OLDEST: (u32, u32) = (3, 26);
const PATIENCE: Duration = Duration::from_secs(2);

/// One finding if there is a `sqlite3` on the path that says its version.
pub(super) async fn findings() -> Option<Finding> {
    let mut command = Command::new("sqlite3");
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .ok()?
        .ok()?;
    judge(
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .next()?,
    )
}

/// `version` as the shell prints it, such as `3.40.1`.
fn judge(version: &str) -> Option<Finding> {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let major = numbers.next()??;
    let minor = numbers.next()??;
    if (major, minor) >= OLDEST {
        return Some(Finding::ok(
            "sqlite3",
            format!(
                "this machine's sqlite3 is version {version}, which is new enough for producers"
            ),
        ));
    }
    let (least_major, least_minor) = OLDEST;
    let finding =
        format!("is version {version}; the queue needs {least_major}.{least_minor} or newer");
    let fix = "use a newer SQLite library, or insert with `poweryard enqueue`";
    Some(Finding::warning("sqlite3", finding, fix))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_shell_older_than_3_26_is_noticed() {
        let level = |version| judge(version).map(|finding| finding.level);
        assert_eq!(
            [level("3.26.0"), level("3.40.1"), level("4.0")],
            [Some(Level::Ok); 3]
        );
        assert_eq!(
            [level("3.7.17"), level("3.25.3")],
            [Some(Level::Warning); 2]
        );
        assert_eq!(level("what?"), None);
    }
}
