//! Whether the time of day can be believed. A machine without a battery begins in 1970 or at the
//! day its system was built, until a time signal comes; nothing is sent and nothing is dated by
//! such a clock.

use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::systemd;
use crate::model::{Now, Steady, UtcMillis};
use crate::store::client::{Access, QueueClient};
use crate::store::{QueueLock, StoreError};

/// 2024-01-01: no machine that runs this is from before.
const EARLIEST: UtcMillis = UtcMillis(1_704_067_200_000);
/// 2099-01-01: the queue stores times of this century only.
const LATEST: UtcMillis = UtcMillis(4_070_908_800_000);
/// A clock may be set back by as much as this between two runs; more is a clock that has lost its
/// time.
const SET_BACK: Duration = Duration::from_secs(24 * 3600);
/// After this a clock that is only behind the last batch is believed: then it was wrong when that
/// batch was made.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// This moment. Only the edges ask; decisions take it as an argument.
///
/// The steady clock is that of the kernel since its boot, which goes on while the machine is
/// suspended. A time of day outside this century is given as the nearest that the queue can store.
pub fn now() -> Now {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let utc = UtcMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let booted = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(booted.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(booted.tv_nsec).unwrap_or(0);
    Now {
        utc: utc.storable(),
        steady: Steady(Duration::new(seconds, nanoseconds)),
    }
}

/// Why no clock is right that says `now`, if so.
pub fn beyond(now: UtcMillis) -> Option<String> {
    let what = match now {
        early if early < EARLIEST => "before 2024",
        late if late >= LATEST => "after 2098",
        _possible => return None,
    };
    Some(format!(
        "this machine's clock is wrong: it is set to a time {what}; nothing is sent until it is corrected"
    ))
}

/// Why the clock should not be believed at a start, when the last batch was made at `last_intent`
/// and we have `waited` already.
fn doubt(now: UtcMillis, last_intent: Option<UtcMillis>, waited: Duration) -> Option<String> {
    let behind = last_intent
        .filter(|last| last.since(now) > SET_BACK && waited < PATIENCE && beyond(*last).is_none());
    beyond(now).or_else(|| {
        behind.map(|last| {
            format!("this machine's clock says {now}, but the last batch was sent at {last}; nothing is sent until the clock is corrected, for 10 minutes at most")
        })
    })
}

/// Waits at the start until the clock can be believed. False if `stop` resolved before.
pub(super) async fn wait(
    path: &Path,
    lock: &mut QueueLock,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> bool {
    // What cannot be read now is told by the start itself.
    let last_intent = last_intent(path).await.unwrap_or_default();
    let begun = now().steady;
    let mut said = false;
    while let Some(doubt) = doubt(now().utc, last_intent, now().steady.since(begun)) {
        if !said {
            warn!("{doubt}");
            lock.say(Some(&doubt));
            said = true;
        }
        systemd::status(&doubt);
        systemd::extend();
        tokio::select! {
            () = &mut stop => return false,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
    if said {
        info!("this machine's clock looks right again");
        lock.say(None);
    }
    true
}

async fn last_intent(path: &Path) -> Result<Option<UtcMillis>, StoreError> {
    let mut client = QueueClient::open(path, Access::Read).await?;
    let last = client.last_intent().await;
    client.close().await?;
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const TODAY: UtcMillis = UtcMillis(1_800_000_000_000);

    #[test]
    fn a_clock_before_2024_or_after_2098_is_not_believed() {
        for wrong in [
            UtcMillis(0),
            UtcMillis(EARLIEST.0 - 1),
            LATEST,
            UtcMillis(4_133_980_800_000),
            UtcMillis(i64::MAX),
        ] {
            assert!(beyond(wrong.storable()).is_some(), "{wrong:?}");
            assert!(
                doubt(wrong.storable(), None, PATIENCE).is_some(),
                "{wrong:?}"
            );
        }
        for right in [EARLIEST, TODAY, UtcMillis(LATEST.0 - 1)] {
            assert_eq!(beyond(right), None);
        }
    }

    #[test]
    fn a_clock_far_behind_the_last_batch_is_believed_after_a_while() {
        let before = TODAY.before(25 * HOUR);
        assert!(doubt(before, Some(TODAY), Duration::ZERO).is_some());
        assert_eq!(doubt(before, Some(TODAY), PATIENCE), None);
        let within_a_day = TODAY.before(23 * HOUR);
        assert_eq!(doubt(within_a_day, Some(TODAY), Duration::ZERO), None);
        assert_eq!(
            doubt(TODAY.before(HOUR), Some(TODAY), Duration::ZERO),
            None,
            "that is a correction"
        );
        assert_eq!(
            doubt(TODAY, Some(LATEST), Duration::ZERO),
            None,
            "no batch was sent then"
        );
    }
}
