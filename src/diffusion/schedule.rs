//! How much noise a model saw at each training timestep, read from diffusers' `scheduler_config.json`.

use std::f64::consts::FRAC_PI_2;

use candle_core::Tensor;
use serde::Deserialize;

use super::Prediction;
use crate::error::{Error, Result};

/// Below this `alphas_cumprod` a sigma would be infinite. diffusers' Euler uses the same floor for models trained with
/// zero terminal SNR: their last sigma is 4096.
const MIN_ALPHA_CUMPROD: f64 = 1.0 / 16_777_216.0; // 2⁻²⁴

/// The floor for the solvers that diffusers runs in variance-preserving coordinates, where zero SNR needs no clamp.
/// Small enough not to be seen in f32, large enough that `x` does not overflow anywhere.
const MIN_ALPHA_CUMPROD_VP: f64 = 1.0 / 1_099_511_627_776.0; // 2⁻⁴⁰

/// The largest table accepted from a file.
const MAX_TIMESTEPS: usize = 100_000;

/// The training noise levels: `alphas_cumprod[t]` is the share of signal left in `x_vp` at timestep t.
///
/// Computed in f64; diffusers' f32 tables differ in the seventh digit.
///
/// A model with zero terminal SNR (<https://arxiv.org/abs/2305.08891>) has `alphas_cumprod[last] = 0`, an infinite
/// sigma. Such a model must predict v or x0 (epsilon says nothing there), and [`NoiseSchedule::sigma`] clamps the level
/// as diffusers and ComfyUI do, so that every solver starts from a finite number.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    log_sigmas: Vec<f64>,
    /// What the network's output means.
    pub prediction: Prediction,
    /// diffusers' `timestep_spacing`, if the file names it (each scheduler class has its own default).
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to `leading` timesteps; 1 for every released Stable Diffusion.
    pub steps_offset: usize,
    /// True: DDIM's last step lands on clean latents. False (Stable Diffusion): on the noise of timestep 0.
    pub set_alpha_to_one: bool,
}

/// How diffusers picks `n` of the training timesteps (Table 2 of <https://arxiv.org/abs/2305.08891>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Multiples of `T / n`, shifted by `steps_offset`: never reaches the last timestep.
    Leading,
    /// Counted back from the last timestep.
    Trailing,
    /// Evenly from the first to the last.
    Linspace,
}

#[derive(Deserialize)]
#[serde(default)]
struct SchedulerConfig {
    num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    trained_betas: Option<Vec<f64>>,
    prediction_type: String,
    rescale_betas_zero_snr: bool,
    set_alpha_to_one: bool,
    steps_offset: usize,
    timestep_spacing: Option<String>,
}

impl Default for SchedulerConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: "linear".into(),
            trained_betas: None,
            prediction_type: "epsilon".into(),
            rescale_betas_zero_snr: false,
            set_alpha_to_one: true,
            steps_offset: 0,
            timestep_spacing: None,
        }
    }
}

impl NoiseSchedule {
    /// The schedule all of Stable Diffusion 1, 2 and XL was trained with, for files that bring no configuration.
    pub fn stable_diffusion(prediction: Prediction) -> Self {
        let betas = scaled_linear(0.00085, 0.012, 1000);
        Self {
            prediction,
            timestep_spacing: Some(TimestepSpacing::Leading),
            steps_offset: 1,
            set_alpha_to_one: false,
            ..Self::from_alphas_cumprod(cumprod(&betas))
        }
    }

    /// Reads diffusers' `scheduler_config.json`, whichever scheduler class wrote it. Unknown fields are ignored.
    ///
    /// # Errors
    /// If a field has the wrong type, names something unknown, or the betas are not in (0, 1].
    pub fn from_config(config: &serde_json::Value) -> Result<Self> {
        let config: SchedulerConfig = serde_json::from_value(config.clone())
            .map_err(|e| Error::invalid(format!("scheduler_config.json: {e}")))?;
        let prediction: Prediction = config.prediction_type.parse()?;
        let mut betas = betas(&config)?;
        if config.rescale_betas_zero_snr {
            if prediction == Prediction::Epsilon {
                return Err(Error::invalid(
                    "scheduler_config.json: `rescale_betas_zero_snr` with `prediction_type` = `epsilon`: \
                     noise cannot be predicted from pure noise",
                )
                .with_hint("set `prediction_type` to `v_prediction`, or `rescale_betas_zero_snr` to false"));
            }
            rescale_zero_terminal_snr(&mut betas);
        }
        let spacing = config.timestep_spacing.as_deref().map(parse_spacing).transpose()?;
        Ok(Self {
            prediction,
            timestep_spacing: spacing,
            steps_offset: config.steps_offset,
            set_alpha_to_one: config.set_alpha_to_one,
            ..Self::from_alphas_cumprod(cumprod(&betas))
        })
    }

