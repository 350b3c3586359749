//! The commands' side of the queue: clients like any producer. Creates nothing, changes no pragma
//! that stays in the file, and stays away from what only the daemon writes.
//!
//! Here is what a command can do; the SQL of it is in plain functions over a connection, by what
//! they are about. Values that strangers wrote are read as bytes and shown as well as they go; one odd value never
//! hides the rest.

use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::sqlite::{BUSY_TIMEOUT, clocks, export, holds, schema};
use super::{
    ExportChunk, ExportNote, ExportPlace, ExportSpan, Prune, RefusedKey, StoreError, write_export,
};
use crate::model::{LetGo, Now, UtcMillis};
use std::collections::BTreeMap;

mod actions;
mod approve;
mod backup;
mod candidates;
mod follow;
mod forecast;
mod glance;
mod label;
mod names;
mod new_file;
mod orders;
mod overview;
mod pages;
mod pauses;
mod read;
mod records;
mod selection;
mod submission;
mod undo;
mod watch;
mod write;

pub use actions::{Actor, Done, RequestResult};
pub use approve::{Approval, ApprovalCount, Unapproved, another_number};
pub use candidates::{Meant, NewestText, RequestCandidate};
pub use follow::{FollowedBatch, OpenRequest, UnsentReason};
pub use forecast::{AskedFor, LabelCount, ShareRules};
pub use glance::{
    BatchNote, DaemonNote, Ended, EndedCount, ErrorCount, Glance, Glancer, OrderNote, OutcomeSlot,
    Reading, StateCount, TargetHealth, WaitingGroup, grouped,
};
pub use label::{LabelCounts, LabelOutcome, LabelView, WaitingReason};
pub use names::{
    Hints, InventorySummary, Meaning, ServersWanted, ambiguous_name, is_glob, unknown_name,
};
pub use new_file::NewFile;
pub use orders::{Lets, NewOrder};
pub use overview::{OldestReady, OutcomeCount, OverviewCount, TargetNote};
pub use pages::{Cursor, NotACursor, Page};
pub use pauses::{Paused, Resumed, scope_name};
pub use read::{Filter, Labelled, TextFilter};
pub use records::{
    AttemptRecord, BatchRecord, HoldRecord, OrderRecord, ProducerNote, RequestRecord, RunningBatch,
    ServerRecord, TargetLimits,
};
pub use selection::{Allowed, SelectedCount, Selection};
pub use submission::{Submitted, WrongRow};
pub use undo::{Undo, undo_label};
pub use watch::QueueWatch;
pub use write::{Cycle, NewRequest};

/// Page cache of a command that writes, in KiB, taken as it is needed: one that changes a hundred
/// thousand rows would otherwise write and read many pages again and again, while it holds the lock.
const WRITE_CACHE: &str = "-32768";

/// What a command means to do with the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read. The file is opened as usual, so that its `-wal` is tidied up as usual, but
    /// statements cannot write.
    Read,
    /// Insert, cancel or hold.
    Write,
}

/// One connection to an existing queue.
#[derive(Debug)]
pub struct QueueClient {
    connection: SqliteConnection,
    path: PathBuf,
}

