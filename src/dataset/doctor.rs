//! What is wrong or doubtful in a folder, found before any model is loaded.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Bucket, Dataset};

/// CLIP reads 77 tokens, two of which are start and end.
pub const CLIP_TOKENS: usize = 75;

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Problem {
    /// A picture that was skipped.
    Skipped { path: PathBuf, reason: String },
    /// A folder or file that holds pictures but is not read.
    Ignored { path: PathBuf, reason: String },
    /// Something about how the folder is laid out.
    Layout { path: PathBuf, reason: String },
    /// A caption file that could not be used.
    BadCaption { path: PathBuf, reason: String },
    /// Pictures without a caption of their own.
    MissingCaptions { paths: Vec<PathBuf>, class: String },
    /// The same file content more than once.
    Duplicate { paths: Vec<PathBuf> },
    /// A caption that needs more than one CLIP chunk.
    LongCaption { path: PathBuf, tokens: usize },
    /// Pictures smaller than their bucket: they are enlarged.
    Upscaled { paths: Vec<PathBuf>, bucket: Bucket },
    /// Transparency, laid on white.
    Alpha { paths: Vec<PathBuf> },
}

impl Problem {
    /// True if a picture is lost by it.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Skipped { .. } | Self::Ignored { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped { path, reason } => write!(f, "skipped {}: {reason}", path.display()),
            Self::Ignored { path, reason } => write!(f, "ignored {}: {reason}", path.display()),
            Self::Layout { path, reason } | Self::BadCaption { path, reason } => {
                write!(f, "{}: {reason}", path.display())
            }
            Self::MissingCaptions { paths, class } => {
                write!(f, "{} without a caption, `{class}` is used: {}", pictures(paths.len()), some(paths))
            }
            Self::Duplicate { paths } => write!(f, "the same picture {} times: {}", paths.len(), some(paths)),
            Self::LongCaption { path, tokens } => write!(
                f,
                "{}: the caption has {tokens} tokens, more than the {CLIP_TOKENS} read at once: it is read in pieces",
                path.display()
            ),
            Self::Upscaled { paths, bucket } => {
                write!(f, "{} enlarged to {bucket}, which blurs: {}", pictures(paths.len()), some(paths))
            }
            Self::Alpha { paths } => {
                write!(f, "{} with transparency, laid on white: {}", pictures(paths.len()), some(paths))
            }
        }
    }
}

fn pictures(n: usize) -> String {
    if n == 1 { "1 picture".into() } else { format!("{n} pictures") }
}

/// The first few names.
fn some(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().take(3).map(|p| p.display().to_string()).collect();
    let rest = paths.len().saturating_sub(names.len());
    if rest == 0 { names.join(", ") } else { format!("{} and {rest} more", names.join(", ")) }
}

/// The state of a folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Usable pictures.
    pub images: usize,
    /// Pictures seen in an epoch, repeats counted.
    pub samples_per_epoch: usize,
    /// Pictures by bucket, as `WxH`.
    pub buckets: BTreeMap<String, usize>,
    /// Everything found.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} seen in an epoch", pictures(self.images), self.samples_per_epoch)?;
        let buckets: Vec<String> = self.buckets.iter().map(|(size, n)| format!("{size} ({n})")).collect();
        writeln!(f, "sizes: {}", buckets.join(", "))?;
        if self.problems.is_empty() {
            return writeln!(f, "nothing to complain about");
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "- {problem}"))
    }
}

