//! The file a prompt, a recipe or a blend file means by a name.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Result},
    weights::reader::SafetensorsFile,
};

/// Folders inside folders are looked through this deep.
const DEPTH: usize = 4;
/// What the metadata calls an adapter; A1111 takes it for its name.
const ALIAS: &str = "ss_output_name";

/// `path` if it is there; else, if it is a bare name, the library's file of that name.
pub(super) fn file_or_named(path: &Path, folders: &[PathBuf]) -> Result<PathBuf> {
    let bare = path.parent().is_none_or(|parent| parent.as_os_str().is_empty());
    if path.exists() || !bare {
        return Ok(path.to_path_buf());
    }
    let name = path.to_string_lossy();
    find(name.strip_suffix(".safetensors").unwrap_or(&name), folders).map_err(|e| {
        let hint = e.hint().unwrap_or_default().to_owned();
        Error::invalid(format!("{name}: no such file, and {e}")).with_hint(hint)
    })
}

/// The file with this stem in one of the folders, the first that has it; else the one whose metadata gives that name.
///
/// # Errors
/// If there is none, or several that the name fits equally well.
pub(super) fn find(name: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    let mut files = Vec::new();
    for folder in folders {
        let exact = folder.join(format!("{name}.safetensors"));
        if exact.is_file() {
            return Ok(exact);
        }
        let mut found = Vec::new();
        list(folder, DEPTH, &mut found);
        found.sort();
        if let Some(file) = only(name, found.iter().filter(|path| stem(path) == name))? {
            return Ok(file);
        }
        files.extend(found);
    }
    files.dedup();
    let aliased = files.iter().filter(|path| {
        SafetensorsFile::open(path).is_ok_and(|f| f.metadata().get(ALIAS).is_some_and(|alias| alias == name))
    });
    if let Some(file) = only(name, aliased)? {
        return Ok(file);
    }
    let mut seen: Vec<String> = files.iter().map(|path| stem(path)).collect();
    seen.sort();
    seen.dedup();
    let error = Error::unknown("adapter", name, seen.iter().map(String::as_str));
    let hint = error.hint().unwrap_or_default().to_owned();
    let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    Err(error
        .with_hint(format!("{hint}; looked in {}: `--lora-dir` names another folder", looked.join(", "))))
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

fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if depth > 0 && !hidden {
                list(&path, depth - 1, found);
            }
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    fn put(folder: &Path, file: &str, alias: &str) {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("a tensor");
        let metadata = HashMap::from([(ALIAS.to_owned(), alias.to_owned())]);
        let bytes = safetensors::serialize([("x.alpha", view)], Some(metadata)).expect("a file");
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
        let folders = [root.to_path_buf()];
        let found =
            |name: &str| find(name, &folders).map(|p| p.strip_prefix(root).unwrap_or(&p).to_path_buf());
        assert_eq!(found("one")?, Path::new("one.safetensors"));
        assert_eq!(found("two")?, Path::new("sub/deep/two.safetensors"));
        assert_eq!(found("second")?, Path::new("sub/deep/two.safetensors"));
        assert!(found("three").is_err_and(|e| e.to_string().contains("may be any of")));
        assert!(found("same").is_err_and(|e| e.to_string().contains("may be any of")));
        assert!(found("twoo").is_err_and(|e| e.hint().is_some_and(|h| h.contains("did you mean `two`"))));
        // A file name works where an alias does not.
        assert_eq!(file_or_named(Path::new("one.safetensors"), &folders)?, root.join("one.safetensors"));
        Ok(())
    }
}