impl QueueClient {
    /// Opens an existing queue of the current schema. A lock is waited for up to 5 s.
    ///
    /// # Errors
    /// `Missing`, `Foreign`, `Older`, `Newer` and `Corrupt` files are left as they are.
    pub async fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(path.to_owned()));
            }
            Err(source) => {
                return Err(StoreError::Unusable {
                    path: path.to_owned(),
                    source,
                });
            }
            Ok(_) => {}
        }
        let mut options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        options = match access {
            Access::Read => options.pragma("query_only", "ON"),
            Access::Write => options.pragma("cache_size", WRITE_CACHE),
        };
        let mut connection = options
            .connect()
            .await
            .map_err(|error| StoreError::opening(path, error))?;
        schema::require_current(&mut connection, path).await?;
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A number that changes when another connection has committed.
    pub async fn data_version(&mut self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut self.connection)
            .await?)
    }

    /// What `read` finds, all of it as of one moment: what others commit meanwhile is not seen.
    /// `read` writes nothing and begins no transaction. A client of which this was dropped before its
    /// end is of no more use.
    ///
    /// # Errors
    /// Those of `read`, and of the store.
    pub async fn as_of_one_moment<T>(
        &mut self,
        read: impl AsyncFnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        sqlx::query("BEGIN").execute(&mut self.connection).await?;
        let found = read(self).await;
        let ended = sqlx::query("COMMIT").execute(&mut self.connection).await;
        let found = found?;
        ended?;
        Ok(found)
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

// Reading.
impl QueueClient {
    /// Requests that match, newest first.
    pub async fn list(&mut self, filter: &Filter) -> Result<Vec<RequestRecord>, StoreError> {
        read::list_requests(&mut self.connection, filter).await
    }

    /// One request.
    ///
    /// # Errors
    /// `NoSuchRequest`.
    pub async fn request(&mut self, id: i64) -> Result<RequestRecord, StoreError> {
        read::request(&mut self.connection, id).await
    }

    /// Those of `ids` that exist, in the order of their ids.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn requests(&mut self, ids: &[i64]) -> Result<Vec<RequestRecord>, StoreError> {
        read::requests(&mut self.connection, ids).await
    }

    /// Those of `ids` that have not succeeded (yet), in the order of their ids.
    pub async fn not_succeeded(&mut self, ids: &[i64]) -> Result<Vec<RequestRecord>, StoreError> {
        read::not_succeeded(&mut self.connection, ids).await
    }

    /// True if any request is about this server, whatever the target.
    pub async fn has_requests_for(&mut self, server: &str) -> Result<bool, StoreError> {
        let filter = Filter {
            servers: Some(vec![server.to_owned()]),
            limit: 1,
            ..Filter::default()
        };
        Ok(!self.list(&filter).await?.is_empty())
    }

    /// What a request was carried by, oldest first.
    pub async fn attempts(&mut self, request: i64) -> Result<Vec<AttemptRecord>, StoreError> {
        read::attempts(&mut self.connection, request).await
    }

    /// One batch.
    pub async fn batch(&mut self, id: i64) -> Result<Option<BatchRecord>, StoreError> {
        read::batch(&mut self.connection, id).await
    }

    /// The reason that `power_waiting` gives; none if the request is not queued.
    pub async fn waiting_reason(&mut self, id: i64) -> Result<Option<String>, StoreError> {
        read::waiting_reason(&mut self.connection, id).await
    }

    /// All holds whose time has not passed.
    pub async fn holds(&mut self, now: UtcMillis) -> Result<Vec<HoldRecord>, StoreError> {
        read::holds(&mut self.connection, now).await
    }

    /// Refuses a list of ids of which one is unknown.
    ///
    /// # Errors
    /// `NoSuchRequest` for the first such id.
    pub async fn require_ids(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        read::require_ids(&mut self.connection, ids).await
    }

    /// All requests that are unfinished now or were inserted at `since` or later.
    pub async fn to_follow(&mut self, since: Option<&str>) -> Result<Vec<i64>, StoreError> {
        read::to_follow(&mut self.connection, since).await
    }

    /// The requests with this label: those to wait for, which are all that are unfinished, and
    /// those that count, which are the newest ones of each server. What ended before `since` is in
    /// neither. None if no request has the label.
    pub async fn labelled(
        &mut self,
        label: &str,
        since: Option<&str>,
    ) -> Result<Option<Labelled>, StoreError> {
        read::labelled(&mut self.connection, label, since).await
    }

    /// What became of a label, within the `targets` that may be seen (none: all). None if no request
    /// has it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn label_view(
        &mut self,
        label: &str,
        targets: Option<&[String]>,
        now: UtcMillis,
    ) -> Result<Option<LabelView>, StoreError> {
        label::view(&mut self.connection, label, targets, now).await
    }

    /// How many requests of the same target and action go before this one; none if it is not ready
    /// to go.
    pub async fn place_in_lane(&mut self, id: i64) -> Result<Option<i64>, StoreError> {
        read::place_in_lane(&mut self.connection, id).await
    }

    /// Those of `ids` that have not ended.
    pub async fn unfinished(&mut self, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
        read::unfinished(&mut self.connection, ids).await
    }

    /// Those of `ids` that have not ended, each with the batch that carries it.
    pub async fn open_requests(&mut self, ids: &[i64]) -> Result<Vec<OpenRequest>, StoreError> {
        follow::open_requests(&mut self.connection, ids).await
    }

    /// Why those of `ids` that are queued are not sent, the most frequent reason first. About 20 µs
    /// for each id.
    pub async fn waiting_reasons(&mut self, ids: &[i64]) -> Result<Vec<UnsentReason>, StoreError> {
        follow::waiting_reasons(&mut self.connection, ids).await
    }

    /// Those of these batches that are not done, and how long such batches usually take.
    pub async fn open_batches_among(
        &mut self,
        ids: &[i64],
    ) -> Result<Vec<FollowedBatch>, StoreError> {
        follow::open_batches_among(&mut self.connection, ids).await
    }

    /// How long a batch of this target and action usually takes, in milliseconds.
    pub async fn usual_ms(
        &mut self,
        target: &str,
        action: &str,
    ) -> Result<Option<i64>, StoreError> {
        glance::usual_ms(&mut self.connection, target, action).await
    }

    /// What the producers of `ids` wrote beside them, by id; those that are gone are left out.
    pub async fn producer_notes(
        &mut self,
        ids: &[i64],
    ) -> Result<BTreeMap<i64, ProducerNote>, StoreError> {
        read::producer_notes(&mut self.connection, ids).await
    }

    /// How many of `ids` are in each state, and how they ended.
    pub async fn outcome_counts(&mut self, ids: &[i64]) -> Result<Vec<OutcomeCount>, StoreError> {
        read::outcome_counts(&mut self.connection, ids).await
    }

    /// A time as a producer may write it, in the queue's own form; none if the schema would refuse
    /// it.
    pub async fn read_time(&mut self, time: &str) -> Result<Option<String>, StoreError> {
        read::read_time(&mut self.connection, time).await
    }
}

