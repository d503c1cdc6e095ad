//! Gradient checkpointing (<https://arxiv.org/abs/1604.06174>): a block's activations are dropped after the forward
//! pass and computed again in the backward pass.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};

use super::function::{self, Output, lock};
use crate::error::Result;

/// Runs blocks without keeping their activations, and finds the gradients of everything inside them.
///
/// Values and gradients are bit-identical to running the blocks directly, as long as the parts of each gradient are added
/// in the same order: where a block uses an input several times and something outside uses it too, a block adds its own
/// parts first. One tape serves one backward at a time; clones are the same tape.
#[derive(Debug, Clone)]
pub struct Tape {
    /// Gradients of variables inside blocks, found while recomputing them.
    found: Arc<Mutex<GradStore>>,
    /// A variable without influence: it makes a block a node of the graph even if none of its inputs is tracked.
    anchor: Var,
}

impl Tape {
    /// An empty tape for tensors on `device`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { found: Arc::default(), anchor: Var::zeros(1, DType::F32, device)? })
    }

    /// `f(inputs)`, keeping only the inputs for the backward pass, in which `f` runs a second time.
    ///
    /// `f` must compute the same both times (random masks are drawn outside). Tensors it captures are constants, but
    /// for variables, which get their gradients; anything else that needs a gradient belongs in `inputs`.
    ///
    /// # Errors
    /// If `f` fails.
    pub fn checkpoint(
        &self,
        inputs: &[&Tensor],
        f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
        let output = function::without_graph(|| f(&detached))?;
        let tracked: Vec<bool> = inputs.iter().map(|t| t.track_op()).collect();
        let found = Arc::clone(&self.found);
        let with_anchor: Vec<&Tensor> = inputs.iter().copied().chain([self.anchor.as_tensor()]).collect();
        // Shared: `f` may return something it holds.
        function::apply(Output::Shared(output), &with_anchor, move |grad| {
            let mut grads = recompute(&found, &detached, &tracked, grad, &f)?;
            grads.push(None);
            Ok(grads)
        })
    }

    /// The gradients of `loss`, those found inside checkpoints included.
    ///
    /// # Errors
    /// If a block or a gradient fails.
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        std::mem::take(&mut *lock(&self.found));
        let result = function::backward(loss);
        let found = std::mem::take(&mut *lock(&self.found));
        let mut grads = result?;
        grads.extend(found)?;
        Ok(grads)
    }
}

/// Runs the block again with its graph on, and goes backward through it.
fn recompute(
    found: &Mutex<GradStore>,
    inputs: &[Tensor],
    tracked: &[bool],
    grad: &Tensor,
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let leaves: Vec<Option<Var>> = inputs
        .iter()
        .zip(tracked)
        .map(|(t, on)| on.then(|| Var::from_tensor(t)).transpose())
        .collect::<Result<_, _>>()?;
    let arguments: Vec<Tensor> =
        leaves.iter().zip(inputs).map(|(leaf, t)| leaf.as_ref().map_or(t, Var::as_tensor).clone()).collect();
    let output = f(&arguments)?;
    if !output.track_op() {
        return Ok(vec![None; inputs.len()]);
    }
    let mut grads = function::backward_from(&output, grad)?;
    let input_grads = leaves.iter().map(|leaf| leaf.as_ref().and_then(|leaf| grads.remove(leaf))).collect();
    lock(found).extend(grads)?;
    Ok(input_grads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::random::{Rng, Stream};

    const DEPTH: u64 = 4;

    fn random(index: u64, shape: (usize, usize)) -> Result<Tensor> {
        Rng::new(3, Stream::Weights, index).normal(shape, &Device::Cpu)
    }

    /// A residual block around a frozen weight with a trained low-rank branch, and a second input.
    #[derive(Clone)]
    struct Block {
        weight: Tensor,
        down: Var,
        up: Var,
    }

    impl Block {
        fn new(i: u64) -> Result<Self> {
            let var = |index, shape| -> Result<Var> { Ok(Var::from_tensor(&random(index, shape)?)?) };
            Ok(Self {
                weight: random(3 * i, (6, 6))?,
                down: var(3 * i + 1, (2, 6))?,
                up: var(3 * i + 2, (6, 2))?,
            })
        }

        fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
            // One node for all uses of x, so that their gradients are added before those from outside.
            let x = &(x * 1.0)?;
            let y = (x.matmul(&self.weight)? + x.matmul(&self.down.t()?)?.matmul(&self.up.t()?)?)?;
            Ok((y.broadcast_add(bias)?.tanh()? + x)?)
        }
    }

    /// A chain with a skip from the first block to the last; the first block sees no tracked input but `bias`.
    fn run(blocks: &[Block], x: &Tensor, bias: &Tensor, tape: Option<&Tape>) -> Result<(Tensor, GradStore)> {
        let step = |block: &Block, x: &Tensor| match tape {
            None => block.forward(x, bias),
            Some(tape) => {
                let block = block.clone();
                tape.checkpoint(&[x, bias], move |t| block.forward(&t[0], &t[1]))
            }
        };
        let first = step(&blocks[0], x)?;
        let mut h = first.clone();
        for block in &blocks[1..] {
            h = step(block, &h)?;
        }
        let loss = (h * first)?.sqr()?.mean_all()?;
        let grads = match tape {
            None => function::backward(&loss)?,
            Some(tape) => tape.backward(&loss)?,
        };
        Ok((loss, grads))
    }

    fn bits(t: &Tensor) -> Result<Vec<u32>> {
        Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    }

    #[test]
    fn bit_exact_with_and_without_tracked_inputs() -> Result<()> {
        let blocks: Vec<Block> = (0..DEPTH).map(Block::new).collect::<Result<_>>()?;
        let (x, bias) = (random(100, (5, 6))?, random(101, (1, 6))?);
        let bias_var = Var::from_tensor(&bias)?;
        for bias in [&bias, bias_var.as_tensor()] {
            let (loss, grads) = run(&blocks, &x, bias, None)?;
            let tape = Tape::new(&Device::Cpu)?;
            for _ in 0..2 {
                let (tape_loss, tape_grads) = run(&blocks, &x, bias, Some(&tape))?;
                assert_eq!(bits(&loss)?, bits(&tape_loss)?);
                let vars = blocks.iter().flat_map(|b| [b.down.as_tensor(), b.up.as_tensor()]);
                for var in vars.chain(bias.is_variable().then_some(bias)) {
                    let (expected, found) =
                        (grads.get(var).expect("plain"), tape_grads.get(var).expect("tape"));
                    assert_eq!(bits(expected)?, bits(found)?);
                    assert!(found.abs()?.max_all()?.to_scalar::<f32>()? > 0.0);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn checkpoints_nest_and_may_return_what_they_hold() -> Result<()> {
        let (x, held) = (Var::from_tensor(&random(0, (2, 2))?)?, random(1, (2, 2))?);
        let tape = Tape::new(&Device::Cpu)?;
        let (inner, constant) = (tape.clone(), held.clone());
        let y = tape.checkpoint(&[&x], move |t| inner.checkpoint(&[&t[0]], |t| Ok(t[0].exp()?)))?;
        let z = tape.checkpoint(&[&x], move |_| Ok(constant.clone()))?;
        let grads = tape.backward(&(y.clone() + z)?.sum_all()?)?;
        assert_eq!(bits(grads.get(&x).expect("a gradient"))?, bits(&y)?);
        assert_eq!(bits(&held)?, bits(&random(1, (2, 2))?)?);
        assert!(tape.checkpoint(&[], |_| Err(Error::invalid("of the block"))).is_err());
        Ok(())
    }
}
