//! A job's answer, read server by server: each sub-job's own status counts, whatever the parent
//! says.

use std::collections::{BTreeMap, BTreeSet};

use super::{Rules, about_one_server};
use crate::lifecycle::{BatchNext, Event, Outcome, Step};
use crate::model::{
    Batch, CallError, CodeClass, Complaint, Evidence, Fault, JobReport, JobStatus, LookCause,
    Member, OwnCode, RequestId, ServerId, SubJob, UtcMillis,
};

/// Answers in a row that leave a job's end in doubt (not found; or over, with sub-jobs that still
/// run) before its servers are looked at. The error for an unknown job reads like a passing fault,
/// so once is not enough.
const DOUBTS_MAX: u32 = 5;

/// What follows from a job's answer.
///
/// Servers are settled as soon as their own sub-job has ended. When the job is over, failed
/// sub-jobs without a server id are matched by elimination, and servers that the answer leaves out
/// are looked at.
pub fn after_job(batch: &Batch, report: &JobReport, rules: &Rules, now: UtcMillis) -> Step {
    let told = by_server(report);
    let over = report.status != JobStatus::Pending;
    let mut moves: Vec<(RequestId, Event)> = Vec::new();
    let mut pending = false;
    let mut untold: Vec<&Member> = Vec::new();
    for member in &batch.members {
        match told.get(&member.server) {
            Some(ServerPart::Ended(sub_job)) => match settle(batch, member, sub_job, rules, now) {
                Some(event) => moves.push((member.request, event)),
                None => untold.push(member),
            },
            Some(ServerPart::Pending) => pending = true,
            Some(ServerPart::Contradictory) | None => untold.push(member),
        }
    }
    if over && !pending {
        let settled = eliminate(batch, report, &untold, rules, now);
        untold.retain(|member| {
            !settled
                .iter()
                .any(|(request, _)| *request == member.request)
        });
        moves.extend(settled);
    }
    let job_ms = over.then(|| job_ms(batch, report, now));
    let busy = busy_reboots(batch, report);
    let cause = if busy.is_empty() {
        LookCause::Gap
    } else {
        LookCause::Busy
    };
    let complaint = busy
        .into_values()
        .next()
        .or_else(|| report.error.clone())
        .filter(|_| over);
    let next = if !pending && untold.is_empty() {
        BatchNext::Done
    } else if over && !pending {
        batch.look(cause, rules, now)
    } else if over {
        doubtful(batch, cause, rules, now)
    } else {
        unfinished(batch, rules, now)
    };
    Step {
        moves,
        complaint,
        job_ms,
        ..Step::only(next)
    }
}

/// What follows when the job could not be asked for. An unknown job is asked for again a few times,
/// then its servers are looked at; everything else is only a reason to ask later, within the job's
/// time limit.
pub fn after_failed_query(batch: &Batch, error: &CallError, rules: &Rules, now: UtcMillis) -> Step {
    let step = match error.fault {
        Fault::Refused(CodeClass::JobUnknown) => {
            Step::only(doubtful(batch, LookCause::Vanished, rules, now))
        }
        Fault::Throttled {
            retry_after: Some(wait),
            ..
        } => match unfinished(batch, rules, now) {
            // Also a wait of days does not go beyond the time that the job has.
            BatchNext::Again { next_look_at, .. } => {
                let ends = batch.tracking_ends(rules.job_time_limit);
                Step::look_again(batch, next_look_at.max(now + wait).min(ends))
            }
            over => Step::only(over),
        },
        _ => Step::only(unfinished(batch, rules, now)),
    };
    step.after_failed_read(error)
}

/// What the sub-jobs say of one server.
enum ServerPart<'a> {
    Pending,
    Ended(&'a SubJob),
    /// Two sub-jobs that ended differently: no evidence.
    Contradictory,
}

