//! Noise schedules and every solver's trajectory against diffusers and k-diffusion
//! (`golden/diffusion/make_golden.py` wrote the numbers).

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use scumble::{
    Result,
    diffusion::{
        Guidance, Model, ModelDenoiser, Noise, NoiseSchedule, Prediction, Rows, SampleOptions, Sampler,
        SigmaSchedule,
    },
};
use serde::Deserialize;
use serde_json::Value;

/// Relative to the largest value of the compared array.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    shape: Vec<usize>,
    start: Vec<f32>,
    pattern: Vec<f32>,
    noises: Vec<Vec<f32>>,
    schedules: Vec<Schedule>,
    training: Training,
    trajectories: Vec<Trajectory>,
}

#[derive(Deserialize)]
struct Schedule {
    config: Value,
    at: Vec<usize>,
    alphas_cumprod: Vec<f64>,
    levels: BTreeMap<usize, BTreeMap<String, Vec<f64>>>,
}

#[derive(Deserialize)]
struct Training {
    timesteps: Vec<usize>,
    noisy: Vec<f64>,
    velocity: Vec<f64>,
}

#[derive(Deserialize)]
struct Trajectory {
    name: String,
    sampler: String,
    schedule: String,
    steps: usize,
    eta: Option<f64>,
    config: Value,
    timesteps: Vec<f64>,
    inputs: Vec<Vec<f64>>,
    #[serde(rename = "final")]
    last: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/diffusion/solvers.json")).expect("solvers.json")
}

/// The largest difference, relative to the largest expected value.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    found.iter().zip(expected).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / scale
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// make_golden.py's `network`, writing down what it is shown.
struct Network<'a> {
    prediction: Prediction,
    pattern: &'a Tensor,
    seen: &'a mut Vec<(f64, Vec<f64>)>,
}

impl Model for Network<'_> {
    fn predict(&mut self, x: &Tensor, t: f64, _: Rows) -> Result<Tensor> {
        self.seen.push((t, values(x)?));
        let slope = if self.prediction == Prediction::Epsilon { t / 1000.0 } else { 0.3 - t / 2000.0 };
        Ok(((x * slope)? + (self.pattern * (0.1 * (t / 100.0).cos()))?)?)
    }
}

#[test]
fn trajectories_follow_the_references() -> Result<()> {
    let golden = golden();
    let tensor = |v: &[f32]| Tensor::from_slice(v, golden.shape.as_slice(), &Device::Cpu);
    let (start, pattern) = (tensor(&golden.start)?, tensor(&golden.pattern)?);
    let noises = golden.noises.iter().map(|n| tensor(n)).collect::<Result<Vec<_>, _>>()?;
    let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
    for case in &golden.trajectories {
        let schedule = NoiseSchedule::from_config(&case.config)?;
        let sampler: Sampler = case.sampler.parse()?;
        let sigmas = sampler.sigmas(&schedule, case.schedule.parse()?, case.steps)?;
        let options =
            SampleOptions { eta: case.eta, noise: Noise::Recorded(noises.clone()), ..Default::default() };
        let mut seen = Vec::new();
        let network = Network { prediction: schedule.prediction, pattern: &pattern, seen: &mut seen };
        let mut denoiser = ModelDenoiser::new(network, &schedule, Guidance::default());
        let x = schedule.initial(&start, sigmas[0])?;
        let last = sampler.sample(&mut denoiser, &x, &sigmas, &options, &mut |_| Ok(()))?;

        let (timesteps, inputs): (Vec<f64>, Vec<Vec<f64>>) = seen.into_iter().unzip();
        assert_eq!(timesteps.len(), case.timesteps.len(), "{}: looks at the network", case.name);
        let d = difference(&timesteps, &case.timesteps);
        assert!(d < TOLERANCE, "{}: timesteps {timesteps:?}, expected {:?}", case.name, case.timesteps);
        for (i, (found, expected)) in inputs.iter().zip(&case.inputs).enumerate() {
            let d = difference(found, expected);
            assert!(d < TOLERANCE, "{}: look {i} differs by {d:.1e}", case.name);
        }
        let d = difference(&values(&last)?, &case.last);
        assert!(d < TOLERANCE, "{}: result differs by {d:.1e}", case.name);
        let w = worst.entry(sampler.name()).or_default();
        *w = w.max(d);
    }
    assert_eq!(worst.len(), Sampler::ALL.len(), "every solver has a reference: {worst:?}");
    Ok(())
}

