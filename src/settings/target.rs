//! One `[targets.NAME]` with its tables. Knows nothing of the other targets; reads no secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use toml::de::DeValue;

use super::document::Section;
use super::parse::{self, Parsed, show};
use super::secrets;
use super::{AuthSettings, TargetSettings, window};
use crate::model::{Budget, PowerAction, ServerId, Service, TargetName};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Reads a target; none if something is missing or wrong that it cannot be built without.
pub(super) fn read(
    name: &str,
    section: &Section<'_>,
    credentials: Option<&Path>,
) -> Option<TargetSettings> {
    let name = target_name(name, section);
    let service = section.require("service", "\"bms\"", service);
    let allow_http = section.read("allow_http", parse::boolean).unwrap_or(false);
    let endpoint = https_url(section, "endpoint", endpoint_example(service), allow_http);
    let project_id = section.require(
        "project_id",
        "\"bbf1946d374b44a0a2a95533562ba954\"",
        parse::project_id,
    );
    let batch_servers_max = batch_servers_max(section, service);
    let limits = TargetNumbers::read(section);
    let ca_file = section.read("ca_file", |value| ca_file(value, credentials));
    let proxy = section.read("proxy", parse::proxy_url);
    let proxy_password_file = proxy_password_file(section, proxy.as_ref());
    let auth = auth(section, allow_http);
    let budgets = budgets(section);
    let inventory_interval = section
        .read(
            "inventory_interval",
            parse::duration_or("off", SECOND..=30 * DAY),
        )
        .unwrap_or(Some(10 * MINUTE));
    let guards = window::guards(section);
    let windows = window::windows(section);
    let protected = protected(section, credentials);
    section.refuse_unknown(|_| None);
    Some(TargetSettings {
        name: name?,
        service: service?,
        endpoint: endpoint?,
        project_id: project_id?,
        submits_per_minute: limits.submits_per_minute,
        submits_open_max: limits.submits_open_max,
        batch_servers_max: batch_servers_max?,
        job_time_limit: limits.job_time_limit,
        look_time_limit: limits.look_time_limit,
        settle_time: limits.settle_time,
        first_look: limits.first_look,
        look_interval_max: limits.look_interval_max,
        inventory_interval,
        connect_timeout: limits.connect_timeout,
        request_timeout: limits.request_timeout,
        ca_file,
        proxy,
        proxy_password_file,
        allow_http,
        auth: auth?,
        budgets,
        guards,
        windows,
        protected,
    })
}

/// A user name and a password belong together.
fn proxy_password_file(section: &Section<'_>, proxy: Option<&Url>) -> Option<PathBuf> {
    let file = section.read("proxy_password_file", parse::file_or_credential);
    let has_user = proxy.is_some_and(|url| !url.username().is_empty());
    if file.is_some() && !has_user {
        let problem = "needs the name of its user in proxy; write for example \"http://user@proxy.example.com:3128\"";
        section.mistake("proxy_password_file", problem.to_owned());
    }
    file
}

fn target_name(name: &str, section: &Section<'_>) -> Option<TargetName> {
    if (1..=64).contains(&name.len()) && name.bytes().all(is_allowed_in_name) {
        return Some(TargetName(name.to_owned()));
    }
    section.own_mistake(format!(
        "{name:?} cannot be the name of a target; use 1 to 64 letters, digits, '.', '_' and '-'"
    ));
    None
}

fn is_allowed_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// An example of an endpoint, for a message about a missing or wrong one.
fn endpoint_example(service: Option<Service>) -> &'static str {
    match service {
        Some(Service::Bms) | None => "\"https://bms.eu-de.otc.t-systems.com\"",
        Some(Service::CloudDc) => "\"https://clouddc.cn-south-1.myhuaweicloud.com\"",
    }
}

/// Any service that has a client.
fn service(value: &DeValue<'_>) -> Parsed<Service> {
    let text = parse::text(value)?;
    text.parse()
        .map_err(|_| format!("{text:?} is not a service; use {}", services()))
}

fn services() -> String {
    let names: Vec<String> = Service::ALL
        .iter()
        .map(|service| format!("\"{service}\""))
        .collect();
    names.join(" or ")
}

fn https_url(
    section: &Section<'_>,
    key: &'static str,
    example: &str,
    allow_http: bool,
) -> Option<Url> {
    let url = section.require(key, example, parse::base_url(example))?;
    if url.scheme() == "http" && !allow_http {
        let base = url.origin().ascii_serialization();
        section.mistake(
            key,
            format!(
                "\"{base}\" is not encrypted; use https://, or set allow_http = true for a test"
            ),
        );
        return None;
    }
    Some(url)
}

