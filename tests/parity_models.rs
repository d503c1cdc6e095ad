//! Our networks against diffusers, transformers and peft on the same weights: outputs, every adapter gradient, AdamW
//! steps. `tests/golden/models/make_golden.py` made the numbers and says with which versions.

#![expect(clippy::print_stdout, reason = "the errors measured, for `--nocapture`")]

mod parity;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use candle_core::{DType, Device, IndexOp as _, Shape, Tensor, Var, backprop::GradStore};
use candle_nn::Optimizer as _;
use scumble::{
    Result,
    models::{AutoencoderKl, ClipOptions, ClipTextModel, Tiling, UNet2DConditionModel, UNetInput},
    nn::{Adaptable, Branches, LayerPath, Part, Slot},
    ops::checkpoint::Tape,
    progress::CancelToken,
    weights::{MemoryStore, Weights},
};

use self::parity::{Golden, assert_close, bits, error, load_clip, load_unet, load_vae, run_unet, values};

const RANK: usize = 4;
const SCALE: f32 = 2.0; // alpha 8 / rank 4

// ------------------------------------------------------------------------------------------------ adapters

/// peft's LoRA on every layer the golden file has a gradient for: name without `grad.` to variable.
fn attach(model: &mut impl Adaptable, part: Part, golden: &Golden) -> Result<BTreeMap<String, Var>> {
    let mut adapter = BTreeMap::new();
    model.visit(&LayerPath::root(part), &mut |path, slot| {
        let (a, b) = (format!("{}.lora_A", path.name), format!("{}.lora_B", path.name));
        if !golden.0.contains_key(&format!("grad.{a}")) {
            return Ok(());
        }
        let mut branches = |input: Vec<usize>, output: usize| -> Result<Branches> {
            let down: Vec<usize> = std::iter::once(RANK).chain(input).collect();
            let down = Var::from_tensor(&values(&a, &Shape::from(down), 0.1)?)?;
            let up = Var::from_tensor(&values(&b, &Shape::from((output, RANK)), 0.05)?)?;
            let scale = Tensor::full(SCALE, RANK, &Device::Cpu)?;
            let branches = Branches {
                down: down.as_tensor().clone(),
                up: up.as_tensor().clone(),
                scale,
                regional: None,
            };
            adapter.insert(a.clone(), down);
            adapter.insert(b.clone(), up);
            Ok(branches)
        };
        match slot {
            Slot::Linear(layer) => {
                let (output, input) = layer.weight().dims2()?;
                layer.set_branches(Some(branches(vec![input], output)?));
            }
            Slot::Conv2d(layer) => {
                let (output, input, height, width) = layer.weight().dims4()?;
                layer.set_branches(Some(branches(vec![input, height, width], output)?));
            }
            Slot::Norm(_) | Slot::Embedding(_) => panic!("no LoRA on {path}"),
        }
        Ok(())
    })?;
    assert_eq!(adapter.len(), golden.count("grad."), "adapter tensors");
    assert!(adapter.len() >= 36, "{} adapter tensors", adapter.len());
    Ok(adapter)
}

/// Every gradient against the golden one; returns them.
fn check_gradients(
    name: &str,
    grads: &GradStore,
    adapter: &BTreeMap<String, Var>,
    golden: &Golden,
) -> Result<BTreeMap<String, Tensor>> {
    let mut worst = 0f64;
    let mut found = BTreeMap::new();
    for (key, var) in adapter {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: no gradient for {key}")).contiguous()?;
        let expected = golden.get(&format!("grad.{key}")).reshape(grad.shape())?;
        assert!(
            grad.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? > 0.0,
            "{name}: zero gradient for {key}"
        );
        let error = error(&grad, &expected)?;
        assert!(error <= 1e-3, "{name}: gradient of {key} is off by {error:.1e}");
        worst = worst.max(error);
        found.insert(key.clone(), grad);
    }
    println!("{name}: {} adapter gradients, worst {worst:.1e}", found.len());
    Ok(found)
}

