//! Tokens obtained from IAM with a password: cached, renewed before they expire, one renewal at a
//! time.
//!
//! Owns the token call (`POST /v3/auth/tokens`) and the cache. Knows nothing of the calls that the
//! token is for.
//!
//! Source: IAM API Reference, Obtaining a User Token Through Password Authentication. A token lives
//! 24 hours; a new one does not end the old one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Url};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::Password;
use crate::cloud::Clock;
use crate::cloud::answer::{Answer, CallKind};
use crate::cloud::http::{Wire, address};
use crate::cloud::lenient;
use crate::cloud::text::Text;
use crate::model::{CallError, Fault, UtcMillis};

/// A token is renewed this long before its end, or half its life before, whichever is later.
const RENEW_AHEAD: Duration = Duration::from_secs(10 * 60);

/// A token whose end cannot be read is used for this long. The documents say 24 hours.
const UNREADABLE_LIFE: Duration = Duration::from_secs(3600);

/// After a renewal ahead of time has failed, the old token is used and IAM is not asked for this
/// long.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// Gets tokens for one user and one project, and keeps the newest.
#[derive(Debug)]
pub struct TokenSource {
    url: Url,
    project_id: String,
    user: Password,
    state: Mutex<TokenState>,
    /// Counts finished renewals, so that calls that waited for a failed one share its failure
    /// instead of trying again.
    renewals: AtomicU64,
}

#[derive(Debug, Default)]
struct TokenState {
    token: Option<Token>,
    failure: Option<CallError>,
}

#[derive(Debug, Clone)]
struct Token {
    /// Marked sensitive, so that its `Debug` shows nothing.
    value: HeaderValue,
    renew_at: UtcMillis,
    ends_at: UtcMillis,
}

impl TokenSource {
    /// A source without a token yet. `iam` is IAM's base URL.
    pub fn new(iam: &Url, project_id: &str, user: Password) -> Self {
        let mut url = iam.clone();
        url.set_path(&format!(
            "{}/v3/auth/tokens",
            iam.path().trim_end_matches('/')
        ));
        url.set_query(Some("nocatalog=true"));
        let project_id = project_id.to_owned();
        let state = Mutex::default();
        Self {
            url,
            project_id,
            user,
            state,
            renewals: AtomicU64::new(0),
        }
    }

    /// A token for `X-Auth-Token`: the cached one while it is valid, otherwise a new one.
    ///
    /// `refused` is a token that the service has just refused: it is not given out again.
    ///
    /// # Errors `Credentials`: wrong user or password. `Configuration`: IAM does not know the
    /// domain or project, or cannot read the call. Otherwise as any read. This touches no server.
    pub async fn token(
        &self,
        http: &dyn Wire,
        clock: &Clock,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, CallError> {
        let seen = self.renewals.load(Ordering::SeqCst);
        let mut state = self.state.lock().await;
        state.token.take_if(|token| refused == Some(&token.value));
        let now = clock();
        if let Some(token) = state.token.as_ref().filter(|token| now < token.renew_at) {
            return Ok(token.value.clone());
        }
        let usable = state.token.clone().filter(|token| now < token.ends_at);
        if self.renewals.load(Ordering::SeqCst) != seen
            && let (None, Some(failure)) = (&usable, &state.failure)
        {
            return Err(failure.clone());
        }
        state.failure = None;
        let bought = self.buy(http, clock).await;
        self.renewals.fetch_add(1, Ordering::SeqCst);
        match bought {
            Ok(token) => Ok(state.token.insert(token).value.clone()),
            Err(error) => match usable {
                Some(mut old) if error.fault != Fault::Credentials => {
                    old.renew_at = clock() + RENEWAL_PAUSE;
                    Ok(state.token.insert(old).value.clone())
                }
                _ => Err(state.failure.insert(error).clone()),
            },
        }
    }

    async fn buy(&self, http: &dyn Wire, clock: &Clock) -> Result<Token, CallError> {
        let answer = http.send_fresh(self.request(), CallKind::Read).await?;
        let now = clock();
        read_token(&answer, now).ok_or_else(|| self.refusal(&answer, now))
    }

    fn request(&self) -> Request {
        let user = json!({
            "name": self.user.username,
            "password": self.user.password.expose_secret(),
            "domain": { "name": self.user.domain },
        });
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": user } },
            "scope": { "project": { "id": self.project_id } },
        }});
        let mut request = Request::new(Method::POST, self.url.clone());
        request.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json;charset=utf-8"),
        );
        *request.body_mut() = Some(body.to_string().into());
        request
    }

    fn refusal(&self, answer: &Answer, now: UtcMillis) -> CallError {
        let mut error = answer.error(CallKind::Read, now);
        if let Fault::Refused(_) = error.fault {
            error.fault = Fault::Configuration;
        }
        error.message =
            crate::cloud::text::tidy(&format!("IAM at {}: {}", address(&self.url), error.message));
        error
    }
}

