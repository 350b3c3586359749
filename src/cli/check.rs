//! `check`: what would keep the daemon from working, before it is started. Changes nothing; the
//! config is read as `serve` reads it.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum as _;
use serde::Serialize;

use super::args::{self, JsonArg};
use super::output::{self, visible};
use super::{Context, Exit, Failure};
use crate::daemon;
use crate::model::{Budget, Service, UtcMillis, counted};
use crate::settings::{
    LoadedSecrets, Mistake, SecretRules, Settings, SettingsError, TargetSettings,
    load_proxy_password,
};
use crate::store::client::Access;
use crate::store::{QueueClient, Running, StoreError, daemon_on};

mod files;
mod online;
mod sqlite;
mod windows;

use online::Keys;

/// Check the config, file modes, the database and the credentials. Asks the cloud only with
/// --online.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --online it also checks each target's endpoint, this machine's clock, and one call that reads.
Exit code: 0 no errors (warnings do not count); 78 an error in the config, the credentials or online; 3 an error in the \
database or its files.

Example: poweryard --config /etc/poweryard/poweryard.toml check --online")]
pub(super) struct CheckArgs {
    /// Also ask each target's cloud. Switches nothing.
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    json: JsonArg,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// The file, key or target.
    subject: String,
    /// What was found.
    finding: String,
    /// What to do about it.
    #[serde(rename = "mend")]
    fix: Option<String>,
    /// The exit code that an error here means.
    #[serde(skip)]
    exit: Exit,
}

impl Finding {
    fn ok(subject: impl ToString, finding: impl ToString) -> Self {
        Self {
            level: Level::Ok,
            subject: subject.to_string(),
            finding: finding.to_string(),
            fix: None,
            exit: Exit::Done,
        }
    }

    fn warning(subject: impl ToString, finding: impl ToString, fix: impl ToString) -> Self {
        Self {
            level: Level::Warning,
            fix: Some(fix.to_string()),
            ..Self::ok(subject, finding)
        }
    }

    fn error(
        exit: Exit,
        subject: impl ToString,
        finding: impl ToString,
        fix: impl ToString,
    ) -> Self {
        Self {
            level: Level::Error,
            exit,
            ..Self::warning(subject, finding, fix)
        }
    }
}

pub(super) async fn run(context: &Context, args: CheckArgs) -> Result<Exit, Failure> {
    let findings = findings(context, args.online).await;
    if args.json.json {
        output::json(&findings)?
    } else {
        output::print(&text(&findings))?
    }
    Ok(exit(&findings))
}

/// Mistakes in the config come first, then the first error.
fn exit(findings: &[Finding]) -> Exit {
    let errors = findings
        .iter()
        .filter(|finding| finding.level == Level::Error);
    let exits: Vec<Exit> = errors.map(|finding| finding.exit).collect();
    if exits.contains(&Exit::Config) {
        return Exit::Config;
    }
    exits.first().copied().unwrap_or(Exit::Done)
}

async fn findings(context: &Context, online: bool) -> Vec<Finding> {
    let settings = match Settings::load(&context.config) {
        Ok(settings) => settings,
        Err(error) => return config_errors(error),
    };
    let database = &settings.queue.database;
    let rules = SecretRules::from_env(database);
    let mut findings = vec![Finding::ok(
        context.config.display(),
        count_targets(&settings),
    )];
    findings.extend(clock_finding(args::now()));
    findings.extend(files::findings(database));
    if let Some(dir) = &settings.queue.export_before_prune {
        findings.push(files::export_finding(dir));
    }
    findings.extend(sqlite::findings().await);
    queue(&settings, &mut findings).await;
    findings.extend(listen_finding(&settings));
    let keys = Keys::read(database).await;
    for target in &settings.targets {
        findings.extend(target_findings(target, &rules));
        findings.extend(windows::findings(
            target,
            settings.queue.default_ttl,
            args::now(),
        ));
        // With --online the finding about the call that is not made says so.
        if !online {
            findings.extend(refusal_finding(target, &rules, &keys));
        }
    }
    if online {
        findings.extend(online::findings(&settings, &rules, keys).await);
    }
    findings
}

fn config_errors(error: SettingsError) -> Vec<Finding> {
    match error {
        SettingsError::Unreadable { file, source } => {
            let fix = "name the config file with --config or POWERYARD_CONFIG, and give this user read access to it";
            vec![Finding::error(
                Exit::Config,
                file.display(),
                format!("cannot be read ({source})"),
                fix,
            )]
        }
        SettingsError::Mistakes(mistakes) => mistakes.into_iter().map(mistake_finding).collect(),
    }
}

fn mistake_finding(mistake: Mistake) -> Finding {
    Finding::error(
        Exit::Config,
        format!("{}:{}", mistake.file.display(), mistake.line),
        format!("{}: {}", mistake.key, mistake.problem),
        format!("fix {} in that line", mistake.key),
    )
}

fn count_targets(settings: &Settings) -> String {
    format!("no mistakes; {}", counted(settings.targets.len(), "target"))
}

