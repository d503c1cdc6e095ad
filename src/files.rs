//! Writing files so that nobody ever sees half of one; finding them.

pub mod walk;

mod lock;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{BufWriter, ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

pub use self::lock::{NewFolder, OutputLock};
use crate::error::{Error, Result};

/// What [`write_atomic`] hands to its closure: buffered, seekable.
pub type Writer = BufWriter<File>;

/// Opens a file to read `expected` (such as "a picture") from it.
///
/// # Errors
/// If it cannot be opened, or is a folder, a pipe or a device.
pub fn open_regular(path: &Path, expected: &str) -> Result<File> {
    // Asked before opening: opening a pipe would wait for somebody to write into it.
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if metadata.is_file() {
        return File::open(path).map_err(|e| Error::io(path, e));
    }
    let found = if metadata.is_dir() { "a folder" } else { "not a regular file" };
    Err(Error::file(path, format!("is {found}, expected {expected}")))
}

/// Writes a file under a temporary name in its own folder, flushes it to the disk, then renames it: after a crash, a
/// full disk or a cancelled run the old file, or none, is there, never a part. Missing parent folders are made.
///
/// # Errors
/// If the folder cannot be written or the disk is full, with a hint; whatever `write` returns, with the path.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut Writer) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let target = follow_link(path);
    let fail = |e: std::io::Error| failure(path, e);
    if target.file_name().is_none() || target.is_dir() {
        return Err(Error::file(path, "is a folder, expected a file name to write to"));
    }
    let folder = folder_of(&target);
    let temporary = written(path, folder, write)?;
    if let Ok(old) = fs::metadata(&target) {
        // Replacing a file keeps who may read it.
        temporary.as_file().set_permissions(old.permissions()).map_err(fail)?;
    }
    temporary.persist(&target).map_err(|e| fail(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// A temporary file in `folder`, filled and on the disk; `path` is what it is going to be.
fn written(
    path: &Path,
    folder: &Path,
    write: impl FnOnce(&mut Writer) -> std::io::Result<()>,
) -> Result<NamedTempFile> {
    let fail = |e: std::io::Error| failure(path, e);
    create_folder(folder)?;
    let temporary = temporary_in(folder).map_err(fail)?;
    // A handle of its own: the temporary file would put its name into every error.
    let mut writer = BufWriter::new(temporary.as_file().try_clone().map_err(fail)?);
    write(&mut writer).map_err(fail)?;
    writer.flush().map_err(fail)?;
    temporary.as_file().sync_all().map_err(fail)?;
    Ok(temporary)
}

/// [`write_atomic`] for bytes that are already in memory.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |writer| writer.write_all(bytes))
}

/// [`write_bytes`] under a name that nobody has: false, with nothing changed, if something stands there, were it put there
/// a moment ago by another program.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_new(path: impl AsRef<Path>, bytes: &[u8]) -> Result<bool> {
    let path = path.as_ref();
    let folder = folder_of(path);
    match written(path, folder, |writer| writer.write_all(bytes))?.persist_noclobber(path) {
        Ok(_) => {
            sync_folder(folder);
            Ok(true)
        }
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(failure(path, e.error)),
    }
}

/// A whole folder, filled under a temporary name beside its place. What stands there is replaced once all is written if
/// `replace` says so; else only an empty folder may be there.
///
/// # Errors
/// Whatever `write` returns, with the folder's own name; if the folder cannot be put in its place.
pub fn write_folder(
    path: impl AsRef<Path>,
    replace: bool,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let fail = |e: std::io::Error| failure(path, e);
    let temporary = temporary_folder(folder_of(path))?;
    let (new, old) = (temporary.path().join("new"), temporary.path().join("old"));
    create_folder(&new)?;
    write(&new).map_err(|e| e.renamed(&new, path))?;
    if replace && path.exists() {
        fs::rename(path, &old).map_err(fail)?;
    } else {
        fs::remove_dir(path).ok();
    }
    fs::rename(&new, path).map_err(|e| {
        fs::rename(&old, path).ok();
        fail(e)
    })
}

/// Makes a folder and its parents; one that is there already is fine.
///
/// # Errors
/// If it cannot be made, with a hint.
pub fn create_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(|e| failure(path, e))
}

/// Tells whether files can be made in a folder, before work is done for them.
///
/// # Errors
/// If not, with a hint.
pub fn check_writable(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    temporary_in(folder).map(drop).map_err(|e| failure(folder, e))
}

/// Reads a whole text file.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

/// What tells that a file is still the one that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its length.
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
}

