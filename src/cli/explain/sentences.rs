//! From the facts about one request to sentences for an operator. Pure: no SQL, no clock.

use std::time::Duration;

use crate::cli::pause::resume_command;
use crate::cli::servers;
use crate::model::{
    BatchState, Budget, Evidence, HoldKind, LookCause, OwnCode, RequestState, UtcMillis, counted,
};
use crate::plan;
use crate::store::client::{AttemptRecord, BatchRecord, HoldRecord, OrderRecord, RequestRecord};

/// What is known of a request and its surroundings.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) request: RequestRecord,
    /// From `power_waiting`, while queued.
    pub(super) reason: Option<String>,
    /// Holds that cover it.
    pub(super) holds: Vec<HoldRecord>,
    /// The last batch that carried it.
    pub(super) batch: Option<BatchRecord>,
    /// The request that it waits for.
    pub(super) after: Option<RequestRecord>,
    /// The order with waves that it belongs to.
    pub(super) order: Option<OrderRecord>,
    pub(super) attempts: Vec<AttemptRecord>,
    /// How many requests of its target and action go first, while it could go but for a hold.
    pub(super) ahead: Option<u64>,
    pub(super) daemon_runs: bool,
    pub(super) rules: TargetRules,
}

/// What the config says; none where the config is not known.
#[derive(Debug, Default)]
pub(super) struct TargetRules {
    pub(super) attempts_max: Option<u32>,
    /// Of its target and action.
    pub(super) budget: Option<Budget>,
    /// `Some(None)`: requests never expire.
    pub(super) default_ttl: Option<Option<Duration>>,
}

impl Facts {
    /// Why it is where it is, then what comes next.
    pub(super) fn sentences(&self) -> Vec<String> {
        let mut said = vec![self.wish()];
        said.extend(self.order.as_ref().map(|order| self.turn(order)));
        match self.request.state.parse() {
            Ok(RequestState::Queued) => self.queued(&mut said),
            Ok(RequestState::Running) => self.on_its_way(&mut said),
            Ok(state) => self.ended(state, &mut said),
            Err(_) => said.push(format!(
                "Its state is {}, which this version does not know.",
                self.request.state
            )),
        }
        said
    }

    fn wish(&self) -> String {
        let request = &self.request;
        let who = request
            .requested_by
            .as_ref()
            .map(|who| format!(" by {who}"))
            .unwrap_or_default();
        format!(
            "Request {}: {} server {} on target {}; inserted at {}{who}.",
            request.id,
            request.action,
            servers::shown(&request.server_id, request.name.as_deref()),
            request.target,
            request.created_at
        )
    }

    /// Where it is in its order.
    fn turn(&self, order: &OrderRecord) -> String {
        let turn = match self.request.wave {
            Some(wave) => format!("it was let go in wave {wave}"),
            None if order.wave_size == 0 => "no wave has left yet".to_owned(),
            None => format!(
                "wave {} has left, and its own turn has not come",
                order.wave
            ),
        };
        format!(
            "It belongs to order '{}' (waves {}; {}), which is {}: {turn}.",
            order.label,
            order.waves,
            counted(order.servers, "server"),
            order.state
        )
    }

    fn queued(&self, said: &mut Vec<String>) {
        said.push(self.why_queued());
        said.extend(
            self.holds
                .iter()
                .map(|hold| hold_sentence(hold, &self.request)),
        );
        said.extend(self.place());
        if self.request.retry_at.is_some() || self.request.attempts > 0 {
            said.push(self.last_try());
        }
        if !self.daemon_runs {
            said.push("No daemon runs on this queue; nothing is sent until one does.".to_owned());
        }
        said.push(match (&self.request.expires_at, self.rules.default_ttl) {
            (Some(end), _) => format!("If it has not been sent by {end}, it expires."),
            (None, Some(Some(ttl))) => {
                format!(
                    "If it has not been sent within {} after it first could be, it expires.",
                    span(ttl)
                )
            }
            (None, Some(None)) => "It never expires.".to_owned(),
            (None, None) => "It has no expires_at; the daemon's default_ttl applies.".to_owned(),
        });
    }