// For pages and search.
impl QueueClient {
    /// One page of what the selection finds; an empty selection finds everything.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn page(
        &mut self,
        which: &Selection,
        before: Option<&Cursor>,
        limit: u32,
    ) -> Result<Page, StoreError> {
        // All of it as of one moment: the cursor must not pass over rows that were not looked at.
        let mut tx = self.connection.begin().await?;
        let page = pages::page(&mut tx, which, before, limit).await?;
        tx.commit().await?;
        Ok(page)
    }

    /// Servers with exactly this id or name, of any target, those that are gone included.
    pub async fn servers_called(&mut self, word: &str) -> Result<Vec<ServerRecord>, StoreError> {
        pages::servers_called(&mut self.connection, word).await
    }

    /// Servers whose id or name contains the word, or whose name matches it as a glob.
    pub async fn servers_like(
        &mut self,
        word: &str,
        limit: u32,
    ) -> Result<Vec<ServerRecord>, StoreError> {
        pages::servers_like(&mut self.connection, word, limit).await
    }

    /// Labels that begin with the word, or match it as a glob that does not begin with a wildcard.
    pub async fn labels_like(&mut self, word: &str, limit: u32) -> Result<Vec<String>, StoreError> {
        pages::labels_like(&mut self.connection, word, limit).await
    }

    /// The targets of the requests with this label.
    pub async fn targets_of_label(&mut self, label: &str) -> Result<Vec<String>, StoreError> {
        pages::targets_of_label(&mut self.connection, label).await
    }
}

// The queue as a whole.
impl QueueClient {
    /// Unfinished requests by target, action and state.
    pub async fn overview(&mut self) -> Result<Vec<OverviewCount>, StoreError> {
        overview::overview(&mut self.connection).await
    }

