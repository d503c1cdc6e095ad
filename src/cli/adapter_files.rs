//! What the subcommands that work on adapter files share: which model's layers they are for, reading, writing, what was
//! lost.

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::json;

use super::{
    Context,
    numbers::real,
    output::{self, Output},
};
use crate::{
    adapter::{
        Adapter, Dialect, LoadOptions, NameTable, SaveOptions,
        format::folder,
        layers::Progress,
        resize::Cut,
        truncate::{LayerLoss, total_error},
    },
    device::Precision,
    error::Result,
    pipeline::layers,
    weights::{Checkpoint, ModelSource, OpenOptions},
};

/// No file was made to be stronger than this.
const MAX_SCALE: f64 = 1000.0;
/// Layers named when the losses are shown, the worst first.
const SHOWN: usize = 5;

/// Options of every subcommand that reads adapters and writes one.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FileArgs {
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// The model the adapters are for, if it is not one of the known families: its layers are read, not its weights
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// How names are spelled in the new file
    #[arg(long, value_name = "DIALECT", default_value_t, value_parser = super::setup::hinted::<Dialect>)]
    pub dialect: Dialect,
    #[command(flatten)]
    pub loading: LoadArgs,
    /// Replace what stands there already
    #[arg(long)]
    pub force: bool,
}

impl FileArgs {
    /// Takes the output for this run, before anything is computed.
    pub fn claim<'a>(&self, inputs: impl IntoIterator<Item = &'a Path>) -> Result<Output> {
        self.dialect.check_name(&self.out)?;
        output::claim(&self.out, self.force, inputs)
    }
}

/// How adapters are read.
#[derive(Debug, Default, Clone, Copy, clap::Args)]
pub(super) struct LoadArgs {
    /// Use an adapter of which some keys fit nothing, without these
    #[arg(long)]
    pub allow_unmatched: bool,
    /// Scale of LoKr layers with two whole factors, alpha / rank of a few files that are far too strong [default: 1]
    #[arg(long, value_name = "SCALE", allow_hyphen_values = true, value_parser = real(0.0, MAX_SCALE))]
    pub whole_lokr_scale: Option<f64>,
}

impl LoadArgs {
    pub fn options(self) -> LoadOptions {
        let Self { allow_unmatched, whole_lokr_scale } = self;
        LoadOptions { allow_unmatched, whole_lokr_scale }
    }
}

/// Opens a model's files.
pub(super) fn open_checkpoint(name: &str, context: &mut Context) -> Result<Checkpoint> {
    let options = OpenOptions { offline: context.global.offline, ..OpenOptions::default() };
    ModelSource::parse(name)?.open(&options, &mut context.console, &context.cancel)
}

/// The layers the adapters of these files are for.
pub(super) fn table(model: Option<&str>, inputs: &[&Path], context: &mut Context) -> Result<NameTable> {
    if let Some(model) = model {
        return layers::of_checkpoint(&open_checkpoint(model, context)?);
    }
    let files = inputs.iter().map(|path| folder::open(path)).collect::<Result<Vec<_>>>()?;
    let (name, table) = layers::detect(&files)?;
    context.console.note(&format!("for {name}"));
    Ok(table)
}

/// Reads an adapter and says what was found.
pub(super) fn load(
    path: &Path,
    table: &NameTable,
    options: &LoadOptions,
    context: &Context,
) -> Result<Adapter> {
    let adapter = Adapter::load(path, table, options)?;
    let report = &adapter.report;
    for warning in report.warnings.iter().cloned().chain(report.unmatched.iter().map(ToString::to_string)) {
        context.console.note(&format!("warning: {}: {warning}", path.display()));
    }
    Ok(adapter)
}

