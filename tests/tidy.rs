//! The architecture, enforced: reads the source tree and fails where an arrow of `ARCHITECTURE.md` points the wrong way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may import. Level 1 is open to all.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("files", &[]),
    ("device", &[]),
    ("heap", &[]),
    ("random", &[]),
    ("progress", &[]),
    ("ops", &[]),
    ("diffusion", &[]),
    ("weights", &[]),
    ("dataset", &[]),
    ("prompt", &[]),
    ("nn", &["ops", "weights"]),
    ("models", &["nn", "ops", "weights"]),
    ("adapter", &["nn", "ops", "weights"]),
    ("pipeline", &["models", "nn", "adapter", "prompt", "diffusion", "weights"]),
    (
        "training",
        &["pipeline", "dataset", "models", "nn", "ops", "adapter", "prompt", "diffusion", "weights"],
    ),
    ("bench", &["training", "pipeline", "models", "ops", "diffusion", "weights"]),
    ("engine", &["training", "pipeline", "dataset", "models", "adapter", "prompt", "diffusion", "weights"]),
    (
        "cli",
        &[
            "bench",
            "engine",
            "training",
            "pipeline",
            "dataset",
            "models",
            "adapter",
            "prompt",
            "diffusion",
            "weights",
        ],
    ),
];
const LEVEL_1: &[&str] = &["error", "files", "device", "heap", "random", "progress", "Error", "Result"];
/// Lines of code before a file's tests.
const FILE_CAP: usize = 500;

#[test]
fn imports_point_downwards() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        let Some(module) = file.module() else { continue };
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module `{module}` has no row in tests/tidy.rs", file.path));
            continue;
        };
        for (line, imported) in file.imports() {
            let known =
                MAY_IMPORT.iter().any(|(name, _)| *name == imported) || LEVEL_1.contains(&imported.as_str());
            let fine = imported == module
                || LEVEL_1.contains(&imported.as_str())
                || allowed.contains(&imported.as_str());
            if known && !fine {
                wrong.push(format!("{}:{line}: `{module}` may not import `{imported}`", file.path));
            }
        }
    }
    report(&wrong);
}

#[test]
fn each_thing_has_its_place() {
    let network = |file: &Source| file.path == "src/weights/download.rs";
    let hub = |file: &Source| network(file) || file.path == "src/weights/cache.rs";
    let cli = |file: &Source| file.path.starts_with("src/cli/") || file.path == "src/main.rs";
    let mut wrong = Vec::new();
    for file in sources("src") {
        let mut ban = |needle: &str, fine: bool, reason: &str| {
            for (line, code) in file.code.iter().filter(|(_, code)| !fine && names(code, needle)) {
                wrong.push(format!("{}:{line}: {reason}: {}", file.path, code.trim()));
            }
        };
        ban("hf_hub", hub(&file), "only weights/cache.rs and weights/download.rs know the hub's crate");
        ban("hf_hub::api", network(&file), "only weights/download.rs touches the network");
        ban("ureq", network(&file), "only weights/download.rs touches the network");
        for print in
            ["println!", "eprintln!", "print!", "eprint!", "process::exit", "clap", "indicatif", "ctrlc"]
        {
            ban(print, cli(&file), "only cli/ prints, exits or parses arguments");
        }
        for other in ["prompt", "models", "adapter", "weights", "files"] {
            let needle = format!("crate::{other}");
            ban(
                &needle,
                !file.path.starts_with("src/diffusion/"),
                "diffusion/ knows no text, VAE, file or adapter",
            );
        }
        for io in ["std::fs", "std::io", "std::path"] {
            ban(io, !file.path.starts_with("src/diffusion/"), "diffusion/ knows no files");
        }
        ban(
            "rand",
            ["src/random.rs", "src/random/"].iter().any(|p| file.path.starts_with(p)),
            "randomness is random.rs",
        );
    }
    for file in sources("gui/src") {
        for (line, code) in file.code.iter().filter(|(_, code)| code.contains("candle")) {
            wrong.push(format!("{}:{line}: gui does not name candle: {}", file.path, code.trim()));
        }
    }
    let manifest = fs::read_to_string(root().join("gui/Cargo.toml")).unwrap_or_default();
    if manifest.contains("candle") {
        wrong.push("gui/Cargo.toml: gui does not name candle".to_owned());
    }
    report(&wrong);
}

