//! What the config promises: its defaults, the sentence for every kind of mistake, and the shipped
//! file.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::Budget;
use crate::plan::windows::Windows;

const FILE: &str = "/etc/poweryard/poweryard.toml";
const UNIT: &str = include_str!("../../config/poweryard.service");
const SHIPPED: &str = include_str!("../../config/poweryard.toml");

/// The smallest valid config: eight lines.
const LEAST: &str = r#"[targets.default]
service = "bms"
endpoint = "https://bms.example.com"
project_id = "p1"
[targets.default.auth]
kind = "aksk"
access_key_file = "access_key"
secret_key_file = "secret_key"
"#;

fn parse(text: &str) -> Result<Settings, SettingsError> {
    Settings::parse(text, Path::new(FILE))
}

/// The whole message, without the config file's name.
fn mistakes(text: &str) -> String {
    parse(text)
        .expect_err("the text has a mistake")
        .to_string()
        .replace(&format!("{FILE}:"), "")
}

/// LEAST with `line` at the end of its first table, as line 5.
fn with(line: &str) -> String {
    LEAST.replace(
        "[targets.default.auth]",
        &format!("{line}\n[targets.default.auth]"),
    )
}

/// LEAST with another auth table, from line 5 on.
fn with_auth(lines: &str) -> String {
    let (target, _) = LEAST.split_once("kind").expect("LEAST has a kind");
    format!("{target}{lines}")
}

#[test]
fn every_absent_key_takes_its_default() {
    let settings = parse(LEAST).unwrap();
    assert_eq!(
        settings.queue.database,
        Path::new("/var/lib/poweryard/queue.db")
    );
    assert_eq!(
        settings.queue.default_ttl,
        Some(Duration::from_secs(24 * 3600))
    );
    assert_eq!(
        settings.queue.retention,
        Some(Duration::from_secs(90 * 24 * 3600))
    );
    assert_eq!(settings.batch.linger, Duration::from_millis(100));
    assert_eq!(settings.batch.attempts_max.get(), 3);
    assert_eq!((settings.listen, settings.notify), (None, None));
    let [target] = &settings.targets[..] else {
        panic!("one target")
    };
    assert_eq!(
        *target,
        TargetSettings {
            name: TargetName("default".into()),
            service: Service::Bms,
            endpoint: Url::parse("https://bms.example.com").unwrap(),
            project_id: "p1".into(),
            submits_per_minute: 50,
            submits_open_max: 16,
            batch_servers_max: 1000,
            job_time_limit: Duration::from_secs(3600),
            look_time_limit: Duration::from_secs(900),
            settle_time: Duration::from_secs(60),
            first_look: Duration::from_secs(2),
            look_interval_max: Duration::from_secs(30),
            inventory_interval: Some(Duration::from_secs(600)),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            ca_file: None,
            proxy: None,
            proxy_password_file: None,
            allow_http: false,
            auth: AuthSettings::AkSk {
                access_key_file: "access_key".into(),
                secret_key_file: "secret_key".into(),
                security_token_file: None,
            },
            budgets: vec![],
            guards: vec![],
            windows: Windows::default(),
            protected: vec![],
        }
    );
}

#[test]
fn the_shipped_file_parses_and_its_defaults_are_the_codes() {
    let mut plain = parse(SHIPPED).unwrap();
    let no_default = [
        "export_before_prune",
        "ca_file",
        "proxy",
        "proxy_password_file",
        "security_token_file",
        "start",
        "stop",
        "reboot",
        "freeze",
        "servers",
        "servers_file",
    ];
    let written_out: String = SHIPPED
        .lines()
        .map(|line| {
            match line
                .strip_prefix('#')
                .and_then(|rest| rest.split_once(" = ").map(|(key, _)| (key, rest)))
            {
                Some((key, rest)) if !key.contains(' ') && !no_default.contains(&key) => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            }
        })
        .collect();
    assert!(written_out.contains("\nlinger = ") && written_out.contains("\nallow_http = "));
    assert_eq!(plain, parse(&written_out).unwrap());
    plain.listen = None;
    assert_eq!(
        (plain.queue, plain.batch),
        (QueueSettings::default(), BatchSettings::default())
    );
}