/// Runs AdamW as torch does and compares each loss, then the adapter if it was kept.
fn check_training(
    name: &str,
    adapter: &BTreeMap<String, Var>,
    golden: &Golden,
    step: impl Fn() -> Result<(Tensor, GradStore)>,
) -> Result<()> {
    let params = candle_nn::ParamsAdamW { lr: 1e-3, weight_decay: 1e-2, ..Default::default() };
    let mut optimizer = candle_nn::AdamW::new(adapter.values().cloned().collect(), params)?;
    let expected: Vec<f32> = golden.get("losses").to_vec1()?;
    assert_eq!(expected.len(), 5);
    let mut worst = 0f32;
    for expected in expected {
        let (loss, grads) = step()?;
        worst = worst.max((loss.to_scalar::<f32>()? - expected).abs() / expected);
        optimizer.step(&grads)?;
    }
    println!("{name}: five losses, worst {worst:.1e}");
    assert!(worst <= 1e-4, "{name}: losses are off by {worst:.1e}");
    // Adam divides by the gradient's size: where that is rounding noise, so is the step. Hence the mean, not the worst.
    for (key, var) in adapter {
        let Some(expected) = golden.0.get(&format!("final.{key}")) else { continue };
        let off =
            (var.as_tensor() - expected.reshape(var.shape())?)?.abs()?.mean_all()?.to_scalar::<f32>()?;
        assert!(off <= 2e-5, "{name}: {key} is off by {off:.1e} on average after five steps of 1e-3");
    }
    Ok(())
}

fn mse(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok((x - target)?.sqr()?.mean_all()?)
}

// ------------------------------------------------------------------------------------------------ UNet

struct UNetCase {
    model: UNet2DConditionModel,
    golden: Golden,
}

impl UNetCase {
    fn load(name: &str) -> Result<Self> {
        let (model, golden) = load_unet(name, DType::F32)?;
        Ok(Self { model, golden })
    }

    fn forward(&self, context: &Tensor, tape: Option<&Tape>) -> Result<Tensor> {
        run_unet(&self.model, &self.golden, context, tape)
    }

    fn gradients(&self, context: &Tensor, checkpointed: bool) -> Result<(Tensor, GradStore)> {
        let tape = checkpointed.then(|| Tape::new(&Device::Cpu)).transpose()?;
        let loss = mse(&self.forward(context, tape.as_ref())?, self.golden.get("target"))?;
        let grads = match &tape {
            Some(tape) => tape.backward(&loss)?,
            None => scumble::ops::backward(&loss)?,
        };
        Ok((loss, grads))
    }
}

fn check_unet(name: &str) -> Result<()> {
    let mut case = UNetCase::load(name)?;
    let context = case.golden.get("context").clone();
    assert_close(&format!("{name} output"), &case.forward(&context, None)?, case.golden.get("output"), 1e-4);
    let adapter = attach(&mut case.model, Part::Unet, &case.golden)?;
    assert_close(
        &format!("{name} adapted"),
        &case.forward(&context, None)?,
        case.golden.get("adapted"),
        1e-4,
    );

    let (_, plain) = case.gradients(&context, false)?;
    let plain = check_gradients(name, &plain, &adapter, &case.golden)?;
    let (_, taped) = case.gradients(&context, true)?;
    for (key, grad) in &plain {
        let taped =
            taped.get(&adapter[key]).unwrap_or_else(|| panic!("{name}: no gradient for {key} on the tape"));
        assert!(
            bits(grad) == bits(taped),
            "{name}: checkpointing changed {key} by {:.1e}",
            error(taped, grad)?
        );
    }

    let context_var = Var::from_tensor(&context)?;
    let text_gradient = |checkpointed| -> Result<Tensor> {
        let (_, mut grads) = case.gradients(&context_var, checkpointed)?;
        Ok(grads.remove(&context_var).expect("no gradient for the text").contiguous()?)
    };
    let (plain, taped) = (text_gradient(false)?, text_gradient(true)?);
    assert_close(&format!("{name} text gradient"), &plain, case.golden.get("grad_context"), 1e-3);
    assert!(bits(&plain) == bits(&taped), "{name}: checkpointing changed the text's gradient");
    check_training(name, &adapter, &case.golden, || case.gradients(&context, true))
}

