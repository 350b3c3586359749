-- The queue: a public API in SQL. Its producers are strangers with stock SQLite libraries from 3.26 on, so: no STRICT,
-- no generated columns, no unixepoch(), no JSON, and RAISE texts are literals. Rules live in BEFORE triggers, because
-- INSERT OR IGNORE drops a row that fails a CHECK without a word but cannot ignore RAISE(ABORT); named CHECKs repeat them.
--
-- What triggers evaluate spells lists out (a = 'x' OR a = 'y' OR ...): for IN with three values or more SQLite builds a
-- temporary b-tree each time a trigger runs, which costs more than all the rest of an insert.

PRAGMA application_id = 1887007332; -- 'pyrd'

CREATE TABLE power_requests (
    id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT CONSTRAINT id_positive CHECK (id > 0),

    -- Columns with a default take an explicit NULL for it, because object mappers send every column that they know. They
    -- are not NOT NULL for that alone: OR IGNORE would drop such a row without a word. An AFTER trigger fills them.

    -- what the producer asks for
    server_id    TEXT NOT NULL COLLATE NOCASE
                 CONSTRAINT server_id_form CHECK (length(server_id) BETWEEN 1 AND 64 AND server_id NOT GLOB '*[^A-Za-z0-9-]*'),
    action       TEXT NOT NULL CONSTRAINT action_known CHECK (action IN ('start', 'stop', 'reboot')),
    target       TEXT DEFAULT 'default'
                 CONSTRAINT target_form CHECK (length(target) BETWEEN 1 AND 64 AND target NOT GLOB '*[^A-Za-z0-9._-]*'),
    priority     INTEGER DEFAULT 0 CONSTRAINT priority_range CHECK (priority BETWEEN -100 AND 100),
    not_before   TEXT CONSTRAINT not_before_form CHECK (not_before GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]*'),
    expires_at   TEXT CONSTRAINT expires_at_form CHECK (expires_at GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]*'),
    after_id     INTEGER CONSTRAINT after_id_earlier CHECK (after_id < id),
    -- in characters; a text with a NUL counts only up to that, so that its bytes are bounded too
    request_key  TEXT CONSTRAINT request_key_form CHECK (length(request_key) <= 256 AND length(CAST(request_key AS BLOB)) <= 1024),
    label        TEXT CONSTRAINT label_form CHECK (length(label) <= 256 AND length(CAST(label AS BLOB)) <= 1024),
    requested_by TEXT CONSTRAINT requested_by_form CHECK (length(requested_by) <= 256 AND length(CAST(requested_by AS BLOB)) <= 1024),
    created_at   TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),

    -- what the daemon tells. A stranger who writes here anyway must leave something that the daemon can read
    state        TEXT DEFAULT 'queued'
                 CONSTRAINT state_known CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired',
                                                         'rejected', 'unknown')),
    batch_id     INTEGER CONSTRAINT batch_id_form CHECK (typeof(batch_id) IN ('integer', 'null')),
    attempts     INTEGER DEFAULT 0 CONSTRAINT attempts_range CHECK (typeof(attempts) IN ('integer', 'null') AND attempts >= 0),
    retry_at     TEXT CONSTRAINT retry_at_form CHECK (retry_at IS NULL OR (typeof(retry_at) = 'text' AND retry_at GLOB
                     '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z')),
    evidence     TEXT CONSTRAINT evidence_known CHECK (evidence = 'job' OR evidence = 'already' OR evidence = 'refused'
                                                      OR evidence = 'observed' OR evidence = 'none'),
    error_code   TEXT CONSTRAINT error_code_form CHECK (typeof(error_code) IN ('text', 'null')),
    error_message TEXT CONSTRAINT error_message_form CHECK (typeof(error_message) IN ('text', 'null')),
    submitted_at TEXT CONSTRAINT submitted_at_form CHECK (submitted_at IS NULL OR (typeof(submitted_at) = 'text' AND submitted_at GLOB
                     '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z')),
    finished_at  TEXT CONSTRAINT finished_at_form CHECK (finished_at IS NULL OR (typeof(finished_at) = 'text' AND finished_at GLOB
                     '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z')),

    -- internal, kept by the triggers below and by the daemon.
    -- gate: where a request stands on its way out. NULL once it is terminal. Per server at most one of 'ready', 'retry'
    -- and 'flight' exists, and 'behind' only beside one of them, so that claiming never has to search parked rows.
    --   ready   may be claimed               retry   waits for retry_at, and holds up its server
    --   behind  due, another one goes first  later   waits for eligible_at (not_before)
    --   after   waits for after_id           doomed  after_id had not succeeded; about to be cancelled
    --   flight  running
    gate         TEXT DEFAULT 'ready',
    -- the latest of created_at, not_before and the end of after_id; NULL while that end is not known
    eligible_at  TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
                 CONSTRAINT eligible_at_form CHECK (eligible_at IS NULL OR (typeof(eligible_at) = 'text' AND eligible_at GLOB
                     '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z')),
    -- 0: fresh. Else the part of a refused batch that this request belongs to; groups never share a batch
    travel_group INTEGER DEFAULT 0 CONSTRAINT travel_group_form CHECK (typeof(travel_group) IN ('integer', 'null')),

    CONSTRAINT flight_has_batch CHECK (state <> 'running' OR (batch_id IS NOT NULL AND gate = 'flight')),
    CONSTRAINT gate_fits CHECK (CASE gate WHEN 'ready' THEN 1 WHEN 'behind' THEN 1 WHEN 'after' THEN 1 WHEN 'doomed' THEN 1
                                          WHEN 'retry' THEN retry_at IS NOT NULL WHEN 'later' THEN eligible_at IS NOT NULL
                                          WHEN 'flight' THEN state = 'running' ELSE gate IS NULL END),
    -- a producer's cancel sets only the state; the AFTER trigger fills the rest
    CONSTRAINT end_is_complete CHECK (CASE WHEN state = 'cancelled' AND gate IS NOT NULL THEN finished_at IS NULL AND evidence IS NULL
                                      ELSE (state = 'queued' OR state = 'running') = (finished_at IS NULL)
                                      AND (finished_at IS NULL) = (evidence IS NULL) AND (finished_at IS NULL OR gate IS NULL) END),
    CONSTRAINT known_has_evidence CHECK (state NOT IN ('succeeded', 'failed') OR evidence <> 'none')
);