#[test]
fn hooks_are_named_in_full_and_not_called_in_the_clear() {
    let notify = |lines: &str| format!("{LEAST}[notify]\n{lines}\n");
    let read = |lines: &str| parse(&notify(lines)).unwrap().notify.unwrap();
    let both = read(
        "command = [\"/bin/tell\", \"a b\"]\nurl = \"https://example.com/a?b=c\"\ntimeout = \"2s\"",
    );
    assert_eq!(
        (both.command.len(), both.timeout, both.allow_http),
        (2, Duration::from_secs(2), false)
    );
    assert_eq!(
        both.url.map(String::from).as_deref(),
        Some("https://example.com/a?b=c")
    );
    assert_eq!(
        read("command = [\"/bin/tell\"]").timeout,
        Duration::from_secs(10)
    );
    for url in [
        "http://127.0.0.1:8080/x",
        "http://[::1]/",
        "http://localhost/",
    ] {
        assert!(read(&format!("url = \"{url}\"")).url.is_some(), "{url}");
    }
    assert!(read("url = \"http://example.com/\"\nallow_http = true").allow_http);
    for (lines, words) in [
        ("", "has no hook"),
        ("timeout = \"1s\"", "has no hook"),
        ("command = []", "must begin with a program"),
        ("command = [\"tell\"]", "not an absolute path"),
        ("command = \"/bin/tell\"", "must be a list"),
        ("command = [\"/bin/tell\", 7]", "must be a string"),
        ("url = \"http://example.com/\"", "not encrypted"),
        ("url = \"http://127.0.0.1.example.com/\"", "not encrypted"),
        (
            "url = \"https://user:s3cr3t@example.com/\"",
            "contains a user name or a password",
        ),
        ("url = \"ftp://example.com/\"", "must begin with https://"),
        (
            "url = \"https://example.com\"\ntimeout = \"1h\"",
            "out of range",
        ),
        ("url = \"https://example.com\"\nretries = 3", "unknown key"),
    ] {
        let said = mistakes(&notify(lines));
        assert!(
            said.contains(words) && said.contains("notify") && !said.contains("s3cr3t"),
            "{lines}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{lines}: {said}");
    }
}

#[test]
fn the_shipped_file_shows_every_key() {
    let probes = format!(
        "x = 1\n{}",
        with(
            "x = 1\n[queue]\nx = 1\n[batch]\nx = 1\n[notify]\nx = 1\n[waves]\nx = 1\n[listen]\nx = 1"
        )
    );
    let probes = format!(
        "{probes}x = 1\n[targets.default.budget]\nx = 1\n[targets.default.guard]\nx = 1\n[targets.default.window]\nx = 1\n[targets.default.protect]\nx = 1\n"
    );
    let messages = mistakes(&probes);
    let known: Vec<&str> = messages
        .lines()
        .filter_map(|line| line.split_once("known here: "))
        .flat_map(|(_, keys)| keys.split(", "))
        .collect();
    assert_eq!(
        known.len(),
        6 + 23 + 4 + 2 + 1 + 4 + 4 + 3 + 3 + 4 + 2 + 3,
        "{messages}"
    );
    for key in known
        .iter()
        .chain(&["iam_endpoint", "domain", "username", "password_file"])
    {
        let shown = SHIPPED.contains(&format!("{key} = ")) || SHIPPED.contains(&format!("{key}]"));
        assert!(
            shown || *key == "targets",
            "config/poweryard.toml does not show {key}"
        );
    }
}

#[test]
fn the_unit_hands_over_the_secrets_that_the_config_names() {
    for line in UNIT
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix("LoadCredential="))
    {
        let (name, path) = line.split_once(':').unwrap();
        assert!(
            SHIPPED.contains(&format!("_file = \"{name}\"\n")) && path.ends_with(name),
            "{line}"
        );
    }
    let parsed = parse(SHIPPED).unwrap();
    let AuthSettings::AkSk {
        access_key_file,
        secret_key_file,
        ..
    } = &parsed.targets[0].auth
    else {
        panic!("aksk")
    };
    for name in [access_key_file, secret_key_file] {
        assert!(UNIT.contains(&format!("\nLoadCredential={}:", name.display())));
    }
}

