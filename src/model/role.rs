//! What a token of `[[listen.tokens]]` may do: the questions that other rooms ask about a role.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::UnknownWord;
use super::stored_enums::stored_enum;

stored_enum! {
    /// What a token is for; each role may do what those before it may.
    Role, "a role" {
        /// Looks.
        Reader = "reader",
        /// Also inserts requests, and cancels what it asked for itself.
        Producer = "producer",
        /// Also cancels, retries, approves, pauses and resumes whatever its targets and actions allow.
        Operator = "operator",
    }
}

impl Role {
    /// True if this role may do what is meant for `wanted`.
    pub fn covers(self, wanted: Self) -> bool {
        self >= wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_what_those_before_it_may() {
        assert!(Role::Operator.covers(Role::Reader) && Role::Producer.covers(Role::Producer));
        assert!(!Role::Reader.covers(Role::Producer) && !Role::Producer.covers(Role::Operator));
    }
}
