//! Captions: from a file beside the picture, else the folder's class; then the trigger word, and variation while
//! training (tag shuffling with kept tags, caption dropout), all from the seed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    random::{Rng, Stream},
};

/// A longer caption file is not a caption.
const MAX_CAPTION_BYTES: u64 = 64 * 1024;

/// Where captions come from and how they vary. Names are kohya's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptionOptions {
    /// Endings tried beside the picture, in this order, without the dot.
    pub extensions: Vec<String>,
    /// Put before every caption that does not contain it already.
    pub trigger: Option<String>,
    /// Shuffle the tags of each caption anew each time it is used.
    pub shuffle: bool,
    /// Tags at the front that are never shuffled.
    pub keep_tokens: usize,
    /// Chance in `0..=1` that a sample trains with an empty caption.
    pub dropout: f64,
    /// What separates tags.
    pub separator: String,
}

impl Default for CaptionOptions {
    fn default() -> Self {
        Self {
            extensions: vec!["txt".into(), "caption".into()],
            trigger: None,
            shuffle: false,
            keep_tokens: 0,
            dropout: 0.0,
            separator: ",".into(),
        }
    }
}

impl CaptionOptions {
    /// # Errors
    /// If a value is out of range.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.dropout) {
            return Err(Error::invalid(format!(
                "caption dropout must be from 0 to 1, found {}",
                self.dropout
            )));
        }
        if self.separator.is_empty() {
            return Err(Error::invalid("the caption separator must not be empty"));
        }
        Ok(())
    }
}

/// The caption in the file beside a picture (`cat.txt` or `cat.png.txt` for `cat.png`); `None` if there is no such
/// file or it is blank.
///
/// # Errors
/// If the file is there but cannot be read, is too long or is not UTF-8 text.
pub fn beside(picture: &Path, options: &CaptionOptions) -> Result<Option<String>> {
    for path in candidates(picture, &options.extensions) {
        let Ok(meta) = path.metadata() else { continue };
        if !meta.is_file() {
            continue;
        }
        if meta.len() > MAX_CAPTION_BYTES {
            return Err(Error::file(&path, format!("a caption of {} bytes is too long", meta.len())));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::file(&path, "the caption is not UTF-8 text").with_hint("save it again as UTF-8")
        })?;
        let text = text.trim_start_matches('\u{feff}').split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.is_empty() {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn candidates(picture: &Path, extensions: &[String]) -> Vec<PathBuf> {
    let mut paths = Vec::with_capacity(extensions.len() * 2);
    for extension in extensions {
        let extension = extension.trim_start_matches('.');
        paths.push(picture.with_extension(extension));
        let mut whole = picture.as_os_str().to_owned();
        whole.push(format!(".{extension}"));
        paths.push(whole.into());
    }
    paths
}

/// The caption with the trigger word in front, unless it is already one of its words or tags.
pub fn with_trigger(caption: &str, options: &CaptionOptions) -> String {
    match options.trigger.as_deref().map(str::trim).filter(|t| !t.is_empty()) {
        None => caption.to_owned(),
        Some(trigger) if contains_words(caption, trigger) => caption.to_owned(),
        Some(trigger) if caption.is_empty() => trigger.to_owned(),
        Some(trigger) => format!("{trigger}{} {caption}", options.separator.trim_end()),
    }
}

/// True if `words` stand in `caption` with no letter or digit touching them.
fn contains_words(caption: &str, words: &str) -> bool {
    let (caption, words) = (caption.to_lowercase(), words.to_lowercase());
    let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    caption.match_indices(&words).any(|(at, found)| {
        !letter(caption[..at].chars().next_back()) && !letter(caption[at + found.len()..].chars().next())
    })
}

/// The tags of a caption, trimmed, blanks left out.
pub fn tags<'a>(caption: &'a str, separator: &'a str) -> impl Iterator<Item = &'a str> {
    caption.split(separator).map(str::trim).filter(|t| !t.is_empty())
}

/// The caption as sample number `sample` of a run sees it.
pub fn vary(caption: &str, options: &CaptionOptions, seed: u64, sample: u64) -> String {
    let mut rng = Rng::new(seed, Stream::Captions, sample);
    // Drawn whether used or not: switching dropout on does not change the shuffles.
    if rng.unit() < options.dropout {
        return String::new();
    }
    if !options.shuffle {
        return caption.to_owned();
    }
    let mut tags: Vec<&str> = tags(caption, &options.separator).collect();
    let kept = options.keep_tokens.min(tags.len());
    rng.shuffle(&mut tags[kept..]);
    tags.join(&format!("{} ", options.separator.trim_end()))
}
