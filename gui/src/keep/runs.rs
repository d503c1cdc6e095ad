//! How trainings went: the loss and the previews of each, for when one goes on after a restart.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use image::RgbImage;
use scumble::{
    error::Result,
    files,
    pipeline::infotext::{self, Recipe},
};

use super::history;

/// Trainings kept.
const KEPT: usize = 16;
/// Bytes of a loss file that are read: what is kept of one is far less.
const LONGEST: u64 = 1 << 20;
const LOSSES: &str = "loss.csv";

/// How a training went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Step and smoothed loss.
    pub losses: Vec<[f64; 2]>,
    /// Step and preview, oldest first.
    pub samples: Vec<(u64, RgbImage, Recipe)>,
}

/// Where the training of an adapter is recorded.
pub fn place(folder: &Path, out: &Path) -> PathBuf {
    let name = crate::state::stem(out);
    folder
        .join("runs")
        .join(format!("{name}-{:032x}", super::fingerprint(out.as_os_str().as_encoded_bytes())))
}

/// Writes the losses so far.
///
/// # Errors
/// If they cannot be written.
pub fn keep_losses(place: &Path, losses: &[[f64; 2]]) -> Result<()> {
    let lines: String = losses.iter().map(|[step, loss]| format!("{step},{loss}\n")).collect();
    files::write_bytes(place.join(LOSSES), format!("step,loss\n{lines}").as_bytes())?;
    for old in place.parent().into_iter().flat_map(|all| super::beyond(all, KEPT)) {
        forget(&old);
    }
    Ok(())
}

/// Writes a preview.
///
/// # Errors
/// If it cannot be written.
pub fn keep_sample(place: &Path, step: u64, (image, recipe): (&RgbImage, &Recipe)) -> Result<()> {
    infotext::write_png(&place.join(format!("{step:08}.png")), image, recipe)
}

/// What is there of a training; of what cannot be read, nothing.
pub fn read(place: &Path) -> Record {
    let mut text = String::new();
    if let Ok(file) = files::open_regular(&place.join(LOSSES), "a list of losses") {
        file.take(LONGEST).read_to_string(&mut text).ok();
    }
    let point = |line: &str| {
        let (step, loss) = line.split_once(',')?;
        let point = [step.parse().ok()?, loss.parse().ok()?];
        point.iter().all(|number: &f64| number.is_finite()).then_some(point)
    };
    let losses = text.lines().filter_map(point).collect();
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let step = |path: PathBuf| Some((path.file_stem()?.to_str()?.parse::<u64>().ok()?, path));
    let mut files: Vec<(u64, PathBuf)> = entries.filter_map(|entry| step(entry.path())).collect();
    files.sort();
    let sample = |(step, path): (u64, PathBuf)| {
        let (image, recipe) = history::picture(&path).ok()?;
        Some((step, image, recipe))
    };
    Record { losses, samples: files.into_iter().filter_map(sample).collect() }
}

/// Removes the record of a training.
pub fn forget(place: &Path) {
    std::fs::remove_dir_all(place).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_what_is_broken_is_left_out() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| scumble::error::Error::invalid(e.to_string()))?;
        let place = place(folder.path(), Path::new("a/ink.safetensors"));
        assert_eq!(read(&place), Record::default());
        let losses = vec![[1.0, 0.25], [2.0, 1.0 / 3.0]];
        keep_losses(&place, &losses)?;
        let (image, recipe) = (RgbImage::new(8, 8), Recipe { prompt: "owl".into(), ..Recipe::default() });
        for step in [20, 100] {
            keep_sample(&place, step, (&image, &recipe))?;
        }
        let text = std::fs::read_to_string(place.join(LOSSES)).unwrap_or_default();
        files::write_bytes(place.join(LOSSES), format!("{text}3,\nx,1\n4,inf\n").as_bytes())?;
        files::write_bytes(place.join("00000060.png"), b"not a picture")?;
        let record = read(&place);
        assert_eq!(record.losses, losses);
        assert_eq!(record.samples.iter().map(|(step, ..)| *step).collect::<Vec<_>>(), [20, 100]);
        assert_eq!((&record.samples[0].1, &record.samples[0].2.prompt), (&image, &recipe.prompt));
        forget(&place);
        assert_eq!(read(&place), Record::default());
        Ok(())
    }
}
