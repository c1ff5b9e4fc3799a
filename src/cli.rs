//! The whole command line. A program with spec types of its own has it too:
//!
//! ```no_run
//! use blockhaus::stack::{SpecTable, SpecType};
//!
//! fn main() -> std::process::ExitCode {
//!     let mine = SpecType {
//!         name: "mine",
//!         argument: "SIZE",
//!         about: "A disk of my own.",
//!         keys: Vec::new(),
//!         open: Box::new(|spec, options| todo!()),
//!     };
//!     blockhaus::cli::run(SpecTable::builtin().register(mine))
//! }
//! ```
//!
//! One module a verb; a verb parses, calls and prints, and does nothing else.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Result};
use crate::stack::SpecTable;

mod attach;
mod background;
mod bench;
mod completions;
mod detach;
mod disk;
mod down;
mod entrance;
mod exports;
mod features;
mod gc;
mod isolated;
mod list;
mod man;
mod metrics;
mod output;
mod serve;
mod stats;
mod status;
mod up;

/// The name of the command, in help texts and file names.
const NAME: &str = "blockhaus";

/// Block devices served from a process: one command, a real disk.
///
/// blockhaus shows the kernel a disk, /dev/ublkbN, and serves it from memory, from a file or block
/// device, or from a backend of your own. Each disk has a server process of its own, so that a
/// crash takes one disk and no other, unless `up` serves many from one file. The command line talks to these servers over sockets in
/// /run/blockhaus (or the folder named in BLOCKHAUS_RUN_DIR).
#[derive(Debug, Parser)]
#[command(name = NAME, version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 when it worked, 1 when it did not, 2 when the command line makes no sense."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Attach(attach::Arguments),
    Serve(serve::Arguments),
    Detach(detach::Arguments),
    Up(up::Arguments),
    Down(down::Arguments),
    List(list::Arguments),
    Status(status::Arguments),
    Stats(stats::Arguments),
    Metrics(metrics::Arguments),
    Bench(bench::Arguments),
    Features(features::Arguments),
    Gc(gc::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// The definitions that parsing, help, completions and man pages all come from.
fn command(table: &SpecTable) -> clap::Command {
    let specs = table.help();
    Cli::command()
        .mut_subcommand("attach", |attach| attach.after_help(specs.clone()))
        .mut_subcommand("serve", |serve| serve.after_help(specs.clone()))
        .mut_subcommand("bench", |bench| bench.after_help(specs))
}

/// Does what this process's arguments say, with the spec types of `table`.
pub fn run(table: SpecTable) -> ExitCode {
    // The helper's verb is nobody else's, and in no help text and no completion.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == crate::registry::isolated::VERB) {
        return isolated::run().unwrap_or_else(failed);
    }
    let (arguments, background) = background::arguments(std::env::args_os().collect());
    let parsed =
        command(&table).try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, everything else to standard error; nobody reading is fine.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    perform(cli.verb, &Arc::new(table), background).unwrap_or_else(failed)
}

fn failed(error: Error) -> ExitCode {
    output::error(&error);
    ExitCode::FAILURE
}

fn perform(verb: Verb, table: &Arc<SpecTable>, background: bool) -> Result<ExitCode> {
    match verb {
        Verb::Attach(arguments) => attach::run(arguments, table, background),
        Verb::Serve(arguments) => serve::run(arguments, table),
        Verb::Detach(arguments) => detach::run(arguments),
        Verb::Up(arguments) => up::run(arguments, table),
        Verb::Down(arguments) => down::run(arguments),
        Verb::List(arguments) => list::run(arguments),
        Verb::Status(arguments) => status::run(arguments),
        Verb::Stats(arguments) => stats::run(arguments),
        Verb::Metrics(arguments) => metrics::run(arguments),
        Verb::Bench(arguments) => bench::run(arguments, table),
        Verb::Features(arguments) => features::run(arguments),
        Verb::Gc(arguments) => gc::run(arguments),
        Verb::Completions(arguments) => completions::run(arguments, table),
        Verb::Man(arguments) => man::run(arguments, table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        command(&SpecTable::builtin()).debug_assert();
    }
}
