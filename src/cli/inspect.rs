//! `scumble inspect`: what an adapter's file holds, from its header, without loading a model.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Context;
use crate::{
    adapter::{
        Metadata, Survey, card,
        format::folder,
        metadata::FileHashes,
        survey::{BlockSummary, BundledEmbedding, SurveyedModule},
    },
    error::Result,
    progress::CancelToken,
    weights::{
        hashes::{Digests, HashCache},
        reader::{Entry, SafetensorsFile},
    },
};

/// Tags that are shown.
const TAGS: usize = 20;
/// Names that are listed before "and so many more".
const LISTED: usize = 5;

/// Options of `inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Adapters' files, or folders of PEFT's
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Read whole files for their hashes; the hashes are remembered
    #[arg(long)]
    pub hash: bool,
    /// Also list every tensor
    #[arg(long)]
    pub keys: bool,
    /// Show every tag and every layer's rank and alpha
    #[arg(long)]
    pub full: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    super::for_each_file(&args.files, context, |path, context| {
        let console = &context.console;
        let found = Findings::of(path, args, &context.cancel)?;
        if console.is_json() {
            console.data(&found.as_json(args).to_string());
        } else {
            found.lines(args).iter().for_each(|line| console.data(line));
        }
        Ok(())
    })
}

struct Findings<'a> {
    path: &'a Path,
    bytes: u64,
    file: SafetensorsFile,
    survey: Survey,
    metadata: Metadata,
    /// Known without reading the file, or read.
    hashes: Option<Digests>,
    /// AutoV3 as the file's writer noted it.
    stated_v3: Option<String>,
}

impl<'a> Findings<'a> {
    fn of(path: &'a Path, args: &Args, cancel: &CancelToken) -> Result<Self> {
        let file = folder::look(path)?;
        let mut survey = Survey::of(&file).map_err(|e| e.at(path))?;
        let metadata = Metadata(file.metadata().clone());
        let stated = metadata.get("sshs_model_hash").and_then(|hash| hash.get(..12)).map(str::to_lowercase);
        let on_disk = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
        // A folder is no file that a site could know by its hash.
        let hashes = on_disk.as_ref().map(|_| hashes(path, args.hash, cancel)).transpose()?.flatten();
        if let (Some(found), Some(stated)) = (&hashes, &stated)
            && FileHashes::short(found).auto_v3 != *stated
        {
            survey.warnings.push(format!("metadata `sshs_model_hash` ({stated}…) is of other weights"));
        }
        let bytes = on_disk.map_or(file.file_bytes().len() as u64, |found| found.len());
        Ok(Self { path, bytes, survey, metadata, hashes, stated_v3: stated, file })
    }

    fn lines(&self, args: &Args) -> Vec<String> {
        let (survey, mut table) = (&self.survey, Table::default());
        match survey.foreign {
            Some(what) => table.add("belongs to", what),
            None => table.add("family", &survey.family.to_string()),
        }
        table.add("dialect", &join(&survey.dialects));
        table.add("algorithm", &counts(survey.algorithms()));
        table.add("trained", &counts(survey.trained()));
        let (dtypes, tensors) = (self.dtypes().join(", "), self.file.names().count());
        table.add("size", &format!("{:.2} MB, {tensors} tensors, {dtypes}", self.bytes as f64 / 1e6));
        table.add("hash", &self.hash_line());
        self.told(&mut table, args);
        table.add("embeddings", &join(survey.embeddings.iter().map(embedding)));
        for warning in &survey.warnings {
            table.add("warning", warning);
        }
        if !survey.unknown.is_empty() {
            table.add("unknown keys", &listed(&survey.unknown));
        }
        let mut lines = vec![self.path.display().to_string()];
        lines.extend(table.0.iter().map(|(what, text)| format!("  {what:<12} {text}")));
        lines.extend(blocks(&survey.blocks()));
        if args.full {
            let layer = |m: &SurveyedModule| {
                format!("  {}  {}{}", m.name, m.algorithm, rank_and_alpha(m.rank, m.alpha))
            };
            lines.extend(survey.modules.iter().map(layer));
        }
        if args.keys {
            let key = |(name, entry): (&String, &Entry)| {
                format!("  {name}  {} {:?}", entry.dtype.name(), entry.shape)
            };
            lines.extend(self.file.header().tensors.iter().map(key));
        }
        lines
    }

    fn hash_line(&self) -> String {
        match (&self.hashes, &self.stated_v3) {
            (Some(found), _) => {
                let FileHashes { auto_v2, auto_v3 } = FileHashes::short(found);
                format!("{auto_v2} (AutoV2, the file), {auto_v3} (AutoV3, the weights)")
            }
            _ if self.path.is_dir() => String::new(),
            (None, Some(stated)) => format!("{stated} (AutoV3, as its writer noted; --hash reads the file)"),
            (None, None) => "not read (--hash reads the file)".into(),
        }
    }

    /// What the metadata say.
    fn told(&self, table: &mut Table, args: &Args) {
        let m = &self.metadata;
        table.add("name", card::title(m).unwrap_or_default());
        table.add("base model", &card::base_model(m).unwrap_or_default());
        let trigger = card::trigger(m);
        let words = trigger.words.join(", ");
        let source = if trigger.stated { "" } else { " (in every caption)" };
        table.add("trigger", &if words.is_empty() { words } else { format!("{words}{source}") });
        let tags = card::tags(m);
        let shown = tags.iter().take(if args.full { usize::MAX } else { TAGS });
        let more = if args.full { 0 } else { tags.len().saturating_sub(TAGS) };
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let shown = shown.map(|(tag, count)| format!("{tag} ({count})"));
        table.add("tags", &format!("{}{more}", join(shown)));
        let recipe = card::recipe(m);
        table.add("recipe", &join(recipe.iter().map(|(label, value)| format!("{label} {value}"))));
    }