#[derive(Deserialize)]
struct TokenBody<'a> {
    #[serde(borrow)]
    token: TokenTimes<'a>,
}

#[derive(Deserialize)]
struct TokenTimes<'a> {
    #[serde(borrow, default)]
    expires_at: Text<'a>,
    #[serde(borrow, default)]
    issued_at: Text<'a>,
}

/// The token of a 201 with `X-Subject-Token`; its life is counted from now on our clock, which may
/// differ from IAM's.
fn read_token(answer: &Answer, now: UtcMillis) -> Option<Token> {
    if !answer.is_success() {
        return None;
    }
    let mut value = answer
        .headers
        .get("x-subject-token")
        .filter(|value| !value.is_empty())?
        .clone();
    value.set_sensitive(true);
    let life = token_life(&answer.body, now).unwrap_or(UNREADABLE_LIFE);
    let ahead = RENEW_AHEAD.min(life / 2);
    Some(Token {
        value,
        renew_at: now + (life - ahead),
        ends_at: now + life,
    })
}

fn token_life(body: &[u8], now: UtcMillis) -> Option<Duration> {
    let body: TokenBody<'_> = lenient::read(body)?;
    let from = body.token.issued_at.time().unwrap_or(now);
    Some(body.token.expires_at.time()?.since(from))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;
    use secrecy::SecretString;
    use serde_json::Value;

    use super::*;

    const ISSUED: UtcMillis = UtcMillis(1_578_042_322_701);

    fn source() -> TokenSource {
        let domain = "domainname".to_owned();
        let username = "username".to_owned();
        let user = Password {
            domain,
            username,
            password: SecretString::from("password"),
        };
        TokenSource::new(
            &Url::parse("https://iam.example").expect("a URL"),
            "0215ef11e49d4743be23dd97a1561e91",
            user,
        )
    }

    fn answer(status: u16, token: Option<&'static str>, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert("x-subject-token", HeaderValue::from_static(token));
        }
        Answer {
            status,
            headers,
            body: body.as_bytes().to_vec(),
            ..Answer::default()
        }
    }

    #[test]
    fn the_call_is_the_documented_one() {
        let request = source().request();
        assert_eq!(
            request.url().as_str(),
            "https://iam.example/v3/auth/tokens?nocatalog=true"
        );
        let sent: Value =
            serde_json::from_slice(request.body().and_then(|b| b.as_bytes()).expect("a body"))
                .expect("JSON");
        let documented = include_str!(
            "../../../tests/fixtures/api-examples/iam-token-request-project-id-scope.json"
        );
        assert_eq!(
            sent,
            serde_json::from_str::<Value>(documented).expect("JSON")
        );
    }

    #[test]
    fn the_documented_answer_gives_a_token_for_24_hours() {
        let body =
            include_str!("../../../tests/fixtures/api-examples/iam-token-response-body.json");
        let token = read_token(&answer(201, Some("MII"), body), ISSUED).expect("a token");
        assert_eq!(token.ends_at, ISSUED + Duration::from_secs(24 * 3600));
        assert_eq!(token.renew_at, token.ends_at.before(RENEW_AHEAD));
        assert!(!format!("{token:?}").contains("MII"));
    }

    #[test]
    fn a_wrong_clock_here_does_not_shorten_a_tokens_life() {
        let body =
            include_str!("../../../tests/fixtures/api-examples/iam-token-response-body.json");
        let years_later = ISSUED + Duration::from_secs(5 * 365 * 86_400);
        let token = read_token(&answer(201, Some("MII"), body), years_later).expect("a token");
        assert_eq!(
            token.ends_at.since(years_later),
            Duration::from_secs(24 * 3600)
        );
    }

    #[test]
    fn iams_documented_errors_are_told_apart() {
        let wrong = include_str!("../../../tests/fixtures/api-examples/iam-error-401.json");
        let error = source().refusal(&answer(401, None, wrong), ISSUED);
        assert_eq!((error.fault, error.code.as_str()), (Fault::Credentials, ""));
        assert_eq!(
            error.message,
            "IAM at iam.example:443: The username or password is wrong."
        );
        let unreadable = include_str!("../../../tests/fixtures/api-examples/iam-error-400.json");
        assert_eq!(
            source()
                .refusal(&answer(400, None, unreadable), ISSUED)
                .fault,
            Fault::Configuration
        );
        assert_eq!(
            source().refusal(&answer(201, None, "{}"), ISSUED).fault,
            Fault::Unavailable
        );
    }
}
