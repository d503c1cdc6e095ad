//! How fast a model trains and draws on this machine, and in how much memory.

pub mod memory;
pub mod peak;
mod task;

use std::{fmt, str::FromStr, time::Instant};

use candle_core::{DType, Device, Tensor};

pub use task::Subject;

use crate::{
    device,
    error::{Error, Result},
    ops::flops,
    progress::CancelToken,
};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// The denoising network once, without gradients.
    Unet,
    /// An optimizer step of a LoRA on the attention layers.
    Train,
    /// The same with gradient checkpointing.
    TrainCheckpointing,
    /// Pictures from latents.
    VaeDecode,
    /// Latents from pictures.
    VaeEncode,
    /// A prompt of 77 tokens, by the first text encoder.
    Text,
    /// Prompt to PNG, in memory: 20 steps of DPM++ 2M with guidance.
    Generate,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 7] = [
        Self::Unet,
        Self::Train,
        Self::TrainCheckpointing,
        Self::VaeDecode,
        Self::VaeEncode,
        Self::Text,
        Self::Generate,
    ];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Train => "train",
            Self::TrainCheckpointing => "train-checkpointing",
            Self::VaeDecode => "vae-decode",
            Self::VaeEncode => "vae-encode",
            Self::Text => "text",
            Self::Generate => "generate",
        }
    }

    /// How many of what people count are done in one run: denoising steps of a picture, else one.
    pub fn steps(self) -> usize {
        if self == Self::Generate { task::STEPS } else { 1 }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(|t| t.name() == s).ok_or_else(|| Error::unknown("task", s, known))
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Case {
    /// The model.
    pub subject: Subject,
    /// What it does.
    pub task: Task,
    /// The side of the pictures; the model's own if `None`.
    pub size_px: Option<usize>,
    /// Pictures at once.
    pub batch: usize,
    /// Of the LoRA, where one is trained.
    pub rank: usize,
    /// What weights and activations are held in.
    pub dtype: DType,
    /// Where.
    pub device: Device,
}

/// How often something is run.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    /// Runs that are not counted: the first fills caches.
    pub warmup: usize,
    /// Runs that are.
    pub counted: usize,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Seconds of each run, in order.
    pub seconds: Vec<f64>,
    /// Processor seconds of all threads in a run, where the system tells.
    pub processor_seconds: Option<f64>,
    /// Floating point operations of a run, in 10⁹.
    pub gflop: f64,
    /// The most memory the process had so far, in MiB, where the system tells. Alone in a process, a case's own.
    /// On a card: the most its tensors had at a time in the counted runs.
    pub peak_mib: Option<f64>,
    /// The side of the pictures.
    pub size_px: usize,
}

impl Measured {
    /// The run in the middle.
    pub fn median_seconds(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[half],
            _ => (sorted[half - 1] + sorted[half]) / 2.0,
        }
    }
}

/// Loads what the case needs and runs it.
///
/// # Errors
/// If the model cannot be loaded or the size does not suit it, or on cancel.
pub fn measure(case: &Case, runs: Runs, cancel: &CancelToken) -> Result<Measured> {
    let (size_px, mut work) = task::prepare(case, cancel)?;
    for _ in 0..runs.warmup {
        cancel.check()?;
        work()?;
    }
    case.device.synchronize()?;
    device::forget_peak(&case.device);
    let (flop, processor) = (flops::counted(), memory::processor_seconds());
    let mut seconds = Vec::new();
    for _ in 0..runs.counted.max(1) {
        cancel.check()?;
        let start = Instant::now();
        work()?;
        case.device.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let each = 1.0 / seconds.len() as f64;
    let spent = processor.zip(memory::processor_seconds()).map(|(before, after)| (after - before) * each);
    Ok(Measured {
        processor_seconds: spent,
        gflop: (flops::counted() - flop) as f64 * each / 1e9,
        peak_mib: device::peak_mib(&case.device).or_else(memory::peak_mib),
        seconds,
        size_px,
    })
}

/// The relative difference of what a network computes to the same in f32 (root of the summed squares), with the same
/// weights and inputs; `None` for a task that is not a single network's.
///
/// # Errors
/// As [`measure`].
pub fn error(case: &Case, cancel: &CancelToken) -> Result<Option<f64>> {
    let output = |dtype| -> Result<Option<Tensor>> {
        let (_, mut work) = task::prepare(&Case { dtype, ..case.clone() }, cancel)?;
        work()?.map(|t| Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)).transpose()
    };
    let (Some(found), Some(exact)) = (output(case.dtype)?, output(DType::F32)?) else {
        return Ok(None);
    };
    let norm = |t: &Tensor| -> Result<f64> {
        Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
    };
    Ok(Some(norm(&(&found - &exact)?)? / norm(&exact)?))
}

#[cfg(test)]
mod tests;
