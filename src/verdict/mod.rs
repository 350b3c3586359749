//! What follows from an answer of the cloud: pure functions from a batch and an answer to a `Step`.
//!
//! Each starts from a `Case`. One file for each kind of answer: the submit call (`submit`), the job
//! (`job`), the servers' states (`look`; of a refused batch, `refusal`), and no answer because a
//! hold forbids to ask (`held`). What one server's state proves is in `evidence`; what looks have
//! shown in a row is a `Watch`, a value that this process keeps beside an open batch. Knows nothing
//! of SQL, HTTP or clocks. Unknown words and codes fall to the careful side: keep looking, then
//! "unknown".

mod case;
mod evidence;
mod held;
mod job;
mod look;
mod refusal;
mod submit;
#[cfg(test)]
mod testing;
mod watch;

pub use case::{Case, Rules};
pub use held::while_held;
pub use job::{after_failed_query, after_job, busy_reboots};
pub use look::{after_failed_look, after_look, name_failures};
pub use submit::{after_submit, orphaned_intent, orphaned_target};
pub use watch::{Look, Watch};
