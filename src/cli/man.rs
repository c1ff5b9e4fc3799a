//! `man`: the manual pages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap_mangen::Man;

use super::output;
use crate::error::{Error, Result};
use crate::stack::SpecTable;

/// Prints the manual page of blockhaus, or writes it and one of each verb into a folder.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folder, which must exist.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments, table: &SpecTable) -> Result<ExitCode> {
    let pages = pages(table)?;
    match &arguments.folder {
        Some(folder) => write(folder, &pages)?,
        None => output::raw(&pages[0].1)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// File names and texts; the page of the whole comes first.
fn pages(table: &SpecTable) -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = super::command(table);
    command.build();
    let verbs: Vec<_> = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        .cloned()
        .collect();
    let mut commands = vec![command];
    commands.extend(verbs.into_iter().map(|verb| {
        let name = format!("{}-{}", super::NAME, verb.get_name());
        verb.display_name(name)
    }));
    commands.into_iter().map(page).collect()
}

fn page(command: clap::Command) -> Result<(String, Vec<u8>)> {
    let name = format!("{}.1", command.get_display_name().unwrap_or(super::NAME));
    let mut text = Vec::new();
    Man::new(command)
        .render(&mut text)
        .map_err(|error| Error::system(format!("cannot make {name}"), error))?;
    Ok((name, text))
}

fn write(folder: &Path, pages: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, text) in pages {
        let path = folder.join(name);
        std::fs::write(&path, text)
            .map_err(|error| Error::system(format!("cannot write {}", path.display()), error))?;
        output::line(&path.display().to_string())?;
    }
    Ok(())
}
