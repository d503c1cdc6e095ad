//! Stopping and going on: the exact state of a run in one file, written so that there is always a whole one.
//!
//! The file holds its own copy of the adapter in f32 beside AdamW's moments, so that adapter and moments can never be
//! from different steps. Noise, timesteps and the order of pictures follow from the seed and the step, and need no
//! state.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use super::optimizer::adamw::Moments;
use crate::{
    error::{Error, Result},
    files,
};

const VERSION: u32 = 1;
const KEY: &str = "scumble_training_state";

/// Where a run is.
#[derive(Debug, Clone)]
pub struct State {
    /// What is not a tensor.
    pub progress: Progress,
    /// Every trained value by name, in the optimizer's order.
    pub values: Vec<(String, Tensor)>,
    /// Their moments, in the same order.
    pub moments: Vec<Moments>,
}

/// What of a run's state is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps finished.
    pub step: u64,
    /// The smoothed loss.
    pub loss: Option<f64>,
    /// The configuration, as TOML.
    pub config: String,
    /// What identifies the pictures.
    pub dataset: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    progress: Progress,
}

/// The state's file beside an adapter: `style.safetensors` → `style.state.safetensors`.
pub fn state_path(adapter: &Path) -> PathBuf {
    adapter.with_extension("state.safetensors")
}

impl State {
    /// Writes the state, replacing an older one only when all of it is on the disk.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::with_capacity(3 * self.values.len());
        for ((name, value), Moments { m, v }) in self.values.iter().zip(&self.moments) {
            tensors.push((format!("value.{name}"), Bytes::of(value)?));
            tensors.push((format!("m.{name}"), Bytes::of(m)?));
            tensors.push((format!("v.{name}"), Bytes::of(v)?));
        }
        let header = Header { version: VERSION, progress: self.progress.clone() };
        let header = serde_json::to_string(&header).map_err(|e| Error::file(path, e.to_string()))?;
        let metadata = HashMap::from([(KEY.to_string(), header)]);
        let file =
            safetensors::serialize(tensors, Some(metadata)).map_err(|e| Error::file(path, e.to_string()))?;
        files::write_bytes(path, &file)
    }

    /// Reads the state of the variables called `names`.
    ///
    /// # Errors
    /// If the file is broken, of another version, or of a run that trained something else.
    pub fn load(path: &Path, names: &[String]) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let broken = |what: String| Error::file(path, format!("not a training state: {what}"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(KEY));
        let header = header.ok_or_else(|| broken(format!("no `{KEY}` in its header")))?;
        let header: Header = serde_json::from_str(header).map_err(|e| broken(e.to_string()))?;
        if header.version != VERSION {
            let found = header.version;
            return Err(broken(format!("expected version {VERSION}, found {found}")));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
        if file.len() != 3 * names.len() {
            let found = file.len() / 3;
            return Err(Error::file(
                path,
                format!("expected {} trained tensors, found {found}", names.len()),
            )
            .with_hint("train the same layers as before, or start again without `resume`"));
        }
        let read = |kind: &str, name: &str| -> Result<Tensor> {
            let view = file.tensor(&format!("{kind}.{name}")).map_err(|e| broken(e.to_string()))?;
            if view.dtype() != Dtype::F32 {
                return Err(broken(format!("expected f32 in `{kind}.{name}`, found {:?}", view.dtype())));
            }
            Ok(Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu)?)
        };
        let (mut values, mut moments) = (Vec::new(), Vec::new());
        for name in names {
            values.push((name.clone(), read("value", name)?));
            moments.push(Moments { m: read("m", name)?, v: read("v", name)? });
        }
        Ok(Self { progress: header.progress, values, moments })
    }
}

/// A tensor's f32 bytes, little-endian.
struct Bytes {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Bytes {
    fn of(tensor: &Tensor) -> Result<Self> {
        let values = tensor.detach().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(Self { shape: tensor.dims().to_vec(), bytes })
    }
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Rng, Stream};

    #[test]
    fn state_survives_the_disk_bit_for_bit() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let path = state_path(&folder.path().join("style.safetensors"));
        assert!(path.ends_with("style.state.safetensors"));
        let random = |i| Rng::new(1, Stream::Weights, i).normal((3, 2), &Device::Cpu);
        let progress =
            Progress { step: 7, loss: Some(0.25), config: "steps = 9".into(), dataset: "d".into() };
        let state = State {
            progress: progress.clone(),
            values: vec![("a".into(), random(0)?)],
            moments: vec![Moments { m: random(1)?, v: random(2)? }],
        };
        state.save(&path)?;
        let read = State::load(&path, &["a".to_string()])?;
        let bits = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        assert_eq!(read.progress, progress);
        assert_eq!(bits(&read.values[0].1)?, bits(&state.values[0].1)?);
        assert_eq!(bits(&read.moments[0].v)?, bits(&state.moments[0].v)?);

        let error = State::load(&path, &["a".to_string(), "b".to_string()]).expect_err("other layers");
        assert!(error.to_string().contains("expected 2 trained tensors, found 1"), "{error}");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        for cut in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).map_err(|e| Error::io(&path, e))?;
            assert!(State::load(&path, &["a".to_string()]).is_err(), "cut at {cut}");
        }
        Ok(())
    }
}
