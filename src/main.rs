//! The `underpass` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    underpass::cli::main(std::env::args_os())
}