    /// The same schedule rescaled so that its last timestep is pure noise.
    ///
    /// # Errors
    /// If the model predicts noise, which says nothing at that timestep.
    pub fn with_zero_terminal_snr(&self) -> Result<Self> {
        if self.prediction == Prediction::Epsilon {
            return Err(Error::invalid("zero terminal SNR needs a model that predicts v or x0"));
        }
        let mut alphas = self.alphas_cumprod.clone();
        rescale_alphas_cumprod(&mut alphas);
        let rescaled = Self::from_alphas_cumprod(alphas);
        Ok(Self { alphas_cumprod: rescaled.alphas_cumprod, log_sigmas: rescaled.log_sigmas, ..self.clone() })
    }

    fn from_alphas_cumprod(alphas_cumprod: Vec<f64>) -> Self {
        let log_sigmas = alphas_cumprod.iter().map(|&a| sigma_of(a.max(MIN_ALPHA_CUMPROD)).ln()).collect();
        Self {
            alphas_cumprod,
            log_sigmas,
            prediction: Prediction::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: true,
        }
    }

    /// The number of training timesteps, T.
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// ᾱ at every timestep; the last is 0 for a model with zero terminal SNR.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// True if the last timestep is pure noise.
    pub fn is_zero_terminal_snr(&self) -> bool {
        self.alphas_cumprod.last() == Some(&0.0)
    }

    /// The noise level at a fractional timestep, interpolated in log sigma as k-diffusion does. Clamped to the table.
    pub fn sigma(&self, t: f64) -> f64 {
        let t = t.clamp(0.0, (self.timesteps() - 1) as f64);
        let (low, weight) = (t.floor() as usize, t.fract());
        let high = (low + 1).min(self.timesteps() - 1);
        ((1.0 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[high]).exp()
    }

    /// The fractional timestep of a noise level: the inverse of [`NoiseSchedule::sigma`], clamped to the table.
    pub fn t(&self, sigma: f64) -> f64 {
        if sigma <= 0.0 {
            return 0.0;
        }
        let (log_sigma, last) = (sigma.ln(), self.timesteps() - 1);
        let above = self.log_sigmas.partition_point(|&s| s <= log_sigma);
        let low = above.saturating_sub(1).min(last.saturating_sub(1));
        let (a, b) = (self.log_sigmas[low], self.log_sigmas[(low + 1).min(last)]);
        let weight = if b > a { ((log_sigma - a) / (b - a)).clamp(0.0, 1.0) } else { 0.0 };
        let t = low as f64 + weight;
        // Sigmas made from whole timesteps must come back as whole timesteps, or the network sees 950.9999.
        if (t - t.round()).abs() < 1e-6 { t.round() } else { t }
    }

    /// The smallest and largest noise level.
    pub fn sigma_range(&self) -> (f64, f64) {
        (self.sigma(0.0), self.sigma((self.timesteps() - 1) as f64))
    }

    /// The noise level at a whole timestep for solvers defined in variance-preserving coordinates: a zero terminal SNR
    /// is kept as nearly infinite.
    pub(super) fn sigma_vp(&self, t: usize) -> f64 {
        sigma_of(self.alphas_cumprod[t.min(self.timesteps() - 1)].max(MIN_ALPHA_CUMPROD_VP))
    }

    /// Where a picture starts: unit noise scaled to a noise level.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn initial(&self, noise: &Tensor, sigma: f64) -> Result<Tensor> {
        Ok((noise * sigma.hypot(1.0))?)
    }

    /// Training: latents with the noise of one timestep a sample, in the network's (variance-preserving) coordinates.
    ///
    /// # Shapes
    /// - `latents`, `noise`: (b, …); `timesteps`: b
    ///
    /// # Errors
    /// If shapes disagree or a timestep is outside the table.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor> {
        let (signal, noise_share) = self.coefficients(latents, timesteps)?;
        Ok((latents.broadcast_mul(&signal)? + noise.broadcast_mul(&noise_share)?)?)
    }

    /// sqrt(ᾱ) and sqrt(1 − ᾱ) for one timestep a sample, shaped (b, 1, …) to multiply `like`.
    pub(super) fn coefficients(&self, like: &Tensor, timesteps: &[usize]) -> Result<(Tensor, Tensor)> {
        let mut shape = vec![1; like.rank()];
        shape[0] = timesteps.len();
        let alphas = timesteps.iter().map(|&t| self.alpha_cumprod(t)).collect::<Result<Vec<f64>>>()?;
        let tensor = |values: Vec<f32>| -> Result<Tensor> {
            Ok(Tensor::from_vec(values, shape.clone(), like.device())?.to_dtype(like.dtype())?)
        };
        let signal = tensor(alphas.iter().map(|a| a.sqrt() as f32).collect())?;
        let noise = tensor(alphas.iter().map(|a| (1.0 - a).sqrt() as f32).collect())?;
        Ok((signal, noise))
    }

    /// The signal-to-noise ratio ᾱ / (1 − ᾱ) at a timestep.
    ///
    /// # Errors
    /// If the timestep is outside the table.
    pub fn snr(&self, timestep: usize) -> Result<f64> {
        self.alpha_cumprod(timestep).map(|a| a / (1.0 - a))
    }

    fn alpha_cumprod(&self, t: usize) -> Result<f64> {
        self.alphas_cumprod.get(t).copied().ok_or_else(|| {
            Error::invalid(format!("timestep {t} is outside the schedule's 0..{}", self.timesteps()))
        })
    }
}

