//! The autograd seam: candle's missing `torch.autograd.Function`.
//!
//! [`apply`] takes an output computed in any way and makes it a node with a written backward; [`backward`] walks over the
//! nodes. All ops of this crate are built on it, so that nothing is computed, stored or added up for frozen operands.
//!
//! For candle, a node is an op on a variable without influence: its own walk ends there, and ours takes over. So the
//! gradients between our nodes never meet candle's sums, each of which fills a tensor with zeros first, on one thread.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, DeviceLocation, InplaceOp1, Layout, MetalStorage, Shape,
    Storage, Tensor, TensorId, Var, backprop::GradStore,
};

use super::combine;
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

/// The written backward of a node: gradient of the output, contiguous → one gradient or `None` per input.
type Backward = dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// Makes `output` a node with `inputs` and `backward`, or returns it plain if no input needs a gradient.
///
/// `backward` returns one entry per input: `None` skips the work for an input that is not tracked; for a tracked
/// input it means zero. Each gradient has its input's shape and dtype. The node keeps no input alive: what `backward`
/// reads it captures, [detached](Tensor::detach).
///
/// # Errors
/// If the output cannot be copied.
pub fn apply(
    output: Output,
    inputs: &[&Tensor],
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !needs_grad(inputs) {
        return Ok(output.into_tensor());
    }
    let output = own(output, inputs)?;
    let inputs = inputs.iter().map(|t| Input::of(t)).collect();
    let record = Record::new(Source::Op { inputs, backward: Box::new(backward) });
    let recorded = Arc::clone(&record);
    let anchor = anchor(&output)?;
    let output = moved(&output, &anchor, move |grad| {
        let arrived = Arrived { record: Arc::clone(&recorded), grad: grad.detach() };
        ARRIVED.with_borrow_mut(|lists| match lists.last_mut() {
            Some(list) => {
                list.push(arrived);
                Ok(None)
            }
            None => candle_core::bail!("gradients of this op are found by scumble::ops::backward"),
        })
    })?;
    record.stands_for(&output);
    Ok(output)
}

/// The same for a backward that also reads the output.
///
/// # Errors
/// As [`apply`].
pub fn apply_with_output(
    output: Output,
    inputs: &[&Tensor],
    backward: impl Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let kept = Arc::new(OnceLock::new());
    let value = Arc::clone(&kept);
    let output = apply(output, inputs, move |g| match value.get() {
        Some(output) => backward(output, g),
        None => Err(Error::invalid("a backward ran before its forward pass had ended")),
    })?;
    if output.track_op() {
        kept.get_or_init(|| output.detach());
    }
    Ok(output)
}

/// The same values in another shape, without a copy, as a node: what users of the view send back is added up before it
/// meets what other users of the tensor send.
///
/// # Errors
/// If the shape holds another number of values.
pub fn view(t: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if !needs_grad(&[t]) {
        return Ok(t.detach().reshape(shape)?);
    }
    let (Some(node), true) = (record_of(t), t.is_contiguous()) else {
        let from = t.shape().clone();
        let value = Output::Shared(t.reshape(shape)?);
        return apply(value, &[t], move |g| Ok(vec![Some(g.reshape(&from)?)]));
    };
    let view = t.reshape(shape)?;
    let record = Record::new(Source::View { of: Arc::downgrade(&node), shape: t.shape().clone() });
    record.stands_for(&view);
    lock(&node.views).push(record);
    Ok(view)
}

/// The gradients of `loss` (of its sum, if it has several elements) with respect to the variables it depends on.
///
/// # Errors
/// If a backward fails.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    backward_from(loss, &loss.ones_like()?)
}

/// The gradients of Σ grad · output.
///
/// # Errors
/// If a backward fails, or the shapes or dtypes differ.
pub fn backward_from(output: &Tensor, grad: &Tensor) -> Result<GradStore> {
    if output.shape() != grad.shape() || output.dtype() != grad.dtype() {
        let (found, expected) = ((grad.dtype(), grad.shape()), (output.dtype(), output.shape()));
        return Err(Error::invalid(format!("a gradient is {found:?}, its output {expected:?}")));
    }
    let mut walk = Walk::default();
    walk.add(&Origin::of(output), grad.detach())?;
    // The node made last has no consumers left: they were all made after it.
    while let Some((_, Arrived { record, grad })) = walk.waiting.pop_last() {
        match &record.source {
            Source::Op { inputs, backward } => {
                for (input, grad) in inputs.iter().zip(gradients(inputs, backward, &grad)?) {
                    if let Some(grad) = grad {
                        walk.add(&input.origin, grad)?;
                    }
                }
            }
            Source::View { of, shape } => {
                // Who has the view has what it is a view of.
                if let Some(record) = of.upgrade() {
                    walk.arrive(Arrived { record, grad: grad.reshape(shape)? })?;
                }
            }
        }
    }
    Ok(walk.found)
}

/// A walk from the last node to the first.
#[derive(Default)]
struct Walk {
    /// Nodes whose gradient is known in part, by their number.
    waiting: BTreeMap<u64, Arrived>,
    found: GradStore,
}

