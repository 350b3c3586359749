//! A target's calls with proof of who we are: signs or adds a token, sends, and renews once if they
//! are refused.
//!
//! Owns the order of these steps; knows nothing of the services' bodies. Repeats a call only after
//! an answer that refuses our credentials (401, or a documented code that says so): then nothing
//! was carried out.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use reqwest::{Method, Request, Url};
use secrecy::ExposeSecret;

use super::answer::{Answer, CallKind, worth_renewing};
use super::auth::aksk::{self, Signable};
use super::auth::token::TokenSource;
use super::auth::{AccessKeys, Credentials, Key};
use super::http::{Http, Wire};
use super::redact::{Redact, Redactor};
use super::{ClientError, Clock};
use crate::model::{CallError, Fault, Service, UtcMillis};
use crate::settings::{AuthSettings, TargetSettings};

/// One call to a service.
#[derive(Debug, Clone)]
pub(crate) struct ApiCall {
    pub(crate) method: Method,
    /// From `/`, percent-encoded.
    pub(crate) path: String,
    /// Made by `aksk::canonical_query`; empty for none.
    pub(crate) query: String,
    /// JSON; empty for none.
    pub(crate) body: Vec<u8>,
    pub(crate) kind: CallKind,
}

/// One target's endpoint, HTTP client and credentials.
pub(crate) struct Session {
    http: Box<dyn Wire>,
    /// The service whose codes its answers contain.
    service: Service,
    endpoint: Url,
    project_id: String,
    clock: Clock,
    prover: Prover,
    key: Key,
    redactor: Redactor,
}

/// How calls are authenticated.
enum Prover {
    /// Signs each request.
    Keys(AccessKeys),
    /// Adds a token.
    Token(Box<TokenSource>),
}

impl Session {
    /// Sends nothing yet.
    ///
    /// # Errors
    /// As `Http::new`, and `CredentialsKind` if the secrets do not fit the settings.
    pub(crate) fn new(
        target: &TargetSettings,
        credentials: Credentials,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        Self::over(
            Box::new(Http::new(target, None)?),
            target,
            credentials,
            clock,
        )
    }

    /// As `new`, over another wire than the network.
    pub(crate) fn over(
        http: Box<dyn Wire>,
        target: &TargetSettings,
        credentials: Credentials,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        let key = credentials.key();
        let redactor = Redactor::new(&credentials);
        let prover = prover(&target.auth, &target.project_id, credentials)?;
        let service = target.service;
        let endpoint = target.endpoint.clone();
        let project_id = target.project_id.clone();
        Ok(Self {
            http,
            service,
            endpoint,
            project_id,
            clock,
            prover,
            key,
            redactor,
        })
    }

    /// The key that all calls are made with.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// This machine's time.
    pub(crate) fn now(&self) -> UtcMillis {
        (self.clock)()
    }

    /// The path `/v1/{project_id}` with `segments` after it, each percent-encoded.
    pub(crate) fn path(&self, segments: &[&str]) -> String {
        let base = self.endpoint.path().trim_end_matches('/');
        let mut path = format!("{base}/v1/{}", aksk::percent_encode(&self.project_id));
        for segment in segments {
            path.push('/');
            path.push_str(&aksk::percent_encode(segment));
        }
        path
    }

    /// Gets a token if one is needed; keys need nothing.
    pub(crate) async fn prepare(&self) -> Result<(), CallError> {
        match &self.prover {
            Prover::Keys(_) => Ok(()),
            Prover::Token(source) => self
                .counted(source.token(&*self.http, &self.clock, None).await)
                .map(drop),
        }
    }

    /// `result` without our own secrets, which the cloud may have quoted. All results go through
    /// this.
    pub(crate) fn redacted<T: Redact>(
        &self,
        mut result: Result<T, CallError>,
    ) -> Result<T, CallError> {
        match &mut result {
            Ok(value) => value.redact(&self.redactor),
            Err(error) => error.redact(&self.redactor),
        }
        result
    }