-- What may be claimed, in the order of the claim. Parked rows are not in it.
CREATE INDEX power_requests_ready ON power_requests (target, action, travel_group, priority DESC, id) WHERE gate = 'ready';
-- Promise 4: at most one request per server is running.
CREATE UNIQUE INDEX power_requests_in_flight ON power_requests (target, server_id) WHERE state = 'running';
CREATE INDEX power_requests_server ON power_requests (target, server_id, gate, id) WHERE gate IS NOT NULL;
CREATE INDEX power_requests_later ON power_requests (eligible_at) WHERE gate = 'later';
CREATE INDEX power_requests_retry ON power_requests (retry_at) WHERE gate = 'retry';
CREATE INDEX power_requests_doomed ON power_requests (id) WHERE gate = 'doomed';
CREATE INDEX power_requests_expiry ON power_requests (expires_at) WHERE state = 'queued' AND expires_at IS NOT NULL;
CREATE INDEX power_requests_ttl ON power_requests (eligible_at) WHERE state = 'queued' AND expires_at IS NULL;
-- With the gate: those that have been let out already must not be passed over again for every further one.
CREATE INDEX power_requests_after ON power_requests (after_id, gate) WHERE gate IS NOT NULL AND after_id IS NOT NULL;
CREATE INDEX power_requests_overview ON power_requests (target, action, state, created_at) WHERE gate IS NOT NULL;
CREATE INDEX power_requests_outcome ON power_requests (server_id, target, finished_at, id) WHERE finished_at IS NOT NULL;
CREATE INDEX power_requests_ended ON power_requests (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX power_requests_label ON power_requests (label) WHERE label IS NOT NULL;
-- Not partial, so that ON CONFLICT (request_key) finds it.
CREATE UNIQUE INDEX power_requests_key ON power_requests (request_key);

-- Keys again: INSERT OR REPLACE on the unique index above deletes the old request, with or without firing delete triggers.
-- The BEFORE trigger still sees the old one and notes its key here; if the insert goes on, the AFTER trigger finds the
-- note and undoes the whole statement. OR IGNORE and DO NOTHING leave the note behind; the next insert wipes it.
CREATE TABLE repeated_key (
    request_key TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;

-- Requests that ended while others waited for them: the daemon lets those out or cancels them, some at a time. There may
-- be a hundred thousand of them, too many for the transaction that ends the one.
CREATE TABLE awaited_ends (
    request_id INTEGER PRIMARY KEY
);

CREATE TABLE batches (
    id            INTEGER PRIMARY KEY AUTOINCREMENT CONSTRAINT batch_id_possible CHECK (id <= 2000000000000000),
    target        TEXT NOT NULL,
    service       TEXT NOT NULL CONSTRAINT batch_service_known CHECK (service IN ('bms', 'clouddc')),
    endpoint      TEXT NOT NULL,
    project_id    TEXT NOT NULL,
    action        TEXT NOT NULL CONSTRAINT batch_action_known CHECK (action IN ('start', 'stop', 'reboot')),
    state         TEXT NOT NULL CONSTRAINT batch_state_known CHECK (state IN ('submitting', 'tracking', 'looking', 'done')),
    server_count  INTEGER NOT NULL CONSTRAINT batch_not_empty CHECK (server_count > 0),
    job_id        TEXT,
    intent_at     TEXT NOT NULL,
    submitted_at  TEXT,
    next_look_at  TEXT,
    looks         INTEGER NOT NULL DEFAULT 0,
    finished_at   TEXT,
    error_code    TEXT,
    error_message TEXT,

    -- internal
    travel_group  INTEGER NOT NULL DEFAULT 0,
    look_cause    TEXT CONSTRAINT look_cause_known CHECK (look_cause IN ('refused', 'lost', 'vanished', 'time_limit', 'gap',
                                                                        'busy')),
    look_until    TEXT,                         -- looking ends here
    from_copy     INTEGER NOT NULL DEFAULT 0,   -- 1: it was open in an older copy that was put back
    doubts        INTEGER NOT NULL DEFAULT 0,   -- answers in a row that did not know the job, or left it unfinished
    job_ms        INTEGER,                      -- how long the job took, for later batches to learn from
    read_error    TEXT,                         -- why the last look failed; NULL once one succeeds

    CONSTRAINT batch_texts CHECK (typeof(target) = 'text' AND typeof(service) = 'text' AND typeof(endpoint) = 'text'
                                  AND typeof(project_id) = 'text' AND typeof(job_id) IN ('text', 'null')
                                  AND typeof(error_code) IN ('text', 'null') AND typeof(error_message) IN ('text', 'null')
                                  AND typeof(read_error) IN ('text', 'null')),
    CONSTRAINT batch_numbers CHECK (typeof(server_count) = 'integer' AND typeof(looks) = 'integer' AND typeof(doubts) = 'integer'
                                    AND typeof(travel_group) = 'integer' AND typeof(job_ms) IN ('integer', 'null')),
    CONSTRAINT batch_times CHECK (typeof(intent_at) = 'text' AND intent_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'
        AND (submitted_at IS NULL OR (typeof(submitted_at) = 'text' AND submitted_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
        AND (next_look_at IS NULL OR (typeof(next_look_at) = 'text' AND next_look_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
        AND (look_until IS NULL OR (typeof(look_until) = 'text' AND look_until GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
        AND (finished_at IS NULL OR (typeof(finished_at) = 'text' AND finished_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))),
    CONSTRAINT looking_has_cause CHECK (state <> 'looking' OR (look_cause IS NOT NULL AND look_until IS NOT NULL)),
    CONSTRAINT open_has_next_look CHECK ((state = 'done') = (next_look_at IS NULL)),
    CONSTRAINT done_is_complete CHECK ((state = 'done') = (finished_at IS NOT NULL))
);
CREATE INDEX batches_open ON batches (next_look_at) WHERE state <> 'done';
CREATE INDEX batches_ended ON batches (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX batches_due ON batches (target, next_look_at) WHERE state <> 'done';
CREATE INDEX batches_pace ON batches (target, id);
CREATE INDEX batches_spent ON batches (target, action, intent_at);
CREATE INDEX batches_history ON batches (target, action, id) WHERE job_ms IS NOT NULL;

CREATE TABLE request_attempts (
    request_id    INTEGER NOT NULL,
    batch_id      INTEGER NOT NULL,
    result        TEXT CONSTRAINT result_known CHECK (result IN ('succeeded', 'failed', 'already', 'busy', 'refused',
                                                                 'not_sent', 'lost', 'unknown')),
    error_code    TEXT,
    error_message TEXT,
    started_at    TEXT NOT NULL,
    finished_at   TEXT,

    -- internal: the server's last operation before the call, where the service remembers it, as "reboot succeeded"; that
    -- it was seen in the transition which this request would cause, and when first
    baseline      TEXT,
    seen          TEXT CONSTRAINT seen_known CHECK (seen = 'moving'),
    seen_since    TEXT,

    PRIMARY KEY (batch_id, request_id),
    CONSTRAINT attempt_ids CHECK (typeof(request_id) = 'integer' AND typeof(batch_id) = 'integer'),
    CONSTRAINT attempt_texts CHECK (typeof(error_code) IN ('text', 'null') AND typeof(error_message) IN ('text', 'null')
                                    AND typeof(baseline) IN ('text', 'null')),
    CONSTRAINT attempt_times CHECK (typeof(started_at) = 'text' AND started_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'
        AND (finished_at IS NULL OR (typeof(finished_at) = 'text' AND finished_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
        AND (seen_since IS NULL OR (typeof(seen_since) = 'text' AND seen_since GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))),
    CONSTRAINT attempt_is_complete CHECK ((result IS NULL) = (finished_at IS NULL))
) WITHOUT ROWID;
CREATE INDEX request_attempts_request ON request_attempts (request_id);

-- The ledgers move only by the daemon's hand: while `queue_mark.writing` is NULL, nobody may write here. What was sent never
-- changes even then.
CREATE TRIGGER batches_check_insert BEFORE INSERT ON batches
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR EXISTS (SELECT 1 FROM batches WHERE id = NEW.id)
BEGIN
    SELECT CASE
        WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL THEN RAISE(ABORT, 'only the daemon writes batches')
        ELSE RAISE(ABORT, 'a batch cannot be replaced')
    END;
END;

CREATE TRIGGER batches_check_update BEFORE UPDATE ON batches
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR OLD.state = 'done' OR NEW.id IS NOT OLD.id OR NEW.target IS NOT OLD.target
     OR NEW.service IS NOT OLD.service OR NEW.endpoint IS NOT OLD.endpoint OR NEW.project_id IS NOT OLD.project_id
     OR NEW.action IS NOT OLD.action OR NEW.intent_at IS NOT OLD.intent_at
     OR (NEW.state = 'submitting' AND OLD.state <> 'submitting') OR (NEW.state = 'tracking' AND OLD.state = 'looking')
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes batches, and what was sent never changes');
END;

CREATE TRIGGER batches_check_delete BEFORE DELETE ON batches WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR OLD.state <> 'done'
BEGIN
    SELECT CASE
        WHEN OLD.state <> 'done' THEN RAISE(ABORT, 'this batch is not done; it cannot be deleted')
        ELSE RAISE(ABORT, 'only poweryard deletes batches, once no budget needs them: see `poweryard db prune --help`')
    END;
END;

CREATE TRIGGER request_attempts_check_insert BEFORE INSERT ON request_attempts
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR EXISTS (SELECT 1 FROM request_attempts WHERE batch_id = NEW.batch_id AND request_id = NEW.request_id)
BEGIN
    SELECT CASE
        WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL THEN RAISE(ABORT, 'only the daemon writes attempts')
        ELSE RAISE(ABORT, 'an attempt cannot be replaced')
    END;
END;

CREATE TRIGGER request_attempts_check_delete BEFORE DELETE ON request_attempts WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR OLD.result IS NULL
BEGIN
    SELECT CASE
        WHEN OLD.result IS NULL THEN RAISE(ABORT, 'this attempt is not over; it cannot be deleted')
        ELSE RAISE(ABORT, 'only poweryard deletes attempts: see `poweryard db prune --help`')
    END;
END;

CREATE TRIGGER request_attempts_check_update BEFORE UPDATE ON request_attempts
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR OLD.result IS NOT NULL OR NEW.request_id IS NOT OLD.request_id OR NEW.batch_id IS NOT OLD.batch_id
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes attempts, and how one ended never changes');
END;

-- The daemon hears of ends by this list: whoever empties it lets others wait for ever.
CREATE TRIGGER awaited_ends_check_delete BEFORE DELETE ON awaited_ends WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon deletes from awaited_ends');
END;

CREATE TRIGGER awaited_ends_check_update BEFORE UPDATE ON awaited_ends WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon changes awaited_ends');
END;

-- target or action NULL: all of them.
CREATE TABLE holds (
    id     INTEGER PRIMARY KEY,
    target TEXT,
    action TEXT CONSTRAINT hold_action_known CHECK (action IN ('start', 'stop', 'reboot')),
    kind   TEXT NOT NULL CONSTRAINT hold_kind_known CHECK (kind IN ('operator', 'budget', 'credentials', 'breaker',
                                                                    'unknown_target', 'restored')),
    reason TEXT NOT NULL,
    since  TEXT NOT NULL,
    until  TEXT,
    CONSTRAINT hold_texts CHECK (typeof(target) IN ('text', 'null') AND typeof(reason) = 'text')
);
CREATE UNIQUE INDEX holds_one_of_a_kind ON holds (ifnull(target, ''), ifnull(action, ''), kind);
-- What may hold a configured target; unknown targets can be many.
CREATE INDEX holds_that_matter ON holds (id) WHERE kind <> 'unknown_target' OR target IS NULL;

-- Operators pause and resume; all other kinds are the daemon's.
CREATE TRIGGER holds_check_insert BEFORE INSERT ON holds
WHEN (NEW.kind IS NOT 'operator' OR EXISTS (SELECT 1 FROM holds WHERE id = NEW.id AND kind <> 'operator')) AND (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes holds of a kind other than operator');
END;

CREATE TRIGGER holds_check_update BEFORE UPDATE ON holds
WHEN (NEW.kind IS NOT 'operator' OR OLD.kind IS NOT 'operator'
      OR (NEW.id IS NOT OLD.id AND EXISTS (SELECT 1 FROM holds WHERE id = NEW.id AND kind <> 'operator'))) AND (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes holds of a kind other than operator');
END;

CREATE TRIGGER holds_check_delete BEFORE DELETE ON holds WHEN OLD.kind IS NOT 'operator' AND (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon ends holds of a kind other than operator');
END;

-- What the daemon last knew of each configured target, for `status`.
CREATE TABLE targets (
    target             TEXT NOT NULL PRIMARY KEY,
    service            TEXT NOT NULL,
    endpoint           TEXT NOT NULL,
    project_id         TEXT NOT NULL,
    submits_per_minute INTEGER NOT NULL,  -- as configured
    pace_per_minute    INTEGER NOT NULL,  -- as lowered by the cloud's 429s
    throttles          INTEGER NOT NULL DEFAULT 0,
    reads_until        TEXT,              -- the cloud said 429 to a read: nothing is asked before this
    updated_at         TEXT NOT NULL,
    budget_ms          INTEGER,           -- the longest span of its budgets: its batches are kept for as long
    CONSTRAINT target_numbers CHECK (typeof(submits_per_minute) = 'integer' AND submits_per_minute >= 0
                                     AND typeof(pace_per_minute) = 'integer' AND pace_per_minute >= 0
                                     AND typeof(throttles) = 'integer' AND throttles >= 0
                                     AND typeof(budget_ms) IN ('integer', 'null'))
) WITHOUT ROWID;

CREATE TRIGGER targets_check_insert BEFORE INSERT ON targets WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes targets');
END;

CREATE TRIGGER targets_check_update BEFORE UPDATE ON targets WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes targets');
END;

CREATE TRIGGER targets_check_delete BEFORE DELETE ON targets WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes targets');
END;

-- Keys that the cloud refused last, each with the secret that it was refused with: how often in a row, and until when what uses
-- them is held. By fingerprint of the access key, or of domain and user. The cloud's own count goes on over our restarts.
CREATE TABLE refused_keys (
    key      TEXT NOT NULL,
    secret   TEXT NOT NULL,               -- tells another secret from this one, and nothing else
    target   TEXT NOT NULL,               -- whose call it was
    refusals INTEGER NOT NULL CONSTRAINT refusals_form CHECK (typeof(refusals) = 'integer' AND refusals > 0),
    until    TEXT NOT NULL,
    reason   TEXT NOT NULL,
    recent   TEXT NOT NULL,               -- when: a UTC time for each refused signature of the last minutes
    PRIMARY KEY (key, secret)
) WITHOUT ROWID;

CREATE TRIGGER refused_keys_check_insert BEFORE INSERT ON refused_keys WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes refused_keys');
END;

CREATE TRIGGER refused_keys_check_update BEFORE UPDATE ON refused_keys WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes refused_keys');
END;

CREATE TRIGGER refused_keys_check_delete BEFORE DELETE ON refused_keys WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes refused_keys');
END;

-- One row: whose queue this is, and which copy of it. Each daemon writes a token of its own at its start. Every transaction of
-- the daemon takes the hand (`writing` = its token) if token and epoch are still those that it left, raises the epoch, and lays
-- the hand down at its end. The epoch is noted beside the queue: a file with a smaller one is an older copy. `copied_at`
-- marks what `db backup` wrote. Whoever copies the token into `writing` means to forge: this is a guard against accidents.
CREATE TABLE queue_mark (
    id               INTEGER PRIMARY KEY CONSTRAINT mark_is_one CHECK (id = 1),
    epoch            INTEGER NOT NULL CONSTRAINT epoch_form CHECK (typeof(epoch) = 'integer' AND epoch BETWEEN 0 AND 4000000000000000),
    token            TEXT NOT NULL CONSTRAINT token_form CHECK (typeof(token) = 'text' AND length(token) = 32),
    writing          TEXT,
    copied_at        TEXT CONSTRAINT copied_at_form CHECK (typeof(copied_at) IN ('text', 'null')),
    restored_last_id INTEGER        -- ids up to this one were in the copy that was put back last
                     CONSTRAINT restored_last_id_form CHECK (typeof(restored_last_id) IN ('integer', 'null')),
    CONSTRAINT writing_is_token CHECK (writing IS NULL OR writing = token)
);

-- Token and epoch again, always of the same length, so that SQLite overwrites them in place: the daemon reads them in the
-- file itself, past SQLite, to notice that somebody has written a copy over it.
CREATE TABLE queue_stamp (
    id    INTEGER PRIMARY KEY CONSTRAINT stamp_is_one CHECK (id = 1),
    stamp TEXT NOT NULL
);

-- Taken for the list of migrations that follows; the program lays it down.
INSERT INTO queue_mark (id, epoch, token) VALUES (1, 0, lower(hex(randomblob(16))));
UPDATE queue_mark SET writing = token;
INSERT INTO queue_stamp (id, stamp) VALUES (1, '');

CREATE TRIGGER queue_mark_stamp AFTER UPDATE ON queue_mark WHEN NEW.epoch IS NOT OLD.epoch OR NEW.token IS NOT OLD.token
BEGIN
    UPDATE queue_stamp SET stamp = 'pyrd:' || NEW.token || ':' || printf('%020d', NEW.epoch) WHERE id = 1;
END;

CREATE TRIGGER queue_mark_check_update BEFORE UPDATE ON queue_mark
WHEN OLD.writing IS NULL AND (NEW.writing IS NOT OLD.token OR NEW.token IS NOT OLD.token OR NEW.id IS NOT OLD.id
     OR (NEW.epoch <> OLD.epoch AND NEW.epoch <> OLD.epoch + 1)
     OR NEW.copied_at IS NOT OLD.copied_at OR NEW.restored_last_id IS NOT OLD.restored_last_id)
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes queue_mark');
END;

CREATE TRIGGER queue_mark_check_insert BEFORE INSERT ON queue_mark WHEN EXISTS (SELECT 1 FROM queue_mark)
BEGIN
    SELECT RAISE(ABORT, 'queue_mark has one row, which cannot be replaced');
END;

CREATE TRIGGER queue_mark_check_delete BEFORE DELETE ON queue_mark
BEGIN
    SELECT RAISE(ABORT, 'the row of queue_mark cannot be deleted');
END;

CREATE TRIGGER queue_stamp_check_insert BEFORE INSERT ON queue_stamp WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes queue_stamp');
END;

CREATE TRIGGER queue_stamp_check_update BEFORE UPDATE ON queue_stamp WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes queue_stamp');
END;

CREATE TRIGGER queue_stamp_check_delete BEFORE DELETE ON queue_stamp WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes queue_stamp');
END;

CREATE TRIGGER migrations_check_insert BEFORE INSERT ON _sqlx_migrations WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only poweryard writes the list of its migrations');
END;

CREATE TRIGGER migrations_check_update BEFORE UPDATE OF version, success, checksum ON _sqlx_migrations WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only poweryard writes the list of its migrations');
END;

CREATE TRIGGER migrations_check_delete BEFORE DELETE ON _sqlx_migrations WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only poweryard writes the list of its migrations');
END;

-- A time as a producer writes it. The rule for it is here alone: the triggers of power_requests insert into this view, which
-- reads the times, and hands them on to the next one, which refuses or stores them. request_id: the row to store them in;
-- NULL only checks. expiry_is_new: 1 if expires_at must be later than now.
CREATE VIEW written_times (request_id, not_before, expires_at, expiry_is_new) AS SELECT NULL, NULL, NULL, NULL WHERE 0;
-- The same, read: UTC in the stored form, '' for what is no time.
CREATE VIEW read_times (request_id, not_before, expires_at, expiry_is_new) AS SELECT NULL, NULL, NULL, NULL WHERE 0;

-- SQLite reads T and offsets with a colon. What else people write is brought to that: t and z, +0100, +01 and UTC.
CREATE TRIGGER written_times_read INSTEAD OF INSERT ON written_times
BEGIN
    INSERT INTO read_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NEW.request_id,
        max(CASE WHEN name = 'not_before' THEN CASE WHEN utc GLOB '20[0-9][0-9]-*' THEN utc ELSE '' END END),
        max(CASE WHEN name = 'expires_at' THEN CASE WHEN utc GLOB '20[0-9][0-9]-*' THEN utc ELSE '' END END),
        NEW.expiry_is_new
    FROM (SELECT name,
            CASE WHEN typeof(written) = 'text' AND length(written) = length(CAST(written AS BLOB))
                      AND written GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]*' AND date(julianday(day)) = day
                 THEN strftime('%Y-%m-%dT%H:%M:%fZ', julianday(day || CASE
                     WHEN rest GLOB '* UTC' THEN substr(rest, 1, length(rest) - 4) || 'Z'
                     WHEN rest GLOB '*[+-][0-9][0-9][0-9][0-9]' THEN substr(rest, 1, length(rest) - 2) || ':' || substr(rest, -2)
                     WHEN rest GLOB '*[+-][0-9][0-9]' THEN rest || ':00'
                     ELSE rest END)) END AS utc
          FROM (SELECT name, written, substr(written, 1, 10) AS day, upper(substr(written, 11)) AS rest
                FROM (SELECT 'not_before' AS name, NEW.not_before AS written
                      UNION ALL SELECT 'expires_at', NEW.expires_at)
                WHERE written IS NOT NULL));
END;

CREATE TRIGGER read_times_store INSTEAD OF INSERT ON read_times
BEGIN
    SELECT CASE
        WHEN NEW.not_before = ''
            THEN RAISE(ABORT, 'not_before must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00: a date that exists, from 2000 to 2099, and nothing or a time after it')
        WHEN NEW.expires_at = ''
            THEN RAISE(ABORT, 'expires_at must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00: a date that exists, from 2000 to 2099, and nothing or a time after it')
        WHEN NEW.expiry_is_new AND NEW.expires_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
            THEN RAISE(ABORT, 'expires_at must be later than now (times are UTC unless they carry an offset)')
        WHEN NEW.expires_at <= NEW.not_before
            THEN RAISE(ABORT, 'expires_at must be later than not_before')
    END;
    UPDATE power_requests SET not_before = NEW.not_before, expires_at = NEW.expires_at
    WHERE id = NEW.request_id AND (not_before IS NOT NEW.not_before OR expires_at IS NOT NEW.expires_at);
END;

CREATE TRIGGER power_requests_check_insert BEFORE INSERT ON power_requests
BEGIN
    SELECT CASE
        WHEN NEW.id IS NOT -1 THEN RAISE(ABORT, 'id is given by the queue; leave it out')
        WHEN strftime('%Y', 'now') NOT BETWEEN '2024' AND '2098'
            THEN RAISE(ABORT, 'the clock of this computer is wrong: it is set to a time before 2024 or after 2098; correct it first')
        WHEN typeof(NEW.server_id) <> 'text' OR length(NEW.server_id) NOT BETWEEN 1 AND 64 OR NEW.server_id GLOB '*[^A-Za-z0-9-]*'
             OR length(NEW.server_id) <> length(CAST(NEW.server_id AS BLOB))
            THEN RAISE(ABORT, 'server_id must be 1 to 64 characters of A-Z a-z 0-9 and -')
        WHEN NOT ifnull(NEW.action = 'start' OR NEW.action = 'stop' OR NEW.action = 'reboot', 0) THEN RAISE(ABORT, 'action must be start, stop or reboot')
        WHEN NEW.target IS NOT NULL AND (typeof(NEW.target) <> 'text' OR length(NEW.target) NOT BETWEEN 1 AND 64
             OR NEW.target GLOB '*[^A-Za-z0-9._-]*' OR length(NEW.target) <> length(CAST(NEW.target AS BLOB)))
            THEN RAISE(ABORT, 'target must be 1 to 64 characters of A-Z a-z 0-9 . _ and -')
        WHEN NEW.priority IS NOT NULL AND (typeof(NEW.priority) <> 'integer' OR NEW.priority NOT BETWEEN -100 AND 100)
            THEN RAISE(ABORT, 'priority must be a whole number from -100 to 100')
        WHEN typeof(NEW.request_key) NOT IN ('text', 'null') OR length(NEW.request_key) > 256 OR length(CAST(NEW.request_key AS BLOB)) > 1024
            THEN RAISE(ABORT, 'request_key must be text of at most 256 characters')
        WHEN typeof(NEW.label) NOT IN ('text', 'null') OR length(NEW.label) > 256 OR length(CAST(NEW.label AS BLOB)) > 1024
            THEN RAISE(ABORT, 'label must be text of at most 256 characters')
        WHEN typeof(NEW.requested_by) NOT IN ('text', 'null') OR length(NEW.requested_by) > 256 OR length(CAST(NEW.requested_by AS BLOB)) > 1024
            THEN RAISE(ABORT, 'requested_by must be text of at most 256 characters')
        WHEN NEW.after_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM power_requests WHERE id = NEW.after_id)
            THEN RAISE(ABORT, 'after_id must be the id of an existing request')
        WHEN NEW.state <> 'queued' THEN RAISE(ABORT, 'state is set by the queue; leave it out')
        WHEN NEW.batch_id IS NOT NULL THEN RAISE(ABORT, 'batch_id is set by the queue; leave it out')
        WHEN NEW.attempts <> 0 THEN RAISE(ABORT, 'attempts is set by the queue; leave it out')
        WHEN NEW.retry_at IS NOT NULL THEN RAISE(ABORT, 'retry_at is set by the queue; leave it out')
        WHEN NEW.evidence IS NOT NULL THEN RAISE(ABORT, 'evidence is set by the queue; leave it out')
        WHEN NEW.error_code IS NOT NULL THEN RAISE(ABORT, 'error_code is set by the queue; leave it out')
        WHEN NEW.error_message IS NOT NULL THEN RAISE(ABORT, 'error_message is set by the queue; leave it out')
        WHEN NEW.submitted_at IS NOT NULL THEN RAISE(ABORT, 'submitted_at is set by the queue; leave it out')
        WHEN NEW.finished_at IS NOT NULL THEN RAISE(ABORT, 'finished_at is set by the queue; leave it out')
        WHEN NEW.created_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN RAISE(ABORT, 'created_at is set by the queue; leave it out')
        WHEN NEW.gate <> 'ready' THEN RAISE(ABORT, 'gate is set by the queue; leave it out')
        WHEN NEW.eligible_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN RAISE(ABORT, 'eligible_at is set by the queue; leave it out')
        WHEN NEW.travel_group <> 0 THEN RAISE(ABORT, 'travel_group is set by the queue; leave it out')
    END;
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NULL, NEW.not_before, NEW.expires_at, 1 WHERE NEW.not_before IS NOT NULL OR NEW.expires_at IS NOT NULL;
END;

CREATE TRIGGER power_requests_note_key BEFORE INSERT ON power_requests WHEN NEW.request_key IS NOT NULL
BEGIN
    DELETE FROM repeated_key;
    INSERT INTO repeated_key (request_key) SELECT request_key FROM power_requests WHERE request_key = NEW.request_key;
END;

CREATE TRIGGER power_requests_check_key AFTER INSERT ON power_requests WHEN NEW.request_key IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'request_key is already used by another request, which cannot be replaced')
    WHERE EXISTS (SELECT 1 FROM repeated_key WHERE request_key = NEW.request_key);
END;

-- SQLite's own table of the last ids is open to anybody. Behind the greatest id no other would ever come.
CREATE TRIGGER power_requests_check_id AFTER INSERT ON power_requests WHEN NEW.id > 2000000000000000
BEGIN
    SELECT RAISE(ABORT, 'somebody has set the last id in sqlite_sequence far too high; a running poweryard daemon corrects it');
END;

-- Most rows need nothing more. The others: fill in what was NULL, put the dashes of a UUID, normalise the times, find the gate.
CREATE TRIGGER power_requests_insert AFTER INSERT ON power_requests
WHEN NEW.not_before IS NOT NULL OR NEW.expires_at IS NOT NULL OR NEW.after_id IS NOT NULL
     OR NEW.target IS NULL OR NEW.priority IS NULL OR NEW.created_at IS NULL OR NEW.state IS NULL OR NEW.attempts IS NULL
     OR NEW.gate IS NULL OR NEW.eligible_at IS NULL OR NEW.travel_group IS NULL
     OR (length(NEW.server_id) = 32 AND NEW.server_id NOT GLOB '*[^0-9A-Fa-f]*')
     OR EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id
                AND gate IS NOT NULL AND id <> NEW.id)
BEGIN
    UPDATE power_requests SET
        server_id = CASE WHEN length(NEW.server_id) = 32 AND NEW.server_id NOT GLOB '*[^0-9A-Fa-f]*'
            THEN substr(server_id, 1, 8) || '-' || substr(server_id, 9, 4) || '-' || substr(server_id, 13, 4) || '-'
                 || substr(server_id, 17, 4) || '-' || substr(server_id, 21)
            ELSE server_id END,
        target = ifnull(target, 'default'),
        priority = ifnull(priority, 0),
        created_at = ifnull(created_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        state = ifnull(state, 'queued'),
        attempts = ifnull(attempts, 0),
        gate = ifnull(gate, 'ready'),
        eligible_at = ifnull(eligible_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        travel_group = ifnull(travel_group, 0)
    WHERE id = NEW.id AND (NEW.target IS NULL OR NEW.priority IS NULL OR NEW.created_at IS NULL OR NEW.state IS NULL OR NEW.attempts IS NULL
     OR NEW.gate IS NULL OR NEW.eligible_at IS NULL OR NEW.travel_group IS NULL
     OR (length(NEW.server_id) = 32 AND NEW.server_id NOT GLOB '*[^0-9A-Fa-f]*'));
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NEW.id, NEW.not_before, NEW.expires_at, 0 WHERE NEW.not_before IS NOT NULL OR NEW.expires_at IS NOT NULL;
    UPDATE power_requests SET
        eligible_at = CASE
            WHEN after_id IS NOT NULL AND (SELECT a.state FROM power_requests a WHERE a.id = NEW.after_id) <> 'succeeded' THEN NULL
            WHEN not_before > created_at THEN not_before
            ELSE created_at END,
        gate = CASE
            WHEN (SELECT a.gate FROM power_requests a WHERE a.id = NEW.after_id) IS NOT NULL THEN 'after'
            WHEN after_id IS NOT NULL AND (SELECT a.state FROM power_requests a WHERE a.id = NEW.after_id) <> 'succeeded' THEN 'doomed'
            WHEN not_before > created_at THEN 'later'
            WHEN EXISTS (SELECT 1 FROM power_requests o WHERE o.target = power_requests.target
                         AND o.server_id = power_requests.server_id AND o.gate = 'flight')
              OR EXISTS (SELECT 1 FROM power_requests o WHERE o.target = power_requests.target
                         AND o.server_id = power_requests.server_id AND o.gate = 'retry')
              OR EXISTS (SELECT 1 FROM power_requests o WHERE o.target = power_requests.target
                         AND o.server_id = power_requests.server_id AND o.gate = 'ready' AND o.id <> NEW.id) THEN 'behind'
            ELSE 'ready' END
    WHERE id = NEW.id;
END;

-- Only an insert may leave these out. A request without a gate would never be looked at again.
CREATE TRIGGER power_requests_check_filled
BEFORE UPDATE OF created_at, state, attempts, gate, finished_at, travel_group ON power_requests
WHEN OLD.finished_at IS NULL AND (NEW.created_at IS NULL OR NEW.state IS NULL OR NEW.attempts IS NULL OR NEW.travel_group IS NULL
     OR (NEW.gate IS NULL AND NEW.finished_at IS NULL))
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes created_at, attempts, gate and travel_group');
END;

-- The id is looked at whatever the statement names: "UPDATE OF id" does not see SET rowid = 5.
CREATE TRIGGER power_requests_check_end BEFORE UPDATE ON power_requests WHEN OLD.finished_at IS NOT NULL OR NEW.id IS NOT OLD.id
BEGIN
    SELECT CASE
        WHEN OLD.finished_at IS NOT NULL THEN RAISE(ABORT, 'this request has ended; what became of it never changes')
        ELSE RAISE(ABORT, 'what a request asks for never changes; cancel it and insert another')
    END;
END;

-- Producers cancel, and change terms; the rest is the daemon's. What triggers write themselves while a producer works passes
-- here too: the second half of a cancel, a promotion of the first that waits behind, and a gate that says what is true.
CREATE TRIGGER power_requests_check_hand BEFORE UPDATE ON power_requests
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL AND NEW.id IS OLD.id AND OLD.finished_at IS NULL
     AND NOT (OLD.state = 'cancelled' AND OLD.gate IS NOT NULL)
     -- a row that is being inserted, and whose NULLs are being filled in
     AND NOT (OLD.target IS NULL OR OLD.created_at IS NULL OR OLD.state IS NULL OR OLD.attempts IS NULL OR OLD.travel_group IS NULL
              OR OLD.gate IS NULL OR (OLD.gate = 'ready' AND OLD.eligible_at IS NULL))
     AND (NEW.gate IS NOT OLD.gate OR NEW.eligible_at IS NOT OLD.eligible_at OR NEW.batch_id IS NOT OLD.batch_id
          OR NEW.attempts IS NOT OLD.attempts OR NEW.retry_at IS NOT OLD.retry_at OR NEW.evidence IS NOT OLD.evidence
          OR NEW.error_code IS NOT OLD.error_code OR NEW.error_message IS NOT OLD.error_message
          OR NEW.submitted_at IS NOT OLD.submitted_at OR NEW.finished_at IS NOT OLD.finished_at
          OR NEW.travel_group IS NOT OLD.travel_group
          OR (NEW.state IS NOT OLD.state AND NOT (OLD.state = 'queued' AND NEW.state IS 'cancelled')))
BEGIN
    SELECT CASE
        WHEN OLD.state = 'queued' AND NEW.state IS 'running' THEN RAISE(ABORT, 'only the daemon submits requests')
        WHEN NEW.state IS NOT OLD.state AND NOT (OLD.state = 'queued' AND NEW.state IS 'cancelled')
            THEN RAISE(ABORT, 'a request does not move this way; a producer may only cancel what is queued')
        WHEN NEW.state IS NOT OLD.state OR NEW.batch_id IS NOT OLD.batch_id OR NEW.attempts IS NOT OLD.attempts
             OR NEW.retry_at IS NOT OLD.retry_at OR NEW.evidence IS NOT OLD.evidence OR NEW.error_code IS NOT OLD.error_code
             OR NEW.error_message IS NOT OLD.error_message OR NEW.submitted_at IS NOT OLD.submitted_at
             OR NEW.finished_at IS NOT OLD.finished_at OR NEW.travel_group IS NOT OLD.travel_group
             OR OLD.state <> 'queued'
             OR NOT CASE NEW.gate
                 WHEN 'ready' THEN NEW.eligible_at IS OLD.eligible_at
                 WHEN 'retry' THEN NEW.eligible_at IS OLD.eligible_at
                 WHEN 'behind' THEN NEW.eligible_at IS OLD.eligible_at AND (OLD.gate = 'ready'
                     OR (OLD.gate = 'later' AND NEW.eligible_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))
                 -- After the clock was set back, what is awaited may have ended later than now.
                 WHEN 'later' THEN NEW.eligible_at IS max(NEW.created_at, ifnull(strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.not_before)), ''),
                     ifnull((SELECT a.finished_at FROM power_requests a WHERE a.id = NEW.after_id), ''))
                     OR NEW.eligible_at IS max(NEW.created_at, ifnull(strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.not_before)), ''))
                 WHEN 'after' THEN NEW.eligible_at IS NULL
                     AND (OLD.gate = 'after' OR (SELECT gate FROM power_requests WHERE id = NEW.after_id) IS NOT NULL)
                 WHEN 'doomed' THEN NEW.eligible_at IS NULL
                     AND (OLD.gate = 'doomed' OR ifnull((SELECT state FROM power_requests WHERE id = NEW.after_id), 'succeeded') <> 'succeeded')
                 ELSE 0 END
             OR ((NEW.gate = 'ready' OR NEW.gate = 'retry') AND NEW.gate IS NOT OLD.gate AND (
                 NOT (OLD.gate = 'behind' OR (OLD.gate = 'later' AND NEW.eligible_at <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))
                 OR EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'flight')
                 OR EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'retry')
                 OR EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'ready')
                 OR EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'behind'
                            AND id < NEW.id)))
             OR (NEW.gate = 'behind' AND NEW.gate IS NOT OLD.gate AND NOT EXISTS (
                 SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND id <> NEW.id
                 AND (gate = 'flight' OR gate = 'retry' OR gate = 'ready')))
            THEN RAISE(ABORT, 'a producer changes only priority, not_before, expires_at and label of a request, or cancels it while it is queued')
    END;
END;

CREATE TRIGGER power_requests_check_wish
BEFORE UPDATE OF server_id, action, target, after_id, request_key, requested_by, created_at ON power_requests
-- Only a row that is being inserted lacks a target, a creation time or the dashes of its UUID.
WHEN OLD.finished_at IS NULL AND (NEW.action IS NOT OLD.action
     OR (CAST(NEW.server_id AS BLOB) IS NOT CAST(OLD.server_id AS BLOB)
         AND NOT (length(OLD.server_id) = 32 AND OLD.server_id NOT GLOB '*[^0-9A-Fa-f]*'))
     OR (NEW.target IS NOT OLD.target AND OLD.target IS NOT NULL) OR NEW.after_id IS NOT OLD.after_id OR NEW.request_key IS NOT OLD.request_key
     OR NEW.requested_by IS NOT OLD.requested_by OR (NEW.created_at IS NOT OLD.created_at AND OLD.created_at IS NOT NULL))
BEGIN
    SELECT RAISE(ABORT, 'what a request asks for never changes; cancel it and insert another');
END;

CREATE TRIGGER power_requests_check_terms BEFORE UPDATE OF priority, not_before, expires_at, label ON power_requests
WHEN OLD.finished_at IS NULL
BEGIN
    SELECT CASE
        WHEN OLD.state <> 'queued' AND (NEW.priority IS NOT OLD.priority OR NEW.not_before IS NOT OLD.not_before
             OR NEW.expires_at IS NOT OLD.expires_at OR NEW.label IS NOT OLD.label)
            THEN RAISE(ABORT, 'priority, not_before, expires_at and label can be changed only while a request is queued')
        WHEN typeof(NEW.priority) <> 'integer' OR NEW.priority NOT BETWEEN -100 AND 100
            THEN RAISE(ABORT, 'priority must be a whole number from -100 to 100')
        WHEN typeof(NEW.label) NOT IN ('text', 'null') OR length(NEW.label) > 256 OR length(CAST(NEW.label AS BLOB)) > 1024
            THEN RAISE(ABORT, 'label must be text of at most 256 characters')
    END;
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NULL, NEW.not_before, NEW.expires_at, NEW.expires_at IS NOT OLD.expires_at
    WHERE NEW.not_before IS NOT OLD.not_before OR NEW.expires_at IS NOT OLD.expires_at;
END;

-- Stored times have one form, so that any other is a producer's.
CREATE TRIGGER power_requests_times AFTER UPDATE OF not_before, expires_at ON power_requests
WHEN NEW.not_before NOT GLOB '????-??-??T??:??:??.???Z' OR NEW.expires_at NOT GLOB '????-??-??T??:??:??.???Z'
BEGIN
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    VALUES (NEW.id, NEW.not_before, NEW.expires_at, 0);
END;

-- A new not_before parks the request; the daemon lets it out when it is due, at once if it already is.
CREATE TRIGGER power_requests_not_before AFTER UPDATE OF not_before ON power_requests
WHEN NEW.state = 'queued' AND OLD.state = 'queued' AND NEW.not_before IS NOT OLD.not_before
     AND (NEW.not_before IS NULL OR NEW.not_before GLOB '????-??-??T??:??:??.???Z')
BEGIN
    UPDATE power_requests SET
        eligible_at = CASE WHEN gate IN ('after', 'doomed') THEN NULL
            ELSE max(created_at, ifnull(NEW.not_before, ''),
                     ifnull((SELECT a.finished_at FROM power_requests a WHERE a.id = NEW.after_id), '')) END,
        gate = CASE WHEN gate IN ('after', 'doomed') THEN gate ELSE 'later' END
    WHERE id = NEW.id;
    UPDATE power_requests SET gate = CASE WHEN retry_at IS NULL THEN 'ready' ELSE 'retry' END
    WHERE id = (SELECT min(id) FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'behind')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'flight')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'retry')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'ready');
END;

CREATE TRIGGER power_requests_check_state BEFORE UPDATE OF state ON power_requests
WHEN NEW.state IS NOT OLD.state AND OLD.finished_at IS NULL AND OLD.state IS NOT NULL
BEGIN
    SELECT CASE
        WHEN NOT CASE NEW.state
                 WHEN 'running' THEN OLD.state = 'queued'
                 WHEN 'cancelled' THEN OLD.state = 'queued'
                 WHEN 'expired' THEN OLD.state = 'queued'
                 WHEN 'rejected' THEN OLD.state = 'queued'
                 WHEN 'queued' THEN OLD.state = 'running'
                 WHEN 'succeeded' THEN OLD.state = 'running'
                 WHEN 'failed' THEN OLD.state = 'running'
                 WHEN 'unknown' THEN OLD.state = 'running'
                 ELSE 0 END
            THEN RAISE(ABORT, 'a request does not move this way; a producer may only cancel what is queued')
        WHEN NEW.state = 'running' AND EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target
             AND server_id = NEW.server_id AND gate = 'flight' AND id <> NEW.id)
            THEN RAISE(ABORT, 'another request for this server is in progress')
        WHEN NEW.state = 'running' AND (NEW.batch_id IS OLD.batch_id
             OR NOT EXISTS (SELECT 1 FROM batches WHERE id = NEW.batch_id AND state = 'submitting'))
            THEN RAISE(ABORT, 'only the daemon submits requests')
    END;
