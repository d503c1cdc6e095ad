//! A folder of adapters: what each of thousands of files is, found in their headers and remembered between runs.

mod index;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    str::FromStr,
};

use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::{Deserialize, Serialize};

use super::{Metadata, Survey, card};
use crate::{
    error::{Error, Result},
    files::{Stamp, walk},
    nn::Part,
    progress::{CancelToken, Event, Observer, Stage},
    weights::{Family, reader::SafetensorsFile},
};

/// Endings of the files that are listed: adapters, and those that people take for some.
const ENDINGS: [&str; 6] = ["safetensors", "pt", "pth", "ckpt", "bin", "pkl"];
const PICKLE: &str = "not read: a pickle can run any code when it is opened; get the `.safetensors` version";
/// Files read between two looks at the cancel token.
const CHUNK: usize = 64;
/// Tags that are kept of a file.
const TAGS: usize = 200;
/// Metadata values up to this length can be searched; longer ones are tables and pictures.
const SEARCHED_BYTES: usize = 400;
/// PEFT's and diffusers' names for every adapter's file; the folder has the adapter's name.
const SAME_NAMES: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

/// The adapters of a folder.
#[derive(Debug, Clone, Default)]
pub struct Library {
    /// Sorted by path.
    pub entries: Vec<Entry>,
    /// How many files were read; the rest was remembered.
    pub read: usize,
}

/// A file of a [`Library`].
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// From the library's folder.
    pub path: PathBuf,
    /// What a prompt calls it: the file's name without its ending.
    pub name: String,
    /// Length and time.
    pub stamp: Stamp,
    /// What it holds, or why it cannot be used.
    pub content: Result<Card, String>,
}

/// What is remembered of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// What its trainer called it.
    pub title: Option<String>,
    /// `None` if the file leaves it open.
    pub family: Option<Family>,
    /// How names are spelled.
    pub dialects: Vec<String>,
    /// Layers by algorithm.
    pub algorithms: BTreeMap<String, usize>,
    /// The ranks that occur, sorted.
    pub ranks: Vec<usize>,
    /// Changed layers.
    pub layers: usize,
    /// What calls the style.
    pub triggers: Vec<String>,
    /// The commonest tags of its captions.
    pub tags: Vec<(String, u64)>,
    /// What it was trained on.
    pub base_model: Option<String>,
    /// Textual inversions that come with it.
    pub embeddings: Vec<String>,
    /// The metadata's short values, for searching.
    pub notes: Vec<String>,
}

/// What entries are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortBy {
    /// Folder by folder.
    #[default]
    Path,
    /// The adapter's name.
    Name,
    /// The largest first.
    Size,
    /// The newest first.
    Date,
    /// The highest rank first.
    Rank,
    /// The family, then the name.
    Family,
}

impl FromStr for SortBy {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let all = [
            ("path", Self::Path),
            ("name", Self::Name),
            ("size", Self::Size),
            ("date", Self::Date),
            ("rank", Self::Rank),
            ("family", Self::Family),
        ];
        let found = all.iter().find(|(name, _)| *name == s).map(|(_, by)| *by);
        found.ok_or_else(|| Error::unknown("order", s, all.map(|(name, _)| name)))
    }
}

impl Library {
    /// Looks through a folder and those inside it, `depth` deep ([`walk::ALL`], [`walk::NEAR`]). With a `cache` folder,
    /// files whose length and time are as before are not read again; a cache that is damaged or cannot be written only
    /// costs time.
    ///
    /// # Errors
    /// If the folder cannot be read, or the user asked to stop.
    pub fn scan(
        (root, depth): (&Path, usize),
        cache: Option<&Path>,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self> {
        let paths = walk::files_in(root, &ENDINGS, depth)?;
        let mut index = index::Index::open(root, cache);
        let stamped: Vec<(PathBuf, Stamp)> =
            paths.iter().filter_map(|path| Some((path.clone(), Stamp::of(path)?))).collect();
        let (mut contents, mut unknown) = (BTreeMap::new(), Vec::new());
        for (path, stamp) in &stamped {
            match index.get(relative(path, root), *stamp) {
                Some(content) => drop(contents.insert(path, content)),
                None => unknown.push(path),
            }
        }
        let total = unknown.len() as u64;
        if total > 0 {
            observer.observe(&Event::Started { stage: Stage::Adapters, total });
        }
        for (done, chunk) in unknown.chunks(CHUNK).enumerate() {
            cancel.check()?;
            contents.extend(chunk.par_iter().map(|path| (*path, look(path))).collect::<Vec<_>>());
            let done = (done * CHUNK + chunk.len()) as u64;
            observer.observe(&Event::Advanced { stage: Stage::Adapters, done, total });
        }
        if total > 0 {
            observer.observe(&Event::Finished { stage: Stage::Adapters });
        }
        let mut entries = Vec::new();
        for (path, stamp) in &stamped {
            let Some(content) = contents.remove(path) else { continue };
            entries.push(Entry {
                path: relative(path, root).into(),
                name: name(path),
                stamp: *stamp,
                content,
            });
        }
        index.keep(&entries, depth, total > 0);
        Ok(Self { entries, read: unknown.len() })
    }

    /// Leaves only what matches: all of the words, in any of name, trigger words, tags and metadata.
    pub fn search(&mut self, text: &str) {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        self.entries.retain(|entry| {
            let text = entry.text().to_lowercase();
            words.iter().all(|word| text.contains(word.as_str()))
        });
    }

    /// Leaves only adapters of a family.
    pub fn of_family(&mut self, family: Family) {
        self.entries.retain(|entry| entry.family() == Some(family));
    }

    /// Puts the entries into an order.
    pub fn sort(&mut self, by: SortBy) {
        let name = |entry: &Entry| (entry.name.to_lowercase(), entry.path.clone());
        let rank = |entry: &Entry| entry.content.as_ref().ok().and_then(|card| card.ranks.last().copied());
        match by {
            SortBy::Path => self.entries.sort_by(|a, b| a.path.cmp(&b.path)),
            SortBy::Name => self.entries.sort_by_cached_key(name),
            SortBy::Size => self.entries.sort_by_cached_key(|e| (std::cmp::Reverse(e.stamp.bytes), name(e))),
            SortBy::Date => {
                self.entries.sort_by_cached_key(|e| (std::cmp::Reverse(e.stamp.modified), name(e)));
            }
            SortBy::Rank => self.entries.sort_by_cached_key(|e| (std::cmp::Reverse(rank(e)), name(e))),
            SortBy::Family => {
                self.entries.sort_by_cached_key(|e| (e.family().is_none(), e.family(), name(e)));
            }
        }
    }
}

impl Entry {
    /// Its family, if it is an adapter and tells.
    pub fn family(&self) -> Option<Family> {
        self.content.as_ref().ok()?.family
    }

