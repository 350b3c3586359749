//! The daemon as a service of its machine: what it refuses to start on, how fast it wakes, what it
//! costs when idle, what it tells systemd, and how it lives with strangers in its file, a held lock
//! and a full disk.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::common::process::{Daemon, Ear, poweryard, run, until};
use crate::common::{
    PATIENCE, UNFINISHED, Yard, by_hand, insert, outcomes, secret, text, wait_for,
};
use poweryard::sim::Call;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

const QUICK: &str = "[bms]\nservers = 100\nrunning = 1.0\noperation_ms = [10, 20]\n";

fn submits(yard: &Yard) -> usize {
    yard.cloud
        .calls()
        .iter()
        .filter(|call| call.call == Call::Submit)
        .count()
}

/// `serve` that is expected to end by itself.
async fn serve(config: &Path) -> Output {
    let mut command = poweryard();
    command.arg("--config").arg(config).arg("serve");
    end_of(command).await
}

/// The output of a program that ends by itself, and soon.
async fn end_of(mut command: Command) -> Output {
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let pid = child.id();
    let mut end =
        tokio::task::spawn_blocking(move || child.wait_with_output().expect("it has ended"));
    tokio::select! {
        output = &mut end => output.expect("it ended"),
        () = tokio::time::sleep(PATIENCE) => {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            panic!("it goes on: {}", stderr(&end.await.expect("it ended")));
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_config_ends_it_with_78_and_names_the_line_and_the_key() {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    let good = fs::read_to_string(&config).expect("written");
    let bad = [
        (
            "first_look = \"20ms\"",
            "frist_look = \"20ms\"",
            "targets.default.frist_look",
        ),
        (
            "first_look = \"20ms\"",
            "first_look = \"1 fortnight\"",
            "targets.default.first_look",
        ),
        ("linger = \"0ms\"", "linger = 0", "batch.linger"),
        (
            "service = \"bms\"",
            "service = \"ecs\"",
            "targets.default.service",
        ),
        (
            "allow_http = true",
            "allow_http = false",
            "targets.default.endpoint",
        ),
    ];
    for (from, to, key) in bad {
        let spoilt = good.replacen(from, to, 1);
        fs::write(&config, &spoilt).expect("written");
        let said = serve(&config).await;
        assert_eq!(said.status.code(), Some(78), "{to}: {}", stderr(&said));
        let of_key = format!("{} ", key.rsplit('.').next().unwrap_or_default());
        let line = spoilt
            .lines()
            .position(|line| line.starts_with(&of_key))
            .expect("the line is there")
            + 1;
        let place = format!("{}:{line}: {key}: ", config.display());
        assert!(
            stderr(&said).contains(&place),
            "{place} is not in {}",
            stderr(&said)
        );
        assert_eq!(stderr(&said).trim().lines().count(), 1, "{}", stderr(&said));
    }
    let said = serve(&yard.dir.path().join("none.toml")).await;
    assert_eq!(said.status.code(), Some(78));
    assert!(stderr(&said).contains("none.toml"), "{}", stderr(&said));
    assert!(!yard.database().exists(), "nothing was made on the way");
    assert!(yard.cloud.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_others_can_read_ends_it_with_78_and_is_not_printed() {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    let key = yard.dir.path().join("secret-key");
    // The tests' own group owns the queue's folder, as the producers' group does in a real one.
    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).expect("mode set");
        let said = serve(&config).await;
        assert_eq!(said.status.code(), Some(78), "{mode:o}: {}", stderr(&said));
        assert!(
            stderr(&said).contains("secret_key_file") && stderr(&said).contains("secret-key"),
            "{}",
            stderr(&said)
        );
        assert!(!stderr(&said).contains("poweryard-sim-secret-key"));
    }
    fs::remove_file(&key).expect("removed");
    assert_eq!(serve(&config).await.status.code(), Some(78));
    assert!(yard.cloud.calls().is_empty());
}

/// A queue that a daemon has made and left.
async fn made_queue(yard: &Yard) -> PathBuf {
    let config = yard.write_config();
    let daemon = Daemon::start(&config);
    yard.producer().await.close().await.expect("closed");
    assert_eq!(daemon.stop().await, Some(0));
    config
}

async fn execute(database: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(true);
    let mut connection = options.connect().await.expect("opened");
    sqlx::raw_sql(sql)
        .execute(&mut connection)
        .await
        .expect("done");
    connection.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_newer_or_damaged_file_is_refused_and_stays_as_it_is() {
    let foreign = Yard::new(QUICK).await;
    foreign.write_config();
    execute(
        &foreign.database(),
        "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')",
    )
    .await;

    let newer = Yard::new(QUICK).await;
    made_queue(&newer).await;
    execute(
        &newer.database(),
        "UPDATE queue_mark SET writing = token;
         INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'later', 1, x'00', 0)",
    )
    .await;

    let text_file = Yard::new(QUICK).await;
    text_file.write_config();
    fs::write(text_file.database(), "to do: buy milk\n".repeat(500)).expect("written");

    let smeared = Yard::new(QUICK).await;
    made_queue(&smeared).await;
    // Else a -wal may stay behind, which heals what is smeared.
    execute(&smeared.database(), "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let mut bytes = fs::read(smeared.database()).expect("read");
    bytes[100..4096].fill(0xff);
    fs::write(smeared.database(), &bytes).expect("written");

    for (what, yard) in [
        ("foreign", &foreign),
        ("newer", &newer),
        ("text", &text_file),
        ("smeared", &smeared),
    ] {
        let config = yard.dir.path().join("poweryard.toml");
        let before = fs::read(yard.database()).expect("read");
        let said = serve(&config).await;
        assert_eq!(said.status.code(), Some(3), "{what}: {}", stderr(&said));
        assert!(
            stderr(&said).contains("queue.db"),
            "{what}: {}",
            stderr(&said)
        );
        assert!(
            fs::read(yard.database()).expect("read") == before,
            "{what}: the file was changed"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_folder_and_a_file_that_may_not_be_written_end_it_with_3() {
    let yard = Yard::new(QUICK).await;
    let config = made_queue(&yard).await;
    let good = fs::read_to_string(&config).expect("written");
    fs::write(&config, good.replacen("/queue.db", "/nowhere/queue.db", 1)).expect("written");
    let said = serve(&config).await;
    assert_eq!(said.status.code(), Some(3), "{}", stderr(&said));
    assert!(stderr(&said).contains("nowhere"), "{}", stderr(&said));

    fs::write(&config, good).expect("written");
    fs::set_permissions(yard.database(), Permissions::from_mode(0o444)).expect("mode set");
    let mut command = poweryard();
    command.arg("--config").arg(&config).arg("serve");
    if is_root() {
        // Modes do not bind root: run as nobody, who owns everything here but the queue.
        const NOBODY: u32 = 65534;
        for entry in fs::read_dir(yard.dir.path()).expect("read") {
            let path = entry.expect("an entry").path();
            if path != yard.database() {
                chown(&path, Some(NOBODY), Some(NOBODY)).expect("owner set");
            }
        }
        chown(yard.dir.path(), Some(NOBODY), Some(NOBODY)).expect("owner set");
        command.uid(NOBODY).gid(NOBODY);
    }
    let before = fs::read(yard.database()).expect("read");
    let said = end_of(command).await;
    assert_eq!(said.status.code(), Some(3), "{}", stderr(&said));
    assert!(stderr(&said).contains("queue.db"), "{}", stderr(&said));
    assert!(fs::read(yard.database()).expect("read") == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_inserted_alone_reaches_the_cloud_within_a_hundred_milliseconds() {
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(100), "reboot").await;
    outcomes(&mut producer).await;
    let mut waits = Vec::new();
    for number in 1..=30 {
        let server = yard.server(number);
        let begin = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970")
            .as_millis() as i64;
        insert(&mut producer, &server, "reboot").await;
        until("the call has arrived", || submits(&yard) == number + 1).await;
        let call = yard
            .cloud
            .calls()
            .into_iter()
            .rfind(|call| call.call == Call::Submit)
            .expect("it has");
        waits.push(call.at.0 - begin);
        outcomes(&mut producer).await;
    }
    waits.sort_unstable();
    println!(
        "from the insert to the call: median {} ms, slowest {} ms",
        waits[15], waits[29]
    );
    assert!(waits[15] < 100, "{waits:?}");
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_makes_no_calls_and_uses_no_processor() {
    let yard = Yard::new(QUICK).await;
    let ear = Ear::new(yard.dir.path());
    let daemon = Daemon::start_telling(&yard.write_config(), Some(&ear));
    ear.hear("READY=1").await;
    let mut producer = yard.producer().await;
    // Work that is done, and work that cannot go, cost nothing either.
    insert(&mut producer, &yard.server(1), "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    for sql in [
        "INSERT INTO power_requests (server_id, action, not_before) VALUES ('a', 'stop', datetime('now', '+1 hour'))",
        "INSERT INTO power_requests (server_id, action, target) VALUES ('b', 'stop', 'nobody')",
    ] {
        sqlx::query(sql)
            .execute(&mut producer)
            .await
            .expect("accepted");
    }
    wait_for(&mut producer, "SELECT count(*) FROM holds", "1").await;
    let (calls, told) = (yard.cloud.calls().len(), ear.heard().len());
    let used = measure(&daemon, Duration::from_secs(2)).await;
    println!("idle: {used} ticks of 10 ms in 2 s");
    assert!(used <= 4, "{used} ticks of 10 ms in 2 s");
    assert_eq!(yard.cloud.calls().len(), calls);
    assert_eq!(ear.heard().len(), told, "systemd is told what is new");
    assert_eq!(daemon.stop().await, Some(0));
}

/// Ticks of 10 ms that the daemon uses in this span.
async fn measure(daemon: &Daemon, span: Duration) -> u64 {
    let before = daemon.cpu_ticks();
    tokio::time::sleep(span).await;
    daemon.cpu_ticks() - before
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_open_to_its_group_and_systemd_is_told() {
    let yard = Yard::new(QUICK).await;
    let ear = Ear::new(yard.dir.path());
    let daemon = Daemon::start_telling(&yard.write_config(), Some(&ear));
    ear.hear("READY=1").await;
    ear.hear("STATUS=").await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    outcomes(&mut producer).await;
    for end in ["", "-wal", "-shm"] {
        let path = yard.dir.path().join(format!("queue.db{end}"));
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660, "{}", path.display());
    }
    daemon.ask_to_stop();
    ear.hear("STOPPING=1").await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_held_beyond_all_patience_loses_nothing_and_sends_nothing_twice() {
    let yard = Yard::new(&format!("{QUICK}[latency]\nsubmit_ms = [300, 300]\n")).await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    until("the call has arrived", || submits(&yard) == 1).await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut producer)
        .await
        .expect("locked");
    let begin = Instant::now();
    insert(&mut producer, &yard.server(2), "reboot").await;
    let used = measure(&daemon, Duration::from_millis(6500)).await;
    assert!(
        used <= 65,
        "{used} ticks of 10 ms while the lock was held for 6.5 s"
    );
    assert_eq!((submits(&yard), yard.cloud.ledger().len()), (1, 1));
    assert_eq!(
        text(&mut producer, "SELECT state FROM batches WHERE id = 1").await,
        "submitting"
    );
    sqlx::query("COMMIT")
        .execute(&mut producer)
        .await
        .expect("unlocked");
    assert!(begin.elapsed() > Duration::from_millis(6500));
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!((submits(&yard), yard.cloud.ledger().len()), (2, 2));
    assert_eq!(daemon.stop().await, Some(0));
}

/// A small disk of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(&path).expect("a folder");
        let options = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .output();
        mounted
            .is_ok_and(|mounted| mounted.status.success())
            .then_some(Self(path))
    }

    /// Fills it to the last byte; what fills it can be removed.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).expect("a file");
        let mut size = 65_536;
        while size > 0 {
            if file.write_all(&vec![0; size]).is_err() {
                size /= 2;
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_is_waited_out() {
    let yard = Yard::new(&format!("{QUICK}[latency]\nsubmit_ms = [500, 500]\n")).await;
    let Some(disk) = is_root()
        .then(|| SmallDisk::mount(yard.dir.path().join("disk"), 4))
        .flatten()
    else {
        println!("skipped: only root can mount a small disk");
        return;
    };
    let config = yard.write_config();
    let database = disk.0.join("queue.db");
    let moved =
        fs::read_to_string(&config)
            .expect("written")
            .replacen("/queue.db", "/disk/queue.db", 1);
    fs::write(&config, moved).expect("written");
    let ear = Ear::new(yard.dir.path());
    let daemon = Daemon::start_telling(&config, Some(&ear));
    ear.hear("READY=1").await;
    let options = SqliteConnectOptions::new()
        .filename(&database)
        .busy_timeout(Duration::from_secs(5));
    let mut producer = options.connect().await.expect("opened");
    let mut accepted = 1;
    sqlx::query("CREATE TABLE filling (bytes)")
        .execute(&mut producer)
        .await
        .expect("a table");
    insert(&mut producer, &yard.server(1), "reboot").await;
    until("the call has arrived", || submits(&yard) == 1).await;
    let filler = disk.fill();
    // What the `-wal` already has of the disk is used up too.
    for size in [20_000, 2_000, 10] {
        let filling = "INSERT INTO filling (bytes) VALUES (zeroblob(?))";
        while sqlx::query(filling)
            .bind(size)
            .execute(&mut producer)
            .await
            .is_ok()
        {}
    }
    let mut refused = 0;
    for number in 2..=20 {
        let row = sqlx::query(
            "INSERT INTO power_requests (server_id, action, label) VALUES (?, 'reboot', hex(zeroblob(20000)))",
        );
        match row.bind(yard.server(number)).execute(&mut producer).await {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0, "the disk is not full");
    let used = measure(&daemon, Duration::from_secs(3)).await;
    assert!(used <= 30, "{used} ticks of 10 ms in 3 s on a full disk");
    assert_eq!(
        submits(&yard),
        1,
        "nothing is sent whose answer could not be stored"
    );
    assert_eq!(
        text(&mut producer, "SELECT state FROM batches WHERE id = 1").await,
        "submitting"
    );
    fs::remove_file(filler).expect("removed");
    assert_eq!(
        outcomes(&mut producer).await,
        format!("{accepted} succeeded/job")
    );
    assert_eq!(yard.cloud.ledger().len(), accepted);
    assert_eq!(
        text(
            &mut producer,
            "SELECT integrity_check FROM pragma_integrity_check"
        )
        .await,
        "ok"
    );
    // There is room for new work, too.
    insert(&mut producer, &yard.server(50), "reboot").await;
    assert_eq!(
        outcomes(&mut producer).await,
        format!("{} succeeded/job", accepted + 1)
    );
    producer.close().await.expect("closed");
    assert_eq!(daemon.stop().await, Some(0));
}

/// Inserts a request and waits until it has succeeded.
async fn the_daemon_still_works(
    yard: &Yard,
    producer: &mut SqliteConnection,
    number: usize,
    after: &str,
) {
    let id = insert(producer, &yard.server(number), "reboot").await;
    println!("after: {after}");
    wait_for(
        producer,
        &format!("SELECT state FROM power_requests WHERE id = {id}"),
        "succeeded",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_write_never_stops_a_pass() {
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    let later = "INSERT INTO power_requests (server_id, action, not_before) VALUES ('parked', 'stop', datetime('now', '+1 hour'))";
    sqlx::query(later)
        .execute(&mut producer)
        .await
        .expect("accepted");
    let odd = [
        "INSERT INTO power_requests (server_id, action, label) VALUES ('a', 'stop', CAST(x'ff00fe' AS TEXT))",
        "INSERT INTO power_requests (server_id, action, requested_by, request_key) VALUES ('b', 'stop', CAST(x'c328' AS TEXT), CAST(x'80' AS TEXT))",
        "INSERT INTO power_requests (server_id, action, label) VALUES ('c', 'stop', hex(zeroblob(4000000)))",
        "UPDATE power_requests SET error_message = CAST(x'ff' AS TEXT) WHERE server_id = 'parked'",
        "UPDATE power_requests SET eligible_at = '2099-19-39T29:59:59.999Z' WHERE server_id = 'parked'",
        "UPDATE power_requests SET retry_at = '2099-19-39T29:59:59.999Z', gate = 'retry' WHERE server_id = 'parked'",
        "UPDATE power_requests SET retry_at = '2026-00-00T00:00:00.000Z' WHERE server_id = 'parked'",
        "INSERT INTO holds (target, kind, reason, since) VALUES ('elsewhere', 'operator', CAST(x'ff' AS TEXT), 'yesterday')",
        "INSERT INTO holds (kind, target, reason, since, until) VALUES ('budget', 'elsewhere', '', '', 'tomorrow')",
        "PRAGMA ignore_check_constraints = ON; INSERT INTO holds (target, kind, reason, since) VALUES ('default', 'whim', 'why not', 'now')",
        "INSERT INTO holds (target, action, kind, reason, since) VALUES ('default', 'explode', 'operator', 'why not', 'now')",
        "PRAGMA ignore_check_constraints = OFF; INSERT INTO holds (target, kind, reason, since) VALUES (CAST(x'ff' AS TEXT), 'unknown_target', 'so there', '')",
        "UPDATE power_requests SET eligible_at = '2026-00-00T00:00:00.000Z' WHERE server_id = 'parked'",
        "UPDATE batches SET job_ms = 'long', next_look_at = NULL WHERE state = 'done'",
        "DELETE FROM targets",
        "DELETE FROM round_notes",
        "UPDATE targets SET throttles = -1",
        "UPDATE sqlite_sequence SET seq = 'x'",
        "DELETE FROM sqlite_sequence",
        "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'batches'",
        "INSERT INTO holds (target, kind, reason, since) VALUES (CAST('default' AS BLOB), 'operator', 'why', '2026-01-31T22:00:00.000Z')",
    ];
    for (number, sql) in (1..).zip(odd) {
        // What the schema refuses is as good.
        let mut written = sqlx::raw_sql(sql).execute(&mut producer).await.map(|_| ());
        if !sql.starts_with("INSERT INTO power_requests")
            && !sql.starts_with("PRAGMA")
            && written.is_err()
        {
            written = by_hand(&mut producer, sql).await;
        }
        the_daemon_still_works(&yard, &mut producer, number, &format!("{sql}: {written:?}")).await;
    }
    assert_eq!(daemon.stop().await, Some(0));
    let daemon = Daemon::start(&yard.dir.path().join("poweryard.toml"));
    the_daemon_still_works(&yard, &mut producer, 60, "a restart").await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_id_beyond_all_reason_is_mended_and_never_given() {
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    let spoilt = "UPDATE sqlite_sequence SET seq = 9223372036854775806;
        INSERT INTO power_requests (server_id, action) VALUES ('late', 'stop')";
    let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("BEGIN IMMEDIATE; {spoilt}")))
        .execute(&mut producer)
        .await;
    assert!(
        refused
            .expect_err("no id is left after that one")
            .to_string()
            .contains("far too high")
    );
    sqlx::raw_sql("COMMIT")
        .execute(&mut producer)
        .await
        .expect("the last id is spoilt");
    wait_for(
        &mut producer,
        "SELECT seq < 1000 FROM sqlite_sequence WHERE name = 'power_requests'",
        "1",
    )
    .await;
    wait_for(
        &mut producer,
        "SELECT seq < 1000 FROM sqlite_sequence WHERE name = 'batches'",
        "1",
    )
    .await;
    insert(&mut producer, &yard.server(2), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
    let daemon = Daemon::start(&yard.dir.path().join("poweryard.toml"));
    insert(&mut producer, &yard.server(3), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "3 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_write_into_the_ledgers_never_stops_a_pass() {
    let yard = Yard::new("[bms]\nservers = 60\nrunning = 1.0\noperation_ms = [300, 300]\n").await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    let foreign = "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at";
    let time = "'2026-01-01T00:00:00.000Z'";
    // What is on its way is request n for server n, in batch n.
    let spoilt = [
        "UPDATE batches SET error_code = CAST(x'ff' AS TEXT), error_message = CAST(x'c328' AS TEXT)",
        "UPDATE batches SET read_error = CAST(x'ff' AS TEXT), error_code = CAST(x'80' AS TEXT)",
        "UPDATE batches SET next_look_at = '2026-19-39T29:59:59.999Z'",
        "UPDATE batches SET submitted_at = '2026-19-39T29:59:59.999Z'",
        "UPDATE batches SET looks = -1, doubts = -1, server_count = 9000000000000000000",
        "UPDATE batches SET looks = 4294967295",
        "UPDATE power_requests SET baseline = CAST(x'ff' AS TEXT), seen_since = '2026-19-39T29:59:59.999Z'",
        "UPDATE power_requests SET error_code = CAST(x'ff' AS TEXT), error_message = CAST(x'ff' AS TEXT)",
        &format!(
            "{foreign}) VALUES ('default', 'bms', CAST(x'ff' AS TEXT), CAST(x'ff' AS TEXT), 'stop', 'tracking', 1, '2026-19-39T29:59:59.999Z', {time})"
        ),
        &format!(
            "{foreign}) VALUES (CAST(x'ff' AS TEXT), 'clouddc', '', '', 'stop', 'submitting', 7, {time}, {time})"
        ),
        &format!(
            "{foreign}, look_cause, look_until) VALUES ('nobody', 'bms', '', '', 'stop', 'looking', 7, {time}, {time}, 'gap', {time})"
        ),
        "INSERT INTO earlier_attempts (request_id, batch_id, result, started_at, finished_at)
             VALUES (1, 99, 'busy', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')",
    ];
    for (number, sql) in (1..).zip(spoilt) {
        let id = insert(&mut producer, &yard.server(number), "reboot").await;
        let state = format!(
            "SELECT b.state FROM power_requests r JOIN batches b ON b.id = r.batch_id WHERE r.id = {id}"
        );
        wait_for(&mut producer, &state, "tracking").await;
        let only_open = match sql.starts_with("UPDATE batches") {
            true => " WHERE state <> 'done'",
            false if sql.starts_with("UPDATE") => " WHERE state = 'running'",
            false => "",
        };
        // What the schema refuses is as good.
        let written = by_hand(&mut producer, &format!("{sql}{only_open}")).await;
        println!("{sql}: {written:?}");
        wait_for(&mut producer, UNFINISHED, "0").await;
        the_daemon_still_works(&yard, &mut producer, 20 + number, sql).await;
    }
    assert_eq!(daemon.stop().await, Some(0));
    let daemon = Daemon::start(&yard.dir.path().join("poweryard.toml"));
    the_daemon_still_works(&yard, &mut producer, 60, "a restart").await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_read_from_the_folder_of_systemds_credentials() {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    let folder = yard.dir.path().join("credentials");
    fs::create_dir(&folder).expect("a folder");
    secret(&folder, "poweryard-ak", "POWERYARDSIMAK");
    secret(&folder, "poweryard-sk", "poweryard-sim-secret-key");
    let text = fs::read_to_string(&config).expect("written");
    let dir = yard.dir.path().display();
    let text = text
        .replace(&format!("{dir}/access-key"), "poweryard-ak")
        .replace(&format!("{dir}/secret-key"), "poweryard-sk");
    fs::write(&config, text).expect("written");
    assert_eq!(
        serve(&config).await.status.code(),
        Some(78),
        "without the folder there is nothing to look it up in"
    );
    let mut child = poweryard()
        .env("CREDENTIALS_DIRECTORY", &folder)
        .arg("--config")
        .arg(&config)
        .arg("serve")
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    child.kill().expect("killed");
    child.wait().expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pace_that_cannot_be_noted_holds_calls_back_and_loses_nothing() {
    let throttle = "[[faults]]\nkind = \"throttle\"\non = [\"submit\"]\ncalls = [1]\n";
    let yard = Yard::new(&format!(
        "{QUICK}[latency]\nsubmit_ms = [300, 300]\n{throttle}"
    ))
    .await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    until("the call has arrived", || submits(&yard) == 1).await;
    // The 429 lowers the pace, which cannot be noted in this round, nor in those that follow.
    sqlx::query("ALTER TABLE targets RENAME TO elsewhere")
        .execute(&mut producer)
        .await
        .expect("renamed");
    wait_for(
        &mut producer,
        "SELECT count(*) FROM batches WHERE state = 'done'",
        "1",
    )
    .await;
    assert_eq!(
        text(&mut producer, "SELECT state FROM power_requests").await,
        "queued"
    );
    sqlx::query("ALTER TABLE elsewhere RENAME TO targets")
        .execute(&mut producer)
        .await
        .expect("renamed");
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    assert_eq!((submits(&yard), yard.cloud.ledger().len()), (2, 1));
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_queue_ends_the_daemon_with_3_and_stays_as_it_is() {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    let migrated = run(&[
        "db",
        "migrate",
        "--database",
        yard.database().to_str().expect("plain"),
    ]);
    assert_eq!(migrated.status.code(), Some(0));
    let before = fs::read(yard.database()).expect("readable");
    fs::set_permissions(yard.database(), Permissions::from_mode(0o444)).expect("mode set");
    let mut command = poweryard();
    // Nothing is read-only for root: then the daemon runs as somebody else.
    if fs::metadata("/proc/self").expect("it is there").uid() == 0 {
        const NOBODY: u32 = 65534;
        fs::set_permissions(yard.dir.path(), Permissions::from_mode(0o777)).expect("mode set");
        for file in ["access-key", "secret-key"] {
            chown(yard.dir.path().join(file), Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command
        .arg("--config")
        .arg(&config)
        .arg("serve")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("queue.db")
            && (said.contains("read-only") || said.contains("ermission denied")),
        "{said}"
    );
    assert_eq!(fs::read(yard.database()).expect("readable"), before);
}