    /// Reads the resource at the path of `segments`.
    ///
    /// # Errors
    /// As `call`.
    pub(crate) async fn get(
        &self,
        segments: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer, CallError> {
        let path = self.path(segments);
        let query = aksk::canonical_query(query);
        self.call(&ApiCall {
            method: Method::GET,
            path,
            query,
            body: Vec::new(),
            kind: CallKind::Read,
        })
        .await
    }

    /// Makes the call. Any answer that does not refuse our credentials is returned, whatever its
    /// status.
    ///
    /// # Errors
    /// No answer (see `Http`), or `Credentials` once a renewed token or a second signature was
    /// refused too.
    pub(crate) async fn call(&self, call: &ApiCall) -> Result<Answer, CallError> {
        let (answer, used) = self.counted(self.once(call, None).await)?;
        let Err(refusal) = self.accepted(&answer, call.kind) else {
            self.key.was_accepted();
            return Ok(answer);
        };
        let may_repeat = self.key.was_refused();
        // A token expires normally; keys that were refused before get one signature per call.
        let may_try_again = may_repeat || matches!(self.prover, Prover::Token(_));
        if !may_try_again || !worth_renewing(&refusal) {
            return Err(refusal);
        }
        // Its room is needed for the next one.
        drop(answer);
        let (answer, _) = self.counted(self.once(call, Some(&used)).await)?;
        match self.counted(self.accepted(&answer, call.kind)) {
            Ok(()) => {
                self.key.was_accepted();
                Ok(answer)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Counts a refusal of the key.
    fn counted<T>(&self, outcome: Result<T, CallError>) -> Result<T, CallError> {
        if outcome
            .as_ref()
            .is_err_and(|error| error.fault == Fault::Credentials)
        {
            self.key.was_refused();
        }
        outcome
    }

    fn accepted(&self, answer: &Answer, kind: CallKind) -> Result<(), CallError> {
        if answer.is_success() {
            return Ok(());
        }
        let error = answer.error_of(self.service, kind, self.now());
        if error.fault == Fault::Credentials {
            Err(error)
        } else {
            Ok(())
        }
    }

    /// Sends `call` once, with a new signature or a token other than `refused`. Also returns the
    /// proof that was used.
    async fn once(
        &self,
        call: &ApiCall,
        refused: Option<&HeaderValue>,
    ) -> Result<(Answer, HeaderValue), CallError> {
        let mut request = self.request(call).map_err(|what| unsendable(&what))?;
        let proof = match &self.prover {
            Prover::Keys(keys) => self
                .sign(keys, &mut request, &call.body)
                .map_err(|what| unsendable(&what))?,
            Prover::Token(source) => {
                let token = source.token(&*self.http, &self.clock, refused).await?;
                self.redactor.remember(&token);
                request.headers_mut().insert("x-auth-token", token.clone());
                token
            }
        };
        let answer = match call.kind {
            CallKind::Read => self.http.send(request).await?,
            CallKind::Submit => self.http.send_fresh(request, call.kind).await?,
        };
        Ok((answer, proof))
    }

    /// The request without proof: URL, body and the fixed headers.
    fn request(&self, call: &ApiCall) -> Result<Request, String> {
        let mut url = self.endpoint.clone();
        url.set_path(&call.path);
        url.set_query((!call.query.is_empty()).then_some(call.query.as_str()));
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let mut request = Request::new(call.method.clone(), url);
        let json = if call.body.is_empty() {
            "application/json"
        } else {
            "application/json;charset=utf-8"
        };
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(json));
        headers.insert(HOST, header("endpoint", &host)?);
        headers.insert("x-project-id", header("project_id", &self.project_id)?);
        if !call.body.is_empty() {
            *request.body_mut() = Some(call.body.clone().into());
        }
        Ok(request)
    }

    /// Signs the parts as they are in the request, so that exactly what is sent is signed.
    fn sign(
        &self,
        keys: &AccessKeys,
        request: &mut Request,
        body: &[u8],
    ) -> Result<HeaderValue, String> {
        let date = aksk::sdk_date(self.now());
        request
            .headers_mut()
            .insert("x-sdk-date", header("date", &date)?);
        if let Some(token) = &keys.security_token {
            request.headers_mut().insert(
                "x-security-token",
                secret_header("security token", token.expose_secret())?,
            );
        }
        let signable = Signable {
            method: request.method().as_str(),
            path: request.url().path(),
            query: request.url().query().unwrap_or_default(),
            headers: SIGNED
                .iter()
                .filter_map(|name| Some((*name, value(request.headers(), name)?)))
                .collect(),
            body,
            date: &date,
        };
        let proof = secret_header("access key", &aksk::authorization(keys, &signable))?;
        request.headers_mut().insert(AUTHORIZATION, proof.clone());
        Ok(proof)
    }
}

/// The headers that a signature covers, where present. Nothing on the way may change them.
const SIGNED: [&str; 5] = [
    "content-type",
    "host",
    "x-project-id",
    "x-sdk-date",
    "x-security-token",
];

fn prover(
    auth: &AuthSettings,
    project_id: &str,
    credentials: Credentials,
) -> Result<Prover, ClientError> {
    let given = credentials.kind();
    match (auth, credentials) {
        (AuthSettings::AkSk { .. }, Credentials::AkSk(keys)) => Ok(Prover::Keys(keys)),
        (AuthSettings::Token { iam_endpoint, .. }, Credentials::Password(user)) => Ok(
            Prover::Token(Box::new(TokenSource::new(iam_endpoint, project_id, user))),
        ),
        (AuthSettings::AkSk { .. }, Credentials::Password(_)) => {
            Err(ClientError::CredentialsKind {
                wanted: "aksk",
                given,
            })
        }
        (AuthSettings::Token { .. }, Credentials::AkSk(_)) => Err(ClientError::CredentialsKind {
            wanted: "token",
            given,
        }),
    }
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn header(what: &str, text: &str) -> Result<HeaderValue, String> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let value = printable
        .then(|| HeaderValue::from_str(text).ok())
        .flatten();
    value.ok_or_else(|| {
        format!("the {what} contains a character that is not allowed in an HTTP header")
    })
}

fn secret_header(what: &str, text: &str) -> Result<HeaderValue, String> {
    let mut value = header(what, text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn unsendable(what: &str) -> CallError {
    let message = what.to_owned();
    CallError {
        fault: Fault::Configuration,
        status: None,
        code: String::new(),
        message,
        request_id: None,
        retry_after: None,
    }
}