    fn text(&self) -> String {
        let mut text = vec![self.path.display().to_string()];
        if let Ok(card) = &self.content {
            text.extend(card.title.iter().chain(&card.base_model).cloned());
            text.extend(card.triggers.iter().chain(&card.embeddings).chain(&card.notes).cloned());
            text.extend(card.tags.iter().map(|(tag, _)| tag.clone()));
        }
        text.join("\n")
    }
}

impl Card {
    /// Of a file of which at least the header was read.
    ///
    /// # Errors
    /// If it is no adapter.
    pub fn of(file: &SafetensorsFile) -> Result<Self> {
        let survey = Survey::of(file)?;
        if survey.modules.is_empty() {
            return Err(Error::invalid(match survey.foreign {
                Some(what) => format!("is no adapter: it belongs to {what}"),
                None if file.header().tensors.is_empty() => "is no adapter: it has no tensors".into(),
                None => {
                    format!("is no adapter: none of its {} tensors changes a layer", file.names().count())
                }
            }));
        }
        let metadata = Metadata(file.metadata().clone());
        let mut ranks: Vec<usize> = survey.modules.iter().filter_map(|m| m.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let mut tags = card::tags(&metadata);
        tags.truncate(TAGS);
        let short = |value: &&String| value.len() <= SEARCHED_BYTES && value.chars().any(char::is_alphabetic);
        let mut notes: Vec<String> = metadata.0.values().filter(short).cloned().collect();
        notes.sort();
        notes.dedup();
        Ok(Self {
            title: card::title(&metadata).map(str::to_string),
            family: survey.family.lineage.map(super::Lineage::family),
            dialects: survey.dialects.iter().map(ToString::to_string).collect(),
            algorithms: survey.algorithms().into_iter().map(|(name, n)| (name.to_string(), n)).collect(),
            ranks,
            layers: survey.modules.len(),
            triggers: card::trigger(&metadata).words,
            tags,
            base_model: card::base_model(&metadata),
            embeddings: survey.embeddings.into_iter().map(|e| e.name).collect(),
            notes,
        })
    }
}

/// Only the header is read: a library may be on a slow disk, and a file of it just being downloaded.
fn look(path: &Path) -> Result<Card, String> {
    if !walk::has_ending(path, &ENDINGS[..1]) {
        return Err(PICKLE.into());
    }
    let card = SafetensorsFile::open_header(path).and_then(|file| Card::of(&file));
    card.map_err(|e| {
        // The entry says which file.
        let text = e.to_string();
        text.strip_prefix(&format!("{}: ", path.display())).map_or(text.clone(), str::to_string)
    })
}

fn relative<'a>(path: &'a Path, root: &Path) -> &'a Path {
    path.strip_prefix(root).unwrap_or(path)
}

fn name(path: &Path) -> String {
    let text = |name: Option<&OsStr>| name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().filter(|_| SAME_NAMES.iter().any(|same| path.ends_with(same)));
    let Some(folder) = folder else { return text(path.file_stem()) };
    // PEFT's have a folder for each component inside the adapter's.
    let is_component = Part::ALL.iter().any(|part| folder.ends_with(part.name()));
    match folder.parent().filter(|_| is_component) {
        Some(outer) => format!("{}/{}", text(outer.file_name()), text(folder.file_name())),
        None => text(folder.file_name()),
    }
}