#[test]
fn files_stay_readable() {
    let mut wrong = Vec::new();
    for file in sources("src")
        .into_iter()
        .chain(sources("gui/src"))
        .chain(sources("tests"))
        .chain(sources("examples"))
    {
        let cap = if file.path.starts_with("examples/") { 80 } else { FILE_CAP };
        let lines = file.code.iter().filter(|(_, code)| !code.trim().is_empty()).count();
        if lines > cap {
            wrong.push(format!("{}: {lines} lines of code, at most {cap}: split it", file.path));
        }
        for (line, code) in &file.code {
            if ["unimplemented!(", "todo!(", "#[ignore"].iter().any(|n| code.contains(n))
                && file.path != "tests/tidy.rs"
            {
                wrong.push(format!("{}:{line}: unfinished: {}", file.path, code.trim()));
            }
        }
    }
    report(&wrong);
}

#[test]
fn licences_are_there() {
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        assert!(root().join(name).is_file(), "{name} is missing");
    }
}

struct Source {
    /// From the repository's root, with `/`.
    path: String,
    /// Numbered lines without comments and without what follows `#[cfg(test)]`.
    code: Vec<(usize, String)>,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let relative = path.strip_prefix(root()).unwrap_or(path);
        let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
        // A unit-test file (`mod tests;`) is named tests.rs; what it imports is its own business.
        let is_test = parts.last().is_some_and(|name| name == "tests.rs");
        let code = text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !is_test && !line.starts_with("#[cfg(test)]"))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(index, line)| (index + 1, line.split(" // ").next().unwrap_or_default().to_owned()))
            .collect();
        Self { path: parts.join("/"), code }
    }

    /// `src/nn/linear.rs` → `nn`; the crate's roots belong to no module.
    fn module(&self) -> Option<&str> {
        let module = self.path.split('/').nth(1)?.trim_end_matches(".rs");
        (!["lib", "main"].contains(&module)).then_some(module)
    }

    /// The first name after every `crate::`, also inside `use crate::{a, b::c}`.
    fn imports(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let text: String = self.code.iter().map(|(_, code)| format!("{code}\n")).collect();
        for (at, _) in text.match_indices("crate::") {
            if text[..at].ends_with('$') {
                continue;
            }
            let line = self.code.get(text[..at].matches('\n').count()).map_or(0, |(line, _)| *line);
            let rest = &text[at + "crate::".len()..];
            found.extend(first_names(rest).into_iter().map(|name| (line, name)));
        }
        found
    }
}

/// `a::b` → a; `{a::{x, y}, b}` → a, b.
fn first_names(text: &str) -> Vec<String> {
    let word =
        |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = text.strip_prefix('{') else { return vec![word(text)] };
    let mut names = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                names.push(word(&group[from..at]));
                from = at + 1;
            }
            '}' => {
                names.push(word(&group[from..at]));
                break;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// True if the code names a path or macro, as a whole word.
fn names(code: &str, needle: &str) -> bool {
    code.match_indices(needle).any(|(at, _)| {
        let before =
            code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"');
        let after = &code[at + needle.len()..];
        let path = needle.ends_with('!')
            || needle.contains("::")
            || after.starts_with("::")
            || after.starts_with(';');
        !before && path && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

fn sources(folder: &str) -> Vec<Source> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.insert(path.clone(), Source::read(&path));
            }
        }
    }
    files.into_values().collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_itself_is_right() {
    assert_eq!(first_names("{error::{Error, Result}, nn, ops::x}"), ["error", "nn", "ops"]);
    assert_eq!(first_names("weights::Store;"), ["weights"]);
    assert!(names("use hf_hub::api;", "hf_hub") && names("println!(\"x\")", "println!"));
    assert!(
        !names("eprintln!(\"x\")", "println!")
            && !names("my_rand::x", "rand")
            && !names("rand_chacha::x", "rand")
    );
}
