//! Where tensors live and in which precision they are computed.

#[cfg(feature = "cuda")]
mod cuda;

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// What the user asked for with `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// CUDA, then Metal, where this binary was built with them and a card answers; else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA card by index.
    Cuda(usize),
    /// An Apple GPU by index.
    Metal(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// If a card was named and this binary lacks its back-end, or no such card answers. `Auto` never fails.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => {
                open_cuda(index).map_err(|e| unavailable(&format!("cuda device {index}"), "cuda", &e))
            }
            Self::Metal(index) => Device::new_metal(index)
                .map_err(|e| unavailable(&format!("metal device {index}"), "metal", &e)),
            Self::Auto => Ok(open_cuda(0).or_else(|_| Device::new_metal(0)).unwrap_or(Device::Cpu)),
        }
    }
}

fn open_cuda(index: usize) -> candle_core::Result<Device> {
    #[cfg(feature = "cuda")]
    return cuda::open(index);
    #[cfg(not(feature = "cuda"))]
    Device::new_cuda(index)
}

/// What a user may want to know of where and how will be computed, if it is not what was to be expected.
pub fn remark(choice: DeviceChoice, device: &Device, dtype: DType) -> Option<&'static str> {
    match (device, dtype) {
        (Device::Cpu, _) if choice == DeviceChoice::Auto && cfg!(feature = "cuda") => {
            Some("no NVIDIA card answers: computing on the processor")
        }
        (Device::Cuda(_), DType::F32) => Some(
            "f32 on a card: attention and convolutions have kernels for bf16 and f16 only, and are put together from \
             smaller steps",
        ),
        (Device::Metal(_), _) => Some(
            "on Metal every operation is put together from smaller steps: right, and slower than it could be",
        ),
        _ => None,
    }
}

/// The most memory tensors had on a card at a time, in MiB, since the start or the last [`forget_peak`]. `None` for devices
/// that do not say.
pub fn peak_mib(device: &Device) -> Option<f64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        return cuda::peak_bytes(card).ok().map(|bytes| bytes as f64 / f64::from(1 << 20));
    }
    debug_assert!(!device.is_cuda());
    None
}

/// Starts [`peak_mib`] anew.
pub fn forget_peak(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        drop(cuda::forget_peak(card));
    }
    let _ = device;
}

/// The features this program was compiled with.
pub fn built_with() -> Vec<&'static str> {
    let all = [
        ("hub", cfg!(feature = "hub")),
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
        ("mkl", cfg!(feature = "mkl")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// What a program that computes does first, before it has threads; it also wants [`Heap`](crate::heap::Heap) as its
/// allocator.
///
/// Freed memory is kept for the next tensor. And candle's own arithmetic stays on one thread, unless `CANDLE_NUM_THREADS`
/// says otherwise: its threads wait for each other by spinning, which is slow wherever something else runs too, and what
/// takes time is computed by our own kernels.
pub fn prepare_process() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: there are no other threads yet that could read the environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    crate::heap::keep_what_is_freed();
}

fn unavailable(what: &str, feature: &str, source: &candle_core::Error) -> Error {
    let reason = source.to_string();
    let first_line = reason.lines().next().unwrap_or_default();
    Error::invalid(format!("{what} is not available: {first_line}")).with_hint(format!(
        "build with `--features {feature}` on a machine with such a card, or use `--device cpu`"
    ))
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let (name, index) = s.split_once(':').unwrap_or((s, "0"));
        let index = || {
            index
                .parse()
                .map_err(|_| Error::invalid(format!("device index must be a number, found `{index}`")))
        };
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index()?)),
            "metal" => Ok(Self::Metal(index()?)),
            _ => Err(Error::unknown("device", s, ["auto", "cpu", "cuda", "cuda:0", "metal"])),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
            Self::Metal(i) => write!(f, "metal:{i}"),
        }
    }
}

/// What the user asked for with `--dtype`: the precision base weights and activations are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bf16 on CUDA (f16 before Ampere), f16 on Metal, f32 on the CPU.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

impl Precision {
    /// The dtype to compute in on a device.
    pub fn dtype(self, device: &Device) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Auto if device.is_cuda() && !multiplies_bf16(device) => DType::F16,
            Self::Auto if device.is_cuda() => DType::BF16,
            Self::Auto if device.is_metal() => DType::F16,
            Self::Auto => DType::F32,
        }
    }
}

/// Cards do from Ampere on.
fn multiplies_bf16(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        return card.cuda_stream().context().compute_capability().is_ok_and(|(major, _)| major >= 8);
    }
    !device.is_cuda()
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::unknown("dtype", s, ["auto", "f32", "f16", "bf16"])),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() -> Result<()> {
        for s in ["auto", "cpu", "cuda:1", "metal:0"] {
            assert_eq!(s.parse::<DeviceChoice>()?.to_string(), s);
        }
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("gpu".parse::<DeviceChoice>().is_err());
        Ok(())
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_missing_card_says_what_to_do() {
        let e = DeviceChoice::Cuda(0).open().expect_err("this build has no CUDA");
        assert!(e.hint().is_some_and(|h| h.contains("--features cuda")), "{e}");
    }
}
