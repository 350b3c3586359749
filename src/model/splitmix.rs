//! The one source of jitter: retries that spread, a simulated cloud's faults, schedules of a
//! simulation. Even enough for those; not for secrets.

/// What a stream of such numbers steps by; see [`splitmix`].
pub const SPLITMIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number that looks unrelated to those of its neighbours, and is always the same for `number`.
///
/// Source: the output function of SplitMix64; called with `number` stepped by [`SPLITMIX_STEP`] it
/// is that generator.
pub fn splitmix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