END;

-- What a move means for others: one trigger for each, because an UPDATE inside a trigger costs much even if it finds nothing.

-- A producer's cancel sets only the state.
CREATE TRIGGER power_requests_cancel AFTER UPDATE OF state ON power_requests
WHEN NEW.state = 'cancelled' AND NEW.gate IS NOT NULL
BEGIN
    UPDATE power_requests SET evidence = 'none', error_code = 'poweryard.cancelled', error_message = 'cancelled while queued',
        retry_at = NULL, gate = NULL, finished_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = NEW.id;
    UPDATE power_requests SET gate = CASE WHEN retry_at IS NULL THEN 'ready' ELSE 'retry' END
    WHERE id = (SELECT min(id) FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'behind')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'flight')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'retry')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'ready');
END;

-- A request ended, or came back to the queue behind another: the first of its server comes forward.
CREATE TRIGGER power_requests_next AFTER UPDATE OF state ON power_requests
WHEN NEW.state IS NOT OLD.state AND (NEW.gate IS NULL OR NEW.gate = 'behind')
     AND EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'behind')
BEGIN
    UPDATE power_requests SET gate = CASE WHEN retry_at IS NULL THEN 'ready' ELSE 'retry' END
    WHERE id = (SELECT min(id) FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'behind')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'flight')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'retry')
      AND NOT EXISTS (SELECT 1 FROM power_requests WHERE target = NEW.target AND server_id = NEW.server_id AND gate = 'ready');
