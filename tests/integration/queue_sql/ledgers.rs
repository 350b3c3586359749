//! The ledgers, `batches` and `earlier_attempts` (with `request_attempts`, which shows the last ones too), under the hands of whoever may write: what is on
//! its way stays as the daemon left it, what is over never changes, and what nobody needs any more
//! can be deleted.

use std::fs;
use std::time::Duration;

use poweryard::model::{Batch, PowerAction, RequestState, TargetName, UtcMillis};
use poweryard::store::{NotedPace, Prune, Store, StoreError, TargetNews, TargetStatus};

use crate::common::queue::{HOUR, Queue, failed, ids, origin, succeeded, wall};

const NOT_DONE: &str = "this batch is not done; it cannot be deleted";
const SENT: &str = "only the daemon writes batches, and what was sent never changes";
const TRIED: &str = "only the daemon writes attempts, and how one ended never changes";

/// One request whose call is being made.
async fn on_its_way(queue: &mut Queue) -> Batch {
    queue.insert("a", &[]).await;
    queue.go(wall()).await.remove(0)
}

#[tokio::test]
async fn nobody_but_the_daemon_writes_into_the_ledgers() {
    let mut queue = Queue::new().await;
    let batch = on_its_way(&mut queue).await;
    for done in [false, true] {
        if done {
            queue.end(&batch, &failed(), wall()).await;
        }
        let batches = queue.row("SELECT * FROM batches").await;
        let attempts = queue.row("SELECT * FROM request_attempts").await;
        for sql in [
            "UPDATE batches SET look_cause = 'refused'",
            "UPDATE batches SET next_look_at = '2099-01-01T00:00:00.000Z'",
            "UPDATE batches SET job_id = 'other', state = 'tracking'",
            "UPDATE batches SET server_count = 1",
            "DELETE FROM batches",
            "INSERT OR REPLACE INTO batches SELECT * FROM batches",
            "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at)
             VALUES ('t', 'bms', 'e', 'p', 'stop', 'submitting', 1, '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')",
            "UPDATE request_attempts SET result = 'refused', finished_at = started_at",
            "DELETE FROM request_attempts",
            "INSERT INTO request_attempts (request_id, batch_id, started_at) VALUES (1, 9, '2026-01-01T00:00:00.000Z')",
            "UPDATE power_requests SET seen_since = created_at",
            "UPDATE power_requests SET baseline = 'none'",
            "INSERT INTO earlier_attempts (request_id, batch_id, result, started_at, finished_at)
             VALUES (1, 9, 'busy', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')",
            "INSERT INTO lingering_batches VALUES (1)",
        ] {
            queue.refused(sql).await;
            queue.refused(&sql.replacen("UPDATE ", "UPDATE OR REPLACE ", 1)).await;
        }
        assert_eq!(queue.row("SELECT * FROM batches").await, batches);
        assert_eq!(queue.row("SELECT * FROM request_attempts").await, attempts);
    }
}

#[tokio::test]
async fn what_only_the_daemon_knows_is_closed_to_producers() {
    let mut queue = Queue::new().await;
    for sql in [
        "INSERT INTO targets VALUES ('t', 'bms', 'e', 'p', 1, 1, 0, NULL, '2026-01-01T00:00:00.000Z', NULL, NULL, NULL, NULL)",
        "INSERT INTO refused_keys VALUES ('k', 's', 't', 1, '2026-01-01T00:00:00.000Z', 'refused', '')",
        "INSERT INTO holds (kind, reason, since) VALUES ('budget', 'spent', '2026-01-01T00:00:00.000Z')",
        "INSERT INTO round_notes (request_id) VALUES (7)",
        "INSERT INTO lingering_batches VALUES (7)",
        "INSERT INTO earlier_attempts (request_id, batch_id, result, started_at, finished_at)
         VALUES (1, 9, 'busy', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')",
        "INSERT INTO servers VALUES ('t', 's', 'n', 'on', 'ACTIVE', '2026-01-01T00:00:00.000Z', NULL, 0)",
        "INSERT INTO order_servers (label, target, server_id) VALUES ('l', 't', 's')",
        "INSERT INTO orders (label, waves) VALUES ('l', '1')",
        "UPDATE orders SET begun_at = '2026-01-01T00:00:00.000Z', state = 'held'",
        "INSERT INTO operator_actions (who, action, what, requests) VALUES ('w', 'cancel', '7', 1)",
        "INSERT INTO upkeep (id, export_dir) VALUES (1, '/export')",
    ] {
        queue.by_hand(sql).await;
    }
    let mark = queue.row("SELECT * FROM queue_mark").await;
    for sql in [
        "UPDATE targets SET throttles = -1",
        "DELETE FROM targets",
        "INSERT OR REPLACE INTO targets SELECT * FROM targets",
        "UPDATE refused_keys SET refusals = 1",
        "DELETE FROM refused_keys",
        "REPLACE INTO refused_keys SELECT * FROM refused_keys",
        "DELETE FROM queue_mark",
        "UPDATE queue_mark SET epoch = 9223372036854775807",
        "UPDATE queue_mark SET epoch = epoch + 1",
        "UPDATE queue_mark SET token = lower(hex(randomblob(16)))",
        "UPDATE queue_mark SET copied_at = 'now'",
        "UPDATE queue_mark SET writing = 'me'",
        "UPDATE OR REPLACE queue_mark SET writing = token, copied_at = 'now'",
        "INSERT OR REPLACE INTO queue_mark (id, epoch, token) VALUES (1, 0, lower(hex(randomblob(16))))",
        "UPDATE queue_stamp SET stamp = ''",
        "DELETE FROM queue_stamp",
        "DELETE FROM round_notes",
        "UPDATE round_notes SET request_id = 8",
        "DELETE FROM lingering_batches",
        "UPDATE lingering_batches SET batch_id = 8",
        "DELETE FROM earlier_attempts",
        "UPDATE OR REPLACE earlier_attempts SET result = 'lost'",
        "REPLACE INTO earlier_attempts SELECT * FROM earlier_attempts",
        "DELETE FROM _sqlx_migrations",
        "UPDATE _sqlx_migrations SET version = 999",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'x', 1, x'00', 0)",
        "DELETE FROM holds",
        "UPDATE holds SET kind = 'operator'",
        "UPDATE holds SET until = '2026-01-01T00:00:00.000Z'",
        "INSERT INTO holds (kind, reason, since) VALUES ('restored', 'x', '2026-01-01T00:00:00.000Z')",
        "INSERT OR REPLACE INTO holds (id, kind, reason, since) SELECT id, 'operator', 'mine', since FROM holds",
        "INSERT INTO servers VALUES ('t', 'r', 'n', 'on', 'ACTIVE', '2026-01-01T00:00:00.000Z', NULL, 0)",
        "UPDATE servers SET power = 'off'",
        "DELETE FROM servers",
        "REPLACE INTO servers SELECT * FROM servers",
        "INSERT INTO order_servers (label, target, server_id) VALUES ('l', 't', 'r')",
        "UPDATE order_servers SET wave = 7",
        "DELETE FROM order_servers",
        "REPLACE INTO order_servers SELECT * FROM order_servers",
        "UPDATE orders SET waves = '100%'",
        "UPDATE OR REPLACE orders SET failures_max = '100%'",
        "UPDATE orders SET state = 'open'",
        "UPDATE orders SET begun_at = NULL",
        "UPDATE orders SET label = 'm'",
        "DELETE FROM orders",
        "INSERT OR REPLACE INTO orders (label, waves) VALUES ('l', '100%')",
        "UPDATE operator_actions SET who = 'me'",
        "DELETE FROM operator_actions",
        "UPDATE upkeep SET export_dir = NULL",
        "DELETE FROM upkeep",
        "REPLACE INTO upkeep SELECT * FROM upkeep",
        "INSERT OR REPLACE INTO operator_actions (id, who, action, what, requests) VALUES (1, 'me', 'cancel', '7', 1)",
    ] {
        queue.refused(sql).await;
    }
    assert_eq!(queue.row("SELECT * FROM queue_mark").await, mark);
    assert_eq!(
        queue
            .row("SELECT count(*) FROM holds, targets, refused_keys, round_notes, lingering_batches, earlier_attempts,
                      servers, order_servers, orders, operator_actions, upkeep")
            .await,
        "1"
    );
    queue
        .sql("INSERT INTO holds (kind, reason, since) VALUES ('operator', 'paused', '2026-01-01T00:00:00.000Z')")
        .await;
    queue.sql("DELETE FROM holds WHERE kind = 'operator'").await;
}

#[tokio::test]
async fn what_is_on_its_way_cannot_be_deleted_from_the_ledgers() {
    let mut queue = Queue::new().await;
    let batch = on_its_way(&mut queue).await;
    for accepted in [false, true] {
        if accepted {
            queue.accept(&batch, wall()).await;
        }
        assert_eq!(
            queue.refused_by_hand("DELETE FROM batches").await,
            NOT_DONE,
            "accepted: {accepted}"
        );
        assert_eq!(
            queue
                .refused_by_hand("DELETE FROM batches WHERE rowid = 1")
                .await,
            NOT_DONE
        );
    }
    let (batch, _) = queue
        .store
        .load_batch(batch.id)
        .await
        .expect("readable")
        .expect("open");
    assert_eq!(batch.members.len(), 1);
}

#[tokio::test]
async fn where_a_batch_was_sent_and_what_it_asked_for_never_changes() {
    let mut queue = Queue::new().await;
    on_its_way(&mut queue).await;
    for change in [
        "id = id + 1",
        "rowid = 99",
        "target = 'other'",
        "service = 'clouddc'",
        "endpoint = 'https://elsewhere.test'",
        "project_id = 'q'",
        "action = 'start'",
        "intent_at = '2020-01-01T00:00:00.000Z'",
        "intent_steady_ms = intent_steady_ms + 1",
    ] {
        for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
            let sql = format!("{update} batches SET {change}");
            assert_eq!(queue.refused_by_hand(&sql).await, SENT, "{sql}");
        }
    }
}

#[tokio::test]
async fn a_batch_goes_forward_only() {
    let mut queue = Queue::new().await;
    let batch = on_its_way(&mut queue).await;
    queue.accept(&batch, wall()).await;
    assert_eq!(
        queue
            .refused_by_hand("UPDATE batches SET state = 'submitting'")
            .await,
        SENT
    );
    let looking = "state = 'looking', look_cause = 'gap', look_until = intent_at";
    queue
        .by_hand(&format!("UPDATE batches SET {looking}"))
        .await;
    assert_eq!(
        queue
            .refused_by_hand("UPDATE batches SET state = 'tracking'")
            .await,
        SENT
    );
    assert_eq!(
        queue
            .refused_by_hand("UPDATE batches SET state = 'submitting'")
            .await,
        SENT
    );
}

#[tokio::test]
async fn nothing_changes_in_a_done_batch_nor_in_an_attempt_that_has_ended() {
    let mut queue = Queue::new().await;
    let batch = on_its_way(&mut queue).await;
    queue.end(&batch, &succeeded(), wall()).await;
    for column in queue
        .rows("SELECT name FROM pragma_table_info('batches')")
        .await
    {
        for update in ["UPDATE", "UPDATE OR REPLACE"] {
            let sql = format!("{update} batches SET {column} = {column}");
            assert_eq!(queue.refused_by_hand(&sql).await, SENT, "{sql}");
        }
    }
    queue.insert("b", &[]).await;
    let batch = queue.go(wall()).await.remove(0);
    queue.give_back(&batch, None, wall()).await;
    for change in [
        "result = 'failed'",
        "result = 'busy'",
        "request_id = 7",
        "batch_id = 7",
        "request_id = 'x'",
    ] {
        let sql = format!("UPDATE OR REPLACE earlier_attempts SET {change}");
        assert_eq!(queue.refused_by_hand(&sql).await, TRIED, "{sql}");
    }
    assert_eq!(
        queue
            .rows("SELECT b.state, a.result FROM batches b JOIN request_attempts a ON a.batch_id = b.id ORDER BY b.id")
            .await,
        ["done|succeeded", "done|busy"]
    );
}

#[tokio::test]
async fn neither_a_batch_nor_an_attempt_can_be_replaced() {
    let mut queue = Queue::new().await;
    let open = on_its_way(&mut queue).await;
    for done in [false, true] {
        if done {
            queue.give_back(&open, Some(wall() + HOUR), wall()).await;
        }
        for insert in ["INSERT OR REPLACE", "REPLACE", "INSERT", "INSERT OR IGNORE"] {
            let sql = format!("{insert} INTO batches SELECT * FROM batches");
            assert_eq!(
                queue.refused_by_hand(&sql).await,
                "a batch cannot be replaced",
                "{sql}"
            );
            if done {
                let sql = format!("{insert} INTO earlier_attempts SELECT * FROM earlier_attempts");
                assert_eq!(
                    queue.refused_by_hand(&sql).await,
                    "an attempt cannot be replaced",
                    "{sql}"
                );
            }
        }
        let before = queue
            .row("SELECT b.state, ifnull(a.result, '-') FROM batches b, request_attempts a")
            .await;
        assert_eq!(before, if done { "done|busy" } else { "submitting|-" });
    }
}

#[tokio::test]
async fn what_a_stranger_writes_into_the_ledgers_can_be_read_or_is_refused() {
    let mut queue = Queue::new().await;
    let batch = on_its_way(&mut queue).await;
    for change in [
        "state = 'gone'",
        "state = NULL",
        "state = 'done'",
        "state = 'looking'",
        "server_count = 'many'",
        "server_count = 0",
        "server_count = 1.5",
        "looks = 'x'",
        "looks = x'00'",
        "doubts = NULL",
        "travel_group = 'x'",
        "job_ms = 'long'",
        "job_ms = 1.5",
        "job_id = x'00'",
        "submitted_at = x'00'",
        "submitted_at = 'yesterday'",
        "submitted_at = 5",
        "next_look_at = x'323032362d30312d30315430303a30303a30302e3030305a'",
        "next_look_at = 'soon'",
        "next_look_at = NULL",
        "look_until = 'never'",
        "look_until = x'00'",
        "look_cause = 'whim'",
        "error_code = x'00'",
        "error_message = x'00'",
        "read_error = x'00'",
        "state = 'done', next_look_at = NULL, finished_at = x'00'",
        "state = 'done', next_look_at = NULL, finished_at = 'now'",
        "finished_at = '2026-01-01T00:00:00.000Z'",
    ] {
        let complaint = queue
            .refused_by_hand(&format!("UPDATE batches SET {change}"))
            .await;
        assert!(
            complaint.contains("constraint failed"),
            "{change}: {complaint}"
        );
    }
    for values in [
        "1, 9, 'rumour', time, time, NULL, NULL",
        "1, 9, NULL, time, time, NULL, NULL",
        "1, 9, 'busy', time, NULL, NULL, NULL",
        "1, 9, 'busy', time, x'00', NULL, NULL",
        "1, 9, 'busy', x'00', time, NULL, NULL",
        "1, 9, 'busy', NULL, time, NULL, NULL",
        "1, 9, 'busy', time, time, 'then', NULL",
        "1, 9, 'busy', time, time, x'00', NULL",
        "1, 9, 'busy', time, time, NULL, x'00'",
        "'x', 9, 'busy', time, time, NULL, NULL",
    ] {
        let sql = format!(
            "INSERT INTO earlier_attempts (request_id, batch_id, result, started_at, finished_at, seen_since, baseline) VALUES ({})",
            values.replace("time", "'2026-01-01T00:00:00.000Z'")
        );
        let complaint = queue.refused_by_hand(&sql).await;
        assert!(
            complaint.contains("constraint failed"),
            "{values}: {complaint}"
        );
    }
    let (batch, _) = queue
        .store
        .load_batch(batch.id)
        .await
        .expect("readable")
        .expect("open");
    assert_eq!(batch.members.len(), 1);
}

#[tokio::test]
async fn a_foreign_row_in_the_ledgers_is_refused_at_its_insert() {
    let mut queue = Queue::new().await;
    let insert = "INSERT OR IGNORE INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at) VALUES";
    let time = "'2026-01-01T00:00:00.000Z'";
    for values in [
        format!("(x'00', 'bms', 'e', 'p', 'stop', 'submitting', 1, {time}, {time})"),
        format!("('t', x'00', 'e', 'p', 'stop', 'submitting', 1, {time}, {time})"),
        format!("('t', 'ecs', 'e', 'p', 'stop', 'submitting', 1, {time}, {time})"),
        format!("('t', 'bms', x'00', 'p', 'stop', 'submitting', 1, {time}, {time})"),
        format!("('t', 'bms', 'e', x'00', 'stop', 'submitting', 1, {time}, {time})"),
        format!("('t', 'bms', 'e', 'p', 'halt', 'submitting', 1, {time}, {time})"),
        format!("('t', 'bms', 'e', 'p', 'stop', 'submitting', 'one', {time}, {time})"),
        format!("('t', 'bms', 'e', 'p', 'stop', 'submitting', 1, 'now', {time})"),
        format!("('t', 'bms', 'e', 'p', 'stop', 'submitting', 1, CAST({time} AS BLOB), {time})"),
        format!("('t', 'bms', 'e', 'p', 'stop', 'done', 1, {time}, NULL)"),
    ] {
        // OR IGNORE leaves a row out that breaks a CHECK; what counts is that it is not there.
        let _ = queue.try_by_hand(&format!("{insert} {values}")).await;
        assert_eq!(
            queue.row("SELECT count(*) FROM batches").await,
            "0",
            "{values}"
        );
    }
}

#[tokio::test]
async fn what_is_over_is_deleted_by_the_daemons_hand_in_any_order() {
    let tables = ["power_requests", "batches", "earlier_attempts"];
    let whole = |table: &str| format!("DELETE FROM {table}");
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut queue = Queue::new().await;
        let first = queue.insert("a", &[]).await;
        queue.insert("b", &[("action", "'start'")]).await;
        let batches = queue.go(wall()).await;
        assert_eq!(ids(&batches).len(), 2);
        let batch = queue.accept(&batches[0], wall()).await;
        queue.end(&batch, &succeeded(), wall()).await;
        queue.give_back(&batches[1], None, wall()).await;
        queue
            .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
            .await;
        for table in order {
            queue.by_hand(&whole(tables[table])).await;
        }
        for table in tables {
            assert_eq!(
                queue.row(&format!("SELECT count(*) FROM {table}")).await,
                "0",
                "{table} in {order:?}"
            );
        }
        // What is inserted next has a new id, and goes out as usual.
        let next = queue.insert("a", &[]).await;
        assert!(next > first + 1);
        assert_eq!(ids(&queue.go(wall()).await), [next]);
    }
}