/// Depends on the service. A missing or wrong service has already been reported; here the largest
/// limit applies then.
fn batch_servers_max(section: &Section<'_>, service: Option<Service>) -> Option<u32> {
    let most_generous = Service::ALL
        .iter()
        .map(|service| service.batch_servers_cap())
        .max();
    let cap = service
        .map(Service::batch_servers_cap)
        .or(most_generous)
        .unwrap_or(1);
    let parsed = section.read("batch_servers_max", |value| {
        let number = parse::any_whole(value)?;
        match u32::try_from(number) {
            Ok(number) if (1..=cap).contains(&number) => Ok(number),
            _ if number < 1 => Err(format!("{number} is less than 1; use 1 to {cap}")),
            _ => {
                let service = service.map_or("the service", Service::as_str);
                Err(format!(
                    "{number} is more than {service} takes in one call; use 1 to {cap}"
                ))
            }
        }
    });
    parsed.or(service.map(Service::batch_servers_cap))
}

/// The numbers and times of a target.
struct TargetNumbers {
    submits_per_minute: u32,
    submits_open_max: u32,
    job_time_limit: Duration,
    look_time_limit: Duration,
    settle_time: Duration,
    first_look: Duration,
    look_interval_max: Duration,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl TargetNumbers {
    fn read(section: &Section<'_>) -> Self {
        let time = |key, least, usual, most| {
            section
                .read(key, parse::duration(least..=most))
                .unwrap_or(usual)
        };
        let look_interval_max = time("look_interval_max", MILLISECOND, 30 * SECOND, HOUR);
        let request_timeout = time("request_timeout", MILLISECOND, MINUTE, 10 * MINUTE);
        let limits = Self {
            submits_per_minute: section
                .read("submits_per_minute", parse::whole(1..=6000))
                .unwrap_or(50),
            submits_open_max: section
                .read("submits_open_max", parse::whole(1..=64))
                .unwrap_or(16),
            job_time_limit: time("job_time_limit", MILLISECOND, HOUR, 30 * DAY),
            look_time_limit: time("look_time_limit", MILLISECOND, 15 * MINUTE, 30 * DAY),
            settle_time: time("settle_time", SECOND, MINUTE, DAY),
            first_look: time(
                "first_look",
                MILLISECOND,
                look_interval_max.min(2 * SECOND),
                HOUR,
            ),
            look_interval_max,
            connect_timeout: time(
                "connect_timeout",
                MILLISECOND,
                request_timeout.min(10 * SECOND),
                10 * MINUTE,
            ),
            request_timeout,
        };
        limits.check(section);
        limits
    }

    /// Rules between two keys. Each names both, and is reported at the first that the file sets.
    fn check(&self, section: &Section<'_>) {
        if self.settle_time >= self.look_time_limit {
            let settle = ("settle_time", self.settle_time);
            let limit = ("look_time_limit", self.look_time_limit);
            break_rule(section, settle, "be shorter than", limit);
        }
        if self.first_look > self.look_interval_max {
            let first = ("first_look", self.first_look);
            let interval = ("look_interval_max", self.look_interval_max);
            break_rule(section, first, "not be longer than", interval);
        }
        if self.connect_timeout > self.request_timeout {
            let connect = ("connect_timeout", self.connect_timeout);
            let whole = ("request_timeout", self.request_timeout);
            break_rule(section, connect, "not be longer than", whole);
        }
    }
}

/// Reports two keys whose values do not go together.
fn break_rule(
    section: &Section<'_>,
    (key, value): (&str, Duration),
    relation: &str,
    (other, bound): (&str, Duration),
) {
    let blamed = if section.has(key) { key } else { other };
    section.mistake(
        blamed,
        format!(
            "{key} (\"{}\") must {relation} {other} (\"{}\")",
            show(value),
            show(bound)
        ),
    );
}

/// A PEM file that can be read and contains a certificate.
fn ca_file(value: &DeValue<'_>, credentials: Option<&Path>) -> Parsed<PathBuf> {
    let path = secrets::resolve(&parse::file_or_credential(value)?, credentials)?;
    let pem = read_list_file(&path)?;
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        return Err(format!(
            "{} contains no certificate in PEM format",
            path.display()
        ));
    }
    Ok(path)
}

/// The text of a file that the config names; only of a regular one, since a pipe would block.
fn read_list_file(path: &Path) -> Parsed<String> {
    let cannot = |error| format!("{} cannot be read: {error}", path.display());
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    fs::read_to_string(path).map_err(cannot)
}

const AKSK_KEYS: &[&str] = &["access_key_file", "secret_key_file", "security_token_file"];
const TOKEN_KEYS: &[&str] = &["iam_endpoint", "domain", "username", "password_file"];