END;

-- The daemon hears of an end that others waited for.
CREATE TRIGGER power_requests_awaited AFTER UPDATE OF state ON power_requests
WHEN NEW.state IS NOT OLD.state AND (NEW.gate IS NULL OR NEW.state = 'cancelled')
     AND EXISTS (SELECT 1 FROM power_requests WHERE after_id = NEW.id AND gate IS NOT NULL)
BEGIN
    INSERT INTO awaited_ends (request_id) VALUES (NEW.id);
END;

CREATE TRIGGER power_requests_check_delete BEFORE DELETE ON power_requests
WHEN OLD.gate IS NOT NULL OR EXISTS (SELECT 1 FROM power_requests WHERE after_id = OLD.id AND gate IS NOT NULL)
BEGIN
    SELECT CASE
        WHEN OLD.gate IS NOT NULL THEN RAISE(ABORT, 'an unfinished request cannot be deleted; cancel it while it is queued')
        ELSE RAISE(ABORT, 'another request waits for this one; it cannot be deleted yet')
    END;
END;

CREATE VIEW power_outcomes AS
SELECT r.id, r.target, r.server_id, r.action, r.state, r.evidence, r.error_code, r.error_message, b.job_id, r.batch_id, r.attempts,
       r.created_at, r.submitted_at, r.finished_at,
       CAST(round((julianday(r.finished_at) - julianday(r.submitted_at)) * 86400000.0) AS INTEGER) AS duration_ms,
       r.label, r.requested_by, r.request_key