impl Walk {
    /// Takes a part of a tensor's gradient to where it belongs.
    fn add(&mut self, to: &Origin, grad: Tensor) -> Result<()> {
        match to {
            Origin::Constant => Ok(()),
            Origin::Variable(var) => {
                let grad = match self.found.remove(var) {
                    Some(sum) => combine::sum(&sum, &grad)?,
                    None => grad,
                };
                self.found.insert(var, grad);
                Ok(())
            }
            Origin::Node { record, .. } => self.arrive(Arrived { record: Arc::clone(record), grad }),
            Origin::Candle(t) => self.through_candle(t, grad),
        }
    }

    fn arrive(&mut self, mut arrived: Arrived) -> Result<()> {
        if let Some(before) = self.waiting.remove(&arrived.record.number) {
            arrived.grad = combine::sum(&before.grad, &arrived.grad)?;
        }
        self.waiting.insert(arrived.record.number, arrived);
        Ok(())
    }

    /// Through candle's own ops, to variables and nodes.
    fn through_candle(&mut self, t: &Tensor, grad: Tensor) -> Result<()> {
        let zero = Tensor::zeros((), t.dtype(), t.device())?;
        // A scalar whose gradient with respect to t is `grad`.
        let seed = moved(&zero, t, move |_| Ok(Some(grad.clone())))?;
        ARRIVED.with_borrow_mut(|lists| lists.push(Vec::new()));
        #[expect(clippy::disallowed_methods, reason = "ends at our nodes, where this walk goes on")]
        let found = seed.backward();
        let arrived = ARRIVED.with_borrow_mut(Vec::pop).unwrap_or_default();
        self.found.extend(found?)?;
        arrived.into_iter().try_for_each(|arrived| self.arrive(arrived))
    }
}

/// A gradient that reached a node.
struct Arrived {
    record: Arc<Record>,
    grad: Tensor,
}

/// A node in the backward pass.
struct Record {
    /// Nodes are numbered as they are made: inputs have smaller numbers.
    number: u64,
    source: Source,
    output: OnceLock<TensorId>,
    /// Of this node's output.
    views: Mutex<Vec<Arc<Record>>>,
}

/// Where a node's gradient goes.
enum Source {
    /// Through a written backward.
    Op { inputs: Vec<Input>, backward: Box<Backward> },
    /// On, in one piece, in another shape.
    View { of: Weak<Record>, shape: Shape },
}

/// What a node remembers of an input: not its values.
struct Input {
    shape: Shape,
    dtype: DType,
    origin: Origin,
}

impl Input {
    fn of(t: &Tensor) -> Self {
        Self { shape: t.shape().clone(), dtype: t.dtype(), origin: Origin::of(t) }
    }
}

/// Where a tensor comes from.
enum Origin {
    /// Nothing that gets a gradient.
    Constant,
    Variable(Tensor),
    /// A node. A view alone does not keep what it is a view of.
    Node {
        record: Arc<Record>,
        _below: Vec<Arc<Record>>,
    },
    /// One of candle's ops.
    Candle(Tensor),
}

impl Origin {
    fn of(t: &Tensor) -> Self {
        if !t.track_op() {
            return Self::Constant;
        }
        if t.is_variable() {
            return Self::Variable(t.clone());
        }
        let Some(record) = record_of(t) else { return Self::Candle(t.clone()) };
        let below = std::iter::successors(record.viewed(), |below| below.viewed()).collect();
        Self::Node { record, _below: below }
    }
}

static NODES: AtomicU64 = AtomicU64::new(0);

/// The nodes that live, by their outputs.
static RECORDS: LazyLock<Mutex<HashMap<TensorId, Weak<Record>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Gradients candle's walk brought to our nodes; one list for each walk under way.
    static ARRIVED: RefCell<Vec<Vec<Arrived>>> = const { RefCell::new(Vec::new()) };
    /// A variable without influence for each device.
    static ANCHORS: RefCell<HashMap<DeviceLocation, Var>> = RefCell::new(HashMap::new());
}

fn record_of(t: &Tensor) -> Option<Arc<Record>> {
    lock(&RECORDS).get(&t.id()).and_then(Weak::upgrade)
}

/// A panic elsewhere leaves nothing half done under these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn anchor(like: &Tensor) -> Result<Var> {
    let device = like.device();
    if let Some(var) = ANCHORS.with_borrow(|anchors| anchors.get(&device.location()).cloned()) {
        return Ok(var);
    }
    let var = Var::zeros(1, DType::F32, device)?;
    ANCHORS.with_borrow_mut(|anchors| anchors.insert(device.location(), var.clone()));
    Ok(var)
}

impl Record {
    fn new(source: Source) -> Arc<Self> {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { number, source, output: OnceLock::new(), views: Mutex::default() })
    }

    /// The node this is a view of.
    fn viewed(&self) -> Option<Arc<Self>> {
        match &self.source {
            Source::Op { .. } => None,
            Source::View { of, .. } => of.upgrade(),
        }
    }

    /// From now on this is the tensor's node.
    fn stands_for(self: &Arc<Self>, output: &Tensor) {
        lock(&RECORDS).insert(*self.output.get_or_init(|| output.id()), Arc::downgrade(self));
    }
}

