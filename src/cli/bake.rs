//! `scumble bake`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;

use super::{
    Context,
    adapter_files::{self, LoadArgs},
    loras::{self, LoraArg},
    output, setup,
};
use crate::{
    adapter::{
        Blend, Dialect,
        bake::{self, BakeOptions},
    },
    error::{Error, Result},
    pipeline::{export, layers},
};

/// Options of `bake`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// mini, sd15, sdxl, a hub id, a diffusers folder, or a .safetensors file
    #[arg(long, short)]
    pub model: String,
    /// A style and its weight, as often as you like: my-style.safetensors:0.8, or :unet=0.8,te=0.4
    #[arg(long, short, required = true, value_name = "FILE[:WEIGHT]", value_parser = setup::hinted::<LoraArg>)]
    pub lora: Vec<LoraArg>,
    /// What to write: name.safetensors is a single file, any other name a folder in diffusers' layout
    #[arg(long, short, value_name = "PATH")]
    pub out: PathBuf,
    #[command(flatten)]
    pub loading: LoadArgs,
    /// Replace what stands there already
    #[arg(long)]
    pub force: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let inputs = args.lora.iter().map(|l| l.path.as_path()).chain([Path::new(&args.model)]);
    let file = args.out.extension().is_some_and(|e| e == "safetensors");
    if !file {
        // A folder, then: PEFT's have the same rule.
        Dialect::Peft.check_name(&args.out).map_err(|e| {
            e.with_hint("NAME.safetensors is written as a single file, NAME as a folder in diffusers' layout")
        })?;
    }
    let out = output::claim(&args.out, args.force, inputs)?;
    let base = adapter_files::open_checkpoint(&args.model, context)?;
    let table = layers::of_checkpoint(&base)?;
    let mut blend = Blend::new();
    for lora in &args.lora {
        context.cancel.check()?;
        let adapter = adapter_files::load(&lora.path, &table, &args.loading.options(), context)?;
        blend = blend.with(loras::stem(&lora.path), Arc::new(adapter), lora.strength.clone());
    }
    blend.check_blocks(&table)?;
    if blend.is_base() {
        return Err(Error::invalid("all weights are 0, so the model would stay as it is")
            .with_hint("a weight follows the file's name: my-style.safetensors:0.7"));
    }
    let needs_configs = !file && base.single_file().is_some();
    let configs = if needs_configs { export::diffusers_files(&base)? } else { Vec::new() };
    let options = BakeOptions { dtype: adapter_files::dtype(context), configs };
    adapter_files::with_progress(context, |progress| {
        out.fill(|path| match file {
            true => bake::to_file(&base, &blend, path, &options, progress),
            false => bake::to_folder(&base, &blend, path, &options, progress),
        })
    })?;
    let line = json!({ "event": "saved", "path": args.out });
    context.console.result(&args.out.display().to_string(), &line);
    Ok(())
}
