//! Cloud Data Center, API v1: start, stop and reboot in batches of at most 50, followed by the
//! servers' own states.
//!
//! Owns this service's paths, its pages and which ids can be asked for. Knows nothing of signing;
//! does not judge what an answer means for a request.
//!
//! Source: CloudDC API Reference (Huawei Cloud): Batch Modifying the Power Statuses of Physical
//! Servers; Querying the List of Physical Servers; Querying Physical Server Information.

use futures_util::future::BoxFuture;
use reqwest::Method;

use super::answer::CallKind;
use super::auth::{Credentials, Key};
use super::http::Wire;
use super::looking::{Looking, Page, ServerReader};
use super::session::{ApiCall, Session};
use super::{ClientError, Clock, Observed, PowerCloud, check_batch, not_sent};
use crate::model::{
    CallError, CodeClass, Fault, JobId, JobReport, Listing, PowerAction, ServerId, Service,
    Sighting, Tracking,
};
use crate::settings::TargetSettings;

mod marker;
pub mod power;
pub mod server;

/// The word that is in the place of an id in `GET …/physicalservers/status`: another call, which
/// only counts servers.
const STATUS_CALL: &str = "status";

/// A CloudDC project.
pub struct CloudDc {
    session: Session,
    looking: Looking,
}

impl CloudDc {
    /// Makes a client for `target`. Sends nothing yet.
    ///
    /// # Errors
    /// See `ClientError`.
    pub fn new(
        target: &TargetSettings,
        credentials: Credentials,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            session: Session::new(target, credentials, clock)?,
            looking: Looking::new(target.settle_time),
        })
    }

    /// As `new`, over another wire than the network.
    pub(crate) fn over(
        wire: Box<dyn Wire>,
        target: &TargetSettings,
        credentials: Credentials,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            session: Session::over(wire, target, credentials, clock)?,
            looking: Looking::new(target.settle_time),
        })
    }

    async fn submit_batch(
        &self,
        action: PowerAction,
        servers: &[ServerId],
    ) -> Result<Tracking, CallError> {
        check_batch(Service::CloudDc, servers)?;
        // Only a server's own state shows how its action ended, so a server that cannot be read is
        // not switched.
        servers.iter().try_for_each(check_id)?;
        let call = ApiCall {
            method: Method::PUT,
            path: self.session.path(&["physicalservers", "power-state"]),
            query: String::new(),
            body: power::body(action, servers).to_string().into_bytes(),
            kind: CallKind::Submit,
        };
        let answer = self.session.call(&call).await?;
        power::read_submit(&answer, self.session.now())
    }
}

/// A page is found by the marker that the page before it named; the first has none. `count` is
/// ignored, and a short page need not be the last one: the documents do not say that every page but
/// the last is full.
impl ServerReader for CloudDc {
    type Place = Option<String>;

    fn first_page(&self) -> Option<String> {
        None
    }

    async fn page(
        &self,
        marker: Option<String>,
        limit: usize,
    ) -> Result<Page<Option<String>>, CallError> {
        let limit = limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(marker.as_deref().map(|marker| ("marker", marker)));
        let answer = self.session.get(&["physicalservers"], &query).await?;
        let page = server::read_list(&answer, self.session.now())?;
        // A page that names itself as the next one would only be read again.
        let next = page.next.filter(|next| marker.as_ref() != Some(next));
        Ok(Page {
            servers: page.servers,
            next: next.map(Some),
            is_filtered: page.is_filtered,
        })
    }

    fn page_after(&self, _: &Option<String>, _: usize) -> Option<Option<String>> {
        None
    }

    async fn show(&self, server: &ServerId) -> Result<Sighting, CallError> {
        check_id(server)?;
        let answer = self
            .session
            .get(&["physicalservers", &server.0], &[])
            .await?;
        server::read_show(&answer, server, self.session.now())
    }
}

impl PowerCloud for CloudDc {
    fn key(&self) -> &Key {
        self.session.key()
    }

    fn wants_baselines(&self) -> bool {
        true
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async { self.session.redacted(self.session.prepare().await) })
    }

    fn submit<'a>(
        &'a self,
        action: PowerAction,
        servers: &'a [ServerId],
    ) -> BoxFuture<'a, Result<Tracking, CallError>> {
        Box::pin(async move {
            self.session
                .redacted(self.submit_batch(action, servers).await)
        })
    }

    fn job<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, Result<JobReport, CallError>> {
        let what = format!("CloudDC has no jobs, so there is no job '{job}'");
        Box::pin(async { Err(not_sent(Fault::Refused(CodeClass::JobUnknown), what)) })
    }

    fn observe<'a>(
        &'a self,
        servers: &'a [ServerId],
    ) -> BoxFuture<'a, Result<Observed, CallError>> {
        Box::pin(async {
            self.session
                .redacted(self.looking.observe(self, servers).await)
        })
    }

    fn list(&self, pages_max: usize) -> BoxFuture<'_, Result<Listing, CallError>> {
        Box::pin(async move {
            self.session
                .redacted(self.looking.read_list(self, pages_max).await)
        })
    }
}

/// Refuses an id that cannot be in the path of the call that shows one server.
fn check_id(server: &ServerId) -> Result<(), CallError> {
    if ServerId::is_valid(&server.0) && !server.0.eq_ignore_ascii_case(STATUS_CALL) {
        return Ok(());
    }
    let what = format!("'{server}' cannot be a server id");
    Err(not_sent(Fault::Refused(CodeClass::BatchInvalid), what))
}
