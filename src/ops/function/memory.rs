//! Values that are moved into candle's graph, not copied.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, InplaceOp1, Layout, MetalStorage, Shape, Storage, Tensor,
};

use super::{Output, lock};
use crate::error::Result;

type CandleResult<T> = candle_core::Result<T>;

/// The output as a contiguous, untracked tensor whose memory nothing else uses.
pub(super) fn own(output: Output, inputs: &[&Tensor]) -> Result<Tensor> {
    let fresh = matches!(output, Output::Fresh(_));
    let tensor = output.into_tensor();
    let whole = tensor.is_contiguous() && tensor.layout().start_offset() == 0;
    if fresh && whole && !inputs.iter().any(|input| same_memory(input, &tensor)) {
        return Ok(tensor);
    }
    Ok(tensor.force_contiguous()?)
}

fn same_memory(a: &Tensor, b: &Tensor) -> bool {
    // Compared by address, one lock after the other: taking both at once could deadlock with a waiting writer.
    let address = |t: &Tensor| std::ptr::from_ref::<Storage>(&t.storage_and_layout().0) as usize;
    address(a) == address(b)
}

/// The memory taken out of a computed tensor, waiting to become a node's value.
struct Slot(Mutex<Option<Storage>>);

impl Slot {
    fn steal(tensor: &Tensor) -> Result<Self> {
        let slot = Self(Mutex::new(None));
        tensor.inplace_op1(&slot)?;
        Ok(slot)
    }

    fn put(&self, storage: Storage) {
        *lock(&self.0) = Some(storage);
    }

    fn take(&self) -> CandleResult<Storage> {
        let storage = lock(&self.0).take();
        storage.ok_or_else(|| candle_core::Error::msg("the value of an op node was already taken"))
    }
}

impl InplaceOp1 for Slot {
    fn name(&self) -> &'static str {
        "steal"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> CandleResult<()> {
        self.put(Storage::Cpu(std::mem::replace(storage, CpuStorage::U8(Vec::new()))));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> CandleResult<()> {
        let device = storage.device.clone();
        // SAFETY: never read.
        let nothing = unsafe { device.alloc::<u8>(1) }?;
        let empty = candle_core::cuda_backend::CudaStorageSlice::U8(nothing);
        self.put(Storage::Cuda(std::mem::replace(storage, CudaStorage { slice: empty, device })));
        Ok(())
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &mut MetalStorage, _: &Layout) -> CandleResult<()> {
        // A Metal storage is a counted reference to its buffer.
        self.put(Storage::Metal(storage.clone()));
        Ok(())
    }
}

/// The memory of `value`, which is left empty, as the output of an op on `input`, with a backward in candle's graph: from
/// its gradient to the input's.
pub(super) fn moved(
    value: &Tensor,
    input: &Tensor,
    backward: impl Fn(&Tensor) -> CandleResult<Option<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let node =
        Node { shape: value.shape().clone(), value: Slot::steal(value)?, backward: Box::new(backward) };
    Ok(input.apply_op1(node)?)
}

/// A candle custom op that was already computed.
struct Node {
    shape: Shape,
    value: Slot,
    #[expect(clippy::type_complexity, reason = "used once")]
    backward: Box<dyn Fn(&Tensor) -> CandleResult<Option<Tensor>> + Send + Sync>,
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "function"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        match self.value.take()? {
            Storage::Cpu(storage) => Ok((storage, self.shape.clone())),
            _ => Err(other_device()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        match self.value.take()? {
            Storage::Cuda(storage) => Ok((storage, self.shape.clone())),
            _ => Err(other_device()),
        }
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        match self.value.take()? {
            Storage::Metal(storage) => Ok((storage, self.shape.clone())),
            _ => Err(other_device()),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        (self.backward)(grad)
    }
}

fn other_device() -> candle_core::Error {
    candle_core::Error::msg("an op's output lives on another device than its inputs")
}
