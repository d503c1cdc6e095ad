//! `scumble library`: a folder of adapters, listed, searched, compared.

use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde_json::{Value, json};

use super::{Context, adapter_files, numbers::whole, setup};
use crate::{
    adapter::{
        Adapter, LoadOptions, NameTable,
        format::folder,
        library::{Card, Entry, Library, SortBy},
        similarity::{Profile, Similarity},
    },
    error::{Error, Result},
    files::{self, walk},
    progress::{Event, Observer as _, Stage},
    weights::Family,
};

/// Trigger words are cut to this many characters in a list.
const TRIGGER_SHOWN: usize = 48;
/// Adapters shown by `--similar`.
const TOP: usize = 10;
/// Adapters compared between two looks at the cancel token.
const CHUNK: usize = 16;

/// Options of `library`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder; those inside it are looked through too
    pub folder: PathBuf,
    /// Only adapters with all of these words in name, trigger words, tags or metadata
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
    /// Only adapters for a family: sd1, sd2, sdxl, sdxl-refiner, mini
    #[arg(long, value_name = "FAMILY", value_parser = setup::hinted::<Family>)]
    pub family: Option<Family>,
    /// path, name, size, date, rank, family
    #[arg(long, value_name = "ORDER", default_value = "path", value_parser = setup::hinted::<SortBy>)]
    pub sort: SortBy,
    /// Rank by how alike their changes are to this adapter's
    #[arg(long, value_name = "FILE")]
    pub similar: Option<PathBuf>,
    /// Show the first so many [default: all; 10 with --similar]
    #[arg(long, value_name = "N", value_parser = whole(1, usize::MAX))]
    pub top: Option<usize>,
    /// The model --similar compares on, if the adapter is for none of the known families
    #[arg(long, short, value_name = "MODEL", requires = "similar")]
    pub model: Option<String>,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    if !args.folder.exists() {
        return Err(walk::missing(&args.folder, &Path::is_dir));
    }
    if !args.folder.is_dir() {
        return Err(Error::file(&args.folder, "is no folder")
            .with_hint("`scumble inspect FILE` looks at single files"));
    }
    let cache = files::cache_folder();
    let place = (args.folder.as_path(), walk::ALL);
    let mut library = Library::scan(place, Some(&cache), &mut context.console, &context.cancel)?;
    let files = library.entries.len();
    if let Some(text) = &args.search {
        library.search(text);
    }
    if let Some(family) = args.family {
        library.of_family(family);
    }
    library.sort(args.sort);
    if let Some(file) = &args.similar {
        return similar(file, &library, args, context);
    }
    let shown = args.top.unwrap_or(usize::MAX);
    let console = &context.console;
    if console.is_json() {
        library.entries.iter().take(shown).for_each(|e| console.data(&as_json(e, &args.folder).to_string()));
        return Ok(());
    }
    let shown = list(&library.entries[..library.entries.len().min(shown)], context);
    let remembered = files - library.read;
    if files == 0 {
        context.console.note(&format!("there are no adapters in {} and its folders", args.folder.display()));
        return Ok(());
    }
    context.console.note(&format!("{shown} of {files} files shown, {remembered} remembered from before"));
    Ok(())
}

/// A table of the adapters, then the files that are none. How many adapters there are.
fn list(entries: &[Entry], context: &Context) -> usize {
    let console = &context.console;
    let rows: Vec<[String; 6]> =
        entries.iter().filter_map(|e| Some(row(e, e.content.as_ref().ok()?))).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or_default();
    let widths: [usize; 5] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(i, (cell, width))| match i {
            // Numbers to the right.
            2 | 4 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        let line = cells.chain(row.last().cloned()).collect::<Vec<_>>().join("  ");
        console.data(line.trim_end());
    }
    for entry in entries {
        if let Err(reason) = &entry.content {
            console.note(&format!("warning: {}: {reason}", entry.path.display()));
        }
    }
    rows.len()
}

fn row(entry: &Entry, card: &Card) -> [String; 6] {
    let family = card.family.map_or("?", Family::name);
    let algorithms: Vec<&str> = card.algorithms.keys().map(String::as_str).collect();
    let words = card.triggers.join(", ");
    let words = match words.char_indices().nth(TRIGGER_SHOWN) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    };
    [
        entry.path.with_extension("").display().to_string(),
        family.into(),
        ranks(&card.ranks),
        algorithms.join(" + "),
        format!("{:.1} MB", entry.stamp.bytes as f64 / 1e6),
        words,
    ]
}

