//! The autograd seam: candle's missing `torch.autograd.Function`.
//!
//! [`apply`] takes an output computed in any way and makes it a node with a written backward; [`backward`] walks over the
//! nodes. All ops of this crate are built on it, so that nothing is computed, stored or added up for frozen operands.
//!
//! For candle, a node is an op on a variable without influence: its own walk ends there, and ours takes over. So the
//! gradients between our nodes never meet candle's sums, each of which fills a tensor with zeros first, on one thread.

mod memory;
mod record;
mod walk;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use candle_core::{DType, DeviceLocation, Shape, Tensor, Var};

pub(super) use self::record::lock;
pub use self::walk::{backward, backward_from};
use self::{
    memory::{moved, own},
    record::{Input, Record, Source, record_of},
    walk::{ARRIVED, Arrived},
};
use crate::error::{Error, Result};

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

thread_local! {
    /// A variable without influence for each device.
    static ANCHORS: RefCell<HashMap<DeviceLocation, Var>> = RefCell::new(HashMap::new());
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