    fn dtypes(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.file.header().tensors.values().map(|e| e.dtype.name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn as_json(&self, args: &Args) -> Value {
        let (survey, m) = (&self.survey, &self.metadata);
        let trigger = card::trigger(m);
        let (family, short) = (&survey.family, self.hashes.as_ref().map(FileHashes::short));
        let module = |m: &SurveyedModule| {
            json!({ "name": m.name, "block": m.block.to_string(), "kind": m.kind.to_string(),
                "algorithm": m.algorithm, "rank": m.rank, "alpha": m.alpha })
        };
        let tensor = |(name, entry): (&String, &Entry)| json!({ "name": name, "dtype": entry.dtype.name(), "shape": entry.shape });
        json!({
            "path": self.path, "bytes": self.bytes,
            "family": family.lineage.map(|l| l.family().name()), "family_evidence": family.evidence,
            "belongs_to": survey.foreign, "dialects": survey.dialects, "algorithms": survey.algorithms(),
            "trained": survey.trained().iter().map(|(k, n)| (k.to_string(), json!(n))).collect::<serde_json::Map<_, _>>(),
            "blocks": survey.blocks().iter().map(block_json).collect::<Vec<_>>(),
            "layers": survey.modules.len(), "modules": args.full.then(|| survey.modules.iter().map(module).collect::<Vec<_>>()),
            "sha256": self.hashes.as_ref().map(|h| &h.file),
            "auto_v2": short.as_ref().map(|h| &h.auto_v2), "auto_v3": short.as_ref().map(|h| &h.auto_v3),
            "auto_v3_stated": self.stated_v3,
            "name": card::title(m), "base_model": card::base_model(m),
            "trigger_words": trigger.words, "trigger_words_stated": trigger.stated, "tags": card::tags(m),
            "recipe": card::recipe(m).into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<serde_json::Map<_, _>>(),
            "embeddings": survey.embeddings.iter().map(embedding_json).collect::<Vec<_>>(),
            "dtypes": self.dtypes(), "warnings": survey.warnings, "unknown_keys": survey.unknown,
            "tensors": self.file.header().tensors.iter().map(tensor).collect::<Vec<_>>(), "metadata": m.0,
        })
    }
}

/// Reads the whole file only where the hashes are asked for and not remembered.
fn hashes(path: &Path, read: bool, cancel: &CancelToken) -> Result<Option<Digests>> {
    let (file, cache) = (SafetensorsFile::open(path)?, HashCache::from_env());
    if read { cache.digests(&file, cancel).map(Some) } else { Ok(cache.known(&file)) }
}

/// What and its text; what has none is left out.
#[derive(Default)]
struct Table(Vec<(&'static str, String)>);

impl Table {
    fn add(&mut self, what: &'static str, text: &str) {
        if !text.is_empty() {
            self.0.push((what, text.replace('\n', " ")));
        }
    }
}

fn join(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn counts(counts: impl IntoIterator<Item = (impl ToString, usize)>) -> String {
    join(counts.into_iter().map(|(what, n)| format!("{} × {n}", what.to_string())))
}

fn listed(names: &[String]) -> String {
    let shown = join(names.iter().take(LISTED).map(|name| format!("`{name}`")));
    let more = names.len().saturating_sub(LISTED);
    if more > 0 { format!("{shown}, and {more} more") } else { shown }
}

fn embedding(e: &BundledEmbedding) -> String {
    let shape = |(name, shape): &(String, Vec<usize>)| {
        let sides: Vec<String> = shape.iter().map(ToString::to_string).collect();
        format!("{name} {}", sides.join("×"))
    };
    format!("{} ({})", e.name, join(e.vectors.iter().map(shape)))
}

fn rank_and_alpha(rank: Option<usize>, alpha: Option<f64>) -> String {
    let rank = rank.map(|r| format!(", rank {r}")).unwrap_or_default();
    format!("{rank}{}", alpha.map(|a| format!(", alpha {a}")).unwrap_or_default())
}

/// Ranks and alphas, block by block.
fn blocks(blocks: &[BlockSummary]) -> Vec<String> {
    let row =
        |b: &BlockSummary| [b.block.to_string(), b.modules.to_string(), range(&b.ranks), range(&b.alphas)];
    let head = ["block", "layers", "rank", "alpha"].map(String::from);
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(blocks.iter().map(row)).collect();
    let lines = rows
        .iter()
        .map(|[block, layers, rank, alpha]| format!("  {block:<6} {layers:>6}  {rank:<10} {alpha}"));
    lines.map(|line| line.trim_end().to_string()).filter(|_| !blocks.is_empty()).collect()
}

/// Few values one by one, many from the least to the greatest.
fn range<T: ToString>(sorted: &[T]) -> String {
    match sorted {
        [] => "-".into(),
        [first, .., last] if sorted.len() > 4 => format!("{} to {}", first.to_string(), last.to_string()),
        few => join(few.iter().map(ToString::to_string)),
    }
}

fn embedding_json(e: &BundledEmbedding) -> Value {
    let vectors = e.vectors.iter().map(|(name, shape)| (name.clone(), json!(shape)));
    json!({ "name": e.name, "vectors": vectors.collect::<serde_json::Map<_, _>>() })
}

fn block_json(b: &BlockSummary) -> Value {
    json!({ "block": b.block.to_string(), "layers": b.modules, "ranks": b.ranks, "alphas": b.alphas })
}
