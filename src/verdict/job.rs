//! A job's answer, read server by server: each sub-job's own status counts, whatever the parent
//! says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::case::{Case, already, failed, is_as_wished};
use crate::lifecycle::{BatchNext, Event, Moves, Outcome, Step};
use crate::model::{
    AttemptResult, Batch, CallError, CodeClass, Complaint, Evidence, Fault, JobReport, JobStatus,
    LookCause, Member, OwnCode, RequestId, ServerId, SubJob,
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
pub fn after_job(case: Case<'_>, report: &JobReport) -> Step {
    let mut sorted = sort_members(case, report);
    let is_over = report.status.is_over();
    if is_over && !sorted.some_run {
        settle_by_elimination(case, report, &mut sorted);
    }
    let busy = busy_reboots(case.batch, report);
    let cause = if busy.is_empty() {
        LookCause::Gap
    } else {
        LookCause::Busy
    };
    let next = if sorted.untold.is_empty() && !sorted.some_run {
        BatchNext::Done
    } else if !is_over {
        ask_when_ended(case)
    } else if sorted.some_run {
        doubtful(case, cause)
    } else {
        case.look_at_servers(cause)
    };
    let complaint = busy.into_values().next().or_else(|| report.error.clone());
    Step {
        moves: sorted.moves,
        complaint: complaint.filter(|_| is_over),
        job_ms: is_over.then(|| job_ms(case, report)),
        ..Step::only(next)
    }
}

/// What follows when the job could not be asked for. An unknown job is asked for again a few times,
/// then its servers are looked at; everything else is only a reason to ask later, within the job's
/// time limit.
pub fn after_failed_query(case: Case<'_>, error: &CallError) -> Step {
    let next = match error.fault {
        Fault::Refused(CodeClass::JobUnknown) => doubtful(case, LookCause::Vanished),
        Fault::Throttled {
            retry_after: Some(wait),
            ..
        } => ask_after(case, wait),
        _ => ask_again(case),
    };
    Step::only(next).after_failed_read(error)
}

/// Reboots whose own tasks ended with "the server is busy", and in which words. It may be busy with
/// this very reboot, if the cloud asked twice inside, so that its servers are looked at before
/// anything is concluded.
pub fn busy_reboots(batch: &Batch, report: &JobReport) -> BTreeMap<RequestId, Complaint> {
    if !batch.action.leaves_no_mark() || !names_busy(report) {
        return BTreeMap::new();
    }
    let parts = parts_by_server(report);
    let mut busy = BTreeMap::new();
    let mut untold = Vec::new();
    for member in &batch.members {
        match parts.get(&member.server) {
            Some(ServerPart::Ended(SubJob {
                error: Some(error), ..
            })) if error.class == CodeClass::ServerBusy => {
                busy.insert(member.request, error.clone());
            }
            Some(ServerPart::Ended(_) | ServerPart::Pending) => {}
            Some(ServerPart::Contradictory) | None => untold.push(member.request),
        }
    }
    if let Some(error) = nameless_error(batch, report, untold.len())
        && error.class == CodeClass::ServerBusy
    {
        busy.extend(untold.iter().map(|request| (*request, error.clone())));
    }
    busy
}

/// True if any part of the answer says that a server is busy.
fn names_busy(report: &JobReport) -> bool {
    let sub_jobs = report.sub_jobs.iter();
    let mut errors = sub_jobs
        .filter_map(|sub_job| sub_job.error.as_ref())
        .chain(&report.error);
    errors.any(|error| error.class == CodeClass::ServerBusy)
}

/// What the sub-jobs say of one server.
#[derive(Clone, Copy)]
enum ServerPart<'a> {
    Pending,
    Ended(&'a SubJob),
    /// Two sub-jobs that ended differently: no evidence.
    Contradictory,
}

impl<'a> ServerPart<'a> {
    fn of(sub_job: &'a SubJob) -> Self {
        match sub_job.status {
            JobStatus::Pending => Self::Pending,
            JobStatus::Succeeded | JobStatus::Failed => Self::Ended(sub_job),
        }
    }

    /// Two sub-jobs of one server.
    fn joined(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ended(a), Self::Ended(b)) if a.status == b.status => Self::Ended(a),
            (Self::Pending, _) | (_, Self::Pending) => Self::Pending,
            (Self::Ended(_) | Self::Contradictory, _) => Self::Contradictory,
        }
    }
}