#[test]
fn the_unit_waits_longer_than_a_call_takes() {
    let stop = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="))
        .unwrap();
    assert!(
        humantime::parse_duration(stop).unwrap() > parse(LEAST).unwrap().targets[0].request_timeout
    );
}

#[test]
fn durations_numbers_and_addresses_are_read() {
    let text = format!(
        "[queue]\ndatabase = \"/q.db\"\ndefault_ttl = \"never\"\nretention = \"forever\"\n[batch]\nlinger = \"0s\"\n\
         attempts_max = 1\n[listen]\naddress = \"[::1]:80\"\n{}",
        with("settle_time = \"1s\"\nlook_time_limit = \"1m 30s\"\nbatch_servers_max = 1")
    );
    let settings = parse(&text).unwrap();
    assert_eq!(
        (settings.queue.default_ttl, settings.queue.retention),
        (None, None)
    );
    assert_eq!(
        (settings.batch.linger, settings.batch.attempts_max.get()),
        (Duration::ZERO, 1)
    );
    assert_eq!(settings.listen, Some("[::1]:80".parse().unwrap()));
    assert_eq!(settings.targets[0].look_time_limit, Duration::from_secs(90));
    assert_eq!(settings.targets[0].batch_servers_max, 1);
}

#[test]
fn a_short_limit_shortens_the_defaults_below_it() {
    let target = parse(&with(
        "look_interval_max = \"1s\"\nrequest_timeout = \"5s\"",
    ))
    .unwrap()
    .targets
    .remove(0);
    assert_eq!(
        (target.first_look, target.connect_timeout),
        (Duration::from_secs(1), Duration::from_secs(5))
    );
}

#[test]
fn a_token_login_and_budgets_are_read() {
    let text = with_auth(
        "kind = \"token\"\niam_endpoint = \"https://iam.example.com/\"\ndomain = \"d\"\nusername = \"u\"\n\
         password_file = \"/p\"\n[targets.default.budget]\nstop = \"500/1h\"\nstart = \"300/1m\"\n",
    );
    let target = parse(&text).unwrap().targets.remove(0);
    assert!(matches!(target.auth, AuthSettings::Token { domain, .. } if domain == "d"));
    let budget = |servers, secs| Budget {
        servers,
        span: Duration::from_secs(secs),
    };
    assert_eq!(
        target.budgets,
        [
            (PowerAction::Start, budget(300, 60)),
            (PowerAction::Stop, budget(500, 3600))
        ]
    );
}

