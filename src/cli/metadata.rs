//! `scumble metadata`.

use std::path::PathBuf;

use serde_json::json;

use super::{Context, output};
use crate::{
    adapter::{
        Dialect, Metadata,
        metadata::FileHashes,
        privacy::{self, Stripped},
    },
    error::{Error, Result},
    files::walk,
    weights::{reader::SafetensorsFile, relabel},
};

/// Characters of a value that are shown.
const SHOWN: usize = 120;
/// Where ModelSpec keeps what calls a style.
const TRIGGER: &str = "modelspec.trigger_phrase";

/// Options of `metadata`. Without any, the metadata is shown.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file
    pub file: PathBuf,
    /// Set an entry, as often as you like
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Remove an entry, as often as you like
    #[arg(long, value_name = "KEY")]
    pub remove: Vec<String>,
    /// What to write in a prompt to call the style
    #[arg(long, value_name = "WORDS")]
    pub trigger: Option<String>,
    /// Take out names of folders and paths of the machine it was made on
    #[arg(long)]
    pub strip_private: bool,
    /// Write to another file instead of this one
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace what stands there already
    #[arg(long)]
    pub force: bool,
    /// Show values whole
    #[arg(long)]
    pub full: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<()> {
    walk::expect(&args.file, &["safetensors"])?;
    // Read, not mapped: it may be written over.
    let file = SafetensorsFile::read(&args.file)?;
    let mut metadata = Metadata(file.metadata().clone());
    let edits =
        !args.set.is_empty() || !args.remove.is_empty() || args.trigger.is_some() || args.strip_private;
    report(&edit(args, &mut metadata)?, args.full, context);
    let changed = metadata.0 != *file.metadata();
    if edits && (changed || args.out.is_some()) {
        let out = args.out.as_ref().unwrap_or(&args.file);
        let in_place = out.canonicalize().is_ok_and(|out| args.file.canonicalize().is_ok_and(|f| f == out));
        if !in_place {
            Dialect::default().check_name(out)?;
        }
        output::claim(out, args.force || in_place, [])?
            .fill(|out| relabel::write(&file, &metadata.0, out))?;
        let (hashes, kept) = (FileHashes::of(&SafetensorsFile::open(out)?), FileHashes::of(&file).auto_v3);
        let line = json!({ "event": "saved", "path": out, "auto_v2": hashes.auto_v2, "auto_v3": kept });
        context.console.note(&format!("the weights, and their hash {kept}, are as before"));
        context.console.result(&out.display().to_string(), &line);
    } else if edits {
        context.console.note("nothing to change");
    } else {
        show(&metadata, args.full, context);
    }
    Ok(())
}

fn report(stripped: &Stripped, full: bool, context: &Context) {
    for redaction in &stripped.redactions {
        match &redaction.left {
            Some(left) => context.console.note(&format!("{}: {}", redaction.key, shortened(left, full))),
            None => context.console.note(&format!("{}: removed", redaction.key)),
        }
    }
    for caption in &stripped.captions {
        context.console.note(&format!(
            "the caption `{caption}` was the name of a folder and is gone; if it calls the style, state it with `--trigger`"
        ));
    }
}

fn edit(args: &Args, metadata: &mut Metadata) -> Result<Stripped> {
    for key in &args.remove {
        if metadata.0.remove(key).is_none() {
            return Err(Error::unknown("metadata entry", key, metadata.0.keys().map(String::as_str)));
        }
    }
    let stripped = if args.strip_private { privacy::strip_private(metadata) } else { Stripped::default() };
    for entry in &args.set {
        match entry.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => metadata.set(key.trim(), value),
            _ => return Err(Error::invalid(format!("expected `--set key=value`, found `{entry}`"))),
        }
    }
    if let Some(words) = &args.trigger {
        metadata.set(TRIGGER, words.trim());
    }
    Ok(stripped)
}

fn show(metadata: &Metadata, full: bool, context: &Context) {
    let console = &context.console;
    if console.is_json() {
        console.data(&json!(metadata.0).to_string());
        return;
    }
    if metadata.0.is_empty() {
        console.note("this file has no metadata");
    }
    let width = metadata.0.keys().map(String::len).max().unwrap_or_default().min(40);
    for (key, value) in &metadata.0 {
        console.data(&format!("{key:<width$}  {}", shortened(value, full)));
    }
}

fn shortened(value: &str, full: bool) -> String {
    let one_line = value.replace('\n', "\\n");
    match one_line.char_indices().nth(SHOWN) {
        Some((end, _)) if !full => format!("{}… ({} characters)", &one_line[..end], value.chars().count()),
        _ => one_line,
    }
}
