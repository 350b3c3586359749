-- Orders with waves, the servers that lists have shown, and who did what. A public API like the first file, by the same rules.

-- An order is all requests of one label, in any target. Its row is written before its requests, or with them in one
-- transaction.
CREATE TABLE orders (
    label        TEXT NOT NULL PRIMARY KEY CONSTRAINT order_label_form CHECK (
                     typeof(label) = 'text' AND length(label) BETWEEN 1 AND 256 AND length(CAST(label AS BLOB)) <= 1024),

    -- what the producer asks for
    waves        TEXT NOT NULL CONSTRAINT waves_form CHECK (typeof(waves) = 'text' AND length(waves) BETWEEN 1 AND 1024),
    failures_max TEXT DEFAULT '0' CONSTRAINT failures_max_form CHECK (length(failures_max) <= 64),
    pause        TEXT CONSTRAINT pause_form CHECK (length(pause) <= 64),
    expires_at   TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+7 days')),
    created_at   TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),

    -- what the daemon tells
    state        TEXT DEFAULT 'open' CONSTRAINT order_state_known CHECK (state IN ('open', 'held', 'done')),
    wave         INTEGER DEFAULT 1 CONSTRAINT wave_positive CHECK (wave > 0),
    finished_at  TEXT,

    -- internal
    begun_at     TEXT,                  -- when its first requests were let go; NULL: not yet
    begun_id     INTEGER,               -- requests with a greater id joined after that
    read_id      INTEGER DEFAULT 0,     -- its requests up to this id are known to the daemon
    servers      INTEGER DEFAULT 0,     -- how many it has
    wave_size    INTEGER DEFAULT 0,     -- of the present wave, in servers; 0: it has not been opened
    wave_taken   INTEGER DEFAULT 0,     -- servers that the present wave has let go
    wave_over_at TEXT,                  -- when the present wave was over; NULL: it is not
    -- what an operator lets go in spite of all: the next wave, or all that remain
    let_go       TEXT CONSTRAINT let_go_known CHECK (let_go IN ('wave', 'rest')),

    CONSTRAINT order_told_in_form CHECK (
        (wave IS NULL OR typeof(wave) = 'integer')
        AND (read_id IS NULL OR typeof(read_id) = 'integer') AND typeof(begun_id) IN ('integer', 'null')
        AND (servers IS NULL OR (typeof(servers) = 'integer' AND servers >= 0))
        AND (wave_size IS NULL OR (typeof(wave_size) = 'integer' AND wave_size >= 0))
        AND (wave_taken IS NULL OR (typeof(wave_taken) = 'integer' AND wave_taken >= 0))
        AND typeof(begun_at) IN ('text', 'null') AND typeof(wave_over_at) IN ('text', 'null')
        AND typeof(finished_at) IN ('text', 'null'))
);

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
             OR NEW.finished_at IS NOT NULL OR NEW.begun_at IS NOT NULL OR NEW.begun_id IS NOT NULL
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
        state = ifnull(state, 'open'), wave = ifnull(wave, 1), read_id = ifnull(read_id, 0), servers = ifnull(servers, 0),
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
             OR (OLD.read_id IS NOT NULL AND NEW.read_id IS NOT OLD.read_id)
             OR (OLD.servers IS NOT NULL AND NEW.servers IS NOT OLD.servers)
             OR (OLD.wave_size IS NOT NULL AND NEW.wave_size IS NOT OLD.wave_size)
             OR (OLD.wave_taken IS NOT NULL AND NEW.wave_taken IS NOT OLD.wave_taken)
             OR NEW.wave_over_at IS NOT OLD.wave_over_at
             OR (OLD.created_at IS NOT NULL AND NEW.created_at IS NOT OLD.created_at)
            THEN RAISE(ABORT, 'of an order that has not begun, only waves, failures_max, pause and expires_at can be changed')
    END;
END;

CREATE TRIGGER orders_update AFTER UPDATE OF waves, failures_max, pause ON orders
WHEN NEW.waves IS NOT OLD.waves OR NEW.failures_max IS NOT OLD.failures_max OR NEW.pause IS NOT OLD.pause
BEGIN
    INSERT INTO checked_orders (label, expires_at) VALUES (NEW.label, NULL);
END;

-- Stored times have one form, so that any other is a producer's.
CREATE TRIGGER orders_times AFTER UPDATE OF expires_at ON orders WHEN NEW.expires_at NOT GLOB '????-??-??T??:??:??.???Z'
BEGIN
    INSERT INTO written_times (order_label, expires_at, expiry_is_new) VALUES (NEW.label, NEW.expires_at, 1);
END;

CREATE TRIGGER orders_check_delete BEFORE DELETE ON orders
WHEN OLD.begun_at IS NOT NULL AND (SELECT writing FROM queue_mark WHERE id = 1) IS NULL
BEGIN
    SELECT RAISE(ABORT, 'this order has begun; cancel its requests, and it will be done');
END;

-- The servers of each order with waves, as far as the daemon has read its requests.
CREATE TABLE order_servers (
    label     TEXT NOT NULL,
    target    TEXT NOT NULL,
    server_id TEXT NOT NULL COLLATE NOCASE,
    is_late   INTEGER NOT NULL DEFAULT 0,   -- 1: it joined after the order had begun: it comes last
    wave      INTEGER,                      -- the wave that let it go; NULL: none yet
    PRIMARY KEY (label, target, server_id)
) WITHOUT ROWID;

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
    power     TEXT NOT NULL CONSTRAINT server_power_known CHECK (power IN ('on', 'off', 'unclear')),
    status    TEXT NOT NULL,                -- the cloud's own word
    seen_at   TEXT NOT NULL,                -- when a list showed it last
    gone_at   TEXT,                         -- since when lists lack it
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
    action   TEXT NOT NULL CONSTRAINT operator_action_known CHECK (action IN ('cancel', 'retry', 'approve', 'pause', 'resume',
                                                                             'release', 'override')),
    what     TEXT NOT NULL,                 -- the selection as it was given
    requests INTEGER NOT NULL,              -- how many
    reason   TEXT,
    CONSTRAINT operator_action_texts CHECK (typeof(who) = 'text' AND typeof(what) = 'text' AND typeof(requests) = 'integer'
                                            AND typeof(reason) IN ('text', 'null'))
);

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
