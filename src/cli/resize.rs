//! `scumble resize`.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    Context,
    adapter_files::{self, FileArgs},
};
use crate::{
    adapter::{
        resize,
        truncate::{RankLimit, RankRule},
    },
    error::{Error, Result},
};

/// Options of `resize`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter
    pub file: PathBuf,
    #[command(flatten)]
    pub files: FileArgs,
    /// One rank for all layers; with a rule below, the largest (as --max-rank)
    #[arg(long, value_name = "N")]
    pub rank: Option<usize>,
    /// The rank of convolutions [default: that of the others]
    #[arg(long, value_name = "N")]
    pub conv_rank: Option<usize>,
    /// Per layer: keep singular values above the largest / R
    #[arg(long, value_name = "R", group = "rule")]
    pub sv_ratio: Option<f64>,
    /// Per layer: keep this share of the Frobenius norm
    #[arg(long, value_name = "SHARE", group = "rule")]
    pub sv_fro: Option<f64>,
    /// Per layer: keep this share of the sum of singular values
    #[arg(long, value_name = "SHARE", group = "rule")]
    pub sv_cumulative: Option<f64>,
    /// The largest rank a rule may choose
    #[arg(long, value_name = "N", conflicts_with = "rank")]
    pub max_rank: Option<usize>,
    /// Show what was lost on every layer
    #[arg(long)]
    pub layers: bool,
}

impl Args {
    fn limit(&self) -> Result<RankLimit> {
        let rules = [
            self.sv_ratio.map(RankRule::Ratio),
            self.sv_fro.map(RankRule::Frobenius),
            self.sv_cumulative.map(RankRule::Cumulative),
        ];
        let rule = rules.into_iter().flatten().next();
        let max_rank = match (self.rank.or(self.max_rank), rule) {
            (Some(rank), _) => rank,
            (None, Some(_)) => usize::MAX,
            (None, None) => {
                return Err(Error::invalid("which rank?").with_hint(
                    "`--rank N`, or `--sv-ratio`, `--sv-fro`, `--sv-cumulative` for a rank per layer",
                ));
            }
        };
        let limit = RankLimit {
            rule: rule.unwrap_or(RankRule::Fixed),
            max_rank,
            max_conv_rank: self.conv_rank.unwrap_or(max_rank),
        };
        limit.check()?;
        Ok(limit)
    }
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let limit = args.limit()?;
    let out = args.files.claim([args.file.as_path()])?;
    let table = adapter_files::table(args.files.model.as_deref(), &[&args.file], context)?;
    let adapter = adapter_files::load(&args.file, &table, &args.files.loading.options(), context)?;
    let cut =
        adapter_files::with_progress(context, |progress| resize::resize(&adapter, &table, &limit, progress))?;
    if cut.losses.is_empty() {
        let kinds: BTreeSet<&str> = cut.kept.iter().map(|(_, algorithm)| *algorithm).collect();
        let kinds: Vec<&str> = kinds.into_iter().collect();
        return Err(Error::file(
            &args.file,
            format!("has no LoRA layer to resize, only {}", kinds.join(", ")),
        )
        .with_hint("`merge FILE --rank N` makes a LoRA of it"));
    }
    adapter_files::report_losses(&cut, args.layers, context);
    adapter_files::save(&cut.adapter, (&out, args.files.dialect), &table, context)
}
