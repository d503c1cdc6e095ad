//! Files in a folder and in those inside it, and those that are not where somebody says.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Deep enough for a folder that the user names: all of it.
pub const ALL: usize = 16;
/// Deep enough for a folder that is only guessed at: it may be somebody's home.
pub const NEAR: usize = 4;
/// Names as alike as this are worth asking about.
const ALIKE: f64 = 0.8;
/// Names that are listed where none is alike.
const LISTED: usize = 5;

/// The files with one of these endings (lower case, without the dot) in `root` and in folders up to `depth` inside it,
/// sorted. What is hidden is left out; links are followed, circles once.
///
/// # Errors
/// If `root` cannot be read; folders inside it that cannot be are left out.
pub fn files_in(root: &Path, endings: &[&str], depth: usize) -> Result<Vec<PathBuf>> {
    let mut walk = Walk { seen: HashSet::new(), endings, found: Vec::new() };
    walk.list(root, depth)?;
    walk.found.sort();
    Ok(walk.found)
}

struct Walk<'a> {
    /// Folders by their real names.
    seen: HashSet<PathBuf>,
    endings: &'a [&'a str],
    found: Vec<PathBuf>,
}

impl Walk<'_> {
    fn list(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let real = folder.canonicalize().map_err(|e| Error::io(folder, e))?;
        if !self.seen.insert(real) {
            return Ok(());
        }
        for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if path.is_dir() {
                if depth > 0 {
                    self.list(&path, depth - 1).ok();
                }
            } else if has_ending(&path, self.endings) {
                self.found.push(path);
            }
        }
        Ok(())
    }
}

/// True if a path ends in one of `endings`, whatever their case.
pub fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
}

/// Refuses a path where nothing is, before anything else fails on it.
///
/// # Errors
/// If nothing is there: [`missing`], for files with one of `endings`.
pub fn expect(path: &Path, endings: &[&str]) -> Result<()> {
    match path.try_exists() {
        Ok(false) => Err(missing(path, &|other| has_ending(other, endings))),
        // What else is wrong is said where it is read.
        _ => Ok(()),
    }
}

/// The error for a path where nothing is. The hint names what is alike in the same folder, of what `fits`; else what
/// there is of it.
pub fn missing(path: &Path, fits: &dyn Fn(&Path) -> bool) -> Error {
    let error = Error::file(path, "there is no such file or folder");
    let folder = super::folder_of(path);
    let Ok(entries) = fs::read_dir(folder) else {
        return error.with_hint(format!("there is no folder `{}`", folder.display()));
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let likeness = |other: &Path| {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().to_lowercase();
        let whole = strsim::jaro_winkler(&name, &text(other.file_name()));
        // The ending may have been left out.
        whole.max(strsim::jaro_winkler(&name, &text(other.file_stem())))
    };
    let there = entries.flatten().map(|entry| folder.join(entry.file_name())).filter(|other| fits(other));
    let mut there: Vec<(f64, PathBuf)> = there.map(|other| (likeness(&other), other)).collect();
    there.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let shown = |other: &PathBuf| other.strip_prefix(".").unwrap_or(other).display().to_string();
    match there.as_slice() {
        [] => error.with_hint(format!("nothing like it is in `{}`", folder.display())),
        [(score, nearest), ..] if *score > ALIKE => {
            error.with_hint(format!("did you mean `{}`?", shown(nearest)))
        }
        others => {
            let more = others.len().saturating_sub(LISTED);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let names: Vec<String> = others.iter().take(LISTED).map(|(_, other)| shown(other)).collect();
            error.with_hint(format!("there are: {}{more}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> Result<tempfile::TempDir> {
        let root = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        files.iter().try_for_each(|file| crate::files::write_bytes(root.path().join(file), b""))?;
        Ok(root)
    }

    #[test]
    fn folders_are_looked_through_once_and_to_their_depth() -> Result<()> {
        let root =
            tree(&["b.SafeTensors", "a.pt", "c.txt", "in/d.pt", "in/in/e.pt", ".hidden/f.pt", ".g.pt"])?;
        #[cfg(unix)]
        std::os::unix::fs::symlink(root.path(), root.path().join("in/circle"))
            .map_err(|e| Error::io("link", e))?;
        let found = |depth| -> Result<Vec<String>> {
            let files = files_in(root.path(), &["safetensors", "pt"], depth)?;
            let below = |f: &PathBuf| f.strip_prefix(root.path()).map(|f| f.display().to_string());
            Ok(files.iter().filter_map(|f| below(f).ok()).collect())
        };
        assert_eq!(
            found(1)?,
            ["a.pt", "b.SafeTensors", "in/d.pt"].map(|f| f.replace('/', std::path::MAIN_SEPARATOR_STR))
        );
        assert_eq!(found(ALL)?.len(), 4);
        assert!(files_in(&root.path().join("none"), &["pt"], 1).is_err());
        Ok(())
    }

    #[test]
    fn what_is_alike_is_named_if_it_fits() -> Result<()> {
        let root = tree(&["blueprint.safetensors", "blueprints/x.png", "riso.safetensors"])?;
        let hint = |name: &str| {
            let error = expect(&root.path().join(name), &["safetensors"]).expect_err(name);
            error.hint().unwrap_or_default().to_string()
        };
        assert!(
            hint("bluprint").contains("did you mean `") && hint("bluprint").contains("blueprint.safetensors")
        );
        assert!(hint("qqqq").contains("there are: ") && hint("qqqq").contains("riso.safetensors"));
        assert!(hint("none/x").contains("there is no folder `"));
        assert!(hint("blueprints/y").contains("nothing like it"));
        expect(&root.path().join("riso.safetensors"), &[])
    }
}
