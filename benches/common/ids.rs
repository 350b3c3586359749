//! Server ids as real ones are: random against the order of arrival. Seeded, so that runs are alike.

/// So many ids in the form of UUIDs.
pub(crate) fn random_ids(count: usize, seed: u64) -> Vec<String> {
    let mut chance = Chance(seed);
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let high = chance.next();
        let low = chance.next();
        ids.push(format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            0x8000 | (low >> 50),
            low & 0xffff_ffff_ffff
        ));
    }
    ids
}

/// splitmix64
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