#[test]
fn unet_sd1() -> Result<()> {
    check_unet("sd1")
}

#[test]
fn unet_sd2() -> Result<()> {
    check_unet("sd2")
}

#[test]
fn unet_sdxl() -> Result<()> {
    check_unet("sdxl")
}

#[test]
fn unet_distilled() -> Result<()> {
    check_unet("distilled")
}

#[test]
fn unet_with_a_middle_without_attention() -> Result<()> {
    let case = UNetCase::load("resnet_mid")?;
    let output = case.forward(case.golden.get("context"), None)?;
    assert_close("resnet_mid output", &output, case.golden.get("output"), 1e-4);
    Ok(())
}

/// A batch of two timesteps is two batches of one.
#[test]
fn pictures_of_a_batch_do_not_meet() -> Result<()> {
    let case = UNetCase::load("sd1")?;
    let golden = &case.golden;
    let together = case.forward(golden.get("context"), None)?;
    for i in 0..2 {
        let one = |name| golden.get(name).narrow(0, i, 1);
        let (sample, timesteps, context) = (one("sample")?, one("timesteps")?, one("context")?);
        let alone = case.model.forward(&UNetInput::new(&sample, &timesteps, &context))?;
        assert_close("picture of a batch", &alone, &together.narrow(0, i, 1)?, 1e-5);
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------ text encoders

fn check_clip(name: &str) -> Result<()> {
    let (mut model, golden, _) = load_clip(name, DType::F32)?;
    let ids = golden.get("ids").to_dtype(DType::U32)?;
    let penultimate = ClipOptions { skip: 2, final_norm: false, tape: None };
    let output = model.forward(&ids, &penultimate)?;
    for (what, found) in [("penultimate", &output.hidden), ("last", &output.last), ("pooled", &output.pooled)]
    {
        assert_close(&format!("{name} {what}"), found, golden.get(what), 1e-4);
    }
    let normed = model.forward(&ids, &ClipOptions { final_norm: true, ..penultimate })?.hidden;
    assert_close(&format!("{name} penultimate, normed"), &normed, golden.get("penultimate_normed"), 1e-4);
    assert_eq!(bits(&model.forward(&ids, &ClipOptions::default())?.hidden), bits(&output.last));

    let target = values(&format!("{name}.target"), output.last.shape(), 1.0)?;
    let adapter = attach(&mut model, Part::TextEncoder, &golden)?;
    let gradients = |tape: Option<&Tape>| -> Result<(Tensor, GradStore)> {
        let output = model.forward(&ids, &ClipOptions { tape, ..ClipOptions::default() })?;
        let loss = mse(&output.hidden, &target)?;
        let grads = match tape {
            Some(tape) => tape.backward(&loss)?,
            None => scumble::ops::backward(&loss)?,
        };
        Ok((loss, grads))
    };
    let plain = check_gradients(name, &gradients(None)?.1, &adapter, &golden)?;
    let taped = gradients(Some(&Tape::new(&Device::Cpu)?))?.1;
    for (key, grad) in &plain {
        assert!(taped.get(&adapter[key]).is_some_and(|taped| bits(taped) == bits(grad)), "{name}: {key}");
    }
    check_training(name, &adapter, &golden, || gradients(Some(&Tape::new(&Device::Cpu)?)))
}

#[test]
fn clip_l() -> Result<()> {
    check_clip("clip_l")
}

#[test]
fn clip_g() -> Result<()> {
    check_clip("clip_g")
}

/// Newer files leave `text_model.` out.
#[test]
fn clip_keys_without_prefix() -> Result<()> {
    let (model, golden, weights) = load_clip("clip_l", DType::F32)?;
    let shapes = ClipTextModel::parameter_shapes(model.config())?;
    let bare = shapes
        .into_iter()
        .map(|(name, shape)| {
            Ok((name.trim_start_matches("text_model.").to_string(), weights.get(shape, &name)?))
        })
        .collect::<Result<_>>()?;
    let weights = Weights::new(Arc::new(MemoryStore(bare)), DType::F32, Device::Cpu);
    let ids = golden.get("ids").to_dtype(DType::U32)?;
    let output = ClipTextModel::load(&weights, model.config())?.forward(&ids, &ClipOptions::default())?;
    assert_eq!(bits(&output.last), bits(&model.forward(&ids, &ClipOptions::default())?.last));
    Ok(())
}

// ------------------------------------------------------------------------------------------------ autoencoder

fn check_vae(name: &str) -> Result<()> {
    let (model, golden, _) = load_vae(name, DType::F32)?;
    let posterior = model.encode(golden.get("picture"))?;
    assert_close(&format!("{name} mean"), &posterior.mean, golden.get("mean"), 1e-4);
    assert_close(&format!("{name} logvar"), &posterior.logvar, golden.get("logvar"), 1e-4);
    let latents = golden.get("latents");
    assert_close(&format!("{name} decoded"), &model.decode(latents)?, golden.get("decoded"), 1e-4);
    let never = CancelToken::default();
    let tiled = model.decode_until(latents, Some(&Tiling { size: 8, overlap: 0.25 }), &never)?;
    assert_close(&format!("{name} tiled"), &tiled, golden.get("tiled"), 1e-4);
    let tiled =
        model.encode_until(golden.get("picture"), Some(&Tiling { size: 4, overlap: 0.25 }), &never)?;
    assert_close(&format!("{name} tiled mean"), &tiled.mean, golden.get("tiled_mean"), 1e-4);
    let whole = model.decode_until(latents, Some(&Tiling { size: 64, overlap: 0.25 }), &never)?;
    assert_eq!(bits(&whole), bits(&model.decode(latents)?), "one tile is the whole picture");
    Ok(())
}

#[test]
fn vae() -> Result<()> {
    check_vae("vae")
}

#[test]
fn vae_without_quant_convs() -> Result<()> {
    check_vae("vae_bare")
}

/// Old folders name the attention otherwise, single files store it as 1×1 convolutions.
#[test]
fn vae_attention_under_old_names() -> Result<()> {
    let (model, golden, weights) = load_vae("vae", DType::F32)?;
    let mut old = BTreeMap::new();
    for (name, shape) in AutoencoderKl::parameter_shapes(model.config())? {
        let mut tensor = weights.get(shape, &name)?;
        if name.contains("attentions") && tensor.rank() == 2 {
            tensor = tensor.unsqueeze(2)?.unsqueeze(3)?;
        }
        let names = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
        let name = names.iter().fold(name, |name, (new, old)| name.replace(new, old));
        old.insert(name, tensor);
    }
    let weights = Weights::new(Arc::new(MemoryStore(old)), DType::F32, Device::Cpu);
    let decoded = AutoencoderKl::load(&weights, model.config())?.decode(golden.get("latents"))?;
    assert_eq!(bits(&decoded), bits(&model.decode(golden.get("latents"))?));
    Ok(())
}

/// A second opinion that shares no code with either side: candle-transformers' autoencoder.
#[test]
fn vae_agrees_with_candle_transformers() -> Result<()> {
    use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
    let (model, golden, weights) = load_vae("vae", DType::F32)?;
    let shapes = AutoencoderKl::parameter_shapes(model.config())?;
    let tensors = shapes
        .into_iter()
        .map(|(name, shape)| Ok((name.clone(), weights.get(shape, &name)?)))
        .collect::<Result<HashMap<_, _>>>()?;
    let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let config = model.config();
    let other = AutoEncoderKL::new(
        builder,
        3,
        3,
        AutoEncoderKLConfig {
            block_out_channels: config.block_out_channels.clone(),
            layers_per_block: config.layers_per_block,
            latent_channels: config.latent_channels,
            norm_num_groups: config.norm_num_groups,
            use_quant_conv: true,
            use_post_quant_conv: true,
        },
    )?;
    let latents = golden.get("latents");
    let theirs = other.decode(&latents.permute((0, 3, 1, 2))?.contiguous()?)?.permute((0, 2, 3, 1))?;
    assert_close("vae against candle-transformers", &model.decode(latents)?, &theirs.contiguous()?, 1e-4);
    assert_eq!(theirs.i((.., .., .., 0))?.dims(), [1, 52, 72]);
    Ok(())
}
