//! The config file, as validated, finished values. Knows nothing of SQL, HTTP or the daemon.
//!
//! `document` reads tables and keys, `parse` single values, `check` the file as a whole,
//! `target` one target, `secrets` the files with keys and passwords.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use crate::model::{Budget, PowerAction, ServerId, Service, TargetName};
use crate::plan::windows::Windows;

mod check;
mod document;
mod error;
mod notify;
mod parse;
mod secret_digest;
mod secrets;
mod target;
mod waves;
mod window;

#[cfg(test)]
mod tests;

pub use error::{Mistake, SettingsError};
pub(crate) use secret_digest::{process_number, salted_digest};
pub use secrets::{
    LoadedSecrets, SecretContent, SecretError, SecretProblem, SecretRules, SecretStamp,
    load_proxy_password,
};

/// All settings of the daemon, checked. Each load of the config file makes a new value.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `[queue]`.
    pub queue: QueueSettings,
    /// `[batch]`.
    pub batch: BatchSettings,
    /// `[targets.*]`, by name; never empty.
    pub targets: Vec<TargetSettings>,
    /// `[listen] address`; none: no metrics page.
    pub listen: Option<std::net::SocketAddr>,
    /// `[notify]`; none: no hooks.
    pub notify: Option<NotifySettings>,
    /// `[waves]`.
    pub waves: WavesSettings,
}

/// `[waves]`: what is asked before the next wave of an order leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WavesSettings {
    /// A program by its absolute path, and its arguments; empty: nothing is asked.
    pub gate: Vec<String>,
    /// For one run of it; one that takes longer is killed, and has not let the wave go. Default
    /// 60 s.
    pub gate_timeout: Duration,
    /// After this it is asked again. Default 60 s.
    pub gate_interval: Duration,
}

/// `[notify]`: what is notified when requests fail or end `unknown`. At least one of the two hooks
/// is set.
#[derive(Debug, Clone, PartialEq)]
pub struct NotifySettings {
    /// A program by its absolute path, and its arguments; empty: none.
    pub command: Vec<String>,
    /// Where events are POSTed. `http://` only to this machine, or with `allow_http`.
    pub url: Option<Url>,
    /// For one run of the command and one call of the URL. Default 10 s.
    pub timeout: Duration,
    /// Allows an `http://` URL to another machine. Default false.
    pub allow_http: bool,
}

/// `[queue]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSettings {
    /// The SQLite file. Default `/var/lib/poweryard/queue.db`.
    pub database: PathBuf,
    /// How long a request without `expires_at` may wait; none: it never expires (`"never"`).
    /// Default 24 h.
    pub default_ttl: Option<Duration>,
    /// How long finished requests are kept; none: forever (`"forever"`). Default 90 d.
    pub retention: Option<Duration>,
    /// The folder where ended requests are written before they are deleted; none: nowhere.
    pub export_before_prune: Option<PathBuf>,
}

/// `[batch]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSettings {
    /// How long a batch that is not full waits for more rows. Default 100 ms.
    pub linger: Duration,
    /// How many calls may carry one request. Default 3.
    pub attempts_max: NonZeroU32,
}

/// `[targets.NAME]`: one cloud project in one region.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetSettings {
    /// NAME.
    pub name: TargetName,
    /// Which API.
    pub service: Service,
    /// Base URL of the API, without path.
    pub endpoint: Url,
    /// The cloud's project id.
    pub project_id: String,
    /// Most submit calls in any 60 s. Default 50, 1 to 6000.
    pub submits_per_minute: u32,
    /// Most submit calls that are open at a time. Default 16, 1 to 64.
    pub submits_open_max: u32,
    /// Most servers in one call. Default and cap: the service's own limit.
    pub batch_servers_max: u32,
    /// If a job runs longer than this, its servers are looked at. Default 60 min.
    pub job_time_limit: Duration,
    /// Looking at servers ends after this. Default 15 min.
    pub look_time_limit: Duration,
    /// A server that is idle for this long, and not in the requested state, proves that nothing was
    /// carried out. Default 60 s, at least 1 s.
    pub settle_time: Duration,
    /// Time from a submit to its first look, while there is no history to learn from. Default 2 s,
    /// or `look_interval_max` if that is less.
    pub first_look: Duration,
    /// Longest time between two looks at a job that takes longer than those before it, unless others
    /// that have run even longer are looked at. Default 30 s.
    pub look_interval_max: Duration,
    /// The list of servers is read at least this often, for their names; none: it is not read for
    /// them. Default 10 min.
    pub inventory_interval: Option<Duration>,
    /// For the TCP and TLS handshakes. Default 10 s, or `request_timeout` if that is less.
    pub connect_timeout: Duration,
    /// For a whole call, body included. Default 60 s.
    pub request_timeout: Duration,
    /// PEM file with the certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Proxy for this target, perhaps with a user name; nothing is taken from the environment.
    pub proxy: Option<Url>,
    /// File with the password of the user that `proxy` names.
    pub proxy_password_file: Option<PathBuf>,
    /// Allows `http://` endpoints. Default false.
    pub allow_http: bool,
    /// `[targets.NAME.auth]`.
    pub auth: AuthSettings,
    /// `[targets.NAME.budget]`: most servers per rolling span, by action.
    pub budgets: Vec<(PowerAction, Budget)>,
    /// `[targets.NAME.guard]`: most servers per rolling span that nobody has approved, by action.
    pub guards: Vec<(PowerAction, Budget)>,
    /// `[targets.NAME.window]`: when actions may be sent.
    pub windows: Windows,
    /// `[targets.NAME.protect]`: stop and reboot of these are rejected.
    pub protected: Vec<ServerId>,
}

/// `[targets.NAME.auth]`. Holds where the secrets are, never the secrets.
#[derive(Debug, Clone, PartialEq)]
pub enum AuthSettings {
    /// `kind = "aksk"`: requests are signed.
    AkSk {
        /// File with the access key.
        access_key_file: PathBuf,
        /// File with the secret key.
        secret_key_file: PathBuf,
        /// File with the security token of temporary keys.
        security_token_file: Option<PathBuf>,
    },
    /// `kind = "token"`: a token is obtained from IAM with a password.
    Token {
        /// Base URL of IAM.
        iam_endpoint: Url,
        /// The account (domain) name.
        domain: String,
        /// The IAM user's name.
        username: String,
        /// File with the password.
        password_file: PathBuf,
    },
}
