//! Numbers with their nouns, for messages and log lines.

use std::fmt::Display;

/// Such as `1 request`, `2 requests` or `3 batches`.
pub fn counted<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    if number == N::from(1) {
        format!("1 {noun}")
    } else if noun.ends_with("ch") {
        format!("{number} {noun}es")
    } else {
        format!("{number} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!(counted(1_usize, "request"), "1 request");
        assert_eq!(counted(0_u64, "request"), "0 requests");
        assert_eq!(counted(2_i64, "batch"), "2 batches");
    }
}
