//! The command line: one file a subcommand. The only place that prints, exits or knows clap.

mod adapter_files;
mod bake;
mod bench;
mod blend_file;
mod check;
mod check_blend;
mod console;
mod convert;
mod demo;
mod embeddings;
mod extract;
mod folders;
mod generate;
mod grid;
mod gui;
mod heat_map;
mod inspect;
mod library;
mod loras;
mod merge;
mod metadata;
mod models;
mod numbers;
mod output;
mod recipe;
mod resize;
mod seed;
mod setup;
mod shell;
mod train;

use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

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
    /// Say how much a blend of styles changes the model, and what adds up
    CheckBlend(Box<check_blend::Args>),
    /// Say what adapters' files hold
    Inspect(inspect::Args),
    /// Prove that adapters fit a model, key by key, and say how much they change
    Check(check::Args),
    /// Search a folder of adapters, or find those like a given one
    Library(library::Args),
    /// List the models that are built in and cached, and how to get more
    Models(models::Args),
    /// Open the viewer: styles as sliders, training with previews
    Gui(gui::Args),
    /// Measure seconds and memory of training and drawing on this machine
    Bench(bench::Args),
}

/// What a subcommand works with.
struct Context {
    global: Global,
    console: Console,
    cancel: CancelToken,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    crate::device::prepare_process();
    let cancel = CancelToken::default();
    setup::on_interrupt(&cancel);
    run(std::env::args_os(), cancel)
}

/// Runs a command line; `arguments` starts with the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>, cancel: CancelToken) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let json = arguments.iter().any(|a| a == "--json");
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(help) => {
            if help.use_stderr() && json {
                let message = help.to_string();
                let line =
                    serde_json::json!({ "event": "error", "message": message, "hint": null, "path": null });
                writeln!(std::io::stdout(), "{line}").ok();
            }
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

/// Negative numbers are values of the option in front of them, whose parser says what is wrong with them.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let command = Cli::command().mut_subcommands(|subcommand| {
        subcommand.mut_args(|argument| {
            let is_value = argument.get_action().takes_values() && !argument.is_positional();
            if is_value { argument.allow_negative_numbers(true) } else { argument }
        })
    });
    Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
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
        Command::CheckBlend(args) => check_blend::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Check(args) => check::run(&args, context),
        Command::Library(args) => library::run(&args, context),
        Command::Models(args) => models::run(&args, context),
        Command::Gui(args) => gui::run(&args),
        Command::Bench(args) => bench::run(&args, context),
    }
}

/// Runs something on each of some files: one that cannot be read does not keep the others from it.
///
/// # Errors
/// The error of a file that is the only one; else, after all of them, how many failed.
fn for_each_file(
    files: &[PathBuf],
    context: &mut Context,
    mut work: impl FnMut(&Path, &mut Context) -> Result<()>,
) -> Result<()> {
    let mut failed = 0;
    for path in files {
        context.cancel.check()?;
        match work(path, context) {
            Err(e) if files.len() == 1 || e.is_cancelled() => return Err(e),
            Err(e) => {
                report(&e, &context.console);
                failed += 1;
            }
            Ok(()) => {}
        }
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(Error::invalid(format!("{failed} of {} files failed", files.len())))
    }
}

fn report(error: &Error, console: &Console) {
    if console.is_json() {
        let (message, hint, path) = (error.to_string(), error.hint(), error.path());
        let line = serde_json::json!({ "event": "error", "message": message, "hint": hint, "path": path });
        console.data(&line.to_string());
    }
    let mut stderr = std::io::stderr().lock();
    // A closed terminal is no reason to fail differently.
    writeln!(stderr, "error: {error}").ok();
    if let Some(hint) = error.hint() {
        writeln!(stderr, "hint: {hint}").ok();
    }
}
