//! Our own error codes, beside those of the clouds (`cloud_codes`). `docs/errors.md` says what each
//! means and what to do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::stored_enums::{UnknownWord, stored_enum};

stored_enum! {
    /// A code of ours; stored in `error_code` of requests, attempts and batches.
    OwnCode, "a code of ours" {
        /// Withdrawn while queued; set by the schema.
        Cancelled = "poweryard.cancelled",
        /// What its `after_id` names did not succeed.
        Dependency = "poweryard.dependency",
        /// It could not be sent in time.
        Expired = "poweryard.expired",
        /// The config protects the server.
        Protected = "poweryard.protected",
        /// The project has no such server.
        Missing = "poweryard.missing",
        /// The server is locked in the cloud.
        Locked = "poweryard.locked",
        /// A reboot of a stopped server.
        Stopped = "poweryard.stopped",
        /// It was seen rebooting, and did not come back.
        NotRunning = "poweryard.not_running",
        /// All calls were made, and the server stayed as it was.
        NotCarriedOut = "poweryard.not_carried_out",
        /// The cloud's task failed without a reason.
        Failed = "poweryard.failed",
        /// A reboot of which nobody can tell whether it happened.
        Unproved = "poweryard.unproved",
        /// The server's state proved nothing in time.
        TimeLimit = "poweryard.time_limit",
        /// Its target or its batch is gone.
        Orphaned = "poweryard.orphaned",
        /// The server was in another transition.
        Busy = "poweryard.busy",
        /// The batch was refused as a whole.
        Refused = "poweryard.refused",
        /// The daemon ended while the call was being made.
        Interrupted = "poweryard.interrupted",
    }
}

impl From<OwnCode> for String {
    fn from(code: OwnCode) -> Self {
        code.as_str().to_owned()
    }
}
