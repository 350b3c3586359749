//! What is seen at a glance, and the pages that show it.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::process::Daemon;
use crate::common::queue::{HOUR, Queue, failed, succeeded, wall};
use crate::common::{PATIENCE, Yard, secret, text};
use poweryard::model::{RequestState, TargetName, UtcMillis};
use poweryard::store::QueueClient;
use poweryard::store::client::{Access, Allowed, Glance, Glancer, Reading, Selection};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

async fn read(glancer: &mut Glancer, now: UtcMillis) -> Reading {
    glancer.read(now).await.expect("readable")
}

async fn glance(queue: &Queue) -> Glance {
    let mut glancer = Glancer::new(queue.path());
    read(&mut glancer, wall()).await.glance(None)
}

/// `count kind until` of each group.
fn groups(glance: &Glance) -> Vec<String> {
    let groups = glance.waiting.iter();
    let mut said: Vec<String> = groups
        .map(|group| format!("{} {}", group.count, group.kind))
        .collect();
    said.sort();
    said
}

/// Ends one stop of each server in this way, at this time.
async fn end_each(queue: &mut Queue, servers: &[&str], ends_well: bool, at: UtcMillis) {
    for server in servers {
        queue.insert(server, &[]).await;
    }
    let outcome = if ends_well { succeeded() } else { failed() };
    for batch in queue.claim_all(wall()).await {
        queue.end(&batch, &outcome, at).await;
    }
}

#[tokio::test]
async fn an_empty_queue_says_so_in_one_line() {
    let queue = Queue::new().await;
    let glance = glance(&queue).await;
    assert_eq!(
        glance.headline,
        "Nothing has ended in the last day; nothing waits."
    );
    assert_eq!(
        (glance.ended.minutes.len(), glance.ended.hours.len()),
        (60, 24)
    );
    assert!(glance.waiting.is_empty() && glance.ended.day.is_empty());
}

#[tokio::test]
async fn what_ended_is_counted_by_state_minute_hour_and_error() {
    let mut queue = Queue::new().await;
    let now = wall();
    end_each(&mut queue, &["a", "b", "c"], true, now).await;
    end_each(&mut queue, &["d"], false, now).await;
    end_each(
        &mut queue,
        &["e", "f"],
        true,
        UtcMillis(now.0 - 5 * 3_600_000),
    )
    .await;
    let glance = glance(&queue).await;
    assert!(
        glance
            .headline
            .starts_with("In the last hour 3 off, 1 failed; "),
        "{}",
        glance.headline
    );
    assert_eq!(glance.trouble.as_deref(), Some("no daemon"));
    let minute: i64 = glance.ended.minutes.iter().map(|slot| slot.total()).sum();
    let day: i64 = glance.ended.hours.iter().map(|slot| slot.total()).sum();
    assert_eq!((minute, day), (4, 6));
    let counts: Vec<(&str, i64)> = glance
        .ended
        .day
        .iter()
        .map(|count| (count.state.as_str(), count.count))
        .collect();
    assert_eq!(counts, [("failed", 1), ("succeeded", 5)]);
    let error = &glance.ended.errors[0];
    assert_eq!(
        (error.error_code.as_deref(), error.count),
        (Some("BMS.0040"), 1)
    );
    assert_eq!(
        error.message.as_deref(),
        Some("the server could not be stopped")
    );
    assert_eq!(glance.ended.newest_failures[0].server_id, "d");
}

#[tokio::test]
async fn each_end_is_counted_once_however_often_it_is_read() {
    let mut queue = Queue::new().await;
    let began = wall();
    let mut glancer = Glancer::new(queue.path());
    let mut ended = 0;
    // As a reader meets them whose readings are now close together and now far apart.
    for (round, later_ms) in [0, 100, 1_900, 2_000, 31_000, 45_000, 200_000, 200_001]
        .into_iter()
        .enumerate()
    {
        let now = UtcMillis(began.0 + later_ms);
        end_each(
            &mut queue,
            &[&format!("s{round}"), &format!("t{round}")],
            true,
            now,
        )
        .await;
        ended += 2;
        let glance = read(&mut glancer, now).await.glance(None);
        let counted: i64 = glance.ended.day.iter().map(|count| count.count).sum();
        assert_eq!(counted, ended, "reading {round}");
    }
    // The clock is set back: what lies ahead of it is not of the last hour of the clock on the wall,
    // and nothing is counted twice.
    let glance = read(&mut glancer, UtcMillis(began.0 + 1_000))
        .await
        .glance(None);
    let counted: i64 = glance.ended.day.iter().map(|count| count.count).sum();
    assert!(counted <= ended && counted >= 4, "{counted}");
}