#[test]
fn each_wrong_line_of_a_target_gets_its_sentence() {
    let cases = [
        (
            "batch_servers_max = 5000",
            "batch_servers_max: 5000 is more than bms takes in one call; use 1 to 1000",
        ),
        (
            "batch_servers_max = 0",
            "batch_servers_max: 0 is less than 1; use 1 to 1000",
        ),
        (
            "batch_servers_max = \"9\"",
            "batch_servers_max: must be a whole number, not a string",
        ),
        (
            "submits_per_minute = 6001",
            "submits_per_minute: 6001 is out of range; use 1 to 6000",
        ),
        (
            "submits_per_minute = 1.5",
            "submits_per_minute: must be a whole number, not a number with a fraction",
        ),
        (
            "job_time_limit = \"0s\"",
            "job_time_limit: \"0s\" is out of range; use \"1ms\" to \"30d\"",
        ),
        (
            "job_time_limit = 90",
            "job_time_limit: must be a duration in quotes with its unit, such as \"90s\", not a whole number",
        ),
        (
            "job_time_limit = \"90\"",
            "job_time_limit: \"90\" is not a duration (time unit needed, for example 90sec or 90ms); write a number \
             with its unit, such as \"100ms\", \"90s\", \"24h\" or \"90d\"",
        ),
        (
            "settle_time = \"999ms\"",
            "settle_time: \"999ms\" is out of range; use \"1s\" to \"1d\"",
        ),
        (
            "settle_time = \"20m\"",
            "settle_time: settle_time (\"20m\") must be shorter than look_time_limit (\"15m\")",
        ),
        (
            "look_time_limit = \"1m\"",
            "look_time_limit: settle_time (\"1m\") must be shorter than look_time_limit (\"1m\")",
        ),
        (
            "first_look = \"40s\"",
            "first_look: first_look (\"40s\") must not be longer than look_interval_max (\"30s\")",
        ),
        (
            "connect_timeout = \"2m\"",
            "connect_timeout: connect_timeout (\"2m\") must not be longer than request_timeout (\"1m\")",
        ),
        (
            "allow_http = 1",
            "allow_http: must be true or false, not a whole number",
        ),
        (
            "ca_file = \"/no/such.pem\"",
            "ca_file: /no/such.pem cannot be read: No such file or directory (os error 2)",
        ),
        ("ca_file = \"/etc\"", "ca_file: /etc is not a regular file"),
        (
            "ca_file = \"/etc/passwd\"",
            "ca_file: /etc/passwd contains no certificate in PEM format",
        ),
        (
            "ca_file = \"ca/a.pem\"",
            "ca_file: must be the absolute path of a file, or the name of a systemd credential (without /)",
        ),
        (
            "proxy = \"http://u:p@proxy\"",
            "proxy: contains a password; put the password into a file of its own and name that file in proxy_password_file",
        ),
        (
            "proxy = \"proxy:3128\"",
            "proxy: \"proxy:3128\" does not begin with http:// or https://; \
             write for example \"http://proxy.example.com:3128\"",
        ),
        (
            "budget = 5",
            "budget: must be a table, written as [targets.default.budget]",
        ),
        (
            "budget.stop = \"500\"",
            "budget.stop: \"500\" has no slash; write a number of servers per time, such as \"500/1h\"",
        ),
        (
            "budget.stop = \"0/1h\"",
            "budget.stop: \"0\" is not a number of servers from 1 to 4294967295; write a number of servers per time, such as \"500/1h\"",
        ),
        (
            "budget.stop = \"5/0s\"",
            "budget.stop: the time of \"5/0s\" is out of range; use \"1s\" to \"366d\"",
        ),
        (
            "budget.halt = \"5/1h\"",
            "budget.halt: unknown key; known here: start, stop, reboot",
        ),
        (
            "protect.servers = \"a\"",
            "protect.servers: must be a list in brackets",
        ),
        (
            "protect.servers = [\"a b\"]",
            "protect.servers: \"a b\" is not a server id; use 1 to 64 letters, digits and -",
        ),
        (
            "protect.servers = [7]",
            "protect.servers: must be a string in quotes, not a whole number",
        ),
        (
            "protect.servers_file = \"/no/such\"",
            "protect.servers_file: /no/such cannot be read: No such file or directory (os error 2)",
        ),
        (
            "linger = 'x",
            "linger: not valid TOML: invalid literal string, expected `'`",
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(
            mistakes(&with(line)),
            format!("5: targets.default.{expected}"),
            "for {line}"
        );
    }
}

#[test]
fn a_clouddc_target_takes_fifty_servers_a_call_and_no_more() {
    let text = LEAST.replace("\"bms\"", "\"clouddc\"");
    let target = &parse(&text).unwrap().targets[0];
    assert_eq!(
        (target.service, target.batch_servers_max),
        (Service::CloudDc, 50)
    );
    let with = |number: u32| {
        text.replace(
            "project_id",
            &format!("batch_servers_max = {number}\nproject_id"),
        )
    };
    assert_eq!(parse(&with(20)).unwrap().targets[0].batch_servers_max, 20);
    assert_eq!(
        mistakes(&with(51)),
        "4: targets.default.batch_servers_max: 51 is more than clouddc takes in one call; use 1 to 50"
    );
    assert_eq!(
        mistakes(&text.replace("endpoint = \"https://bms.example.com\"\n", "")),
        "1: targets.default.endpoint: is missing; \
         write for example endpoint = \"https://clouddc.cn-south-1.myhuaweicloud.com\""
    );
}

#[test]
fn each_wrong_required_key_gets_its_sentence() {
    let cases = [
        (
            "\"bms\"",
            "\"ecs\"",
            "2: targets.default.service: \"ecs\" is not a service; use \"bms\" or \"clouddc\"",
        ),
        (
            "\"bms\"",
            "\"CloudDC\"",
            "2: targets.default.service: \"CloudDC\" is not a service; use \"bms\" or \"clouddc\"",
        ),
        (
            "project_id = \"p1\"",
            "",
            "1: targets.default.project_id: is missing; \
             write for example project_id = \"bbf1946d374b44a0a2a95533562ba954\"",
        ),
        (
            "\"p1\"",
            "\"a/b\"",
            "4: targets.default.project_id: \"a/b\" is not a project id; use letters, digits, - and _",
        ),
        (
            "https://",
            "http://",
            "3: targets.default.endpoint: \"http://bms.example.com\" is not encrypted; use https://, or set \
             allow_http = true for a test",
        ),
        (
            ".com",
            ".com/v1",
            "3: targets.default.endpoint: \"https://bms.example.com/v1\" has a path or a query; \
             write only the base URL: \
             \"https://bms.example.com\"",
        ),
        (
            "https://",
            "",
            "3: targets.default.endpoint: is not a URL (relative URL without a base); write for example \
             \"https://bms.eu-de.otc.t-systems.com\"",
        ),
        (
            "\"aksk\"",
            "\"basic\"",
            "6: targets.default.auth.kind: \"basic\" is not a kind of auth; use \"aksk\" or \"token\"",
        ),
    ];
    for (right, wrong, expected) in cases {
        assert_eq!(
            mistakes(&LEAST.replacen(right, wrong, 1)),
            expected,
            "for {wrong}"
        );
    }
}

#[test]
fn each_wrong_login_gets_its_sentence() {
    let no_auth = LEAST.split_once("[targets.default.auth]").unwrap().0;
    assert_eq!(
        mistakes(no_auth),
        "1: targets.default.auth: is missing; \
         add a table [targets.default.auth] with kind = \"aksk\" or kind = \"token\""
    );
    let files = "access_key_file = \"a\"\nsecret_key_file = \"b\"\n";
    let cases = [
        (
            format!("kind = \"aksk\"\n{files}domain = \"d\""),
            "9: targets.default.auth.domain: belongs to kind = \"token\"; kind = \"aksk\" takes access_key_file, \
             secret_key_file, security_token_file",
        ),
        (
            format!("kind = \"aksk\"\n{files}secret_key = \"hunter2\""),
            "9: targets.default.auth.secret_key: a secret must not be in this file; put it into a file of its own and \
             name that file in secret_key_file",
        ),
        (
            "kind = \"aksk\"\naccess_key_file = \"a\"".to_owned(),
            "5: targets.default.auth.secret_key_file: is missing; write for example secret_key_file = \
             \"/etc/poweryard/secret_key\"",
        ),
        (
            format!("kind = \"aksk\"\n{files}region = \"x\""),
            "9: targets.default.auth.region: unknown key; known here: kind, access_key_file, secret_key_file, \
             security_token_file",
        ),
        (files.to_owned(), "5: targets.default.auth.kind: is missing; write for example kind = \"aksk\""),
        (
            "kind = \"token\"\niam_endpoint = \"https://i\"\ndomain = \" \"\nusername = \"u\"\npassword_file = \"p\""
                .into(),
            "8: targets.default.auth.domain: must not be empty or contain control characters",
        ),
    ];
    for (lines, expected) in cases {
        assert_eq!(mistakes(&with_auth(&lines)), expected, "for {lines}");
    }
}

#[test]
fn each_wrong_line_outside_targets_gets_its_sentence() {
    let cases = [
        (
            "[queue]\ndatabase = \"q.db\"",
            "10: queue.database: \"q.db\" is not an absolute path; write one that begins with /",
        ),
        (
            "[queue]\ndefault_ttl = \"0s\"",
            "10: queue.default_ttl: \"0s\" is out of range; use \"1s\" to \"36500d\", or write \"never\"",
        ),
        (
            "[queue]\nttl = \"1h\"",
            "10: queue.ttl: unknown key; known here: database, default_ttl, retention, export_before_prune",
        ),
        (
            "[batch]\nlinger = \"61s\"",
            "10: batch.linger: \"61s\" is out of range; use \"0s\" to \"1m\"",
        ),
        (
            "[batch]\nattempts_max = 0",
            "10: batch.attempts_max: 0 is out of range; use 1 to 100",
        ),
        (
            "[listen]",
            "9: listen.address: is missing; write for example address = \"127.0.0.1:9642\"",
        ),
        (
            "[listen]\naddress = \"localhost:9642\"",
            "10: listen.address: \"localhost:9642\" is not an IP address with a port; write for example \
             \"127.0.0.1:9642\" or \"[::1]:9642\"",
        ),
        (
            "[[listen]]",
            "9: listen: must be a table, written as [listen]",
        ),
        (
            "[que]",
            "9: que: unknown key; known here: queue, batch, targets, listen, notify, waves",
        ),
        (
            "[queue]\nretention = 90d",
            "10: queue.retention: not valid TOML: string values must be quoted, expected literal string",
        ),
    ];
    for (lines, expected) in cases {
        assert_eq!(
            mistakes(&format!("{LEAST}{lines}")),
            expected,
            "for {lines}"
        );
    }
    assert_eq!(
        mistakes(""),
        "1: targets: there is no target; add at least one table [targets.NAME]"
    );
    assert_eq!(
        mistakes("\n[targets]"),
        "2: targets: there is no target; add at least one table [targets.NAME]"
    );
    assert_eq!(
        mistakes("targets = 1"),
        "1: targets: must be a table, written as [targets]"
    );
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_their_lines() {
    let text = format!(
        "{}[queue]\nretention = 1\nname = \"x\"\n",
        with("first_look = 1\nfoo = 2")
    );
    let text = mistakes(&text);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.split_once(": ").unwrap().0)
        .collect();
    assert_eq!(lines, ["5", "6", "12", "13"], "{text}");
}

#[test]
fn a_targets_name_is_checked_and_named() {
    let text = LEAST.replace("targets.default", "targets.\"a b\"");
    assert_eq!(
        mistakes(&text),
        "1: targets.\"a b\": \"a b\" cannot be the name of a target; use 1 to 64 letters, digits, '.', '_' and '-'"
    );
    assert!(parse(&LEAST.replace("targets.default", "targets.\"eu-de.1_x\"")).is_ok());
}

#[test]
fn two_targets_for_the_same_servers_are_refused() {
    let twin = LEAST
        .replace("default", "another")
        .replace("example.com", "EXAMPLE.com:443/");
    assert_eq!(
        mistakes(&format!("{LEAST}{twin}")),
        "9: targets.another: has the same service, endpoint and project_id as targets.default (line 1); \
         keep one of the two"
    );
    assert_eq!(
        parse(&format!("{LEAST}{}", twin.replace("p1", "p2")))
            .unwrap()
            .targets
            .len(),
        2
    );
}

#[test]
fn http_is_for_tests_only() {
    let text = with("allow_http = true").replace("https://", "http://");
    assert_eq!(
        parse(&text).unwrap().targets[0].endpoint.as_str(),
        "http://bms.example.com/"
    );
}

#[test]
fn protected_servers_come_from_both_lists_and_bad_ids_name_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("protected");
    let text = with(&format!(
        "protect.servers = [\"b\", \"A\"]\nprotect.servers_file = {list:?}"
    ));
    fs::write(&list, "# database hosts\na\n\n  c # main\n").unwrap();
    let protected = parse(&text).unwrap().targets.remove(0).protected;
    assert_eq!(protected, ["a", "b", "c"].map(|id| ServerId(id.into())));
    fs::write(&list, "a\nb_c\n").unwrap();
    assert_eq!(
        mistakes(&text),
        format!(
            "{}:2: targets.default.protect.servers_file: \"b_c\" is not a server id; use 1 to 64 letters, digits and -",
            list.display()
        )
    );
}