    /// The oldest request that could go, for each target and action that has one. Holds are not
    /// looked at.
    pub async fn oldest_ready(&mut self) -> Result<Vec<OldestReady>, StoreError> {
        overview::oldest_ready(&mut self.connection).await
    }

    /// Batches that are not done, the next to be looked at first.
    pub async fn open_batches(&mut self) -> Result<Vec<BatchRecord>, StoreError> {
        overview::open_batches(&mut self.connection).await
    }

    /// Every target that the daemon has noted. No target makes more than 6000 calls a minute, so
    /// that many are read.
    pub async fn targets(&mut self, now: UtcMillis) -> Result<Vec<TargetNote>, StoreError> {
        overview::targets(&mut self.connection, now).await
    }

    /// The same, with those of `holds` that are about a target's health.
    pub async fn target_health(
        &mut self,
        holds: &[HoldRecord],
        now: UtcMillis,
    ) -> Result<Vec<TargetHealth>, StoreError> {
        glance::targets(&mut self.connection, holds, now).await
    }
}

// Servers and their names.
impl QueueClient {
    /// True if a list has shown any server of this target; none: of any target.
    pub async fn knows_servers(&mut self, target: Option<&str>) -> Result<bool, StoreError> {
        names::knows_servers(&mut self.connection, target).await
    }

    /// What each of the words stands for, within this target or, without one, within all.
    pub async fn meanings(
        &mut self,
        target: Option<&str>,
        words: &[String],
    ) -> Result<Vec<Meaning>, StoreError> {
        names::meanings(&mut self.connection, target, words).await
    }

    /// What may have been meant by a word that stands for nothing.
    pub async fn hints(&mut self, target: Option<&str>, word: &str) -> Result<Hints, StoreError> {
        names::hints(&mut self.connection, target, word).await
    }

    /// All servers that lists have shown, those that are gone included, by target and name.
    pub async fn servers(&mut self, target: Option<&str>) -> Result<Vec<ServerRecord>, StoreError> {
        names::servers(&mut self.connection, target).await
    }

    /// Up to `limit` of the servers that are wanted, by target and id.
    pub async fn servers_page(
        &mut self,
        which: &ServersWanted<'_>,
        limit: u32,
    ) -> Result<Vec<ServerRecord>, StoreError> {
        names::servers_page(&mut self.connection, which, limit).await
    }

    /// The inventory of each target that the daemon has noted, or of one.
    pub async fn inventory(
        &mut self,
        target: Option<&str>,
    ) -> Result<Vec<InventorySummary>, StoreError> {
        names::inventory(&mut self.connection, target).await
    }

    /// Asks the daemon for a fresh inventory of this target, or of all. Returns the wish's id.
    pub async fn wish_for_inventory(&mut self, target: Option<&str>) -> Result<i64, StoreError> {
        names::wish_for_inventory(&mut self.connection, target).await
    }

    /// How that wish has ended: with this error, if with any. None while it has not.
    pub async fn wish_end(&mut self, id: i64) -> Result<Option<Option<String>>, StoreError> {
        names::wish_end(&mut self.connection, id).await
    }

    /// Withdraws a wish that nobody waits for any more.
    pub async fn withdraw_wish(&mut self, id: i64) -> Result<(), StoreError> {
        names::withdraw_wish(&mut self.connection, id).await
    }
}

// Words that somebody may be typing.
impl QueueClient {
    /// Labels that begin like this.
    pub async fn labels(&mut self, beginning: &str) -> Result<Vec<String>, StoreError> {
        candidates::labels(&mut self.connection, beginning).await
    }

    /// Every target that the daemon has noted.
    pub async fn target_names(&mut self) -> Result<Vec<String>, StoreError> {
        candidates::target_names(&mut self.connection).await
    }

    /// Names of servers that begin like this, or else ids; within one target or in all.
    pub async fn server_names(
        &mut self,
        target: Option<&str>,
        beginning: &str,
    ) -> Result<Vec<String>, StoreError> {
        candidates::server_names(&mut self.connection, target, beginning).await
    }

