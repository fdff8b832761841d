//! Arguments → config → tracing → server → exit code.

mod commands;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match commands::run(commands::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("walcast: {}", commands::explained(&error));
            ExitCode::FAILURE
        }
    }
}