#[tokio::test]
async fn the_old_is_pruned_beside_what_is_on_its_way() {
    let mut queue = Queue::new().await;
    queue.insert("old", &[]).await;
    let batches = queue.go(wall()).await;
    queue.end(&batches[0], &failed(), wall()).await;
    let new = queue.insert("new", &[]).await;
    let batches = queue.go(wall()).await;
    queue
        .sql("DELETE FROM power_requests WHERE finished_at IS NOT NULL")
        .await;
    queue
        .by_hand("DELETE FROM batches WHERE state = 'done'")
        .await;
    assert_eq!(queue.row("SELECT count(*) FROM batches").await, "1");
    queue.end(&batches[0], &succeeded(), wall()).await;
    assert_eq!(queue.state(new).await, "succeeded");
}

async fn prune_all(queue: &Queue) -> Prune {
    prune_at(queue, wall()).await
}

async fn prune_at(queue: &Queue, now: UtcMillis) -> Prune {
    let mut prune = Prune::default();
    while !prune.done {
        let next = queue.store.prune(prune, now, now).await;
        prune = next.expect("pruned");
    }
    prune
}

#[tokio::test]
async fn a_prune_keeps_reboots_that_may_be_under_way_for_a_day() {
    let mut queue = Queue::new().await;
    let of_a_job = queue.insert("failed", &[("action", "'reboot'")]).await;
    let batches = queue.go(wall()).await;
    queue.end(&batches[0], &failed(), wall()).await;
    let known = queue.insert("known", &[("action", "'reboot'")]).await;
    let batches = queue.go(wall()).await;
    queue.end(&batches[0], &succeeded(), wall()).await;
    let left = "SELECT group_concat(id) FROM power_requests";
    prune_at(&queue, wall() + Duration::from_secs(60)).await;
    assert_eq!(queue.row(left).await, of_a_job.to_string(), "not {known}");
    prune_at(&queue, wall() + Duration::from_secs(25 * 3600)).await;
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "0");
}

