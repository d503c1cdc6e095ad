//! The autograd seam: candle's missing `torch.autograd.Function`.
//!
//! [`apply`] takes an output computed in any way and makes it a node of candle's graph with a written backward.
//! All ops of this crate are built on it, so that nothing is computed or stored for frozen operands.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp1, Layout, MetalStorage, Shape,
    Storage, Tensor,
};

use crate::error::{Error, Result};

type CandleResult<T> = candle_core::Result<T>;

/// The value of a node, and whether its memory may be moved into the graph.
#[derive(Debug)]
pub enum Output {
    /// Just computed; no tensor that is still used shares its memory. It is moved, not copied, and left empty.
    /// (A view of one of the node's inputs is recognised and copied.)
    Fresh(Tensor),
    /// Possibly a view of something else. It is copied.
    Shared(Tensor),
}

impl Output {
    /// The value, outside of any graph.
    pub fn into_tensor(self) -> Tensor {
        match self {
            Self::Fresh(t) | Self::Shared(t) => t.detach(),
        }
    }
}

/// The written backward of a node: (inputs, output, gradient of the output) → one gradient or `None` per input.
///
/// All are detached; the gradient is contiguous.
type Backward = dyn Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// Makes `output` a node with `inputs` and `backward`, or returns it plain if no input needs a gradient.
///
/// `backward` returns one entry per input: `None` skips the work for an input that is not tracked; for a tracked
/// input it means zero. Each gradient has its input's shape and dtype.
///
/// # Errors
/// If there are not one to three inputs, they live on different devices, or the output cannot be copied.
pub fn apply<const N: usize>(
    output: Output,
    inputs: [&Tensor; N],
    backward: impl Fn(&[Tensor], &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    apply_with_output(output, inputs, move |t, _, g| backward(t, g))
}

/// The same for a backward that also reads the output.
///
/// # Errors
/// As [`apply`].
pub fn apply_with_output<const N: usize>(
    output: Output,
    inputs: [&Tensor; N],
    backward: impl Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !needs_grad(&inputs) {
        return Ok(output.into_tensor());
    }
    let output = own(output, &inputs)?;
    let node =
        Node { shape: output.shape().clone(), value: Slot::steal(&output)?, backward: Box::new(backward) };
    match inputs.as_slice() {
        [a] => Ok(a.apply_op1(node)?),
        [a, b] => Ok(a.apply_op2(b, node)?),
        [a, b, c] => Ok(a.apply_op3(b, c, node)?),
        _ => Err(Error::invalid(format!("an op node has one to three inputs, got {N}"))),
    }
}

/// Whether a node with these inputs would be recorded: one is tracked, and [`without_graph`] is not active.
pub fn needs_grad(inputs: &[&Tensor]) -> bool {
    !GRAPH_OFF.get() && inputs.iter().any(|t| t.track_op())
}

thread_local! {
    static GRAPH_OFF: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with no op of this crate recording a node on this thread (candle's own ops still do, where a variable
/// meets them directly). The values are the same bit for bit.
pub fn without_graph<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            GRAPH_OFF.set(self.0);
        }
    }
    let _restore = Restore(GRAPH_OFF.replace(true));
    f()
}

