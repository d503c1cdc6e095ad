//! Writes a full-size model with random f16 weights, as a single file and as a folder, for `full_size` to run:
//! `cargo run --release --example full_size_make -- sd1 target/full-size` (2.1 GB each, `sdxl` 6.9 GB each and in memory).

mod single_file;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Shape, Tensor};
use scumble::{
    Error, Result, files,
    models::{AutoencoderKl, ClipTextModel, UNet2DConditionModel, family},
    random::{Rng, Stream},
    weights::{Component, Family, writer::SafetensorsWriter},
};
use serde::Serialize;

type Shapes = BTreeMap<String, Shape>;
type Tensors = BTreeMap<String, Tensor>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let family: Family = args.next().as_deref().unwrap_or("sd1").parse()?;
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "target/full-size".into())).join(family.name());
    let (mut single, mut texts) = (Tensors::new(), family::text_encoder_configs(family).into_iter());
    for component in family.components() {
        let (shapes, config) = match component {
            Component::Unet => {
                described(UNet2DConditionModel::parameter_shapes, &family::unet_config(family))?
            }
            Component::Vae => described(AutoencoderKl::parameter_shapes, &family::vae_config(family))?,
            _ => described(ClipTextModel::parameter_shapes, &texts.next().unwrap_or_default())?,
        };
        let part = folder.join(component.name());
        let text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
        let file = if text { "model.safetensors" } else { "diffusion_pytorch_model.safetensors" };
        let tensors = random(&shapes, *component as u64)?;
        write(&part.join(file), &tensors)?;
        files::write_bytes(part.join("config.json"), config.as_bytes())?;
        single.extend(single_file::named(family, *component, tensors)?);
    }
    let class = if family == Family::Sdxl { "StableDiffusionXLPipeline" } else { "StableDiffusionPipeline" };
    let index =
        serde_json::json!({ "_class_name": class, "text_encoder": ["transformers", "CLIPTextModel"] });
    files::write_bytes(folder.join("model_index.json"), index.to_string().as_bytes())?;
    write(&folder.with_extension("safetensors"), &single)
}

fn described<C: Serialize>(shapes: fn(&C) -> Result<Shapes>, config: &C) -> Result<(Shapes, String)> {
    let json = serde_json::to_string_pretty(config).map_err(|e| Error::invalid(e.to_string()))?;
    Ok((shapes(config)?, json))
}

/// How many random numbers there are; a prime, so that rows of a matrix do not begin alike.
const POOL: usize = 1_000_003;

/// Norms of 1, biases of 0 and weights that keep the size of what passes through them: always the same numbers, from
/// another one on in each tensor, as drawing thousands of millions would take minutes.
fn random(shapes: &Shapes, seed: u64) -> Result<Tensors> {
    let pool = Rng::new(seed, Stream::Weights, 0).normal(POOL, &Device::Cpu)?;
    let tensor = |(i, (name, shape)): (usize, (&String, &Shape))| -> Result<(String, Tensor)> {
        if shape.rank() == 1 {
            let fill = f32::from(u8::from(name.ends_with("weight")));
            return Ok((
                name.clone(),
                Tensor::full(fill, shape.clone(), &Device::Cpu)?.to_dtype(DType::F16)?,
            ));
        }
        let fan_in: usize = shape.dims()[1..].iter().product();
        let numbers = (&pool / (fan_in as f64).sqrt())?.to_dtype(DType::F16)?;
        let start = (i * 7919) % POOL;
        let repeated = Tensor::cat(&vec![numbers; (start + shape.elem_count()).div_ceil(POOL)], 0)?;
        let own = repeated.narrow(0, start, shape.elem_count())?.force_contiguous()?;
        Ok((name.clone(), own.reshape(shape)?))
    };
    shapes.iter().enumerate().map(tensor).collect()
}

fn write(path: &Path, tensors: &Tensors) -> Result<()> {
    files::create_folder(path.parent().unwrap_or(path))?;
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    SafetensorsWriter::new(named)?.write(path, &BTreeMap::new())
}