fn gradients(inputs: &[Input], backward: &Backward, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let grads = backward(&grad.contiguous()?)?;
    if grads.len() != inputs.len() {
        let (found, expected) = (grads.len(), inputs.len());
        return Err(Error::invalid(format!("a backward returned {found} gradients for {expected} inputs")));
    }
    for (grad, input) in grads.iter().zip(inputs) {
        if let Some(g) = grad.as_ref().filter(|g| *g.shape() != input.shape || g.dtype() != input.dtype) {
            let (found, expected) = ((g.dtype(), g.shape()), (input.dtype, &input.shape));
            return Err(Error::invalid(format!("a backward returned {found:?} for an input {expected:?}")));
        }
    }
    Ok(grads)
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(output) = self.output.get() {
            lock(&RECORDS).remove(output);
        }
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

/// The memory of `value`, which is left empty, as the output of an op on `input`, with a backward in candle's graph: from
/// its gradient to the input's.
fn moved(
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn tripled(x: &Tensor) -> Result<Tensor> {
        apply(Output::Fresh((x.detach() * 3.0)?), &[x], |g| Ok(vec![Some((g * 3.0)?)]))
    }

    #[test]
    fn gradients_flow_through_a_node() -> Result<()> {
        let x = Var::new(&[1f32, -2.0, 5.0], &Device::Cpu)?;
        let y = (tripled(&x)?.sqr()? + tripled(&x)?)?;
        assert_eq!(y.to_vec1::<f32>()?, [12.0, 30.0, 240.0]);
        let grads = backward(&y.sum_all()?)?;
        assert_eq!(grads.get(&x).expect("a gradient").to_vec1::<f32>()?, [21.0, -33.0, 93.0]);
        Ok(())
    }

    /// 1e8 + 1 is 1e8 in f32: which parts meet first can be told.
    #[test]
    fn what_reaches_a_view_is_added_up_first() -> Result<()> {
        let times = |x: &Tensor, by: f64| {
            apply(Output::Fresh((x.detach() * by)?), &[x], move |g| Ok(vec![Some((g * by)?)]))
        };
        let x = Var::new(&[1f32], &Device::Cpu)?;
        for (node, total) in [(tripled(&x)?, 3.0), (x.as_tensor().clone(), 1.0)] {
            let seen = view(&view(&node, (1, 1))?, 1)?;
            assert_eq!(seen.to_vec1::<f32>()?, node.to_vec1::<f32>()?);
            let parts = [times(&seen, -1e8)?, times(&seen, 1e8)?, times(&node, 1.0)?];
            let loss = parts.iter().try_fold(Tensor::new(&[0f32], &Device::Cpu)?, |sum, part| sum + part)?;
            drop((node, seen, parts));
            assert_eq!(backward(&loss)?.get(&x).expect("a gradient").to_vec1::<f32>()?, [total]);
        }
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
        let pass = |g: &Tensor| Ok(vec![Some(g.flatten_all()?)]);
        let view = apply(Output::Fresh(x.reshape((2, 2))?), &[&x], pass)?;
        let same = apply(Output::Fresh(x.as_tensor().clone()), &[&x], pass)?;
        let shared = apply(Output::Shared(other.clone()), &[&x], |_| Ok(vec![None]))?;
        let part = apply(Output::Fresh(other.narrow(0, 1, 1)?), &[&x], |_| Ok(vec![None]))?;
        assert_eq!(x.to_vec1::<f32>()?, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(other.to_vec1::<f32>()?, [9.0, 8.0]);
        assert_eq!(shared.to_vec1::<f32>()?, [9.0, 8.0]);
        assert_eq!(part.to_vec1::<f32>()?, [8.0]);
        let grads = backward(&(view.sum_all()? + same.sum_all()?)?)?;
        assert_eq!(grads.get(&x).expect("a gradient").to_vec1::<f32>()?, [2.0; 4]);
        Ok(())
    }

    /// A gradient that is left out is zero; a wrong one is an error, and so is candle's walk over a node.
    #[test]
    fn missing_gradients_are_none_and_wrong_ones_are_errors() -> Result<()> {
        let x = Var::new(&[1f32, 2.0], &Device::Cpu)?;
        let node = (x.as_tensor() * 2.0)?;
        let y = apply(Output::Fresh(node.detach().copy()?), &[&node], |_| Ok(vec![None]))?;
        assert!(backward(&y)?.get(&x).is_none());
        #[expect(clippy::disallowed_methods, reason = "must fail, not lose gradients")]
        let by_candle = tripled(&x)?.sum_all()?.backward();
        assert!(by_candle.is_err());
        let bad: [fn() -> Vec<Option<Tensor>>; 2] =
            [Vec::new, || vec![Tensor::zeros(3, DType::F32, &Device::Cpu).ok()]];
        for bad in bad {
            let y = apply(Output::Fresh(node.detach().copy()?), &[&node], move |_| Ok(bad()))?;
            assert!(backward(&y).is_err());
        }
        Ok(())
    }
}
