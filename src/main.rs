//! The `poweryard` program: answers a shell that asks for completions; otherwise parses the command
//! line, starts logging, runs the command, ends with its exit code.

use std::process::ExitCode;

use poweryard::cli;

fn main() -> ExitCode {
    cli::answer_shell();
    cli::main(cli::parse())
}
