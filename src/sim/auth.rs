//! Who may come in: tokens issued, signatures checked, access keys locked after too many bad ones.
//! Reads no clock.

use std::collections::HashMap;
use std::time::Duration;

use super::gateway::Request;
use super::scenario::Credentials;
use super::signature::{self, Authorization};
use crate::model::UtcMillis;

/// How far a signature's date may be off (signing guide).
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(15 * 60);
/// This many bad signatures in a row lock the access key …
const BAD_SIGNATURES_MAX: u32 = 5;
/// … for this long (vendor's FAQs).
const LOCK: Duration = Duration::from_secs(5 * 60);

/// Tokens and the record of bad signatures.
#[derive(Debug, Clone)]
pub(super) struct Auth {
    credentials: Credentials,
    token_lifetime: Duration,
    tokens: HashMap<String, Token>,
    bad_signatures: u32,
    locked_until: Option<UtcMillis>,
    /// How often the access key was locked.
    pub(super) locks: u64,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    expires: UtcMillis,
    /// A token without a project opens IAM only.
    has_project: bool,
}

/// Why a call may not come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// 401, `APIGW.0301`; the text goes after the colon.
    Unauthenticated(String),
    /// 400, `Common.0018`.
    WrongProject,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, token_lifetime: Duration) -> Self {
        Self {
            credentials,
            token_lifetime,
            tokens: HashMap::new(),
            bad_signatures: 0,
            locked_until: None,
            locks: 0,
        }
    }

    /// Remembers a token that has just been issued; returns when it expires.
    pub(super) fn remember(
        &mut self,
        now: UtcMillis,
        token: String,
        has_project: bool,
    ) -> UtcMillis {
        let expires = now + self.token_lifetime;
        self.tokens.insert(
            token,
            Token {
                expires,
                has_project,
            },
        );
        expires
    }

    /// Lets a call for `project` in, by its signature or its token.
    pub(super) fn admit(
        &mut self,
        now: UtcMillis,
        request: &Request,
        project: &str,
    ) -> Result<(), Denied> {
        let has_project = match (
            request.header("authorization"),
            request.header("x-auth-token"),
        ) {
            (Some(authorization), _) => self
                .check_signature(now, request, authorization)
                .map(|()| true),
            (None, Some(token)) => self.check_token(now, token),
            (None, None) => Err("x-auth-token not found".to_owned()),
        };
        let has_project = has_project.map_err(Denied::Unauthenticated)?;
        let named = request.header("x-project-id").unwrap_or(project);
        if has_project && project == self.credentials.project_id && named == project {
            return Ok(());
        }
        Err(Denied::WrongProject)
    }

    fn check_token(&self, now: UtcMillis, token: &str) -> Result<bool, String> {
        let token = self.tokens.get(token).ok_or("decrypt token fail")?;
        if now < token.expires {
            return Ok(token.has_project);
        }
        Err(format!(
            "token expires, expires_at: {}",
            microseconds(token.expires)
        ))
    }

    fn check_signature(
        &mut self,
        now: UtcMillis,
        request: &Request,
        authorization: &str,
    ) -> Result<(), String> {
        let Some(authorization) = Authorization::read(authorization) else {
            return Err(
                "verify aksk signature fail, the Authorization header cannot be read".into(),
            );
        };
        if authorization.access_key != self.credentials.access_key {
            return Err(format!(
                "Get secretKey failed,ak:{},err:ak not exist",
                authorization.access_key
            ));
        }
        if self.locked_until.is_some_and(|until| now < until) {
            return Err("AK access failed to reach the limit, forbidden".into());
        }
        match self.verify(now, request, &authorization) {
            Ok(()) => {
                self.bad_signatures = 0;
                Ok(())
            }
            Err(reason) => {
                self.count_bad_signature(now);
                Err(reason)
            }
        }
    }

    fn verify(
        &self,
        now: UtcMillis,
        request: &Request,
        authorization: &Authorization<'_>,
    ) -> Result<(), String> {
        let signed: Vec<&str> = authorization.signed_headers.split(';').collect();
        let date = request
            .header("x-sdk-date")
            .filter(|_| signed.contains(&"x-sdk-date"));
        let Some((text, date)) = date.and_then(|text| Some((text, read_date(text)?))) else {
            return Err("verify aksk signature fail, X-Sdk-Date is not there or not signed".into());
        };
        if date.since(now).max(now.since(date)) > CLOCK_SKEW_MAX {
            return Err(format!(
                "calc ak sk signature fail:signature expired, signature time:{text}, server time:{now}"
            ));
        }
        if request.header("x-security-token").unwrap_or_default() != self.credentials.security_token
        {
            return Err(
                "verify aksk signature fail, the security token does not belong to the access key"
                    .into(),
            );
        }
        match signature::expected(
            request,
            authorization.signed_headers,
            &self.credentials.secret_key,
        ) {
            Some(expected) if expected == authorization.signature => Ok(()),
            Some(_) => Err("verify aksk signature fail, signature mismatch".into()),
            None => Err("verify aksk signature fail, a signed header is missing".into()),
        }
    }

    fn count_bad_signature(&mut self, now: UtcMillis) {
        self.bad_signatures += 1;
        if self.bad_signatures >= BAD_SIGNATURES_MAX {
            self.bad_signatures = 0;
            self.locked_until = Some(now + LOCK);
            self.locks += 1;
        }
    }
}

/// `YYYYMMDDTHHMMSSZ`
fn read_date(text: &str) -> Option<UtcMillis> {
    let is_date =
        text.len() == 16 && text.is_ascii() && text.ends_with('Z') && text.as_bytes()[8] == b'T';
    let part = |from: usize, to: usize| is_date.then(|| &text[from..to]);
    let [year, month, day] = [part(0, 4)?, part(4, 6)?, part(6, 8)?];
    let [hour, minute, second] = [part(9, 11)?, part(11, 13)?, part(13, 15)?];
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")
        .parse()
        .ok()
}

