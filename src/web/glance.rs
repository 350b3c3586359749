//! What is seen at a glance, read once for everybody who asks at the same time.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::shared_read::SharedRead;
use crate::model::UtcMillis;
use crate::store::client::{Glancer, Reading};

/// The last reading, and what has been counted for the next.
pub(super) struct SharedGlance {
    glancer: Arc<Mutex<Glancer>>,
    last: SharedRead<Reading>,
}

impl SharedGlance {
    pub(super) fn new(database: &Path) -> Self {
        Self {
            glancer: Arc::new(Mutex::new(Glancer::new(database))),
            last: SharedRead::default(),
        }
    }

    /// A reading that is as new as `SharedRead` promises.
    ///
    /// # Errors
    /// A sentence: the queue could not be read, or not in time.
    pub(super) async fn get(&self) -> Result<Arc<Reading>, String> {
        let glancer = Arc::clone(&self.glancer);
        let read = async move { glancer.lock_owned().await.read(now()).await };
        self.last.get(read).await
    }
}

/// The time of day.
pub(super) fn now() -> UtcMillis {
    UtcMillis(jiff::Timestamp::now().as_millisecond())
}