/// Writes an adapter and names the file on standard output.
pub(super) fn save(
    adapter: &Adapter,
    (out, dialect): (&Output, Dialect),
    table: &NameTable,
    context: &Context,
) -> Result<()> {
    context.cancel.check()?;
    let options = SaveOptions { dialect, dtype: dtype(context) };
    out.fill(|path| adapter.save(path, table, &options))?;
    let out = out.path();
    let bytes = std::fs::metadata(out).map(|m| m.len()).unwrap_or_default();
    let line = json!({ "event": "saved", "path": out, "bytes": bytes, "layers": adapter.layers.len() });
    context.console.result(&out.display().to_string(), &line);
    Ok(())
}

/// What `--dtype` says of a file's numbers; `None` leaves it to the work.
pub(super) fn dtype(context: &Context) -> Option<DType> {
    match context.global.dtype? {
        Precision::Auto => None,
        Precision::F32 => Some(DType::F32),
        Precision::F16 => Some(DType::F16),
        Precision::Bf16 => Some(DType::BF16),
    }
}

/// Runs with the console as the observer.
pub(super) fn with_progress<R>(
    context: &mut Context,
    work: impl FnOnce(&mut Progress<'_>) -> Result<R>,
) -> Result<R> {
    let result = work(&mut Progress { observer: &mut context.console, cancel: &context.cancel });
    context.console.close();
    result
}

/// Says what was lost, in total and where most.
pub(super) fn report_losses(cut: &Cut, every_layer: bool, context: &Context) {
    let console = &context.console;
    for (layer, algorithm) in &cut.kept {
        console.note(&format!("warning: {layer} is {algorithm}, which is kept as it is"));
    }
    if !cut.left_out.is_empty() {
        let (n, some) = (cut.left_out.len(), some_of(&cut.left_out));
        console.note(&format!(
            "warning: {n} more layers differ and are left out ({some}): `--conv-rank` takes convolutions, too"
        ));
    }
    // Arithmetic on factors has no change of its own to be compared with.
    let compared = cut.losses.iter().any(|loss| loss.norm > 0.0);
    let total = compared.then(|| total_error(&cut.losses));
    let mut worst: Vec<&LayerLoss> = cut.losses.iter().filter(|l| l.error > 0.0).collect();
    worst.sort_by(|a, b| b.relative().total_cmp(&a.relative()).then_with(|| a.layer.cmp(&b.layer)));
    let shown: Vec<&LayerLoss> = if every_layer || console.is_json() {
        cut.losses.iter().collect()
    } else {
        worst.into_iter().take(SHOWN).collect()
    };
    if !every_layer && !shown.is_empty() && !console.is_json() {
        console.note("most was lost on");
    }
    for loss in shown {
        let (before, after) = loss.ranks;
        let text = format!("  {:5.2} %  rank {before} → {after}  {}", 100.0 * loss.relative(), loss.layer);
        let object = json!({ "event": "layer", "layer": loss.layer.to_string(), "rank_before": before,
            "rank": after, "norm": loss.norm, "error": loss.error });
        if console.is_json() { console.data(&object.to_string()) } else { console.note(&text) }
    }
    let ranks = cut.losses.iter().map(|l| l.ranks.1);
    let (least, most) = (ranks.clone().min().unwrap_or_default(), ranks.max().unwrap_or_default());
    let layers = cut.losses.len();
    if console.is_json() {
        let line = json!({ "event": "result", "layers": layers, "relative_error": total, "rank_min": least, "rank_max": most,
            "left_out": cut.left_out.iter().map(ToString::to_string).collect::<Vec<_>>() });
        console.data(&line.to_string());
    } else {
        let ranks = if least == most { format!("rank {most}") } else { format!("ranks {least} to {most}") };
        let error = total.map(|total| format!(", relative error {:.3} % in total", 100.0 * total));
        console.note(&format!("{layers} layers, {ranks}{}", error.unwrap_or_default()));
    }
}

fn some_of(layers: &[impl ToString]) -> String {
    let named: Vec<String> = layers.iter().take(3).map(ToString::to_string).collect();
    format!("{}{}", named.join(", "), if layers.len() > 3 { ", …" } else { "" })
}
