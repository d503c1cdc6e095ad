//! Which files of a hub repository are needed, and fetching those that are missing into the cache.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    cache::HubCache,
    diffusers::{self, DiffusersModel},
    download::{Client, Download},
    family::Component,
    hub::Repository,
    source::OpenOptions,
    tree::is_bare_name,
};
use crate::{
    error::{Error, Result},
    files,
    progress::{CancelToken, Event, Observer, Stage},
};

/// Bytes between two progress events.
const REPORT_BYTES: u64 = 1 << 20;
const HUB: &str = "https://huggingface.co";

/// Small files that are fetched where they exist.
const SMALL: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/special_tokens_map.json",
];

const COMPONENTS: [Component; 4] =
    [Component::Unet, Component::Vae, Component::TextEncoder, Component::TextEncoder2];

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Listed>,
}

/// Fetches what is missing of a repository and returns its snapshot's folder.
pub(super) fn fetch(
    repository: Repository<'_>,
    cache: &HubCache,
    options: &OpenOptions,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<PathBuf> {
    let Repository { id, revision } = repository;
    let in_env = || files::variable("HF_ENDPOINT").and_then(|v| v.into_string().ok());
    let endpoint = options.endpoint.clone().or_else(in_env);
    let token = options.token.clone().or_else(HubCache::token_from_env);
    let client = Client::new(cache, endpoint.as_deref().unwrap_or(HUB), token)?;
    cancel.check()?;
    let listing: Listing = client.listing(repository)?;
    if listing.sha.is_empty() || !listing.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::invalid(format!("{id}: the hub names the commit {:?}", listing.sha)));
    }
    let wanted = select(id, &listing.siblings, options.variant.as_deref())?;
    let snapshot = Repository { id, revision: &listing.sha };
    let folder = cache.snapshot(id, &listing.sha);

    let total = wanted.all().fold(0, |sum: u64, file| sum.saturating_add(file.bytes()));
    observer.observe(&Event::Started { stage: Stage::Download, total });
    let mut transfer = Transfer { client, cache, snapshot, observer, cancel, done: 0, reported: 0, total };
    for file in &wanted.small {
        transfer.get(file)?;
    }
    if !wanted.small.is_empty() {
        // Another kind of model is refused before gigabytes of it are here.
        DiffusersModel::open(&folder, options.variant.as_deref())?;
    }
    for file in &wanted.weights {
        transfer.get(file)?;
    }
    // Last, so that the revision never names a snapshot with files missing.
    if revision != listing.sha {
        files::write_bytes(cache.reference(id, revision), listing.sha.as_bytes())?;
    }
    observer.observe(&Event::Finished { stage: Stage::Download });
    Ok(folder)
}

/// Files of one commit on their way into the cache.
struct Transfer<'a> {
    client: Client,
    cache: &'a HubCache,
    snapshot: Repository<'a>,
    observer: &'a mut dyn Observer,
    cancel: &'a CancelToken,
    /// Bytes of the files before the one under way.
    done: u64,
    /// Bytes the observer knows of.
    reported: u64,
    total: u64,
}

impl Transfer<'_> {
    fn get(&mut self, file: &Listed) -> Result<()> {
        self.cancel.check()?;
        let id = self.snapshot.id;
        let blob = self.cache.blob(id, file.blob_name(id)?);
        let (bytes, done, total) = (file.bytes(), self.done, self.total);
        if blob.metadata().map(|m| m.len()).ok() != Some(bytes) {
            let sha256 = file.lfs.as_ref().map(|l| l.sha256.as_str());
            let download = Download {
                repository: self.snapshot,
                name: &file.name,
                target: &blob,
                size_bytes: bytes,
                sha256,
            };
            let mut progress = |have: u64| {
                let now = done.saturating_add(have);
                if now >= self.reported.saturating_add(REPORT_BYTES) || now < self.reported {
                    self.reported = now;
                    self.observer.observe(&Event::Advanced { stage: Stage::Download, done: now, total });
                }
            };
            self.client.fetch(&download, &mut progress, self.cancel)?;
        }
        link(&blob, &self.cache.snapshot(id, self.snapshot.revision), &file.name)?;
        self.done = done.saturating_add(bytes);
        self.observer.observe(&Event::Advanced { stage: Stage::Download, done: self.done, total });
        Ok(())
    }
}

