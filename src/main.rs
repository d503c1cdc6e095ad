//! The `scumble` command: parse, run, exit code.

use std::process::ExitCode;

#[global_allocator]
static HEAP: scumble::heap::Heap = scumble::heap::Heap;

fn main() -> ExitCode {
    scumble::cli::main()
}