fn parts_by_server(report: &JobReport) -> HashMap<&ServerId, ServerPart<'_>> {
    let mut parts: HashMap<&ServerId, ServerPart<'_>> =
        HashMap::with_capacity(report.sub_jobs.len());
    for sub_job in &report.sub_jobs {
        if let Some(server) = &sub_job.server {
            let part = ServerPart::of(sub_job);
            parts
                .entry(server)
                .and_modify(|earlier| *earlier = earlier.joined(part))
                .or_insert(part);
        }
    }
    parts
}

/// The members of a batch, by what a job's answer says of them.
#[derive(Default)]
struct SortedMembers<'a> {
    /// Those that it settles.
    moves: Moves,
    /// Those of which it says nothing certain.
    untold: Vec<&'a Member>,
    /// Some sub-job is not over.
    some_run: bool,
}

fn sort_members<'a>(case: Case<'a>, report: &JobReport) -> SortedMembers<'a> {
    let parts = parts_by_server(report);
    let mut sorted = SortedMembers::default();
    for member in &case.batch.members {
        match parts.get(&member.server) {
            Some(ServerPart::Ended(sub_job)) => match settle(case, member, sub_job) {
                Some(event) => sorted.moves.push((member.request, event)),
                None => sorted.untold.push(member),
            },
            Some(ServerPart::Pending) => sorted.some_run = true,
            Some(ServerPart::Contradictory) | None => sorted.untold.push(member),
        }
    }
    sorted
}

/// None: the server has to be looked at.
fn settle(case: Case<'_>, member: &Member, sub_job: &SubJob) -> Option<Event> {
    if sub_job.status == JobStatus::Succeeded {
        return Some(Event::Ended(Outcome::succeeded(Evidence::Job, "")));
    }
    let error = sub_job.error.clone().unwrap_or_else(nameless_failure);
    settle_failed(case, member, &error)
}

/// What the error of a server's own task means for its request. None: it does not tell, the server
/// has to be looked at.
fn settle_failed(case: Case<'_>, member: &Member, error: &Complaint) -> Option<Event> {
    let action = case.batch.action;
    match error.class {
        CodeClass::AlreadyInTargetState if is_as_wished(action, error) => Some(already(action)),
        // It may speak of this very reboot.
        CodeClass::ServerBusy if action.leaves_no_mark() => None,
        CodeClass::ServerBusy => Some(case.wait_apart(member, error)),
        // These say that the task failed, not how far it had come. A reboot may have begun.
        CodeClass::Retryable | CodeClass::RetryableUncertain | CodeClass::Ambiguous
            if !action.leaves_no_mark() =>
        {
            let again = case.try_again(member, error, AttemptResult::Failed);
            Some(again.unwrap_or_else(|| failed(Evidence::Job, error)))
        }
        CodeClass::AlreadyInTargetState
        | CodeClass::ServerPermanent
        | CodeClass::ServerFailed
        | CodeClass::BatchInvalid
        | CodeClass::Retryable
        | CodeClass::RetryableUncertain
        | CodeClass::Ambiguous
        | CodeClass::SubJobFailed
        | CodeClass::JobUnknown
        | CodeClass::AuthToken
        | CodeClass::AuthPermission
        | CodeClass::ConfigPermanent
        | CodeClass::Other => Some(failed(Evidence::Job, error)),
    }
}

/// Settles those of which nothing else tells, if a failure without a server can only be theirs.
fn settle_by_elimination(case: Case<'_>, report: &JobReport, sorted: &mut SortedMembers<'_>) {
    let Some(error) = nameless_error(case.batch, report, sorted.untold.len()) else {
        return;
    };
    for member in std::mem::take(&mut sorted.untold) {
        match settle_failed(case, member, &error) {
            Some(event) => sorted.moves.push((member.request, event)),
            None => sorted.untold.push(member),
        }
    }
}

/// Failed sub-jobs without a server id belong to the servers that nothing else tells of, if the
/// numbers match. A failed job that carried one server speaks of that server even without sub-jobs.
fn nameless_error(batch: &Batch, report: &JobReport, untold: usize) -> Option<Complaint> {
    if !report.status.is_over() {
        return None;
    }
    let nameless: Vec<&SubJob> = report
        .sub_jobs
        .iter()
        .filter(|sub_job| sub_job.server.is_none())
        .collect();
    let have_failed = nameless
        .iter()
        .all(|sub_job| sub_job.status == JobStatus::Failed);
    if !nameless.is_empty() && nameless.len() == untold && have_failed {
        return common_error(batch, &nameless);
    }
    let speaks_of_one =
        batch.server_count == 1 && report.sub_jobs.is_empty() && report.status == JobStatus::Failed;
    speaks_of_one.then(|| report.error.clone().unwrap_or_else(nameless_failure))
}

