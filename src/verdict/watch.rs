//! What this process has seen of an open batch's servers, look after look: the only proof that a
//! call was not carried out.
//!
//! Owns rows of looks and what breaks them. It is never stored: nobody looked while no daemon ran,
//! so each process begins a new one. Decides nothing: what a row proves is said in `look` and
//! `refusal`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::lifecycle::{BatchNext, Step};
use crate::model::{
    Activity, Batch, Complaint, LookCause, Now, Operation, Power, RequestId, ServerId, ServerView,
    Sighting,
};
use crate::pace;

/// Both clocks agree to this between two looks, or one was set, or the machine was paused.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(2);

/// The looks of this process at one open batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// When its call began; none if another process made it.
    call_began: Option<Now>,
    /// What this process was told of the call.
    answer: Option<CallAnswer>,
    /// Reboots whose own task ended with "the server is busy", and in which words.
    busy: BTreeMap<RequestId, Complaint>,
    rows: BTreeMap<RequestId, Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallAnswer {
    Refused,
    Lost,
}

/// One look at the servers of a batch: a question whose answer shows some moment between its begin
/// and its end.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// When it was begun.
    pub began: Now,
    /// When its answer was there.
    pub ended: Now,
    /// What it showed; servers that could not be read are left out.
    pub sightings: &'a HashMap<ServerId, Sighting>,
}

/// Looks at one server without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// When the last look of the row was begun; none: the row is broken.
    last: Option<Now>,
    /// No look has failed and no gap was too long since the call began.
    since_call: bool,
    /// Idle in all looks since the end of this one, and always the same.
    idle: Option<Idle>,
    /// Seen powering on or off.
    saw_power_change: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Idle {
    since: Now,
    power: Power,
    operation: Option<Operation>,
}

impl Watch {
    /// The watch over a batch whose call begins now.
    pub fn of_call(began: Now) -> Self {
        Self {
            call_began: Some(began),
            ..Self::default()
        }
    }

    /// Takes note of what was decided after an answer: a call that counts as lost stays lost.
    pub fn note_step(&mut self, step: &Step) {
        if let BatchNext::Look { cause, .. } = step.batch {
            match cause {
                LookCause::Lost => self.answer = Some(CallAnswer::Lost),
                LookCause::Refused => self.answer = Some(CallAnswer::Refused),
                LookCause::Vanished | LookCause::TimeLimit | LookCause::Gap | LookCause::Busy => {}
            }
        }
    }

    /// Takes note of reboots that their own tasks say could not be done because the server was
    /// busy.
    pub fn note_busy(&mut self, busy: BTreeMap<RequestId, Complaint>) {
        self.busy.extend(busy);
    }

    /// Takes note of a look: continues each server's row, or begins it anew. `settle_time` is that
    /// of the rules; it decides how long a gap in a row may be.
    pub fn note_look(&mut self, batch: &Batch, look: Look<'_>, settle_time: Duration) {
        let gap_max = pace::proof_gap_max(settle_time);
        let first = Row::since_call(self.call_began);
        for member in &batch.members {
            let sign = match look.sightings.get(&member.server) {
                Some(Sighting::Present(view)) => Sign::of(view),
                Some(Sighting::Missing) | None => Sign::Unreadable,
            };
            let row = self.rows.entry(member.request).or_insert(first.clone());
            row.note(sign, look, gap_max);
        }
    }

    /// Takes note of a look that showed nothing at all.
    pub fn note_failed_look(&mut self, batch: &Batch) {
        for member in &batch.members {
            self.rows.insert(member.request, Row::broken());
        }
    }

    /// For how long a server was idle and the same in every look, without a gap; none: it was not
    /// in the last one.
    pub(super) fn idle_for(&self, request: RequestId) -> Option<Duration> {
        let row = self.rows.get(&request)?;
        Some(row.last?.steady.since(row.idle?.since.steady))
    }

