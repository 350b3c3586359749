//! `[notify]`: which hooks there are. Runs and calls nothing.

use std::time::Duration;

use reqwest::Url;
use toml::de::DeValue;

use super::NotifySettings;
use super::document::Section;
use super::parse::{self, Parsed};

const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_LEAST: Duration = Duration::from_millis(100);
const TIMEOUT_MOST: Duration = Duration::from_secs(300);
const URL_EXAMPLE: &str = "\"https://alerts.example.com/poweryard\"";

/// Reads the table; none if it is absent or has no valid hook.
pub(super) fn read(root: &Section<'_>) -> Option<NotifySettings> {
    let section = root.section("notify");
    let has_command = section.has("command");
    let command = program(&section, "command", "[\"/usr/local/bin/tell\", \"power\"]");
    let url = section.read("url", url);
    let timeout = section
        .read("timeout", parse::duration(TIMEOUT_LEAST..=TIMEOUT_MOST))
        .unwrap_or(TIMEOUT);
    let allow_http = section.read("allow_http", parse::boolean).unwrap_or(false);
    if let Some(url) = url
        .as_ref()
        .filter(|url| url.scheme() == "http" && !allow_http && !is_loopback(url))
    {
        let host = url.host_str().unwrap_or_default();
        let problem = format!(
            "http to {host} is not encrypted; use https://, or set allow_http = true for a test"
        );
        section.mistake("url", problem);
    }
    if section.is_present() && !has_command && !section.has("url") {
        section.own_mistake(format!(
            "has no hook; write command = [\"/usr/local/bin/tell\"] or url = {URL_EXAMPLE}"
        ));
    }
    section.refuse_unknown(|_| None);
    (!command.is_empty() || url.is_some()).then_some(NotifySettings {
        command,
        url,
        timeout,
        allow_http,
    })
}

/// A program by its absolute path, and its arguments; empty if the key is absent.
pub(super) fn program(section: &Section<'_>, key: &'static str, example: &str) -> Vec<String> {
    let command = section.read_list(key, argument);
    if let Some(program) = command.first().filter(|program| !program.starts_with('/')) {
        section.mistake(
            key,
            format!("{program:?} is not an absolute path; write one that begins with /"),
        );
    } else if section.has_empty_list(key) {
        section.mistake(key, format!("must begin with a program, such as {example}"));
    }
    command
}

fn argument(value: &DeValue<'_>) -> Parsed<String> {
    let text = parse::text(value)?;
    if text.contains('\0') {
        return Err("must not contain a zero byte".to_owned());
    }
    Ok(text.to_owned())
}

/// A whole URL. Messages do not repeat it, because it may contain a secret.
fn url(value: &DeValue<'_>) -> Parsed<Url> {
    let text = parse::text(value)?;
    let url = Url::parse(text)
        .map_err(|error| format!("is not a URL ({error}); write for example {URL_EXAMPLE}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!(
            "must begin with https:// or http://; write for example {URL_EXAMPLE}"
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("contains a user name or a password; remove it from the URL".to_owned());
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
