use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Shape, Tensor};

use super::*;
use crate::{
    adapter::{Adapter, LoadOptions},
    diffusion::{NoiseSchedule, Prediction},
    files,
    models::{
        AutoencoderKl, ClipTextConfig, ClipTextModel, UNet2DConditionModel, UNetConfig, VaeConfig,
        family::conventions, unet::config::PerBlock,
    },
    nn::{LayerPath, Part, Slot},
    prompt::Tokenizer,
    training::{
        LrShape, UnetLayers,
        base::{EncodeOptions, Encoder},
        gradients::Gradients,
    },
    weights::{Checkpoint, Family, RandomStore, Weights},
};

fn weights(shapes: BTreeMap<String, Shape>, seed: u64) -> Result<Weights> {
    Ok(Weights::new(Arc::new(RandomStore::new(shapes, seed)?), DType::F32, Device::Cpu))
}

fn text_encoder(part: Part, seed: u64, config: &ClipTextConfig) -> Result<Encoder> {
    let model = ClipTextModel::load(&weights(ClipTextModel::parameter_shapes(config)?, seed)?, config)?;
    Ok(Encoder { part, model, tokenizer: Tokenizer::openai()? })
}

/// A model of SD1's or SDXL's shape with two levels of 16 and 32 channels; pictures are twice its latents' size.
fn tiny_model(family: Family) -> Result<Base> {
    let sdxl = family == Family::Sdxl;
    let text = ClipTextConfig {
        hidden_size: 16,
        intermediate_size: 32,
        projection_dim: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        ..ClipTextConfig::default()
    };
    let encoders = if sdxl {
        let projecting = ClipTextConfig {
            architectures: Some(vec!["CLIPTextModelWithProjection".into()]),
            ..text.clone()
        };
        vec![text_encoder(Part::TextEncoder, 1, &text)?, text_encoder(Part::TextEncoder2, 2, &projecting)?]
    } else {
        vec![text_encoder(Part::TextEncoder, 1, &text)?]
    };
    let unet = UNetConfig {
        block_out_channels: vec![16, 32],
        down_block_types: vec!["CrossAttnDownBlock2D".into(), "DownBlock2D".into()],
        up_block_types: vec!["UpBlock2D".into(), "CrossAttnUpBlock2D".into()],
        layers_per_block: PerBlock::All(1),
        attention_head_dim: PerBlock::All(2),
        cross_attention_dim: PerBlock::All(if sdxl { 32 } else { 16 }),
        norm_num_groups: Some(4),
        addition_embed_type: sdxl.then(|| "text_time".into()),
        addition_time_embed_dim: sdxl.then_some(8),
        projection_class_embeddings_input_dim: sdxl.then_some(16 + 6 * 8),
        ..UNetConfig::default()
    };
    let vae = VaeConfig {
        block_out_channels: vec![8, 8],
        down_block_types: vec!["DownEncoderBlock2D".into(); 2],
        up_block_types: vec!["UpDecoderBlock2D".into(); 2],
        layers_per_block: 1,
        norm_num_groups: 4,
        ..VaeConfig::default()
    };
    let unet_weights = weights(UNet2DConditionModel::parameter_shapes(&unet)?, 3)?;
    let vae_weights = weights(AutoencoderKl::parameter_shapes(&vae)?, 4)?;
    Ok(Base {
        origin: "tiny".into(),
        conventions: conventions(family),
        size: ModelSize { native_px: 16, step_px: 4 },
        unet: UNet2DConditionModel::load(&unet_weights, &unet)?,
        encoders,
        vae: Some(AutoencoderKl::load(&vae_weights, &vae)?),
        schedule: NoiseSchedule::stable_diffusion(Prediction::Epsilon),
        device: Device::Cpu,
        dtype: DType::F32,
    })
}