#[tokio::test]
async fn an_end_that_is_stored_late_is_counted_once_all_is_settled() {
    let mut queue = Queue::new().await;
    let began = wall();
    let mut glancer = Glancer::new(queue.path());
    read(&mut glancer, UtcMillis(began.0 + 10_000)).await;
    end_each(&mut queue, &["late"], true, began).await;
    let later = UtcMillis(began.0 + 60_000);
    let glance = read(&mut glancer, later).await.glance(None);
    assert_eq!(glance.ended.day.len(), 1);
    assert_eq!(glance.ended.day[0].count, 1);
}

#[tokio::test]
async fn what_waits_is_grouped_as_power_waiting_says() {
    let mut queue = Queue::new().await;
    let soon = (wall() + HOUR).to_string();
    for server in ["a", "b", "c"] {
        queue.insert(server, &[]).await;
    }
    queue.insert("d", &[("action", "'reboot'")]).await;
    queue
        .insert("e", &[("not_before", "datetime('now', '+1 hour')")])
        .await;
    queue.insert("f", &[("after_id", "1")]).await;
    queue.insert("g", &[("override_reason", "'fire'")]).await;
    queue.insert("h", &[("target", "'other'")]).await;
    queue
        .by_hand(&format!(
            "INSERT INTO holds (target, action, kind, reason, since, until)
             VALUES ('default', 'stop', 'window', 'outside its window', '{soon}', '{soon}')"
        ))
        .await;
    queue
        .sql("INSERT INTO holds (target, action, kind, reason, since) VALUES (NULL, 'reboot', 'operator', 'reboot paused', 'x')")
        .await;
    queue.take_in(None, wall()).await;
    let glance = glance(&queue).await;
    assert_eq!(
        groups(&glance),
        [
            "1 after",
            "1 later",
            "1 next",
            "1 next",
            "1 operator",
            "3 window"
        ]
    );
    let view = queue
        .sql("SELECT count(*) FROM power_waiting WHERE reason LIKE 'held: outside%'")
        .await;
    assert_eq!(view[0][0], "3");
    let clock = &soon[11..16];
    assert!(
        glance
            .headline
            .contains(&format!("8 waiting: 3 for a window until {clock}"))
            || glance
                .headline
                .contains("8 waiting: 3 for a window until 20"),
        "{}",
        glance.headline
    );
    let paused = glance.waiting.iter().find(|group| group.kind == "operator");
    assert_eq!(
        paused.map(|group| group.ends.as_str()),
        Some("`poweryard resume --action reboot` ends it")
    );
}

#[tokio::test]
async fn somebody_sees_only_the_targets_that_may_be_seen() {
    let mut queue = Queue::new().await;
    end_each(&mut queue, &["a"], false, wall()).await;
    queue.insert("b", &[("target", "'secret'")]).await;
    for batch in queue.claim_all(wall()).await {
        queue.end(&batch, &failed(), wall()).await;
    }
    queue
        .insert("c", &[("target", "'secret'"), ("label", "'hidden'")])
        .await;
    queue.insert("d", &[]).await;
    queue
        .sql("INSERT INTO holds (label, kind, reason, since) VALUES ('hidden', 'operator', 'hidden is paused', 'x')")
        .await;
    let mut glancer = Glancer::new(queue.path());
    let reading = read(&mut glancer, wall()).await;
    let seen = reading.glance(Some(&[TargetName("default".to_owned())]));
    let told = serde_json::to_string(&seen).expect("JSON");
    assert!(
        !told.contains("secret") && !told.contains("hidden"),
        "{told}"
    );
    assert_eq!((seen.ended.newest_failures.len(), seen.queue.len()), (1, 1));
    let all = serde_json::to_string(&reading.glance(None)).expect("JSON");
    assert!(all.contains("secret") && all.contains("hidden"));
    let nothing = reading.glance(Some(&[]));
    assert_eq!(
        nothing.headline,
        "Nothing has ended in the last day; nothing waits."
    );
}