fn sigma_of(alpha_cumprod: f64) -> f64 {
    ((1.0 - alpha_cumprod) / alpha_cumprod).sqrt()
}

fn betas(config: &SchedulerConfig) -> Result<Vec<f64>> {
    let n = config.trained_betas.as_ref().map_or(config.num_train_timesteps, Vec::len);
    if !(2..=MAX_TIMESTEPS).contains(&n) {
        return Err(Error::invalid(format!(
            "scheduler_config.json: expected 2 to {MAX_TIMESTEPS} training timesteps, found {n}"
        )));
    }
    let betas = match (&config.trained_betas, config.beta_schedule.as_str()) {
        (Some(betas), _) => betas.clone(),
        (None, "linear") => linspace(config.beta_start, config.beta_end, n),
        (None, "scaled_linear") => scaled_linear(config.beta_start, config.beta_end, n),
        (None, "squaredcos_cap_v2") => squared_cosine(n),
        (None, other) => {
            let known = ["linear", "scaled_linear", "squaredcos_cap_v2"];
            return Err(Error::unknown("beta_schedule", other, known).context("scheduler_config.json"));
        }
    };
    match betas.iter().position(|b| !(*b > 0.0 && *b < 1.0)) {
        Some(i) => Err(Error::invalid(format!(
            "scheduler_config.json: expected every beta between 0 and 1, found {} at timestep {i}",
            betas[i]
        ))),
        None => Ok(betas),
    }
}

/// Latent diffusion's own: linear in sqrt(beta).
fn scaled_linear(start: f64, end: f64, n: usize) -> Vec<f64> {
    linspace(start.sqrt(), end.sqrt(), n).into_iter().map(|b| b * b).collect()
}

/// The cosine schedule of <https://arxiv.org/abs/2102.09672>, equation 17.
fn squared_cosine(n: usize) -> Vec<f64> {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    (0..n)
        .map(|i| (i as f64 / n as f64, (i + 1) as f64 / n as f64))
        .map(|(t1, t2)| (1.0 - alpha_bar(t2) / alpha_bar(t1)).min(0.999))
        .collect()
}

/// Algorithm 1 of <https://arxiv.org/abs/2305.08891>.
fn rescale_zero_terminal_snr(betas: &mut [f64]) {
    let mut alphas = cumprod(betas);
    rescale_alphas_cumprod(&mut alphas);
    let mut previous = 1.0;
    for (beta, alpha) in betas.iter_mut().zip(alphas) {
        *beta = 1.0 - alpha / previous;
        previous = alpha;
    }
}

/// Shifts sqrt(ᾱ) so that the last is 0 and scales it so that the first stays.
fn rescale_alphas_cumprod(alphas: &mut [f64]) {
    let (Some(&first), Some(&last)) = (alphas.first(), alphas.last()) else { return };
    let (first, last) = (first.sqrt(), last.sqrt());
    for alpha in alphas {
        *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
    }
}

fn cumprod(betas: &[f64]) -> Vec<f64> {
    betas
        .iter()
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect()
}

/// `n` numbers from `start` to `end`, both included; one number is `start`.
pub(super) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = if n > 1 { (end - start) / (n - 1) as f64 } else { 0.0 };
    (0..n).map(|i| start + step * i as f64).collect()
}

fn parse_spacing(name: &str) -> Result<TimestepSpacing> {
    match name {
        "leading" => Ok(TimestepSpacing::Leading),
        "trailing" => Ok(TimestepSpacing::Trailing),
        "linspace" => Ok(TimestepSpacing::Linspace),
        _ => Err(Error::unknown("timestep_spacing", name, ["leading", "trailing", "linspace"])
            .context("scheduler_config.json")),
    }
}
