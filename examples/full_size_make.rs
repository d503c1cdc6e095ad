//! Writes a full-size model with random f16 weights, as a folder and as a single file, for `full_size` to run:
//! `cargo run --release --example full_size_make -- sd1|sdxl FOLDER` (2.1 or 6.9 GB each).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Shape, Tensor};
use scumble::{
    Error, Result,
    adapter::{Blend, bake, layers::Progress},
    files,
    models::{AutoencoderKl, ClipTextModel, UNet2DConditionModel, family},
    progress::CancelToken,
    random::{Rng, Stream},
    weights::{Checkpoint, Component, Family, stream},
};
use serde::Serialize;

type Shapes = BTreeMap<String, Shape>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let family: Family = args.next().as_deref().unwrap_or("sd1").parse()?;
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "target/full-size".into())).join(family.name());
    let mut texts = family::text_encoder_configs(family).into_iter();
    for component in family.components() {
        let (shapes, config) = match component {
            Component::Unet => {
                described(UNet2DConditionModel::parameter_shapes, &family::unet_config(family))?
            }
            Component::Vae => described(AutoencoderKl::parameter_shapes, &family::vae_config(family))?,
            _ => described(ClipTextModel::parameter_shapes, &texts.next().unwrap_or_default())?,
        };
        let part = folder.join(component.name());
        files::create_folder(&part)?;
        files::write_bytes(part.join("config.json"), config.as_bytes())?;
        let text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
        let file = if text { "model.safetensors" } else { "diffusion_pytorch_model.safetensors" };
        write(&part.join(file), &shapes, *component as u64)?;
    }
    let index = match family {
        Family::SdxlRefiner => serde_json::json!({ "_class_name": "StableDiffusionXLImg2ImgPipeline",
            "text_encoder": [null, null], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"] }),
        Family::Sdxl => serde_json::json!({ "_class_name": "StableDiffusionXLPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"] }),
        _ => serde_json::json!({ "_class_name": "StableDiffusionPipeline" }),
    };
    files::write_bytes(folder.join("model_index.json"), index.to_string().as_bytes())?;
    let base = Checkpoint::open_folder(&folder, None)?;
    let mut progress = Progress { observer: &mut (), cancel: &CancelToken::default() };
    let file = folder.with_extension("safetensors");
    bake::to_file(&base, &Blend::new(), &file, &bake::BakeOptions::default(), &mut progress)
}

fn described<C: Serialize>(shapes: fn(&C) -> Result<Shapes>, config: &C) -> Result<(Shapes, String)> {
    let json = serde_json::to_string_pretty(config).map_err(|e| Error::invalid(e.to_string()))?;
    Ok((shapes(config)?, json))
}

/// How many random numbers there are; a prime, so that rows of a matrix do not begin alike.
const POOL: usize = 1_000_003;

/// Norms of 1, biases of 0 and weights that keep the size of what passes through them: always the same numbers, from
/// another one on in each tensor, as drawing thousands of millions would take minutes.
fn write(path: &Path, shapes: &Shapes, seed: u64) -> Result<()> {
    let pool = Rng::new(seed, Stream::Weights, 0).normal(POOL, &Device::Cpu)?;
    let planned = |(name, shape): (&String, &Shape)| {
        let (name, shape) = (name.clone(), shape.dims().to_vec());
        stream::Planned { name, dtype: DType::F16, shape }
    };
    stream::write(path, shapes.iter().map(planned).collect(), &BTreeMap::new(), &mut |name| {
        let (shape, i) = (&shapes[name], shapes.keys().position(|key| key == name).unwrap_or_default());
        if shape.rank() == 1 {
            let fill = f32::from(u8::from(name.ends_with("weight")));
            return Ok(Tensor::full(fill, shape.clone(), &Device::Cpu)?.to_dtype(DType::F16)?);
        }
        let fan_in: usize = shape.dims()[1..].iter().product();
        let numbers = (&pool / (fan_in as f64).sqrt())?.to_dtype(DType::F16)?;
        let (start, count) = ((i * 7919) % POOL, shape.elem_count());
        let repeated = Tensor::cat(&vec![numbers; (start + count).div_ceil(POOL)], 0)?;
        Ok(repeated.narrow(0, start, count)?.reshape(shape)?)
    })
}
