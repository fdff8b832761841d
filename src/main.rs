//! Arguments → config → tracing → server → exit code.

mod commands;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    if let Some(code) = commands::called_by_another_name(std::env::args_os()) {
        return code;
    }
    match commands::run(commands::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("walcast: {}", commands::explained(&error));
            ExitCode::FAILURE
        }
    }
}
