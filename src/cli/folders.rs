//! The file a prompt, a recipe or a blend file means by a name.

use std::path::{Path, PathBuf};

use crate::{
    adapter::{
        format::folder,
        library::{Entry, Library},
        metadata::FileHashes,
    },
    error::{Error, Result},
    files::walk,
    progress::CancelToken,
    weights::hashes::HashCache,
};

/// Where kohya's files say the hash of their weights, which may be that of an earlier state.
const SAID_HASH: &str = "sshs_model_hash";

/// Where adapters that are only named are looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shelves<'a> {
    pub folders: &'a [PathBuf],
    /// Where libraries are remembered.
    pub cache: Option<&'a Path>,
    pub cancel: &'a CancelToken,
}

impl<'a> Shelves<'a> {
    /// What one of these folders has.
    fn entries(&self, folder: &'a Path) -> Result<Vec<(PathBuf, Entry)>> {
        match Library::scan((folder, walk::NEAR), self.cache, &mut (), self.cancel) {
            Ok(library) => Ok(library.entries.into_iter().map(|e| (folder.join(&e.path), e)).collect()),
            Err(e) if e.is_cancelled() => Err(e),
            // Most of the folders are guesses.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// `path` if it is there; else, if it is a bare name, the library's file of that name.
    pub fn file_or_named(&self, path: &Path) -> Result<PathBuf> {
        let bare = path.parent().is_none_or(|parent| parent.as_os_str().is_empty());
        // What is no bare name and not there is said where it is read.
        if path.exists() || !bare {
            return Ok(path.to_path_buf());
        }
        let name = path.to_string_lossy();
        self.find(name.strip_suffix(".safetensors").unwrap_or(&name)).map_err(|e| {
            let hint = e.hint().unwrap_or_default().to_owned();
            Error::file(path, format!("there is no such file, and {e}")).with_hint(hint)
        })
    }

    /// The file with this stem in one of the folders, the first that has it; else the one whose metadata, or whose
    /// folder if it is PEFT's, gives that name. Files are not opened for that: libraries are remembered.
    ///
    /// # Errors
    /// If there is none, or several that the name fits equally well.
    pub fn find(&self, name: &str) -> Result<PathBuf> {
        for folder in self.folders {
            let exact = folder.join(format!("{name}.safetensors"));
            if exact.is_file() {
                return Ok(exact);
            }
            let files = walk::files_in(folder, &["safetensors"], walk::NEAR).unwrap_or_default();
            if let Some(file) = only(name, files.iter().filter(|path| stem(path) == name))? {
                return Ok(file);
            }
        }
        let mut all: Vec<(PathBuf, Entry)> = Vec::new();
        for folder in self.folders {
            all.extend(self.entries(folder)?);
        }
        // The folders may be inside each other.
        all.sort_by_cached_key(|(path, _)| path.canonicalize().unwrap_or_else(|_| path.clone()));
        all.dedup_by_key(|(path, _)| path.canonicalize().unwrap_or_else(|_| path.clone()));
        let called = |entry: &Entry| match &entry.content {
            Ok(card) => entry.name == name || card.title.as_deref() == Some(name),
            Err(_) => false,
        };
        if let Some(file) = only(name, all.iter().filter(|(_, e)| called(e)).map(|(path, _)| path))? {
            return Ok(file);
        }
        Err(self.not_found(name, &all))
    }

    /// The first file with this stem whose content has the hash, in whichever of the folders.
    ///
    /// # Errors
    /// If the user asked to stop.
    pub fn named_with_hash(&self, name: &str, hash: &str) -> Result<Option<PathBuf>> {
        let in_folder = |folder: &PathBuf| walk::files_in(folder, &["safetensors"], walk::NEAR);
        let all = self.folders.iter().filter_map(|folder| in_folder(folder).ok()).flatten();
        self.with_hash(all.filter(|path| stem(path) == name), hash)
    }

    /// The first adapter whose content has the hash. Those that are known to have it, or say so themselves, are looked
    /// at first: where it is none of these, all are read.
    ///
    /// # Errors
    /// If the user asked to stop.
    pub fn any_with_hash(&self, hash: &str) -> Result<Option<PathBuf>> {
        let cache = HashCache::from_env();
        let says_so = |path: &PathBuf| {
            folder::map(path).is_ok_and(|file| {
                cache.known(&file).is_some_and(|digests| FileHashes::is_called(&digests, hash))
                    || file.metadata().get(SAID_HASH).is_some_and(|said| said.starts_with(hash))
            })
        };
        let mut adapters = Vec::new();
        for folder in self.folders {
            // Checkpoints lie there, too, and are long to read.
            adapters.extend(self.entries(folder)?.into_iter().filter(|(_, entry)| entry.content.is_ok()));
        }
        let paths = adapters.into_iter().map(|(path, _)| path);
        let (likely, others): (Vec<PathBuf>, Vec<PathBuf>) = paths.partition(says_so);
        self.with_hash(likely.into_iter().chain(others), hash)
    }

    fn with_hash(&self, files: impl IntoIterator<Item = PathBuf>, hash: &str) -> Result<Option<PathBuf>> {
        let cache = HashCache::from_env();
        for path in files {
            // What cannot be read is not it.
            let Ok(file) = folder::map(&path) else { continue };
            if FileHashes::is_called(&cache.digests(&file, self.cancel)?, hash) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn not_found(&self, name: &str, all: &[(PathBuf, Entry)]) -> Error {
        let looked: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
        let looked = format!("looked in {}: `--lora-dir` names another folder", looked.join(", "));
        let broken = all
            .iter()
            .find_map(|(path, e)| Some((path, e.content.as_ref().err()?)).filter(|_| e.name == name));
        if let Some((path, reason)) = broken {
            return Error::file(path, reason.clone()).with_hint(looked);
        }
        let mut usable: Vec<&str> =
            all.iter().filter(|(_, e)| e.content.is_ok()).map(|(_, e)| e.name.as_str()).collect();
        usable.sort_unstable();
        usable.dedup();
        let error = Error::unknown("adapter", name, usable);
        let hint = error.hint().unwrap_or_default().to_owned();
        error.with_hint(format!("{hint}; {looked}"))
    }
}

pub(super) fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

fn only<'a>(name: &str, found: impl Iterator<Item = &'a PathBuf>) -> Result<Option<PathBuf>> {
    let found: Vec<&PathBuf> = found.collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        several => {
            let names: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            Err(Error::invalid(format!("`{name}` may be any of {}", names.join(", ")))
                .with_hint("call the one you mean by its file: `--lora FILE:WEIGHT`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    /// An adapter of one layer.
    fn put(folder: &Path, file: &str, alias: &str) {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
        let view =
            |shape: [usize; 2]| TensorView::new(Dtype::F32, shape.to_vec(), &[0; 8]).expect("a tensor");
        let tensors = [
            (format!("{layer}.lora_down.weight"), view([1, 2])),
            (format!("{layer}.lora_up.weight"), view([2, 1])),
        ];
        let metadata = HashMap::from([("ss_output_name".to_owned(), alias.to_owned())]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).expect("a file");
        fs::write(path, bytes).expect("written");
    }

    #[test]
    fn names_stems_and_aliases() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path();
        put(root, "one.safetensors", "first");
        put(root, "sub/deep/two.safetensors", "second");
        put(root, "a/three.safetensors", "same");
        put(root, "b/three.safetensors", "same");
        fs::write(root.join("twooo.safetensors"), "<html>").expect("written");
        fs::write(root.join("old.pt"), "a pickle").expect("written");
        // One folder inside the other: nothing is found twice.
        let (folders, cancel) = ([root.to_path_buf(), root.join("sub")], CancelToken::default());
        let shelves = Shelves { folders: &folders, cache: None, cancel: &cancel };
        let found = |name: &str| shelves.find(name).map(|p| p.strip_prefix(root).unwrap_or(&p).to_path_buf());
        assert_eq!(found("one")?, Path::new("one.safetensors"));
        assert_eq!(found("two")?, Path::new("sub/deep/two.safetensors"));
        assert_eq!(found("second")?, Path::new("sub/deep/two.safetensors"));
        assert!(found("three").is_err_and(|e| e.to_string().contains("may be any of")));
        assert!(found("same").is_err_and(|e| e.to_string().contains("may be any of")));
        let error = found("twoo").expect_err("no such adapter");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains("did you mean `two`") && !hint.contains("twooo"), "{hint}");
        assert!(found("old").is_err_and(|e| e.to_string().contains("old.pt: not read: a pickle")));
        // A file name works where an alias does not.
        assert_eq!(shelves.file_or_named(Path::new("one.safetensors"))?, root.join("one.safetensors"));
        Ok(())
    }
}
