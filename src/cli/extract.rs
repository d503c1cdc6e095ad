//! `scumble extract`.

use std::path::{Path, PathBuf};

use candle_core::DType;

use super::{Context, adapter_files, output, setup};
use crate::{
    adapter::{
        Dialect,
        extract::{self, ExtractOptions},
    },
    error::Result,
    pipeline::layers,
};

/// Options of `extract`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The trained model
    #[arg(long, value_name = "MODEL")]
    pub from: String,
    /// The model it was trained from
    #[arg(long, value_name = "MODEL")]
    pub base: String,
    /// The adapter to write
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// The rank
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub rank: usize,
    /// Extract resnets' and resamplers' convolutions too, at this rank
    #[arg(long, value_name = "N")]
    pub conv_rank: Option<usize>,
    /// Cut factors at this quantile of their numbers, as kohya's script does [default when given bare: 0.99]
    #[arg(long, value_name = "Q", num_args = 0..=1, default_missing_value = "0.99")]
    pub clamp_quantile: Option<f64>,
    /// Leave layers out of which no weight differs by more than this (kohya: 0.01 for text encoders)
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub min_diff: f64,
    /// Decompose whole matrices: slow, and rarely better
    #[arg(long)]
    pub exact: bool,
    /// How names are spelled in the new file
    #[arg(long, value_name = "DIALECT", default_value_t, value_parser = setup::hinted::<Dialect>)]
    pub dialect: Dialect,
    /// Replace what stands there already
    #[arg(long)]
    pub force: bool,
    /// Show what was lost on every layer
    #[arg(long)]
    pub layers: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    args.dialect.check_name(&args.out)?;
    let out = output::claim(&args.out, args.force, [Path::new(&args.from), Path::new(&args.base)])?;
    let tuned = adapter_files::open_checkpoint(&args.from, context)?;
    let base = adapter_files::open_checkpoint(&args.base, context)?;
    let table = layers::of_checkpoint(&base)?;
    let options = ExtractOptions {
        conv_rank: args.conv_rank,
        clamp_quantile: args.clamp_quantile,
        min_difference: args.min_diff,
        exact: args.exact,
        dtype: adapter_files::dtype(context).unwrap_or(DType::F16),
        ..ExtractOptions::new(args.rank)
    };
    let cut = adapter_files::with_progress(context, |progress| {
        extract::extract(&tuned, &base, &table, &options, progress)
    })?;
    adapter_files::report_losses(&cut, args.layers, context);
    adapter_files::save(&cut.adapter, (&out, args.dialect), &table, context)
}
