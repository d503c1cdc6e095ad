//! Finds the pictures of a folder, in the layouts people bring.
//!
//! - Pictures directly in the folder (*flat*): seen once an epoch, the class is the folder's name.
//! - kohya's `N_name/` folders: seen N times, the class is `name`. A folder named `N_name` that is itself passed
//!   counts the same way.
//! - Both together are read, and reported, because it is seldom what was meant.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{Dataset, Folder, Item, ScanOptions, bucket::Buckets, caption, decode, doctor::Problem};
use crate::{
    error::{Error, Result},
    progress::{CancelToken, Event, Observer, Stage},
};

const LAYOUT_HINT: &str = "put png, jpg, webp, bmp, gif or tiff pictures in it, or in folders named \
                           `N_name` (N repeats, e.g. `10_cat/photo.jpg` with `10_cat/photo.txt`)";

/// Pictures decoded between two looks at the cancel token.
const GROUP: usize = 32;

pub(super) fn scan(
    root: &Path,
    options: &ScanOptions,
    observer: &mut dyn Observer,
    cancel: &CancelToken,
) -> Result<Dataset> {
    options.captions.check()?;
    let buckets = Buckets::new(&options.buckets)?;
    let mut found = find(root)?;
    let total = found.pictures.len() as u64;
    observer.observe(&Event::Started { stage: Stage::Scan, total });
    let mut items = Vec::with_capacity(found.pictures.len());
    for (group, pictures) in found.pictures.chunks(GROUP).enumerate() {
        cancel.check()?;
        let read: Vec<_> = pictures.par_iter().map(|p| read(p, &found.folders, options, &buckets)).collect();
        for outcome in read {
            match outcome {
                Ok((item, problem)) => {
                    found.problems.extend(problem);
                    items.push(item);
                }
                Err(problem) => found.problems.push(problem),
            }
        }
        let done = ((group + 1) * GROUP).min(pictures.len() + group * GROUP) as u64;
        observer.observe(&Event::Advanced { stage: Stage::Scan, done, total });
    }
    observer.observe(&Event::Finished { stage: Stage::Scan });
    for problem in &found.problems {
        observer.observe(&Event::Warning { message: &problem.to_string() });
    }
    if items.is_empty() {
        return Err(nothing_usable(root, &found));
    }
    for item in &items {
        found.folders[item.folder].images += 1;
    }
    Ok(Dataset { items, folders: found.folders, problems: found.problems, options: options.clone() })
}

/// A picture's file and the folder it belongs to.
struct Candidate {
    path: PathBuf,
    folder: usize,
}

#[derive(Default)]
struct Found {
    folders: Vec<Folder>,
    pictures: Vec<Candidate>,
    problems: Vec<Problem>,
}

impl Found {
    fn add_folder(&mut self, name: &str, repeats: usize, pictures: Vec<PathBuf>) {
        let class = split_repeats(name).map_or(name, |(_, class)| class).to_owned();
        let folder = self.folders.len();
        self.folders.push(Folder { name: name.to_owned(), class, repeats, images: 0 });
        self.pictures.extend(pictures.into_iter().map(|path| Candidate { path, folder }));
    }

    fn ignore(&mut self, path: PathBuf, reason: impl Into<String>) {
        self.problems.push(Problem::Ignored { path, reason: reason.into() });
    }
}

/// Refuses what is no folder, without looking into it.
///
/// # Errors
/// If nothing is there, or a file.
pub fn expect_folder(root: &Path) -> Result<()> {
    let meta = root
        .metadata()
        .map_err(|e| Error::io(root, e).with_hint("the first argument is a folder of pictures"))?;
    if !meta.is_dir() {
        return Err(Error::file(root, "expected a folder of pictures, found a file").with_hint(LAYOUT_HINT));
    }
    Ok(())
}

fn find(root: &Path) -> Result<Found> {
    expect_folder(root)?;
    let top = list(root)?;
    if top.is_empty() {
        return Err(Error::file(root, "the folder is empty").with_hint(LAYOUT_HINT));
    }
    let mut found = Found::default();
    found.problems.extend(top.unsupported.into_iter().map(unsupported));
    let flat = !top.pictures.is_empty();
    if flat {
        let name = folder_name(root);
        let repeats = split_repeats(&name).map_or(1, |(n, _)| n);
        found.add_folder(&name, repeats, top.pictures);
    }
    let mut strangers = Vec::new();
    for folder in top.folders {
        let name = folder_name(&folder);
        let inner = list(&folder)?;
        match split_repeats(&name) {
            Some((repeats, _)) if repeats > 0 => {
                found.problems.extend(inner.unsupported.into_iter().map(unsupported));
                for deeper in inner.folders.into_iter().filter(|f| holds_pictures(f, 1)) {
                    found.ignore(
                        deeper,
                        "pictures are read from `N_name` folders, not from folders inside them",
                    );
                }
                if flat && !inner.pictures.is_empty() {
                    let reason = format!(
                        "read together with the pictures beside it, which have no repeats of their own ({repeats} here)"
                    );
                    found.problems.push(Problem::Layout { path: folder, reason });
                }
                found.add_folder(&name, repeats, inner.pictures);
            }
            Some(_) if !inner.pictures.is_empty() => found.ignore(folder, "it asks for 0 repeats"),
            _ if holds_pictures(&folder, 2) => strangers.push(folder),
            _ => {}
        }
    }
    if found.pictures.is_empty() {
        return Err(nothing_found(root, &found, &strangers));
    }
    for folder in strangers {
        found.ignore(folder, "a folder's name must say its repeats, as in `10_name`");
    }
    Ok(found)
}

