//! Every malformed file of `tests/hostile`, opened as a user would: each is refused in the words of `manifest.json` (or
//! accepted, where it says so), nothing panics, and none makes the program ask for more than a few megabytes.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeSet,
    error::Error,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{Blend, LoadOptions, Strength, fuse::fused_weight},
    pipeline::Pipeline,
    weights::{Checkpoint, reader::SafetensorsFile},
};
use serde::Deserialize;

/// The most that may be allocated beyond what is there before, for any seed: all are at most 2 kB, the tiny model that
/// some of them damage is 0.3 MB, and a sound one takes 1 MB to load.
const MOST_BYTES: usize = 4 << 20;

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        let pointer = unsafe { System.alloc(layout) };
        // What was refused counts too: it was asked for.
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        if pointer.is_null() {
            NOW.fetch_sub(layout.size(), Relaxed);
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) };
    }
}

/// A line of the manifest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seed {
    /// A file, or a folder of them, below `tests/hostile`.
    seed: String,
    opens: Opens,
    rule: String,
    /// What the error contains; `None` if there is none.
    says: Option<Vec<String>>,
    hint: Option<String>,
    /// What a warning contains.
    warns: Option<String>,
    /// Files of the small model that are taken away.
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default)]
    allow_unmatched: bool,
    /// The dtype of the model that the adapter is fused into.
    fused: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Opens {
    File,
    Adapter,
    Model,
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn manifest() -> Vec<Seed> {
    let text = fs::read_to_string(repository("tests/hostile/manifest.json")).expect("the manifest");
    serde_json::from_str(&text).expect("a list of seeds")
}

fn small_model(folder: &Path) -> Result<Pipeline> {
    Pipeline::load(&Checkpoint::open_folder(folder, None)?, &Device::Cpu, DType::F32)
}

/// All ways to open a file agree; what is accepted is read whole.
fn open_file(path: &Path) -> Result<Vec<String>> {
    let outcomes =
        [SafetensorsFile::open(path), SafetensorsFile::open_header(path), SafetensorsFile::read(path)];
    let messages: BTreeSet<String> =
        outcomes.iter().map(|o| o.as_ref().err().map(ToString::to_string).unwrap_or_default()).collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
    let [_, _, read] = outcomes;
    let file = read?;
    for name in file.names() {
        file.tensor(name)?;
    }
    Ok(Vec::new())
}

/// Loads an adapter onto the small model and puts it to work; its warnings.
fn open_adapter(path: &Path, seed: &Seed, model: &mut Pipeline) -> Result<Vec<String>> {
    let options = LoadOptions { allow_unmatched: seed.allow_unmatched, ..LoadOptions::default() };
    let adapter = model.load_adapter(path, &options)?;
    let warnings = adapter.report.warnings.clone();
    let table = model.name_table()?;
    let blend = Blend::new().with(path.display().to_string(), adapter.clone(), Strength::default());
    if seed.fused.as_deref() == Some("f16") {
        for layer in adapter.layers.keys() {
            let base = Tensor::zeros(table.shape(layer).unwrap_or_default(), DType::F16, &Device::Cpu)?;
            fused_weight(&blend, layer, &base)?;
        }
    }
    model.set_blend(blend)?;
    model.set_blend(Blend::new())?;
    Ok(warnings)
}

/// Copies a folder's files over another's.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, name) =
            (entry.as_ref().map(fs::DirEntry::path), entry.as_ref().map(fs::DirEntry::file_name));
        let (Ok(path), Ok(name)) = (path, name) else { continue };
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// The small model with a seed's files in it and others taken away.
fn damaged(seed: &Seed, to: &Path) -> std::io::Result<()> {
    copy(&repository("tests/golden/pipeline/sd1"), to)?;
    for name in &seed.remove {
        fs::remove_file(to.join(name))?;
    }
    // A seed that only takes away has no files.
    let files = repository("tests/hostile").join(&seed.seed);
    if files.is_dir() { copy(&files, to) } else { Ok(()) }
}

/// What is wrong with the answer to a seed, if anything.
fn wrong(seed: &Seed, path: &Path, outcome: &Result<Vec<String>>) -> Option<String> {
    match (outcome, &seed.says) {
        (Ok(_), Some(said)) => Some(format!("was accepted, expected {said:?}")),
        (Err(error), None) => Some(format!("was refused: {error}")),
        (Ok(warnings), None) => {
            let expected = seed.warns.as_deref()?;
            (!warnings.iter().any(|w| w.contains(expected))).then(|| format!("warns only {warnings:?}"))
        }
        (Err(error), Some(said)) => {
            let (message, hint) = (error.to_string(), error.hint().unwrap_or_default());
            let path = path.display().to_string();
            let missing = said.iter().chain([&path]).find(|part| !message.contains(part.as_str()));
            let expected = seed.hint.as_deref().unwrap_or_default();
            match missing {
                Some(part) => Some(format!("{message}\n  lacks: {part}")),
                None => {
                    (!hint.contains(expected)).then(|| format!("the hint is {hint:?}, expected {expected:?}"))
                }
            }
        }
    }
}

#[test]
fn every_seed_is_answered_in_the_manifests_words() -> Result<(), Box<dyn Error>> {
    let mut model = small_model(&repository("tests/golden/pipeline/sd1"))?;
    let (mut failures, mut most) = (Vec::new(), (0, String::new()));
    for seed in manifest() {
        let scratch = tempfile::tempdir()?;
        let path = match seed.opens {
            Opens::Model => scratch.path().to_path_buf(),
            Opens::File | Opens::Adapter => repository("tests/hostile").join(&seed.seed),
        };
        if let Opens::Model = seed.opens {
            damaged(&seed, &path)?;
        }
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let outcome = catch_unwind(AssertUnwindSafe(|| match seed.opens {
            Opens::File => open_file(&path),
            Opens::Adapter => open_adapter(&path, &seed, &mut model),
            Opens::Model => small_model(&path).map(|_| Vec::new()),
        }));
        let bytes = PEAK.load(Relaxed).saturating_sub(before);
        if bytes > most.0 {
            most = (bytes, seed.seed.clone());
        }
        let failure = match &outcome {
            Ok(outcome) => wrong(&seed, &path, outcome),
            Err(_) => Some("panicked".into()),
        };
        let failure = failure.or((bytes > MOST_BYTES).then(|| format!("asked for {bytes} bytes")));
        failures.extend(failure.map(|failure| format!("{} ({}): {failure}", seed.seed, seed.rule)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(most.0 > 0, "nothing was counted");
    Ok(())
}

#[test]
fn every_file_is_a_small_seed_of_the_manifest() {
    let seeds: Vec<String> = manifest().into_iter().map(|seed| seed.seed).collect();
    let root = repository("tests/hostile");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            let below = path.strip_prefix(&root).expect("below it");
            let name = below.to_string_lossy().replace('\\', "/");
            if path.is_dir() {
                folders.push(path);
            } else if name.contains('/') {
                let listed = |seed: &String| name == *seed || name.starts_with(&format!("{seed}/"));
                assert!(seeds.iter().any(listed), "{name} has no line in the manifest");
                assert!(entry.metadata().expect("a file").len() <= 2048, "{name} is no seed");
            }
        }
    }
}
