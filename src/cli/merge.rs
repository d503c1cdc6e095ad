//! `scumble merge`.

use std::{path::Path, sync::Arc};

use super::{
    Context,
    adapter_files::{self, FileArgs},
    loras::{self, LoraArg},
    setup,
};
use crate::{
    adapter::{
        Blend,
        merge::{self, MajoritySign, MergeOptions, Method},
    },
    error::{Error, Result},
};

/// Options of `merge`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Adapters with their weights: a.safetensors:0.7, b.safetensors:unet=0.5,te=0, negative weights too
    #[arg(required = true, value_name = "FILE[:WEIGHT]", value_parser = setup::hinted::<LoraArg>)]
    pub adapters: Vec<LoraArg>,
    #[command(flatten)]
    pub files: FileArgs,
    /// cat, svd, linear, ties, dare_linear, dare_ties, magnitude_prune; ..._svd on whole deltas [default: cat, svd with --rank]
    #[arg(long, value_parser = setup::hinted::<Method>)]
    pub method: Option<Method>,
    /// The rank of the result [default: the adapters']
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// The share of numbers kept by ties, dare and magnitude_prune
    #[arg(long, value_name = "SHARE", default_value_t = MergeOptions::default().density)]
    pub density: f64,
    /// Whose sign wins in ties: total (of the sum) or frequency (of most adapters)
    #[arg(long, value_name = "METHOD", default_value = "total", value_parser = setup::hinted::<MajoritySign>)]
    pub majority_sign: MajoritySign,
    /// What dare drops follows from it
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Show what was lost on every layer
    #[arg(long)]
    pub layers: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let inputs: Vec<&Path> = args.adapters.iter().map(|a| a.path.as_path()).collect();
    let out = args.files.claim(inputs.iter().copied())?;
    let default = if args.rank.is_some() { Method::Svd } else { Method::Cat };
    let options = MergeOptions {
        method: args.method.unwrap_or(default),
        rank: args.rank,
        density: args.density,
        majority: args.majority_sign,
        seed: args.seed,
        dtype: adapter_files::dtype(context),
    };
    let table = adapter_files::table(args.files.model.as_deref(), &inputs, context)?;
    let mut blend = Blend::new();
    for lora in &args.adapters {
        context.cancel.check()?;
        let adapter = adapter_files::load(&lora.path, &table, &args.files.loading.options(), context)?;
        blend = blend.with(loras::stem(&lora.path), Arc::new(adapter), lora.strength.clone());
    }
    if blend.is_base() {
        return Err(Error::invalid("all weights are 0, so there is nothing to merge")
            .with_hint("a weight follows the file's name: my-style.safetensors:0.7"));
    }
    let cut =
        adapter_files::with_progress(context, |progress| merge::merge(&blend, &table, &options, progress))?;
    adapter_files::report_losses(&cut, args.layers, context);
    match options.method {
        Method::Cat => context.console.note("exact: the change is the weighted sum of the adapters' changes"),
        method if method.takes_rank() => {}
        method => context.console.note(&format!(
            "`{method}` computes on factors, as PEFT does: the change is another than the weighted sum"
        )),
    }
    adapter_files::save(&cut.adapter, (&out, args.files.dialect), &table, context)
}
