//! The queue at a glance as JSON, made once for all callers who see the same targets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use serde_json::{Map, Value};

use super::tagged::tag_of;
use crate::model::{TargetName, UtcMillis};
use crate::store::client::{Glance, Reading};

/// The targets that somebody sees; none: all.
pub(super) type Sight = Option<Vec<TargetName>>;

/// A glance as JSON.
#[derive(Debug)]
pub(super) struct View {
    /// The whole of it.
    pub(super) body: Bytes,
    /// Of what does not change by itself.
    pub(super) tag: String,
    /// Its parts, by name.
    parts: Map<String, Value>,
    /// The same, without what changes by itself: the clock.
    still: Map<String, Value>,
}

impl View {
    fn new(glance: &Glance) -> Self {
        let mut still = glance.clone();
        still.as_of = UtcMillis(0);
        for batch in &mut still.batches {
            batch.elapsed_ms = 0;
        }
        let still = object(&still);
        let parts = object(glance);
        Self {
            body: serde_json::to_vec(&parts).unwrap_or_default().into(),
            tag: tag_of(&serde_json::to_vec(&still).unwrap_or_default()),
            parts,
            still,
        }
    }

    /// What is not as it was: the parts that changed, and when they were read. None if nothing
    /// changed.
    pub(super) fn change_since(&self, before: &Self) -> Option<String> {
        let mut change = Map::new();
        for (name, value) in &self.still {
            if before.still.get(name) != Some(value) {
                let value = self.parts.get(name).cloned().unwrap_or_default();
                change.insert(name.clone(), value);
            }
        }
        if change.is_empty() {
            return None;
        }
        let as_of = self.parts.get("as_of").cloned().unwrap_or_default();
        change.insert("as_of".to_owned(), as_of);
        serde_json::to_string(&change).ok()
    }
}

fn object(glance: &Glance) -> Map<String, Value> {
    match serde_json::to_value(glance) {
        Ok(Value::Object(parts)) => parts,
        _ => Map::new(),
    }
}

/// The views of the last reading.
#[derive(Default)]
pub(in crate::web) struct Views(Mutex<Made>);

#[derive(Default)]
struct Made {
    of: Option<Arc<Reading>>,
    views: BTreeMap<Sight, Arc<View>>,
}

impl Views {
    /// The view of this reading for who sees these targets.
    pub(super) fn of(&self, reading: &Arc<Reading>, sight: &Sight) -> Arc<View> {
        {
            let mut made = self.made();
            let is_same = |of: &Arc<Reading>| Arc::ptr_eq(of, reading);
            if !made.of.as_ref().is_some_and(is_same) {
                made.of = Some(Arc::clone(reading));
                made.views.clear();
            }
            if let Some(view) = made.views.get(sight) {
                return Arc::clone(view);
            }
        }
        // Made without the lock: at worst twice.
        let view = Arc::new(View::new(&reading.glance(sight.as_deref())));
        let mut made = self.made();
        if made.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, reading)) {
            made.views.insert(sight.clone(), Arc::clone(&view));
        }
        view
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