/// What is read at each glance finds its rows by an index, whatever is in the queue.
#[tokio::test]
async fn a_glance_searches_no_table() {
    let mut queue = Queue::new().await;
    let sources = [
        include_str!("../../src/store/client/glance/mod.rs"),
        include_str!("../../src/store/client/glance/tally.rs"),
        include_str!("../../src/store/client/glance/waiting.rs"),
    ];
    let literals = sources
        .iter()
        .flat_map(|source| source.split('"').skip(1).step_by(2));
    let statements: Vec<&str> = literals
        .filter(|text| text.starts_with("SELECT ") || text.starts_with("WITH "))
        .collect();
    assert!(statements.len() > 12, "{}", statements.len());
    for sql in statements {
        assert!(!sql.contains("LIMIT ?"), "{sql}");
        for row in queue.sql(&format!("EXPLAIN QUERY PLAN {sql}")).await {
            let step = &row[3];
            let is_whole_table = step.starts_with("SCAN power_requests")
                && !step.contains("USING INDEX")
                && !step.contains("USING COVERING INDEX");
            let walks_ends = step.starts_with("SCAN") && step.contains("power_requests_ended");
            assert!(
                !is_whole_table && !walks_ends && !step.contains("AUTOMATIC"),
                "{sql}\n{step}"
            );
        }
    }
}

async fn client(queue: &Queue) -> QueueClient {
    QueueClient::open(queue.path(), Access::Read)
        .await
        .expect("opened")
}

/// The ids on all pages, in their order.
async fn all_pages(client: &mut QueueClient, which: &Selection, limit: u32) -> Vec<i64> {
    let mut ids = Vec::new();
    let mut before = None;
    loop {
        let page = client
            .page(which, before.as_ref(), limit)
            .await
            .expect("a page");
        assert!(page.requests.len() <= limit as usize);
        ids.extend(page.requests.iter().map(|request| request.id));
        // As it comes back from an address.
        before = page
            .next
            .map(|next| next.to_string().parse().expect("a cursor"));
        if before.is_none() {
            return ids;
        }
    }
}

async fn ids_by_sql(queue: &mut Queue, rest: &str) -> Vec<i64> {
    let rows = queue
        .sql(&format!("SELECT id FROM power_requests WHERE {rest}"))
        .await;
    rows.iter()
        .map(|row| row[0].parse().expect("an id"))
        .collect()
}

#[tokio::test]
async fn pages_lead_through_everything_that_matches_once() {
    let mut queue = Queue::new().await;
    for number in 0..30 {
        let label = if number % 3 == 0 { "'night'" } else { "NULL" };
        queue
            .insert(&format!("s{number}"), &[("label", label)])
            .await;
    }
    let mut ended = queue.claim_all(wall()).await;
    for (number, batch) in ended.drain(..).enumerate() {
        // Many at the same millisecond, as after a job.
        queue
            .end(&batch, &failed(), UtcMillis(wall().0 - number as i64))
            .await;
    }
    for number in 0..20 {
        queue
            .insert(&format!("s{}", number % 4), &[("label", "'night'")])
            .await;
    }
    queue.take_in(None, wall()).await;
    let of = |change: fn(&mut Selection)| {
        let mut which = Selection::default();
        change(&mut which);
        which
    };
    for (which, sql) in [
        (of(|_| {}), "1 ORDER BY id DESC"),
        (
            of(|which| which.states = vec![RequestState::Failed]),
            "state = 'failed' ORDER BY finished_at DESC, id DESC",
        ),
        (
            of(|which| which.states = vec![RequestState::Queued]),
            "state = 'queued' ORDER BY id DESC",
        ),
        (
            of(|which| which.states = vec![RequestState::Queued, RequestState::Failed]),
            "1 ORDER BY id DESC",
        ),
        (
            of(|which| which.label = Some("night".to_owned())),
            "label = 'night' ORDER BY id DESC",
        ),
        (
            of(|which| which.servers = Some(vec!["S1".to_owned(), "s2".to_owned()])),
            "server_id IN ('s1', 's2') ORDER BY id DESC",
        ),
        (
            of(|which| which.error_code = Some("BMS.0040".to_owned())),
            "error_code = 'BMS.0040' ORDER BY id DESC",
        ),
        (of(|which| which.error_code = Some("BMS.9".to_owned())), "0"),
    ] {
        let wanted = ids_by_sql(&mut queue, sql).await;
        let mut client = client(&queue).await;
        for limit in [7, 100] {
            assert_eq!(
                all_pages(&mut client, &which, limit).await,
                wanted,
                "{sql}, {limit}"
            );
        }
    }
}

#[tokio::test]
async fn pages_and_search_show_nothing_of_other_targets() {
    let mut queue = Queue::new().await;
    queue
        .insert("a", &[("target", "'secret'"), ("label", "'hidden'")])
        .await;
    queue.insert("b", &[("label", "'here'")]).await;
    let which = Selection {
        allowed: Allowed {
            targets: Some(vec!["default".to_owned()]),
            ..Allowed::default()
        },
        ..Selection::default()
    };
    let mut client = client(&queue).await;
    assert_eq!(all_pages(&mut client, &which, 10).await, [2]);
    assert_eq!(
        client.targets_of_label("hidden").await.expect("read"),
        ["secret"]
    );
}

