//! One reader of the queue at a time; other callers share its result. Knows nothing of what is
//! read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// A value that is younger than this is not read again.
const FRESH: Duration = Duration::from_secs(1);
/// Nor one that is younger than so many times as long as it took to read: whatever is asked for, and
/// by how many, reading takes a tenth of the time at most.
const REST: u32 = 10;
/// However long it took, after this it is read again.
const FRESH_MAX: Duration = Duration::from_secs(15);
/// How long an answer waits for it.
const PATIENCE: Duration = Duration::from_secs(8);

/// The last value, and the right to read the next.
pub(super) struct SharedRead<T> {
    last: Arc<Mutex<Option<LastRead<T>>>>,
    patience: Duration,
}

struct LastRead<T> {
    at: Instant,
    took: Duration,
    value: Arc<T>,
}

impl<T> LastRead<T> {
    fn is_fresh(&self) -> bool {
        let fresh = self.took.saturating_mul(REST).clamp(FRESH, FRESH_MAX);
        self.at.elapsed() < fresh
    }
}

impl<T> Default for SharedRead<T> {
    fn default() -> Self {
        Self {
            last: Arc::default(),
            patience: PATIENCE,
        }
    }
}

impl<T: Send + Sync + 'static> SharedRead<T> {
    /// The value, not older than a second, or than ten times as long as it takes to read. `read` makes a new one in a task of its own, which
    /// continues if the caller goes away.
    ///
    /// # Errors
    /// A sentence: it could not be read, or not within 8 s.
    pub(super) async fn get<E: std::fmt::Display>(
        &self,
        read: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<Arc<T>, String> {
        let last = Arc::clone(&self.last);
        let found = async {
            let mut last = last.lock_owned().await;
            if let Some(found) = last.as_ref().filter(|found| found.is_fresh()) {
                return Ok(Arc::clone(&found.value));
            }
            let reading = tokio::spawn(async move {
                let began = Instant::now();
                let value = Arc::new(read.await.map_err(|error| error.to_string())?);
                *last = Some(LastRead {
                    at: Instant::now(),
                    took: began.elapsed(),
                    value: Arc::clone(&value),
                });
                Ok(value)
            });
            reading.await.unwrap_or_else(|error| Err(error.to_string()))
        };
        let late = |_| {
            Err(format!(
                "the queue could not be read within {:?}",
                self.patience
            ))
        };
        tokio::time::timeout(self.patience, found)
            .await
            .unwrap_or_else(late)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_hundred_who_ask_at_once_cost_one_reading() {
        let shared = Arc::new(SharedRead::default());
        let readings = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let shared = Arc::clone(&shared);
            let readings = Arc::clone(&readings);
            tokio::spawn(async move {
                let read = async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok::<_, String>(readings.fetch_add(1, Ordering::SeqCst))
                };
                shared.get(read).await
            })
        };
        for asked in (0..100).map(|_| ask()).collect::<Vec<_>>() {
            assert_eq!(asked.await.expect("asked"), Ok(Arc::new(0)));
        }
    }

    #[tokio::test]
    async fn a_reading_that_hangs_is_not_begun_again_by_those_who_give_up() {
        let shared = SharedRead {
            patience: Duration::from_millis(20),
            ..SharedRead::<()>::default()
        };
        let begun = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let begun = Arc::clone(&begun);
            let read = async move {
                begun.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<(), String>>().await
            };
            assert!(
                shared
                    .get(read)
                    .await
                    .is_err_and(|why| why.contains("20ms"))
            );
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }
}