fn by_server(report: &JobReport) -> BTreeMap<&ServerId, ServerPart<'_>> {
    let mut told = BTreeMap::new();
    for sub_job in &report.sub_jobs {
        let Some(server) = &sub_job.server else {
            continue;
        };
        let news = match sub_job.status {
            JobStatus::Pending => ServerPart::Pending,
            JobStatus::Succeeded | JobStatus::Failed => ServerPart::Ended(sub_job),
        };
        let news = match (told.remove(server), news) {
            (None, news) => news,
            (Some(ServerPart::Ended(a)), ServerPart::Ended(b)) if a.status == b.status => {
                ServerPart::Ended(a)
            }
            (Some(ServerPart::Pending), _) | (_, ServerPart::Pending) => ServerPart::Pending,
            (Some(_), _) => ServerPart::Contradictory,
        };
        told.insert(server, news);
    }
    told
}

fn settle(
    batch: &Batch,
    member: &Member,
    sub_job: &SubJob,
    rules: &Rules,
    now: UtcMillis,
) -> Option<Event> {
    if sub_job.status == JobStatus::Succeeded {
        return Some(Event::Ended(Outcome::succeeded(Evidence::Job, "")));
    }
    let error = sub_job.error.clone().unwrap_or_else(nameless_failure);
    about_one_server(batch, member, &error, Evidence::Job, rules, now)
}

/// Reboots whose own tasks ended with "the server is busy", and in which words. It may be busy with
/// this very reboot, if the cloud asked twice inside, so that its servers are looked at before
/// anything is concluded.
pub fn busy_reboots(batch: &Batch, report: &JobReport) -> BTreeMap<RequestId, Complaint> {
    if !batch.action.leaves_no_mark() {
        return BTreeMap::new();
    }
    let told = by_server(report);
    let mut busy = BTreeMap::new();
    let mut untold = Vec::new();
    for member in &batch.members {
        match told.get(&member.server) {
            Some(ServerPart::Ended(SubJob {
                error: Some(error), ..
            })) if error.class == CodeClass::ServerBusy => {
                busy.insert(member.request, error.clone());
            }
            Some(ServerPart::Ended(_) | ServerPart::Pending) => {}
            Some(ServerPart::Contradictory) | None => untold.push(member),
        }
    }
    if let Some(error) = nameless_error(batch, report, untold.len())
        && error.class == CodeClass::ServerBusy
    {
        busy.extend(untold.iter().map(|member| (member.request, error.clone())));
    }
    busy
}

fn eliminate(
    batch: &Batch,
    report: &JobReport,
    untold: &[&Member],
    rules: &Rules,
    now: UtcMillis,
) -> Vec<(RequestId, Event)> {
    let Some(error) = nameless_error(batch, report, untold.len()) else {
        return Vec::new();
    };
    let settle = |member: &&Member| {
        let event = about_one_server(batch, member, &error, Evidence::Job, rules, now)?;
        Some((member.request, event))
    };
    untold.iter().filter_map(settle).collect()
}

/// Failed sub-jobs without a server id belong to the servers that nothing else tells of, if the
/// numbers match. A failed job that carried one server speaks of that server even without sub-jobs.
fn nameless_error(batch: &Batch, report: &JobReport, untold: usize) -> Option<Complaint> {
    if report.status == JobStatus::Pending {
        return None;
    }
    let nameless: Vec<&SubJob> = report
        .sub_jobs
        .iter()
        .filter(|sub_job| sub_job.server.is_none())
        .collect();
    let all_failed = nameless
        .iter()
        .all(|sub_job| sub_job.status == JobStatus::Failed);
    let errors: BTreeSet<_> = nameless
        .iter()
        .filter_map(|s| s.error.as_ref())
        .map(|e| (&e.code, e.class))
        .collect();
    if !nameless.is_empty() && all_failed && nameless.len() == untold {
        // Which failed how cannot be told if they differ. One that was busy, or already as wished,
        // is looked at; reboots of any other kind have all failed.
        let any_busy = errors
            .iter()
            .any(|(_, class)| *class == CodeClass::ServerBusy);
        return match (errors.len(), nameless[0].error.clone()) {
            (1, Some(error)) => Some(error),
            _ if batch.action.leaves_no_mark() && !any_busy => Some(nameless_failure()),
            _ => None,
        };
    }
    let speaks_of_one =
        batch.server_count == 1 && report.sub_jobs.is_empty() && report.status == JobStatus::Failed;
    speaks_of_one.then(|| report.error.clone().unwrap_or_else(nameless_failure))
}