#[tokio::test]
async fn labels_are_found_by_their_beginning_and_by_globs() {
    let mut queue = Queue::new().await;
    for label in ["night-1", "night-2", "night-2", "nigh[t", "noon"] {
        queue
            .insert(
                &format!("s-{}", label.len()),
                &[("label", &format!("'{label}'"))],
            )
            .await;
    }
    let mut client = client(&queue).await;
    let mut found = Vec::new();
    for word in ["night", "night-*", "n*n", "nigh[t", "x", "*", ""] {
        found.push(client.labels_like(word, 10).await.expect("read").join(","));
    }
    assert_eq!(
        found,
        [
            "night-1,night-2",
            "night-1,night-2",
            "noon",
            "nigh[t",
            "",
            "",
            ""
        ]
    );
}

const OPERATOR: &str = "an-operators-token-of-the-page";
const LIMITED: &str = "a-limited-token-of-the-page";
/// As a stranger would write it who wants to be more than text, with an escape for terminals.
const EVIL: &str = "\"><img src=x onerror=alert(1)><script>alert(2)</script>\u{1b}[31m";

/// A daemon that sends nothing and serves pages, to all or to the owners of two tokens.
struct Site {
    yard: Yard,
    _daemon: Daemon,
    base: String,
    client: reqwest::Client,
    producer: SqliteConnection,
}

impl Site {
    async fn start(with_tokens: bool) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let yard = Yard::new("[bms]\nservers = 10\n").await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let mut lines = format!("[listen]\naddress = \"{address}\"\n");
        for (name, token, more) in [
            ("ann", OPERATOR, ""),
            ("lim", LIMITED, "targets = [\"default\"]\n"),
        ] {
            let file = secret(yard.dir.path(), name, token).display().to_string();
            if with_tokens {
                lines += &format!(
                    "[[listen.tokens]]\nname = \"{name}\"\nrole = \"operator\"\ntoken_file = \"{file}\"\n{more}"
                );
            }
        }
        let config = yard.write_config();
        let config_text = fs::read_to_string(&config).expect("written");
        fs::write(&config, config_text + &lines).expect("written");
        let daemon = Daemon::start(&config);
        let mut site = Self {
            producer: yard.producer().await,
            yard,
            _daemon: daemon,
            base: format!("http://{address}"),
            client: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("a client"),
        };
        site.sql("INSERT INTO holds (kind, reason, since) VALUES ('operator', 'all paused', '2026-01-31T22:00:00.000Z')")
            .await;
        let ends = Instant::now() + PATIENCE;
        while site
            .client
            .get(format!("{}/readyz", site.base))
            .send()
            .await
            .is_err()
        {
            assert!(Instant::now() < ends, "it does not serve");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        site
    }