    /// How many requests go first, and the earliest time that a budget allows.
    fn place(&self) -> Option<String> {
        let ahead = self.ahead?;
        let hold = self
            .holds
            .iter()
            .find(|hold| hold.kind == HoldKind::Budget.as_str());
        let Some(hold) = hold else {
            return (ahead > 0).then(|| format!("{}.", go_first(ahead)));
        };
        let until: Option<UtcMillis> = hold.until.as_ref().and_then(|until| until.parse().ok());
        Some(match (self.rules.budget, until) {
            (Some(budget), Some(until)) => format!(
                "{}; at {} in {} it cannot be sent before {}.",
                go_first(ahead),
                budget.servers,
                span(budget.span),
                plan::earliest_under_budget(budget, until, ahead)
            ),
            _ => format!("{}.", go_first(ahead)),
        })
    }

    fn why_queued(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or("next");
        let after = |prefix| reason.strip_prefix(prefix);
        if let Some(time) = after("not due until ") {
            return format!("It is queued and not due until {time}.");
        }
        if let Some(time) = after("retry at ") {
            return format!("It is queued and will be tried again at {time}.");
        }
        if let Some(id) = after("waits for request ") {
            let state = self
                .after
                .as_ref()
                .map(|after| format!(", which is {}", after.state))
                .unwrap_or_default();
            return format!(
                "It is queued and waits until request {id}{state} has succeeded; if that request ends in another way, this one is cancelled."
            );
        }
        if let Some(id) = after("behind request ") {
            return format!(
                "It is queued behind request {id}, which is for the same server and goes first."
            );
        }
        match after("held: ") {
            // The holds follow, each with its reason.
            Some(_) if !self.holds.is_empty() => "It is queued and held.".to_owned(),
            Some(why) => format!("It is queued and held: {}.", trimmed(why)),
            None => {
                format!(
                    "It is queued and next: it is sent with the next batch of target {}.",
                    self.request.target
                )
            }
        }
    }

    fn last_try(&self) -> String {
        let used = match self.rules.attempts_max {
            Some(max) => format!(
                "{} of {max} attempts used, {} left",
                self.request.attempts,
                i64::from(max).saturating_sub(self.request.attempts).max(0)
            ),
            None => format!(
                "Attempts so far on which the cloud may have acted: {}",
                self.request.attempts
            ),
        };
        match self.attempts.last() {
            Some(last) => format!(
                "{used}; the last try ended as {}.",
                trimmed(&attempt_end(last))
            ),
            None => format!("{used}."),
        }
    }

    fn on_its_way(&self, said: &mut Vec<String>) {
        let Some(batch) = &self.batch else {
            said.push(format!(
                "It is {}, but its batch is not in the file.",
                self.request.state
            ));
            return;
        };
        said.push(match batch.state.parse() {
            Ok(BatchState::Submitting) => format!(
                "Batch {} ({}) is sending it; the call began at {}.",
                batch.id,
                servers(batch),
                batch.intent_at
            ),
            Ok(BatchState::Tracking) => tracking(batch),
            Ok(BatchState::Looking) => looking(batch),
            Ok(BatchState::Done) | Err(_) => {
                format!("Its batch {} is {}.", batch.id, batch.state)
            }
        });
        match (&batch.next_look_at, self.daemon_runs) {
            (_, false) => said.push(format!(
                "No daemon runs on this queue; batch {} waits until one does.",
                batch.id
            )),
            (Some(next), true) => said.push(format!(
                "The next look at the job or the server is due at {next}; looks so far: {}.",
                batch.looks
            )),
            (None, true) => {}
        }
        if let Some(why) = &batch.read_error {
            said.push(format!("The last look failed: {}.", trimmed(why)));
        }
        if self.request.attempts > 1 {
            said.push(self.last_try());
        }
    }