    /// True if a server that is idle shows a reboot as its last operation.
    pub(super) fn shows_reboot(&self, request: RequestId) -> bool {
        let idle = self.rows.get(&request).and_then(|row| row.idle);
        idle.and_then(|idle| idle.operation)
            .is_some_and(|operation| operation.action.leaves_no_mark())
    }

    /// True if every moment since the call began lies in an unbroken row of looks.
    pub(super) fn covers_call(&self, request: RequestId) -> bool {
        self.rows.get(&request).is_some_and(|row| row.since_call)
    }

    /// True if a server was seen powering on or off in the present row.
    pub(super) fn saw_power_change(&self, request: RequestId) -> bool {
        self.rows
            .get(&request)
            .is_some_and(|row| row.saw_power_change)
    }

    /// The words with which its own task called a server busy.
    pub(super) fn busy(&self, request: RequestId) -> Option<&Complaint> {
        self.busy.get(&request)
    }

    /// True if some server was called busy by its own task.
    pub(super) fn knows_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// False if this process knows better than the queue that the call was refused: it saw the
    /// answer lost.
    pub(super) fn may_have_been_refused(&self) -> bool {
        self.answer != Some(CallAnswer::Lost)
    }
}

/// What one look tells of one server's row.
enum Sign {
    Unreadable,
    PowerChange,
    Rebooting,
    Idle(Power, Option<Operation>),
}

impl Sign {
    fn of(view: &ServerView) -> Self {
        match view.activity {
            Activity::PoweringOn | Activity::PoweringOff => Self::PowerChange,
            Activity::Rebooting => Self::Rebooting,
            Activity::Idle if view.power != Power::Unclear => {
                Self::Idle(view.power, view.operation)
            }
            Activity::Idle | Activity::Other => Self::Unreadable,
        }
    }
}

impl Row {
    /// A row that no look has joined yet. The begin of the call counts as its first look, if this
    /// process made the call.
    fn since_call(began: Option<Now>) -> Self {
        Self {
            last: began,
            since_call: began.is_some(),
            ..Self::broken()
        }
    }

    fn broken() -> Self {
        Self {
            last: None,
            since_call: false,
            idle: None,
            saw_power_change: false,
        }
    }

    fn note(&mut self, sign: Sign, look: Look<'_>, gap_max: Duration) {
        let continues = self
            .last
            .is_some_and(|last| is_joined(last, look.ended, gap_max));
        if !continues {
            *self = Self::broken();
        }
        self.last = Some(look.began);
        match sign {
            Sign::Unreadable => *self = Self::broken(),
            Sign::PowerChange => {
                self.idle = None;
                self.saw_power_change = true;
            }
            Sign::Rebooting => self.idle = None,
            Sign::Idle(power, operation) => self.note_idle(Idle {
                since: look.ended,
                power,
                operation,
            }),
        }
    }

    /// Idleness begins anew with `idle` if it differs from what was seen before.
    fn note_idle(&mut self, idle: Idle) {
        let is_the_same = self
            .idle
            .is_some_and(|before| before.power == idle.power && before.operation == idle.operation);
        if !is_the_same {
            self.idle = Some(idle);
        }
    }
}

