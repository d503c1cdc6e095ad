//! What a subcommand writes: by a name that fits, not over anything by accident, and by one run at a time.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    files::{self, OutputLock},
    weights::Component,
};

/// An output that is this run's alone.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// A folder with something in it, that is to go.
    replaces_folder: bool,
    _lock: OutputLock,
}

/// Takes `out` for this run. Nothing is written yet, but for its parent folders.
///
/// # Errors
/// If it is one of `inputs`, if something stands there that `force` does not allow to replace, or another run has it.
pub(super) fn claim<'a>(
    out: &Path,
    force: bool,
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<Output> {
    refuse_overwriting(out, inputs)?;
    refuse_replacing(out, force)?;
    let replaces_folder = !is_empty(out)?;
    Ok(Output { path: out.to_path_buf(), replaces_folder, _lock: OutputLock::take(out)? })
}

impl Output {
    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `write` make it, under the name it is given. A folder is replaced when all of the new one is there.
    pub fn fill(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if self.replaces_folder { files::write_folder(&self.path, true, write) } else { write(&self.path) }
    }
}

/// Refuses to lose what stands there, unless it is an empty folder, or `force` allows it.
pub(super) fn refuse_replacing(out: &Path, force: bool) -> Result<()> {
    let Ok(found) = fs::metadata(out) else { return Ok(()) };
    let what = if found.is_dir() {
        if is_empty(out)? {
            return Ok(());
        }
        if let (true, Some(stranger)) = (force, stranger(out)?) {
            let message =
                format!("a folder with {} in it stands there, which is not replaced", stranger.display());
            return Err(Error::file(out, message).with_hint("choose another `--out`, or move that away"));
        }
        "a folder with something in it".to_owned()
    } else {
        format!("a file of {:.1} MB", found.len() as f64 / 1e6)
    };
    if force {
        return Ok(());
    }
    Err(Error::file(out, format!("{what} stands there already"))
        .with_hint("`--force` replaces it; or choose another `--out`"))
}

/// True of everything but a folder with something in it.
fn is_empty(out: &Path) -> Result<bool> {
    if !out.is_dir() {
        return Ok(true);
    }
    Ok(fs::read_dir(out).map_err(|e| Error::io(out, e))?.next().is_none())
}

/// What a folder holds that is no part of a model or of PEFT's folders; `--force` is no way to lose one's home.
fn stranger(folder: &Path) -> Result<Option<PathBuf>> {
    if folder.join("model_index.json").is_file() {
        return Ok(None);
    }
    let ours = [Component::Unet, Component::TextEncoder, Component::TextEncoder2].map(Component::name);
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let name = entry.file_name();
        if !(entry.path().is_dir() && ours.iter().any(|part| name == *part)) {
            return Ok(Some(name.into()));
        }
    }
    Ok(None)
}

/// Refuses to write over what is read, also by another name or through a link.
fn refuse_overwriting<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let Ok(real) = out.canonicalize() else { return Ok(()) };
    let same = |input: &Path| {
        input
            .canonicalize()
            .is_ok_and(|input| input == real || input.starts_with(&real) || real.starts_with(&input))
    };
    match inputs.into_iter().find(|input| same(input)) {
        Some(input) => Err(Error::file(out, format!("is what is read ({})", input.display()))
            .with_hint("choose another name with `--out`")),
        None => Ok(()),
    }
}
