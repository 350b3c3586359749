//! What this process has seen of an open batch's servers, look after look: the only proof that a
//! call was not carried out.
//!
//! Owns rows of looks and what breaks them. It is never stored: nobody looked while no daemon ran,
//! so a new one begins anew. Decides nothing: what a row proves is said in `look` and `refusal`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Rules;
use crate::lifecycle::{BatchNext, Step};
use crate::model::{
    Activity, Batch, Complaint, LookCause, Now, Operation, Power, RequestId, ServerId, Sighting,
};

/// Looks of one row are no further apart than half the settling time, or this if that is more.
const GAP_MIN: Duration = Duration::from_secs(2);
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

/// From its begin to its end a look is a question whose answer shows some moment in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// When it was begun.
    pub began: Now,
    /// When its answer was there.
    pub ended: Now,
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

    /// Takes note of a look that showed `sightings`: goes on with each server's row, or begins it
    /// anew.
    pub fn note_look(
        &mut self,
        batch: &Batch,
        sightings: &HashMap<ServerId, Sighting>,
        look: Look,
        rules: &Rules,
    ) {
        let gap_max = gap_max(rules);
        for member in &batch.members {
            let shown = match sightings.get(&member.server) {
                Some(Sighting::Present(view)) => {
                    Shown::of(view.activity, view.power, view.operation)
                }
                Some(Sighting::Missing) | None => Shown::Unreadable,
            };
            let call_began = self.call_began;
            let row = self.rows.entry(member.request).or_insert(Row {
                last: call_began,
                since_call: call_began.is_some(),
                idle: None,
                saw_power_change: false,
            });
            row.note(shown, look, gap_max);
        }
    }

    /// Takes note of a look that showed nothing at all.
    pub fn note_failed_look(&mut self, batch: &Batch) {
        for member in &batch.members {
            let broken = Row {
                last: None,
                since_call: false,
                idle: None,
                saw_power_change: false,
            };
            self.rows.insert(member.request, broken);
        }
    }

    /// For how long a server was idle and the same in every look, without a gap; none: it was not
    /// in the last one.
    pub(super) fn idle_for(&self, request: RequestId) -> Option<Duration> {
        let row = self.rows.get(&request)?;
        Some(row.last?.steady.since(row.idle?.since.steady))
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
enum Shown {
    Unreadable,
    PowerChange,
    Rebooting,
    Idle(Power, Option<Operation>),
}

impl Shown {
    fn of(activity: Activity, power: Power, operation: Option<Operation>) -> Self {
        match activity {
            Activity::PoweringOn | Activity::PoweringOff => Self::PowerChange,
            Activity::Rebooting => Self::Rebooting,
            Activity::Idle if power != Power::Unclear => Self::Idle(power, operation),
            Activity::Idle | Activity::Other => Self::Unreadable,
        }
    }
}

impl Row {
    fn note(&mut self, shown: Shown, look: Look, gap_max: Duration) {
        if !self
            .last
            .is_some_and(|last| is_joined(last, look.ended, gap_max))
        {
            self.since_call = false;
            self.idle = None;
            self.saw_power_change = false;
        }
        self.last = Some(look.began);
        match shown {
            Shown::Unreadable => {
                *self = Self {
                    last: None,
                    since_call: false,
                    idle: None,
                    saw_power_change: false,
                };
            }
            Shown::PowerChange => {
                self.idle = None;
                self.saw_power_change = true;
            }
            Shown::Rebooting => self.idle = None,
            Shown::Idle(power, operation) => {
                let same = |idle: &Idle| idle.power == power && idle.operation == operation;
                self.idle = self.idle.filter(same).or(Some(Idle {
                    since: look.ended,
                    power,
                    operation,
                }));
            }
        }
    }
}

fn gap_max(rules: &Rules) -> Duration {
    (rules.settle_time / 2).max(GAP_MIN)
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
    use crate::model::{BatchState, PowerAction, ServerView};

    fn look(seconds: u64) -> Look {
        Look {
            began: at(seconds),
            ended: at(seconds),
        }
    }

    fn watched(looks: &[(Look, Sighting)]) -> Watch {
        let batch = batch(PowerAction::Reboot, BatchState::Looking, 1);
        let mut watch = Watch::of_call(at(0));
        for (look, sighting) in looks {
            let sightings = HashMap::from([(batch.members[0].server.clone(), sighting.clone())]);
            watch.note_look(&batch, &sightings, *look, &rules());
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
        let first = Look {
            began: at(1),
            ended: at(5),
        };
        let last = Look {
            began: at(20),
            ended: at(31),
        };
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
        let slow = Look {
            began: at(20),
            ended: at(32),
        };
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
            let set = Look {
                began: later,
                ended: later,
            };
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
        let sightings = HashMap::from([(batch.members[0].server.clone(), idle())]);
        watch.note_look(&batch, &sightings, look(1), &rules());
        assert_eq!(row(&watch), (Some(0), false));
    }
}
