//! The modes of the queue's file and folder: who can lock the daemon out, or take the queue away.
//! Looks by path; opens nothing.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags};

use super::Finding;
use crate::cli::Exit;
use crate::cli::failure::group_name;
use crate::store::{beside, daemon_on, folder_of};

const OTHERS_WRITE: u32 = 0o002;
const OTHERS_READ: u32 = 0o004;
const GROUP_WRITE: u32 = 0o020;
const GROUP_READ_WRITE: u32 = 0o060;
const STICKY: u32 = 0o1000;
const SETGID: u32 = 0o2000;

/// What the modes of the folder, the database, its `-wal` and its `-shm` mean.
pub(super) fn findings(database: &Path) -> Vec<Finding> {
    let folder = folder_of(database);
    let mut findings = match fs::metadata(folder) {
        Err(error) => {
            return vec![unreadable(
                folder,
                &error,
                "create it with mode 3770 and the producers' group",
            )];
        }
        Ok(meta) if !meta.is_dir() => {
            let fix = "set queue.database to a file in an existing folder";
            return vec![Finding::error(
                Exit::Database,
                folder.display(),
                "is not a folder",
                fix,
            )];
        }
        Ok(meta) => vec![judge_folder(folder, mode(&meta))],
    };
    findings.extend(judge_access(folder, Access::WRITE_OK | Access::EXEC_OK));
    let folder_meta = fs::metadata(folder).ok();
    let shared = folder_meta
        .as_ref()
        .is_some_and(|meta| mode(meta) & GROUP_WRITE != 0);
    let group = folder_meta.filter(|_| shared).map(|meta| meta.gid());
    let owner = fs::metadata(database).ok().map(|meta| meta.uid());
    for path in [
        database.to_owned(),
        beside(database, "-wal"),
        beside(database, "-shm"),
    ] {
        match fs::metadata(&path) {
            Ok(meta) => {
                findings.push(judge_file(&path, mode(&meta), shared));
                findings.extend(judge_access(&path, Access::READ_OK | Access::WRITE_OK));
                findings.extend(judge_group(&path, meta.gid(), group, folder));
                findings.extend(judge_owner(
                    &path,
                    (meta.uid(), mode(&meta)),
                    owner,
                    database,
                ));
            }
            // A missing database is reported elsewhere; the others need not exist.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => findings.push(unreadable(&path, &error, "give this user access to it")),
        }
    }
    let lock = beside(database, ".lock");
    // While a daemon runs, only that daemon needs to write its lock file.
    if lock.exists() && daemon_on(database).known() != Some(true) {
        findings.extend(judge_access(&lock, Access::READ_OK | Access::WRITE_OK));
    }
    findings
}

/// Whether old requests can be written down before they are deleted.
pub(super) fn export_finding(dir: &Path) -> Finding {
    let fix =
        "create it, writable by the daemon's user; the unit of systemd needs it in ReadWritePaths=";
    match fs::metadata(dir) {
        Err(error) => unreadable(dir, &error, fix),
        Ok(meta) if !meta.is_dir() => {
            let finding = "is not a folder (queue.export_before_prune)";
            Finding::error(Exit::Database, dir.display(), finding, fix)
        }
        Ok(_) => judge_access(dir, Access::WRITE_OK | Access::EXEC_OK).unwrap_or_else(|| {
            Finding::ok(dir.display(), "takes old requests before they are deleted")
        }),
    }
}

/// The user who runs this must be able to write what the daemon writes.
fn judge_access(path: &Path, wanted: Access) -> Option<Finding> {
    let error = rustix::fs::accessat(rustix::fs::CWD, path, wanted, AtFlags::EACCESS).err()?;
    let finding = format!(
        "cannot be written by the user who runs this ({})",
        io::Error::from(error)
    );
    let fix = match fs::metadata(path) {
        Ok(meta) => {
            format!(
                "run this as user {}, or ask to be added to group {}",
                meta.uid(),
                group_name(meta.gid())
            )
        }
        Err(_) => "give this user write access to it".to_owned(),
    };
    Some(Finding::error(Exit::Database, path.display(), finding, fix))
}

fn mode(meta: &Metadata) -> u32 {
    meta.mode() & 0o7777
}

fn unreadable(path: &Path, error: &io::Error, fix: &str) -> Finding {
    Finding::error(
        Exit::Database,
        path.display(),
        format!("cannot be read ({error})"),
        fix,
    )
}

