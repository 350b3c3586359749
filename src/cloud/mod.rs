//! The clouds: one trait, `PowerCloud`, and its implementations, one file per service.
//!
//! Owns wire formats, signing, tokens and the HTTP client. Knows nothing of SQL, and decides
//! nothing: it says what the cloud said, classed; `verdict` says what follows.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use crate::model::{
    CallError, CodeClass, Fault, JobId, JobReport, Listing, PowerAction, ServerId, Service,
    Sighting, Tracking, UtcMillis,
};
use crate::settings::TargetSettings;

pub mod answer;
pub mod auth;
pub mod bms;
pub mod clouddc;
mod complaint;
mod encoding;
pub mod http;
mod lenient;
pub mod looking;
mod objects;
mod page_sizes;
mod redact;
mod session;
mod show_history;
mod text;

pub use auth::{Credentials, Key, KeyName, Signed};
pub use bms::Bms;
pub use clouddc::CloudDc;
use http::Wire;

/// Pages of the longest list that `PowerCloud::list` reads to its end.
pub const LIST_PAGES_MAX: usize = looking::PAGES_MAX;

/// Tells the time, for signatures and for the life of tokens; tests fix it.
pub type Clock = Arc<dyn Fn() -> UtcMillis + Send + Sync>;

/// Makes the client for `target`'s service. Sends nothing yet. `proxy_password` belongs to the user
/// that `target.proxy` names.
///
/// # Errors See `ClientError`; each means that somebody must correct the settings or the secrets.
pub fn connect(
    target: &TargetSettings,
    proxy_password: Option<&SecretString>,
    credentials: Credentials,
    clock: Clock,
) -> Result<Arc<dyn PowerCloud>, ClientError> {
    over(
        Box::new(http::Http::new(target, proxy_password)?),
        target,
        credentials,
        clock,
    )
}

/// As `connect`, over another wire than the network: to a simulated cloud in the same process, for
/// example.
///
/// # Errors
/// `CredentialsKind`.
pub fn over(
    wire: Box<dyn Wire>,
    target: &TargetSettings,
    credentials: Credentials,
    clock: Clock,
) -> Result<Arc<dyn PowerCloud>, ClientError> {
    match target.service {
        Service::Bms => Ok(Arc::new(Bms::over(wire, target, credentials, clock)?)),
        Service::CloudDc => Ok(Arc::new(CloudDc::over(wire, target, credentials, clock)?)),
    }
}

/// Why no client can be made from these settings and secrets. `Display` is one sentence for the
/// operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address is not `https://`, and `allow_http` is not set.
    #[error("{address} is not an https address; set allow_http = true if that is intended")]
    Insecure {
        /// `host:port`.
        address: String,
    },
    /// `ca_file` is missing, unreadable, or holds no certificate.
    #[error("ca_file {} cannot be used: {why}", file.display())]
    Authorities {
        /// As in the config.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The secrets are of another kind than `[targets.NAME.auth]` says.
    #[error(
        "the settings need credentials of kind \"{wanted}\", but those given are of kind \"{given}\""
    )]
    CredentialsKind {
        /// `kind` in the config.
        wanted: &'static str,
        /// The secrets' kind.
        given: &'static str,
    },
    /// The HTTP client cannot be built: proxy, TLS, or the system's certificate authorities.
    #[error("the HTTP client cannot be set up: {why}")]
    SetUp {
        /// The library's reasons.
        why: String,
    },
}

impl ClientError {
    fn set_up(error: reqwest::Error) -> Self {
        Self::SetUp {
            why: http::causes(&error.without_url()),
        }
    }
}

/// A cloud project that can be asked to switch servers.
///
/// No method retries automatically, except for one renewal of a refused token or signature. Every
/// call ends within the target's `request_timeout`; a method makes one call, and after a 401 two
/// and one for the token. `observe` makes one for each page or server that it reads.
pub trait PowerCloud: Send + Sync {
    /// The key that calls are made with, and how often in a row it was refused.
    fn key(&self) -> &Key;

    /// True if only the servers' own states show what became of a call: then they must be read
    /// before it.
    fn wants_baselines(&self) -> bool {
        false
    }

    /// Prepares a submit: does everything that can wait or fail (a fresh token), so that only the
    /// call itself remains after the intent is stored.
    fn prepare(&self) -> BoxFuture<'_, Result<(), CallError>>;

    /// Makes one submit call for all `servers`: 1 to `Service::batch_servers_cap`, each once.
    ///
    /// After `Fault::Lost` it may have been carried out, and so it may after `Fault::Refused`,
    /// whatever the documents say: look first. With any other fault it was not, according to the
    /// documents.
    fn submit<'a>(
        &'a self,
        action: PowerAction,
        servers: &'a [ServerId],
    ) -> BoxFuture<'a, Result<Tracking, CallError>>;

    /// Asks what became of `job`. `Fault::Refused(CodeClass::JobUnknown)` if the cloud does not
    /// know it (any more), or has no jobs at all.
    fn job<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, Result<JobReport, CallError>>;

    /// Reads the states of `servers`, by list or one by one, whichever needs fewer calls.
    ///
    /// Each server asked for is among the sightings or among the failures; one that the list leaves
    /// out is confirmed by its own call before it is called missing.
    ///
    /// # Errors
    /// Only where nothing at all could be read, for a reason that is not one server's own: refused
    /// credentials, an endpoint that cannot be reached, throttling before the first answer.
    fn observe<'a>(&'a self, servers: &'a [ServerId])
    -> BoxFuture<'a, Result<Observed, CallError>>;

    /// Reads the list of servers, to its end if it has no more than `pages_max` pages. What was read
    /// before a failure counts.
    ///
    /// # Errors
    /// Only where no page at all could be read.
    fn list(&self, pages_max: usize) -> BoxFuture<'_, Result<Listing, CallError>>;
}

/// What a look showed, server by server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The servers that could be read.
    pub sightings: HashMap<ServerId, Sighting>,
    /// Why the others could not be read this time.
    pub failures: HashMap<ServerId, CallError>,
    /// What ended the look before all had been asked for, if anything did: throttling, refused
    /// credentials, or no connection. It concerns the whole target.
    pub ended_by: Option<CallError>,
    /// What the list showed of these and of other servers, if it was read.
    pub listing: Option<Listing>,
}

/// Refuses a batch that is empty or larger than `service` takes in one call.
fn check_batch(service: Service, servers: &[ServerId]) -> Result<(), CallError> {
    let most = service.batch_servers_cap() as usize;
    if (1..=most).contains(&servers.len()) {
        return Ok(());
    }
    let what = format!("a batch holds 1 to {most} servers, not {}", servers.len());
    Err(not_sent(Fault::Refused(CodeClass::BatchInvalid), what))
}

/// A call that was not made, because its content was not allowed.
fn not_sent(fault: Fault, message: String) -> CallError {
    CallError {
        fault,
        status: None,
        code: String::new(),
        message,
        request_id: None,
        retry_after: None,
    }
}
