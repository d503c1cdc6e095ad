//! `scumble convert`.

use std::path::PathBuf;

use super::{
    Context,
    adapter_files::{self, LoadArgs},
    output, setup,
};
use crate::{adapter::Dialect, error::Result};

/// Options of `convert`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter
    pub file: PathBuf,
    /// The spelling of names: kohya (A1111, Forge, InvokeAI, and all others), diffusers, comfy, or peft (a folder)
    #[arg(long, value_name = "DIALECT", value_parser = setup::hinted::<Dialect>)]
    pub to: Dialect,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// The model the adapter is for, if it is not one of the known families: its layers are read, not its weights
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    #[command(flatten)]
    pub loading: LoadArgs,
    /// Replace what stands there already
    #[arg(long)]
    pub force: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    args.to.check_name(&args.out)?;
    let out = output::claim(&args.out, args.force, [args.file.as_path()])?;
    let table = adapter_files::table(args.model.as_deref(), &[&args.file], context)?;
    let adapter = adapter_files::load(&args.file, &table, &args.loading.options(), context)?;
    context.console.note(&format!("from {} to {}", adapter.report.dialect, args.to));
    adapter_files::save(&adapter, (&out, args.to), &table, context)
}