#[test]
fn a_bad_id_in_a_long_list_is_reported_at_its_own_line() {
    assert!(
        mistakes(&with("protect.servers = [\n\"a\",\n\"?\"]"))
            .starts_with("7: targets.default.protect.servers: \"?\"")
    );
}

#[test]
fn a_missing_config_file_is_named() {
    let error = Settings::load(Path::new("/no/such.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/no/such.toml: the config file cannot be read"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn the_queue_alone_can_be_read_beside_other_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("poweryard.toml");
    fs::write(
        &file,
        "[queue]\ndatabase = \"/q.db\"\n[targets.x]\nca_file = \"/not/for/you\"\n",
    )
    .unwrap();
    assert_eq!(
        QueueSettings::load(&file).unwrap().database,
        Path::new("/q.db")
    );
    fs::write(&file, "[queue]\ndatabase = 5\n").unwrap();
    assert_eq!(
        QueueSettings::load(&file).unwrap_err().to_string(),
        format!(
            "{}:2: queue.database: must be a string in quotes, not a whole number",
            file.display()
        )
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}|[\\[\\]a-z.=\"'#\n {},0-9-]{0,120}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_change_of_a_good_text_makes_the_parser_panic(at in 0..SHIPPED.len(), length in 0usize..40, put in ".{0,6}") {
        if let (Some(head), Some(tail)) = (SHIPPED.get(..at), SHIPPED.get(at + length..))
            && let Err(error) = parse(&format!("{head}{put}{tail}"))
        {
            for line in error.to_string().lines() {
                prop_assert!(line.starts_with(FILE) && line.matches(": ").count() >= 2, "{line}");
            }
        }
    }
}

#[test]
fn windows_and_guards_are_read_with_the_target_and_refused_with_key_and_line() {
    let read = |lines: &str| parse(&format!("{LEAST}{lines}\n"));
    let settings = read(
        "[targets.default.window]\nstop = [\"Mon..Fri 20:00-06:00 Europe/Berlin\", \"Sat,Sun 00:00-24:00\"]\n\
         freeze = [\"2026-12-20..2027-01-03\"]\n[targets.default.guard]\nstop = \"200/1h\"\nreboot = \"50/1h\"",
    );
    let target = &settings.unwrap().targets[0];
    assert_eq!(target.windows.spans[&PowerAction::Stop].len(), 2);
    assert_eq!(target.windows.freezes.len(), 1);
    let guarded: Vec<PowerAction> = target.guards.iter().map(|(action, _)| *action).collect();
    assert_eq!(guarded, [PowerAction::Stop, PowerAction::Reboot]);
    for (lines, words) in [
        (
            "[targets.default.window]\nstop = []",
            "targets.default.window.stop: is empty",
        ),
        (
            "[targets.default.window]\nstop = \"20:00-06:00\"",
            "targets.default.window.stop: must be a list",
        ),
        (
            "[targets.default.window]\nstop = [\"20:00-06:00\",\n\"Mun 1:00-2:00\"]",
            "targets.default.window.stop: \"Mun\" is not a day",
        ),
        (
            "[targets.default.window]\nstart = [\"20:00-06:00 Mars\"]",
            "targets.default.window.start: \"Mars\" is not a time zone",
        ),
        (
            "[targets.default.window]\nfreeze = [\"2026-02-30\"]",
            "targets.default.window.freeze: \"2026-02-30\" is not a date",
        ),
        (
            "[targets.default.window]\nstopp = [\"20:00-06:00\"]",
            "unknown key",
        ),
        (
            "[targets.default.guard]\nstop = \"0/1h\"",
            "targets.default.guard.stop: ",
        ),
        ("[targets.default.guard]\nsotp = \"1/1h\"", "unknown key"),
    ] {
        let said = mistakes(&format!("{LEAST}{lines}\n"));
        assert!(said.contains(words), "{lines}: {said}");
    }
}

#[test]
fn a_gate_is_read_with_its_times_and_its_mistakes_are_named() {
    let waves = |lines: &str| format!("{LEAST}[waves]\n{lines}\n");
    let read = parse(&waves(
        "gate = [\"/bin/gate\", \"x\"]\ngate_timeout = \"5s\"",
    ))
    .unwrap();
    assert_eq!(read.waves.gate, ["/bin/gate", "x"]);
    assert_eq!(read.waves.gate_timeout, Duration::from_secs(5));
    assert_eq!(read.waves.gate_interval, Duration::from_secs(60));
    assert!(parse(LEAST).unwrap().waves.gate.is_empty());
    for (lines, words) in [
        ("gate = [\"gate\"]", "is not an absolute path"),
        ("gate = []", "must begin with a program, such as"),
        ("gate = \"/bin/gate\"", "must be a list"),
        ("gate_timeout = \"5s\"", "has no gate"),
        (
            "gate = [\"/bin/gate\"]\ngate_interval = \"0s\"",
            "out of range",
        ),
        ("gates = []", "unknown key"),
    ] {
        let said = mistakes(&waves(lines));
        assert!(said.contains(words), "{lines}: {said}");
    }
}