/// A folder with `count` pictures of differently coloured stripes, and where to write.
fn folder(count: u8) -> Result<(tempfile::TempDir, TrainConfig)> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
    let images = folder.path().join("images");
    files::create_folder(&images)?;
    for i in 0..count {
        let path = images.join(format!("{i}.png"));
        let stripes = |x: u32, y: u32| image::Rgb([(x * 40 % 256) as u8, 60 * i, (y * 30 % 256) as u8]);
        let picture = image::RgbImage::from_fn(16, 16 + 8 * u32::from(i % 2), stripes);
        picture.save(&path).map_err(|e| Error::file(&path, e.to_string()))?;
        files::write_bytes(images.join(format!("{i}.txt")), format!("stripes, number {i}").as_bytes())?;
    }
    let mut config = TrainConfig {
        images,
        out: folder.path().join("out/style.safetensors"),
        steps: 6,
        batch_size: 2,
        rank: 4,
        alpha: Some(2.0),
        learning_rate: 1e-2,
        warmup_steps: Some(0),
        lr_schedule: LrShape::Constant,
        layers: UnetLayers::ALL.into(),
        save_dtype: "f32".into(),
        reproducible: true,
        ..TrainConfig::default()
    };
    config.dataset.buckets.step_px = 8;
    config.dataset.captions.shuffle = true;
    Ok((folder, config))
}

fn train(config: &TrainConfig, family: Family) -> Result<(TrainOutcome, Vec<f64>)> {
    let mut losses = Vec::new();
    let mut observer = |event: &Event<'_>| {
        if let Event::Loss { loss, .. } = event {
            losses.push(*loss);
        }
    };
    let mut trainer = Trainer::with_model(config.clone(), tiny_model(family)?)?;
    let outcome = trainer.run(&mut observer, &CancelToken::default())?;
    Ok((outcome, losses))
}

fn bytes(config: &TrainConfig) -> Result<Vec<u8>> {
    std::fs::read(&config.out).map_err(|e| Error::io(&config.out, e))
}

#[test]
fn one_picture_is_learned() -> Result<()> {
    let (_folder, config) = folder(1)?;
    let mut config =
        TrainConfig { steps: 120, batch_size: 1, rank: 8, gradient_checkpointing: false, ..config };
    config.dataset.captions.shuffle = false; // the captions are encoded before the first step
    let (outcome, losses) = train(&config, Family::Sd1)?;
    let last = losses[119];
    assert!(last < 0.6 * losses[4], "loss {} after 5 steps, {last} after 120", losses[4]);
    assert_eq!(outcome, TrainOutcome::Finished { adapter: config.out.clone(), loss: last });
    assert!(!state_path(&config.out).exists());
    Ok(())
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() -> Result<()> {
    let (_folder, config) = folder(3)?;
    let config = TrainConfig {
        gradient_accumulation: 2,
        train_text_encoder: true,
        noise_offset: 0.05,
        random_flip: true,
        ..config
    };
    train(&config, Family::Sd1)?;
    let whole = bytes(&config)?;

    let config = TrainConfig { out: config.out.with_file_name("other/style.safetensors"), ..config };
    let config = TrainConfig { resume: true, ..config };
    let cancel = CancelToken::default();
    let mut observer = |event: &Event<'_>| {
        if let Event::Loss { .. } = event {
            cancel.cancel();
        }
    };
    let mut trainer = Trainer::with_model(config.clone(), tiny_model(Family::Sd1)?)?;
    let outcome = trainer.run(&mut observer, &cancel)?;
    let TrainOutcome::Cancelled { adapter, checkpoint, step } = outcome else {
        return Err(Error::invalid("six steps are over before one is told of"));
    };
    assert!((1..6).contains(&step));
    assert_eq!(checkpoint, state_path(&config.out));
    let table = NameTable::of(&mut tiny_model(Family::Sd1)?.parts())?;
    let kept = Adapter::load(&adapter, &table, &LoadOptions::default())?;
    assert_eq!(kept.metadata.get("ss_steps"), Some(step.to_string().as_str()));

    let forgotten = TrainConfig { resume: false, ..config.clone() };
    let error = train(&forgotten, Family::Sd1).expect_err("the stopped run would be lost");
    assert!(error.hint().unwrap_or_default().contains("--resume"), "{error}");

    let (_, losses) = train(&config, Family::Sd1)?;
    assert_eq!(losses.len() as u64, 6 - step);
    assert!(bytes(&config)? == whole, "the adapters differ");
    let error = train(&config, Family::Sd1).expect_err("the finished adapter would be lost");
    assert!(error.to_string().contains("is finished"), "{error}");
    assert!(bytes(&config)? == whole, "the adapter was touched");
    Ok(())
}