fn auth(target: &Section<'_>, allow_http: bool) -> Option<AuthSettings> {
    let section = target.section("auth");
    if !target.has("auth") {
        section.own_mistake(format!(
            "is missing; add a table [{}] with kind = \"aksk\" or kind = \"token\"",
            section.name()
        ));
    }
    if !section.is_present() {
        return None;
    }
    let kind = section.require("kind", "\"aksk\"", |value| match parse::text(value)? {
        "aksk" => Ok(AuthKind::AkSk),
        "token" => Ok(AuthKind::Token),
        other => Err(format!(
            "{other:?} is not a kind of auth; use \"aksk\" or \"token\""
        )),
    });
    let file =
        |key: &'static str, example: &str| section.require(key, example, parse::file_or_credential);
    let settings = match kind {
        Some(AuthKind::AkSk) => {
            let access_key_file = file("access_key_file", "\"/etc/poweryard/access_key\"");
            let secret_key_file = file("secret_key_file", "\"/etc/poweryard/secret_key\"");
            let security_token_file =
                section.read("security_token_file", parse::file_or_credential);
            access_key_file
                .zip(secret_key_file)
                .map(|(access_key_file, secret_key_file)| AuthSettings::AkSk {
                    access_key_file,
                    secret_key_file,
                    security_token_file,
                })
        }
        Some(AuthKind::Token) => token(&section, allow_http),
        None => {
            section.allow(AKSK_KEYS);
            section.allow(TOKEN_KEYS);
            None
        }
    };
    section.refuse_unknown(|key| auth_hint(key, kind));
    settings
}

#[derive(Clone, Copy)]
enum AuthKind {
    AkSk,
    Token,
}

fn token(section: &Section<'_>, allow_http: bool) -> Option<AuthSettings> {
    let iam_endpoint = https_url(
        section,
        "iam_endpoint",
        "\"https://iam.eu-de.otc.t-systems.com\"",
        allow_http,
    );
    let domain = section.require("domain", "\"OTC-EU-DE-00000000001000000000\"", parse::name);
    let username = section.require("username", "\"power-operator\"", parse::name);
    let password_file = section.require(
        "password_file",
        "\"/etc/poweryard/password\"",
        parse::file_or_credential,
    );
    Some(AuthSettings::Token {
        iam_endpoint: iam_endpoint?,
        domain: domain?,
        username: username?,
        password_file: password_file?,
    })
}

/// Recognises a secret in the config file itself, and a key of the other kind.
fn auth_hint(key: &str, kind: Option<AuthKind>) -> Option<String> {
    if matches!(
        key,
        "access_key" | "secret_key" | "security_token" | "password"
    ) {
        return Some(format!(
            "a secret must not be in this file; put it into a file of its own and name that file in {key}_file"
        ));
    }
    let (own, own_keys, other, other_keys) = match kind? {
        AuthKind::AkSk => ("aksk", AKSK_KEYS, "token", TOKEN_KEYS),
        AuthKind::Token => ("token", TOKEN_KEYS, "aksk", AKSK_KEYS),
    };
    other_keys.contains(&key).then(|| {
        format!(
            "belongs to kind = \"{other}\"; kind = \"{own}\" takes {}",
            own_keys.join(", ")
        )
    })
}

fn budgets(target: &Section<'_>) -> Vec<(PowerAction, Budget)> {
    let section = target.section("budget");
    let budgets = PowerAction::ALL
        .iter()
        .filter_map(|action| {
            section
                .read(action.as_str(), parse::budget)
                .map(|budget| (*action, budget))
        })
        .collect();
    section.refuse_unknown(|_| None);
    budgets
}

/// Both lists in one, sorted, each server once.
fn protected(target: &Section<'_>, credentials: Option<&Path>) -> Vec<ServerId> {
    let section = target.section("protect");
    let mut servers = section.read_list("servers", |value| parse::server_id(parse::text(value)?));
    let file = section.read("servers_file", |value| {
        let path = secrets::resolve(&parse::file_or_credential(value)?, credentials)?;
        let text = read_list_file(&path)?;
        Ok((path, text))
    });
    if let Some((path, text)) = file {
        servers.extend(listed_servers(&section, &path, &text));
    }
    section.refuse_unknown(|_| None);
    servers.sort();
    servers.dedup();
    servers
}

/// One id per line; `#` begins a comment.
fn listed_servers(section: &Section<'_>, path: &Path, text: &str) -> Vec<ServerId> {
    let mut servers = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let id = line.split('#').next().unwrap_or_default().trim();
        if id.is_empty() {
            continue;
        }
        match parse::server_id(id) {
            Ok(id) => servers.push(id),
            Err(problem) => section.mistake_in(path.to_owned(), index + 1, "servers_file", problem),
        }
    }
    servers
}