impl Listed {
    fn bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size.unwrap_or(0), |lfs| lfs.size)
    }

    /// The name the shared cache gives a file: its content's hash. It comes from the network, so it is checked.
    fn blob_name(&self, model: &str) -> Result<&str> {
        let name = self.lfs.as_ref().map(|lfs| lfs.sha256.as_str()).or(self.blob.as_deref());
        let name = name.filter(|n| n.len() >= 40 && n.bytes().all(|b| b.is_ascii_hexdigit()));
        let lacks = |what: &str| {
            Error::invalid(format!("{model}: the hub's listing has no {what} for {}", self.name))
                .with_hint("a mirror set by HF_ENDPOINT must answer `?blobs=true`")
        };
        if self.lfs.is_none() && self.size.is_none() {
            return Err(lacks("size"));
        }
        name.ok_or_else(|| lacks("hash"))
    }
}

/// Makes `snapshot/name` lead to a blob, relatively, so that the cache can be moved.
fn link(blob: &Path, snapshot: &Path, name: &str) -> Result<()> {
    let pointer = snapshot.join(name);
    if pointer.exists() {
        return Ok(());
    }
    if let Some(folder) = pointer.parent() {
        files::create_folder(folder)?;
    }
    // A link that leads nowhere is left of a blob somebody deleted.
    if pointer.is_symlink() {
        std::fs::remove_file(&pointer).map_err(|e| Error::io(&pointer, e))?;
    }
    let up = "../".repeat(2 + name.matches('/').count());
    let target = PathBuf::from(format!("{up}blobs")).join(blob.file_name().unwrap_or_default());
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, &pointer);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(target, &pointer);
    #[cfg(not(any(unix, windows)))]
    let linked = Err::<(), _>(std::io::Error::other(target.display().to_string()));
    // Windows lets only some users make links. Another run may have made it meanwhile.
    match linked.or_else(|_| std::fs::hard_link(blob, &pointer)) {
        Err(e) if !pointer.exists() => Err(Error::io(&pointer, e)),
        _ => Ok(()),
    }
}

/// A file of a repository, as the hub's listing has it.
#[derive(Debug, Clone, Deserialize)]
struct Listed {
    #[serde(rename = "rfilename")]
    name: String,
    #[serde(default)]
    size: Option<u64>,
    /// Names the blob of a small file.
    #[serde(default, rename = "blobId")]
    blob: Option<String>,
    /// Large files, which are named by their content.
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// Which of a repository's files to fetch.
#[derive(Debug)]
struct Wanted<'a> {
    /// Configs and vocabularies of a model in diffusers' layout.
    small: Vec<&'a Listed>,
    weights: Vec<&'a Listed>,
}

impl<'a> Wanted<'a> {
    fn all(&self) -> impl Iterator<Item = &'a Listed> {
        self.small.iter().chain(&self.weights).copied()
    }
}

fn select<'a>(model: &str, listed: &'a [Listed], variant: Option<&str>) -> Result<Wanted<'a>> {
    let by_name: BTreeMap<&str, &Listed> = listed.iter().map(|l| (l.name.as_str(), l)).collect();
    if !by_name.contains_key("model_index.json") {
        return Ok(Wanted { small: Vec::new(), weights: vec![select_single(model, listed)?] });
    }
    let small = SMALL.iter().filter_map(|name| by_name.get(name).copied()).collect();
    let mut weights = Vec::new();
    for component in COMPONENTS {
        let prefix = format!("{component}/");
        let inside: Vec<String> = listed
            .iter()
            .filter_map(|l| l.name.strip_prefix(&prefix))
            .filter(|name| is_bare_name(name))
            .map(String::from)
            .collect();
        if inside.is_empty() {
            continue;
        }
        // Half the bytes, and the full ones would be rounded on most devices anyway.
        let Some(name) = diffusers::find_weights(&inside, component, variant.or(Some("fp16"))) else {
            let message =
                format!("{model}: `{component}` has no safetensors weights on the hub, only pickles");
            return Err(Error::invalid(message).with_hint(
                "loading a pickle can run any code; use another copy of this model, or convert it in a sandbox",
            ));
        };
        let shards = inside.iter().filter(|file| is_shard_of(file, &name));
        for file in shards.chain(std::iter::once(&name)) {
            weights.extend(by_name.get(format!("{prefix}{file}").as_str()));
        }
    }
    Ok(Wanted { small, weights })
}