#[tokio::test]
async fn a_prune_keeps_what_a_budget_still_counts() {
    let mut queue = Queue::new().await;
    let (default, start) = (TargetName("default".into()), wall());
    let pace = NotedPace {
        rate: 50,
        throttles: 0,
        reads_until: None,
    };
    let mut news = TargetNews {
        configured: 50,
        pace,
        budget_span: Some(24 * HOUR),
        default_ttl: None,
    };
    queue
        .store
        .note_target(&TargetStatus {
            target: &default,
            origin: &origin(),
            news,
            now: start,
        })
        .await
        .expect("noted");
    queue.insert("a", &[]).await;
    let batch = queue.go(start).await.remove(0);
    let batch = queue.accept(&batch, start).await;
    queue.end(&batch, &succeeded(), start).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let pruned = prune_all(&queue).await;
    assert_eq!((pruned.requests, pruned.batches), (1, 0));
    let spent = queue
        .store
        .spent(&default, PowerAction::Stop, start.before(24 * HOUR))
        .await
        .expect("readable");
    assert_eq!(spent, [(start, 1)]);
    news.budget_span = None;
    queue
        .store
        .note_target(&TargetStatus {
            target: &default,
            origin: &origin(),
            news,
            now: start,
        })
        .await
        .expect("noted");
    let just_now = "the pace of the last minute needs it still";
    assert_eq!(prune_all(&queue).await.batches, 0, "{just_now}");
    let later = wall() + Duration::from_secs(180);
    assert_eq!(
        prune_at(&queue, later).await.batches,
        1,
        "nobody needs it any more"
    );
}

