//! The config file as a whole: reads it, checks it, and reports every mistake at once. Reads no
//! secret.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Report, Section};
use super::error::SettingsError;
use super::{
    BatchSettings, QueueSettings, Settings, TargetSettings, notify, parse, secrets, target, waves,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// Far above any need, and far below where times in milliseconds overflow.
const CENTURY: Duration = Duration::from_secs(36_500 * 86_400);

impl Settings {
    /// Reads and checks the config file.
    ///
    /// # Errors
    /// The file cannot be read, or has mistakes; all of them are reported at once.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        Self::parse(&read(path)?, path)
    }

    /// Checks a config text; each mistake begins with `file_name`.
    ///
    /// Also reads the files that `ca_file` and `servers_file` name, but no secret.
    ///
    /// # Errors
    /// The text has mistakes; all of them are reported at once.
    pub fn parse(text: &str, file_name: &Path) -> Result<Self, SettingsError> {
        let credentials = secrets::credentials_directory();
        let report = Report::new(file_name, text);
        let document = report.document();
        let settings = document.as_ref().and_then(|document| {
            let root = Section::root(&report, document.get_ref());
            settings(&root, credentials.as_deref())
        });
        report.finish(settings)
    }
}

impl QueueSettings {
    /// Reads only `[queue]`, for commands that use the queue and may not read the rest (key files,
    /// lists of servers).
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or `[queue]` has mistakes.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = read(path)?;
        let report = Report::new(path, &text);
        let document = report.document();
        let settings = document
            .as_ref()
            .map(|document| queue(&Section::root(&report, document.get_ref())));
        report.finish(settings)
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            database: PathBuf::from("/var/lib/poweryard/queue.db"),
            default_ttl: Some(DAY),
            retention: Some(90 * DAY),
            export_before_prune: None,
        }
    }
}

impl Default for BatchSettings {
    fn default() -> Self {
        const ATTEMPTS_MAX: NonZeroU32 = NonZeroU32::new(3).expect("three is not zero");
        Self {
            linger: Duration::from_millis(100),
            attempts_max: ATTEMPTS_MAX,
        }
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
        file: path.to_owned(),
        source,
    })
}

fn settings(root: &Section<'_>, credentials: Option<&Path>) -> Option<Settings> {
    let queue = queue(root);
    let batch = batch(root);
    let targets = targets(root, credentials);
    let listen = root.section("listen");
    let address = if listen.is_present() {
        listen.require("address", "\"127.0.0.1:9642\"", parse::address)
    } else {
        None
    };
    listen.refuse_unknown(|_| None);
    let notify = notify::read(root);
    let waves = waves::read(root);
    root.refuse_unknown(|_| None);
    Some(Settings {
        queue,
        batch,
        targets,
        listen: address,
        notify,
        waves,
    })
}

fn queue(root: &Section<'_>) -> QueueSettings {
    let section = root.section("queue");
    let usual = QueueSettings::default();
    let settings = QueueSettings {
        database: section
            .read("database", parse::path)
            .unwrap_or(usual.database),
        default_ttl: section
            .read("default_ttl", parse::duration_or("never", SECOND..=CENTURY))
            .unwrap_or(usual.default_ttl),
        retention: section
            .read("retention", parse::duration_or("forever", SECOND..=CENTURY))
            .unwrap_or(usual.retention),
        export_before_prune: section.read("export_before_prune", parse::path),
    };
    section.refuse_unknown(|_| None);
    settings
}

fn batch(root: &Section<'_>) -> BatchSettings {
    let section = root.section("batch");
    let usual = BatchSettings::default();
    let settings = BatchSettings {
        linger: section
            .read("linger", parse::duration(Duration::ZERO..=MINUTE))
            .unwrap_or(usual.linger),
        attempts_max: section
            .read("attempts_max", parse::whole(1..=100))
            .and_then(NonZeroU32::new)
            .unwrap_or(usual.attempts_max),
    };
    section.refuse_unknown(|_| None);
    settings
}

fn targets(root: &Section<'_>, credentials: Option<&Path>) -> Vec<TargetSettings> {
    let section = root.section("targets");
    let children = section.children();
    if children.is_empty() && (section.is_present() || !root.has("targets")) {
        section.own_mistake("there is no target; add at least one table [targets.NAME]".to_owned());
    }
    let mut found: Vec<(Section<'_>, TargetSettings)> = Vec::new();
    for (name, child) in children {
        if let Some(target) = child
            .is_present()
            .then(|| target::read(name, &child, credentials))
            .flatten()
        {
            if let Some((other, _)) = found.iter().find(|(_, other)| same_servers(other, &target)) {
                refuse_twin(other, &child);
            }
            found.push((child, target));
        }
    }
    found.into_iter().map(|(_, target)| target).collect()
}

fn same_servers(a: &TargetSettings, b: &TargetSettings) -> bool {
    (a.service, &a.endpoint, &a.project_id) == (b.service, &b.endpoint, &b.project_id)
}

/// The mistake is reported at the later one, which was probably added last.
fn refuse_twin(a: &Section<'_>, b: &Section<'_>) {
    let (first, second) = if a.line("") <= b.line("") {
        (a, b)
    } else {
        (b, a)
    };
    second.own_mistake(format!(
        "has the same service, endpoint and project_id as {} (line {}); keep one of the two",
        first.name(),
        first.line("")
    ));
}
