//! What `--model` may say, and how it becomes a [`Checkpoint`].

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{checkpoint::Checkpoint, embedded, hub};
use crate::{
    error::{Error, Result},
    progress::{CancelToken, Observer},
};

/// Short names for what people ask for most.
pub const ALIASES: &[(&str, &str)] = &[
    ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
];

/// Where a base model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model that is part of the program.
    Embedded,
    /// A folder in diffusers' layout.
    Folder(PathBuf),
    /// A single-file checkpoint.
    File(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        id: String,
        /// A branch, tag or commit.
        revision: String,
    },
}

/// How to open a [`ModelSource`]. Everything left out is taken from the environment, as the Hugging Face tools do.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Use the cache only. Also `HF_HUB_OFFLINE=1`.
    pub offline: bool,
    /// For gated and private models. Else `HF_TOKEN`, else the file `hf auth login` wrote.
    pub token: Option<String>,
    /// The cache folder. Else `HF_HUB_CACHE`, `HF_HOME`.
    pub cache: Option<PathBuf>,
    /// The hub's address. Else `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Which of several precisions of the same files to use, such as `fp16`.
    pub variant: Option<String>,
}

impl ModelSource {
    /// Reads what a user typed: `mini`, a path, `owner/name`, `owner/name@revision`, or a hub address.
    ///
    /// # Errors
    /// If it is none of these; a path that does not exist is said to be missing.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text == embedded::NAME {
            return Ok(Self::Embedded);
        }
        let path = Path::new(text);
        if !text.is_empty() && path.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        if !text.is_empty() && path.exists() {
            return Ok(Self::File(path.into()));
        }
        if let Some((_, id)) = ALIASES.iter().find(|(alias, _)| *alias == text) {
            return Ok(Self::Hub { id: (*id).into(), revision: "main".into() });
        }
        parse_hub(text).ok_or_else(|| unknown(text))
    }

    /// Opens the model, downloading it first where it is on the hub and not in the cache.
    ///
    /// # Errors
    /// If it cannot be found, downloaded, or is not a model that is supported.
    pub fn open(
        &self,
        options: &OpenOptions,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        let variant = options.variant.as_deref();
        match self {
            Self::Embedded => embedded::open(),
            Self::Folder(path) => Checkpoint::open_folder(path, variant),
            Self::File(path) => Checkpoint::open_file(path),
            Self::Hub { id, revision } => {
                let repository = hub::Repository { id, revision };
                let mut checkpoint = hub::open(repository, options, observer, cancel)?;
                checkpoint.origin = self.to_string();
                Ok(checkpoint)
            }
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str(embedded::NAME),
            Self::Folder(path) | Self::File(path) => write!(f, "{}", path.display()),
            Self::Hub { id, revision } if revision == "main" => f.write_str(id),
            Self::Hub { id, revision } => write!(f, "{id}@{revision}"),
        }
    }
}

fn parse_hub(text: &str) -> Option<ModelSource> {
    let page = ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "huggingface.co/"];
    let text = page.iter().find_map(|p| text.strip_prefix(p)).unwrap_or(text).trim_end_matches('/');
    let (id, revision) = match text.split_once("/tree/") {
        Some(parts) => parts,
        None => text.split_once('@').unwrap_or((text, "main")),
    };
    let word = |s: &str| {
        let fits = s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        fits && !s.is_empty() && s.len() <= 96 && !s.starts_with('.') && !s.contains("..")
    };
    let (owner, name) = id.split_once('/')?;
    let looks_like_a_file =
        [".safetensors", ".ckpt", ".pt", ".bin", ".gguf"].iter().any(|e| name.ends_with(e));
    let fits = word(owner) && word(name) && !looks_like_a_file && revision.split('/').all(word);
    fits.then(|| ModelSource::Hub { id: id.into(), revision: revision.into() })
}

fn unknown(text: &str) -> Error {
    let path = Path::new(text);
    let looks_like_a_path = text.contains(['/', '\\']) || path.extension().is_some();
    if !looks_like_a_path {
        let known = std::iter::once(embedded::NAME).chain(ALIASES.iter().map(|(alias, _)| *alias));
        let error = Error::unknown("model", text, known);
        let hint = error.hint().unwrap_or_default().to_string();
        return error
            .with_hint(format!("{hint}; or a hub id (owner/name), a folder, or a .safetensors file"));
    }
    let error = Error::file(path, "there is no such file or folder");
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let nearest = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| {
            (strsim::jaro_winkler(&name, &path.file_name().unwrap_or_default().to_string_lossy()), name)
        })
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, name)) => error.with_hint(format!("did you mean `{}`?", folder.join(name).display())),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_may_type() -> Result<()> {
        let hub = |id: &str, revision: &str| ModelSource::Hub { id: id.into(), revision: revision.into() };
        assert_eq!(ModelSource::parse("mini")?, ModelSource::Embedded);
        assert_eq!(ModelSource::parse("a/b.c-d")?, hub("a/b.c-d", "main"));
        assert_eq!(ModelSource::parse("a/b@fp16")?, hub("a/b", "fp16"));
        assert_eq!(ModelSource::parse("https://huggingface.co/a/b/tree/refs/pr/3")?, hub("a/b", "refs/pr/3"));
        assert_eq!(ModelSource::parse("a/b@fp16")?.to_string(), "a/b@fp16");
        for bad in
            ["", "a/b/c", "../b", "/no/such", "a/b@../x", "a/..", "x/model.safetensors", "C:\\m\\x.ckpt"]
        {
            assert!(ModelSource::parse(bad).is_err(), "{bad}");
        }
        let error = ModelSource::parse("./Cargo.tomll").expect_err("no such file");
        assert!(error.hint().is_some_and(|h| h.contains("Cargo.toml")), "{error}");
        let error = ModelSource::parse("minii").expect_err("no such model");
        assert!(error.hint().is_some_and(|h| h.contains("did you mean `mini`")), "{error}");
        Ok(())
    }
}