fn judge_folder(folder: &Path, mode: u32) -> Finding {
    let subject = folder.display();
    let fix = format!("chmod 3770 {subject}");
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Finding::error(
            Exit::Database,
            subject,
            format!("any user can replace the queue (mode {mode:04o})"),
            fix,
        );
    }
    if mode & GROUP_WRITE == 0 {
        return Finding::ok(
            subject,
            format!("only its owner can use the queue (mode {mode:04o})"),
        );
    }
    if mode & STICKY == 0 {
        return Finding::warning(
            subject,
            format!("a producer can delete the queue (mode {mode:04o}, not sticky)"),
            fix,
        );
    }
    if mode & SETGID == 0 {
        let finding = format!(
            "files that a producer creates get the producer's own group (mode {mode:04o}, not setgid)"
        );
        return Finding::warning(subject, finding, fix);
    }
    Finding::ok(
        subject,
        format!("producers can use the queue but not delete it (mode {mode:04o})"),
    )
}

fn judge_file(path: &Path, mode: u32, shared: bool) -> Finding {
    let subject = path.display();
    let fix = format!("chmod 660 {subject}");
    if mode & OTHERS_WRITE != 0 {
        let finding = format!("any user of this machine can switch servers (mode {mode:04o})");
        return Finding::error(Exit::Database, subject, finding, fix);
    }
    if mode & OTHERS_READ != 0 {
        return Finding::warning(
            subject,
            format!("any user of this machine can read it (mode {mode:04o})"),
            fix,
        );
    }
    if shared && mode & GROUP_READ_WRITE != GROUP_READ_WRITE {
        let finding =
            format!("the folder is shared, but the group cannot write this file (mode {mode:04o})");
        return Finding::warning(subject, finding, fix);
    }
    Finding::ok(subject, format!("mode {mode:04o}"))
}

/// In a shared folder the files must belong to the producers' group; otherwise only their owner can
/// use them.
fn judge_group(path: &Path, gid: u32, folder_gid: Option<u32>, folder: &Path) -> Option<Finding> {
    let folder_gid = folder_gid.filter(|folder_gid| *folder_gid != gid)?;
    let finding = format!(
        "belongs to group {gid}, but the folder belongs to group {folder_gid}: producers cannot use the file"
    );
    let fix = format!("chgrp --reference={} {}", folder.display(), path.display());
    Some(Finding::warning(path.display(), finding, fix))
}

/// A `-wal` that another user's program left, and that the queue's owner cannot write, locks the
/// daemon out.
fn judge_owner(
    path: &Path,
    (uid, mode): (u32, u32),
    owner: Option<u32>,
    database: &Path,
) -> Option<Finding> {
    let owner =
        owner.filter(|owner| *owner != uid && mode & GROUP_READ_WRITE != GROUP_READ_WRITE)?;
    let finding = format!(
        "belongs to user {uid}, and the queue's owner (user {owner}) cannot write it (mode {mode:04o})"
    );
    let path = path.display();
    let database = database.display();
    let fix = format!(
        "end the programs that have the queue open, then: chown --reference={database} {path} && chmod 660 {path}"
    );
    Some(Finding::error(Exit::Database, path, finding, fix))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_folder_is_shared_only_setgid_and_sticky() {
        let level = |mode| judge_folder(Path::new("/q"), mode).level;
        assert_eq!([0o3770, 0o700, 0o755].map(level), [Level::Ok; 3]);
        assert_eq!([0o2770, 0o1770, 0o770].map(level), [Level::Warning; 3]);
        assert_eq!(level(0o777), Level::Error);
    }

    #[test]
    fn a_file_of_another_group_and_a_wal_that_somebody_left_are_noticed() {
        let folder = Path::new("/q");
        let database = Path::new("/q/queue.db");
        let wal = Path::new("/q/queue.db-wal");
        assert_eq!(judge_group(database, 50, Some(50), folder), None);
        assert_eq!(
            judge_group(database, 50, None, folder),
            None,
            "nobody shares it"
        );
        let fix = judge_group(database, 0, Some(50), folder).and_then(|finding| finding.fix);
        assert_eq!(fix.as_deref(), Some("chgrp --reference=/q /q/queue.db"));
        assert_eq!(
            judge_owner(wal, (1000, 0o660), Some(900), database),
            None,
            "the group lets both write"
        );
        assert_eq!(judge_owner(wal, (900, 0o600), Some(900), database), None);
        let left = judge_owner(wal, (1000, 0o644), Some(900), database).expect("a finding");
        assert!(
            left.level == Level::Error
                && left
                    .fix
                    .is_some_and(|fix| fix.contains("chown --reference=/q/queue.db"))
        );
    }

    #[test]
    fn a_wal_that_the_group_cannot_write_is_noticed() {
        let level = |mode, shared| judge_file(Path::new("/q/queue.db-wal"), mode, shared).level;
        assert_eq!(level(0o660, true), Level::Ok);
        assert_eq!(level(0o640, true), Level::Warning);
        assert_eq!(level(0o640, false), Level::Ok);
        assert_eq!(level(0o666, true), Level::Error);
    }
}
