//! `completions`: what a shell needs to complete our arguments.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::output;
use crate::error::Result;
use crate::stack::SpecTable;

/// Prints a completion script for a shell.
///
/// For bash, for example: blockhaus completions bash > /etc/bash_completion.d/blockhaus
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(arguments: Arguments, table: &SpecTable) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::command(table), super::NAME, &mut script);
    output::raw(&script)?;
    Ok(ExitCode::SUCCESS)
}