/// A time as IAM writes it, with six digits after the point.
pub(super) fn microseconds(time: UtcMillis) -> String {
    let text = time.to_string();
    format!("{}000Z", text.trim_end_matches('Z'))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::scenario::Scenario;
    use super::*;

    pub(in crate::sim) const NOW: UtcMillis = UtcMillis(1_704_164_645_000);
    const DATE: &str = "20240102T030405Z";
    const PROJECT: &str = "bbf1946d374b44a0a2a95533562ba954";

    fn auth() -> Auth {
        Auth::new(Scenario::default().credentials, Duration::from_secs(60))
    }

    /// A job query signed with this secret.
    pub(in crate::sim) fn signed(secret_key: &str, date: &str) -> Request {
        let mut request = Request {
            method: "GET".into(),
            path: format!("/v1/{PROJECT}/jobs/abc"),
            query: String::new(),
            headers: vec![
                ("x-sdk-date".into(), date.into()),
                ("host".into(), "127.0.0.1:8443".into()),
            ],
            body: Vec::new(),
        };
        let names = "host;x-sdk-date";
        let signature =
            signature::expected(&request, names, secret_key).expect("both headers are there");
        let value = format!(
            "{ALGORITHM} Access=POWERYARDSIMAK, SignedHeaders={names}, Signature={signature}"
        );
        request.headers.push(("authorization".into(), value));
        request
    }

    const ALGORITHM: &str = "SDK-HMAC-SHA256";
    const SECRET: &str = "poweryard-sim-secret-key";

    fn admit(auth: &mut Auth, now: UtcMillis, secret: &str) -> Result<(), Denied> {
        auth.admit(now, &signed(secret, DATE), PROJECT)
    }

    fn reason(denied: Result<(), Denied>) -> String {
        match denied {
            Err(Denied::Unauthenticated(reason)) => reason,
            other => panic!("expected a 401, got {other:?}"),
        }
    }

    #[test]
    fn a_good_signature_comes_in_and_a_bad_one_does_not() {
        assert_eq!(admit(&mut auth(), NOW, SECRET), Ok(()));
        assert!(
            reason(admit(&mut auth(), NOW, "another-secret"))
                .contains("verify aksk signature fail")
        );
    }

    #[test]
    fn five_bad_signatures_in_a_row_lock_the_key_for_five_minutes() {
        let mut auth = auth();
        for _ in 0..4 {
            reason(admit(&mut auth, NOW, "bad"));
        }
        assert_eq!(
            admit(&mut auth, NOW, SECRET),
            Ok(()),
            "a good one ends the row"
        );
        for _ in 0..5 {
            reason(admit(&mut auth, NOW, "bad"));
        }
        assert!(
            reason(admit(&mut auth, NOW, SECRET)).contains("AK access failed to reach the limit")
        );
        let later = |ms| NOW + Duration::from_millis(ms);
        assert!(reason(admit(&mut auth, later(299_999), SECRET)).contains("forbidden"));
        assert_eq!(admit(&mut auth, later(300_000), SECRET), Ok(()));
    }

    #[test]
    fn a_date_more_than_fifteen_minutes_off_is_refused_either_way() {
        let at = |seconds: i64| admit(&mut auth(), UtcMillis(NOW.0 + seconds * 1000), SECRET);
        assert_eq!((at(900), at(-900)), (Ok(()), Ok(())));
        assert!(
            reason(at(901)).contains("signature expired")
                && reason(at(-901)).contains("signature expired")
        );
    }

    #[test]
    fn a_temporary_key_needs_its_security_token() {
        let mut credentials = Scenario::default().credentials;
        credentials.security_token = "temporary".into();
        let mut auth = Auth::new(credentials, Duration::from_secs(60));
        assert!(reason(admit(&mut auth, NOW, SECRET)).contains("security token"));
        let mut request = signed(SECRET, DATE);
        request
            .headers
            .push(("x-security-token".into(), "temporary".into()));
        assert_eq!(auth.admit(NOW, &request, PROJECT), Ok(()));
    }

    #[test]
    fn a_token_comes_in_until_it_expires() {
        let mut auth = auth();
        auth.remember(NOW, "t".into(), true);
        let mut request = signed(SECRET, DATE);
        request.headers = vec![("x-auth-token".into(), "t".into())];
        assert_eq!(auth.admit(NOW, &request, PROJECT), Ok(()));
        assert_eq!(
            auth.admit(NOW, &request, "other"),
            Err(Denied::WrongProject)
        );
        let late = auth.admit(NOW + Duration::from_secs(60), &request, PROJECT);
        assert_eq!(
            reason(late),
            "token expires, expires_at: 2024-01-02T03:05:05.000000Z"
        );
        request.headers = vec![("x-auth-token".into(), "other".into())];
        assert_eq!(
            reason(auth.admit(NOW, &request, PROJECT)),
            "decrypt token fail"
        );
        request.headers.clear();
        assert_eq!(
            reason(auth.admit(NOW, &request, PROJECT)),
            "x-auth-token not found"
        );
    }

    #[test]
    fn only_the_basic_form_of_a_date_is_read() {
        assert_eq!(read_date(DATE), Some(NOW));
        for text in [
            "2024-01-02T03:04:05Z",
            "20240102T030405",
            "20241302T030405Z",
            "２0240102T030Z",
            "",
        ] {
            assert_eq!(read_date(text), None, "{text}");
        }
    }
}
