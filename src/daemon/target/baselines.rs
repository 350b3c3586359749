//! What servers looked like just before their requests leave, for services without jobs: their last
//! operation stays in sight for ever, so only a change tells.
//!
//! Owns the requests that were looked at and not yet claimed, a target's at a time. Reads no server
//! and writes no row.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::cloud::Observed;
use crate::model::{
    Activity, Baseline, Head, Lane, LaneKind, PowerAction, RequestId, Sighting, UtcMillis,
};
use crate::pace;

/// A server that was read longer ago is read again: somebody else may have switched it since.
const AGE_MAX: Duration = Duration::from_secs(60);
/// A server that no look has reached for this long goes without having been read.
const UNREAD_MAX: Duration = Duration::from_secs(5 * 60);

const BUSY: &str = "the server is busy with another operation";
const UNREAD: &str = "the server's state could not be read yet; it is needed before the call";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Baselines {
    read_at: Option<UtcMillis>,
    lanes: BTreeMap<(PowerAction, LaneKind), VecDeque<(RequestId, Baseline)>>,
}

/// Requests whose servers were looked at: which may leave, and which must wait until when.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) baselines: Baselines,
    /// Until when each one waits, and why.
    pub(super) put_off: Vec<(RequestId, UtcMillis, &'static str)>,
}

impl Baselines {
    /// True if the next requests of this lane are known well enough to be claimed.
    pub(super) fn cover(&self, lane: &Lane, now: UtcMillis) -> bool {
        let fresh = self
            .read_at
            .is_some_and(|read_at| read_at <= now && now.since(read_at) < AGE_MAX);
        let heads = self.lanes.get(&(lane.action, lane.kind));
        fresh
            && heads.is_some_and(|heads| heads.iter().any(|(request, _)| request.0 == lane.head_id))
    }

    /// The clock was moved by this many milliseconds.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        self.read_at = self.read_at.map(|at| at.moved(by_ms));
    }

    /// The lane's next requests, at most `most`.
    pub(super) fn take(&mut self, lane: &Lane, most: u32) -> Vec<(RequestId, Baseline)> {
        let Some(heads) = self.lanes.get_mut(&(lane.action, lane.kind)) else {
            return Vec::new();
        };
        // Those before the head have left the lane in another way, by a producer's cancel for
        // example.
        while heads
            .front()
            .is_some_and(|(request, _)| request.0 != lane.head_id)
        {
            heads.pop_front();
        }
        heads.drain(..heads.len().min(most as usize)).collect()
    }

    /// Sorts `heads` by what their servers looked like at some time since `asked_at`.
    ///
    /// One that cannot be read may leave anyway: then only what is seen later counts. If the look
    /// was cut short before its turn came, it waits for the next one, but not for ever. A server in
    /// a transition waits, since what would be seen afterwards could be the end of that one; the
    /// longer it has been so, the longer.
    pub(super) fn sort(
        heads: &[Head],
        observed: &Observed,
        asked_at: UtcMillis,
        now: UtcMillis,
    ) -> Sorted {
        let mut sorted = Sorted {
            baselines: Self {
                read_at: Some(asked_at),
                ..Self::default()
            },
            ..Sorted::default()
        };
        for head in heads {
            let sighting = observed.sightings.get(&head.server);
            let waited = head
                .eligible_at
                .map_or(Duration::ZERO, |since| now.since(since));
            let unread = sighting.is_none() && observed.ended_by.is_some() && waited < UNREAD_MAX;
            if unread || sighting.is_some_and(is_busy) {
                let why = if unread { UNREAD } else { BUSY };
                sorted.put_off.push((
                    head.request,
                    now + pace::busy_wait(waited, head.request.0 as u64),
                    why,
                ));
            } else {
                let lane = sorted
                    .baselines
                    .lanes
                    .entry((head.action, head.kind))
                    .or_default();
                lane.push_back((head.request, sighting.map_or(Baseline::Unknown, baseline)));
            }
        }
        sorted
    }
}

fn is_busy(sighting: &Sighting) -> bool {
    match sighting {
        Sighting::Missing => false,
        Sighting::Present(view) => {
            matches!(
                view.activity,
                Activity::PoweringOn | Activity::PoweringOff | Activity::Rebooting
            )
        }
    }
}

