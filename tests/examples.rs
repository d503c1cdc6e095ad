//! Every example runs on the embedded model. Cargo builds them beside this test.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

fn run(name: &str, args: &[&Path]) {
    let output = Command::new(example(name)).args(args).output().expect("cargo built the example");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

fn assert_picture(path: &Path, width: u32) {
    let picture = image::open(path).expect("the example wrote a picture").to_rgb8();
    assert_eq!(picture.dimensions(), (width, 128));
    let first = picture.get_pixel(0, 0);
    assert!(picture.pixels().any(|p| p != first), "{} is one flat colour", path.display());
}

#[test]
fn train_then_blend() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [a, b, row] = ["a.safetensors", "b.safetensors", "row.png"].map(|f| folder.path().join(f));
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data");
    run("train", &[&data.join("blueprint"), &a, Path::new("2")]);
    run("train", &[&data.join("riso"), &b, Path::new("2")]);
    run("blend_two", &[&a, &b, &row, Path::new("2")]);
    assert_picture(&row, 5 * 128);
}

#[test]
fn generate_and_custom_sampler() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let picture = folder.path().join("picture.png");
    run("generate", &[&picture, Path::new("cat, flat icon"), Path::new("2")]);
    assert_picture(&picture, 128);
    let picture = folder.path().join("custom.png");
    run("custom_sampler", &[&picture, Path::new("2")]);
    assert_picture(&picture, 128);
}

/// What is meant for full-size models, on the embedded one.
#[test]
fn full_size() {
    for what in ["generate", "train"] {
        run("full_size", &["mini", what, "bf16", "64"].map(Path::new));
    }
}
