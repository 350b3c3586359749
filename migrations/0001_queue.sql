-- The queue: a public API in SQL. Its producers are strangers with stock SQLite libraries from 3.26 on, so: no STRICT,
-- no generated columns, no unixepoch(), no JSON, and RAISE texts are literals. Rules live in BEFORE triggers, because
-- INSERT OR IGNORE drops a row that fails a CHECK without a word but cannot ignore RAISE(ABORT); named CHECKs repeat them.
--
-- What triggers and CHECKs evaluate spells lists out (a = 'x' OR a = 'y' OR ...): for IN with three values or more SQLite
-- builds a temporary b-tree for each row, which costs more than all the rest of an insert. For the same reason a plain row
-- passes one long condition, in which the usual form of a value comes first, and the sentences come only after that.

PRAGMA application_id = 1887007332; -- 'pyrd'

CREATE TABLE power_requests (
    id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT CONSTRAINT id_positive CHECK (id > 0),

    -- Columns with a default take an explicit NULL for it, because object mappers send every column that they know. They
    -- are not NOT NULL for that alone: OR IGNORE would drop such a row without a word. An AFTER trigger fills them.

    -- what the producer asks for
    server_id    TEXT NOT NULL COLLATE NOCASE CONSTRAINT server_id_form CHECK (length(server_id) BETWEEN 1 AND 64),
    action       TEXT NOT NULL CONSTRAINT action_known CHECK (action = 'start' OR action = 'stop' OR action = 'reboot'),
    target       TEXT DEFAULT 'default' CONSTRAINT target_form CHECK (
                     target = 'default' OR (length(target) BETWEEN 1 AND 64 AND target NOT GLOB '*[^A-Za-z0-9._-]*')),
    priority     INTEGER DEFAULT 0 CONSTRAINT priority_range CHECK (priority BETWEEN -100 AND 100),
    not_before   TEXT CONSTRAINT not_before_form CHECK (not_before IS NULL OR not_before GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]*'),
    expires_at   TEXT CONSTRAINT expires_at_form CHECK (expires_at IS NULL OR expires_at GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]*'),
    after_id     INTEGER CONSTRAINT after_id_earlier CHECK (after_id IS NULL OR after_id < id),
    -- in characters; a text with a NUL counts only up to that, so that its bytes are bounded too
    request_key  TEXT CONSTRAINT request_key_form CHECK (request_key IS NULL OR (length(request_key) <= 256 AND length(CAST(request_key AS BLOB)) <= 1024)),
    label        TEXT CONSTRAINT label_form CHECK (label IS NULL OR (length(label) <= 256 AND length(CAST(label AS BLOB)) <= 1024)),
    requested_by TEXT CONSTRAINT requested_by_form CHECK (requested_by IS NULL OR (length(requested_by) <= 256 AND length(CAST(requested_by AS BLOB)) <= 1024)),
    override_reason TEXT CONSTRAINT override_reason_form CHECK (override_reason IS NULL OR (length(override_reason) BETWEEN 1 AND 256 AND length(CAST(override_reason AS BLOB)) <= 1024)),
    approved_by  TEXT CONSTRAINT approved_by_form CHECK (approved_by IS NULL OR (length(approved_by) BETWEEN 1 AND 256 AND length(CAST(approved_by AS BLOB)) <= 1024)),
    created_at   TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),

    -- what the daemon tells
    state        TEXT DEFAULT 'queued',
    batch_id     INTEGER,
    attempts     INTEGER DEFAULT 0,
    retry_at     TEXT,
    evidence     TEXT,
    error_code   TEXT,
    error_message TEXT,
    submitted_at TEXT,
    finished_at  TEXT,

    -- internal, kept by the daemon (`store::sqlite::gate`) and, where a producer changes a row, by the triggers below.
    -- gate: where a request is on its way out. NULL once it is terminal.
    --   ready   in its lane: may be claimed, unless an earlier one of its server is unfinished
    --   retry   waits for retry_at, and holds up its server
    --   held    its label is paused, or its order's wave has not come; it holds up its server
    --   flight  running
    -- and parked, out of the way of the claim:
    --   behind  due, another one of its server goes first
    --   later   waits for eligible_at (not_before)
    --   after   waits for after_id
    gate         TEXT DEFAULT 'ready',
    -- 1 while it is in the line of its server: ready, retry, held or flight, and for some time after the end. It does not
    -- change while a request is claimed and ends, so that neither writes to an index in the order of servers.
    in_line      INTEGER DEFAULT 1,
    -- the latest of created_at, not_before, the end of after_id, and when its wave let it go, where that is not created_at;
    -- NULL also while that end is not known (gate 'after')
    eligible_at  TEXT,
    -- 0: fresh. Else the part of a refused batch that this request belongs to; groups never share a batch
    travel_group INTEGER DEFAULT 0,
    -- of the present attempt: the server's last operation before the call, where the service remembers it, as
    -- "reboot succeeded"; when it was first seen in the transition that this request would cause
    baseline     TEXT,
    seen_since   TEXT,
    -- the wave of its order that lets it go; NULL: none yet, or no order with waves
    wave         INTEGER,

    -- A stranger who writes here anyway must leave something that the daemon can read. A fresh row passes by the first line.
    CONSTRAINT told_in_form CHECK (
        (state = 'queued' AND gate = 'ready' AND in_line = 1 AND batch_id IS NULL AND attempts = 0 AND retry_at IS NULL
         AND evidence IS NULL AND error_code IS NULL AND error_message IS NULL AND submitted_at IS NULL
         AND finished_at IS NULL AND eligible_at IS NULL AND travel_group = 0 AND baseline IS NULL AND seen_since IS NULL
         AND wave IS NULL)
        OR ((state = 'running' OR state = 'succeeded' OR state = 'failed' OR state = 'queued' OR state = 'unknown'
             OR state = 'cancelled' OR state = 'expired' OR state = 'rejected')
            AND typeof(batch_id) IN ('integer', 'null') AND typeof(attempts) IN ('integer', 'null') AND attempts >= 0
            AND typeof(travel_group) IN ('integer', 'null') AND typeof(wave) IN ('integer', 'null') AND (in_line IS NULL OR in_line = 1)
            AND (evidence IS NULL OR evidence = 'job' OR evidence = 'observed' OR evidence = 'already' OR evidence = 'refused'
                 OR evidence = 'none')
            AND typeof(error_code) IN ('text', 'null') AND typeof(error_message) IN ('text', 'null')
            AND typeof(baseline) IN ('text', 'null')
            AND (retry_at IS NULL OR (typeof(retry_at) = 'text' AND retry_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
            AND (eligible_at IS NULL OR (typeof(eligible_at) = 'text' AND eligible_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
            AND (submitted_at IS NULL OR (typeof(submitted_at) = 'text' AND submitted_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
            AND (finished_at IS NULL OR (typeof(finished_at) = 'text' AND finished_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'))
            AND (seen_since IS NULL OR (typeof(seen_since) = 'text' AND seen_since GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z')))),
    CONSTRAINT gate_fits CHECK (CASE gate
        WHEN 'ready' THEN in_line = 1 AND state <> 'running'
        WHEN 'flight' THEN in_line = 1 AND state = 'running' AND batch_id IS NOT NULL
        WHEN 'retry' THEN in_line = 1 AND retry_at IS NOT NULL AND state <> 'running'
        WHEN 'held' THEN in_line = 1 AND state <> 'running'
        WHEN 'behind' THEN in_line IS NULL AND state <> 'running'
        WHEN 'later' THEN in_line IS NULL AND eligible_at IS NOT NULL AND state <> 'running'
        WHEN 'after' THEN in_line IS NULL AND state <> 'running'
        ELSE gate IS NULL AND state <> 'running' END),
    -- a producer's cancel sets only the state; the AFTER trigger fills the rest
    CONSTRAINT end_is_complete CHECK (CASE
        WHEN state = 'queued' OR state = 'running' THEN finished_at IS NULL AND evidence IS NULL
        WHEN state = 'cancelled' AND gate IS NOT NULL THEN finished_at IS NULL AND evidence IS NULL
        WHEN state IS NULL THEN 1
        ELSE finished_at IS NOT NULL AND evidence IS NOT NULL AND gate IS NULL
             AND ((state <> 'succeeded' AND state <> 'failed') OR evidence <> 'none') END)
);

-- What may be claimed, in the order of the claim. Parked rows are not in it. The third column is the number of the lane:
-- approved requests may leave while a guard holds the others, and those with a reason to may leave outside windows. The
-- last one is for the guard, which counts without reading the rows.
CREATE INDEX power_requests_ready ON power_requests
    (target, action, travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL), priority DESC, id, batch_id)
    WHERE gate = 'ready';
-- Each request that has not ended is in exactly one of the next two; ended ones move from the first to the third some time
-- after, many at once.
CREATE INDEX power_requests_line ON power_requests (server_id, target) WHERE in_line = 1;
CREATE INDEX power_requests_parked ON power_requests (target, server_id, gate, id) WHERE in_line IS NULL AND gate IS NOT NULL;
CREATE INDEX power_requests_past ON power_requests (server_id, target, finished_at) WHERE in_line IS NULL AND gate IS NULL;
-- Whether anybody is behind another one, without a look at those that wait for their time.
CREATE INDEX power_requests_behind ON power_requests (target) WHERE gate = 'behind';
CREATE INDEX power_requests_parked_count ON power_requests (target, action, id) WHERE in_line IS NULL AND gate IS NOT NULL;
-- What its label holds back, in the order of the claim: first what no wave has let go. And counted.
CREATE INDEX power_requests_held ON power_requests (label, wave, priority DESC, id) WHERE gate = 'held';
CREATE INDEX power_requests_held_count ON power_requests (target, action, id) WHERE gate = 'held';
-- Due and unapproved, besides those that are ready.
CREATE INDEX power_requests_unapproved ON power_requests (target, action, batch_id)
    WHERE approved_by IS NULL AND (gate = 'retry' OR gate = 'held' OR gate = 'behind');
CREATE INDEX power_requests_later ON power_requests (eligible_at) WHERE gate = 'later';
CREATE INDEX power_requests_retry ON power_requests (retry_at) WHERE gate = 'retry';
CREATE INDEX power_requests_expiry ON power_requests (expires_at) WHERE state = 'queued' AND expires_at IS NOT NULL;
CREATE INDEX power_requests_ttl ON power_requests (ifnull(eligible_at, created_at))
    WHERE state = 'queued' AND gate <> 'after' AND expires_at IS NULL;
-- With the gate: those that have been let out already must not be passed over again for every further one.
CREATE INDEX power_requests_after ON power_requests (after_id, gate) WHERE gate IS NOT NULL AND after_id IS NOT NULL;
CREATE INDEX power_requests_batch ON power_requests (batch_id) WHERE batch_id IS NOT NULL;
-- Its members, while they are running.
CREATE INDEX power_requests_running ON power_requests (batch_id) WHERE state = 'running';
CREATE INDEX power_requests_ended ON power_requests (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX power_requests_label ON power_requests (label) WHERE label IS NOT NULL;
CREATE INDEX power_requests_wave ON power_requests (label, state, wave) WHERE wave IS NOT NULL;
-- What is not due of an order, or behind others.
CREATE INDEX power_requests_not_due ON power_requests (label)
    WHERE wave IS NULL AND label IS NOT NULL AND (gate = 'later' OR gate = 'after' OR gate = 'behind' OR gate = 'retry');
-- Not partial, so that ON CONFLICT (request_key) finds it.
CREATE UNIQUE INDEX power_requests_key ON power_requests (request_key);

-- Keys again: INSERT OR REPLACE on the unique index above deletes the old request, with or without firing delete triggers.
-- The BEFORE trigger still sees the old one and notes its key here; if the insert goes on, the AFTER trigger finds the
-- note and undoes the whole statement. OR IGNORE and DO NOTHING leave the note behind; the next insert wipes it.
CREATE TABLE repeated_key (
    request_key TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;

-- Requests that have ended, or left the line of their server, while others wait for that: the daemon's next round lets
-- those out or cancels them, some at a time. There may be a hundred thousand of them, too many for one transaction.
CREATE TABLE round_notes (
    request_id INTEGER PRIMARY KEY,
    target     TEXT,
    server_id  TEXT COLLATE NOCASE
);

-- Batches that are done and whose requests still stand in the line: they leave it in a quiet moment. A trigger writes it.
CREATE TABLE lingering_batches (
    batch_id INTEGER PRIMARY KEY
);

CREATE TABLE batches (
    id            INTEGER PRIMARY KEY AUTOINCREMENT CONSTRAINT batch_id_possible CHECK (id <= 2000000000000000),
    target        TEXT NOT NULL,
    service       TEXT NOT NULL CONSTRAINT batch_service_known CHECK (service IN ('bms', 'clouddc')),
    endpoint      TEXT NOT NULL,
    project_id    TEXT NOT NULL,
    action        TEXT NOT NULL CONSTRAINT batch_action_known CHECK (action = 'start' OR action = 'stop' OR action = 'reboot'),
    state         TEXT NOT NULL CONSTRAINT batch_state_known CHECK (
                      state = 'submitting' OR state = 'tracking' OR state = 'looking' OR state = 'done'),
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
    approved      INTEGER NOT NULL DEFAULT 0,   -- 1: all of its requests were approved: guards do not count it
    look_cause    TEXT CONSTRAINT look_cause_known CHECK (
                      look_cause = 'refused' OR look_cause = 'lost' OR look_cause = 'vanished' OR look_cause = 'time_limit'
                      OR look_cause = 'gap' OR look_cause = 'busy'),
    look_until    TEXT,                         -- looking ends here
    from_copy     INTEGER NOT NULL DEFAULT 0,   -- 1: it was open in an older copy that was put back
    doubts        INTEGER NOT NULL DEFAULT 0,   -- answers in a row that did not know the job, or left it unfinished
    job_ms        INTEGER,                      -- how long the job took, for later batches to learn from
    read_error    TEXT,                         -- why the last look failed; NULL once one succeeds
    intent_steady_ms    INTEGER NOT NULL DEFAULT 0,     -- intent_at and submitted_at in milliseconds since 1970, less
    submitted_steady_ms INTEGER,                        -- queue_mark.clock_set_ms: ages go by these

    CONSTRAINT batch_texts CHECK (typeof(target) = 'text' AND typeof(service) = 'text' AND typeof(endpoint) = 'text'
                                  AND typeof(project_id) = 'text' AND typeof(job_id) IN ('text', 'null')
                                  AND typeof(error_code) IN ('text', 'null') AND typeof(error_message) IN ('text', 'null')
                                  AND typeof(read_error) IN ('text', 'null')),
    CONSTRAINT batch_numbers CHECK (typeof(server_count) = 'integer' AND typeof(looks) = 'integer' AND typeof(doubts) = 'integer'
                                    AND typeof(travel_group) = 'integer' AND typeof(job_ms) IN ('integer', 'null')
                                    AND typeof(intent_steady_ms) = 'integer'
                                    AND typeof(submitted_steady_ms) IN ('integer', 'null')),
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
CREATE INDEX batches_spent ON batches (target, action, intent_steady_ms);
-- What guards count.
CREATE INDEX batches_unapproved ON batches (target, action, intent_steady_ms) WHERE approved = 0;
CREATE INDEX batches_history ON batches (target, action, id) WHERE job_ms IS NOT NULL;

-- What a request's earlier calls came to. Of the last one the request itself tells: see the view request_attempts.
CREATE TABLE earlier_attempts (
    request_id    INTEGER NOT NULL,
    batch_id      INTEGER NOT NULL,
    result        TEXT NOT NULL CONSTRAINT result_known CHECK (
                      result = 'succeeded' OR result = 'failed' OR result = 'already' OR result = 'busy'
                      OR result = 'refused' OR result = 'not_sent' OR result = 'lost' OR result = 'unknown'),
    error_code    TEXT,
    error_message TEXT,
    started_at    TEXT NOT NULL,
    finished_at   TEXT NOT NULL,
    baseline      TEXT,
    seen_since    TEXT,

    PRIMARY KEY (request_id, batch_id),
    CONSTRAINT attempt_ids CHECK (typeof(request_id) = 'integer' AND typeof(batch_id) = 'integer'),
    CONSTRAINT attempt_texts CHECK (typeof(error_code) IN ('text', 'null') AND typeof(error_message) IN ('text', 'null')
                                    AND typeof(baseline) IN ('text', 'null')),
    CONSTRAINT attempt_times CHECK (typeof(started_at) = 'text' AND started_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'
        AND typeof(finished_at) = 'text' AND finished_at GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'
        AND (seen_since IS NULL OR (typeof(seen_since) = 'text' AND seen_since GLOB
            '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z')))
) WITHOUT ROWID;
CREATE INDEX earlier_attempts_batch ON earlier_attempts (batch_id);

-- The ledgers move only with the write guard of the daemon: while `queue_mark.writing` is NULL, nobody may write here.
-- What was sent never changes even then.
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
     OR NEW.intent_steady_ms IS NOT OLD.intent_steady_ms
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

CREATE TRIGGER earlier_attempts_check_insert BEFORE INSERT ON earlier_attempts
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
     OR EXISTS (SELECT 1 FROM earlier_attempts WHERE request_id = NEW.request_id AND batch_id = NEW.batch_id)
BEGIN
    SELECT CASE
        WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL THEN RAISE(ABORT, 'only the daemon writes attempts')
        ELSE RAISE(ABORT, 'an attempt cannot be replaced')
    END;
END;

CREATE TRIGGER earlier_attempts_check_update BEFORE UPDATE ON earlier_attempts
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes attempts, and how one ended never changes');
END;

CREATE TRIGGER earlier_attempts_check_delete BEFORE DELETE ON earlier_attempts WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only poweryard deletes attempts: see `poweryard db prune --help`');
END;

-- The daemon hears of changes by this list: if somebody empties it, others wait for ever.
CREATE TRIGGER round_notes_check_delete BEFORE DELETE ON round_notes WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon deletes from round_notes');
END;

CREATE TRIGGER round_notes_check_update BEFORE UPDATE ON round_notes WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon changes round_notes');
END;

CREATE TRIGGER batches_done AFTER UPDATE OF state ON batches
WHEN NEW.state = 'done' AND OLD.state <> 'done' AND (SELECT writing FROM queue_mark WHERE id = 1) IS NOT NULL
BEGIN
    INSERT INTO lingering_batches (batch_id) VALUES (NEW.id) ON CONFLICT DO NOTHING;
END;

CREATE TRIGGER lingering_batches_check_insert BEFORE INSERT ON lingering_batches WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes lingering_batches');
END;

CREATE TRIGGER lingering_batches_check_update BEFORE UPDATE ON lingering_batches WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes lingering_batches');
END;

CREATE TRIGGER lingering_batches_check_delete BEFORE DELETE ON lingering_batches WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes lingering_batches');
END;

-- target, action or label NULL: all of them.
CREATE TABLE holds (
    id     INTEGER PRIMARY KEY,
    target TEXT,
    action TEXT CONSTRAINT hold_action_known CHECK (action = 'start' OR action = 'stop' OR action = 'reboot'),
    label  TEXT,
    kind   TEXT NOT NULL CONSTRAINT hold_kind_known CHECK (
                      kind = 'operator' OR kind = 'budget' OR kind = 'credentials' OR kind = 'breaker'
                      OR kind = 'unknown_target' OR kind = 'restored' OR kind = 'approval' OR kind = 'window'
                      OR kind = 'wave'),
    reason TEXT NOT NULL,
    since  TEXT NOT NULL,
    until  TEXT,
    CONSTRAINT hold_texts CHECK (typeof(target) IN ('text', 'null') AND typeof(label) IN ('text', 'null') AND typeof(reason) = 'text')
);
CREATE UNIQUE INDEX holds_one_of_a_kind ON holds (ifnull(target, ''), ifnull(action, ''), ifnull(label, ''), kind);
-- What may hold a configured target; unknown targets can be many.
CREATE INDEX holds_that_matter ON holds (id) WHERE kind <> 'unknown_target' OR target IS NULL;

CREATE INDEX holds_of_labels ON holds (label) WHERE label IS NOT NULL;

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
    budget_ms          INTEGER,           -- the longest span of its budgets and guards: its batches are kept for as long
    default_ttl_ms     INTEGER,           -- requests without a time of expiry expire after this; NULL: never
    inventory_at       TEXT,              -- when its servers were last read in full
    inventory_error    TEXT,              -- why the last try to read them failed; NULL once one succeeds
    CONSTRAINT target_numbers CHECK (typeof(submits_per_minute) = 'integer' AND submits_per_minute >= 0
                                     AND typeof(pace_per_minute) = 'integer' AND pace_per_minute >= 0
                                     AND typeof(throttles) = 'integer' AND throttles >= 0
                                     AND typeof(budget_ms) IN ('integer', 'null')
                                     AND typeof(default_ttl_ms) IN ('integer', 'null'))
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

-- One row: whose queue this is, and which copy of it. Each daemon writes a token of its own at its start. Every
-- transaction of the daemon takes the write guard (`writing` = its token) if token and epoch are still those that it
-- left, raises the epoch, and gives the guard back at its end. The epoch file beside the queue has the newest epoch: a
-- queue with a smaller one is an older copy. `copied_at` marks what `db backup` wrote. The triggers of power_requests
-- take the guard too, as 'insert' or 'change', while they fill in what a producer leaves to them. Somebody who copies
-- the token into `writing` means to forge: this is a guard against accidents.
CREATE TABLE queue_mark (
    id               INTEGER PRIMARY KEY CONSTRAINT mark_is_one CHECK (id = 1),
    epoch            INTEGER NOT NULL CONSTRAINT epoch_form CHECK (typeof(epoch) = 'integer' AND epoch BETWEEN 0 AND 4000000000000000),
    token            TEXT NOT NULL CONSTRAINT token_form CHECK (typeof(token) = 'text' AND length(token) = 32),
    writing          TEXT,
    copied_at        TEXT CONSTRAINT copied_at_form CHECK (typeof(copied_at) IN ('text', 'null')),
    clock_at         TEXT            -- what the machine's clock showed when the daemon wrote last,
                     CONSTRAINT clock_at_form CHECK (typeof(clock_at) IN ('text', 'null')),
    clock_uptime_ms  INTEGER         -- for how long the machine had been up then,
                     CONSTRAINT clock_uptime_form CHECK (typeof(clock_uptime_ms) IN ('integer', 'null')),
    clock_boot       TEXT            -- and the id of that boot
                     CONSTRAINT clock_boot_form CHECK (typeof(clock_boot) IN ('text', 'null')),
    clock_set_ms     INTEGER NOT NULL DEFAULT 0      -- by how much the clock was set since the queue was made
                     CONSTRAINT clock_set_form CHECK (typeof(clock_set_ms) = 'integer'),
    restored_last_id INTEGER        -- ids up to this one were in the copy that was put back last
                     CONSTRAINT restored_last_id_form CHECK (typeof(restored_last_id) IN ('integer', 'null')),
    missing_calls    INTEGER        -- so many claims were missing from that copy
                     CONSTRAINT missing_calls_form CHECK (typeof(missing_calls) IN ('integer', 'null')),
    missing_calls_ms INTEGER        -- when that was found, by the clock without what it was set
                     CONSTRAINT missing_calls_ms_form CHECK (typeof(missing_calls_ms) IN ('integer', 'null')),
    CONSTRAINT writing_is_known CHECK (writing IS NULL OR writing = token OR writing = 'insert' OR writing = 'change')
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
WHEN OLD.writing IS NULL AND ((NEW.writing IS NOT OLD.token AND NEW.writing IS NOT 'insert' AND NEW.writing IS NOT 'change') OR NEW.token IS NOT OLD.token OR NEW.id IS NOT OLD.id
     OR (NEW.epoch <> OLD.epoch AND NEW.epoch <> OLD.epoch + 1)
     OR NEW.copied_at IS NOT OLD.copied_at OR NEW.clock_at IS NOT OLD.clock_at
     OR NEW.clock_uptime_ms IS NOT OLD.clock_uptime_ms OR NEW.clock_boot IS NOT OLD.clock_boot
     OR NEW.clock_set_ms IS NOT OLD.clock_set_ms OR NEW.restored_last_id IS NOT OLD.restored_last_id
     OR NEW.missing_calls IS NOT OLD.missing_calls OR NEW.missing_calls_ms IS NOT OLD.missing_calls_ms)
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

-- A time as a producer writes it. The rule for it is here: the triggers of power_requests insert into this view, which
-- reads the times, and hands them on to the next one, which refuses or stores them. Only a new request whose times are
-- written as they are stored, and break no rule, does without it (power_requests_check_insert). request_id, or
-- order_label: the row to store them in; NULL only checks. expiry_is_new: 1 if expires_at must be later than now.
CREATE VIEW written_times (request_id, order_label, not_before, expires_at, expiry_is_new) AS SELECT NULL, NULL, NULL, NULL, NULL WHERE 0;
-- The same, read: UTC in the stored form, '' for what is no time.
CREATE VIEW read_times (request_id, order_label, not_before, expires_at, expiry_is_new) AS SELECT NULL, NULL, NULL, NULL, NULL WHERE 0;

-- SQLite reads T and offsets with a colon. What else people write is brought to that: t and z, +0100, +01 and UTC.
CREATE TRIGGER written_times_read INSTEAD OF INSERT ON written_times
BEGIN
    INSERT INTO read_times (request_id, order_label, not_before, expires_at, expiry_is_new)
    SELECT NEW.request_id, NEW.order_label,
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
    UPDATE orders SET expires_at = NEW.expires_at WHERE label = NEW.order_label AND expires_at IS NOT NEW.expires_at;
END;

-- A row looks at no neighbour but the one that it waits for. The condition is what a plain row passes; the body finds out
-- what is wrong with another, if anything is. (A CASE leaves off at the first condition that fails; as a value, the same AND would
-- evaluate all of them.)
CREATE TRIGGER power_requests_check_insert BEFORE INSERT ON power_requests
WHEN CASE WHEN NEW.id IS -1 AND typeof(NEW.server_id) = 'text'
      AND (NEW.server_id GLOB '[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]-[0-9a-f][0-9a-f][0-9a-f][0-9a-f]-[0-9a-f][0-9a-f][0-9a-f][0-9a-f]-[0-9a-f][0-9a-f][0-9a-f][0-9a-f]-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]'
           OR (length(NEW.server_id) BETWEEN 1 AND 64 AND NEW.server_id NOT GLOB '*[^A-Za-z0-9-]*'
               AND length(NEW.server_id) = length(CAST(NEW.server_id AS BLOB))))
      AND (NEW.action = 'start' OR NEW.action = 'stop' OR NEW.action = 'reboot')
      AND (NEW.target = 'default' OR (typeof(NEW.target) = 'text' AND length(NEW.target) BETWEEN 1 AND 64
           AND NEW.target NOT GLOB '*[^A-Za-z0-9._-]*' AND length(NEW.target) = length(CAST(NEW.target AS BLOB))))
      AND typeof(NEW.priority) = 'integer' AND NEW.priority BETWEEN -100 AND 100
      AND NEW.not_before IS NULL AND NEW.expires_at IS NULL AND NEW.after_id IS NULL AND NEW.request_key IS NULL
      AND (NEW.label IS NULL OR (typeof(NEW.label) = 'text' AND length(NEW.label) <= 256 AND length(CAST(NEW.label AS BLOB)) <= 1024))
      AND (NEW.requested_by IS NULL OR (typeof(NEW.requested_by) = 'text' AND length(NEW.requested_by) <= 256
           AND length(CAST(NEW.requested_by AS BLOB)) <= 1024))
      AND NEW.override_reason IS NULL AND NEW.approved_by IS NULL AND NEW.wave IS NULL
      AND julianday(NEW.created_at) = julianday('now') AND NEW.created_at GLOB '20??-??-??T??:??:??.???Z'
      AND NEW.created_at > '2024' AND NEW.created_at < '2099'
      AND NEW.state IS 'queued' AND NEW.batch_id IS NULL AND NEW.attempts IS 0 AND NEW.retry_at IS NULL AND NEW.evidence IS NULL
      AND NEW.error_code IS NULL AND NEW.error_message IS NULL AND NEW.submitted_at IS NULL AND NEW.finished_at IS NULL
      AND NEW.gate IS 'ready' AND NEW.in_line IS 1 AND NEW.eligible_at IS NULL AND NEW.travel_group IS 0
      AND NEW.baseline IS NULL AND NEW.seen_since IS NULL THEN 0 ELSE 1 END
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
        WHEN typeof(NEW.override_reason) NOT IN ('text', 'null') OR length(NEW.override_reason) NOT BETWEEN 1 AND 256
             OR length(CAST(NEW.override_reason AS BLOB)) > 1024
            THEN RAISE(ABORT, 'override_reason must be text of 1 to 256 characters')
        WHEN NEW.approved_by IS NOT NULL
            THEN RAISE(ABORT, 'approved_by is set by whoever approves the request once it is queued; leave it out')
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
        WHEN NEW.in_line <> 1 THEN RAISE(ABORT, 'in_line is set by the queue; leave it out')
        WHEN NEW.eligible_at IS NOT NULL THEN RAISE(ABORT, 'eligible_at is set by the queue; leave it out')
        WHEN NEW.travel_group <> 0 THEN RAISE(ABORT, 'travel_group is set by the queue; leave it out')
        WHEN NEW.baseline IS NOT NULL THEN RAISE(ABORT, 'baseline is set by the queue; leave it out')
        WHEN NEW.seen_since IS NOT NULL THEN RAISE(ABORT, 'seen_since is set by the queue; leave it out')
        WHEN NEW.wave IS NOT NULL THEN RAISE(ABORT, 'wave is set by the queue; leave it out')
    END;
    -- Times that are written as they are stored are read here; the rest, and what is wrong, by the view.
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NULL, NEW.not_before, NEW.expires_at, 1
    WHERE NOT (
        (NEW.not_before IS NULL OR (NEW.not_before IS strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.not_before)) AND NEW.not_before GLOB '20*'))
        AND (NEW.expires_at IS NULL OR (
            NEW.expires_at IS strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.expires_at)) AND NEW.expires_at GLOB '20*'
            AND NEW.expires_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AND (NEW.not_before IS NULL OR NEW.expires_at > NEW.not_before))));
    DELETE FROM repeated_key WHERE NEW.request_key IS NOT NULL;
    INSERT INTO repeated_key (request_key) SELECT request_key FROM power_requests WHERE request_key = NEW.request_key;
END;

-- Most rows need nothing more. The others: fill in what was NULL, put the dashes of a UUID, normalise the times, find the
-- gate. SQLite's own table of the last ids is open to anybody: behind the greatest id no other would ever come.
CREATE TRIGGER power_requests_insert AFTER INSERT ON power_requests
WHEN NEW.not_before IS NOT NULL OR NEW.expires_at IS NOT strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.expires_at))
     OR NEW.after_id IS NOT NULL OR NEW.request_key IS NOT NULL
     OR NEW.target IS NULL OR NEW.priority IS NULL OR NEW.created_at IS NULL OR NEW.state IS NULL OR NEW.attempts IS NULL
     OR NEW.gate IS NULL OR NEW.in_line IS NULL OR NEW.travel_group IS NULL
     OR (length(NEW.server_id) = 32 AND NEW.server_id NOT GLOB '*[^0-9A-Fa-f]*')
     OR NEW.id > 2000000000000000
BEGIN
    SELECT RAISE(ABORT, 'somebody has set the last id in sqlite_sequence far too high; a running poweryard daemon corrects it')
    WHERE NEW.id > 2000000000000000;
    SELECT RAISE(ABORT, 'request_key is already used by another request, which cannot be replaced')
    WHERE EXISTS (SELECT 1 FROM repeated_key WHERE request_key = NEW.request_key);
    UPDATE queue_mark SET writing = 'insert' WHERE id = 1 AND writing IS NULL;
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
        in_line = 1,
        travel_group = ifnull(travel_group, 0)
    WHERE id = NEW.id AND (NEW.target IS NULL OR NEW.priority IS NULL OR NEW.created_at IS NULL OR NEW.state IS NULL OR NEW.attempts IS NULL
     OR NEW.gate IS NULL OR NEW.in_line IS NULL OR NEW.travel_group IS NULL
     OR (length(NEW.server_id) = 32 AND NEW.server_id NOT GLOB '*[^0-9A-Fa-f]*'));
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NEW.id, NEW.not_before, NEW.expires_at, 0
    WHERE NEW.not_before IS NOT strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.not_before))
       OR NEW.expires_at IS NOT strftime('%Y-%m-%dT%H:%M:%fZ', julianday(NEW.expires_at));
    UPDATE power_requests SET gate = 'after', in_line = NULL, eligible_at = NULL
    WHERE id = NEW.id AND NEW.after_id IS NOT NULL
      AND (SELECT a.state FROM power_requests a WHERE a.id = NEW.after_id) <> 'succeeded';
    UPDATE power_requests SET gate = 'later', in_line = NULL, eligible_at = not_before
    WHERE id = NEW.id AND gate <> 'after' AND not_before > created_at;
    INSERT INTO round_notes (request_id, target, server_id) SELECT a.id, a.target, a.server_id FROM power_requests a
    WHERE a.id = NEW.after_id AND a.finished_at IS NOT NULL AND a.state <> 'succeeded'
      AND NOT EXISTS (SELECT 1 FROM round_notes WHERE request_id = a.id);
    UPDATE queue_mark SET writing = NULL WHERE id = 1 AND writing = 'insert';
END;

-- For every writer: what has ended stays, a request moves only along the arrows of its life, and at most one request of
-- a server is running. That one is the first of its line: it may run only if no earlier one is there unfinished, and
-- while it runs, no earlier one may come into the line (power_requests_check_line). Without the write guard only a
-- producer's words may change; only then the body has more to do than to say what is wrong. The body reads the old row
-- (o) itself: what a trigger names as OLD, SQLite reads for each row that the daemon changes too.
CREATE TRIGGER power_requests_check_update BEFORE UPDATE ON power_requests
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR OLD.finished_at IS NOT NULL OR NEW.id IS NOT OLD.id
     OR (NEW.state IS NOT OLD.state AND CASE NEW.state
         WHEN 'running' THEN OLD.state <> 'queued' OR NEW.batch_id IS NULL OR NEW.batch_id IS OLD.batch_id OR EXISTS (
             SELECT 1 FROM power_requests o WHERE o.in_line = 1 AND o.server_id = NEW.server_id AND o.target = NEW.target
             AND o.id < NEW.id AND o.finished_at IS NULL)
         WHEN 'succeeded' THEN OLD.state <> 'running'
         WHEN 'failed' THEN OLD.state <> 'running'
         WHEN 'unknown' THEN OLD.state <> 'running'
         WHEN 'queued' THEN OLD.state <> 'running'
         ELSE OLD.state <> 'queued' OR NEW.state IS NULL END)
BEGIN
    SELECT CASE
        WHEN o.finished_at IS NOT NULL AND ((SELECT writing FROM queue_mark WHERE id = 1) IS NULL OR NEW.in_line IS NOT NULL
             OR NEW.id IS NOT o.id OR NEW.state IS NOT o.state OR NEW.gate IS NOT NULL OR NEW.evidence IS NOT o.evidence
             OR NEW.error_code IS NOT o.error_code OR NEW.error_message IS NOT o.error_message
             OR NEW.batch_id IS NOT o.batch_id OR NEW.attempts IS NOT o.attempts
             OR NEW.submitted_at IS NOT o.submitted_at OR NEW.finished_at IS NOT o.finished_at)
            THEN RAISE(ABORT, 'this request has ended; what became of it never changes')
        WHEN NEW.id IS NOT o.id THEN RAISE(ABORT, 'what a request asks for never changes; cancel it and insert another')
        WHEN NEW.state = 'running' AND o.state = 'queued' AND ((SELECT writing FROM queue_mark WHERE id = 1) IS NULL
             OR NEW.batch_id IS NULL OR NEW.batch_id IS o.batch_id)
            THEN RAISE(ABORT, 'only the daemon submits requests')
        WHEN NEW.state = 'running' AND o.state = 'queued'
            THEN RAISE(ABORT, 'another request for this server is in progress, or goes first')
        WHEN NEW.state IS NOT o.state AND o.state IS NOT NULL AND NOT CASE NEW.state
             WHEN 'succeeded' THEN o.state = 'running'
             WHEN 'failed' THEN o.state = 'running'
             WHEN 'unknown' THEN o.state = 'running'
             WHEN 'queued' THEN o.state = 'running'
             WHEN 'cancelled' THEN o.state = 'queued'
             WHEN 'expired' THEN o.state = 'queued'
             WHEN 'rejected' THEN o.state = 'queued'
             ELSE 0 END
            THEN RAISE(ABORT, 'a request does not move this way; a producer may only cancel what is queued')
        WHEN o.finished_at IS NOT NULL THEN NULL
        WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NOT NULL THEN NULL
        WHEN NEW.action IS NOT o.action OR CAST(NEW.server_id AS BLOB) IS NOT CAST(o.server_id AS BLOB)
             OR NEW.target IS NOT o.target OR NEW.after_id IS NOT o.after_id OR NEW.request_key IS NOT o.request_key
             OR NEW.requested_by IS NOT o.requested_by OR NEW.created_at IS NOT o.created_at
            THEN RAISE(ABORT, 'what a request asks for never changes; cancel it and insert another')
        WHEN NEW.state IS NOT o.state AND NEW.state IS NOT 'cancelled'
            THEN RAISE(ABORT, 'a request does not move this way; a producer may only cancel what is queued')
        WHEN NEW.gate IS NOT o.gate OR NEW.in_line IS NOT o.in_line OR NEW.eligible_at IS NOT o.eligible_at
             OR NEW.batch_id IS NOT o.batch_id OR NEW.attempts IS NOT o.attempts OR NEW.retry_at IS NOT o.retry_at
             OR NEW.evidence IS NOT o.evidence OR NEW.error_code IS NOT o.error_code
             OR NEW.error_message IS NOT o.error_message OR NEW.submitted_at IS NOT o.submitted_at
             OR NEW.finished_at IS NOT o.finished_at OR NEW.travel_group IS NOT o.travel_group
             OR NEW.baseline IS NOT o.baseline OR NEW.seen_since IS NOT o.seen_since OR NEW.wave IS NOT o.wave
            THEN RAISE(ABORT, 'a producer changes only priority, not_before, expires_at, label, override_reason and approved_by of a request, or cancels it while it is queued')
        WHEN o.state <> 'queued' AND (NEW.priority IS NOT o.priority OR NEW.not_before IS NOT o.not_before
             OR NEW.expires_at IS NOT o.expires_at OR NEW.label IS NOT o.label
             OR NEW.override_reason IS NOT o.override_reason OR NEW.approved_by IS NOT o.approved_by)
            THEN RAISE(ABORT, 'priority, not_before, expires_at, label, override_reason and approved_by can be changed only while a request is queued')
        WHEN typeof(NEW.priority) <> 'integer' OR NEW.priority NOT BETWEEN -100 AND 100
            THEN RAISE(ABORT, 'priority must be a whole number from -100 to 100')
        WHEN typeof(NEW.label) NOT IN ('text', 'null') OR length(NEW.label) > 256 OR length(CAST(NEW.label AS BLOB)) > 1024
            THEN RAISE(ABORT, 'label must be text of at most 256 characters')
        WHEN typeof(NEW.override_reason) NOT IN ('text', 'null') OR length(NEW.override_reason) NOT BETWEEN 1 AND 256
             OR length(CAST(NEW.override_reason AS BLOB)) > 1024
            THEN RAISE(ABORT, 'override_reason must be text of 1 to 256 characters')
        WHEN typeof(NEW.approved_by) NOT IN ('text', 'null') OR length(NEW.approved_by) NOT BETWEEN 1 AND 256
             OR length(CAST(NEW.approved_by AS BLOB)) > 1024
            THEN RAISE(ABORT, 'approved_by must be text of 1 to 256 characters: who approves it')
    END
    FROM power_requests o WHERE o.id = OLD.id;
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    SELECT NULL, NEW.not_before, NEW.expires_at, NEW.expires_at IS NOT o.expires_at FROM power_requests o
    WHERE o.id = OLD.id AND (NEW.not_before IS NOT o.not_before OR NEW.expires_at IS NOT o.expires_at);
END;

CREATE TRIGGER power_requests_check_line BEFORE UPDATE OF in_line ON power_requests
WHEN NEW.in_line = 1 AND OLD.in_line IS NULL AND OLD.gate IS NOT NULL
     AND (SELECT f.state FROM power_requests f WHERE f.in_line = 1 AND f.server_id = NEW.server_id AND f.target = NEW.target
          AND f.finished_at IS NULL ORDER BY f.id LIMIT 1) = 'running'
BEGIN
    SELECT RAISE(ABORT, 'another request for this server is in progress, or goes first');
END;

-- Stored times have one form, so that any other is a producer's; so is 24:00, which is 00:00 of the next day.
CREATE TRIGGER power_requests_times AFTER UPDATE OF not_before, expires_at ON power_requests
WHEN NEW.not_before NOT GLOB '????-??-??T??:??:??.???Z' OR NEW.expires_at NOT GLOB '????-??-??T??:??:??.???Z'
     OR NEW.not_before GLOB '*T24:*' OR NEW.expires_at GLOB '*T24:*'
BEGIN
    INSERT INTO written_times (request_id, not_before, expires_at, expiry_is_new)
    VALUES (NEW.id, NEW.not_before, NEW.expires_at, 0);
END;

-- A new not_before parks the request; the daemon lets it out when it is due, at once if it already is. Those behind it hear
-- of it in the next round.
CREATE TRIGGER power_requests_not_before AFTER UPDATE OF not_before ON power_requests
WHEN NEW.state = 'queued' AND OLD.state = 'queued' AND NEW.not_before IS NOT OLD.not_before
     AND (NEW.not_before IS NULL OR (NEW.not_before GLOB '????-??-??T??:??:??.???Z' AND NEW.not_before NOT GLOB '*T24:*'))
     AND (SELECT writing FROM queue_mark WHERE id = 1) IS NOT 'insert'
BEGIN
    INSERT INTO round_notes (request_id, target, server_id) SELECT NEW.id, NEW.target, NEW.server_id
    WHERE NOT EXISTS (SELECT 1 FROM round_notes WHERE request_id = NEW.id)
      AND EXISTS (SELECT 1 FROM power_requests WHERE in_line IS NULL AND gate = 'behind' AND target = NEW.target
                  AND server_id = NEW.server_id);
    UPDATE queue_mark SET writing = 'change' WHERE id = 1 AND writing IS NULL;
    UPDATE power_requests SET
        eligible_at = CASE gate WHEN 'after' THEN NULL
            ELSE max(created_at, ifnull(NEW.not_before, ''),
                     ifnull((SELECT min(a.finished_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) FROM power_requests a
                             WHERE a.id = NEW.after_id), '')) END,
        gate = CASE gate WHEN 'after' THEN gate ELSE 'later' END,
        in_line = NULL
    WHERE id = NEW.id;
    UPDATE queue_mark SET writing = NULL WHERE id = 1 AND writing = 'change';
END;

-- A producer's cancel sets only the state. Those behind it, and those that wait for it, hear of it in the next round.
CREATE TRIGGER power_requests_cancel AFTER UPDATE OF state ON power_requests
WHEN NEW.state = 'cancelled' AND NEW.gate IS NOT NULL
BEGIN
    UPDATE queue_mark SET writing = 'change' WHERE id = 1 AND writing IS NULL;
    UPDATE power_requests SET evidence = 'none', error_code = 'poweryard.cancelled', error_message = 'cancelled while queued',
        retry_at = NULL, gate = NULL, in_line = NULL, finished_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
    WHERE id = NEW.id;
    UPDATE queue_mark SET writing = NULL WHERE id = 1 AND writing = 'change';
    INSERT INTO round_notes (request_id, target, server_id) SELECT NEW.id, NEW.target, NEW.server_id
    WHERE NOT EXISTS (SELECT 1 FROM round_notes WHERE request_id = NEW.id)
      AND (EXISTS (SELECT 1 FROM power_requests WHERE after_id = NEW.id AND gate = 'after')
           OR EXISTS (SELECT 1 FROM power_requests WHERE in_line IS NULL AND gate = 'behind' AND target = NEW.target
                      AND server_id = NEW.server_id));
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
       r.label, r.requested_by, r.approved_by, r.override_reason, r.request_key
FROM power_requests r LEFT JOIN batches b ON b.id = r.batch_id
WHERE r.finished_at IS NOT NULL;

-- Ended requests stand in the line for some time before they are in the past: both are looked at.
CREATE VIEW server_outcomes AS
SELECT r.target, r.server_id, r.action, r.state, r.evidence, r.error_code, r.error_message, r.finished_at, r.id AS request_id
FROM power_requests r
WHERE r.in_line IS NULL AND r.gate IS NULL
  AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line IS NULL AND n.gate IS NULL AND n.server_id = r.server_id
                  AND n.target = r.target AND (n.finished_at, n.id) > (r.finished_at, r.id))
  AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line = 1 AND n.server_id = r.server_id
                  AND n.target = r.target AND (n.finished_at, n.id) > (r.finished_at, r.id))
UNION ALL
SELECT r.target, r.server_id, r.action, r.state, r.evidence, r.error_code, r.error_message, r.finished_at, r.id
FROM power_requests r
WHERE r.in_line = 1 AND r.finished_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line IS NULL AND n.gate IS NULL AND n.server_id = r.server_id
                  AND n.target = r.target AND (n.finished_at, n.id) > (r.finished_at, r.id))
  AND NOT EXISTS (SELECT 1 FROM power_requests n WHERE n.in_line = 1 AND n.server_id = r.server_id
                  AND n.target = r.target AND (n.finished_at, n.id) > (r.finished_at, r.id));

-- Each call that carried a request. The last one is in the request's own row.
CREATE VIEW request_attempts AS
SELECT request_id, batch_id, result, error_code, error_message, started_at, finished_at, baseline,
       CASE WHEN seen_since IS NOT NULL THEN 'moving' END AS seen, seen_since
FROM earlier_attempts
UNION ALL
SELECT id, batch_id,
       CASE WHEN state = 'running' THEN NULL
            WHEN state = 'succeeded' AND evidence = 'already' THEN 'already'
            WHEN state = 'failed' AND evidence = 'refused' THEN 'refused'
            ELSE state END,
       CASE WHEN state <> 'running' THEN error_code END,
       CASE WHEN state <> 'running' THEN error_message END,
       submitted_at, finished_at, baseline, CASE WHEN seen_since IS NOT NULL THEN 'moving' END, seen_since
FROM power_requests
WHERE batch_id IS NOT NULL AND state IN ('running', 'succeeded', 'failed', 'unknown');

CREATE VIEW power_waiting AS
SELECT r.id, r.target, r.server_id, r.action,
    CASE
        WHEN r.gate = 'after' THEN 'waits for request ' || r.after_id
        WHEN r.gate = 'later' AND r.eligible_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN 'not due until ' || r.eligible_at
        WHEN r.gate <> 'later' AND EXISTS (
            SELECT 1 FROM power_requests p WHERE p.in_line = 1 AND p.server_id = r.server_id AND p.target = r.target
            AND p.id < r.id AND p.finished_at IS NULL)
            THEN 'behind request ' || max(
                (SELECT p.id FROM power_requests p WHERE p.in_line = 1 AND p.server_id = r.server_id AND p.target = r.target
                 AND p.id < r.id AND p.finished_at IS NULL ORDER BY p.id DESC LIMIT 1),
                ifnull((SELECT max(p.id) FROM power_requests p WHERE p.in_line IS NULL AND p.gate = 'behind'
                        AND p.target = r.target AND p.server_id = r.server_id AND p.id < r.id), 0))
        WHEN r.gate = 'behind' THEN 'behind request ' || coalesce(
            (SELECT max(p.id) FROM power_requests p WHERE p.in_line IS NULL AND p.gate = 'behind' AND p.target = r.target
             AND p.server_id = r.server_id AND p.id < r.id),
            (SELECT p.id FROM power_requests p WHERE p.in_line = 1 AND p.server_id = r.server_id AND p.target = r.target
             AND p.finished_at IS NULL ORDER BY p.id LIMIT 1), 'that is over')
        ELSE coalesce(
            (SELECT 'held: ' || h.reason || CASE WHEN h.until > coalesce(r.expires_at,
                 (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', julianday(ifnull(r.eligible_at, r.created_at)) + t.default_ttl_ms / 86400000.0)
                  FROM targets t WHERE t.target = r.target)) THEN '; it will expire before that' ELSE '' END
             FROM holds h
             WHERE (h.target IS NULL OR h.target = r.target) AND (h.action IS NULL OR h.action = r.action)
               AND (h.label IS NULL OR h.label = r.label)
               AND (h.until IS NULL OR h.until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
               AND CASE h.kind WHEN 'approval' THEN r.approved_by IS NULL WHEN 'window' THEN r.override_reason IS NULL
                   WHEN 'wave' THEN r.wave IS NULL ELSE 1 END
             ORDER BY h.until IS NOT NULL, h.until DESC, h.id LIMIT 1),
            CASE WHEN r.gate = 'held' THEN 'held: its turn in its order has not come' END,
            CASE WHEN r.gate = 'retry' AND r.retry_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN 'retry at ' || r.retry_at END,
            'next')
    END AS reason
FROM power_requests r
WHERE r.state = 'queued';

-- Counted along indexes that the daemon keeps anyway: what is ready, parked, to be retried, and carried by an open batch.
-- The oldest is the one with the lowest id.
CREATE VIEW queue_overview AS
SELECT c.target, c.action, c.state, c.count,
       (SELECT o.created_at FROM power_requests o WHERE o.id = c.oldest_id) AS oldest_created_at
FROM (SELECT target, action, state, sum(count) AS count, min(oldest_id) AS oldest_id
FROM (SELECT target, action, 'queued' AS state, count(*) AS count, min(id) AS oldest_id
      FROM power_requests INDEXED BY power_requests_ready WHERE gate = 'ready' GROUP BY target, action
      UNION ALL
      SELECT target, action, 'queued', count(*), min(id)
      FROM power_requests INDEXED BY power_requests_parked_count WHERE in_line IS NULL AND gate IS NOT NULL GROUP BY target, action
      UNION ALL
      SELECT target, action, 'queued', count(*), min(id)
      FROM power_requests INDEXED BY power_requests_held_count WHERE gate = 'held' GROUP BY target, action
      UNION ALL
      SELECT target, action, 'queued', 1, id FROM power_requests INDEXED BY power_requests_retry WHERE gate = 'retry'
      UNION ALL
      SELECT b.target, b.action, 'running',
             (SELECT count(*) FROM power_requests r WHERE r.state = 'running' AND r.batch_id = b.id),
             (SELECT r.id FROM power_requests r WHERE r.state = 'running' AND r.batch_id = b.id ORDER BY r.id LIMIT 1)
      FROM batches b WHERE b.state <> 'done')
WHERE count > 0
GROUP BY target, action, state) c;

-- Orders with waves, the servers that lists have shown, and who did what.

-- An order is all requests of one label, in any target. Its row is written before its requests, or with them in one
-- transaction.
CREATE TABLE orders (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    label        TEXT NOT NULL UNIQUE CONSTRAINT order_label_form CHECK (
                     typeof(label) = 'text' AND length(label) BETWEEN 1 AND 256 AND length(CAST(label AS BLOB)) <= 1024),

    -- what the producer asks for
    waves        TEXT NOT NULL CONSTRAINT waves_form CHECK (typeof(waves) = 'text' AND length(waves) BETWEEN 1 AND 1024),
    failures_max TEXT DEFAULT '0' CONSTRAINT failures_max_form CHECK (length(failures_max) <= 64),
    pause        TEXT CONSTRAINT pause_form CHECK (length(pause) <= 64),
    expires_at   TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+7 days')),
    created_at   TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),

    -- what the daemon tells
    state        TEXT DEFAULT 'open' CONSTRAINT order_state_known CHECK (state = 'open' OR state = 'held' OR state = 'done'),
    wave         INTEGER DEFAULT 1 CONSTRAINT wave_positive CHECK (wave > 0),
    finished_at  TEXT,

    -- internal
    begun_at     TEXT,                  -- when its first requests were let go; NULL: not yet
    begun_id     INTEGER,               -- requests with a greater id joined after that: they come last
    done_id      INTEGER DEFAULT 0,     -- requests up to this id had ended when it was done last: their servers' turns are over
    read_id      INTEGER DEFAULT 0,     -- its requests up to this id are known to the daemon
    servers      INTEGER DEFAULT 0,     -- how many it has
    wave_size    INTEGER DEFAULT 0,     -- of the present wave, in servers; 0: it has not been opened
    wave_taken   INTEGER DEFAULT 0,     -- servers that the present wave has let go
    wave_over_at TEXT,                  -- when the present wave was over; NULL: it is not
    -- what an operator lets go in spite of all: the next wave, or all that remain
    let_go       TEXT CONSTRAINT let_go_known CHECK (let_go IN ('wave', 'rest')),

    CONSTRAINT order_told_in_form CHECK (
        (wave IS NULL OR typeof(wave) = 'integer')
        AND (read_id IS NULL OR typeof(read_id) = 'integer') AND (done_id IS NULL OR typeof(done_id) = 'integer')
        AND typeof(begun_id) IN ('integer', 'null')
        AND (servers IS NULL OR (typeof(servers) = 'integer' AND servers >= 0))
        AND (wave_size IS NULL OR (typeof(wave_size) = 'integer' AND wave_size >= 0))
        AND (wave_taken IS NULL OR (typeof(wave_taken) = 'integer' AND wave_taken >= 0))
        AND typeof(begun_at) IN ('text', 'null') AND typeof(wave_over_at) IN ('text', 'null')
        AND typeof(finished_at) IN ('text', 'null'))
);
CREATE INDEX orders_open ON orders (id) WHERE state IS NOT 'done';
CREATE INDEX orders_done ON orders (id) WHERE state = 'done';

-- The sizes of each order, one a row: `size` servers, or `share` percent of them; both NULL where the text does not read.
CREATE VIEW order_waves AS
WITH RECURSIVE split(label, number, item, rest) AS (
    SELECT label, 0, NULL, replace(waves, ' ', '') || ',' FROM orders
    UNION ALL
    SELECT label, number + 1, substr(rest, 1, instr(rest, ',') - 1), substr(rest, instr(rest, ',') + 1)
    FROM split WHERE rest <> ''
)
SELECT label, number,
       CASE WHEN item <> '' AND length(item) < 10 AND item NOT GLOB '*[^0-9]*' AND CAST(item AS INTEGER) >= 1
            THEN CAST(item AS INTEGER) END AS size,
       CASE WHEN length(item) < 10 AND item GLOB '[0-9]*%' AND item NOT GLOB '*[^0-9.%]*' AND item NOT GLOB '*%?*'
                 AND item NOT GLOB '*.*.*' AND item NOT GLOB '*.%' AND CAST(item AS REAL) > 0 AND CAST(item AS REAL) <= 100
            THEN CAST(item AS REAL) END AS share
FROM split WHERE number > 0;

CREATE TRIGGER orders_check_insert BEFORE INSERT ON orders
BEGIN
    SELECT CASE
        WHEN typeof(NEW.label) <> 'text' OR length(NEW.label) NOT BETWEEN 1 AND 256 OR length(CAST(NEW.label AS BLOB)) > 1024
            THEN RAISE(ABORT, 'label must be text of 1 to 256 characters')
        WHEN EXISTS (SELECT 1 FROM orders WHERE label = NEW.label AND begun_at IS NOT NULL)
            THEN RAISE(ABORT, 'this order has begun; its row can no longer be changed')
        WHEN EXISTS (SELECT 1 FROM power_requests WHERE label = NEW.label AND batch_id IS NOT NULL)
            THEN RAISE(ABORT, 'requests with this label have been sent already; an order is written before that')
        WHEN typeof(NEW.waves) <> 'text' OR length(NEW.waves) NOT BETWEEN 1 AND 1024
            THEN RAISE(ABORT, 'waves must be sizes such as 1, 5%, 25%: numbers of servers from 1, or shares above 0 up to 100%')
        WHEN (NEW.state IS NOT NULL AND NEW.state <> 'open') OR (NEW.wave IS NOT NULL AND NEW.wave <> 1)
             OR NEW.finished_at IS NOT NULL OR NEW.begun_at IS NOT NULL OR NEW.begun_id IS NOT NULL OR NEW.id IS NOT -1
             OR (NEW.done_id IS NOT NULL AND NEW.done_id <> 0)
             OR (NEW.read_id IS NOT NULL AND NEW.read_id <> 0) OR (NEW.servers IS NOT NULL AND NEW.servers <> 0)
             OR (NEW.wave_size IS NOT NULL AND NEW.wave_size <> 0) OR (NEW.wave_taken IS NOT NULL AND NEW.wave_taken <> 0)
             OR NEW.wave_over_at IS NOT NULL OR NEW.let_go IS NOT NULL
             OR (NEW.created_at IS NOT NULL AND NEW.created_at <> strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
            THEN RAISE(ABORT, 'an order has label, waves, failures_max, pause and expires_at; the other columns are set by the queue')
    END;
END;

CREATE TRIGGER orders_insert AFTER INSERT ON orders
BEGIN
    UPDATE orders SET
        failures_max = ifnull(failures_max, '0'),
        expires_at = ifnull(expires_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+7 days')),
        created_at = ifnull(created_at, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        state = ifnull(state, 'open'), wave = ifnull(wave, 1), done_id = ifnull(done_id, 0), read_id = ifnull(read_id, 0),
        servers = ifnull(servers, 0),
        wave_size = ifnull(wave_size, 0), wave_taken = ifnull(wave_taken, 0)
    WHERE label = NEW.label;
    INSERT INTO checked_orders (label, expires_at) VALUES (NEW.label, NEW.expires_at);
END;

-- What a producer wrote into an order, read by one rule for INSERT and UPDATE.
CREATE VIEW checked_orders (label, expires_at) AS SELECT NULL, NULL WHERE 0;

CREATE TRIGGER checked_orders_check INSTEAD OF INSERT ON checked_orders
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM order_waves WHERE label = NEW.label AND size IS NULL AND share IS NULL)
            THEN RAISE(ABORT, 'waves must be sizes such as 1, 5%, 25%: numbers of servers from 1, or shares above 0 up to 100%')
        WHEN NOT EXISTS (
             SELECT 1 FROM (SELECT replace(CAST(failures_max AS TEXT), ' ', '') AS item FROM orders WHERE label = NEW.label)
             WHERE (length(item) BETWEEN 1 AND 9 AND item NOT GLOB '*[^0-9]*')
                OR (length(item) < 10 AND item GLOB '[0-9]*%' AND item NOT GLOB '*[^0-9.%]*' AND item NOT GLOB '*%?*'
                    AND item NOT GLOB '*.*.*' AND item NOT GLOB '*.%' AND CAST(item AS REAL) <= 100))
            THEN RAISE(ABORT, 'failures_max must be a number of servers or a share up to 100%, such as 3 or 2%')
        WHEN EXISTS (SELECT 1 FROM orders WHERE label = NEW.label AND pause IS NOT NULL AND (typeof(pause) <> 'text'
             OR length(pause) < 2 OR length(pause) > 9 OR pause NOT GLOB '*[0-9][smhd]'
             OR substr(pause, 1, length(pause) - 1) GLOB '*[^0-9]*'))
            THEN RAISE(ABORT, 'pause must be a whole number and s, m, h or d, such as 90s, 10m, 2h or 1d')
    END;
    INSERT INTO written_times (order_label, expires_at, expiry_is_new) SELECT NEW.label, NEW.expires_at, 1 WHERE NEW.expires_at IS NOT NULL;
END;

CREATE TRIGGER orders_check_update BEFORE UPDATE ON orders
WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT CASE
        WHEN NEW.label IS NOT OLD.label THEN RAISE(ABORT, 'the label of an order never changes')
        WHEN OLD.begun_at IS NOT NULL AND (NEW.waves IS NOT OLD.waves OR NEW.failures_max IS NOT OLD.failures_max
             OR NEW.pause IS NOT OLD.pause OR NEW.expires_at IS NOT OLD.expires_at)
            THEN RAISE(ABORT, 'this order has begun; its row can no longer be changed')
        WHEN (OLD.state IS NOT NULL AND NEW.state IS NOT OLD.state) OR (OLD.wave IS NOT NULL AND NEW.wave IS NOT OLD.wave)
             OR NEW.finished_at IS NOT OLD.finished_at OR NEW.begun_at IS NOT OLD.begun_at OR NEW.begun_id IS NOT OLD.begun_id
             OR NEW.id IS NOT OLD.id OR (OLD.done_id IS NOT NULL AND NEW.done_id IS NOT OLD.done_id)
             OR (OLD.read_id IS NOT NULL AND NEW.read_id IS NOT OLD.read_id)
             OR (OLD.servers IS NOT NULL AND NEW.servers IS NOT OLD.servers)
             OR (OLD.wave_size IS NOT NULL AND NEW.wave_size IS NOT OLD.wave_size)
             OR (OLD.wave_taken IS NOT NULL AND NEW.wave_taken IS NOT OLD.wave_taken)
             OR NEW.wave_over_at IS NOT OLD.wave_over_at
             OR (OLD.created_at IS NOT NULL AND NEW.created_at IS NOT OLD.created_at)
            THEN RAISE(ABORT, 'of an order that has not begun, only waves, failures_max, pause and expires_at can be changed')
    END;
    INSERT INTO written_times (expires_at, expiry_is_new) SELECT NEW.expires_at, 1 WHERE NEW.expires_at IS NOT OLD.expires_at;
END;

CREATE TRIGGER orders_update AFTER UPDATE OF waves, failures_max, pause ON orders
WHEN NEW.waves IS NOT OLD.waves OR NEW.failures_max IS NOT OLD.failures_max OR NEW.pause IS NOT OLD.pause
BEGIN
    INSERT INTO checked_orders (label, expires_at) VALUES (NEW.label, NULL);
END;

-- Stored times have one form, so that any other is a producer's; so is 24:00, as above.
CREATE TRIGGER orders_times AFTER UPDATE OF expires_at ON orders
WHEN NEW.expires_at NOT GLOB '????-??-??T??:??:??.???Z' OR NEW.expires_at GLOB '*T24:*'
BEGIN
    INSERT INTO written_times (order_label, expires_at, expiry_is_new) VALUES (NEW.label, NEW.expires_at, 1);
END;

-- Requests that have the order's time go along with it.
CREATE TRIGGER orders_expiry AFTER UPDATE OF expires_at ON orders
WHEN NEW.expires_at IS NOT OLD.expires_at AND OLD.expires_at GLOB '????-??-??T??:??:??.???Z'
BEGIN
    UPDATE power_requests SET expires_at = (SELECT expires_at FROM orders WHERE label = NEW.label)
    WHERE label = NEW.label AND state = 'queued' AND expires_at = OLD.expires_at;
END;

CREATE TRIGGER orders_check_delete BEFORE DELETE ON orders
WHEN OLD.begun_at IS NOT NULL AND (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'this order has begun; cancel its requests, and it will be done');
END;

-- The servers of each order with waves, as far as the daemon has read its requests.
CREATE TABLE order_servers (
    id        INTEGER PRIMARY KEY,
    label     TEXT NOT NULL,
    target    TEXT NOT NULL,
    server_id TEXT NOT NULL COLLATE NOCASE,
    wave      INTEGER,                      -- the wave that let it go; NULL: its turn has not come
    UNIQUE (label, target, server_id)
);

CREATE TRIGGER order_servers_check_insert BEFORE INSERT ON order_servers WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes order_servers');
END;

CREATE TRIGGER order_servers_check_update BEFORE UPDATE ON order_servers WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes order_servers');
END;

CREATE TRIGGER order_servers_check_delete BEFORE DELETE ON order_servers WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes order_servers');
END;

-- Only an order that has not begun, or one that nobody asks for any more, goes: nothing of it holds anybody then. What is
-- held is let out by the daemon.
CREATE TRIGGER orders_deleted AFTER DELETE ON orders
BEGIN
    UPDATE queue_mark SET writing = 'change' WHERE id = 1 AND writing IS NULL;
    DELETE FROM order_servers WHERE label = OLD.label;
    DELETE FROM holds WHERE label = OLD.label AND kind = 'wave';
    UPDATE queue_mark SET writing = NULL WHERE id = 1 AND writing = 'change';
END;

-- A request whose label changes leaves its order and joins another: both are read again, and nothing of the old one holds it.
CREATE TRIGGER power_requests_label_changed AFTER UPDATE OF label ON power_requests WHEN NEW.label IS NOT OLD.label AND NEW.state = 'queued'
BEGIN
    UPDATE queue_mark SET writing = 'change' WHERE id = 1 AND writing IS NULL;
    UPDATE power_requests SET wave = NULL, gate = CASE gate WHEN 'held' THEN 'ready' ELSE gate END
    WHERE id = NEW.id AND (wave IS NOT NULL OR gate = 'held');
    UPDATE orders SET read_id = 0 WHERE (label = OLD.label OR label = NEW.label) AND read_id <> 0;
    UPDATE queue_mark SET writing = NULL WHERE id = 1 AND writing = 'change';
END;

-- Each server that a list has shown. Only the daemon writes it; producers read it.
CREATE TABLE servers (
    target    TEXT NOT NULL,
    server_id TEXT NOT NULL COLLATE NOCASE,
    name      TEXT NOT NULL,
    power     TEXT NOT NULL CONSTRAINT server_power_known CHECK (power = 'on' OR power = 'off' OR power = 'unclear'),
    status    TEXT NOT NULL,                -- the cloud's own word
    seen_at   TEXT NOT NULL,                -- when a list showed it last
    gone_at   TEXT,                         -- since when lists lack it
    locked    INTEGER NOT NULL DEFAULT 0,   -- 1: the cloud refuses to switch it
    PRIMARY KEY (target, server_id)
) WITHOUT ROWID;
CREATE INDEX servers_name ON servers (name, target) WHERE gone_at IS NULL;

CREATE TRIGGER servers_check_insert BEFORE INSERT ON servers WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes servers');
END;

CREATE TRIGGER servers_check_update BEFORE UPDATE ON servers WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes servers');
END;

CREATE TRIGGER servers_check_delete BEFORE DELETE ON servers WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes servers');
END;

-- Wishes for a fresh inventory (`poweryard inventory sync`): the daemon notes when each came true, or why it did not.
CREATE TABLE inventory_syncs (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    target   TEXT,                          -- NULL: every target
    asked_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    done_at  TEXT,
    error    TEXT,
    CONSTRAINT sync_texts CHECK (typeof(target) IN ('text', 'null') AND typeof(error) IN ('text', 'null'))
);
CREATE INDEX inventory_syncs_open ON inventory_syncs (id) WHERE done_at IS NULL;

-- What people did, by command, page or API. Append-only.
CREATE TABLE operator_actions (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    who      TEXT NOT NULL,
    action   TEXT NOT NULL CONSTRAINT operator_action_known CHECK (
                      action = 'cancel' OR action = 'retry' OR action = 'approve' OR action = 'pause'
                      OR action = 'resume' OR action = 'release' OR action = 'override'),
    what     TEXT NOT NULL,                 -- the selection as it was given
    requests INTEGER NOT NULL,              -- how many
    reason   TEXT,
    CONSTRAINT operator_action_texts CHECK (typeof(who) = 'text' AND typeof(what) = 'text' AND typeof(requests) = 'integer'
                                            AND typeof(reason) IN ('text', 'null'))
);

CREATE INDEX operator_actions_at ON operator_actions (at);

CREATE TRIGGER operator_actions_check_insert BEFORE INSERT ON operator_actions
WHEN NEW.id IS NOT -1 AND EXISTS (SELECT 1 FROM operator_actions WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'operator_actions is append-only');
END;

CREATE TRIGGER operator_actions_check_update BEFORE UPDATE ON operator_actions
BEGIN
    SELECT RAISE(ABORT, 'operator_actions is append-only');
END;

CREATE TRIGGER operator_actions_check_delete BEFORE DELETE ON operator_actions WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'operator_actions is append-only');
END;

-- Requests whose override_reason operator_actions has a row for: a command wrote it with the reason, or the daemon once they
-- left because of it. Anybody may write here; it only spares a second row.
CREATE TABLE noted_overrides (
    request_id INTEGER PRIMARY KEY
);

CREATE TRIGGER power_requests_override AFTER UPDATE OF override_reason ON power_requests
WHEN NEW.override_reason IS NOT OLD.override_reason AND OLD.override_reason IS NOT NULL
BEGIN
    DELETE FROM noted_overrides WHERE request_id = NEW.id;
END;

-- One row: what the daemon notes of deleting old requests, for `status` and `db prune`.
CREATE TABLE upkeep (
    id               INTEGER PRIMARY KEY CONSTRAINT upkeep_is_one CHECK (id = 1),
    export_dir       TEXT,      -- where they are written before; NULL: nowhere
    export_error     TEXT,      -- why the last try failed: nothing is deleted then. NULL once one succeeds
    export_failed_at TEXT
);

CREATE TRIGGER upkeep_check_insert BEFORE INSERT ON upkeep WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes upkeep');
END;

CREATE TRIGGER upkeep_check_update BEFORE UPDATE ON upkeep WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes upkeep');
END;

CREATE TRIGGER upkeep_check_delete BEFORE DELETE ON upkeep WHEN (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'only the daemon writes upkeep');
END;