#[tokio::test]
async fn a_row_from_a_clock_years_ahead_does_not_stop_a_prune() {
    let mut queue = Queue::new().await;
    queue.insert("early", &[]).await;
    queue
        .by_hand("UPDATE power_requests SET created_at = '2037-01-01T00:00:00.000Z'")
        .await;
    for number in 0..700 {
        queue.insert(&format!("s{number}"), &[]).await;
    }
    queue
        .sql("UPDATE power_requests SET state = 'cancelled'")
        .await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(prune_all(&queue).await.requests, 701);
}

#[tokio::test]
async fn a_producer_that_deletes_ended_requests_leaves_nothing_for_ever() {
    let mut queue = Queue::new().await;
    let batch = on_its_way(&mut queue).await;
    queue.give_back(&batch, None, wall()).await;
    let batch = queue.go(wall()).await.remove(0);
    queue.end(&batch, &failed(), wall()).await;
    queue.sql("DELETE FROM power_requests").await;
    let later = wall() + Duration::from_secs(180);
    assert_eq!(prune_at(&queue, later).await.batches, 2);
    assert_eq!(
        queue.row("SELECT count(*) FROM earlier_attempts").await,
        "0"
    );
}

#[tokio::test]
async fn a_daemon_whose_queue_was_taken_over_stores_nothing() {
    let mut queue = Queue::new().await;
    queue.store.begin_epoch(wall()).await.expect("begun");
    let first = queue.insert("a", &[]).await;
    let open = queue.go(wall()).await.remove(0);
    let second = queue.insert("b", &[]).await;
    let lanes = queue.lanes().await;
    let other = Store::open(queue.path()).await.expect("another daemon");
    assert_eq!(
        other.begin_epoch(wall()).await.expect("begun"),
        None,
        "that is no older copy"
    );
    let claimed = queue.try_claim(&lanes[0], 10, wall()).await;
    assert!(
        matches!(claimed, Err(StoreError::TakenOver(_))),
        "{claimed:?}"
    );
    let ended = poweryard::lifecycle::Event::Ended(succeeded());
    let step = crate::common::queue::step(
        poweryard::lifecycle::BatchNext::Done,
        vec![(open.members[0].request, ended)],
    );
    let recorded = queue.store.record(&open, &step, wall()).await;
    assert!(
        matches!(recorded, Err(StoreError::TakenOver(_))),
        "{recorded:?}"
    );
    assert!(matches!(
        queue.store.check_identity().await,
        Err(StoreError::TakenOver(_))
    ));
    assert_eq!(queue.state(first).await, RequestState::Running.as_str());
    assert_eq!(queue.state(second).await, RequestState::Queued.as_str());
    other.check_identity().await.expect("the other one goes on");
}