/// The database and its daemon.
async fn queue(settings: &Settings, findings: &mut Vec<Finding>) {
    let path = &settings.queue.database;
    let subject = path.display();
    findings.push(match daemon_on(path) {
        Running::Yes(Some(daemon)) => Finding::ok(
            &subject,
            format!(
                "a daemon runs on it (pid {}, since {})",
                daemon.pid, daemon.since
            ),
        ),
        Running::Yes(None) => Finding::ok(&subject, "a daemon runs on it"),
        Running::No => {
            Finding::warning(&subject, "no daemon runs on it", "start `poweryard serve`")
        }
        Running::CannotTell => {
            let fix = "run this as a user who can read the file";
            Finding::warning(&subject, "cannot tell whether a daemon runs on it", fix)
        }
    });
    findings.push(match read(path).await {
        Ok(()) => Finding::ok(&subject, "can be read and has the current schema"),
        Err(StoreError::Missing(_)) => {
            let fix = "`poweryard serve` or `poweryard db migrate` creates it";
            Finding::warning(&subject, "does not exist yet", fix)
        }
        Err(error) => {
            let sentence = Failure::from(error).sentence();
            let finding = sentence.trim_start_matches("error: ").to_owned();
            Finding::error(
                Exit::Database,
                &subject,
                finding,
                "see docs/operate.md, \"When the queue cannot be used\"",
            )
        }
    });
}

async fn read(path: &Path) -> Result<(), StoreError> {
    let mut client = QueueClient::open(path, Access::Read).await?;
    client.holds(args::now()).await?;
    client.close().await
}

/// A clock that is obviously wrong. With --online it is also compared with the clouds' clocks.
fn clock_finding(now: UtcMillis) -> Option<Finding> {
    let doubt = daemon::clock_doubt(now)?;
    Some(Finding::error(
        Exit::Config,
        "this machine's clock",
        doubt,
        "set the clock, for example with `timedatectl set-ntp true`",
    ))
}

/// Whether the address of `[listen]` is free. If a daemon runs on this queue, it uses the address,
/// and nothing is checked.
fn listen_finding(settings: &Settings) -> Option<Finding> {
    let address = settings.listen?;
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

/// A key that the cloud refused and that the daemon does not use at present.
fn refusal_finding(
    target: &TargetSettings,
    rules: &SecretRules,
    keys: &Keys<'_>,
) -> Option<Finding> {
    let key = daemon::key_of(target, rules).ok()?;
    let (finding, fix) = keys.refusal(key.name(), args::now())?;
    Some(Finding::error(
        Exit::Config,
        format!("targets.{}", target.name),
        finding,
        fix,
    ))
}

fn target_findings(target: &TargetSettings, rules: &SecretRules) -> Vec<Finding> {
    let subject = format!("targets.{}", target.name);
    let mut findings: Vec<Finding> = LoadedSecrets::problems(&target.name, &target.auth, rules)
        .into_iter()
        .chain(load_proxy_password(target, rules).err())
        .map(|error| {
            Finding::error(
                Exit::Config,
                error.key,
                error.problem,
                "fix the file, then check again",
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            format!("{subject}.auth"),
            "the credentials can be read, and only by the right users",
        ));
    }
    findings.extend(judge_rate(
        &subject,
        target.service,
        target.submits_per_minute,
    ));
    for (action, budget) in &target.budgets {
        let finding = format!(
            "at {}/{}, 5,000 servers take {}",
            budget.servers,
            span(budget.span),
            time_for(5_000, budget)
        );
        findings.push(Finding::ok(format!("{subject}.budget.{action}"), finding));
    }
    findings
}

/// Source: Bare Metal Server API Reference, 50 power calls a minute. No document names a rate of
/// CloudDC.
const BMS_SUBMITS_PER_MINUTE: u32 = 50;

fn judge_rate(subject: &str, service: Service, per_minute: u32) -> Option<Finding> {
    let documented = match service {
        Service::Bms => BMS_SUBMITS_PER_MINUTE,
        Service::CloudDc => return None,
    };
    let finding = format!(
        "{per_minute} is more than the {documented} submit calls a minute that the cloud documents"
    );
    let fix =
        format!("set submits_per_minute = {documented}, unless your account has a higher limit");
    (per_minute > documented)
        .then(|| Finding::warning(format!("{subject}.submits_per_minute"), finding, fix))
}

fn span(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

/// How long this many servers take under a rolling budget; the first `budget.servers` are sent at
/// once.
fn time_for(servers: u32, budget: &Budget) -> String {
    match servers.div_ceil(budget.servers.max(1)) - 1 {
        0 => "no time: the budget allows them at once".to_owned(),
        further => span(budget.span * further),
    }
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = finding
            .level
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        text.push_str(&format!(
            "{level:<7}  {}: {}\n",
            visible(&finding.subject),
            visible(&finding.finding)
        ));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("         {}\n", visible(fix)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_above_the_documented_one_is_noticed_where_one_is_documented() {
        assert_eq!(judge_rate("targets.a", Service::Bms, 50), None);
        assert_eq!(judge_rate("targets.a", Service::CloudDc, 6000), None);
        let finding = judge_rate("targets.a", Service::Bms, 51).expect("a finding");
        assert_eq!(
            (finding.level, finding.subject.as_str()),
            (Level::Warning, "targets.a.submits_per_minute")
        );
    }

    #[test]
    fn a_budget_says_how_long_many_servers_take() {
        let budget = Budget {
            servers: 500,
            span: Duration::from_secs(3600),
        };
        assert_eq!(time_for(5_000, &budget), "9h");
        assert!(time_for(500, &budget).starts_with("no time"));
    }
}