    fn ended(&self, state: RequestState, said: &mut Vec<String>) {
        let request = &self.request;
        let when = request.finished_at.as_deref().unwrap_or("an unknown time");
        said.push(format!(
            "It {} at {when}. {}",
            ending(state),
            self.how_known()
        ));
        match (&request.error_code, &request.error_message) {
            (Some(code), Some(message)) => said.push(format!("{code}: {}.", trimmed(message))),
            (Some(text), None) | (None, Some(text)) => said.push(format!("{}.", trimmed(text))),
            (None, None) => {}
        }
        let again = format!("`poweryard retry {}", request.id);
        said.push(match state {
            RequestState::Failed => format!("It never changes again; to try again, {again}` inserts a new request."),
            RequestState::Unknown => {
                format!("It is never sent again automatically; look at the server, then {again}` inserts a new request if it is still wanted.")
            }
            RequestState::Rejected if request.error_code.as_deref() == Some(OwnCode::Protected.as_str()) => {
                format!("A new request would be rejected, too; first take the server out of `protect` in the config, then run {again} --state {state}`.")
            }
            RequestState::Cancelled | RequestState::Expired | RequestState::Rejected => {
                format!("It never changes again; to try again, {again} --state {state}` inserts a new request.")
            }
            _ => "It never changes again.".to_owned(),
        });
    }

    fn how_known(&self) -> String {
        let job = self
            .batch
            .as_ref()
            .and_then(|batch| batch.job_id.as_deref());
        match self
            .request
            .evidence
            .as_deref()
            .and_then(|word| word.parse().ok())
        {
            Some(Evidence::Job) => match job {
                Some(job) => format!("The cloud's job {job} said so."),
                None => "The cloud's job said so.".to_owned(),
            },
            Some(Evidence::Already) => {
                "The server was already in that state; there was nothing to do.".to_owned()
            }
            Some(Evidence::Refused) => "The cloud refused it for this server alone.".to_owned(),
            Some(Evidence::Observed) => {
                "It was seen in the server's state, or in the list of servers.".to_owned()
            }
            Some(Evidence::None) | None => match self.request.attempts {
                0 => "It was never sent.".to_owned(),
                _ => "There is no evidence of what became of it.".to_owned(),
            },
        }
    }
}

fn ending(state: RequestState) -> &'static str {
    match state {
        RequestState::Succeeded => "succeeded",
        RequestState::Failed => "failed",
        RequestState::Cancelled => "was cancelled",
        RequestState::Expired => "expired",
        RequestState::Rejected => "was rejected by the daemon's own rules",
        RequestState::Unknown => "ended as unknown: nobody can tell whether it happened",
        RequestState::Queued | RequestState::Running => "has not ended",
    }
}

/// How many requests are sent before this one.
fn go_first(ahead: u64) -> String {
    match ahead {
        0 => "No other request of this target and action goes first".to_owned(),
        1 => "1 request of this target and action goes first".to_owned(),
        more => format!("{more} requests of this target and action go first"),
    }
}

/// Such as `1 server`.
fn servers(batch: &BatchRecord) -> String {
    counted(batch.server_count, "server")
}

/// A text that a full stop follows, without its own.
fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['.', ' '])
}

/// Such as `24 h`, which people say of time limits rather than `1day`.
fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds >= 3600 && seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds >= 60 && seconds % 60 == 0 => format!("{} min", seconds / 60),
        _ => humantime::format_duration(span).to_string(),
    }
}

fn tracking(batch: &BatchRecord) -> String {
    let since = batch.submitted_at.as_deref().unwrap_or(&batch.intent_at);
    match &batch.job_id {
        Some(job) => format!(
            "The cloud accepted it at {since} in batch {} ({}); the daemon follows its job {job}.",
            batch.id,
            servers(batch)
        ),
        None => format!(
            "The cloud accepted it at {since} in batch {} ({}); the daemon follows the servers' own states.",
            batch.id,
            servers(batch)
        ),
    }
}

