//! `[listen]`: where page, metrics and API are served, and who may do what there. Listens on
//! nothing and reads no file.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use toml::de::DeValue;

use super::document::Section;
use super::parse::{self, Parsed};
use super::{ListenSettings, TargetSettings, TlsFiles, TokenSettings};
use crate::model::{PowerAction, Role};

/// It is shown in tables and stored in rows.
const NAME_CHARS_MAX: usize = 64;
/// Each request is compared with all of them.
const TOKENS_MAX: usize = 1000;

/// Reads the table; none if it is absent or says not where to listen.
pub(super) fn read(root: &Section<'_>, targets: &[TargetSettings]) -> Option<ListenSettings> {
    let section = root.section("listen");
    if !section.is_present() {
        return None;
    }
    let address = section.require("address", "\"127.0.0.1:9642\"", parse::address);
    let hosts = section.read_list("hosts", host);
    let tls = tls(&section);
    let behind_proxy = section
        .read("behind_proxy", parse::boolean)
        .unwrap_or(false);
    let tokens = tokens(&section, targets);
    section.refuse_unknown(|key| hint(key).map(str::to_owned));
    if let Some(address) = address {
        refuse_open_door(&section, address, behind_proxy);
    }
    Some(ListenSettings {
        address: address?,
        hosts,
        tls,
        behind_proxy,
        tokens,
    })
}

/// Others reach an address that is no loopback address: they need tokens, and nobody in between may
/// read these.
fn refuse_open_door(section: &Section<'_>, address: SocketAddr, behind_proxy: bool) {
    if address.ip().is_loopback() {
        return;
    }
    if !section.has("tokens") {
        let problem = format!(
            "other machines reach {address}, so tokens are needed; add [[listen.tokens]], or listen on a loopback address such as \"127.0.0.1:9642\""
        );
        section.mistake("address", problem);
    }
    if !section.has("tls_cert_file") && !behind_proxy {
        let problem = format!(
            "other machines reach {address}, so TLS is needed; set tls_cert_file and tls_key_file, or behind_proxy = true if a proxy in front provides TLS"
        );
        section.mistake("address", problem);
    }
}

fn tls(section: &Section<'_>) -> Option<TlsFiles> {
    let cert_file = section.read("tls_cert_file", parse::file_or_credential);
    let key_file = section.read("tls_key_file", parse::file_or_credential);
    for (key, other) in [
        ("tls_cert_file", "tls_key_file"),
        ("tls_key_file", "tls_cert_file"),
    ] {
        if section.has(key) && !section.has(other) {
            section.mistake(key, format!("needs {other} beside it"));
        }
    }
    Some(TlsFiles {
        cert_file: cert_file?,
        key_file: key_file?,
    })
}

fn tokens(section: &Section<'_>, targets: &[TargetSettings]) -> Vec<TokenSettings> {
    let mut tokens: Vec<TokenSettings> = Vec::new();
    let tables = section.tables("tokens");
    if section.has("tokens") && tables.is_empty() {
        section.mistake(
            "tokens",
            "is empty; add a table [[listen.tokens]], or leave the list out".to_owned(),
        );
    }
    if tables.len() > TOKENS_MAX {
        section.mistake("tokens", format!("has more than {TOKENS_MAX} tokens"));
    }
    for table in tables {
        let Some(token) = token(&table, targets) else {
            continue;
        };
        if tokens.iter().any(|other| other.name == token.name) {
            table.mistake(
                "name",
                format!(
                    "{:?} is the name of another token; each needs its own",
                    token.name
                ),
            );
        }
        if tokens
            .iter()
            .any(|other| other.token_file == token.token_file)
        {
            table.mistake(
                "token_file",
                "is the file of another token; each needs its own".to_owned(),
            );
        }
        tokens.push(token);
    }
    tokens
}

fn token(table: &Section<'_>, targets: &[TargetSettings]) -> Option<TokenSettings> {
    let name = table.require("name", "\"alice\"", name);
    let token_file = table.require(
        "token_file",
        "\"/etc/poweryard/token-alice\"",
        parse::file_or_credential,
    );
    let role = table.require("role", "\"reader\"", |value| {
        let word = parse::text(value)?;
        word.parse::<Role>().map_err(|error| error.to_string())
    });
    let of_targets = some_of(table, "targets", |value| {
        let name = parse::text(value)?;
        let known = targets.iter().find(|target| target.name.0 == name);
        known
            .map(|target| target.name.clone())
            .ok_or_else(|| format!("{name:?} is not a target; there is no table [targets.{name}]"))
    });
    let of_actions = some_of(table, "actions", |value| {
        let word = parse::text(value)?;
        word.parse::<PowerAction>()
            .map_err(|error| error.to_string())
    });
    table.refuse_unknown(|key| hint(key).map(str::to_owned));
    Some(TokenSettings {
        name: name?,
        token_file: token_file?,
        role: role?,
        targets: of_targets,
        actions: of_actions,
    })
}

/// The entries of a list, each once; none if it is absent.
fn some_of<T: Ord>(
    table: &Section<'_>,
    key: &'static str,
    parse: impl Fn(&DeValue<'_>) -> Parsed<T>,
) -> Option<Vec<T>> {
    let entries: BTreeSet<T> = table.read_list(key, parse).into_iter().collect();
    if table.has_empty_list(key) {
        table.mistake(
            key,
            "is empty, so that the token could do nothing; leave it out for all".to_owned(),
        );
    }
    table.has(key).then(|| entries.into_iter().collect())
}

fn name(value: &DeValue<'_>) -> Parsed<String> {
    let name = parse::name(value)?;
    if name.chars().count() > NAME_CHARS_MAX || name.trim() != name {
        return Err(format!(
            "{name:?} is not a name; use at most {NAME_CHARS_MAX} characters, without blanks around them"
        ));
    }
    Ok(name)
}

/// The name of a host, or an address, without a port; in lower case.
fn host(value: &DeValue<'_>) -> Parsed<String> {
    let text = parse::text(value)?;
    let is_address = text
        .trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok();
    let is_name = (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !is_address && !is_name {
        return Err(format!(
            "{text:?} is not the name of a host; write for example \"power.example.com\", without http:// and port"
        ));
    }
    Ok(text.trim_matches(['[', ']']).to_ascii_lowercase())
}

/// Recognises a secret in the config file itself.
fn hint(key: &str) -> Option<&'static str> {
    match key {
        "token" => Some(
            "a secret must not be in this file; put it into a file of its own and name that file in token_file",
        ),
        "tls_key" | "tls_cert" => Some(
            "put it into a file of its own and name that file in tls_key_file or tls_cert_file",
        ),
        "host" => Some("unknown key; write hosts = [\"power.example.com\"]"),
        _ => None,
    }
}
