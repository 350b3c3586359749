//! Windows and freezes: outside of them, a hold for each target and action. It ends by the clock
//! alone, and no row is moved for it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::holds::Holds;
use super::target::{Target, Targets};
use super::task::Round;
use crate::model::{HoldKind, PowerAction, TargetName, UtcMillis};
use crate::plan::windows::{self, WindowState};
use crate::store::StoreError;

/// What was found out is asked again after this, for windows that do not change within a year.
const ASKED_AGAIN: Duration = Duration::from_secs(86_400);

/// What is known of the windows of the present config.
#[derive(Debug, Default)]
pub(super) struct WindowWatch {
    known: BTreeMap<(TargetName, PowerAction), Known>,
}

#[derive(Debug, Clone)]
struct Known {
    asked_at: UtcMillis,
    state: WindowState,
}

impl Known {
    /// False once it may have changed, or the clock was set back.
    fn is_good(&self, now: UtcMillis) -> bool {
        let ends = self.state.until().unwrap_or(self.asked_at + ASKED_AGAIN);
        (self.asked_at..ends).contains(&now)
    }
}

impl WindowWatch {
    /// Puts a hold where a window is closed at this moment, and removes the others.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn pass(
        &mut self,
        targets: &Targets,
        holds: &mut Holds,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = round.now.utc;
        let mut closed = Vec::new();
        for (name, target) in targets {
            for action in PowerAction::ALL {
                let Some(state) = self.state(target, *action, now) else {
                    continue;
                };
                state.until().iter().for_each(|at| round.wake(*at));
                closed.extend(windows::hold(name, *action, state, now));
            }
        }
        holds.exchange(HoldKind::Window, closed).await
    }

    /// None: the action may be sent at any time.
    fn state(
        &mut self,
        target: &Target,
        action: PowerAction,
        now: UtcMillis,
    ) -> Option<WindowState> {
        if !target.windows().limit(action) {
            return None;
        }
        let key = (target.name().clone(), action);
        if let Some(known) = self.known.get(&key).filter(|known| known.is_good(now)) {
            return Some(known.state.clone());
        }
        let state = target.windows().state(action, now);
        let known = Known {
            asked_at: now,
            state: state.clone(),
        };
        self.known.insert(key, known);
        Some(state)
    }
}
