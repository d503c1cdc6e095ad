//! The walk backward over nodes.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use candle_core::{Tensor, backprop::GradStore};

use super::{
    memory::moved,
    record::{Backward, Input, Origin, Record, Source},
};
use crate::{
    error::{Error, Result},
    ops::combine,
};

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
pub(super) struct Arrived {
    pub record: Arc<Record>,
    pub grad: Tensor,
}

thread_local! {
    /// Gradients candle's walk brought to our nodes; one list for each walk under way.
    pub(super) static ARRIVED: RefCell<Vec<Vec<Arrived>>> = const { RefCell::new(Vec::new()) };
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