fn looking(batch: &BatchRecord) -> String {
    let cause = match batch
        .look_cause
        .as_deref()
        .and_then(|word| word.parse().ok())
    {
        Some(LookCause::Refused) => {
            "the cloud refused the whole call, and the servers' states show which server caused that"
        }
        Some(LookCause::Lost) => {
            "the call's answer was lost, so it may or may not have been carried out"
        }
        Some(LookCause::Vanished) => "the cloud no longer knows the job",
        Some(LookCause::TimeLimit) => "the job runs longer than job_time_limit",
        Some(LookCause::Gap) => "the job is over, but its answer does not mention all servers",
        Some(LookCause::Busy) => "the job says that a server was busy, perhaps with this reboot",
        None => "the answer does not say what happened to them",
    };
    let until = batch
        .look_until
        .as_ref()
        .map(|until| format!(", until {until} at the latest"))
        .unwrap_or_default();
    format!(
        "The daemon is looking at the servers of its batch {}{until}: {cause}.",
        batch.id
    )
}

fn hold_sentence(hold: &HoldRecord, request: &RequestRecord) -> String {
    let fix = match hold.kind.parse() {
        Ok(HoldKind::Operator) => {
            return format!("{}: `{}` ends it.", held(hold), resume_command(hold));
        }
        Ok(HoldKind::Budget) => {
            "requests are sent automatically as the budget in the config allows"
        }
        Ok(HoldKind::Credentials) => {
            "fix the credentials; the daemon then continues, or tries again when the hold ends"
        }
        Ok(HoldKind::Breaker) => "the daemon tries again automatically",
        Ok(HoldKind::UnknownTarget) => "add the target to the config, or cancel the request",
        Ok(HoldKind::Approval) => {
            return format!(
                "{}: `poweryard approve {} --yes 1` approves this one alone.",
                held(hold),
                request.id
            );
        }
        Ok(HoldKind::Window) => {
            return format!(
                "{}: it is sent automatically when the window opens; `poweryard override {} --reason TEXT` lets it go before.",
                held(hold),
                request.id
            );
        }
        // Its reason says what ends it.
        Ok(HoldKind::Wave) => return format!("{}.", held(hold)),
        Ok(HoldKind::Restored) => {
            "`poweryard db release` releases it, `poweryard db release --drop` cancels it"
        }
        Err(_) => "this version does not know this kind of hold",
    };
    format!("{}: {fix}.", held(hold))
}

fn held(hold: &HoldRecord) -> String {
    let until = hold
        .until
        .as_ref()
        .map(|until| format!(" until {until}"))
        .unwrap_or_default();
    format!(
        "Held by {} since {}{until} ({})",
        hold.kind,
        hold.since,
        trimmed(&hold.reason)
    )
}

