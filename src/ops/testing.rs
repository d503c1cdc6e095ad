//! How every op is tested: value and gradients against its reference and against finite differences.

#[cfg(target_os = "linux")]
mod kernels;

use candle_core::{D, DType, Device, Tensor, Var};

#[cfg(target_os = "linux")]
pub(crate) use self::kernels::{HALVES, check_kernel, check_kernel_in};
use crate::{
    error::Result,
    ops::backward,
    random::{Rng, Stream},
};

/// Standard normal values.
pub(crate) fn random(index: u64, shape: &[usize]) -> Result<Tensor> {
    Rng::new(5, Stream::Weights, index).normal(shape, &Device::Cpu)
}

/// Asserts |a - b| ≤ tolerance · max(1, |b|ₘₐₓ).
pub(crate) fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(a.shape(), b.shape());
    if b.elem_count() == 0 {
        return Ok(());
    }
    let largest =
        |t: &Tensor| -> Result<f64> { Ok(f64::from(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)) };
    let (difference, scale) = (largest(&(a - b)?)?, largest(b)?.max(1.0));
    assert!(difference <= tolerance * scale, "differ by {difference} at scale {scale}");
    Ok(())
}

/// Checks `op` on `x` in f16 and bf16 against f32: its value, which has the dtype of `x`, and the gradients of `x` and of
/// `branch`, which stays f32.
pub(crate) fn check_half(x: &Tensor, branch: &Var, op: impl Fn(&Tensor) -> Result<Tensor>) -> Result<()> {
    let results = |dtype| -> Result<[Tensor; 3]> {
        let x = Var::from_tensor(&x.to_dtype(dtype)?)?;
        let y = op(&x)?;
        let grads = backward(&y.sqr()?)?;
        let gradient = |t: &Var| grads.get(t).expect("a gradient").clone();
        let (gx, gbranch) = (gradient(&x), gradient(branch));
        assert_eq!([y.dtype(), gx.dtype(), gbranch.dtype()], [dtype, dtype, DType::F32]);
        Ok([y.to_dtype(DType::F32)?, gx.to_dtype(DType::F32)?, gbranch])
    };
    let exact = results(DType::F32)?;
    for dtype in [DType::F16, DType::BF16] {
        for (half, exact) in results(dtype)?.iter().zip(&exact) {
            close(half, exact, 2e-2)?;
        }
    }
    Ok(())
}

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Checks `op` against `reference` on contiguous and transposed-in-memory inputs, its gradients also against finite
/// differences, and that without tracked inputs nothing is recorded.
pub(crate) fn check_op(
    inputs: &[&Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let plain: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
    let value = op(&plain)?;
    assert!(!value.track_op(), "untracked inputs record nothing");
    close(&value, &reference(&plain)?, 1e-5)?;
    let strided: Vec<Tensor> = inputs.iter().map(|t| scattered(t)).collect::<Result<_>>()?;
    close(&op(&strided)?, &value, 1e-6)?;

    let weight = random(99, value.dims())?;
    let found = gradients(&op, inputs, &weight, false)?;
    for (found, expected) in found.iter().zip(gradients(&reference, inputs, &weight, false)?) {
        close(found, &expected, 2e-5)?;
        assert!(found.abs()?.sum_all()?.to_scalar::<f32>()? > 0.0, "a gradient is all zero");
    }
    for (strided, found) in gradients(&op, inputs, &weight, true)?.iter().zip(&found) {
        close(strided, found, 1e-6)?;
    }
    for (i, found) in found.iter().enumerate() {
        check_slope(&op, &plain, i, found, &weight)?;
    }
    Ok(())
}

/// Gradients of Σ weight · f(inputs), with an op before each input (so that it is tracked without being a variable).
fn gradients(f: Op<'_>, inputs: &[&Tensor], weight: &Tensor, strided: bool) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t)).collect::<Result<_, _>>()?;
    let arguments: Vec<Tensor> = vars
        .iter()
        .map(|v| if strided { scattered(v) } else { Ok((v.as_tensor() * 1.0)?) })
        .collect::<Result<_>>()?;
    let loss = (f(&arguments)? * weight)?.sum_all()?;
    let grads = backward(&loss)?;
    Ok(vars.iter().map(|v| grads.get(v).expect("every input has a gradient").clone()).collect())
}

/// The same values with another order in memory.
fn scattered(t: &Tensor) -> Result<Tensor> {
    if t.rank() < 2 {
        return Ok((t * 1.0)?);
    }
    Ok(t.transpose(0, D::Minus1)?.force_contiguous()?.transpose(0, D::Minus1)?)
}

/// Central difference of the weighted sum, half along the gradient of input `i` and half along a random direction.
fn check_slope(f: Op<'_>, inputs: &[Tensor], i: usize, grad: &Tensor, weight: &Tensor) -> Result<()> {
    let norm = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt()) };
    let noise = random(200 + i as u64, inputs[i].dims())?;
    let direction = ((grad / norm(grad)?)? + (&noise / norm(&noise)?)?)?;
    let step = 1e-2;
    let at = |scale: f64| -> Result<f64> {
        let mut moved = inputs.to_vec();
        moved[i] = (&inputs[i] + (&direction * scale)?)?;
        // Summed in f64: the difference of two sums keeps few digits otherwise.
        let weighted = (f(&moved)?.to_dtype(DType::F64)? * weight.to_dtype(DType::F64)?)?;
        Ok(weighted.sum_all()?.to_scalar::<f64>()?)
    };
    let numeric = (at(step)? - at(-step)?) / (2.0 * step);
    let analytic = f64::from((grad * &direction)?.sum_all()?.to_scalar::<f32>()?);
    let tolerance = 5e-3 * norm(grad)?.max(0.1);
    assert!((numeric - analytic).abs() < tolerance, "input {i}: slope {numeric}, gradient says {analytic}");
    Ok(())
}
