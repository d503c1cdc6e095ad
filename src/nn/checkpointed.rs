//! A block that may be recomputed in the backward pass.

use candle_core::Tensor;

use crate::{
    error::Result,
    ops::{checkpoint::Tape, function},
};

/// `block(inputs)`, on the tape if there is one. Gradients are the same bit for bit either way: without a tape, too,
/// what the block sends back to an input is added up before it meets what the input's other users send.
///
/// # Errors
/// Whatever `block` returns.
pub fn checkpointed<const N: usize>(
    tape: Option<&Tape>,
    inputs: [&Tensor; N],
    block: impl Fn([&Tensor; N]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    match tape {
        // The tape hands over as many tensors as it was given.
        Some(tape) => tape.checkpoint(&inputs, move |t| block(std::array::from_fn(|i| &t[i]))),
        None => {
            let inputs =
                inputs.into_iter().map(|t| function::view(t, t.shape())).collect::<Result<Vec<_>>>()?;
            block(std::array::from_fn(|i| &inputs[i]))
        }
    }
}
