//! Pictures and sequences put together: sums, and channels side by side.

mod cpu;
mod cuda;
pub(crate) mod reference;

use candle_core::{DType, Tensor};

use super::cpu::{Values, narrow, widen};
use super::cuda::card;
use super::function::{self, Output};
use crate::error::{Error, Result};

/// a + b.
///
/// # Errors
/// If shapes, dtypes or devices differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        return Err(disagree("add", a, b));
    }
    let sum = sum(&a.detach(), &b.detach())?;
    function::apply(Output::Fresh(sum), &[a, b], |g| Ok(vec![Some(g.clone()), Some(g.clone())]))
}

/// The same of tensors outside of any graph, which agree.
pub(super) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if let Some(card) = card(a.device())? {
        return cuda::add(&*card, a, b);
    }
    if !a.device().is_cpu() {
        return reference::add(a, b);
    }
    let (wide_a, wide_b) = (widen(a)?, widen(b)?);
    narrow(cpu::add(&Values::of(&wide_a)?, &Values::of(&wide_b)?), a.shape(), a.dtype())
}

/// x + t for every pixel of each picture.
///
/// # Shapes
/// - `x`: (b, h, w, c), `t`: (b, c) → (b, h, w, c)
///
/// # Errors
/// If shapes, dtypes or devices disagree.
pub fn add_per_picture(x: &Tensor, t: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    if t.dims() != [b, c] || x.dtype() != t.dtype() {
        return Err(disagree("add_per_picture", x, t));
    }
    let sum = if let Some(card) = card(x.device())? {
        cuda::add_per_picture(&*card, &x.detach(), &t.detach())?
    } else if x.device().is_cpu() {
        let (wide_x, wide_t) = (widen(&x.detach())?, widen(&t.detach())?);
        let sum = cpu::add_per_picture(&Values::of(&wide_x)?, &Values::of(&wide_t)?, (h * w, c));
        narrow(sum, x.shape(), x.dtype())?
    } else {
        reference::add_per_picture(&x.detach(), &t.detach())?
    };
    let (tracked, dtype) = (t.track_op(), t.dtype());
    function::apply(Output::Fresh(sum), &[x, t], move |g| {
        let over_pixels = || -> Result<Tensor> {
            if let Some(card) = card(g.device())? {
                return cuda::sum_over_area(&*card, g);
            }
            Ok(g.to_dtype(DType::F32)?.sum((1, 2))?.to_dtype(dtype)?)
        };
        Ok(vec![Some(g.clone()), tracked.then(over_pixels).transpose()?])
    })
}

/// The channels of a, then those of b.
///
/// # Shapes
/// - `a`: (b, h, w, c), `b`: (b, h, w, d) → (b, h, w, c + d)
///
/// # Errors
/// If shapes, dtypes or devices disagree.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((n, h, w, c), d) = (a.dims4()?, b.dim(3)?);
    if b.dims() != [n, h, w, d] || a.dtype() != b.dtype() {
        return Err(disagree("concat_channels", a, b));
    }
    let joined = if let Some(card) = card(a.device())? {
        cuda::concat(&*card, &a.detach(), &b.detach())?
    } else if a.device().is_cpu() && a.dtype() == DType::F32 && c > 0 && d > 0 {
        let (a, b) = (a.detach().contiguous()?, b.detach().contiguous()?);
        Tensor::from_vec(
            cpu::concat_rows(&Values::of(&a)?, &Values::of(&b)?, (c, d)),
            (n, h, w, c + d),
            a.device(),
        )?
    } else {
        reference::concat_channels(&a.detach(), &b.detach())?
    };
    function::apply(Output::Fresh(joined), &[a, b], move |g| {
        if let Some(card) = card(g.device())? {
            return Ok(cuda::split(&*card, g, c)?.map(Some).to_vec());
        }
        let part = |from, count| -> Result<_> { Ok(Some(g.narrow(3, from, count)?.contiguous()?)) };
        Ok(vec![part(0, c)?, part(c, d)?])
    })
}

fn disagree(op: &str, a: &Tensor, b: &Tensor) -> Error {
    let (left, right) = ((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    Error::invalid(format!("{op} of {left:?} and {right:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_op, random};

    #[test]
    fn equal_their_references() -> Result<()> {
        let (x, y, z) = (random(0, &[2, 3, 5, 7])?, random(1, &[2, 3, 5, 7])?, random(2, &[2, 3, 5, 4])?);
        let t = random(3, &[2, 7])?;
        check_op(&[&x, &y], |t| add(&t[0], &t[1]), |t| reference::add(&t[0], &t[1]))?;
        check_op(&[&x, &t], |t| add_per_picture(&t[0], &t[1]), |t| reference::add_per_picture(&t[0], &t[1]))?;
        check_op(&[&x, &z], |t| concat_channels(&t[0], &t[1]), |t| reference::concat_channels(&t[0], &t[1]))
    }

    #[test]
    fn half_precision_keeps_its_dtype() -> Result<()> {
        let (x, z) = (random(0, &[1, 2, 2, 3])?.to_dtype(DType::BF16)?, random(1, &[1, 2, 2, 3])?);
        let z = z.to_dtype(DType::BF16)?;
        let found = add(&x, &z)?;
        assert_eq!(found.dtype(), DType::BF16);
        assert_eq!(found.flatten_all()?.to_vec1::<half::bf16>()?, (&x + &z)?.flatten_all()?.to_vec1()?);
        assert_eq!(concat_channels(&x, &z)?.dims(), [1, 2, 2, 6]);
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_disagree() -> Result<()> {
        let (x, y) = (random(0, &[1, 2, 2, 3])?, random(1, &[1, 2, 3, 3])?);
        assert!(add(&x, &y).is_err() && concat_channels(&x, &y).is_err());
        assert!(add_per_picture(&x, &random(2, &[1, 2])?).is_err());
        assert!(add(&x, &x.to_dtype(DType::F16)?).is_err());
        Ok(())
    }
}
