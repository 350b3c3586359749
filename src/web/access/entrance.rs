//! What `[listen]` says about who may come in, with the secrets that it names: made at the start
//! and at each reload, and used as a whole or not at all.

use std::net::SocketAddr;

use super::certificate::{CertificateError, ServerCertificate};
use super::tokens::Tokens;
use crate::model::UtcMillis;
use crate::settings::{ListenSecrets, ListenSettings, SecretError, SecretRules};

/// `[listen]`, checked.
#[derive(Debug)]
pub struct Entrance {
    /// Where it listens.
    pub(in crate::web) address: SocketAddr,
    pub(super) hosts: Vec<String>,
    pub(super) tokens: Tokens,
    pub(super) behind_proxy: bool,
    pub(in crate::web) certificate: Option<ServerCertificate>,
}

/// Why nobody can be let in by these settings.
#[derive(Debug, thiserror::Error)]
pub enum EntranceError {
    /// A token or the key is missing, unreadable, or readable by too many.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Entrance {
    /// Reads tokens, certificate and key.
    ///
    /// # Errors
    /// The first of them that cannot be used.
    pub fn load(
        settings: &ListenSettings,
        rules: &SecretRules,
        now: UtcMillis,
    ) -> Result<Self, EntranceError> {
        let secrets = ListenSecrets::load(settings, rules)?;
        let certificate = match &secrets.tls {
            Some(pem) => Some(ServerCertificate::read(pem, now)?),
            None => None,
        };
        Ok(Self {
            address: settings.address,
            hosts: settings.hosts.clone(),
            tokens: Tokens::new(&settings.tokens, &secrets.tokens),
            behind_proxy: settings.behind_proxy,
            certificate,
        })
    }

    /// When the certificate ends, if there is one.
    pub fn certificate_ends_at(&self) -> Option<UtcMillis> {
        self.certificate.as_ref().map(|found| found.ends_at)
    }
}

impl ServerCertificate {
    /// For the handshakes.
    pub(in crate::web) fn tls(&self) -> std::sync::Arc<rustls::ServerConfig> {
        std::sync::Arc::clone(&self.config)
    }
}