/// The output as a contiguous, untracked tensor whose memory nothing else uses.
fn own(output: Output, inputs: &[&Tensor]) -> Result<Tensor> {
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
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(storage);
    }

    fn take(&self) -> CandleResult<Storage> {
        let storage = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
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
        let empty = candle_core::cuda_backend::CudaStorageSlice::U8(device.alloc_zeros::<u8>(1)?);
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

/// A candle custom op that was already computed.
struct Node {
    shape: Shape,
    value: Slot,
    backward: Box<Backward>,
}

impl Node {
    fn cpu(&self) -> CandleResult<(CpuStorage, Shape)> {
        match self.value.take()? {
            Storage::Cpu(storage) => Ok((storage, self.shape.clone())),
            _ => Err(other_device()),
        }
    }

    fn cuda(&self) -> CandleResult<(CudaStorage, Shape)> {
        match self.value.take()? {
            Storage::Cuda(storage) => Ok((storage, self.shape.clone())),
            _ => Err(other_device()),
        }
    }

    fn metal(&self) -> CandleResult<(MetalStorage, Shape)> {
        match self.value.take()? {
            Storage::Metal(storage) => Ok((storage, self.shape.clone())),
            _ => Err(other_device()),
        }
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        output: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<[Option<Tensor>; N]> {
        let detached = inputs.map(Tensor::detach);
        let grad = grad.detach().contiguous()?;
        let grads = (self.backward)(&detached, &output.detach(), &grad).map_err(into_candle)?;
        let mut grads: [Option<Tensor>; N] = grads.try_into().map_err(|grads: Vec<_>| {
            candle_core::Error::msg(format!("a backward returned {} gradients for {N} inputs", grads.len()))
        })?;
        for (grad, input) in grads.iter_mut().zip(inputs) {
            match grad {
                Some(g) if g.shape() != input.shape() || g.dtype() != input.dtype() => {
                    return Err(candle_core::Error::msg(format!(
                        "a backward returned {:?} {:?} for an input {:?} {:?}",
                        g.dtype(),
                        g.shape(),
                        input.dtype(),
                        input.shape()
                    )));
                }
                // candle panics on a tracked node without a gradient.
                None if input.track_op() && !input.is_variable() => *grad = Some(input.zeros_like()?),
                _ => {}
            }
        }
        Ok(grads)
    }
}

fn other_device() -> candle_core::Error {
    candle_core::Error::msg("an op's output lives on another device than its inputs")
}

/// An error of ours on its way through candle's backward.
fn into_candle(error: Error) -> candle_core::Error {
    match error {
        Error::Tensor(error) => error,
        error => candle_core::Error::wrap(error),
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "function"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, a: &Tensor, output: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let [ga] = self.gradients([a], output, grad)?;
        Ok(ga)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "function"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let [ga, gb] = self.gradients([a, b], output, grad)?;
        Ok((ga, gb))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "function"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [ga, gb, gc] = self.gradients([a, b, c], output, grad)?;
        Ok((ga, gb, gc))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn tripled(x: &Tensor) -> Result<Tensor> {
        apply(Output::Fresh((x.detach() * 3.0)?), [x], |_, g| Ok(vec![Some((g * 3.0)?)]))
    }

    #[test]
    fn gradients_flow_through_a_node() -> Result<()> {
        let x = Var::new(&[1f32, -2.0, 5.0], &Device::Cpu)?;
        let y = (tripled(&x)?.sqr()? + tripled(&x)?)?;
        assert_eq!(y.to_vec1::<f32>()?, [12.0, 30.0, 240.0]);
        let grads = y.sum_all()?.backward()?;
        assert_eq!(grads.get(&x).expect("a gradient").to_vec1::<f32>()?, [21.0, -33.0, 93.0]);
        Ok(())
    }

    #[test]
    fn nothing_is_recorded_for_untracked_inputs_or_without_graph() -> Result<()> {
        let x = Tensor::new(&[1f32], &Device::Cpu)?;
        assert!(!tripled(&x)?.track_op());
        let x = Var::from_tensor(&x)?;
        assert!(tripled(&x)?.track_op());
        assert!(!without_graph(|| tripled(&x))?.track_op());
        assert!(tripled(&x)?.track_op(), "the graph is on again");
        Ok(())
    }

    /// Outputs that share memory with something else leave that something intact.
    #[test]
    fn shared_outputs_are_copied() -> Result<()> {
        let x = Var::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu)?;
        let other = Tensor::new(&[9f32, 8.0], &Device::Cpu)?;
        let pass = |_: &[Tensor], g: &Tensor| Ok(vec![Some(g.flatten_all()?)]);
        let view = apply(Output::Fresh(x.reshape((2, 2))?), [&x], pass)?;
        let same = apply(Output::Fresh(x.as_tensor().clone()), [&x], pass)?;
        let shared = apply(Output::Shared(other.clone()), [&x], |_, _| Ok(vec![None]))?;
        let part = apply(Output::Fresh(other.narrow(0, 1, 1)?), [&x], |_, _| Ok(vec![None]))?;
        assert_eq!(x.to_vec1::<f32>()?, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(other.to_vec1::<f32>()?, [9.0, 8.0]);
        assert_eq!(shared.to_vec1::<f32>()?, [9.0, 8.0]);
        assert_eq!(part.to_vec1::<f32>()?, [8.0]);
        let grads = (view.sum_all()? + same.sum_all()?)?.backward()?;
        assert_eq!(grads.get(&x).expect("a gradient").to_vec1::<f32>()?, [2.0; 4]);
        Ok(())
    }

    /// candle panics on a missing gradient of a tracked node; a wrong one must be an error too.
    #[test]
    fn missing_gradients_are_zero_and_wrong_ones_are_errors() -> Result<()> {
        let x = Var::new(&[1f32, 2.0], &Device::Cpu)?;
        let node = (x.as_tensor() * 2.0)?;
        let y = apply(Output::Fresh(node.detach().copy()?), [&node], |_, _| Ok(vec![None]))?;
        let grads = y.sum_all()?.backward()?;
        assert_eq!(grads.get(&x).expect("a gradient").to_vec1::<f32>()?, [0.0; 2]);
        let bad: [fn() -> Vec<Option<Tensor>>; 2] =
            [Vec::new, || vec![Tensor::zeros(3, DType::F32, &Device::Cpu).ok()]];
        for bad in bad {
            let y = apply(Output::Fresh(node.detach().copy()?), [&node], move |_, _| Ok(bad()))?;
            assert!(y.sum_all()?.backward().is_err());
        }
        Ok(())
    }
}