#[tokio::test]
async fn nothing_is_claimed_while_the_note_beside_the_queue_cannot_be_written() {
    let mut queue = Queue::new().await;
    queue.store.begin_epoch(wall()).await.expect("begun");
    let id = queue.insert("a", &[]).await;
    let mut note = queue.path().as_os_str().to_owned();
    note.push(".epoch");
    fs::remove_file(&note).expect("it is there");
    fs::create_dir(&note).expect("in its way");
    let lanes = queue.lanes().await;
    for _ in 0..2 {
        let claimed = queue.try_claim(&lanes[0], 10, wall()).await;
        assert!(
            matches!(claimed, Err(StoreError::EpochFile { .. })),
            "{claimed:?}"
        );
        assert_eq!(queue.state(id).await, "queued");
    }
    assert_eq!(
        queue
            .row("SELECT count(*) FROM batches WHERE state <> 'done'")
            .await,
        "0"
    );
    fs::remove_dir(&note).expect("out of its way");
    assert_eq!(ids(&queue.go(wall()).await), [id]);
}

#[tokio::test]
async fn calls_that_a_copy_lacks_count_as_made_when_it_is_found() {
    for lacks_call in [true, false] {
        let mut queue = Queue::new().await;
        queue.store.begin_epoch(wall()).await.expect("begun");
        let copy = queue.path().with_file_name("copy.db");
        let make_copy = format!("VACUUM INTO '{}'", copy.display());
        queue.insert("a", &[]).await;
        if lacks_call {
            queue.sql(&make_copy).await;
        }
        let batch = queue.go(wall()).await.remove(0);
        queue.end(&batch, &failed(), wall()).await;
        if !lacks_call {
            queue.sql(&make_copy).await;
        }
        let epoch_file = queue.path().with_file_name("queue.db.epoch");
        let beside_copy = copy.with_file_name("copy.db.epoch");
        fs::copy(epoch_file, beside_copy).expect("the epoch file stays");

        let store = Store::open(&copy).await.expect("opened");
        let found_at = wall();
        let restored = store.begin_epoch(found_at).await.expect("begun");
        assert!(restored.is_some(), "it is a copy");
        let target = TargetName("default".into());
        let calls = store.recent_calls(&target, 3, wall()).await;
        let calls = calls.expect("read");
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0] == found_at, lacks_call, "{calls:?}");
    }
}
