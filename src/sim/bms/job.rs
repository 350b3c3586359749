//! A job and its sub-jobs: when they end, and how `GET …/jobs/{id}` prints them. Knows nothing of
//! servers' power.

use serde::{Serialize, Serializer};

use super::server::Refusal;
use crate::model::{ServerId, UtcMillis};
use crate::sim::scenario::{BmsScenario, ParentOnFailure};

/// What runs for one accepted submit call.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Printed as 32 hex digits; sub-jobs count on from it.
    pub(super) number: u128,
    /// Its number among those accepted, from 1.
    pub(super) place: usize,
    pub(super) begin: UtcMillis,
    pub(super) sub_jobs: Vec<SubJob>,
    /// How often it has been asked for.
    pub(super) polls: u32,
    /// Nobody knows it any more.
    pub(super) is_vanished: bool,
    /// It and its sub-jobs stay `RUNNING`, whatever the servers do.
    pub(super) never_ends: bool,
}

/// One server's part of a job.
#[derive(Debug, Clone)]
pub(super) struct SubJob {
    pub(super) server: ServerId,
    /// `None`: never.
    pub(super) end: Option<UtcMillis>,
    pub(super) failure: Option<Refusal>,
    /// Its entities hold the server's id.
    pub(super) names_server: bool,
    /// It is in the answer.
    pub(super) is_listed: bool,
}

impl Job {
    pub(super) fn id(&self) -> String {
        format!("{:032x}", self.number)
    }

    /// When the last sub-job ends, or `None` if one never does.
    fn end(&self) -> Option<UtcMillis> {
        let mut ends = self.sub_jobs.iter().map(|sub_job| sub_job.end);
        ends.try_fold(self.begin, |latest, end| Some(latest.max(end?)))
            .filter(|_| !self.never_ends)
    }

    /// What a query at `now` is answered; counts as a poll.
    pub(super) fn report(&mut self, now: UtcMillis, settings: &BmsScenario) -> String {
        self.polls = self.polls.saturating_add(1);
        let printed = if self.polls <= settings.init_polls {
            self.print_init()
        } else {
            self.print(now, settings)
        };
        serde_json::to_string(&printed).expect("a job holds only strings, numbers and lists")
    }

    fn print_init(&self) -> Printed<'_> {
        Printed {
            status: "INIT",
            entities: Entities::Job {
                sub_jobs_total: 0,
                sub_jobs: Vec::new(),
            },
            job_id: self.id(),
            job_type: "baremetalBatchOperate",
            begin_time: self.begin.to_string(),
            end_time: EndTime(None),
            error_code: None,
            fail_reason: None,
        }
    }

    fn print(&self, now: UtcMillis, settings: &BmsScenario) -> Printed<'_> {
        let begin_time = self.begin.to_string();
        let listed = self
            .sub_jobs
            .iter()
            .zip(1_u128..)
            .filter(|(sub_job, _)| sub_job.is_listed);
        let sub_jobs: Vec<_> = listed
            .map(|(sub_job, number)| {
                let end = sub_job.end.filter(|&end| end <= now && !self.never_ends);
                sub_job.print(end, &begin_time, self.number.wrapping_add(number), settings)
            })
            .collect();
        let end = self.end().filter(|&end| end <= now);
        let has_failed = settings.parent_on_failure == ParentOnFailure::Fail
            && self
                .sub_jobs
                .iter()
                .any(|sub_job| sub_job.failure.is_some());
        let outcome = Outcome::of(end, has_failed.then_some(("Common.0021", "Sub job fail!")));
        Printed {
            status: outcome.status,
            entities: Entities::Job {
                sub_jobs_total: sub_jobs.len(),
                sub_jobs,
            },
            job_id: self.id(),
            job_type: "baremetalBatchOperate",
            begin_time,
            end_time: EndTime(end),
            error_code: outcome.error_code,
            fail_reason: outcome.fail_reason,
        }
    }
}

impl SubJob {
    fn print(
        &self,
        end: Option<UtcMillis>,
        begin_time: &str,
        number: u128,
        settings: &BmsScenario,
    ) -> Printed<'_> {
        let failure = self
            .failure
            .as_ref()
            .map(|failure| (failure.code.as_str(), failure.message.as_str()));
        let is_named =
            self.names_server && !(settings.sub_jobs_without_id && self.failure.is_some());
        let outcome = Outcome::of(end, failure);
        Printed {
            status: outcome.status,
            entities: Entities::SubJob {
                server_id: is_named.then_some(&self.server),
                errorcode_message: outcome.fail_reason.flatten(),
            },
            job_id: format!("{number:032x}"),
            job_type: "baremetalSingleOperate",
            begin_time: begin_time.to_owned(),
            end_time: EndTime(end),
            error_code: outcome.error_code,
            fail_reason: outcome.fail_reason,
        }
    }
}

/// Status and error fields: absent while running, null after a success, texts after a failure.
struct Outcome<'a> {
    status: &'static str,
    error_code: Option<Option<&'a str>>,
    fail_reason: Option<Option<&'a str>>,
}

impl<'a> Outcome<'a> {
    fn of(end: Option<UtcMillis>, failure: Option<(&'a str, &'a str)>) -> Self {
        match (end, failure) {
            (None, _) => Self {
                status: "RUNNING",
                error_code: None,
                fail_reason: None,
            },
            (Some(_), None) => Self {
                status: "SUCCESS",
                error_code: Some(None),
                fail_reason: Some(None),
            },
            (Some(_), Some((code, text))) => Self {
                status: "FAIL",
                error_code: Some(Some(code)),
                fail_reason: Some(Some(text)),
            },
        }
    }
}

/// A job or a sub-job as it is printed.
#[derive(Serialize)]
struct Printed<'a> {
    status: &'static str,
    entities: Entities<'a>,
    job_id: String,
    job_type: &'static str,
    begin_time: String,
    end_time: EndTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fail_reason: Option<Option<&'a str>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Entities<'a> {
    Job {
        sub_jobs_total: usize,
        sub_jobs: Vec<Printed<'a>>,
    },
    SubJob {
        #[serde(skip_serializing_if = "Option::is_none")]
        server_id: Option<&'a ServerId>,
        #[serde(skip_serializing_if = "Option::is_none")]
        errorcode_message: Option<&'a str>,
    },
}

/// An empty string while running, as the live service prints it.
struct EndTime(Option<UtcMillis>);

impl Serialize for EndTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => time.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
}