/// The error that all of these failed sub-jobs have. If they differ, nobody can tell which failed
/// how: those that may have been busy, or already as wished, are looked at; reboots that failed in
/// any other way have all failed.
fn common_error(batch: &Batch, nameless: &[&SubJob]) -> Option<Complaint> {
    let errors: Vec<&Complaint> = nameless
        .iter()
        .filter_map(|sub_job| sub_job.error.as_ref())
        .collect();
    let kinds: BTreeSet<_> = errors
        .iter()
        .map(|error| (&error.code, error.class))
        .collect();
    let first = nameless.first().and_then(|sub_job| sub_job.error.as_ref());
    // One that gave no reason may have failed for another one.
    let is_common = kinds.len() == 1 && errors.len() == nameless.len();
    if let (true, Some(error)) = (is_common, first) {
        return Some(error.clone());
    }
    let some_busy = errors
        .iter()
        .any(|error| error.class == CodeClass::ServerBusy);
    (batch.action.leaves_no_mark() && !some_busy).then(nameless_failure)
}

fn nameless_failure() -> Complaint {
    Complaint {
        code: OwnCode::Failed.into(),
        message: "the cloud's task failed and gave no reason for this server".into(),
        class: CodeClass::ServerPermanent,
    }
}

/// The job runs: it is asked for when it may have ended, within its time limit; after that its
/// servers are looked at.
fn ask_when_ended(case: Case<'_>) -> BatchNext {
    let ends = case.tracking_ends();
    if case.now >= ends {
        case.look_at_servers(LookCause::TimeLimit)
    } else {
        case.look_when_ended(ends)
    }
}

/// It could not be asked for: it is asked for later, within the same limit.
fn ask_again(case: Case<'_>) -> BatchNext {
    let ends = case.tracking_ends();
    if case.now >= ends {
        case.look_at_servers(LookCause::TimeLimit)
    } else {
        case.look_again_by(ends)
    }
}

/// As `ask_again`, and not before the cloud's own wait is over. A wait of days does not go beyond
/// the time that the job has either.
fn ask_after(case: Case<'_>, wait: Duration) -> BatchNext {
    let ends = case.tracking_ends();
    match ask_again(case) {
        BatchNext::Again { next_look_at, .. } => BatchNext::Again {
            next_look_at: next_look_at.max(case.now + wait).min(ends),
            doubts: case.batch.doubts,
        },
        over => over,
    }
}

fn doubtful(case: Case<'_>, cause: LookCause) -> BatchNext {
    let doubts = case.batch.doubts + 1;
    if doubts >= DOUBTS_MAX {
        case.look_at_servers(cause)
    } else {
        case.look_again(doubts)
    }
}