    /// Of the newest requests those whose ids begin with these digits, the newest first.
    pub async fn newest_requests(
        &mut self,
        meant: Meant,
        beginning: &str,
    ) -> Result<Vec<RequestCandidate>, StoreError> {
        candidates::newest_requests(&mut self.connection, meant, beginning).await
    }

    /// What the newest requests have in a column and what begins like this.
    pub async fn newest_texts(
        &mut self,
        column: NewestText,
        beginning: &str,
    ) -> Result<Vec<String>, StoreError> {
        candidates::newest_texts(&mut self.connection, column, beginning).await
    }
}

// Orders with waves.
impl QueueClient {
    /// The orders that are not done.
    pub async fn open_orders(&mut self) -> Result<Vec<OrderRecord>, StoreError> {
        orders::open_orders(&mut self.connection).await
    }

    /// The order with this label, if there is one.
    pub async fn order(&mut self, label: &str) -> Result<Option<OrderRecord>, StoreError> {
        orders::order(&mut self.connection, label).await
    }
}

// Writing.
impl QueueClient {
    /// Inserts requests and returns their ids in the same order. With `if_absent`, a request whose
    /// key exists is not inserted, and the id of the one that has it is returned in its place; the
    /// second value says how many those are.
    ///
    /// # Errors
    /// `Refused` names the first server that the schema refuses; nothing is inserted then.
    pub async fn enqueue(
        &mut self,
        requests: &[NewRequest],
        if_absent: bool,
    ) -> Result<(Vec<i64>, usize), StoreError> {
        self.enqueue_in(None, requests, if_absent).await
    }

    /// The requests that `retry` would insert at this moment.
    ///
    /// # Errors
    /// As `retry`.
    pub async fn tried_again(&mut self, which: &Selection) -> Result<Vec<NewRequest>, StoreError> {
        actions::tried_again(&mut self.connection, which).await
    }

    /// Those of the requests whose keys no request has.
    pub async fn absent(&mut self, requests: &[NewRequest]) -> Result<Vec<NewRequest>, StoreError> {
        write::absent(&mut self.connection, requests).await
    }

    /// As `enqueue`; the order that the requests belong to is written first, unless the same one
    /// exists.
    ///
    /// # Errors
    /// As `enqueue`, and `Refused` for the order.
    pub async fn enqueue_in(
        &mut self,
        order: Option<&NewOrder>,
        requests: &[NewRequest],
        if_absent: bool,
    ) -> Result<(Vec<i64>, usize), StoreError> {
        write::enqueue_in(&mut self.connection, order, requests, if_absent).await
    }

    /// As `enqueue_in`, a stop and a start for each server: the start waits for its stop. The ids are
    /// those of the stop and the start of the first server, then of the second; the second value says
    /// how many servers were skipped because both of their keys exist.
    ///
    /// # Errors
    /// As `enqueue_in`; `Refused` if only one of the two keys exists.
    pub async fn enqueue_cycles(
        &mut self,
        order: Option<&NewOrder>,
        cycles: &[Cycle],
        if_absent: bool,
    ) -> Result<(Vec<i64>, usize), StoreError> {
        write::enqueue_cycles(&mut self.connection, order, cycles, if_absent).await
    }
}

// Rows from elsewhere.
impl QueueClient {
    /// Inserts all of these rows or none, and names every one that is wrong. A row whose
    /// `request_key` exists for the same server, action and target is that request. `allowed`: whose
    /// requests an `after_id` may name.
    ///
    /// # Errors
    /// Those of the store; what is wrong with rows is no error.
    pub async fn submit(
        &mut self,
        rows: &[NewRequest],
        allowed: &Allowed,
    ) -> Result<Submitted, StoreError> {
        submission::submit(&mut self.connection, rows, allowed).await
    }
}

