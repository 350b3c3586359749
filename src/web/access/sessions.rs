//! Who has signed in at `/login`. Kept in memory: a restart ends all sessions. A session says which
//! token it was begun with, never what that token allows: the config in force says that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::random::random_word;
use super::tokens::{TokenDigest, digest};

/// A session ends after this, used or not.
pub(super) const SESSION_TIME: Duration = Duration::from_secs(12 * 3600);
/// For a further one, the oldest ends.
const SESSIONS_MAX: usize = 1000;

/// All sessions, by a digest of their names: looking one up says nothing about another.
#[derive(Default)]
pub(super) struct Sessions(Mutex<BTreeMap<[u8; 32], SignedIn>>);

#[derive(Clone)]
pub(super) struct SignedIn {
    /// The token that it was begun with.
    pub(super) token: TokenDigest,
    /// Every form of the page carries it, so that no other page can send one.
    pub(super) form_token: String,
    began: Instant,
}

impl SignedIn {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= SESSION_TIME
    }
}

impl Sessions {
    /// Begins one and returns its name, which only its owner may know. None if the system has no
    /// random numbers.
    pub(super) fn begin(&self, token: TokenDigest, now: Instant) -> Option<String> {
        let name = random_word()?;
        let session = SignedIn {
            token,
            form_token: random_word()?,
            began: now,
        };
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| !session.is_over(now));
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions
                .iter()
                .min_by_key(|(_, session)| session.began)
                .map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                sessions.remove(&oldest);
            }
        }
        sessions.insert(digest(&name), session);
        Some(name)
    }

    /// The session with this name, if it is not over.
    pub(super) fn find(&self, name: &str, now: Instant) -> Option<SignedIn> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get(&digest(name))?;
        (!session.is_over(now)).then(|| session.clone())
    }

    /// Ends the session with this name.
    pub(super) fn end(&self, name: &str) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&digest(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_after_its_time_and_by_signing_out() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let name = sessions.begin([1; 32], now).expect("random numbers");
        let other = sessions.begin([1; 32], now).expect("random numbers");
        assert_ne!(name, other);
        assert!(
            sessions
                .find(&name, now + SESSION_TIME - Duration::from_secs(1))
                .is_some()
        );
        assert!(sessions.find(&name, now + SESSION_TIME).is_none());
        sessions.end(&other);
        assert!(sessions.find(&other, now).is_none() && sessions.find(&name, now).is_some());
    }

    #[test]
    fn beyond_the_limit_the_oldest_session_ends() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let first = sessions.begin([1; 32], now).expect("random numbers");
        let later = now + Duration::from_secs(1);
        for _ in 0..SESSIONS_MAX {
            sessions.begin([2; 32], later).expect("random numbers");
        }
        assert!(sessions.find(&first, later).is_none());
    }
}
