//! Who else may read a secret file, and the command that takes that right away. Knows nothing of
//! what the file contains.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{SecretProblem, SecretRules};

const READABLE_BY_OTHERS: u32 = 0o004;
const READABLE_BY_GROUP: u32 = 0o040;

/// Refuses a file that others, or the queue's group, can read.
pub(super) fn check_readers(
    path: &Path,
    meta: &Metadata,
    rules: &SecretRules,
) -> Result<(), SecretProblem> {
    let mode = meta.mode() & 0o7777;
    let group_counts =
        rules.queue_groups.contains(&meta.gid()) && !rules.is_systemd_credential(path, meta.uid());
    let Some(readers) = foreign_readers(mode, group_counts) else {
        return Ok(());
    };
    let fix = fix_command(path, meta.uid(), own_user());
    Err(SecretProblem::Open {
        file: path.to_owned(),
        readers,
        mode,
        fix,
    })
}

/// Who else may read a file of this mode. `group_counts` if its group is the queue's; any other
/// group may read, because that is how a root-owned file is shared with the daemon's own account.
fn foreign_readers(mode: u32, group_counts: bool) -> Option<&'static str> {
    if mode & READABLE_BY_OTHERS != 0 {
        Some("everybody")
    } else if mode & READABLE_BY_GROUP != 0 && group_counts {
        Some("the queue's group, to which producers belong")
    } else {
        None
    }
}

/// With mode 600 only the owner can read the file, so a file of another user needs a new owner,
/// too.
fn fix_command(path: &Path, owner: u32, user: u32) -> String {
    let path = shell_quoted(path);
    if owner == user || user == 0 {
        format!("chmod 600 {path}")
    } else {
        format!("chown {user} {path} && chmod 600 {path}")
    }
}

pub(super) fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@');
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The user that this process runs as; Linux shows it as the owner of the process's own entry.
pub(super) fn own_user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |meta| meta.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_everybody_and_the_group_counts_only_if_it_is_the_queues() {
        assert_eq!(foreign_readers(0o644, false), Some("everybody"));
        assert_eq!(foreign_readers(0o640, false), None);
    }

    #[test]
    fn a_file_of_another_owner_needs_a_new_owner() {
        assert_eq!(
            fix_command(Path::new("/s"), 0, 990),
            "chown 990 /s && chmod 600 /s"
        );
        assert_eq!(fix_command(Path::new("/s"), 990, 0), "chmod 600 /s");
        assert_eq!(
            fix_command(Path::new("/a b'c"), 7, 7),
            r"chmod 600 '/a b'\''c'"
        );
    }
}
