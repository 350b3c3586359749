//! From settings to clients: reads the secrets and makes one client a target. Sends nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::ExposeSecret;

use super::clock_check::now;
use crate::cloud::auth::{AccessKeys, Password};
use crate::cloud::{self, ClientError, Clock, Credentials, Key, PowerCloud};
use crate::model::TargetName;
use crate::settings::{
    AuthSettings, LoadedSecrets, SecretError, SecretRules, Settings, TargetSettings,
    load_proxy_password,
};

/// The clouds, by target.
pub type Clouds = BTreeMap<TargetName, Arc<dyn PowerCloud>>;

/// Why a target cannot be asked for anything; somebody must fix its settings or secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A secret is missing, unreadable, or readable by too many.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The settings and secrets make no client.
    #[error("targets.{target}: {source}")]
    Client {
        /// Which target.
        target: TargetName,
        /// Why.
        source: ClientError,
    },
}

/// The clients of all targets.
///
/// # Errors
/// The first secret or setting that is wrong.
pub fn connect_all(settings: &Settings, rules: &SecretRules) -> Result<Clouds, ConnectError> {
    let connected = settings
        .targets
        .iter()
        .map(|target| Ok((target.name.clone(), connect(target, rules)?)));
    connected.collect()
}

/// The client of one target.
///
/// # Errors
/// The secret or setting that is wrong.
pub fn connect(
    target: &TargetSettings,
    rules: &SecretRules,
) -> Result<Arc<dyn PowerCloud>, ConnectError> {
    let credentials = credentials(target, rules)?;
    let clock: Clock = Arc::new(|| now().utc);
    let proxy_password = load_proxy_password(target, rules)?;
    cloud::connect(target, proxy_password.as_ref(), credentials, clock).map_err(|source| {
        ConnectError::Client {
            target: target.name.clone(),
            source,
        }
    })
}

/// The key that calls of `target` are made with.
///
/// # Errors
/// The secret that is wrong.
pub fn key_of(target: &TargetSettings, rules: &SecretRules) -> Result<Key, SecretError> {
    Ok(credentials(target, rules)?.key())
}

fn credentials(target: &TargetSettings, rules: &SecretRules) -> Result<Credentials, SecretError> {
    let user = match &target.auth {
        AuthSettings::Token {
            domain, username, ..
        } => (domain.clone(), username.clone()),
        AuthSettings::AkSk { .. } => Default::default(),
    };
    Ok(
        match LoadedSecrets::load(&target.name, &target.auth, rules)? {
            LoadedSecrets::AkSk {
                access_key,
                secret_key,
                security_token,
            } => {
                let access_key = access_key.expose_secret().to_owned();
                Credentials::AkSk(AccessKeys {
                    access_key,
                    secret_key,
                    security_token,
                })
            }
            LoadedSecrets::Token { password } => Credentials::Password(Password {
                domain: user.0,
                username: user.1,
                password,
            }),
        },
    )
}