/// `Other` goes on: an unknown word tells neither that the server is busy nor what its last
/// operation was.
fn baseline(sighting: &Sighting) -> Baseline {
    match sighting {
        Sighting::Missing => Baseline::Known(None),
        Sighting::Present(view) if view.activity == Activity::Idle => {
            Baseline::Known(view.operation)
        }
        Sighting::Present(_) => Baseline::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        CallError, Fault, JobStatus, Operation, Power, ServerId, ServerView, TargetName,
    };

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);
    const REBOOTED: Option<Operation> = Some(Operation {
        action: PowerAction::Reboot,
        status: JobStatus::Succeeded,
    });

    fn kind(group: i64) -> LaneKind {
        LaneKind {
            group,
            ..LaneKind::default()
        }
    }

    fn head(id: i64, group: i64) -> Head {
        let (request, server) = (RequestId(id), ServerId(format!("server-{id}")));
        Head {
            request,
            server,
            action: PowerAction::Reboot,
            kind: kind(group),
            eligible_at: Some(NOW),
        }
    }

    fn lane(head_id: i64, group: i64) -> Lane {
        Lane {
            target: TargetName("default".into()),
            action: PowerAction::Reboot,
            kind: kind(group),
            head_priority: 0,
            head_id,
            ready: 1,
            oldest_eligible_at: NOW,
        }
    }

    fn seen(activity: Activity) -> Sighting {
        Sighting::Present(ServerView {
            operation: REBOOTED,
            ..ServerView::of(Power::On, activity)
        })
    }

    fn sort(heads: &[Head], activities: &[Activity]) -> Sorted {
        let servers = heads.iter().map(|head| head.server.clone());
        let sightings = servers
            .zip(activities.iter().map(|activity| seen(*activity)))
            .collect();
        Baselines::sort(
            heads,
            &Observed {
                sightings,
                ..Observed::default()
            },
            NOW,
            NOW,
        )
    }

    #[test]
    fn a_server_in_a_transition_waits_and_the_others_go() {
        let heads = [head(1, 0), head(2, 0), head(3, 4)];
        let mut sorted = sort(
            &heads,
            &[Activity::Rebooting, Activity::Idle, Activity::Other],
        );
        assert_eq!(sorted.put_off.len(), 1);
        assert!(sorted.put_off[0].0 == RequestId(1) && sorted.put_off[0].1 > NOW);
        assert_eq!(
            sorted.baselines.take(&lane(2, 0), 50),
            [(RequestId(2), Baseline::Known(REBOOTED))]
        );
        assert_eq!(
            sorted.baselines.take(&lane(3, 4), 50),
            [(RequestId(3), Baseline::Unknown)]
        );
    }

    #[test]
    fn a_server_that_a_look_did_not_reach_waits_for_the_next_but_not_for_ever() {
        let throttled = CallError {
            fault: Fault::Throttled {
                retry_after: None,
                limit: None,
            },
            status: Some(429),
            code: String::new(),
            message: String::new(),
            request_id: None,
            retry_after: None,
        };
        let cut_short = Observed {
            ended_by: Some(throttled),
            ..Observed::default()
        };
        let sorted = Baselines::sort(&[head(1, 0)], &cut_short, NOW, NOW);
        assert!(matches!(sorted.put_off[..], [(RequestId(1), until, UNREAD)] if until > NOW));
        for (observed, now) in [(cut_short, NOW + UNREAD_MAX), (Observed::default(), NOW)] {
            let mut sorted = Baselines::sort(&[head(1, 0)], &observed, now, now);
            assert_eq!(
                sorted.baselines.take(&lane(1, 0), 50),
                [(RequestId(1), Baseline::Unknown)]
            );
        }
    }

    #[test]
    fn what_was_read_covers_a_lane_while_its_head_is_among_it_and_it_is_fresh() {
        let mut baselines = sort(&[head(1, 0), head(2, 0)], &[Activity::Idle; 2]).baselines;
        assert!(baselines.cover(&lane(1, 0), NOW) && baselines.cover(&lane(2, 0), NOW));
        assert!(
            !baselines.cover(&lane(3, 0), NOW),
            "one that came in since goes first, and nobody has looked at it"
        );
        assert!(!baselines.cover(&lane(1, 0), NOW + AGE_MAX));
        assert!(
            !baselines.cover(&lane(1, 0), NOW.before(AGE_MAX)),
            "the clock has stepped back"
        );
        assert_eq!(
            baselines.take(&lane(2, 0), 50).len(),
            1,
            "the first one was cancelled meanwhile"
        );
        assert!(!baselines.cover(&lane(1, 0), NOW));
    }

    #[test]
    fn a_clock_that_is_set_makes_no_look_older() {
        let mut baselines = sort(&[head(1, 0)], &[Activity::Idle]).baselines;
        let later = NOW.moved(3_600_000);
        assert!(!baselines.cover(&lane(1, 0), later));
        baselines.move_times(3_600_000);
        assert!(baselines.cover(&lane(1, 0), later));
    }
}
