//! Latents computed once. An entry is keyed by the picture's content, its bucket and view, and the model that made it,
//! so that neither a replaced picture nor another VAE ever meets a stale entry.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest as _, Sha256};

use super::{Dataset, View};
use crate::{
    error::{Error, Result},
    files,
    progress::{CancelToken, Event, Observer, Stage},
};

/// Part of every key: raised when what an entry holds changes.
const VERSION: u8 = 1;
const TENSOR: &str = "latents";

/// Latents in memory, and on disk if a folder was given.
#[derive(Debug)]
pub struct LatentCache {
    folder: Option<PathBuf>,
    model: String,
    entries: HashMap<(usize, bool), Tensor>,
}

impl LatentCache {
    /// An empty cache for the model that `model` identifies (a hash of its VAE). With a folder, entries outlive the run.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(folder: Option<&Path>, model: &str) -> Result<Self> {
        if let Some(folder) = folder {
            files::create_folder(folder)?;
        }
        Ok(Self { folder: folder.map(Path::to_path_buf), model: model.to_owned(), entries: HashMap::new() })
    }

    /// Fills the cache with every picture, mirrored too if `flips`. `encode` takes pixels (1, h, w, 3) in [-1, 1] and
    /// returns what is to be kept of them (latents, or mean and log-variance side by side).
    ///
    /// # Errors
    /// If a picture cannot be read or encoded, if `encode` returns a value that is not finite (the file is named), if
    /// the folder cannot be written, or on cancel.
    pub fn fill(
        &mut self,
        dataset: &Dataset,
        flips: bool,
        mut encode: impl FnMut(&Tensor) -> Result<Tensor>,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
    ) -> Result<()> {
        let views: &[bool] = if flips { &[false, true] } else { &[false] };
        let total = (dataset.len() * views.len()) as u64;
        observer.observe(&Event::Started { stage: Stage::Cache, total });
        let mut done = 0;
        for index in 0..dataset.len() {
            for &flip in views {
                cancel.check()?;
                let latents = self.load_or_make(dataset, (index, flip), &mut encode, observer)?;
                self.entries.insert((index, flip), latents);
                done += 1;
                observer.observe(&Event::Advanced { stage: Stage::Cache, done, total });
            }
        }
        observer.observe(&Event::Finished { stage: Stage::Cache });
        Ok(())
    }

    /// What was kept for a picture: f32 on the CPU, without the batch axis.
    ///
    /// # Errors
    /// If the cache was not filled with it.
    pub fn get(&self, index: usize, flip: bool) -> Result<&Tensor> {
        self.entries.get(&(index, flip)).ok_or_else(|| {
            Error::invalid(format!("picture {index} (mirrored: {flip}) is not in the latent cache"))
        })
    }

    fn load_or_make(
        &self,
        dataset: &Dataset,
        (index, flip): (usize, bool),
        encode: &mut impl FnMut(&Tensor) -> Result<Tensor>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let file = self.folder.as_ref().map(|f| f.join(self.file_name(dataset, index, flip)));
        if let Some(path) = file.as_deref().filter(|p| p.exists()) {
            match read_entry(path) {
                Ok(latents) => return Ok(latents),
                Err(e) => observer
                    .observe(&Event::Warning { message: &format!("latent cache entry is made again: {e}") }),
            }
        }
        let picture = &dataset.item(index).path;
        let pixels = dataset.pixels(index, View { flip, ..View::CENTRE })?.pixels;
        let latents =
            encode(&pixels.unsqueeze(0)?)?.squeeze(0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let sum = latents.abs()?.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(Error::file(picture, "the VAE's latents of this picture are not finite")
                .with_hint("use `--dtype f32`, or look at the picture"));
        }
        if let Some(path) = &file {
            write_entry(path, &latents)?;
        }
        Ok(latents)
    }

    fn file_name(&self, dataset: &Dataset, index: usize, flip: bool) -> String {
        let item = dataset.item(index);
        let mut hash = Sha256::new();
        hash.update([VERSION, u8::from(flip)]);
        hash.update(item.hash);
        let (w, h) = item.placement.resized_px;
        for side in [item.placement.bucket.width, item.placement.bucket.height, w, h] {
            hash.update(side.to_le_bytes());
        }
        hash.update(self.model.as_bytes());
        let hex: String = hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex}.safetensors")
    }
}

fn read_entry(path: &Path) -> Result<Tensor> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let broken = |e: &dyn std::fmt::Display| Error::file(path, format!("broken cache entry: {e}"));
    let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(&e))?;
    let view = file.tensor(TENSOR).map_err(|e| broken(&e))?;
    if view.dtype() != Dtype::F32 {
        return Err(broken(&"expected f32"));
    }
    let values: Vec<f32> =
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if values.iter().any(|v| !v.is_finite()) {
        return Err(broken(&"values that are not finite"));
    }
    Ok(Tensor::from_vec(values, view.shape(), &Device::Cpu)?)
}

fn write_entry(path: &Path, latents: &Tensor) -> Result<()> {
    let bytes: Vec<u8> =
        latents.flatten_all()?.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect();
    let invalid = |e: safetensors::SafeTensorError| Error::file(path, e.to_string());
    let view = TensorView::new(Dtype::F32, latents.dims().to_vec(), &bytes).map_err(invalid)?;
    let file = safetensors::serialize([(TENSOR, view)], None).map_err(invalid)?;
    files::write_bytes(path, &file)
}