// What people do. Each also writes one row into `operator_actions`, in the same transaction.
impl QueueClient {
    /// How the selected requests are spread over targets, actions and states: what is shown before
    /// anything is done to them.
    ///
    /// # Errors
    /// `Refused` for a selection of nothing in particular, `NoSuchRequest`.
    pub async fn selected(&mut self, which: &Selection) -> Result<Vec<SelectedCount>, StoreError> {
        which.counts(&mut self.connection).await
    }

    /// Cancels those of the selection that are queued; those that have been sent are kept, and
    /// named in the result.
    ///
    /// # Errors
    /// `Refused`, `NoSuchRequest`: nothing is cancelled then.
    pub async fn cancel(
        &mut self,
        actor: Actor<'_>,
        which: &Selection,
    ) -> Result<Done, StoreError> {
        actions::cancel(&mut self.connection, actor, which).await
    }

    /// Inserts a new request for each of the selection that has failed (or is in another of its
    /// `states`; by ids also for those that are unknown). Server, action, target, priority and label
    /// are copied. Left alone are servers with a later request, and reboots that may have happened,
    /// unless they are named by their ids.
    ///
    /// # Errors
    /// `Refused` for states that are no end, `NoSuchRequest`: nothing is inserted then.
    pub async fn retry(&mut self, actor: Actor<'_>, which: &Selection) -> Result<Done, StoreError> {
        actions::retry(&mut self.connection, actor, which).await
    }

    /// Lets those of the selection that are queued leave outside windows and freezes; the actor's
    /// reason becomes theirs.
    ///
    /// # Errors
    /// `Refused` without a reason, or one that the schema does not take; `NoSuchRequest`.
    pub async fn override_windows(
        &mut self,
        actor: Actor<'_>,
        which: &Selection,
    ) -> Result<Done, StoreError> {
        actions::override_windows(&mut self.connection, actor, which).await
    }

    /// What an undo of this label would do now.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn undo_preview(&mut self, label: &str) -> Result<Undo, StoreError> {
        undo::preview(&mut self.connection, label).await
    }

    /// Inserts the opposite of what this label has really switched, as requests of the label
    /// `undo L`. `seen`: as many servers as were shown must still be to be switched.
    ///
    /// # Errors
    /// `Refused`: nothing is inserted then.
    pub async fn undo(
        &mut self,
        actor: Actor<'_>,
        label: &str,
        seen: Option<u64>,
    ) -> Result<Undo, StoreError> {
        undo::undo(&mut self.connection, actor, label, seen).await
    }

    /// What an approval of this selection would approve, by target, action and label.
    ///
    /// # Errors
    /// `Refused` for a selection of nothing in particular, `NoSuchRequest`.
    pub async fn unapproved(&mut self, which: &Selection) -> Result<Unapproved, StoreError> {
        approve::unapproved(&mut self.connection, which).await
    }

    /// Approves what was `seen` of the selection, if all of it is still queued and unapproved.
    ///
    /// # Errors
    /// `Refused`: nothing is approved then.
    pub async fn approve(
        &mut self,
        actor: Actor<'_>,
        which: &Selection,
        seen: &Unapproved,
    ) -> Result<Approval, StoreError> {
        approve::approve(&mut self.connection, actor, which, seen).await
    }

    /// Puts an operator's hold on the target, action and label of `scope`; none of them: on
    /// everything.
    ///
    /// # Errors
    /// `Refused` if anything else is selected, `NotAllowed` for a scope beyond what is allowed.
    pub async fn pause(
        &mut self,
        actor: Actor<'_>,
        scope: &Selection,
        now: UtcMillis,
    ) -> Result<Paused, StoreError> {
        pauses::pause(&mut self.connection, actor, scope, now).await
    }

    /// Ends the operator's hold on exactly the target, action and label of `scope`. If there is
    /// none, and `scope` is a whole label, its order's next wave goes in spite of what holds it, or
    /// all that remain.
    ///
    /// # Errors
    /// As `pause`.
    pub async fn resume(
        &mut self,
        actor: Actor<'_>,
        scope: &Selection,
        what: LetGo,
    ) -> Result<Resumed, StoreError> {
        pauses::resume(&mut self.connection, actor, scope, what).await
    }

    /// Ends every hold of an operator.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn resume_all(&mut self, actor: Actor<'_>) -> Result<Resumed, StoreError> {
        pauses::resume_all(&mut self.connection, actor).await
    }

    /// Ends the hold of a restore; with `drop`, cancels first what was queued in the copy. Returns
    /// how many requests that were; none if there is no such hold.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn release(
        &mut self,
        actor: Actor<'_>,
        drop: bool,
    ) -> Result<Option<u64>, StoreError> {
        pauses::release(&mut self.connection, actor, drop).await
    }
}

