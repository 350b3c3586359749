//! Copies of the queue: taken when a daemon has ended, and put back when a later one has, as after
//! a lost disk. What the copy lacks the next daemon cannot know: it holds everything unfinished
//! until somebody decides.

use std::path::Path;

use super::Machine;
use crate::simulator::facts::Facts;
use crate::simulator::{Broken, connect};
use poweryard::store::QueueClient;
use poweryard::store::client::{Access, Actor};

/// The queue's file as it was, and what was true then.
pub(super) struct Copy {
    file: Vec<u8>,
    facts: Facts,
    newest_entry: i64,
    /// Commits of daemons until then.
    commits: u64,
}

/// A daemon has ended: somebody may copy its queue now, or put the earlier copy back.
pub(super) async fn copy_or_restore(machine: &mut Machine<'_>) -> Result<(), Broken> {
    if !machine.rng.permille(machine.plan.rough.copies)
        || machine.locked_until.is_some()
        || machine.act_at.is_none()
    {
        return Ok(());
    }
    match machine.copy.take() {
        Some(copy) if machine.rng.permille(700) => restore(machine, copy).await,
        _ => take_copy(machine).await,
    }
}

async fn take_copy(machine: &mut Machine<'_>) -> Result<(), Broken> {
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut machine.connection)
        .await?;
    let file = std::fs::read(&machine.path)
        .map_err(|error| Broken(format!("cannot copy the queue: {error}")))?;
    machine.say(|| "somebody copies the queue".to_owned());
    machine.copy = Some(Copy {
        file,
        facts: machine.facts.clone(),
        newest_entry: machine.seen.1,
        commits: machine.fuse.commits(),
    });
    Ok(())
}

/// Nobody has the file open but the producers, and they reconnect.
async fn restore(machine: &mut Machine<'_>, copy: Copy) -> Result<(), Broken> {
    let elsewhere = machine.path.with_file_name("elsewhere.db");
    let nothing = connect_to_new(&elsewhere).await?;
    let connection = std::mem::replace(&mut machine.connection, nothing);
    sqlx::Connection::close(connection).await?;
    for ending in ["queue.db-wal", "queue.db-shm"] {
        let _ = std::fs::remove_file(machine.path.with_file_name(ending));
    }
    if machine.rng.permille(500) {
        let _ = std::fs::remove_file(&machine.path);
    }
    std::fs::write(&machine.path, &copy.file)
        .map_err(|error| Broken(format!("cannot restore: {error}")))?;
    let nothing = std::mem::replace(&mut machine.connection, connect(&machine.path).await?);
    sqlx::Connection::close(nothing).await?;
    let is_older = machine.fuse.commits() > copy.commits;
    let now = machine.moment();
    machine.facts.restored(&copy.facts, is_older, now);
    machine.seen = (machine.fuse.commits(), copy.newest_entry);
    machine.summary.restores += 1;
    let held = machine.facts.awaits_release;
    machine.say(|| format!("somebody puts the copy back; everything is to be held: {held}"));
    machine.copy = Some(copy);
    Ok(())
}

/// An operator decides about what a restore put on hold: it may go, or is dropped.
pub(super) async fn release(machine: &mut Machine<'_>) -> Result<(), Broken> {
    if machine.daemon.is_none() || !machine.facts.awaits_release || machine.locked_until.is_some() {
        return Ok(());
    }
    let failed = |error: poweryard::store::StoreError| Broken(format!("cannot release: {error}"));
    let dropped = machine.rng.permille(500);
    let mut connection = QueueClient::open(&machine.path, Access::Write)
        .await
        .map_err(failed)?;
    let actor = Actor {
        who: "an operator",
        reason: None,
    };
    let released = connection.release(actor, dropped).await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    machine.say(|| format!("an operator releases what was restored: {released:?}"));
    machine.acted = true;
    machine.learn().await?;
    if released.is_none() {
        return Err(Broken(
            "a copy was put back, and nothing was held".to_owned(),
        ));
    }
    machine.facts.awaits_release = false;
    machine.wake_at = Some(machine.now());
    machine.idle_rounds = 0;
    Ok(())
}

/// A connection to some other file.
async fn connect_to_new(path: &Path) -> Result<sqlx::SqliteConnection, Broken> {
    std::fs::write(path, [])
        .map_err(|error| Broken(format!("cannot write {}: {error}", path.display())))?;
    connect(path).await
}
