//! The daemon's statements and the views find their rows by an index, whatever waits in the queue.
//! Nothing is run.

use crate::common::queue::Queue;
use crate::common::statements::{statement, statements};

async fn plan(queue: &mut Queue, sql: &str) -> Vec<String> {
    let rows = queue.sql(&format!("EXPLAIN QUERY PLAN {sql}")).await;
    rows.into_iter().map(|row| row[3].clone()).collect()
}

/// Tables that stay small: one row a hold, a target, an open batch, an end that is being followed.
fn is_small(step: &str) -> bool {
    let small = [
        "SCAN holds",
        "SCAN targets",
        "SCAN refused_keys",
        "SCAN queue_mark",
        "SCAN sqlite_sequence",
        "SCAN pragma_data_version",
        "SCAN round_notes",
        "SCAN lingering_batches",
        "SCAN h",
        "SCAN v VIRTUAL TABLE",
        "SCAN l",
        "SCAN head",
        "SCAN kinds",
        "SCAN waiting",
        "SCAN used",
        "SCAN e",
        "SCAN CONSTANT ROW",
        // The head of a lane, as the claim reads it.
        "SCAN r",
        "SCAN (subquery",
        "SCAN queue_overview",
        "SCAN oldest",
        "SCAN t",
        "SCAN orders",
        // Wishes for a fresh inventory are kept for an hour.
        "SCAN inventory_syncs",
        "SCAN s",
        "SCAN c",
        "SCAN first",
        "SCAN next",
    ];
    small.iter().any(|start| step.starts_with(start)) || step.contains("VIRTUAL TABLE")
}

/// Walks from one end of a partial index, ended by a LIMIT; or, once at a start or for whoever
/// asks, along what is in flight or unfinished.
fn is_head_of_an_index(step: &str) -> bool {
    [
        "SCAN power_requests USING COVERING INDEX power_requests_ready",
        "SCAN batches USING INDEX batches_open",
        "SCAN batches USING INDEX batches_due",
        "SCAN power_requests USING COVERING INDEX power_requests_running",
        "SCAN power_requests USING INDEX power_requests_parked_count",
        "SCAN power_requests USING INDEX power_requests_retry",
        "SCAN b USING INDEX batches_due",
        // Orders that are not done are few; the done ones are walked along once a prune.
        "SCAN w USING INDEX orders_open",
        "SCAN orders USING INDEX orders_open",
        "SCAN w USING INDEX orders_done",
        "SCAN power_requests USING COVERING INDEX power_requests_held",
        "SCAN power_requests USING COVERING INDEX power_requests_held_count",
    ]
    .contains(&step)
}

#[tokio::test]
async fn no_statement_of_the_daemon_searches_or_sorts_the_queue() {
    let mut queue = Queue::new().await;
    assert!(statements().len() > 30);
    for sql in statements() {
        let plan = plan(&mut queue, sql).await;
        for step in &plan {
            // What a view has found by an index.
            let is_of_view = step == "SCAN a" && plan[0] == "CO-ROUTINE request_attempts";
            let scan = step.starts_with("SCAN ")
                && !is_small(step)
                && !is_head_of_an_index(step)
                && !is_of_view;
            // Grouping the members of one batch is no search, nor are the few sums of the overview,
            // nor the first so many that wait for approval.
            let is_small_sort = sql.contains("a.result = 'busy' GROUP BY")
                || sql.contains("queue_overview")
                || sql.contains("GROUP BY waiting.label");
            let sort = step.contains("TEMP B-TREE") && !is_small_sort;
            assert!(
                !scan && !sort && !step.contains("AUTOMATIC"),
                "{sql}\n{plan:#?}"
            );
        }
        // A list of ids is walked once, not once for every row that it is about.
        let list = plan
            .iter()
            .position(|step| step.starts_with("SCAN j VIRTUAL TABLE"));
        let table = plan.iter().position(|step| step.starts_with("SEARCH "));
        // What a round reads has a list in one of its many parts.
        if let (Some(list), Some(table)) = (list, table)
            && !sql.contains("queue_mark m")
        {
            assert!(
                list < table
                    || plan[table..list]
                        .iter()
                        .any(|step| step.starts_with("LIST")),
                "{sql}\n{plan:#?}"
            );
        }
    }
}

/// SQLite would compile it anew at every execution, see `store`.
#[test]
fn no_limit_is_a_bare_parameter() {
    for sql in statements() {
        assert!(!sql.contains("LIMIT $"), "{sql}");
    }
}