/// A repository that holds one checkpoint in the original layout.
fn select_single<'a>(model: &str, listed: &'a [Listed]) -> Result<&'a Listed> {
    let files: Vec<&Listed> =
        listed.iter().filter(|l| is_bare_name(&l.name) && l.name.ends_with(".safetensors")).collect();
    let is_network = |name: &str| {
        let known = ["model.safetensors", "diffusion_pytorch_model.safetensors"].contains(&name);
        known && listed.iter().any(|l| l.name == "config.json")
    };
    match files.as_slice() {
        [only] if is_network(&only.name) => {
            Err(Error::invalid(format!("{model} holds one network, not a Stable Diffusion model"))
                .with_hint("a model has a `model_index.json`, or is a single checkpoint file"))
        }
        [only] => Ok(only),
        [] => Err(Error::invalid(format!("{model} holds no Stable Diffusion model in safetensors"))
            .with_hint("there is neither a `model_index.json` nor a `.safetensors` file")),
        [first, ..] => Err(Error::invalid(format!("{model} holds {} single-file models", files.len()))
            .with_hint(format!("download the one you want, such as {}, and give its path", first.name))),
    }
}

/// `x.safetensors.index.fp16.json` goes with `x.fp16-00001-of-00002.safetensors`, or the older `x-….fp16.safetensors`.
fn is_shard_of(file: &str, index: &str) -> bool {
    let Some(stem) = index.strip_suffix(".json") else { return false };
    let (base, rest) = stem.split_once('.').unwrap_or((stem, ""));
    let variant = rest.split('.').find(|part| !matches!(*part, "safetensors" | "index" | ""));
    let Some(middle) = file.strip_prefix(base).and_then(|f| f.strip_suffix(".safetensors")) else {
        return false;
    };
    let numbered = middle.contains("-of-");
    match variant {
        Some(variant) => numbered && middle.contains(&format!(".{variant}")),
        None => numbered && !middle.contains('.'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_go_with_their_index() {
        let base = "diffusion_pytorch_model";
        let plain = format!("{base}.safetensors.index.json");
        let half = format!("{base}.safetensors.index.fp16.json");
        let shard = format!("{base}-00001-of-00002.safetensors");
        let new = format!("{base}.fp16-00001-of-00002.safetensors");
        let old = format!("{base}-00001-of-00002.fp16.safetensors");
        assert!(is_shard_of(&shard, &plain) && !is_shard_of(&shard, &half));
        assert!(is_shard_of(&new, &half) && is_shard_of(&old, &half) && !is_shard_of(&new, &plain));
        assert!(!is_shard_of(&format!("{base}.safetensors"), &plain));
        assert!(!is_shard_of(&shard, &format!("{base}.safetensors")));
    }

    fn listed(names: &[&str]) -> Vec<Listed> {
        let make = |n: &&str| Listed { name: n.to_string(), size: Some(1), blob: None, lfs: None };
        names.iter().map(make).collect()
    }

    #[test]
    fn only_what_is_read_is_fetched() -> Result<()> {
        let repository = listed(&[
            "README.md",
            "model_index.json",
            "v1-5-pruned.safetensors",
            "safety_checker/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ]);
        let names = |variant| -> Result<Vec<String>> {
            Ok(select("a/b", &repository, variant)?.all().map(|l| l.name.clone()).collect())
        };
        let half = [
            "model_index.json",
            "unet/config.json",
            "tokenizer/vocab.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.fp16.safetensors",
        ];
        assert_eq!(names(None)?, half);
        let full = names(Some("full"))?;
        assert!(full.contains(&"unet/diffusion_pytorch_model.safetensors".into()), "{full:?}");

        let pickled = listed(&["model_index.json", "unet/diffusion_pytorch_model.bin"]);
        let error = select("a/b", &pickled, None).expect_err("only pickles");
        assert!(error.to_string().contains("only pickles"), "{error}");
        assert_eq!(select("a/b", &listed(&["m.safetensors", "x.png"]), None)?.all().count(), 1);
        assert!(select("a/b", &listed(&["model.safetensors", "config.json"]), None).is_err());
        assert!(select("a/b", &listed(&["m.safetensors", "n.safetensors"]), None).is_err());
        assert!(select("a/b", &listed(&["x.png"]), None).is_err());
        Ok(())
    }
}
