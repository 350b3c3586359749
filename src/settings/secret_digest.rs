//! Digests that show this process whether a secret has changed, without keeping a copy of it. They
//! are useless to anybody else.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Each process chooses a new one and never stores it, so that nobody can test guesses against a
/// stored digest.
static SALT: LazyLock<[u8; 32]> = LazyLock::new(|| {
    let mut salt = [0; 32];
    for (number, part) in salt.chunks_mut(8).enumerate() {
        // The standard library takes the seed of these from the system's random numbers.
        part.copy_from_slice(&RandomState::new().hash_one(number).to_ne_bytes());
    }
    salt
});

/// The same for the same bytes, within this process.
pub(crate) fn salted_digest(bytes: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(&*SALT).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

/// Tells digests of this process from those of another one; 8 hex digits.
pub(crate) fn process_number() -> String {
    hex::encode(&salted_digest(b"process")[..4])
}
