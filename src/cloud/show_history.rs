//! Which servers were asked for by name, when, and how often without success, so that each gets its
//! turn and none delays the others.
//!
//! Pure: counts looks, reads no clock, makes no call.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::ServerId;

/// Servers remembered at a time; beyond that, those that answered are forgotten first.
const SERVERS_MAX: usize = 10_000;

/// A server that has failed is put behind those that were last asked for up to this many looks
/// later.
const PENALTY_MAX: u32 = 4;

/// How long one show may take while other servers wait for the same look.
const PATIENCE: Duration = Duration::from_secs(10);

/// As `PATIENCE`, after a failure: a server that never answers must not delay each look that long.
const PATIENCE_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// After every this many failures a server gets its full time: perhaps it is only slow.
const FULL_PATIENCE_EVERY: u32 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ShowHistory {
    looks: u64,
    servers: HashMap<ServerId, Turn>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Turn {
    /// The look in which it was asked for.
    look: u64,
    /// Failures in a row.
    failures: u32,
}

impl ShowHistory {
    /// Puts those first who have waited longest, and those who failed behind others; otherwise
    /// keeps the order.
    pub(super) fn order(&mut self, servers: &mut [ServerId]) {
        self.looks += 1;
        servers.sort_by_key(|server| {
            let turn = self.turn(server);
            turn.look + u64::from(turn.failures.min(PENALTY_MAX))
        });
    }

    /// How long a show of `server` may take; none: as long as any call, if it is `alone` in its
    /// look.
    pub(super) fn patience(&self, server: &ServerId, alone: bool) -> Option<Duration> {
        if !self
            .turn(server)
            .failures
            .is_multiple_of(FULL_PATIENCE_EVERY)
        {
            return Some(PATIENCE_AFTER_FAILURE);
        }
        if alone { None } else { Some(PATIENCE) }
    }

    /// True if the last show of `server` failed.
    pub(super) fn has_failed(&self, server: &ServerId) -> bool {
        self.turn(server).failures > 0
    }

    /// Notes how a show of `server` ended.
    pub(super) fn note(&mut self, server: &ServerId, failed: bool) {
        if self.servers.len() >= SERVERS_MAX {
            self.servers.retain(|_, turn| turn.failures > 0);
        }
        if self.servers.len() >= SERVERS_MAX {
            self.servers.clear();
        }
        let turn = self.servers.entry(server.clone()).or_default();
        turn.look = self.looks;
        turn.failures = if failed {
            turn.failures.saturating_add(1)
        } else {
            0
        };
    }

    fn turn(&self, server: &ServerId) -> Turn {
        self.servers.get(server).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<ServerId> {
        names
            .iter()
            .map(|name| ServerId((*name).to_owned()))
            .collect()
    }

    #[test]
    fn everyone_has_a_turn_where_a_look_asks_for_a_few() {
        let mut history = ShowHistory::default();
        let mut turns = Vec::new();
        for _ in 0..3 {
            let mut servers = ids(&["a", "b", "c", "d"]);
            history.order(&mut servers);
            for server in &servers[..2] {
                history.note(server, false);
                turns.push(server.0.clone());
            }
        }
        assert_eq!(turns.concat(), "abcdab");
    }

    #[test]
    fn a_server_that_fails_goes_last_and_is_given_less_time() {
        let mut history = ShowHistory::default();
        let mut servers = ids(&["bad", "good"]);
        history.order(&mut servers);
        history.note(&servers[0], true);
        history.note(&servers[1], false);
        history.order(&mut servers);
        assert_eq!(servers, ids(&["good", "bad"]));
        assert_eq!(
            [true, false].map(|alone| history.patience(&servers[0], alone)),
            [None, Some(PATIENCE)]
        );
        assert_eq!(
            [true, false].map(|alone| history.patience(&servers[1], alone)),
            [Some(PATIENCE_AFTER_FAILURE); 2]
        );
        assert!(history.has_failed(&servers[1]));
        history.note(&servers[1], false);
        assert!(!history.has_failed(&servers[1]));
    }
}
