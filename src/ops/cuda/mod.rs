//! Kernels for NVIDIA cards: CUDA C++ (`kernel.cu` beside each op), compiled when first used.
//!
//! An op's `cuda.rs` says what is launched, through [`Card`]. Tests run the same launches and the same source on the
//! processor (`emulated.rs`), so that arithmetic and synchronisation are checked without a card.

// Launches are compiled, and tested, also where nothing can run them.
#![cfg_attr(not(any(feature = "cuda", all(test, target_os = "linux"))), allow(dead_code))]

#[cfg(feature = "cuda")]
mod card;
#[cfg(feature = "cuda")]
mod compile;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod emulated;

use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};

use crate::error::{Error, Result};

/// What runs kernels.
pub(crate) trait Card: Send + Sync {
    /// Ten times the compute capability: 75 is Turing, 80 Ampere, 90 Hopper.
    fn capability(&self) -> usize;

    /// Multiprocessors: blocks that run at the same time, at least.
    fn processors(&self) -> usize;

    /// Bytes of shared memory a block may have.
    fn shared_bytes(&self) -> usize;

    /// A tensor for a kernel to write, its values undefined.
    fn empty(&self, shape: &Shape, dtype: DType) -> Result<Tensor>;

    /// Where a tensor's numbers lie, for kernels that are given tables of them. It must outlive the launch.
    fn address(&self, t: &Tensor) -> Result<u64>;

    fn launch(&self, launch: &Launch<'_>) -> Result<()>;
}

/// The card kernels for tensors on `device` run on, if it is one.
///
/// # Errors
/// If the card does not say what it is.
pub(crate) fn card(device: &Device) -> Result<Option<Arc<dyn Card>>> {
    #[cfg(all(test, target_os = "linux"))]
    if let (true, Some(emulator)) = (device.is_cpu(), emulated::in_its_place()) {
        return Ok(Some(emulator));
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return Ok(Some(card::of(device)?));
    }
    debug_assert!(!device.is_cuda());
    Ok(None)
}

/// One file of kernels.
#[derive(Debug)]
pub(crate) struct Module {
    /// The op's folder.
    pub name: &'static str,
    pub source: &'static str,
    /// Whether it multiplies small matrices (`mma.cuh`): then T is f16 or bf16.
    pub tensor_cores: bool,
}

/// What every module stands on.
const COMMON: &str = include_str!("common.cuh");
const MMA: &str = include_str!("mma.cuh");

/// A function of a module, as compiled for a dtype and some numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel<'a> {
    pub module: &'static Module,
    pub function: &'static str,
    /// The type T.
    pub dtype: DType,
    /// Numbers known when it is compiled, by the names they have in the source.
    pub constants: &'a [(&'static str, usize)],
}

impl Kernel<'_> {
    /// The whole of what is compiled, `body` in the place of the module's text.
    fn source(&self, body: &str) -> Result<String> {
        let element = match self.dtype {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            other => {
                return Err(Error::invalid(format!("no kernel of `{}` for {other:?}", self.module.name)));
            }
        };
        let constants: String =
            self.constants.iter().map(|(name, n)| format!("#define {name} {n}\n")).collect();
        let mma = if self.module.tensor_cores { MMA } else { "" };
        Ok(format!("#define T {element}\n{constants}{COMMON}{mma}{body}"))
    }
}

/// A kernel on its way.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub kernel: Kernel<'a>,
    pub grid: [usize; 3],
    pub threads: usize,
    pub shared_bytes: usize,
    pub args: &'a [Arg<'a>],
}

/// What a kernel is called with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// Read or written: contiguous.
    Tensor(&'a Tensor),
    /// An `int`.
    Int(usize),
    /// A `float`.
    Float(f64),
}

impl Launch<'_> {
    /// Indices in kernels are 32 bits wide.
    fn int(&self, n: usize) -> Result<i32> {
        i32::try_from(n).map_err(|_| {
            Error::invalid(format!(
                "{n} is beyond the indices of the card's kernel `{}`",
                self.kernel.function
            ))
            .with_hint("use a smaller batch or picture")
        })
    }

    fn contiguous(&self, t: &Tensor) -> Result<()> {
        self.int(t.elem_count())?;
        if t.is_contiguous() {
            return Ok(());
        }
        Err(Error::invalid(format!("kernel `{}` was given a tensor that is a view", self.kernel.function)))
    }
}

/// Whether the card multiplies small matrices of this dtype, as modules with `tensor_cores` do.
pub(super) fn multiplies(card: &dyn Card, dtype: DType) -> bool {
    match dtype {
        DType::F16 => card.capability() >= 75,
        DType::BF16 => card.capability() >= 80,
        _ => false,
    }
}

const THREADS: usize = 256;

/// Launches `kernel` with a thread for each pack of `width` values.
pub(super) fn each_pack(card: &dyn Card, kernel: Kernel<'_>, packs: usize, args: &[Arg<'_>]) -> Result<()> {
    let grid = [packs.div_ceil(THREADS), 1, 1];
    card.launch(&Launch { kernel, grid, threads: THREADS, shared_bytes: 0, args })
}

/// How many neighbours can be moved at once, in rows of `row` values: at most 16 bytes, aligned in all tensors.
pub(super) fn pack_width(row: usize, tensors: &[&Tensor]) -> usize {
    let bytes = tensors.iter().map(|t| t.dtype().size_in_bytes()).max().unwrap_or(4);
    let fits = |width: usize| {
        tensors.iter().all(|t| t.layout().start_offset().is_multiple_of(width)) && row.is_multiple_of(width)
    };
    [8, 4, 2].into_iter().find(|width| width * bytes <= 16 && fits(*width)).unwrap_or(1)
}