#[test]
fn checkpointing_changes_no_bit() -> Result<()> {
    let (_folder, config) = folder(2)?;
    let config = TrainConfig { steps: 2, train_text_encoder: true, ..config };
    train(&config, Family::Sd1)?;
    let with = bytes(&config)?;
    let config = TrainConfig { gradient_checkpointing: false, ..config };
    train(&config, Family::Sd1)?;
    let table = NameTable::of(&mut tiny_model(Family::Sd1)?.parts())?;
    let without = Adapter::load(&config.out, &table, &LoadOptions::default())?;
    files::write_bytes(&config.out, &with)?;
    let with = Adapter::load(&config.out, &table, &LoadOptions::default())?;
    assert_eq!(format!("{:?}", with.layers), format!("{:?}", without.layers));
    Ok(())
}

/// A tiny model of a family's shape, as committed for the comparison with diffusers. Text encoders have 3 layers.
fn committed_model(name: &str) -> Result<Base> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline").join(name);
    Ok(Base::from(&Pipeline::load(&Checkpoint::open_folder(folder, None)?, &Device::Cpu, DType::F32)?))
}

/// The names of the factors, and of those that had a gradient in each of two steps.
fn factors_with_gradients(model: Base, config: &TrainConfig) -> Result<(Vec<String>, [Vec<String>; 2])> {
    on_large_stack(&mut (), |observer| {
        let cancel = CancelToken::default();
        let mut run = Run::prepare(config, model, observer, &cancel)?;
        let mut step = |number| -> Result<Vec<String>> {
            let tape = Tape::new(&Device::Cpu)?;
            let batch = run.feed.batch(number, &run.learner.model, Some(&tape))?;
            let grads =
                tape.backward(&run.learner.loss_of(&batch, Some(&tape), &CancelToken::default())?)?;
            let mut sum = Gradients::default();
            sum.add(&run.learner.trainable, &grads)?;
            let mut alive = Vec::new();
            for (name, grad) in run.learner.names.iter().zip(&sum.0) {
                if let Some(grad) = grad
                    && grad.abs()?.max_all()?.to_scalar::<f32>()? > 0.0
                {
                    alive.push(name.clone());
                }
            }
            run.advance(&cancel)?;
            Ok(alive)
        };
        let alive = [step(0)?, step(1)?];
        Ok((run.learner.names, alive))
    })
}

