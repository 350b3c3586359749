//! poweryard carries out power requests (start, stop, reboot) for bare-metal servers: it reads them
//! from a SQLite file into which any program may insert rows, sends them in batches through a
//! cloud's API, and writes the outcomes, with evidence, into the same file.
//!
//! The README and `docs` say what users can rely on. This page is the map of the inside.
//!
//! # What flows where
//!
//! ```text
//!  producers ──INSERT──▶ power_requests ◀────────── outcomes ──────────┐
//!                             │ take in: due, expired, cancelled        │
//!                             ▼                                         │
//!                           lanes ──plan──▶ claim = stored intent       │
//!                                              │                        │
//!                        batches:          submitting ──accepted──▶ tracking ──every server known──▶ done
//!                                              │                        │                             ▲
//!                                   answer lost, killed          job gone, too long, gaps             │
//!                                   refused: which of them?             │                             │
//!                                              └──────▶ looking ◀───────┘                             │
//!                                                  the servers' own states ───────────────────────────┘
//! ```
//!
//! A *round* does all of it once: it stores answers that could not be stored before, moves rows
//! that have become due, claims what may be sent, picks open batches to follow, and returns the
//! calls to make and the time of the next round. A new row, a finished call, a timer and a restart
//! all lead to the same round.
//!
//! # The rooms, in reading order
//!
//! | room | owns | stays away from |
//! | --- | --- | --- |
//! | [`model`] | the nouns: ids, words, batches, lanes, holds, faults, codes | everything else |
//! | [`lifecycle`] | which state may follow which; `Step`, what follows for a batch | SQL, time |
//! | [`plan`] | lanes, limits, budgets, guards, windows and holds → what is sent next, and the forecast of it | SQL, HTTP, clocks |
//! | [`verdict`] | an answer or a server's state → what we know, and how | SQL, HTTP, clocks |
//! | [`pace`] | how fast to submit, when to look; the only user of `backoff` | SQL, HTTP |
//! | [`settings`] | the config file → checked, finished values | SQL, HTTP |
//! | [`store`] | all SQL, pragmas, migrations, the file's mode and lock | HTTP |
//! | [`cloud`] | `PowerCloud`: wire formats, signing, tokens | SQL, decisions |
//! | [`sim`] | the simulated cloud, with its own reading of the documents | all but `model` |
//! | [`logging`] | how log lines look | |
//! | [`meter`] | the daemon's counters | SQL, HTTP |
//! | [`notify`] | hooks: who is notified about failures; bounded, in tasks of their own | decisions |
//! | [`web`] | who may come in; `/metrics`, health, the page and the API | decisions, SQL |
//! | [`daemon`] | the rounds, the calls, the wake-up, the stop | wire formats, SQL |
//! | [`cli`] | one file per command: arguments, wording, exit codes | SQL, decisions about power |
//!
//! What several rooms speak of is a noun of `model`. So `lifecycle` and `pace` import `model` alone,
//! `plan` also `pace`, `store` also `lifecycle`, and `verdict` also `lifecycle` and `pace`.
//!
//! The schema, in `migrations`, belongs to the vocabulary: it checks producers' rows,
//! refuses moves that `lifecycle` does not have, and a second running request of a server.
//!
//! # Two walks
//!
//! **A request that goes well.** A producer's `INSERT` passes the triggers of the schema, which
//! check it; it is in its lane from then on. inotify wakes the loop ([`daemon`]), and a round begins. The intake
//! (`store::sqlite::intake`) releases what has become due. [`plan`] chooses a lane that nothing holds back,
//! [`pace`] says whether a call may be sent now, and `store::sqlite::claim` stores the batch, its members
//! and the state of its requests in one synced transaction: that is the intent. Only then does the
//! round return the call, as a task. The task (`daemon::task`) asks the [`cloud`] to submit it and
//! returns the answer without knowing what it means. [`verdict`] turns the answer, a job id, into a
//! `Step`; `store::sqlite::record` stores it, and the batch is `tracking`. At the time that [`pace`] has
//! learned from earlier jobs, a round asks for the job with one query for the whole batch;
//! [`verdict`] reads it server by server, and `store::sqlite::record` writes each outcome as soon as that
//! server's part has ended. When the last one has, the batch is `done`. The producer sees
//! `succeeded`, with the evidence `job`.
//!
//! **A request whose answer is lost.** It is a reboot. The intent is stored, the call is sent, and
//! the connection breaks. [`cloud`] cannot tell whether anything arrived, so its error says "lost",
//! and [`verdict`] never sends such a call again: the batch moves to `looking`. (Had the daemon
//! been killed instead, the next start would find the batch `submitting` with nobody making its
//! call, and do the same.) Rounds now ask for the states of the servers, one look for all batches
//! of the target that want one. A server that is seen rebooting is followed until it runs again,
//! and its request is `succeeded`, with the evidence `observed`. One that is missing from the list
//! is `failed`. If nothing is seen of a server until the time for looking is over, its request is
//! `unknown`: a reboot leaves no mark, and a second one could interrupt a server that has already
//! come back. The next call of that action carries one server, to find out whether calls arrive
//! again.
//!
//! # Reasons
//!
//! **The database is the state machine.** A batch is a durable row that is moved one step at a
//! time: read it, decide with a pure function, make at most one call to the outside world, write
//! the result in one transaction. What the process keeps in memory (calls being made, answers not
//! yet stored, the pace) is lost without harm. So there is no recovery code that only runs after a
//! crash: a batch found `submitting` with nobody making its call is a lost answer like any other.
//!
//! **Intent before call.** A claim moves the requests to `running`, counts the attempt, and writes
//! batch and members, synced, before the call is sent; otherwise a crash could leave servers
//! switched that no row knows of. All that can wait or fail comes before the intent (pace, token),
//! so that little can go wrong after it. Each submit uses a fresh connection: a stale one would
//! make a thousand reboots doubtful. Redirects are not followed and nothing is repeated below
//! `daemon`.
//!
//! **Classes of answer decide, not the HTTP status.** The documents warn that the status may be
//! wrong. `model::cloud_codes` gives each documented code a class, and each class has one reaction:
//! not carried out (send again later), refused (explain), accepted (track), lost (look). A word or
//! code that nobody documents falls to the careful side: look, and if that proves nothing,
//! `unknown`.
//!
//! **Explain, then split.** One bad server may make the cloud refuse a thousand. The states of the
//! servers are read once, requests that explain the refusal are settled, and the others are sent
//! again. Only if nothing explains it is the batch halved, until the server that caused it is
//! alone. The parts are stored as travel groups in the rows. Groups are never mixed, and busy
//! servers are kept apart from fresh ones; otherwise twenty stuck servers would sink every batch. A
//! refusal counts for all of its servers or for none: if one of them has started, the call counts
//! as lost for all of them.
//!
//! **Only an unbroken watch proves that nothing was done.** A refused reboot is sent again once its
//! server was idle through `settle_time`, in looks of this process without a gap, a failure or a
//! step of the clock. If a reboot would leave no mark, the looks must have no gap since the call.
//! What was seen in this way is kept in memory as a `Watch` of the open batch: after a restart it
//! starts again, and what can then no longer be proved ends `unknown`. Only that a server was seen
//! in the request's own transition is stored.
//!
//! **Baselines.** CloudDC has no jobs: a server shows its last operation forever, without time or
//! id. So the servers of a lane's head are read just before their intent, what they showed is
//! stored with it, and only a change from that, a transition that was seen, or the power after a
//! start or stop proves anything. One look covers all batches of a target that want one soon.
//!
//! **Each server by its own evidence.** A sub-job's status counts, even if its parent says
//! something else. Servers are settled as soon as their own sub-job has ended; those that the
//! answer does not mention are found by elimination, or looked at.
//!
//! **Looking settles.** Start and stop: an idle server in the requested state is success; an idle
//! server in the other state, through `settle_time` in an unbroken watch, is proof that nothing was
//! carried out. A reboot leaves no lasting mark: it succeeded if it was seen, otherwise it is
//! `unknown` and never sent again automatically. Every look has a time limit.
//!
//! **Gates and lanes.** A claim must not search a million waiting rows for the thousand that may be
//! sent. So each unfinished request has a gate: `ready`, `retry`, `flight`, or one of those that
//! park it: `behind`, `later`, `after`. A row arrives ready, in its lane, and looks at no neighbour.
//! A lane is the ready rows of one (target, action, travel group), and an index over ready rows
//! alone keeps them in the order of the claim. A batch is the head of one lane, so the plan only
//! chooses among lanes. The claim parks those of the head that cannot go, each once; what ends the
//! reason lets them out, set by set. All gates are written in one place, `store::sqlite::gate`; a
//! producer's cancel or new `not_before` leaves a note that the next round follows.
//!
//! **Orders and waves.** What a label holds back (a pause, a wave that has not come) is held row by
//! row: the gate `held` takes a row out of its lane, and leaves it in the line of its server. An order
//! is read a chunk a round into `order_servers`, which can be read anew at any time; a wave lets
//! servers go by writing its number into their rows. So what has left is in the rows themselves, and
//! a kill changes nothing. Whether the next wave leaves is decided in `plan::waves`, from a few
//! questions that indexes answer whatever the order's size; the gate of the config is asked in a task.
//!
//! **The line of a server.** Of one server, the first unfinished row in its line goes, in the order
//! of arrival and regardless of priority. The schema lets no other one run, so that at most one is
//! running. A row stays in the line while it is claimed and ends, and leaves it later, many at
//! once in a quiet moment: server ids are random, and an index in their order would cost each step
//! of a thousand requests a thousand pages.
//!
//! **One dispatcher decides and writes; tasks only call.** There is one writer connection and no
//! transaction spans a network call. A task knows nothing of the queue and returns what the cloud
//! said; what follows from that is decided and stored in one place. An answer that cannot be stored
//! (lock, full disk) waits in memory, and no new call is sent until it is stored.
//!
//! **One look a target, for all batches.** A list call shows a thousand servers, no matter which
//! batch needs it. So one task at a time looks at a target's servers, for every batch that needs
//! it. A job query covers its whole batch; when to ask is learned from how long jobs of that target
//! and action took, and from those that have lasted longest and still run. The next time is stored
//! in the row, so that a restart neither forgets a look nor makes all at once; it is moved when
//! other jobs show that it is too early, which costs no call, or too late. Each target can make two job queries at a time, and up to
//! eight while fewer than 32 are open in all: an answer can be a quarter of a megabyte, and a
//! target whose answers never arrive must not stop the others.
//!
//! **Names are kept from lists.** Each list that is read, for whatever reason, is compared with a
//! hash of what the table `servers` has of each server, and only what differs is written, a chunk a
//! round. The daemon's own lists come last: when no look is being made, and while it is not known
//! whether the key is accepted only one page. That a list cannot be read holds nothing back. Names
//! become ids in the commands, before anything is inserted, so that a request always means the same
//! server.
//!
//! **Holds.** The reasons why a target or action is not sent are in a table of their own
//! (`operator`, `budget`, `approval`, `window`, `credentials`, `breaker`, `unknown_target`): never
//! a write to a million rows. A refused key holds every target that uses it for longer than the
//! cloud's own lock of five minutes, and how often it was refused in a row is kept in the queue by
//! its fingerprint, so that neither restarts nor `check --online` add up to five bad signatures.
//! After a call that did not arrive, the next one carries one server, so that an outage does not
//! fill the ledger with thousands of rows. Holds stop submits; jobs are still followed, except
//! while the credentials are held, when reads would only prolong the lock. Budgets, guards, windows
//! and protected servers are in the config, because anybody who can write the database could remove
//! them there.
//!
//! **What people do is in one place.** Commands, page and API select requests with one type and call the
//! same functions of `store::client`, each of which writes its row of `operator_actions` in its own
//! transaction. A reason to leave outside windows is noted once: the ids of noted requests are in a
//! table of their own, so that a producer's reason in plain SQL is noted when it lets something go,
//! and a command's is not noted again for each batch.
//!
//! **What is deleted is on the disk first.** With `export_before_prune`, a chunk is read, written and
//! synced without a transaction, by a thread that nobody waits for; then just those rows are deleted.
//!
//! **Windows and guards.** A window is a question about the clock on the wall of its zone at one
//! instant; when the answer changes is found by asking again at each mark of that clock and at each
//! clock change, so that no rule about skipped and repeated hours is needed. A guard counts what is
//! due and unapproved, and what left unapproved within its span; a request that left and came back
//! is counted with its batch alone, so that a try again needs no approval of its own. The plan puts
//! the hold, and the claim counts again in its own transaction, since rows arrive in between. Both
//! hold lanes by what their requests have in common, and so an approval or an opening moves no row
//! that it is not about.
//!
//! **One forecast.** What `plan`, the dry run and the questions of commands say of the future is not
//! worked out by rules of its own: `plan::forecast` plays the daemon's decisions through, each at its
//! time, with counts in place of rows. `daemon::forecast` reads what it needs. A million plain
//! requests are counted along an index; only those of which more has to be known are read.
//!
//! **Wake-up.** inotify on the folder, since the `-wal` comes and goes. The notification comes
//! before the commit can be seen, so the queue is checked at once and again after 1, 2, 4, 8 and 25
//! ms. Every 5 s there is a round without a notification, in case one was missed. An idle daemon
//! costs next to nothing.
//!
//! **One glance for everybody.** The page, the API and `top` show one value, read in one transaction
//! at a cost that depends on what is unfinished: what waits is counted by the reasons that lanes and
//! gates already tell apart, and what has ended in the last day minute by minute, each end a few
//! times at most. One reading serves all who ask at that moment, and what each may see is chosen from
//! it afterwards. Whatever takes long to read is read less often, so that any number of open
//! overviews takes a tenth of one core at most.
//!
//! **File modes.** SQLite gives `-wal` and `-shm` the mode of the database, and creates that 0640
//! under the umask 0007; a reader that opens it first would then lock the daemon out. So the file
//! is made 0660 before SQLite opens it, in a directory of mode 3770: setgid for the producers'
//! group, sticky so that no producer can delete the queue. After that nothing in this process opens
//! the database by hand: closing such a handle drops SQLite's locks, and the next producer that
//! closes the file would delete the live `-wal`. The daemon's own lock is on a file of its own.
//!
//! **Everybody who asks by HTTP passes one guard.** It checks the name by which the server was
//! called, the page that asks, and the token or session; what it does not name as open needs a token,
//! so that a new path cannot be forgotten. What a token allows is one value, `Caller`, that page and
//! API share, and it becomes the `Allowed` of a selection, so that SQL itself leaves out what somebody
//! may not see. The queue is used through the same door as the commands', over connections of its
//! own, a few at a time. One reading serves all who look, and events are sent when the folder says
//! that somebody has written.
//!
//! **Time is an argument.** Decisions take `now`; the edges ask the clocks. If the time of day
//! moves differently from the steady clock, somebody has set it. Before anything is written by it,
//! the queue follows: the daemon's own waiting times move along, and earlier calls are read as if
//! the present clock had dated them.
//!
//! **One intent a round.** The claim comes last in a round, and its call is sent at once; then it
//! is another target's turn. Holds are looked at inside the claim's transaction. Work with many
//! writes (releasing rows, unknown targets) is done in chunks, with pauses in which producers get
//! the lock.

// Vocabulary.
pub mod model;

// Decisions: pure.
pub mod lifecycle;

pub mod plan;

pub mod verdict;

pub mod pace;

// Edges: files, the network, the terminal.
pub mod settings;

pub mod store;

pub mod cloud;

pub mod sim;

pub mod logging;

pub mod meter;

pub mod notify;

pub mod web;

// Loops: what runs.
pub mod daemon;

pub mod cli;