fn ranks(sorted: &[usize]) -> String {
    match sorted {
        [] => String::new(),
        [one] => format!("r{one}"),
        [first, .., last] => format!("r{first}-{last}"),
    }
}

fn as_json(entry: &Entry, folder: &Path) -> Value {
    let path = folder.join(&entry.path);
    match &entry.content {
        Ok(card) => {
            let mut line =
                json!({ "event": "adapter", "path": path, "name": entry.name, "bytes": entry.stamp.bytes });
            if let (Some(line), Value::Object(card)) = (line.as_object_mut(), json!(card)) {
                line.extend(card);
            }
            line
        }
        Err(reason) => {
            json!({ "event": "broken", "path": path, "bytes": entry.stamp.bytes, "reason": reason })
        }
    }
}

/// An adapter of the library beside the one asked for.
struct Compared<'a> {
    entry: &'a Entry,
    outcome: Result<Similarity, String>,
}

fn similar(file: &Path, library: &Library, args: &Args, context: &mut Context) -> Result<()> {
    let table = adapter_files::table(args.model.as_deref(), &[file], context)?;
    let options = LoadOptions { allow_unmatched: true, ..LoadOptions::default() };
    let profile = Profile::of(&Adapter::load(file, &table, &options)?, &table)?;
    if profile.is_empty() {
        return Err(Error::file(
            file,
            "none of its layers is a product of factors, so there is nothing to compare",
        ));
    }
    let family = Card::of(&folder::look(file)?)?.family;
    let same: Vec<&Entry> =
        library.entries.iter().filter(|e| e.content.is_ok() && e.family() == family).collect();
    let others = library.entries.len() - same.len();
    let total = same.len() as u64;
    let (mut compared, Context { console, cancel, .. }) = (Vec::new(), &mut *context);
    console.observe(&Event::Started { stage: Stage::Adapters, total });
    for chunk in same.chunks(CHUNK) {
        cancel.check()?;
        let one = |entry: &&Entry| compare(&profile, &args.folder.join(&entry.path), &table);
        let outcomes: Vec<Result<Similarity, String>> = chunk.par_iter().map(one).collect();
        compared.extend(chunk.iter().zip(outcomes).map(|(entry, outcome)| Compared { entry, outcome }));
        console.observe(&Event::Advanced { stage: Stage::Adapters, done: compared.len() as u64, total });
    }
    console.observe(&Event::Finished { stage: Stage::Adapters });
    console.close();
    show_similar(&mut compared, others, args, context);
    Ok(())
}

fn compare(profile: &Profile, path: &Path, table: &NameTable) -> Result<Similarity, String> {
    let options = LoadOptions { allow_unmatched: true, ..LoadOptions::default() };
    let other = Adapter::load(path, table, &options).and_then(|adapter| Profile::of(&adapter, table));
    match other {
        Ok(other) if other.is_empty() => Err("has no layer that is a product of factors".into()),
        Ok(other) => profile.similarity(&other).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

fn show_similar(compared: &mut [Compared<'_>], others: usize, args: &Args, context: &Context) {
    let console = &context.console;
    let rank = |c: &Compared<'_>| c.outcome.as_ref().map_or(-1.0, |s| s.subspace);
    compared.sort_by(|a, b| rank(b).total_cmp(&rank(a)).then_with(|| a.entry.path.cmp(&b.entry.path)));
    for Compared { entry, outcome } in compared.iter().take(args.top.unwrap_or(TOP)) {
        match outcome {
            Ok(Similarity { subspace, cosine, shared }) => {
                let path = args.folder.join(&entry.path);
                let object = json!({ "event": "similar", "path": path, "name": entry.name,
                    "similarity": subspace, "cosine": cosine, "shared_layers": shared });
                let name = entry.path.with_extension("");
                let text = format!("{subspace:.3}  {cosine:+.3}  {shared:>4}  {}", name.display());
                console.result(&text, &object);
            }
            Err(reason) => console.note(&format!("warning: {}: {reason}", entry.path.display())),
        }
    }
    if others > 0 {
        console.note(&format!("{others} files are no adapters, or not for the same family"));
    }
    console.note("columns: subspace similarity (0 to 1), cosine (-1 to 1), layers both change");
}
