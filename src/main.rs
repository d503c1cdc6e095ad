//! The `scumble` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    scumble::cli::main()
}
