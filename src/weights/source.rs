//! What `--model` may say, and how it becomes a [`Checkpoint`].

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{checkpoint::Checkpoint, embedded, hub};
use crate::{
    error::{Error, Result},
    files::walk::{has_ending, missing},
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
        parse_hub(text)?.ok_or_else(|| unknown(text))
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
                let repository = hub::Repository::new(id, revision)?;
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

/// Reads a hub id or address; `None` if the text is more like a path.
fn parse_hub(text: &str) -> Result<Option<ModelSource>> {
    const PAGES: [&str; 4] =
        ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "huggingface.co/"];
    let page = PAGES.iter().find_map(|p| text.strip_prefix(p));
    let name = page.unwrap_or(text).trim_end_matches('/');
    let (id, revision) = match name.split_once("/tree/") {
        Some(parts) => parts,
        None => name.split_once('@').unwrap_or((name, "main")),
    };
    let id = ALIASES.iter().find(|(alias, _)| *alias == id).map_or(id, |(_, id)| *id);
    let looks_like_a_file =
        [".safetensors", ".ckpt", ".pt", ".bin", ".gguf"].iter().any(|e| name.ends_with(e));
    if page.is_some() && looks_like_a_file {
        return Err(Error::invalid(format!("{text} is a file on the hub, expected a model"))
            .with_hint("download it and give its path"));
    }
    match hub::Repository::new(id, revision) {
        Ok(_) if !looks_like_a_file => {
            Ok(Some(ModelSource::Hub { id: id.into(), revision: revision.into() }))
        }
        // Somebody means the hub where it is named, or a revision is.
        Err(error) if page.is_some() || (name.contains('@') && !looks_like_a_path(id)) => Err(error),
        _ => Ok(None),
    }
}

fn looks_like_a_path(text: &str) -> bool {
    text.starts_with(['.', '/', '\\', '~']) || text.matches(['/', '\\']).count() != 1
}

fn unknown(text: &str) -> Error {
    let path = Path::new(text);
    let is_path = text.contains(['/', '\\']) || path.extension().is_some();
    if !is_path {
        let known = std::iter::once(embedded::NAME).chain(ALIASES.iter().map(|(alias, _)| *alias));
        let error = Error::unknown("model", text, known);
        let hint = error.hint().unwrap_or_default().to_string();
        return error
            .with_hint(format!("{hint}; or a hub id (owner/name), a folder, or a .safetensors file"));
    }
    // Perhaps it was meant for the hub.
    let as_id = hub::Repository::new(text, "main").err().filter(|_| !looks_like_a_path(text));
    let error = missing(path, &is_model);
    match as_id.as_ref().and_then(Error::hint) {
        Some(hint) if !error.hint().is_some_and(|h| h.starts_with("did you mean")) => error.with_hint(hint),
        _ => error,
    }
}

/// What `--model` may name: pictures lie in folders, too.
fn is_model(path: &Path) -> bool {
    if path.is_dir() { path.join("model_index.json").exists() } else { has_ending(path, &["safetensors"]) }
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
        assert_eq!(ModelSource::parse("a/b@refs/pr/3")?, hub("a/b", "refs/pr/3"));
        assert_eq!(ModelSource::parse("sd15@v1.0+b")?, hub(ALIASES[0].1, "v1.0+b"));
        let paths = [
            "",
            "a/b/c",
            "../b",
            "/no/such",
            "a/..",
            "x/model.safetensors",
            "x/my@model.safetensors",
            "C:\\m\\x.ckpt",
        ];
        // `--` stands for `/` in the cache: `a--b/c` would be read as `a/b--c`.
        let ids = [
            "a--b/c", "a/b--c", "a/.b", "a/b.", "-a/b", "a/b c", "a/b?x", "ö/b", "a/b%2e", "a/b\0", "a/b\n/c",
        ];
        let revisions = ["a/b@../x", "a/b@", "a/b@x//y", "a/b@/x", "a/b@x y", "a/b@.git", "a/b@é", "a/b@c@d"];
        for bad in paths.iter().chain(&ids).chain(&revisions) {
            assert!(ModelSource::parse(bad).is_err(), "{bad}");
        }
        for (text, said) in [
            ("ö/b", "a hub id is owner/name"),
            ("a/b@x y", "after the `@` comes"),
            ("https://hf.co/a/b/blob/main/x.safetensors", "download it"),
            ("https://huggingface.co/a", "a hub id is owner/name"),
        ] {
            let error = ModelSource::parse(text).expect_err(text);
            assert!(error.hint().is_some_and(|h| h.contains(said)), "{text}: {error} {:?}", error.hint());
        }
        let built = hub("a/../../b", "main").open(&OpenOptions::default(), &mut (), &CancelToken::default());
        assert!(built.is_err_and(|e| e.to_string().contains("no hub id")));
        let error = ModelSource::parse("./sample-data/minni").expect_err("no such model");
        assert!(error.hint().is_some_and(|h| h.contains("sample-data/mini`")), "{error}");
        // A folder of pictures is none.
        let error = ModelSource::parse("./sample-data/blueprint2").expect_err("no such model");
        assert!(error.hint().is_some_and(|h| !h.contains("blueprint")), "{error}");
        let error = ModelSource::parse("minii").expect_err("no such model");
        assert!(error.hint().is_some_and(|h| h.contains("did you mean `mini`")), "{error}");
        Ok(())
    }
}
