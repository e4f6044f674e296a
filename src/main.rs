//! The `underpass` binary: everything is in the library. A program name of a CNI plugin makes it that plugin.

use std::process::ExitCode;

use underpass::{cli, cni};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().peekable();
    match arguments.peek().and_then(|program| cni::Plugin::of_program(program)) {
        Some(plugin) => cni::main(plugin),
        None => cli::main(arguments),
    }
}