    async fn sql(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut self.producer)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Status and text of a page.
    async fn get(&self, path: &str, token: &str) -> (u16, String) {
        let asked = self
            .client
            .get(format!("{}{path}", self.base))
            .bearer_auth(token);
        let answer = asked.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    async fn post(&self, form: &str, token: &str) -> (u16, String) {
        let asked = self
            .client
            .post(format!("{}/act", self.base))
            .bearer_auth(token);
        let answer = asked.body(form.to_owned()).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_what_strangers_wrote_as_text() {
    let mut site = Site::start(false).await;
    let word = EVIL.replace('\'', "\'\'");
    site.sql(&format!(
        "INSERT INTO power_requests (server_id, action, label, requested_by, request_key) VALUES ('s-1', 'stop', '{word}', '{word}', '{word}')"
    ))
    .await;
    site.sql(&format!(
        "INSERT INTO holds (label, kind, reason, since) VALUES ('{word}', 'operator', '{word}', '{word}')"
    ))
    .await;
    let as_value: String = form_urlencoded::byte_serialize(EVIL.as_bytes()).collect();
    let as_segment = as_value.replace('+', "%20");
    for path in [
        "/".to_owned(),
        "/requests".to_owned(),
        "/request/1".to_owned(),
        "/server/s-1".to_owned(),
        format!("/label/{as_segment}"),
        format!("/requests?label={as_value}"),
        format!("/requests?state={as_value}"),
        format!("/search?q={as_value}"),
        format!("/server/{as_segment}"),
        format!("/{as_segment}"),
    ] {
        let (status, page) = site.get(&path, "").await;
        assert!([200, 400, 404].contains(&status), "{path}: {status}");
        assert!(
            !page.contains("<img") && !page.contains("<script>"),
            "{path}\n{page}"
        );
        // But for the fields of a filter, which have to say what was asked for.
        let is_filter = path.starts_with("/requests?");
        assert!(is_filter || !page.contains('\u{1b}'), "{path}");
    }
    let shown = site.get("/request/1", "").await.1;
    assert!(
        shown.contains("&lt;img src=x onerror=alert(1)&gt;") && shown.contains("\\u{1b}[31m"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_a_limited_token_nothing_of_other_targets() {
    let mut site = Site::start(true).await;
    site.sql(
        "INSERT INTO power_requests (server_id, action, target, label) VALUES ('s-here', 'stop', 'default', 'shown'),
             ('s-covert', 'stop', 'elsewhere', 'covert')",
    )
    .await;
    for path in [
        "/",
        "/requests",
        "/search?q=s-",
        "/server/s-here",
        "/label/shown",
    ] {
        let (status, page) = site.get(path, LIMITED).await;
        assert_eq!(status, 200, "{path}");
        assert!(
            !page.contains("elsewhere") && !page.contains("covert"),
            "{path}\n{page}"
        );
    }
    for path in [
        "/request/2",
        "/server/s-covert",
        "/label/covert",
        "/act?deed=cancel&id=2",
    ] {
        assert_eq!(site.get(path, LIMITED).await.0, 404, "{path}");
    }
    let (_, found) = site.get("/search?q=cov", LIMITED).await;
    assert!(found.contains("Nothing was found"), "{found}");
    let (_, all) = site.get("/requests", OPERATOR).await;
    assert!(all.contains("elsewhere") && all.contains("covert"));
    let paused = site.post("deed=pause&target=elsewhere", LIMITED).await;
    assert_eq!(paused.0, 403, "{}", paused.1);
    let cancelled = site
        .post("deed=cancel&state=queued&requests=2", LIMITED)
        .await;
    assert_eq!(cancelled.0, 200);
    let states = "SELECT group_concat(state) FROM (SELECT state FROM power_requests ORDER BY id)";
    assert_eq!(text(&mut site.producer, states).await, "cancelled,queued");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_on_the_page_is_told_and_noted_once() {
    let mut site = Site::start(true).await;
    site.sql(
        "INSERT INTO power_requests (server_id, action, label) VALUES ('a', 'stop', 'l'), ('b', 'stop', 'l'), ('c', 'stop', 'm')",
    )
    .await;
    let (_, asked) = site.get("/act?deed=cancel&label=l", OPERATOR).await;
    assert!(asked.contains("Cancel 2 requests"), "{asked}");
    let (_, fewer) = site.post("deed=cancel&label=l&requests=1", OPERATOR).await;
    assert!(
        fewer.contains("you confirmed 1, and it is 2 requests now"),
        "{fewer}"
    );
    let (_, wrong) = site.post("deed=approve&label=l&requests=3", OPERATOR).await;
    assert!(wrong.contains("Nothing was done"), "{wrong}");
    let (_, told) = site
        .post("deed=approve&label=l&requests=2&reason=fire", OPERATOR)
        .await;
    assert!(told.contains("2 requests approved"), "{told}");
    let (_, told) = site.post("deed=cancel&label=l&requests=2", OPERATOR).await;
    assert!(
        told.contains("2 requests cancelled") && told.contains("/request/2"),
        "{told}"
    );
    let (_, told) = site
        .post("deed=retry&label=l&state=cancelled&requests=2", OPERATOR)
        .await;
    assert!(told.contains("2 requests tried again"), "{told}");
    let (_, told) = site.post("deed=pause&label=m&reason=why", OPERATOR).await;
    assert!(told.contains("Paused: 1 queued request."), "{told}");
    let (_, told) = site.post("deed=resume&label=m", OPERATOR).await;
    assert!(told.contains("1 pause ended"), "{told}");
    for (form, status) in [
        ("deed=erase", 400),
        ("", 400),
        ("deed=cancel", 400),
        ("deed=cancel&id=99&requests=1", 404),
    ] {
        assert_eq!(site.post(form, OPERATOR).await.0, status, "{form}");
    }
    let noted = "SELECT group_concat(who || ' ' || action || ' ' || what || ' ' || requests || ifnull(' ' || reason, ''), '; ')
                 FROM (SELECT * FROM operator_actions ORDER BY id)";
    assert_eq!(
        text(&mut site.producer, noted).await,
        "ann approve --label l 2 fire; ann cancel --label l 2; ann retry --label l --state cancelled 2; \
         ann pause --label m 1 why; ann resume --label m 1"
    );
    assert!(site.yard.cloud.ledger().is_empty());
}
