//! The `poweryard` program: parses the command line, starts logging, runs the command, ends with
//! its exit code.

use std::process::ExitCode;

use clap::Parser;
use poweryard::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
