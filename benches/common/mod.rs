//! What the benchmarks share: the far side and the daemon as processes of their own, what a process
//! has used, and figures.

#![allow(dead_code, reason = "each benchmark uses its own part")]

pub(crate) mod far;
pub(crate) mod figures;
pub(crate) mod ids;
pub(crate) mod lock;
pub(crate) mod one_index;
pub(crate) mod process;
pub(crate) mod steps;
pub(crate) mod yard;

/// `cargo bench` says so; `cargo test --benches` does not, and only wants to see that it runs.
pub(crate) fn is_test() -> bool {
    !std::env::args().any(|arg| arg == "--bench")
}