#[tokio::test]
async fn each_statement_uses_the_index_that_was_made_for_it() {
    let mut queue = Queue::new().await;
    for (part, steps) in [
        (
            "ORDER BY priority DESC, id LIMIT 0 + $4) r",
            &[
                "SEARCH power_requests USING INDEX power_requests_ready (target=? AND action=? AND <expr>=?)",
            ][..],
        ),
        (
            "p.server_id = r.server_id AND p.id < r.id)",
            &[
                "SEARCH r USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH o USING INDEX power_requests_line (server_id=? AND target=? AND rowid<?)",
                "SEARCH p USING INDEX power_requests_parked (target=? AND server_id=? AND gate=? AND id<?)",
            ],
        ),
        (
            "WITH RECURSIVE head",
            &[
                "SEARCH r USING INDEX power_requests_ready (target=? AND action=?)",
                "SEARCH n USING INDEX power_requests_ready (target=? AND action=? AND <expr>>?)",
                "SEARCH f USING INDEX power_requests_ready (target=? AND action=? AND <expr>=?)",
            ],
        ),
        (
            "SELECT count(*) FROM (SELECT 1 FROM power_requests c",
            &["SEARCH c USING INDEX power_requests_ready (target=? AND action=? AND <expr>=?)"],
        ),
        (
            "min(n.target) FROM power_requests",
            &[
                "SEARCH n USING COVERING INDEX power_requests_ready (target>?)",
                "SEARCH n USING INDEX power_requests_parked_count (target>?)",
            ],
        ),
        (
            "min(n.target) FROM batches",
            &[
                "SEARCH n USING INDEX batches_due (target>?)",
                "SEARCH d USING INDEX batches_due (target=?)",
            ],
        ),
        (
            "SELECT id FROM (SELECT id FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL",
            &[
                "SEARCH power_requests USING COVERING INDEX power_requests_expiry (expires_at>? AND expires_at<?)",
                "SEARCH power_requests USING INDEX power_requests_ttl (<expr><?)",
            ],
        ),
        (
            "a.state = 'succeeded' AND power_requests.id IN",
            &["SEARCH r USING COVERING INDEX power_requests_after (after_id=? AND gate=?)"],
        ),
        (
            "SET state = 'cancelled'",
            &["SEARCH r USING COVERING INDEX power_requests_after (after_id=? AND gate=?)"],
        ),
        (
            "gate = 'retry' AND retry_at <= $1 ORDER",
            &["SEARCH power_requests USING COVERING INDEX power_requests_retry (retry_at<?)"],
        ),
        (
            "WHERE gate = 'later' AND eligible_at <= $1",
            &["SEARCH power_requests USING INDEX power_requests_later (eligible_at<?)"],
        ),
        (
            "m.id < b.id",
            &[
                "SEARCH f USING INDEX power_requests_line (server_id=? AND target=?)",
                "SEARCH m USING INDEX power_requests_parked (target=? AND server_id=? AND gate=? AND id<?)",
            ],
        ),
        (
            "SELECT min(m.id)",
            &[
                "SEARCH m USING INDEX power_requests_parked (target=? AND server_id=? AND gate=?)",
                "SEARCH f USING INDEX power_requests_line (server_id=? AND target=?)",
            ],
        ),
        (
            "r.wave IS NOT NULL AND r.id > $4",
            &["SEARCH r USING INDEX power_requests_label (label=? AND rowid>? AND rowid<?)"],
        ),
        (
            "+r.id <= w.begun_id",
            &["SEARCH r USING INDEX power_requests_held (label=? AND wave=?)"],
        ),
        (
            "FROM orders w INDEXED BY orders_open",
            &[
                "SEARCH r USING COVERING INDEX power_requests_label (label=? AND rowid>? AND rowid<?)",
                "SEARCH r USING COVERING INDEX power_requests_held (label=? AND wave=?)",
                "SEARCH r USING INDEX power_requests_not_due (label=?)",
                "SEARCH r USING COVERING INDEX power_requests_wave (label=? AND state=? AND wave=? AND rowid>?)",
            ],
        ),
        (
            "sum(f.wave = w.wave)",
            &[
                "SEARCH f USING INDEX power_requests_wave (label=? AND state=? AND wave>?)",
                "SEARCH n USING INDEX power_requests_line (server_id=? AND target=? AND rowid>?)",
                "SEARCH n USING INDEX power_requests_past (server_id=? AND target=?)",
            ],
        ),
        (
            "SELECT id, state, state = 'looking'",
            &["SEARCH batches USING INDEX batches_due (target=?)"],
        ),
        (
            "SELECT CAST(job_ms AS INTEGER)",
            &["SEARCH batches USING INDEX batches_history (target=? AND action=?)"],
        ),
        (
            "SELECT id, state, 0 AS by_servers",
            &["SEARCH batches USING INDEX batches_due (target=? AND next_look_at>?)"],
        ),
        (
            "UPDATE batches SET next_look_at = j.value ->> 1",
            &["SEARCH batches USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (
            "SELECT CASE state WHEN",
            &["SEARCH batches USING INDEX batches_pace (target=?)"],
        ),
        (
            "r.seen_since IS NOT NULL",
            &[
                "SEARCH r USING INDEX power_requests_running (batch_id=?)",
                "SEARCH e USING INDEX power_requests_past (server_id=? AND target=? AND finished_at>?)",
                "SEARCH e USING INDEX power_requests_line (server_id=? AND target=?)",
            ],
        ),
        (
            "SELECT r.id, l.batch_id",
            &["SEARCH r USING INDEX power_requests_batch (batch_id=?)"],
        ),
        (
            "SET seen_since = $3",
            &["SEARCH power_requests USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (
            "attempts = max(0, attempts + $2)",
            &["SEARCH power_requests USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (
            "json_each($8)) AND +state",
            &["SEARCH power_requests USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (
            "attempts - $7)\n             WHERE state = 'running'",
            &["SEARCH power_requests USING COVERING INDEX power_requests_running (batch_id=?)"],
        ),
        (
            "json_each($7)) AND +state",
            &["SEARCH power_requests USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (
            "server_count FROM batches\n         WHERE target = $1 AND action = $2 AND intent_steady_ms",
            &[
                "SEARCH batches USING INDEX batches_spent (target=? AND action=? AND intent_steady_ms>?)",
            ],
        ),
        (
            "FROM batches INDEXED BY batches_unapproved",
            &[
                "SEARCH batches USING INDEX batches_unapproved (target=? AND action=? AND intent_steady_ms>?)",
            ],
        ),
        (
            "SELECT 1 FROM kinds CROSS JOIN",
            &["SEARCH c USING INDEX power_requests_ready (target=? AND action=? AND <expr>=?)"],
        ),
    ] {
        let sql = statement(part);
        let plan = plan(&mut queue, sql).await;
        for step in steps {
            assert!(
                plan.iter().any(|found| found == step),
                "{sql}\n{step}\n{plan:#?}"
            );
        }
    }
}

#[tokio::test]
async fn the_views_find_their_rows_by_an_index() {
    let mut queue = Queue::new().await;
    for (sql, steps) in [
        (
            "SELECT reason FROM power_waiting WHERE id = 17",
            &[
                "SEARCH r USING INTEGER PRIMARY KEY (rowid=?)",
                "SEARCH p USING INDEX power_requests_line (server_id=? AND target=? AND rowid<?)",
                "SEARCH p USING INDEX power_requests_parked (target=? AND server_id=? AND gate=? AND id<?)",
                "SEARCH p USING INDEX power_requests_line (server_id=? AND target=?)",
            ][..],
        ),
        (
            "SELECT * FROM power_outcomes WHERE id = 17",
            &["SEARCH r USING INTEGER PRIMARY KEY (rowid=?)"],
        ),
        (
            "SELECT * FROM queue_overview",
            &[
                "SCAN power_requests USING COVERING INDEX power_requests_ready",
                "SCAN power_requests USING INDEX power_requests_parked_count",
                "SEARCH r USING COVERING INDEX power_requests_running (batch_id=?)",
            ],
        ),
        (
            "SELECT * FROM server_outcomes WHERE server_id = 'a'",
            &[
                "SEARCH r USING INDEX power_requests_past (server_id=?)",
                "SEARCH r USING INDEX power_requests_line (server_id=?)",
                "SEARCH n USING INDEX power_requests_past (server_id=? AND target=? AND finished_at>?)",
                "SEARCH n USING INDEX power_requests_line (server_id=? AND target=?)",
            ],
        ),
        (
            "SELECT * FROM server_outcomes WHERE target = 'default' AND server_id = 'a'",
            &[
                "SEARCH r USING INDEX power_requests_past (server_id=? AND target=?)",
                "SEARCH r USING INDEX power_requests_line (server_id=? AND target=?)",
                "SEARCH n USING INDEX power_requests_past (server_id=? AND target=? AND finished_at>?)",
            ],
        ),
    ] {
        let plan = plan(&mut queue, sql).await;
        for step in steps {
            assert!(
                plan.iter().any(|found| found == step),
                "{sql}\n{step}\n{plan:#?}"
            );
        }
        // The sums of the four ways to wait are sorted, not what they count.
        let sorts = plan
            .iter()
            .filter(|step| step.contains("TEMP B-TREE FOR GROUP BY"));
        assert!(
            sorts.count() <= usize::from(sql.contains("queue_overview"))
                && !plan.iter().any(|step| step.contains("AUTOMATIC")),
            "{plan:#?}"
        );
    }
}

/// For `IN` with three values or more SQLite builds a table for each row that a CHECK or a trigger
/// looks at. Such lists were 29 % of the instructions of a claim's UPDATE and an outcome's.
#[tokio::test]
async fn neither_checks_nor_triggers_have_a_list_of_three_values() {
    let mut queue = Queue::new().await;
    let objects = queue
        .sql("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'trigger') AND sql IS NOT NULL")
        .await;
    assert!(objects.len() > 40, "{} objects", objects.len());
    for object in objects {
        let long = object[1]
            .split(" IN (")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .find(|list| list.starts_with('\'') && list.matches(',').count() >= 2);
        assert_eq!(long, None, "{}", object[0]);
    }
}