// Refused keys.
impl QueueClient {
    /// Keys that were refused last, one for each secret.
    pub async fn refused_keys(&mut self) -> Result<Vec<RefusedKey>, StoreError> {
        holds::refused_keys(&mut self.connection).await
    }

    /// Counts a refusal, so that the daemon's next start knows of it.
    pub async fn note_refused_key(&mut self, refused: &RefusedKey) -> Result<(), StoreError> {
        write::note_refused_key(&mut self.connection, refused).await
    }
}

// What the `db` commands do.
impl QueueClient {
    /// Writes a consistent copy to `to`, checks it, and puts it in place in one step: mode 0600,
    /// marked as a copy, so that a daemon that is started on it puts its requests on hold. Nobody
    /// waits for it.
    ///
    /// # Errors
    /// `Unusable` when the copy cannot be written; `Corrupt` when the queue is damaged; `Refused`
    /// when `to` is the queue itself. No copy is left then.
    pub async fn backup(&mut self, to: &Path, now: UtcMillis) -> Result<(), StoreError> {
        backup::backup(&mut self.connection, &self.path, to, now).await
    }

    /// What the time of day would be now if nobody had set it since a daemon wrote last; what it is, if
    /// that cannot be told.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn dated(&mut self, now: Now) -> Result<UtcMillis, StoreError> {
        let boot = clocks::boot_id();
        let last = clocks::last(&mut self.connection, boot.as_deref()).await?;
        Ok(last.map_or(now.utc, |last| last.dated(now)))
    }

    /// When the batch was made that came last. None if there is none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn last_intent(&mut self) -> Result<Option<UtcMillis>, StoreError> {
        backup::last_intent(&mut self.connection).await
    }

    /// Looks at one chunk more of what ended before `cutoff`; see `Store::prune`. What the chunk
    /// deletes is first appended to the file of the day in `export_to`, if it is given.
    ///
    /// # Errors
    /// Those of the store; `Unusable` if the file cannot be written: nothing more is deleted then.
    pub async fn prune(
        &mut self,
        so_far: Prune,
        cutoff: UtcMillis,
        now: UtcMillis,
        export_to: Option<&Path>,
    ) -> Result<Prune, StoreError> {
        let Some(dir) = export_to else {
            return backup::prune(&mut self.connection, so_far, cutoff, now, None).await;
        };
        let exported = export::before_prune(&mut self.connection, &so_far, cutoff, now).await?;
        write_export(dir, &exported, now)?;
        backup::prune(&mut self.connection, so_far, cutoff, now, Some(&exported)).await
    }

    /// What the daemon has noted of writing what it deletes.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn export_note(&mut self) -> Result<ExportNote, StoreError> {
        export::read_note(&mut self.connection).await
    }

    /// Some lines of what came in this span behind `after`: outcomes with their attempts.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn export_outcomes(
        &mut self,
        span: ExportSpan,
        after: &ExportPlace,
    ) -> Result<ExportChunk, StoreError> {
        export::outcomes(&mut self.connection, span, after).await
    }

    /// Some lines of what people did in this span, behind `after`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn export_actions(
        &mut self,
        span: ExportSpan,
        after: &ExportPlace,
    ) -> Result<ExportChunk, StoreError> {
        export::actions(&mut self.connection, span, after).await
    }
}
