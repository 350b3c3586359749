//! Bare Metal Server, API v1: start, stop and reboot in batches, followed by job; servers read by
//! list or one by one.
//!
//! Owns this service's paths and bodies. Knows nothing of signing; does not judge what an answer
//! means for a request.
//!
//! Source: BMS API Reference (Huawei Cloud and OTC): Starting, Stopping, Restarting BMSs; Querying
//! Task Statuses; Querying Details About BMSs.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use reqwest::Method;
use serde_json::{Value, json};

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

pub mod job;
pub mod server;

use server::Entries;

/// A BMS project.
pub struct Bms {
    session: Session,
    looking: Looking,
    /// Whether the list is asked for servers of all enterprise projects; false once the cloud has
    /// refused that.
    all_projects: AtomicBool,
    /// It was refused for want of a permission: then the list lacks servers of other projects. A
    /// cloud that does not know the parameter lists all that it has.
    is_filtered: AtomicBool,
}

impl Bms {
    /// Makes a client for `target`. Sends nothing yet.
    ///
    /// # Errors
    /// See `ClientError`.
    pub fn new(
        target: &TargetSettings,
        credentials: Credentials,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        Ok(Self::of(Session::new(target, credentials, clock)?, target))
    }

    /// As `new`, over another wire than the network.
    pub(crate) fn over(
        wire: Box<dyn Wire>,
        target: &TargetSettings,
        credentials: Credentials,
        clock: Clock,
    ) -> Result<Self, ClientError> {
        Ok(Self::of(
            Session::over(wire, target, credentials, clock)?,
            target,
        ))
    }

    fn of(session: Session, target: &TargetSettings) -> Self {
        Self {
            session,
            looking: Looking::new(target.settle_time),
            all_projects: AtomicBool::new(true),
            is_filtered: AtomicBool::new(false),
        }
    }

    async fn submit_batch(
        &self,
        action: PowerAction,
        servers: &[ServerId],
    ) -> Result<Tracking, CallError> {
        check_batch(Service::Bms, servers)?;
        let call = ApiCall {
            method: Method::POST,
            path: self.session.path(&["baremetalservers", "action"]),
            query: String::new(),
            body: action_body(action, servers).to_string().into_bytes(),
            kind: CallKind::Submit,
        };
        let answer = self.session.call(&call).await?;
        job::read_submit(&answer, self.session.now()).map(Tracking::Job)
    }

    async fn query_job(&self, job: &JobId) -> Result<JobReport, CallError> {
        if !job::is_usable(&job.0) {
            let what = format!("'{job}' cannot be a job id");
            return Err(not_sent(Fault::Refused(CodeClass::JobUnknown), what));
        }
        let answer = self.session.get(&["jobs", &job.0], &[]).await?;
        job::read_job(&answer, self.session.now())
    }

    /// One page of `limit` servers, numbered from 1.
    ///
    /// Asks for all enterprise projects: where they are in use the list leaves servers out
    /// otherwise, and the vendor's own Terraform provider always does so. OTC's reference names the
    /// parameter only in an example, so after a refusal the pages are read without it: a server
    /// that the list leaves out is read alone anyway.
    async fn list_page(&self, page: usize, limit: usize) -> Result<Entries, CallError> {
        let all_projects = self.all_projects.load(Ordering::Relaxed);
        let first = self.get_page(page, limit, all_projects).await;
        let refused = matches!(
            &first,
            Err(CallError {
                fault: Fault::Refused(CodeClass::BatchInvalid | CodeClass::Other)
                    | Fault::Permission,
                ..
            })
        );
        if !(all_projects && refused) {
            return first;
        }
        let again = self.get_page(page, limit, false).await;
        if again.is_ok() {
            let lacks_permission = matches!(&first, Err(error) if error.fault == Fault::Permission);
            self.is_filtered.store(lacks_permission, Ordering::Relaxed);
            self.all_projects.store(false, Ordering::Relaxed);
        }
        again
    }

    async fn get_page(
        &self,
        page: usize,
        limit: usize,
        all_projects: bool,
    ) -> Result<Entries, CallError> {
        let limit = limit.to_string();
        let offset = page.to_string();
        let mut query = vec![("limit", limit.as_str()), ("offset", offset.as_str())];
        if all_projects {
            query.push(("enterprise_project_id", "all_granted_eps"));
        }
        let answer = self
            .session
            .get(&["baremetalservers", "detail"], &query)
            .await?;
        server::read_list(&answer, self.session.now())
    }
}

/// A place is the number of entries before it. Pages are numbered from 1, and the last one is
/// short; `count` does not tell it: the documents cap it by `limit`.
impl ServerReader for Bms {
    type Place = usize;

    fn first_page(&self) -> usize {
        0
    }

    async fn page(&self, place: usize, limit: usize) -> Result<Page<usize>, CallError> {
        let entries = self.list_page(place / limit + 1, limit).await?;
        let next = (entries.count >= limit).then_some(place + limit);
        Ok(Page {
            servers: entries.servers,
            next,
            is_filtered: self.is_filtered.load(Ordering::Relaxed),
        })
    }

    fn page_after(&self, place: &usize, limit: usize) -> Option<usize> {
        Some(place + limit)
    }

    async fn show(&self, server: &ServerId) -> Result<Sighting, CallError> {
        if !ServerId::is_valid(&server.0) {
            let what = format!("'{server}' cannot be a server id");
            return Err(not_sent(Fault::Refused(CodeClass::BatchInvalid), what));
        }
        let answer = self
            .session
            .get(&["baremetalservers", &server.0], &[])
            .await?;
        server::read_show(&answer, server, self.session.now())
    }
}

impl PowerCloud for Bms {
    fn key(&self) -> &Key {
        self.session.key()
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
        Box::pin(async { self.session.redacted(self.query_job(job).await) })
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

/// The body of a power call. `HARD` is the only type that works; a reboot must name it, a stop may,
/// a start has none.
fn action_body(action: PowerAction, servers: &[ServerId]) -> Value {
    let servers: Vec<_> = servers
        .iter()
        .map(|server| json!({ "id": server.0 }))
        .collect();
    match action {
        PowerAction::Start => json!({ "os-start": { "servers": servers } }),
        PowerAction::Stop => json!({ "os-stop": { "type": "HARD", "servers": servers } }),
        PowerAction::Reboot => json!({ "reboot": { "type": "HARD", "servers": servers } }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_calls_have_the_documented_bodies() {
        let ids = [
            "616fb98f-46ca-475e-917e-2563e5a8cd19",
            "726fb98f-46ca-475e-917e-2563e5a8cd20",
        ];
        let servers: Vec<_> = ids.iter().map(|id| ServerId((*id).to_owned())).collect();
        for (action, documented) in [
            (
                PowerAction::Start,
                include_str!("../../tests/fixtures/api-examples/bms-start-request.json"),
            ),
            (
                PowerAction::Stop,
                include_str!("../../tests/fixtures/api-examples/bms-stop-request.json"),
            ),
            (
                PowerAction::Reboot,
                include_str!("../../tests/fixtures/api-examples/bms-reboot-request.json"),
            ),
        ] {
            let documented: Value = serde_json::from_str(documented).expect("the example is JSON");
            assert_eq!(action_body(action, &servers), documented, "{action}");
        }
    }
}