/// A layer has two factors, and every factor learns: `up` from the first step, `down` as soon as `up` is not 0.
///
/// The UNets have 4 transformers (2 projections each), 8 resnets of 3 layers, 5 shortcuts and 2 resamplers. A
/// transformer block has 8 attention and 2 feed-forward layers; there is one in each transformer of SD 1 and SD 2, and
/// there are two in SDXL. A layer of a text encoder has 6; those that nothing reads get no factors.
#[test]
fn every_factor_has_a_gradient() -> Result<()> {
    let (around, block, text_layer) = (4 * 2 + 8 * 3 + 5 + 2, 4 * 10, 6);
    for (name, clip_skip, factors, unet, text_layers) in [
        ("sd1", None, 194, around + block, 3),
        ("sd1", Some(2), 182, around + block, 2),
        ("sd2", None, 194, around + block, 3),
        // All of the second encoder is read through the pooled text, whatever clip skip is.
        ("sdxl", None, 298, around + 2 * block, 2 + 3),
        ("sdxl", Some(3), 286, around + 2 * block, 1 + 3),
    ] {
        let (_folder, config) = folder(2)?;
        let config = TrainConfig { train_text_encoder: true, clip_skip, resolution: Some(16), ..config };
        let (names, [first, second]) = factors_with_gradients(committed_model(name)?, &config)?;
        assert_eq!(factors, 2 * (unet + text_layer * text_layers), "the arithmetic above");
        assert_eq!(names.len(), factors, "{name}, clip skip {clip_skip:?}");
        let ups: Vec<&String> = names.iter().filter(|n| n.ends_with(".up")).collect();
        assert_eq!(first.iter().collect::<Vec<_>>(), ups, "{name}, clip skip {clip_skip:?}");
        assert_eq!(second, names, "{name}, clip skip {clip_skip:?}");
    }
    Ok(())
}

/// The layers left out are those, and only those, whose change does not change what the UNet is given.
#[test]
fn what_is_not_read_gets_no_factors() -> Result<()> {
    for name in ["sd1", "sdxl"] {
        for clip_skip in [None, Some(1), Some(2), Some(3)] {
            let mut model = committed_model(name)?;
            let options = EncodeOptions { clip_skip, ..EncodeOptions::default() };
            let said = |model: &Base| -> Result<(Vec<f32>, Option<Vec<f32>>)> {
                let said = model.encode(&["a red house"], options)?;
                let values = |t: Tensor| t.flatten_all()?.to_vec1();
                Ok((values(said.context)?, said.pooled.map(values).transpose()?))
            };
            let before = said(&model)?;
            let unread = model.unread(clip_skip);
            let parts: Vec<Part> = model.encoders.iter().map(|e| e.part).collect();
            for (part, layer) in parts.into_iter().flat_map(|part| (0..3).map(move |i| (part, i))) {
                let path = LayerPath { part, name: format!("text_model.encoder.layers.{layer}") };
                // Without its feed-forward layers, and the layer before with them again.
                model.parts().visit(&mut |found, slot| {
                    if let Slot::Linear(linear) = slot {
                        let changed = *found == path.join("mlp.fc2");
                        linear.set_fused(changed.then(|| linear.weight().zeros_like()).transpose()?);
                    }
                    Ok(())
                })?;
                let changed = said(&model)? != before;
                assert_eq!(changed, !unread.contains(&path), "{name}, clip skip {clip_skip:?}: {path}");
            }
        }
    }
    Ok(())
}

#[test]
fn failures_are_said_and_keep_the_state() -> Result<()> {
    let (_folder, config) = folder(1)?;
    let model = tiny_model(Family::Sd1)?;
    let wild = TrainConfig { learning_rate: 1.0, steps: 40, max_grad_norm: 0.0, rank: 64, ..config.clone() };
    let wild = TrainConfig { alpha: Some(1e16), ..wild };
    let error = Trainer::with_model(wild.clone(), model)?.run(&mut (), &CancelToken::default());
    let error = error.expect_err("values overflow");
    assert!(error.to_string().contains("is not finite (captions `"), "{error}");
    assert!(state_path(&wild.out).exists());

    let elsewhere = TrainConfig { resume: true, rank: 8, out: wild.out.clone(), ..config.clone() };
    let error = train(&elsewhere, Family::Sd1).expect_err("another rank");
    assert!(error.hint().unwrap_or_default().contains("same rank"), "{error}");
    let onto_folder = TrainConfig { out: config.images.clone(), ..config };
    assert!(train(&onto_folder, Family::Sd1).expect_err("a folder").to_string().contains("is a folder"));
    Ok(())
}
