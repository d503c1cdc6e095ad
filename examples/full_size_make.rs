//! Writes a full-size model with random f16 weights, as a folder and as a single file, for `full_size` to run:
//! `cargo run --release --example full_size_make -- sd1|sdxl FOLDER` (2.1 or 6.9 GB each).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::DType;
use scumble::{
    Error, Result,
    adapter::{Blend, bake, layers::Progress},
    files,
    models::family,
    pipeline::random::random_model,
    progress::CancelToken,
    weights::{Checkpoint, Component, Family, Store, stream},
};
use serde::Serialize;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let family: Family = args.next().as_deref().unwrap_or("sd1").parse()?;
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "target/full-size".into())).join(family.name());
    let random = random_model(family)?;
    let mut texts = family::text_encoder_configs(family).into_iter();
    for component in family.components() {
        let config = match component {
            Component::Unet => json(&family::unet_config(family))?,
            Component::Vae => json(&family::vae_config(family))?,
            _ => json(&texts.next().unwrap_or_default())?,
        };
        let part = folder.join(component.name());
        files::create_folder(&part)?;
        files::write_bytes(part.join("config.json"), config.as_bytes())?;
        let text = matches!(component, Component::TextEncoder | Component::TextEncoder2);
        let file = if text { "model.safetensors" } else { "diffusion_pytorch_model.safetensors" };
        write(&part.join(file), &*random.component(*component)?.store)?;
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

fn json(config: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(config).map_err(|e| Error::invalid(e.to_string()))
}

fn write(path: &Path, store: &dyn Store) -> Result<()> {
    let planned = |name: String| {
        let shape = store.info(&name).map(|info| info.shape.into_dims()).unwrap_or_default();
        stream::Planned { name, dtype: DType::F16, shape }
    };
    stream::write(path, store.names().into_iter().map(planned).collect(), &BTreeMap::new(), &mut |name| {
        Ok(store.load(name)?.to_dtype(DType::F16)?)
    })
}
