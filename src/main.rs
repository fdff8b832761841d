//! Arguments → config → tracing → server → exit code.

mod commands;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    if let Some(code) = commands::called_by_another_name(std::env::args_os()) {
        return code;
    }
    match commands::run(commands::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Whoever closed it does not want to know.
            let _ = writeln!(io::stderr(), "walcast: {}", commands::explained(&error));
            ExitCode::FAILURE
        }
    }
}