/// Examines a scanned folder. `count_tokens` gives a caption's CLIP tokens without start and end.
pub fn examine(dataset: &Dataset, count_tokens: Option<&dyn Fn(&str) -> usize>) -> Report {
    let mut problems = dataset.problems().to_vec();
    problems.extend(missing_captions(dataset));
    problems.extend(duplicates(dataset));
    problems.extend(upscaled(dataset));
    let paths = |keep: &dyn Fn(&super::Item) -> bool| -> Vec<PathBuf> {
        dataset.items().iter().filter(|i| keep(i)).map(|i| i.path.clone()).collect()
    };
    let alpha = paths(&|i| i.alpha);
    if !alpha.is_empty() {
        problems.push(Problem::Alpha { paths: alpha });
    }
    for item in dataset.items() {
        let tokens = count_tokens.map_or(0, |count| count(&item.caption));
        if tokens > CLIP_TOKENS {
            problems.push(Problem::LongCaption { path: item.path.clone(), tokens });
        }
    }
    Report {
        images: dataset.len(),
        samples_per_epoch: dataset.samples_per_epoch(),
        buckets: dataset.bucket_counts().into_iter().map(|(b, n)| (b.to_string(), n)).collect(),
        problems,
    }
}

/// What a run must be told of its captions before it learns from them, a line each: which are no captions, and which are
/// longer than the text encoder reads at once.
pub fn caption_notes(dataset: &Dataset, count_tokens: &dyn Fn(&str) -> usize) -> Vec<String> {
    let mut notes = Vec::new();
    let silent: Vec<&super::Item> = dataset.items().iter().filter(|i| !i.captioned).collect();
    if !silent.is_empty() {
        let mut classes: Vec<&str> =
            silent.iter().map(|i| dataset.folders()[i.folder].class.as_str()).collect();
        classes.dedup();
        let used = match classes.as_slice() {
            [class] => format!("`{class}` is"),
            _ => "their folders' names are".to_owned(),
        };
        let paths: Vec<PathBuf> = silent.iter().map(|i| i.path.clone()).collect();
        notes.push(format!("{} without a caption, {used} used: {}", pictures(paths.len()), some(&paths)));
    }
    let counted = dataset.items().iter().map(|i| (count_tokens(&i.caption), &i.path));
    let long: Vec<(usize, &PathBuf)> = counted.filter(|(tokens, _)| *tokens > CLIP_TOKENS).collect();
    if let Some((most, longest)) = long.iter().max_by_key(|(tokens, _)| *tokens) {
        let captions =
            if long.len() == 1 { "1 caption is".into() } else { format!("{} captions are", long.len()) };
        notes.push(format!(
            "{captions} longer than the {CLIP_TOKENS} tokens a text encoder reads at once ({most} beside {}): \
             read in pieces of {CLIP_TOKENS}, nothing is cut off",
            longest.display()
        ));
    }
    notes
}

fn upscaled(dataset: &Dataset) -> Vec<Problem> {
    let mut by_bucket: BTreeMap<Bucket, Vec<PathBuf>> = BTreeMap::new();
    for item in dataset.items().iter().filter(|i| i.placement.upscaled) {
        by_bucket.entry(item.placement.bucket).or_default().push(item.path.clone());
    }
    by_bucket.into_iter().map(|(bucket, paths)| Problem::Upscaled { paths, bucket }).collect()
}

fn missing_captions(dataset: &Dataset) -> Vec<Problem> {
    let mut by_folder: BTreeMap<usize, Vec<PathBuf>> = BTreeMap::new();
    for item in dataset.items().iter().filter(|i| !i.captioned) {
        by_folder.entry(item.folder).or_default().push(item.path.clone());
    }
    let class = |folder: usize| dataset.folders()[folder].class.clone();
    by_folder.into_iter().map(|(f, paths)| Problem::MissingCaptions { paths, class: class(f) }).collect()
}

fn duplicates(dataset: &Dataset) -> Vec<Problem> {
    let mut by_hash: BTreeMap<[u8; 32], Vec<&Path>> = BTreeMap::new();
    for item in dataset.items() {
        by_hash.entry(item.hash).or_default().push(&item.path);
    }
    let mut groups: Vec<Vec<PathBuf>> = by_hash
        .into_values()
        .filter(|paths| paths.len() > 1)
        .map(|paths| paths.into_iter().map(Path::to_path_buf).collect())
        .collect();
    groups.sort();
    groups.into_iter().map(|paths| Problem::Duplicate { paths }).collect()
}
