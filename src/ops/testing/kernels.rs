//! How a card's kernels are tested.

use candle_core::{DType, Tensor, Var};

use super::{close, random};
use crate::{
    error::Result,
    ops::{
        backward,
        cuda::{Card, emulated::emulator},
    },
};

/// What the kernels of a card are tested in, and how exact they are.
pub(crate) const DTYPES: &[(DType, f64)] = &[(DType::F32, 2e-5), (DType::F16, 3e-3), (DType::BF16, 2e-2)];
/// What tensor cores take.
pub(crate) const HALVES: &[(DType, f64)] = &[(DType::F16, 5e-3), (DType::BF16, 3e-2)];

/// Checks the kernels of a card, emulated, in each dtype: the value and the gradients against those of `reference` in f32
/// on the same numbers, and that the order threads run in changes no bit. `kernel` is given the gradient of its value.
pub(crate) fn check_kernel(
    inputs: &[&Tensor],
    kernel: impl Fn(&dyn Card, &[Tensor], &Tensor) -> Result<(Tensor, Vec<Tensor>)>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    check_kernel_in(DTYPES, inputs, kernel, reference)
}

/// The same in some dtypes, each with its tolerance.
pub(crate) fn check_kernel_in(
    dtypes: &[(DType, f64)],
    inputs: &[&Tensor],
    kernel: impl Fn(&dyn Card, &[Tensor], &Tensor) -> Result<(Tensor, Vec<Tensor>)>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    for (dtype, tolerance) in dtypes {
        let rounded: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(*dtype)).collect::<Result<_, _>>()?;
        let vars: Vec<Var> =
            rounded.iter().map(|t| Var::from_tensor(&t.to_dtype(DType::F32)?)).collect::<Result<_, _>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let value = reference(&tracked)?;
        let g = random(99, value.dims())?.to_dtype(*dtype)?;
        let expected = backward(&(&value * g.to_dtype(DType::F32)?)?)?;
        let run = |order| -> Result<Option<Vec<Tensor>>> {
            let Some(card) = emulator(order, 80) else { return Ok(None) };
            let (y, gradients) = kernel(&card, &rounded, &g)?;
            Ok(Some([y].into_iter().chain(gradients).collect()))
        };
        let Some(found) = run(0)? else { return Ok(()) };
        for (found, expected) in
            found.iter().zip([Some(&value)].into_iter().chain(vars.iter().map(|v| expected.get(v))))
        {
            assert_eq!(found.dtype(), *dtype);
            close(&found.to_dtype(DType::F32)?, &expected.expect("a gradient").detach(), *tolerance)?;
        }
        assert_eq!(found.len(), 1 + inputs.len());
        // Which numbers they are does not matter to a race.
        for order in if *dtype == dtypes[0].0 { 1..3 } else { 0..0 } {
            for (again, found) in run(order)?.iter().flatten().zip(&found) {
                let difference = (again.to_dtype(DType::F32)? - found.to_dtype(DType::F32)?)?;
                assert_eq!(difference.abs()?.max_all()?.to_scalar::<f32>()?, 0.0, "threads race");
            }
        }
    }
    Ok(())
}