/// True if no more than `gap_max` lies between the two on the steady clock, and the time of day
/// agrees.
fn is_joined(earlier: Now, later: Now, gap_max: Duration) -> bool {
    let steady = later.steady.since(earlier.steady);
    let by_day = i128::from(later.utc.0) - i128::from(earlier.utc.0);
    let apart = by_day.abs_diff(i128::try_from(steady.as_millis()).unwrap_or(i128::MAX));
    steady <= gap_max && apart <= CLOCKS_APART_MAX.as_millis()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::{BatchState, PowerAction};

    /// When a look was begun, and when its answer was there.
    type Times = (Now, Now);

    fn look(seconds: u64) -> Times {
        (at(seconds), at(seconds))
    }

    fn note(watch: &mut Watch, batch: &Batch, (began, ended): Times, sighting: &Sighting) {
        let sightings = HashMap::from([(batch.members[0].server.clone(), sighting.clone())]);
        let look = Look {
            began,
            ended,
            sightings: &sightings,
        };
        watch.note_look(batch, look, rules().settle_time);
    }

    fn watched(looks: &[(Times, Sighting)]) -> Watch {
        let batch = batch(PowerAction::Reboot, BatchState::Looking, 1);
        let mut watch = Watch::of_call(at(0));
        for (look, sighting) in looks {
            note(&mut watch, &batch, *look, sighting);
        }
        watch
    }

    fn shown(power: Power, activity: Activity) -> Sighting {
        Sighting::Present(ServerView::of(power, activity))
    }

    fn idle() -> Sighting {
        shown(Power::On, Activity::Idle)
    }

    fn row(watch: &Watch) -> (Option<u64>, bool) {
        (
            watch.idle_for(RequestId(1)).map(|idle| idle.as_secs()),
            watch.covers_call(RequestId(1)),
        )
    }

    #[test]
    fn idleness_counts_from_the_end_of_the_first_look_to_the_last_question() {
        let first = (at(1), at(5));
        let last = (at(20), at(31));
        assert_eq!(
            row(&watched(&[(first, idle()), (last, idle())])),
            (Some(15), true)
        );
    }

    #[test]
    fn a_gap_of_more_than_half_the_settling_time_breaks_a_row() {
        let looks = [
            (look(1), idle()),
            (look(31), idle()),
            (look(62), idle()),
            (look(72), idle()),
        ];
        assert_eq!(row(&watched(&looks[..2])), (Some(30), true));
        assert_eq!(row(&watched(&looks)), (Some(10), false));
        let slow = (at(20), at(32));
        assert_eq!(
            row(&watched(&[(look(1), idle()), (slow, idle())])),
            (Some(0), false)
        );
    }

    #[test]
    fn a_row_that_begins_long_after_the_call_does_not_cover_it() {
        assert_eq!(
            row(&watched(&[(look(31), idle()), (look(40), idle())])),
            (Some(9), false)
        );
    }

    #[test]
    fn what_cannot_be_read_breaks_a_row() {
        for odd in [
            shown(Power::Unclear, Activity::Idle),
            shown(Power::On, Activity::Other),
            Sighting::Missing,
        ] {
            let looks = [
                (look(1), idle()),
                (look(2), odd),
                (look(3), idle()),
                (look(9), idle()),
            ];
            assert_eq!(row(&watched(&looks)), (Some(6), false));
        }
        let batch = batch(PowerAction::Reboot, BatchState::Looking, 1);
        let mut watch = watched(&[(look(1), idle())]);
        watch.note_failed_look(&batch);
        assert_eq!(row(&watch), (None, false));
    }

    #[test]
    fn a_transition_or_a_change_begins_idleness_anew_and_keeps_the_row() {
        for other in [
            shown(Power::On, Activity::PoweringOff),
            shown(Power::Off, Activity::Idle),
        ] {
            let looks = [
                (look(1), idle()),
                (look(9), other),
                (look(20), idle()),
                (look(25), idle()),
            ];
            assert_eq!(row(&watched(&looks)), (Some(5), true));
        }
    }

    #[test]
    fn a_clock_that_was_set_either_way_breaks_a_row() {
        for step_ms in [3_600_000, -3_600_000, 2_500] {
            let mut later = at(10);
            later.utc.0 += step_ms;
            let set = (later, later);
            assert_eq!(
                row(&watched(&[(look(1), idle()), (set, idle())])),
                (Some(0), false)
            );
        }
    }

    #[test]
    fn another_process_has_no_row_that_covers_the_call() {
        let batch = batch(PowerAction::Reboot, BatchState::Looking, 1);
        let mut watch = Watch::default();
        note(&mut watch, &batch, look(1), &idle());
        assert_eq!(row(&watch), (Some(0), false));
    }
}
