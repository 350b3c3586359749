//! Wrong tokens: each one delays the answer, and the delay grows with the address it came from.
//! Right tokens are not delayed, and other addresses notice nothing.
//!
//! Guesses cannot be made side by side instead: while a few answers to an address are delayed, its
//! further requests with a token are refused without looking at it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After the first wrong token; doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(8);
/// An address that was good for so long begins anew.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Answers to one address that are delayed at a time.
const WAITING_MAX: u32 = 4;
/// Answers to all addresses that are delayed at a time; each of them is a connection.
const WAITING_IN_ALL_MAX: u32 = 64;
/// Addresses that are remembered; for a further one, the one that failed least lately is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Which addresses have shown wrong tokens.
#[derive(Default)]
pub(super) struct Slowdown(Mutex<Penalties>);

#[derive(Default)]
struct Penalties {
    addresses: HashMap<IpAddr, Penalty>,
    waiting: u32,
}

struct Penalty {
    failures: u32,
    waiting: u32,
    last: Instant,
}

/// One answer that is being delayed; dropped when it has been.
struct DelayedAnswer<'a> {
    slowdown: &'a Slowdown,
    address: IpAddr,
}

impl Slowdown {
    /// Whether a token from this address is looked at now.
    ///
    /// # Errors
    /// After how long it may be.
    pub(super) fn admit(&self, address: IpAddr) -> Result<(), Duration> {
        let penalties = self.penalties();
        let penalty = penalties.addresses.get(&network_of(address));
        let failures = penalty.map_or(0, |penalty| penalty.failures);
        if penalty.is_some_and(|penalty| penalty.waiting >= WAITING_MAX) {
            return Err(delay_after(failures));
        }
        if penalties.waiting >= WAITING_IN_ALL_MAX && failures > 0 {
            return Err(delay_after(failures));
        }
        Ok(())
    }

    /// Notes a wrong token, and waits as long as that costs this address.
    pub(super) async fn punish(&self, address: IpAddr) {
        let (delay, _waiting) = self.note_failure(network_of(address), Instant::now());
        tokio::time::sleep(delay).await;
    }

    fn note_failure(&self, address: IpAddr, now: Instant) -> (Duration, DelayedAnswer<'_>) {
        let mut penalties = self.penalties();
        penalties.make_room(now);
        let penalty = penalties.addresses.entry(address).or_insert(Penalty {
            failures: 0,
            waiting: 0,
            last: now,
        });
        if now.saturating_duration_since(penalty.last) >= FORGET_AFTER {
            penalty.failures = 0;
        }
        penalty.failures = penalty.failures.saturating_add(1);
        penalty.waiting += 1;
        penalty.last = now;
        let delay = delay_after(penalty.failures);
        penalties.waiting += 1;
        let waiting = DelayedAnswer {
            slowdown: self,
            address,
        };
        (delay, waiting)
    }

    fn penalties(&self) -> MutexGuard<'_, Penalties> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Penalties {
    fn make_room(&mut self, now: Instant) {
        if self.addresses.len() < ADDRESSES_MAX {
            return;
        }
        self.addresses.retain(|_, penalty| {
            penalty.waiting > 0 || now.saturating_duration_since(penalty.last) < FORGET_AFTER
        });
        if self.addresses.len() < ADDRESSES_MAX {
            return;
        }
        let oldest = self
            .addresses
            .iter()
            .min_by_key(|(_, penalty)| (penalty.waiting > 0, penalty.last))
            .map(|(address, _)| *address);
        if let Some(oldest) = oldest {
            self.addresses.remove(&oldest);
        }
    }
}

impl Drop for DelayedAnswer<'_> {
    fn drop(&mut self) {
        let mut penalties = self.slowdown.penalties();
        penalties.waiting = penalties.waiting.saturating_sub(1);
        if let Some(penalty) = penalties.addresses.get_mut(&self.address) {
            penalty.waiting = penalty.waiting.saturating_sub(1);
        }
    }
}

fn delay_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    DELAY_MAX.min(FIRST_DELAY * 2_u32.pow(doublings))
}

/// Of IPv6 the network of 64 bits: whoever has one address of it has them all.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_delay_grows_up_to_its_limit_and_only_for_this_address() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..8 {
            delays.push(
                slowdown
                    .note_failure(address("10.0.0.1"), now)
                    .0
                    .as_millis(),
            );
        }
        assert_eq!(delays, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        let other = slowdown.note_failure(address("10.0.0.2"), now).0;
        assert_eq!(other, FIRST_DELAY);
        let forgiven = slowdown
            .note_failure(address("10.0.0.1"), now + FORGET_AFTER)
            .0;
        assert_eq!(forgiven, FIRST_DELAY);
    }

    #[test]
    fn guesses_side_by_side_are_refused_until_earlier_ones_are_answered() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        let guesses: Vec<_> = (0..WAITING_MAX)
            .map(|_| slowdown.note_failure(address("10.0.0.1"), now))
            .collect();
        assert!(slowdown.admit(address("10.0.0.1")).is_err());
        assert_eq!(slowdown.admit(address("10.0.0.2")), Ok(()));
        drop(guesses);
        assert_eq!(slowdown.admit(address("10.0.0.1")), Ok(()));
    }

    #[test]
    fn memory_is_bounded_whatever_addresses_come() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        for number in 0..ADDRESSES_MAX as u32 + 100 {
            drop(slowdown.note_failure(IpAddr::from(number.to_be_bytes()), now));
        }
        assert_eq!(slowdown.penalties().addresses.len(), ADDRESSES_MAX);
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        let one = network_of(address("2001:db8:1:2:3::4"));
        assert_eq!(one, network_of(address("2001:db8:1:2::1")));
        assert_ne!(one, network_of(address("2001:db8:1:3::1")));
        assert_eq!(network_of(address("::ffff:10.0.0.1")), address("10.0.0.1"));
    }
}
