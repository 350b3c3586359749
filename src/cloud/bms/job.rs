//! Reads BMS's answers to a submit call and to the query of its job. Pure: bytes in, values out.
//!
//! Tolerant on purpose: the documents print one job of another kind and no failed one. Unknown
//! words are "still pending", never an end; unknown fields are skipped.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::cloud::answer::{Answer, CallKind};
use crate::cloud::complaint::job_complaint;
use crate::cloud::objects::each_object;
use crate::cloud::text::Text;
use crate::model::{
    CallError, CodeClass, Complaint, Fault, JobId, JobReport, JobStatus, ServerEnds, ServerId,
    SubJob, UtcMillis,
};

/// The job of an accepted submit call.
///
/// # Errors
/// Everything but a success with a usable `job_id`. A success without one is `Lost`, unless a
/// documented code in it says more.
pub fn read_submit(answer: &Answer, now: UtcMillis) -> Result<JobId, CallError> {
    #[derive(Deserialize)]
    struct Accepted<'a> {
        #[serde(borrow)]
        job_id: Text<'a>,
    }
    let body: Option<Accepted<'_>> = answer.success();
    match body
        .as_ref()
        .and_then(|body| body.job_id.get())
        .filter(|id| is_usable(id))
    {
        Some(id) => Ok(JobId(id.to_owned())),
        None => Err(answer.error(CallKind::Submit, now)),
    }
}

/// True for what can be a job id in a URL. They are opaque: UUIDs in one document, 32 hex digits in
/// another.
pub fn is_usable(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().any(|b| b.is_ascii_alphanumeric())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The state of a job.
///
/// # Errors
/// `Refused(JobUnknown)` for `Common.0011` (documented with HTTP 400) and for any 404 that is not
/// the gateway's; `Unavailable` for a success that is not JSON or has no `status`.
pub fn read_job(answer: &Answer, now: UtcMillis) -> Result<JobReport, CallError> {
    let body: Option<JobBody<'_>> = answer.success();
    if let Some((body, status)) = body
        .as_ref()
        .and_then(|body| Some((body, body.status.get()?)))
    {
        return Ok(report(body, job_status(Some(status))));
    }
    let mut error = answer.error(CallKind::Read, now);
    let by_status_alone = error.code.is_empty() || error.fault == Fault::Refused(CodeClass::Other);
    if answer.status == 404 && by_status_alone {
        error.fault = Fault::Refused(CodeClass::JobUnknown);
    }
    Err(error)
}

fn report(body: &JobBody<'_>, status: JobStatus) -> JobReport {
    let code = body.error_code.get().or(body.code.get());
    let text = body
        .entities
        .reason()
        .or(body.fail_reason.get())
        .or(body.message.get());
    let error = job_complaint(code, text);
    let mut sub_jobs: Vec<_> = body.entities.sub_jobs.0.iter().map(sub_job).collect();
    // A task for a single server has no sub-jobs and names the server itself.
    if let (true, Some(server)) = (sub_jobs.is_empty(), body.entities.server()) {
        sub_jobs.push(SubJob {
            server: Some(server),
            status,
            error: error.clone(),
        });
    }
    JobReport {
        status,
        error,
        sub_jobs,
        duration: body.duration(),
        server_ends: server_ends(body),
    }
}

/// None unless the job is over and each of its tasks has an end.
fn server_ends(body: &JobBody<'_>) -> Option<ServerEnds> {
    body.end_time.time()?;
    let begin = body.begin_time.time()?;
    let mut ends = Vec::with_capacity(body.entities.sub_jobs.0.len());
    for sub_job in &body.entities.sub_jobs.0 {
        ends.push(sub_job.end_time.time()?.since(begin));
    }
    ends.sort_unstable();
    let last = ends.len().checked_sub(1)?;
    Some(ServerEnds {
        half: ends[last / 2],
        most: ends[last * 9 / 10],
    })
}

fn sub_job(body: &SubJobBody<'_>) -> SubJob {
    SubJob {
        server: body.entities.server(),
        status: job_status(body.status.get()),
        error: body.error(),
    }
}

fn job_status(word: Option<&str>) -> JobStatus {
    match word {
        Some(word) if word.eq_ignore_ascii_case("SUCCESS") => JobStatus::Succeeded,
        Some(word) if word.eq_ignore_ascii_case("FAIL") => JobStatus::Failed,
        _ => JobStatus::Pending,
    }
}

#[derive(Deserialize)]
struct JobBody<'a> {
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    entities: Entities<'a>,
    #[serde(borrow, default)]
    begin_time: Text<'a>,
    #[serde(borrow, default)]
    end_time: Text<'a>,
    #[serde(borrow, default)]
    error_code: Text<'a>,
    #[serde(borrow, default)]
    fail_reason: Text<'a>,
    #[serde(borrow, default)]
    code: Text<'a>,
    #[serde(borrow, default)]
    message: Text<'a>,
}

impl JobBody<'_> {
    /// `end_time` is the empty string while the job runs.
    fn duration(&self) -> Option<Duration> {
        let begin = self.begin_time.time()?;
        let end = self.end_time.time()?;
        (end >= begin).then(|| end.since(begin))
    }
}

#[derive(Deserialize)]
struct SubJobBody<'a> {
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    end_time: Text<'a>,
    #[serde(borrow, default)]
    entities: Entities<'a>,
    #[serde(borrow, default)]
    error_code: Text<'a>,
    #[serde(borrow, default)]
    fail_reason: Text<'a>,
}

impl SubJobBody<'_> {
    /// `errorcode_message` is the concrete reason, `fail_reason` the general one.
    fn error(&self) -> Option<Complaint> {
        job_complaint(
            self.error_code.get(),
            self.entities.reason().or(self.fail_reason.get()),
        )
    }
}

/// What a job or sub-job is about: an object, or (in one document) an array of objects, whose first
/// values count.
#[derive(Default)]
struct Entities<'a> {
    server_id: Text<'a>,
    errorcode_message: Text<'a>,
    sub_jobs: SubJobs<'a>,
}

#[derive(Deserialize)]
struct EntityBody<'a> {
    #[serde(borrow, default)]
    server_id: Text<'a>,
    #[serde(borrow, default)]
    errorcode_message: Text<'a>,
    #[serde(borrow, default)]
    sub_jobs: SubJobs<'a>,
}

impl<'a> Entities<'a> {
    fn server(&self) -> Option<ServerId> {
        self.server_id.get().map(|id| ServerId(id.to_owned()))
    }

    fn reason(&self) -> Option<&str> {
        self.errorcode_message.get()
    }

    fn add(&mut self, more: EntityBody<'a>) {
        if self.server_id.get().is_none() {
            self.server_id = more.server_id;
        }
        if self.errorcode_message.get().is_none() {
            self.errorcode_message = more.errorcode_message;
        }
        self.sub_jobs.0.extend(more.sub_jobs.0);
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entities<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut entities = Self::default();
        each_object(deserializer, |body: EntityBody<'a>| entities.add(body))?;
        Ok(entities)
    }
}

/// `sub_jobs`: an array; "left blank" (null, "", absent) counts as empty.
#[derive(Default)]
struct SubJobs<'a>(Vec<SubJobBody<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for SubJobs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut sub_jobs = Vec::new();
        each_object(deserializer, |body: SubJobBody<'a>| sub_jobs.push(body))?;
        Ok(Self(sub_jobs))
    }
}

#[cfg(test)]
mod tests;