fn attempt_end(attempt: &AttemptRecord) -> String {
    let mut end = attempt
        .result
        .clone()
        .unwrap_or_else(|| "not known yet".to_owned());
    for text in [&attempt.error_code, &attempt.error_message]
        .into_iter()
        .flatten()
    {
        end.push_str(&format!(", {text}"));
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: &str) -> Facts {
        let request = RequestRecord {
            id: 17,
            server_id: "server-1".to_owned(),
            action: "stop".to_owned(),
            target: "default".to_owned(),
            state: state.to_owned(),
            ..RequestRecord::default()
        };
        Facts {
            request,
            daemon_runs: true,
            ..Facts::default()
        }
    }

    fn said(facts: &Facts) -> String {
        facts.sentences().join(" ")
    }

    #[test]
    fn a_held_request_says_by_what_and_how_that_ends() {
        let hold = HoldRecord {
            kind: "operator".to_owned(),
            reason: "night".to_owned(),
            ..HoldRecord::default()
        };
        let held = Facts {
            reason: Some("held: night".to_owned()),
            holds: vec![hold],
            ..facts("queued")
        };
        assert_eq!(
            said(&held).matches("night").count(),
            1,
            "the reason once: {}",
            said(&held)
        );
        assert!(
            said(&held).contains("`poweryard resume`"),
            "{}",
            said(&held)
        );
    }

    #[test]
    fn a_reason_is_told_once_and_ends_with_one_full_stop() {
        let hold = |reason: &str| HoldRecord {
            kind: "credentials".to_owned(),
            reason: reason.to_owned(),
            ..HoldRecord::default()
        };
        let holds = vec![hold("the key is refused."), hold("something else.")];
        let reason = Some("held: the key is refused.".to_owned());
        let text = said(&Facts {
            reason,
            holds,
            ..facts("queued")
        });
        assert_eq!(text.matches("the key is refused").count(), 1, "{text}");
        assert_eq!(text.matches("something else").count(), 1, "{text}");
        let mut failed = facts("failed");
        failed.request.error_message = Some("failed to start the BMS.".to_owned());
        for text in [text, said(&failed)] {
            assert!(!text.contains("..") && !text.contains(".)"), "{text}");
        }
    }

    #[test]
    fn under_a_budget_it_tells_its_place_and_the_earliest_time() {
        let hold = HoldRecord {
            kind: "budget".to_owned(),
            reason: "used up".to_owned(),
            until: Some("2026-01-31T01:49:00.000Z".to_owned()),
            ..HoldRecord::default()
        };
        let mut held = Facts {
            reason: Some("held: used up".to_owned()),
            holds: vec![hold],
            ..facts("queued")
        };
        held.ahead = Some(179);
        assert!(
            said(&held).contains("179 requests of this target and action go first."),
            "{}",
            said(&held)
        );
        held.rules.budget = Some(Budget {
            servers: 120,
            span: Duration::from_secs(600),
        });
        assert!(
            said(&held)
                .contains("at 120 in 10 min it cannot be sent before 2026-01-31T01:59:00.000Z."),
            "{}",
            said(&held)
        );
    }

    #[test]
    fn a_sentence_ends_in_one_full_stop_and_spans_are_in_hours() {
        let mut ended = facts("failed");
        ended.request.error_code = Some("BMS.3037".to_owned());
        ended.request.error_message = Some("failed to start the BMS.".to_owned());
        assert!(
            said(&ended).contains("failed to start the BMS. ") && !said(&ended).contains(".."),
            "{}",
            said(&ended)
        );
        let mut queued = facts("queued");
        queued.rules.default_ttl = Some(Some(Duration::from_secs(86_400)));
        assert!(said(&queued).contains("within 24 h"), "{}", said(&queued));
    }

    #[test]
    fn a_protected_server_is_not_to_be_tried_again_as_it_is() {
        let mut rejected = facts("rejected");
        rejected.request.error_code = Some(OwnCode::Protected.into());
        assert!(
            said(&rejected).contains("first take the server out of `protect`"),
            "{}",
            said(&rejected)
        );
    }

    #[test]
    fn without_a_daemon_it_says_so() {
        let alone = Facts {
            daemon_runs: false,
            reason: Some("next".to_owned()),
            ..facts("queued")
        };
        assert!(said(&alone).contains("No daemon runs"), "{}", said(&alone));
    }

    #[test]
    fn a_running_request_names_its_job_and_the_next_look() {
        let batch = BatchRecord {
            id: 4,
            state: "tracking".to_owned(),
            job_id: Some("job-9".to_owned()),
            next_look_at: Some("2026-01-31T22:00:00.000Z".to_owned()),
            ..BatchRecord::default()
        };
        let running = Facts {
            batch: Some(batch),
            ..facts("running")
        };
        assert!(
            said(&running).contains("job-9") && said(&running).contains("2026-01-31T22:00:00.000Z")
        );
    }

    #[test]
    fn attempts_left_are_counted_against_the_config() {
        let mut again = facts("queued");
        again.request.attempts = 1;
        again.rules.attempts_max = Some(3);
        assert!(
            said(&again).contains("1 of 3 attempts used, 2 left"),
            "{}",
            said(&again)
        );
    }

    #[test]
    fn every_ending_says_how_it_is_known() {
        for state in RequestState::ALL.iter().filter(|state| state.is_terminal()) {
            for evidence in Evidence::ALL {
                let mut ended = facts(state.as_str());
                ended.request.evidence = Some(evidence.to_string());
                assert_eq!(ended.sentences().len(), 3, "{state} {evidence}");
            }
        }
    }

    #[test]
    fn a_state_of_a_later_version_is_named() {
        assert!(said(&facts("paused")).contains("paused"));
    }
}