fn read(
    picture: &Candidate,
    folders: &[Folder],
    options: &ScanOptions,
    buckets: &Buckets,
) -> Result<(Item, Option<Problem>), Problem> {
    let skipped = |e: Error| Problem::Skipped { path: picture.path.clone(), reason: bare(&e) };
    let bytes = decode::load(&picture.path).map_err(skipped)?;
    let decoded = decode::decode(&picture.path, &bytes, &options.limits).map_err(skipped)?;
    let (own, problem) = match caption::beside(&picture.path, &options.captions) {
        Ok(own) => (own, None),
        // The picture is still good: it trains with its class, and the report says so.
        Err(e) => (None, Some(Problem::BadCaption { path: picture.path.clone(), reason: e.to_string() })),
    };
    let text = own.as_deref().unwrap_or(&folders[picture.folder].class);
    let size_px = decoded.pixels.dimensions();
    let item = Item {
        path: picture.path.clone(),
        folder: picture.folder,
        caption: caption::with_trigger(text, &options.captions),
        captioned: own.is_some(),
        size_px,
        alpha: decoded.alpha,
        hash: Sha256::digest(&bytes).into(),
        placement: buckets.place(size_px),
    };
    Ok((item, problem))
}

/// The message without the path, which the problem carries itself.
fn bare(error: &Error) -> String {
    match error {
        Error::File { message, .. } => message.clone(),
        Error::Io { source, .. } => source.to_string(),
        Error::Hinted { source, .. } | Error::Context { source, .. } | Error::At { source, .. } => {
            bare(source)
        }
        e => e.to_string(),
    }
}

/// A folder's contents, hidden entries left out, sorted by name.
#[derive(Default)]
struct Listing {
    pictures: Vec<PathBuf>,
    unsupported: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    others: usize,
}

impl Listing {
    fn is_empty(&self) -> bool {
        self.pictures.is_empty() && self.unsupported.is_empty() && self.folders.is_empty() && self.others == 0
    }
}

fn list(folder: &Path) -> Result<Listing> {
    let io = |e| Error::io(folder, e);
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if folder_name(&path).starts_with('.') {
            continue;
        }
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if path.is_dir() {
            listing.folders.push(path);
        } else if decode::EXTENSIONS.contains(&extension.as_str()) {
            listing.pictures.push(path);
        } else if decode::UNSUPPORTED.contains(&extension.as_str()) {
            listing.unsupported.push(path);
        } else {
            listing.others += 1;
        }
    }
    listing.pictures.sort();
    listing.unsupported.sort();
    listing.folders.sort();
    Ok(listing)
}

fn holds_pictures(folder: &Path, depth: usize) -> bool {
    list(folder).is_ok_and(|l| {
        !l.pictures.is_empty() || (depth > 1 && l.folders.iter().any(|f| holds_pictures(f, depth - 1)))
    })
}

/// `10_cat` → (10, "cat"), as kohya reads it.
fn split_repeats(name: &str) -> Option<(usize, &str)> {
    let (count, class) = name.split_once('_')?;
    let digits = !count.is_empty() && count.len() <= 6 && count.bytes().all(|b| b.is_ascii_digit());
    if digits && !class.is_empty() { Some((count.parse().ok()?, class)) } else { None }
}

fn folder_name(path: &Path) -> String {
    let named = path.file_name().map(|n| n.to_string_lossy().into_owned());
    // `.` and `..` have no name of their own.
    named
        .or_else(|| Some(path.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

fn unsupported(path: PathBuf) -> Problem {
    Problem::Ignored { path, reason: "this format is not read; convert it to png or jpg".into() }
}

fn nothing_found(root: &Path, found: &Found, strangers: &[PathBuf]) -> Error {
    let error = Error::file(root, "no pictures found in the folder");
    if let Some(stranger) = strangers.first() {
        let name = folder_name(stranger);
        return if holds_pictures(stranger, 1) {
            error.with_hint(format!(
                "there are pictures in `{name}`: pass `{}`, or rename it to `10_{name}` for 10 repeats an epoch",
                stranger.display()
            ))
        } else {
            error.with_hint(format!("there are pictures below `{name}`: pass `{}`", stranger.display()))
        };
    }
    if let Some(Problem::Ignored { path, reason }) = found.problems.first() {
        return error.with_hint(format!("{}: {reason}", path.display()));
    }
    error.with_hint(LAYOUT_HINT)
}

fn nothing_usable(root: &Path, found: &Found) -> Error {
    let lost: Vec<String> =
        found.problems.iter().filter(|p| p.is_loss()).take(3).map(ToString::to_string).collect();
    let n = found.pictures.len();
    let all = if n == 1 { "the only picture".into() } else { format!("all {n} pictures") };
    Error::file(root, format!("{all} had to be skipped: {}", lost.join("; "))).with_hint(LAYOUT_HINT)
}
