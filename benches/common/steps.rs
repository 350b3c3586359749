//! The steps of one batch, as the dispatcher has the store take them.

use std::collections::BTreeSet;
use std::time::Duration;

use poweryard::lifecycle::{BatchNext, Event, Outcome, Return, Step};
use poweryard::model::{
    AttemptResult, Batch, Evidence, JobId, Lane, Origin, Service, TargetName, UtcMillis,
};
use poweryard::store::{Claim, Snapshot, SnapshotQuery, Store, Which};

/// Requests in a batch.
pub(crate) const BATCH: u32 = 1000;
const BUSY_FOR: Duration = Duration::from_secs(3600);

/// The lane of the default target that would be claimed next.
pub(crate) async fn first_lane(store: &Store) -> Option<Lane> {
    let target = TargetName("default".into());
    let seen = look(store, &[(target, BATCH)]).await;
    seen.lanes.into_iter().find(|lane| lane.kind.group == 0)
}

/// What a round reads.
pub(crate) async fn look(store: &Store, targets: &[(TargetName, u32)]) -> Snapshot {
    let asked = SnapshotQuery {
        default_ttl: None,
        targets,
        except: &BTreeSet::new(),
    };
    store.peek(&asked, UtcMillis(0)).await.expect("readable")
}

/// A batch from the head of this lane.
pub(crate) async fn claim(store: &Store, lane: &Lane, now: UtcMillis) -> Option<Batch> {
    let origin = Origin {
        service: Service::Bms,
        endpoint: "http://127.0.0.1:1".into(),
        project_id: "p".into(),
    };
    let claim = Claim {
        lane,
        origin: &origin,
        which: Which::First(BATCH),
        barred: &[],
        guard: None,
        now,
    };
    store.claim(&claim).await.expect("claimed")
}

/// The cloud has taken the call.
pub(crate) async fn accept(store: &Store, batch: &Batch, now: UtcMillis) {
    let next = BatchNext::Track {
        job: Some(JobId("job".into())),
        next_look_at: now,
    };
    record(store, batch, next, None, now).await;
}

/// The batch as it is in the queue.
pub(crate) async fn load(store: &Store, batch: &Batch) -> Batch {
    let found = store.load_batch(batch.id).await.expect("readable");
    found.expect("it is open").0
}

/// All of its requests have succeeded.
pub(crate) async fn end(store: &Store, batch: &Batch, now: UtcMillis) {
    let ended = Event::Ended(Outcome::succeeded(Evidence::Job, ""));
    record(store, batch, BatchNext::Done, Some(ended), now).await;
}

/// All of its servers were busy.
pub(crate) async fn give_back(store: &Store, batch: &Batch, now: UtcMillis) {
    let returned = Event::Returned(Return {
        retry_at: Some(now + BUSY_FOR),
        group: Some(1),
        result: AttemptResult::Busy,
        code: "BMS.0028".into(),
        message: "the server is busy".into(),
    });
    record(store, batch, BatchNext::Done, Some(returned), now).await;
}

async fn record(
    store: &Store,
    batch: &Batch,
    next: BatchNext,
    event: Option<Event>,
    now: UtcMillis,
) {
    let mut moves = Vec::new();
    if let Some(event) = event {
        for member in &batch.members {
            moves.push((member.request, event.clone()));
        }
    }
    let step = Step {
        batch: next,
        moves,
        seen_moving: Vec::new(),
        complaint: None,
        job_ms: None,
        read_error: None,
    };
    store.record(batch, &step, now).await.expect("stored");
}
