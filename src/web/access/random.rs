//! Random numbers of the system, for what nobody may guess.

use rustix::rand::{GetRandomFlags, getrandom};

/// 64 hex digits. None if the system has no random numbers yet.
pub(super) fn random_word() -> Option<String> {
    let mut bytes = [0_u8; 32];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty()).ok()?;
    (filled == 32).then(|| hex::encode(bytes))
}
