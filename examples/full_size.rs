//! A forward pass and a LoRA training step of a full-size UNet with random weights, at 256 pixels:
//! `cargo run --release --example full_size -- [sd1|sd2|sdxl|sdxl-refiner]`. Prints seconds and peak memory.

use std::{env, fs, sync::Arc, time::Instant};

use candle_core::{DType, Device, Tensor, Var};
use scumble::{
    Result,
    models::{AddedConditions, UNet2DConditionModel, UNetInput, family},
    nn::{Adaptable, Branches, LayerPath, Part, Slot},
    ops::checkpoint::Tape,
    random::{Rng, Stream},
    weights::{RandomStore, Weights},
};

const RANK: usize = 8;

fn main() -> Result<()> {
    let run = || {
        let name = env::args().nth(1).unwrap_or_else(|| "sd1".into());
        measure(&name)
    };
    // Backward walks the graph recursively: it needs a large stack.
    let thread = std::thread::Builder::new().name("full_size".into()).stack_size(256 << 20).spawn(run);
    thread.map_err(|e| scumble::Error::io("thread", e))?.join().unwrap_or_else(|_| std::process::exit(1))
}

fn measure(name: &str) -> Result<()> {
    let (device, start) = (Device::Cpu, Instant::now());
    let config = family::unet_config(name.parse()?);
    let shapes = UNet2DConditionModel::parameter_shapes(&config)?;
    let weights = Weights::new(Arc::new(RandomStore { shapes, seed: 1 }), DType::F32, device.clone());
    let mut unet = UNet2DConditionModel::load(&weights, &config)?;
    report("loaded", start);

    let noise = |index, shape: &[usize]| Rng::new(2, Stream::Latents, index).normal(shape, &device);
    let (sample, context) = (noise(0, &[1, 32, 32, 4])?, noise(1, &[1, 77, config.context_width()])?);
    let timesteps = Tensor::new(&[500f32], &device)?;
    let ids = config.projection_class_embeddings_input_dim.map(|input| (input - 1280) / 256);
    let added = ids
        .map(|ids| -> Result<_> {
            Ok(AddedConditions { pooled: noise(2, &[1, 1280])?, time_ids: noise(3, &[1, ids])? })
        })
        .transpose()?;
    let input = UNetInput { added, ..UNetInput::new(&sample, &timesteps, &context) };

    let start = Instant::now();
    unet.forward(&input)?;
    report("forward", start);

    let mut adapter: Vec<Var> = Vec::new();
    unet.visit(&LayerPath::root(Part::Unet), &mut |path, slot| {
        if let (Slot::Linear(layer), true) = (slot, path.name.contains("attn")) {
            let (output, input) = layer.weight().dims2()?;
            let down = Var::from_tensor(&noise(adapter.len() as u64, &[RANK, input])?)?;
            let up = Var::zeros((output, RANK), DType::F32, &device)?;
            let scale = Tensor::ones(RANK, DType::F32, &device)?;
            layer.set_branches(Some(Branches {
                down: down.as_tensor().clone(),
                up: up.as_tensor().clone(),
                scale,
            }));
            adapter.extend([down, up]);
        }
        Ok(())
    })?;

    let start = Instant::now();
    let tape = Tape::new(&device)?;
    let loss = (unet.forward(&UNetInput { tape: Some(&tape), ..input })? - &sample)?.sqr()?.mean_all()?;
    let grads = tape.backward(&loss)?;
    let found = adapter.iter().filter(|var| grads.get(var).is_some()).count();
    report(&format!("training step ({found} of {} gradients)", adapter.len()), start);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
fn report(what: &str, start: Instant) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("peak memory unknown");
    println!("{what}: {:.1} s, {peak}", start.elapsed().as_secs_f64());
}