/// A file changed this recently may change again without its time showing it (FAT counts in two seconds).
const SETTLED: Duration = Duration::from_secs(2);

impl Stamp {
    /// Of what a path leads to; `None` if that cannot be told.
    pub fn of(path: impl AsRef<Path>) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self { bytes: metadata.len(), modified: u64::try_from(modified.as_nanos()).ok()? })
    }

    /// False while the same stamp may come to stand for other bytes.
    pub fn is_settled(self) -> bool {
        let changed = UNIX_EPOCH + Duration::from_nanos(self.modified);
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED)
    }
}

/// Where the program keeps what it can compute again: `SCUMBLE_CACHE`, else `scumble` in the user's cache folder
/// (`XDG_CACHE_HOME`, `~/.cache`).
pub fn cache_folder() -> PathBuf {
    variable("SCUMBLE_CACHE").map_or_else(|| user_cache().join("scumble"), PathBuf::from)
}

/// Where programs keep what they can get again.
pub(crate) fn user_cache() -> PathBuf {
    let home = || Some(std::env::home_dir()?.join(".cache"));
    variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap_or_else(std::env::temp_dir)
}

/// An environment variable that says something.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A link is written through, not replaced.
fn follow_link(path: &Path) -> PathBuf {
    if path.is_symlink() {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
    } else {
        path.to_path_buf()
    }
}

fn temporary_in(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scumble-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // What an ordinary file gets: everything the umask allows, not the 0600 of a secret temporary.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(|e| unnamed(&e))
}

/// An error without the temporary name that `tempfile` puts into it.
fn unnamed(error: &std::io::Error) -> std::io::Error {
    error.kind().into()
}

/// A folder under a temporary name, to be filled and then renamed; it is removed with what is in it when it is dropped.
fn temporary_folder(parent: &Path) -> Result<tempfile::TempDir> {
    create_folder(parent)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".scumble-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    builder.tempdir_in(parent).map_err(|e| failure(parent, unnamed(&e)))
}

/// The rename itself must survive a power cut; where folders cannot be synced (Windows) it is left to the system.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
}

/// An [`Error`] for a write that failed, with what to do about it.
pub(crate) fn failure(path: &Path, source: std::io::Error) -> Error {
    let hint = match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose a folder you may write to",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free some space or write to another disk; nothing was left half written"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "a part of the path is a file, not a folder",
        // The folder was there, or was to be made.
        ErrorKind::NotFound => "nothing can be written there; choose another folder",
        ErrorKind::InvalidFilename => "the name has characters, or a length, this file system does not allow",
        _ => return Error::io(path, source),
    };
    Error::io(path, source).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_rubbish() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = folder.path().join("deep/er/file.bin");
        write_bytes(&path, b"old")?;
        let error = write_atomic(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(std::io::Error::from(ErrorKind::StorageFull))
        });
        assert!(error.is_err_and(|e| e.hint().is_some_and(|h| h.contains("free some space"))));
        assert_eq!(fs::read(&path).ok().as_deref(), Some(b"old".as_slice()));
        let left = fs::read_dir(folder.path().join("deep/er")).map(Iterator::count);
        assert_eq!(left.ok(), Some(1));
        write_bytes(&path, b"new")?;
        assert_eq!(fs::read(&path).ok().as_deref(), Some(b"new".as_slice()));
        Ok(())
    }

    #[test]
    fn a_file_in_the_way_of_a_folder_is_said() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        write_bytes(folder.path().join("file"), b"")?;
        let error = write_bytes(folder.path().join("file/below"), b"").expect_err("a file is no folder");
        assert!(error.hint().is_some_and(|h| h.contains("not a folder")), "{error}");
        assert!(write_bytes(folder.path(), b"").is_err());
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn files_are_as_readable_as_any_other_and_links_are_kept() -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (path, link) = (folder.path().join("real"), folder.path().join("link"));
        write_bytes(&path, b"1")?;
        let plain = folder.path().join("plain");
        fs::write(&plain, b"").map_err(|e| Error::io(&plain, e))?;
        let mode = |p: &Path| fs::metadata(p).map(|m| m.permissions().mode()).ok();
        assert_eq!(mode(&path), mode(&plain));
        std::os::unix::fs::symlink(&path, &link).map_err(|e| Error::io(&link, e))?;
        write_bytes(&link, b"2")?;
        assert!(link.is_symlink());
        assert_eq!(fs::read(&path).ok().as_deref(), Some(b"2".as_slice()));
        Ok(())
    }
}
