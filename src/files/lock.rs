//! One run at a time for an output, and folders that stay only with something in them.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{create_folder, failure, folder_of, follow_link};
use crate::error::{Error, Result};

/// Keeps an output to one run: until this is dropped, or the process dies in whatever way, nobody else can take it.
///
/// The system's lock on `.NAME.lock` beside the output says so, not the file: one that a killed process left behind
/// stops nobody and goes with the next run.
#[derive(Debug)]
pub struct OutputLock {
    path: PathBuf,
    // Fields are dropped in this order.
    _file: File,
    _folder: NewFolder,
}

impl OutputLock {
    /// Takes an output, a file or a folder that need not be there yet; its parents are made, and go again if they stay
    /// empty. Where the file system has no locks there is no protection either.
    ///
    /// # Errors
    /// If another run has it, naming that run's process where the system tells; if the folder cannot be written.
    pub fn take(output: impl AsRef<Path>) -> Result<Self> {
        let output = output.as_ref();
        let target = follow_link(output);
        let name = target.file_name().ok_or_else(|| Error::file(output, "expected a name to write to"))?;
        let folder = folder_of(&target);
        let new_folder = NewFolder::make(folder)?;
        let path = folder.join([".".as_ref(), name, ".lock".as_ref()].into_iter().collect::<OsString>());
        let file = loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(|e| failure(output, e))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(taken(output, &path)),
                Err(TryLockError::Error(_)) => break file,
                // Else the run that had it removed it before we locked it, and the name may be another's by now.
                Ok(()) if is_at(&file, &path) => break file,
                Ok(()) => {}
            }
        };
        sign(&file);
        Ok(Self { path, _file: file, _folder: new_folder })
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // Still locked: nobody can have taken it over yet.
        fs::remove_file(&self.path).ok();
    }
}

/// For people who find the file; a disk without room for it is no reason to stop.
fn sign(mut file: &File) {
    let process = std::process::id();
    let text =
        format!("process {process}\nWhile it runs. Without it this file means nothing and may be deleted.\n");
    file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).ok();
}

fn taken(output: &Path, lock: &Path) -> Error {
    // Some systems do not let a locked file be read.
    let text = fs::read_to_string(lock).unwrap_or_default();
    let process = text.lines().next().filter(|line| line.starts_with("process ")).map(|p| format!(" ({p})"));
    let message = format!("another run of scumble{} is writing it", process.unwrap_or_default());
    Error::file(output, message).with_hint("wait until that has ended, or choose another `--out`")
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// A folder to write to. Those of it and its parents that had to be made are removed again, if this is dropped while
/// they are empty: what fails early leaves nothing behind.
#[derive(Debug)]
pub struct NewFolder(Vec<PathBuf>);

impl NewFolder {
    /// Makes the folder and its parents; one that is there already is fine.
    ///
    /// # Errors
    /// If it cannot be made, with a hint.
    pub fn make(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let missing = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let folder = Self(missing.map(Path::to_path_buf).collect());
        create_folder(path)?;
        Ok(folder)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // The deepest first; only empty ones can be removed.
        for folder in &self.0 {
            fs::remove_dir(folder).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_has_one_writer_and_nothing_is_left() -> Result<()> {
        let root = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let output = root.path().join("new/er/style.safetensors");
        let lock = OutputLock::take(&output)?;
        let error = OutputLock::take(&output).expect_err("it is taken");
        let process = format!("style.safetensors: another run of scumble (process {})", std::process::id());
        assert!(cfg!(windows) || error.to_string().contains(&process), "{error}");
        assert!(error.hint().is_some_and(|h| h.contains("--out")));
        let other = OutputLock::take(output.with_file_name("other.safetensors"))?;
        drop((other, lock));
        assert!(!root.path().join("new").exists(), "empty folders go");

        // What a killed process leaves stops nobody.
        let litter = root.path().join(".style.safetensors.lock");
        fs::write(&litter, "process 1\n").map_err(|e| Error::io(&litter, e))?;
        drop(OutputLock::take(root.path().join("style.safetensors"))?);
        assert!(!litter.exists());
        Ok(())
    }
}
