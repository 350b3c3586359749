//! The server's certificate: from PEM to what TLS needs, and until when it is valid. Reads no file.

use std::sync::Arc;

use jiff::civil;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, crypto};

use crate::model::UtcMillis;
use crate::settings::TlsPem;

/// A certificate with its key, ready for use.
#[derive(Clone)]
pub struct ServerCertificate {
    /// For the handshakes.
    pub(super) config: Arc<ServerConfig>,
    /// When the server's own certificate ends.
    pub ends_at: UtcMillis,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("ends_at", &self.ends_at)
            .finish_non_exhaustive()
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No certificate in it, or one that does not read.
    #[error(
        "listen.tls_cert_file: the file contains no certificate that can be read; write the PEM text into it, the server's own certificate first ({0})"
    )]
    Unreadable(String),
    /// No private key in it, or one that does not read.
    #[error(
        "listen.tls_key_file: the file contains no private key that can be read; write the PEM text into it, without a passphrase"
    )]
    NoKey,
    /// The key is that of another certificate, or of a kind that is not known.
    #[error(
        "listen.tls_key_file: the key cannot be used with the certificate of listen.tls_cert_file ({0})"
    )]
    Unusable(rustls::Error),
    /// Its time is over.
    #[error(
        "listen.tls_cert_file: the certificate was valid until {0}; put a new one in its place"
    )]
    Ended(UtcMillis),
}

impl ServerCertificate {
    /// Reads certificate and key, and checks that they belong together and are valid at `now`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(pem: &TlsPem, now: UtcMillis) -> Result<Self, CertificateError> {
        let unreadable =
            |error: rustls::pki_types::pem::Error| CertificateError::Unreadable(error.to_string());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem.cert)
            .collect::<Result<_, _>>()
            .map_err(unreadable)?;
        let own = chain
            .first()
            .ok_or_else(|| CertificateError::Unreadable("no BEGIN CERTIFICATE".to_owned()))?;
        let ends_at = end_of(own)
            .ok_or_else(|| CertificateError::Unreadable("its validity does not read".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| CertificateError::NoKey)?;
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(CertificateError::Unusable)?
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .map_err(CertificateError::Unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if ends_at <= now {
            return Err(CertificateError::Ended(ends_at));
        }
        Ok(Self {
            config: Arc::new(config),
            ends_at,
        })
    }
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `notAfter` of a certificate. Source: RFC 5280, section 4.1.
fn end_of(certificate: &[u8]) -> Option<UtcMillis> {
    let mut certificate = Der(certificate).inside(SEQUENCE)?;
    let mut signed = certificate.inside(SEQUENCE)?;
    let mut field = signed.next()?;
    if field.0 == VERSION {
        field = signed.next()?;
    }
    // That was the serial number. Then come the algorithm and the issuer.
    let (_serial, _algorithm, _issuer) = (field, signed.next()?, signed.next()?);
    let mut validity = signed.inside(SEQUENCE)?;
    let _begin = validity.next()?;
    let (kind, text) = validity.next()?;
    time_of(kind, std::str::from_utf8(text).ok()?)
}

/// `YYMMDDHHMMSSZ`, of which the years below 50 are in this century, or `YYYYMMDDHHMMSSZ`.
fn time_of(kind: u8, text: &str) -> Option<UtcMillis> {
    let digits = text.strip_suffix('Z')?;
    let century = match (kind, digits.len()) {
        (UTC_TIME, 12) if digits.get(..2)? < "50" => "20",
        (UTC_TIME, 12) => "19",
        (GENERALIZED_TIME, 14) => "",
        _ => return None,
    };
    let digits = format!("{century}{digits}");
    let time = civil::DateTime::strptime("%Y%m%d%H%M%S", &digits).ok()?;
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(UtcMillis(zoned.timestamp().as_millisecond()))
}

/// Values in the encoding of certificates, each with a tag, a length and content.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match usize::from(*first) {
            short @ ..0x80 => (short, rest),
            long => {
                let (bytes, rest) = rest.split_at_checked(long - 0x80)?;
                if bytes.len() > size_of::<u32>() {
                    return None;
                }
                let length = bytes
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte));
                (length, rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// What is inside the next value, if it has this tag.
    fn inside(&mut self, tag: u8) -> Option<Der<'a>> {
        let (found, content) = self.next()?;
        (found == tag).then_some(Der(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(days: i64) -> TlsPem {
        let mut params =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let ends = jiff::Timestamp::from_second(days * 86_400).expect("a time");
        let date = ends.to_zoned(jiff::tz::TimeZone::UTC).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        params.not_after = rcgen::date_time_ymd(date.year().into(), month, day);
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("signed");
        TlsPem {
            cert: cert.pem().into_bytes(),
            key: key.serialize_pem().into_bytes().into(),
        }
    }

    fn at(day: i64) -> UtcMillis {
        UtcMillis(day * 86_400_000)
    }

    #[test]
    fn the_end_is_read_in_both_forms_of_time() {
        // 2037 has two digits for its year, 2059 has four.
        for day in [24_500, 32_800] {
            let read = ServerCertificate::read(&pem(day), at(0)).expect("valid");
            assert_eq!(read.ends_at, at(day));
        }
    }

    #[test]
    fn an_ended_certificate_and_a_foreign_key_are_refused() {
        let ended = ServerCertificate::read(&pem(20_000), at(20_000));
        assert!(matches!(ended, Err(CertificateError::Ended(_))));
        let mixed = TlsPem {
            key: pem(30_000).key,
            ..pem(30_000)
        };
        let mixed = ServerCertificate::read(&mixed, at(0));
        assert!(matches!(mixed, Err(CertificateError::Unusable(_))));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let good = pem(30_000);
        for (cert, key) in [
            (Vec::new(), good.key.clone()),
            (
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
                good.key.clone(),
            ),
            (good.cert.clone(), good.cert.clone().into()),
        ] {
            assert!(ServerCertificate::read(&TlsPem { cert, key }, at(0)).is_err());
        }
    }

    #[test]
    fn cut_bytes_are_no_certificate() {
        let whole = CertificateDer::from_pem_slice(&pem(30_000).cert).expect("one");
        assert!(end_of(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(end_of(&whole[..length]), None);
        }
    }
}
