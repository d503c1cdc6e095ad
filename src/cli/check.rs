//! `scumble check`: proof that an adapter fits a model, key by key, and how much it changes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Context, adapter_files, setup};
use crate::{
    adapter::{
        NameTable,
        check::{self, Check, LayerChange},
    },
    error::{Error, Result},
    pipeline::layers::{self, BaseWeights},
    weights::Family,
};

/// Keys and layers that are listed without `--all`.
const LISTED: usize = 10;

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Adapters' files, or folders of PEFT's
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The model they are for; its weights tell how much each layer is changed
    #[arg(long, short, conflicts_with = "family")]
    pub model: Option<String>,
    /// Only the layers of a family, without a model: sd1, sd2, sdxl, sdxl-refiner, mini [default: the one that fits best]
    #[arg(long, value_name = "FAMILY", value_parser = setup::hinted::<Family>)]
    pub family: Option<Family>,
    /// List every key that was not applied and every layer's change
    #[arg(long)]
    pub all: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let base = Base::open(args, context)?;
    let mut failed = Vec::new();
    super::for_each_file(&args.files, context, |path, context| {
        if !check_file(path, base.as_ref(), args, context)? {
            failed.push(path.display().to_string());
        }
        Ok(())
    })?;
    match failed.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::invalid(format!("{one} does not fit"))),
        several => Err(Error::invalid(format!("{} of {} files do not fit", several.len(), args.files.len()))),
    }
}

/// What files are checked against.
struct Base {
    table: NameTable,
    /// Without a model there are only names and shapes.
    weights: Option<BaseWeights>,
}

impl Base {
    /// `None` if each file shall be checked against whichever family it fits best.
    fn open(args: &Args, context: &mut Context) -> Result<Option<Self>> {
        if let Some(model) = &args.model {
            let checkpoint = adapter_files::open_checkpoint(model, context)?;
            let weights = Some(BaseWeights::open(&checkpoint)?);
            return Ok(Some(Self { table: layers::of_checkpoint(&checkpoint)?, weights }));
        }
        let of_family = |family| Ok(Self { table: layers::of_family(family)?, weights: None });
        args.family.map(of_family).transpose()
    }
}

/// True if all of the file is applied.
fn check_file(path: &Path, base: Option<&Base>, args: &Args, context: &mut Context) -> Result<bool> {
    let best;
    let (table, weights) = match base {
        Some(Base { table, weights }) => (table, weights.as_ref()),
        None => {
            best = adapter_files::table(None, &[path], context)?;
            (&best, None)
        }
    };
    let check = Check::of(path, table)?;
    let changes = match (&check.adapter, weights) {
        (Ok(adapter), Some(weights)) => Some(check::changes(adapter, table, &|path| weights.get(path))?),
        _ => None,
    };
    let console = &context.console;
    if console.is_json() {
        console.data(&as_json(path, &check, changes.as_deref()).to_string());
    } else {
        lines(path, &check, changes.as_deref(), args.all).iter().for_each(|line| console.data(line));
    }
    Ok(check.passed())
}

fn lines(path: &Path, check: &Check, changes: Option<&[LayerChange]>, all: bool) -> Vec<String> {
    let (report, shown) = (&check.report, if all { usize::MAX } else { LISTED });
    let total = report.matched + report.unmatched.len();
    // Of a file that is refused nothing is applied, whatever its names.
    let done = if check.adapter.is_ok() { "applied" } else { "named as layers of the model" };
    let percent = 100.0 * report.coverage();
    let mut lines = vec![
        path.display().to_string(),
        format!("  {}, {} of {total} keys {done} ({percent:.1} %)", report.dialect, report.matched),
    ];
    if let Err(e) = &check.adapter {
        // What is behind the first line is the list below.
        lines.push(format!("  refused: {}", e.to_string().lines().next().unwrap_or_default()));
        lines.extend(e.hint().map(|hint| format!("  hint: {hint}")));
    }
    lines.extend(report.warnings.iter().map(|w| format!("  warning: {w}")));
    if !report.unmatched.is_empty() {
        lines.push("  not applied:".into());
        lines.extend(report.unmatched.iter().take(shown).map(|u| format!("    {u}")));
        lines.extend(more(report.unmatched.len(), shown));
    }
    if let (Some(changes), Ok(adapter)) = (changes, &check.adapter) {
        let whole = |f: fn(&LayerChange) -> f64| changes.iter().map(|c| f(c) * f(c)).sum::<f64>().sqrt();
        let share = 100.0 * whole(|c| c.change) / whole(|c| c.base).max(f64::MIN_POSITIVE);
        lines.push(format!(
            "  changes {} layers by {share:.2} % of their weights, most of all",
            adapter.layers.len()
        ));
        lines.extend(changes.iter().take(shown).map(change));
        lines.extend(more(changes.len(), shown));
    }
    lines
}

fn change(c: &LayerChange) -> String {
    let rank = c.rank.map(|r| format!(" rank {r}")).unwrap_or_default();
    let alpha = c.alpha.map(|a| format!(" alpha {a}")).unwrap_or_default();
    format!("    {:>7.2} %  {}  {}{rank}{alpha}", 100.0 * c.relative(), c.path, c.algorithm)
}

fn more(of: usize, shown: usize) -> Option<String> {
    let left = of.saturating_sub(shown);
    (left > 0).then(|| format!("    and {left} more, which `--all` lists"))
}

fn as_json(path: &Path, check: &Check, changes: Option<&[LayerChange]>) -> Value {
    let report = &check.report;
    let change = |c: &LayerChange| {
        json!({ "layer": c.path.to_string(), "algorithm": c.algorithm, "rank": c.rank, "alpha": c.alpha,
            "change": c.change, "base": c.base, "relative": c.relative() })
    };
    json!({
        "event": "check", "path": path, "passed": check.passed(), "dialect": report.dialect,
        "applied": if check.adapter.is_ok() { report.matched } else { 0 }, "coverage": check.coverage(),
        "layers": check.adapter.as_ref().map(|a| a.layers.len()).unwrap_or_default(),
        "refused": check.adapter.as_ref().err().map(ToString::to_string), "warnings": report.warnings,
        "unmatched": report.unmatched.iter().map(|u| json!({ "key": u.key, "reason": u.reason.to_string() })).collect::<Vec<_>>(),
        "changes": changes.map(|changes| changes.iter().map(change).collect::<Vec<_>>()),
    })
}
