//! `[listen]`: is its address free, can its tokens and its certificate be used, and for how long?

use std::net::TcpListener;
use std::time::Duration;

use super::Finding;
use crate::cli::Exit;
use crate::model::{UtcMillis, counted};
use crate::settings::{ListenSecrets, ListenSettings, SecretRules, Settings};
use crate::store::daemon_on;
use crate::web::{CertificateError, ServerCertificate};

/// So long before its end a certificate should be replaced.
const REPLACE_BEFORE: Duration = Duration::from_secs(14 * 86_400);
const FILE_FIX: &str = "fix the file, then check again";

pub(super) fn findings(settings: &Settings, rules: &SecretRules, now: UtcMillis) -> Vec<Finding> {
    let Some(listen) = &settings.listen else {
        return Vec::new();
    };
    let mut findings: Vec<Finding> = address(settings, listen).into_iter().collect();
    let problems = ListenSecrets::problems(listen, rules);
    if problems.is_empty() && !listen.tokens.is_empty() {
        let tokens = counted(listen.tokens.len(), "token");
        let finding = format!("{tokens}; the files can be read, and only by the right users");
        findings.push(Finding::ok("listen.tokens", finding));
    }
    for error in problems {
        findings.push(Finding::error(
            Exit::Config,
            error.key,
            error.problem,
            FILE_FIX,
        ));
    }
    if let Ok(ListenSecrets { tls: Some(pem), .. }) = ListenSecrets::load(listen, rules) {
        findings.push(certificate(ServerCertificate::read(&pem, now), now));
    }
    findings
}

/// If a daemon runs on this queue, it uses the address, and nothing is checked.
fn address(settings: &Settings, listen: &ListenSettings) -> Option<Finding> {
    let address = listen.address;
    if daemon_on(&settings.queue.database).known() == Some(true) {
        return None;
    }
    Some(match TcpListener::bind(address) {
        Ok(_) => Finding::ok("listen.address", format!("{address} is free")),
        Err(error) => {
            let fix = "stop the program that uses it, or choose another address or port";
            Finding::error(
                Exit::Config,
                "listen.address",
                format!("cannot listen on {address} ({error})"),
                fix,
            )
        }
    })
}

fn certificate(read: Result<ServerCertificate, CertificateError>, now: UtcMillis) -> Finding {
    const SUBJECT: &str = "listen.tls_cert_file";
    match read {
        Err(error) => {
            let said = error.to_string();
            let (subject, finding) = said.split_once(": ").unwrap_or((SUBJECT, &said));
            Finding::error(Exit::Config, subject, finding, FILE_FIX)
        }
        Ok(found) if found.ends_at <= now + REPLACE_BEFORE => Finding::warning(
            SUBJECT,
            format!("the certificate is valid only until {}", found.ends_at),
            "put a new one in its place; it is used after a reload, or within a minute",
        ),
        Ok(found) => Finding::ok(
            SUBJECT,
            format!("the certificate is valid until {}", found.ends_at),
        ),
    }
}
