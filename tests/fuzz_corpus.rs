//! What the fuzzers keep (`fuzz/corpus`), the malformed files, and the small golden adapters, each through what a fuzzer
//! does with it: no input may break a promise.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file below the folders, sorted.
fn files(folders: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

fn run(folders: &[&str], body: fn(&[u8])) {
    let files = files(folders);
    assert!(files.len() > 100, "{} files", files.len());
    for path in files {
        // A panic's message is printed by the test runner; this tells whose it is.
        let bytes = fs::read(&path).expect("a readable file");
        let outcome = std::panic::catch_unwind(|| body(&bytes));
        assert!(outcome.is_ok(), "{} breaks a promise", path.display());
    }
}

#[test]
fn the_readers_corpus_breaks_no_promise() {
    run(&["fuzz/corpus/safetensors_reader", "tests/hostile"], bodies::safetensors_reader);
}

#[test]
fn the_parsers_corpus_breaks_no_promise() {
    run(&["fuzz/corpus/adapter_parser", "tests/hostile/adapter"], bodies::adapter_parser);
}
