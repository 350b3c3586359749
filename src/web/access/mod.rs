//! Who may come in: tokens, sessions, the names by which the server may be called, and the delay
//! for wrong tokens. Reads no queue and serves no page.

use std::net::IpAddr;

mod caller;
mod certificate;
mod entrance;
mod guard;
mod login;
mod origin;
mod random;
mod sessions;
mod slowdown;
mod tokens;

pub(super) use caller::{Caller, Refusal};
pub use certificate::{CertificateError, ServerCertificate};
pub use entrance::{Entrance, EntranceError};
pub(super) use guard::{CHALLENGE, guard, too_large};
pub(super) use login::{show_form, sign_in, sign_out, style};
use sessions::Sessions;
use slowdown::Slowdown;

/// What access is decided by, beside the config.
#[derive(Default)]
pub(super) struct GuestBook {
    sessions: Sessions,
    slowdown: Slowdown,
}

/// Where a connection comes from, and how; the server notes it in each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// The other end.
    pub(super) address: IpAddr,
    /// This end, which is one of the names by which the server may be called.
    pub(super) here: IpAddr,
    /// TLS ends here.
    pub(super) is_encrypted: bool,
}