#[test]
fn schedules_equal_the_references() -> Result<()> {
    for case in golden().schedules {
        let schedule = NoiseSchedule::from_config(&case.config)?;
        let alphas: Vec<f64> = case.at.iter().map(|&t| schedule.alphas_cumprod()[t]).collect();
        for (found, expected) in alphas.iter().zip(&case.alphas_cumprod) {
            // f32 rounding of 1 − β over a thousand products, and of a difference near 0
            let d = (found - expected).abs();
            assert!(d <= 2e-5 * expected + 1e-9, "{}: {found} {expected}", case.config);
        }
        for (steps, levels) in &case.levels {
            for (name, expected) in levels {
                let found = name.parse::<SigmaSchedule>()?.sigmas(&schedule, *steps)?;
                let d = difference(&found, expected);
                assert!(d < TOLERANCE, "{} {name} {steps}: {found:?} {expected:?}", case.config);
            }
        }
    }
    Ok(())
}

#[test]
fn training_noise_and_targets_equal_diffusers() -> Result<()> {
    let golden = golden();
    let tensor = |v: &[f32]| Tensor::from_slice(v, golden.shape.as_slice(), &Device::Cpu);
    let (latents, noise) = (tensor(&golden.start)?, tensor(&golden.pattern)?);
    let schedule = NoiseSchedule::stable_diffusion(Prediction::VPrediction);
    let t = &golden.training.timesteps;
    let noisy = values(&schedule.add_noise(&latents, &noise, t)?)?;
    assert!(difference(&noisy, &golden.training.noisy) < 1e-6);
    let velocity = values(&schedule.prediction.target(&schedule, &latents, &noise, t)?)?;
    assert!(difference(&velocity, &golden.training.velocity) < 1e-6);
    let epsilon = Prediction::Epsilon.target(&schedule, &latents, &noise, t)?;
    assert_eq!(values(&epsilon)?, values(&noise)?);

    // A network that says exactly the target is understood as the clean latents.
    let x = (&latents + (&noise * schedule.sigma(803.0))?)?;
    for prediction in [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample] {
        let output = prediction.target(&schedule, &latents, &noise, &[803, 803])?;
        let x0 = prediction.to_x0(&x, &output, schedule.sigma(803.0))?;
        assert!(difference(&values(&x0)?, &values(&latents)?) < 1e-5, "{prediction}");
    }
    assert!(schedule.add_noise(&latents, &noise, &[0, 1000]).is_err());
    Ok(())
}

#[test]
fn hostile_configurations_are_refused() {
    let refused = |config: Value, words: &str| {
        let message = NoiseSchedule::from_config(&config).expect_err("refused").to_string();
        assert!(message.contains(words), "{message}");
    };
    refused(serde_json::json!({"beta_schedule": "sigmoid"}), "beta_schedule `sigmoid`");
    refused(serde_json::json!({"num_train_timesteps": 1_000_000_000_000u64}), "training timesteps");
    refused(serde_json::json!({"num_train_timesteps": -1}), "scheduler_config.json");
    refused(serde_json::json!({"beta_end": 3.0}), "every beta between 0 and 1");
    refused(serde_json::json!({"trained_betas": []}), "training timesteps");
    refused(serde_json::json!({"prediction_type": "flow"}), "prediction_type `flow`");
    refused(serde_json::json!({"rescale_betas_zero_snr": true}), "pure noise");
}