FROM power_requests r LEFT JOIN batches b ON b.id = r.batch_id
WHERE r.finished_at IS NOT NULL;

CREATE VIEW server_outcomes AS
SELECT r.target, r.server_id, r.action, r.state, r.evidence, r.error_code, r.error_message, r.finished_at, r.id AS request_id
FROM power_requests r
WHERE r.finished_at IS NOT NULL
  AND r.id = (SELECT n.id FROM power_requests n WHERE n.target = r.target AND n.server_id = r.server_id
              AND n.finished_at IS NOT NULL ORDER BY n.finished_at DESC, n.id DESC LIMIT 1);

CREATE VIEW power_waiting AS
SELECT r.id, r.target, r.server_id, r.action,
    CASE
        WHEN r.gate IN ('after', 'doomed') THEN 'waits for request ' || r.after_id
        WHEN r.gate = 'later' AND r.eligible_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN 'not due until ' || r.eligible_at
        WHEN r.gate = 'behind' THEN 'behind request ' || coalesce(
            (SELECT max(p.id) FROM power_requests p WHERE p.target = r.target AND p.server_id = r.server_id
             AND p.gate = 'behind' AND p.id < r.id),
            (SELECT p.id FROM power_requests p WHERE p.target = r.target AND p.server_id = r.server_id
             AND p.gate IN ('flight', 'ready', 'retry') LIMIT 1), '')
        ELSE coalesce(
            (SELECT 'held: ' || h.reason FROM holds h
             WHERE (h.target IS NULL OR h.target = r.target) AND (h.action IS NULL OR h.action = r.action)
               AND (h.until IS NULL OR h.until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
             ORDER BY h.until IS NOT NULL, h.until DESC, h.id LIMIT 1),
            CASE WHEN r.gate = 'retry' AND r.retry_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN 'retry at ' || r.retry_at END,
            'next')
    END AS reason
FROM power_requests r
WHERE r.state = 'queued';

CREATE VIEW queue_overview AS
SELECT target, action, state, count(*) AS count, min(created_at) AS oldest_created_at
FROM power_requests
WHERE gate IS NOT NULL
GROUP BY target, action, state;
