//! The command line: one file a subcommand. The only place that prints, exits or knows clap.

mod adapter_files;
mod bake;
mod console;
mod convert;
mod demo;
mod extract;
mod font;
mod generate;
mod inspect;
mod loras;
mod merge;
mod metadata;
mod models;
mod recipe;
mod resize;
mod seed;
mod setup;
mod train;

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    error::{Error, Result},
    progress::CancelToken,
};

use console::Console;
use setup::Global;

/// Exit code after Ctrl-C, as shells expect.
const CANCELLED: u8 = 130;

/// Train, blend and draw with Stable Diffusion style adapters.
#[derive(Debug, Parser)]
#[command(name = "scumble", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a style from built-in pictures on the built-in model and show what it does
    Demo(demo::Args),
    /// Train a style from a folder of pictures
    Train(Box<train::Args>),
    /// Draw pictures
    Generate(Box<generate::Args>),
    /// Put several adapters into one file
    Merge(merge::Args),
    /// Put adapters into a model for good
    Bake(bake::Args),
    /// Make an adapter of the difference of two models
    Extract(extract::Args),
    /// Lower an adapter's rank
    Resize(resize::Args),
    /// Spell an adapter's names as another tool does
    Convert(convert::Args),
    /// Show and edit what a file says of itself
    Metadata(metadata::Args),
    /// Say what an adapter's file holds
    Inspect(inspect::Args),
    /// List the models that are built in and cached, and how to get more
    Models(models::Args),
}

/// What a subcommand works with.
struct Context {
    global: Global,
    console: Console,
    cancel: CancelToken,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cancel = CancelToken::default();
    setup::on_interrupt(&cancel);
    run(std::env::args_os(), cancel)
}

/// Runs a command line; `arguments` starts with the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>, cancel: CancelToken) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(help) => {
            help.print().ok();
            return if help.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let console = Console::new(cli.global.json, cli.global.quiet);
    let mut context = Context { global: cli.global, console, cancel };
    let outcome = setup::threads(&context.global).and_then(|()| dispatch(cli.command, &mut context));
    context.console.close();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is_cancelled() => {
            context.console.note("stopped");
            ExitCode::from(CANCELLED)
        }
        Err(e) => {
            report(&e, &context.console);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, context: &mut Context) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(&args, context),
        Command::Train(args) => train::run(&args, context),
        Command::Generate(args) => generate::run(&args, context),
        Command::Merge(args) => merge::run(&args, context),
        Command::Bake(args) => bake::run(&args, context),
        Command::Extract(args) => extract::run(&args, context),
        Command::Metadata(args) => metadata::run(&args, context),
        Command::Resize(args) => resize::run(&args, context),
        Command::Convert(args) => convert::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Models(args) => models::run(&args, context),
    }
}

fn report(error: &Error, console: &Console) {
    if console.is_json() {
        let line =
            serde_json::json!({ "event": "error", "message": error.to_string(), "hint": error.hint() });
        console.data(&line.to_string());
    }
    let mut stderr = std::io::stderr().lock();
    // A closed terminal is no reason to fail differently.
    writeln!(stderr, "error: {error}").ok();
    if let Some(hint) = error.hint() {
        writeln!(stderr, "hint: {hint}").ok();
    }
}