/// How long the job took, in milliseconds; no longer than it was waited for.
fn job_ms(case: Case<'_>, report: &JobReport) -> i64 {
    let waited = case.now.since(case.batch.accepted_at());
    let took = report
        .duration
        .map_or(waited, |duration| duration.min(waited));
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
            server_ends: None,
        }
    }

    fn judge(action: PowerAction, servers: u32, report: &JobReport) -> Step {
        judge_batch(&batch(action, BatchState::Tracking, servers), report)
    }

    fn judge_batch(batch: &Batch, report: &JobReport) -> Step {
        verdict_at(NOW, batch, |case| after_job(case, report))
    }

    fn failed_query(batch: &Batch, error: &CallError) -> Step {
        verdict_at(NOW, batch, |case| after_failed_query(case, error))
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
        // One that gave no reason has not failed for the reason of another.
        let without_reason = vec![
            nameless("BMS.0039", CodeClass::AlreadyInTargetState),
            sub_job(None, JobStatus::Failed, None),
        ];
        let stops = judge(
            PowerAction::Stop,
            2,
            &report(JobStatus::Failed, without_reason),
        );
        assert!(stays(&stops, 1) && stays(&stops, 2));
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
        assert_eq!(ended(&judge_batch(&last, &answer), 1).code, "BMS.1007");
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
            let step = failed_query(&batch, &unknown);
            assert!(matches!(step.batch, BatchNext::Again { doubts: d, .. } if d == doubts));
            batch.doubts = doubts;
        }
        let step = failed_query(&batch, &unknown);
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
        let step = judge_batch(&batch, &report(JobStatus::Pending, vec![]));
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

    #[test]
    fn already_is_a_success_only_in_the_state_that_was_asked_for() {
        use PowerAction::{Reboot, Start, Stop};
        for (action, code, state) in [
            (Start, "BMS.0038", RequestState::Succeeded),
            (Start, "BMS.0039", RequestState::Failed),
            (Stop, "BMS.0038", RequestState::Failed),
            (Stop, "BMS.0039", RequestState::Succeeded),
            (Reboot, "BMS.0038", RequestState::Failed),
        ] {
            let error = complaint(code, CodeClass::AlreadyInTargetState);
            let sub_jobs = vec![sub_job(Some(1), JobStatus::Failed, Some(error))];
            let step = judge(action, 1, &report(JobStatus::Failed, sub_jobs));
            assert_eq!(ended(&step, 1).state, state, "{action} {code}");
        }
    }

    #[test]
    fn two_sub_jobs_of_one_server_count_if_they_ended_alike() {
        let done = sub_job(Some(1), JobStatus::Succeeded, None);
        let failed = sub_job(Some(1), JobStatus::Failed, None);
        let alike = report(JobStatus::Succeeded, vec![done.clone(), done.clone()]);
        let step = judge(PowerAction::Reboot, 1, &alike);
        assert_eq!(ended(&step, 1).state, RequestState::Succeeded);
        let unlike = report(JobStatus::Failed, vec![done, failed]);
        assert!(stays(&judge(PowerAction::Reboot, 1, &unlike), 1));
    }

    #[test]
    fn nothing_is_eliminated_while_a_sub_job_still_runs() {
        let error = complaint("BMS.0605", CodeClass::ServerPermanent);
        let sub_jobs = vec![
            sub_job(Some(1), JobStatus::Pending, None),
            sub_job(None, JobStatus::Failed, Some(error)),
        ];
        let step = judge(PowerAction::Stop, 2, &report(JobStatus::Failed, sub_jobs));
        assert!(step.moves.is_empty());
        assert!(matches!(step.batch, BatchNext::Again { doubts: 1, .. }));
    }

    #[test]
    fn only_a_task_that_says_so_calls_its_server_busy() {
        let error = complaint("BMS.0605", CodeClass::ServerPermanent);
        let sub_jobs = vec![sub_job(Some(1), JobStatus::Failed, Some(error))];
        let reboot = batch(PowerAction::Reboot, BatchState::Tracking, 1);
        let answer = report(JobStatus::Failed, sub_jobs);
        assert_eq!(busy_reboots(&reboot, &answer), BTreeMap::new());
    }

    #[test]
    fn a_throttled_query_waits_as_long_as_named_within_the_time_limit() {
        let tracked = Batch {
            doubts: 2,
            ..batch(PowerAction::Stop, BatchState::Tracking, 1)
        };
        for (named, waited) in [(100, 100), (1_000_000, 3600)] {
            let wait = Duration::from_secs(named);
            let error = CallError {
                fault: Fault::Throttled {
                    retry_after: Some(wait),
                    limit: None,
                },
                status: Some(429),
                code: String::new(),
                message: String::new(),
                request_id: None,
                retry_after: Some(wait),
            };
            let next = BatchNext::Again {
                next_look_at: NOW + Duration::from_secs(waited),
                doubts: 2,
            };
            assert_eq!(failed_query(&tracked, &error).batch, next);
        }
    }

    #[test]
    fn a_job_took_what_the_cloud_says_but_no_longer_than_it_was_waited_for() {
        let mut batch = batch(PowerAction::Stop, BatchState::Tracking, 1);
        batch.submitted_at = Some(NOW.before(Duration::from_secs(9)));
        for (said, took) in [(None, 9000), (Some(4), 4000), (Some(20), 9000)] {
            let answer = JobReport {
                duration: said.map(Duration::from_secs),
                ..report(JobStatus::Succeeded, Vec::new())
            };
            assert_eq!(judge_batch(&batch, &answer).job_ms, Some(took));
        }
    }
}