fn nameless_failure() -> Complaint {
    Complaint {
        code: OwnCode::Failed.into(),
        message: "the cloud's task failed and gave no reason for this server".into(),
        class: CodeClass::ServerPermanent,
    }
}

fn unfinished(batch: &Batch, rules: &Rules, now: UtcMillis) -> BatchNext {
    let ends = batch.tracking_ends(rules.job_time_limit);
    if now >= ends {
        return batch.look(LookCause::TimeLimit, rules, now);
    }
    match batch.again(rules, now, 0) {
        BatchNext::Again {
            next_look_at,
            doubts,
        } => BatchNext::Again {
            next_look_at: next_look_at.min(ends),
            doubts,
        },
        other => other,
    }
}

fn doubtful(batch: &Batch, cause: LookCause, rules: &Rules, now: UtcMillis) -> BatchNext {
    match batch.doubts + 1 {
        DOUBTS_MAX.. => batch.look(cause, rules, now),
        doubts => batch.again(rules, now, doubts),
    }
}

fn job_ms(batch: &Batch, report: &JobReport, now: UtcMillis) -> i64 {
    let seen = now.since(batch.accepted_at());
    let took = report.duration.map_or(seen, |duration| duration.min(seen));
    i64::try_from(took.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::{AttemptResult, BatchState, PowerAction, RequestState};
    use proptest::prelude::*;

    fn sub_job(server: Option<u32>, status: JobStatus, error: Option<Complaint>) -> SubJob {
        SubJob {
            server: server.map(|n| ServerId(format!("SERVER-{n}"))),
            status,
            error,
        }
    }

    fn report(status: JobStatus, sub_jobs: Vec<SubJob>) -> JobReport {
        JobReport {
            status,
            error: None,
            sub_jobs,
            duration: None,
        }
    }

    fn judge(action: PowerAction, servers: u32, report: &JobReport) -> Step {
        after_job(
            &batch(action, BatchState::Tracking, servers),
            report,
            &rules(),
            NOW,
        )
    }

    #[test]
    fn each_server_counts_by_its_own_sub_job_whatever_the_parent_says() {
        let failed = sub_job(
            Some(2),
            JobStatus::Failed,
            Some(complaint("BMS.0040", CodeClass::ServerPermanent)),
        );
        for parent in [JobStatus::Succeeded, JobStatus::Failed] {
            let step = judge(
                PowerAction::Stop,
                2,
                &report(
                    parent,
                    vec![sub_job(Some(1), JobStatus::Succeeded, None), failed.clone()],
                ),
            );
            assert_eq!(step.batch, BatchNext::Done);
            assert_eq!(ended(&step, 1).state, RequestState::Succeeded);
            assert_eq!(
                (ended(&step, 2).state, ended(&step, 2).evidence),
                (RequestState::Failed, Evidence::Job)
            );
        }
    }

    #[test]
    fn servers_are_settled_while_the_job_still_runs() {
        let answer = report(
            JobStatus::Pending,
            vec![
                sub_job(Some(1), JobStatus::Succeeded, None),
                sub_job(Some(2), JobStatus::Pending, None),
            ],
        );
        let step = judge(PowerAction::Reboot, 3, &answer);
        assert_eq!(ended(&step, 1).evidence, Evidence::Job);
        assert!(stays(&step, 2) && stays(&step, 3));
        assert!(matches!(step.batch, BatchNext::Again { doubts: 0, .. }));
    }

    #[test]
    fn a_failed_sub_job_without_server_is_found_by_elimination() {
        let nameless = sub_job(
            None,
            JobStatus::Failed,
            Some(complaint("BMS.0605", CodeClass::ServerPermanent)),
        );
        let step = judge(
            PowerAction::Stop,
            2,
            &report(
                JobStatus::Failed,
                vec![
                    sub_job(Some(1), JobStatus::Succeeded, None),
                    nameless.clone(),
                ],
            ),
        );
        assert_eq!(ended(&step, 2).code, "BMS.0605");
        let two_untold = judge(
            PowerAction::Stop,
            3,
            &report(
                JobStatus::Failed,
                vec![sub_job(Some(1), JobStatus::Succeeded, None), nameless],
            ),
        );
        assert!(stays(&two_untold, 2) && stays(&two_untold, 3));
        assert!(matches!(
            two_untold.batch,
            BatchNext::Look {
                cause: LookCause::Gap,
                ..
            }
        ));
    }

    #[test]
    fn nameless_failures_that_differ_are_looked_at_unless_they_were_reboots() {
        let nameless = |code, class| sub_job(None, JobStatus::Failed, Some(complaint(code, class)));
        let subs = || {
            vec![
                nameless("BMS.0039", CodeClass::AlreadyInTargetState),
                nameless("BMS.0605", CodeClass::ServerPermanent),
            ]
        };
        let stops = judge(PowerAction::Stop, 2, &report(JobStatus::Failed, subs()));
        assert!(
            stops.moves.is_empty()
                && matches!(
                    stops.batch,
                    BatchNext::Look {
                        cause: LookCause::Gap,
                        ..
                    }
                )
        );
        let reboots = judge(PowerAction::Reboot, 2, &report(JobStatus::Failed, subs()));
        assert_eq!(
            (ended(&reboots, 1).state, ended(&reboots, 2).state),
            (RequestState::Failed, RequestState::Failed)
        );
    }

    #[test]
    fn a_server_that_a_finished_job_leaves_out_is_looked_at_not_assumed() {
        let step = judge(
            PowerAction::Reboot,
            2,
            &report(
                JobStatus::Succeeded,
                vec![sub_job(Some(1), JobStatus::Succeeded, None)],
            ),
        );
        assert!(stays(&step, 2));
        assert!(matches!(
            step.batch,
            BatchNext::Look {
                cause: LookCause::Gap,
                ..
            }
        ));
    }

    #[test]
    fn a_failed_job_without_sub_jobs_speaks_for_one_server_but_not_for_two() {
        let failed = JobReport {
            error: Some(complaint("BMS.0006", CodeClass::RetryableUncertain)),
            ..report(JobStatus::Failed, vec![])
        };
        assert_eq!(
            ended(&judge(PowerAction::Reboot, 1, &failed), 1).code,
            "BMS.0006"
        );
        assert!(matches!(
            judge(PowerAction::Reboot, 2, &failed).batch,
            BatchNext::Look { .. }
        ));
    }

    #[test]
    fn a_failed_reboot_is_not_tried_again_and_a_failed_start_is() {
        let answer = report(
            JobStatus::Failed,
            vec![sub_job(
                Some(1),
                JobStatus::Failed,
                Some(complaint("BMS.1007", CodeClass::RetryableUncertain)),
            )],
        );
        assert_eq!(
            ended(&judge(PowerAction::Reboot, 1, &answer), 1).state,
            RequestState::Failed
        );
        // "Its status is null" may have been said after the reboot had begun.
        let state = complaint("BMS.1006", CodeClass::Retryable);
        let passing = report(
            JobStatus::Failed,
            vec![sub_job(Some(1), JobStatus::Failed, Some(state))],
        );
        assert_eq!(
            ended(&judge(PowerAction::Reboot, 1, &passing), 1).state,
            RequestState::Failed
        );
        assert_eq!(
            returned(&judge(PowerAction::Stop, 1, &passing), 1).result,
            AttemptResult::Failed
        );
        assert_eq!(
            returned(&judge(PowerAction::Start, 1, &answer), 1).result,
            AttemptResult::Failed
        );
        let mut last = batch(PowerAction::Start, BatchState::Tracking, 1);
        last.members[0].attempts = 3;
        assert_eq!(
            ended(&after_job(&last, &answer, &rules(), NOW), 1).code,
            "BMS.1007"
        );
    }

    #[test]
    fn a_job_not_found_is_asked_for_again_before_its_servers_are_read() {
        let unknown = CallError {
            fault: Fault::Refused(CodeClass::JobUnknown),
            status: Some(400),
            code: "Common.0011".into(),
            message: String::new(),
            request_id: None,
            retry_after: None,
        };
        let mut batch = batch(PowerAction::Reboot, BatchState::Tracking, 1);
        for doubts in 1..DOUBTS_MAX {
            let step = after_failed_query(&batch, &unknown, &rules(), NOW);
            assert!(matches!(step.batch, BatchNext::Again { doubts: d, .. } if d == doubts));
            batch.doubts = doubts;
        }
        let step = after_failed_query(&batch, &unknown, &rules(), NOW);
        assert!(matches!(
            step.batch,
            BatchNext::Look {
                cause: LookCause::Vanished,
                ..
            }
        ));
    }

    #[test]
    fn an_endless_job_is_left_at_its_time_limit() {
        let mut batch = batch(PowerAction::Stop, BatchState::Tracking, 1);
        batch.submitted_at = Some(NOW.before(rules().job_time_limit));
        let step = after_job(&batch, &report(JobStatus::Pending, vec![]), &rules(), NOW);
        assert!(matches!(
            step.batch,
            BatchNext::Look {
                cause: LookCause::TimeLimit,
                ..
            }
        ));
    }

    #[test]
    fn a_busy_sub_job_of_a_reboot_is_looked_into_and_that_of_a_stop_waits() {
        let busy = complaint("BMS.0037", CodeClass::ServerBusy);
        let named = report(
            JobStatus::Failed,
            vec![sub_job(Some(1), JobStatus::Failed, Some(busy.clone()))],
        );
        let nameless = report(
            JobStatus::Failed,
            vec![sub_job(None, JobStatus::Failed, Some(busy.clone()))],
        );
        let bare = JobReport {
            error: Some(busy.clone()),
            ..report(JobStatus::Failed, vec![])
        };
        for answer in [named, nameless, bare] {
            let step = judge(PowerAction::Reboot, 1, &answer);
            assert!(step.moves.is_empty(), "{answer:?}");
            assert!(
                matches!(
                    step.batch,
                    BatchNext::Look {
                        cause: LookCause::Busy,
                        ..
                    }
                ),
                "{answer:?}"
            );
            assert_eq!(step.complaint, Some(busy.clone()));
            let reboot = batch(PowerAction::Reboot, BatchState::Tracking, 1);
            assert_eq!(
                busy_reboots(&reboot, &answer),
                BTreeMap::from([(RequestId(1), busy.clone())])
            );
            assert_eq!(
                returned(&judge(PowerAction::Stop, 1, &answer), 1).result,
                AttemptResult::Busy
            );
        }
    }

    #[test]
    fn a_busy_reboot_waits_for_the_others_of_its_job() {
        let busy = complaint("BMS.0036", CodeClass::ServerBusy);
        let subs = vec![
            sub_job(Some(1), JobStatus::Failed, Some(busy)),
            sub_job(Some(2), JobStatus::Pending, None),
        ];
        let step = judge(PowerAction::Reboot, 2, &report(JobStatus::Pending, subs));
        assert!(
            step.moves.is_empty() && matches!(step.batch, BatchNext::Again { .. }),
            "{step:?}"
        );
    }

    proptest! {
        #[test]
        fn a_server_succeeds_only_if_its_own_sub_job_says_so(
            parent in 0usize..3,
            subs in prop::collection::vec((prop::option::of(1u32..5), 0usize..3), 0..8),
        ) {
            let statuses = [JobStatus::Pending, JobStatus::Succeeded, JobStatus::Failed];
            let sub_jobs: Vec<_> = subs.iter().map(|&(server, s)| sub_job(server, statuses[s], None)).collect();
            let step = judge(PowerAction::Reboot, 4, &report(statuses[parent], sub_jobs));
            for (request, event) in &step.moves {
                if let Event::Ended(outcome) = event && outcome.state == RequestState::Succeeded {
                    let own: Vec<_> = subs.iter().filter(|(server, _)| server.map(i64::from) == Some(request.0)).collect();
                    prop_assert!(!own.is_empty() && own.iter().all(|(_, s)| *s == 1));
                }
                prop_assert!(!matches!(event, Event::Returned(_)), "a reboot was given back: {event:?}");
            }
        }
    }
}
