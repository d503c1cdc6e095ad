//! 2-D convolution on channels-last pictures, weight and bias frozen.

mod composed;
mod cpu;
mod cuda;
pub(crate) mod reference;
mod winograd;

use candle_core::{DType, Tensor};

use self::composed::Plain;
use super::cpu::{Numbers, Stored, Values, factor, narrow, widen};
use super::flops;
use super::function::{self, Output};
use super::low_rank::{Branch, Frozen, Gradients, Kept, LowRank, Wanted, compute_dtype, stored};
use crate::error::{Error, Result};

/// Stride and zero padding of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// The same in both directions.
    pub stride: usize,
    /// Zeros added before the first row and column.
    pub pad_before: usize,
    /// Zeros added after the last row and column (the VAE encoder pads (0, 1)).
    pub pad_after: usize,
}

impl Conv2dGeometry {
    /// The same padding on every side.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride, pad_before: padding, pad_after: padding }
    }
}

/// # Shapes
/// - `x`: (b, h, w, i), `weight`: (o, i, kh, kw), `bias`: (o) → (b, h', w', o)
/// - `branches.down`: (r, i, kh, kw), `branches.up`: (o, r)
///
/// A weight from [`channels_last`] saves the CPU a copy of it in every call.
///
/// # Errors
/// If shapes, dtypes or devices disagree, or a padding is as large as the kernel.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    branches: Option<LowRank<'_>>,
) -> Result<Tensor> {
    let s = Sizes::new(x, weight, geometry)?;
    check(weight, bias, branches)?;
    if [Some(weight), bias, branches.map(|b| b.scale)].iter().flatten().any(|t| t.track_op()) {
        return reference::conv2d(x, weight, bias, geometry, branches);
    }
    if s.is_pointwise() {
        return pointwise(x, weight, bias, branches);
    }
    let frozen = Frozen { weight: weight.clone(), bias: bias.cloned() };
    let Some(LowRank { down, up, scale }) = branches else {
        let (y, _) = forward(&x.detach(), &frozen, None, s)?;
        let wanted = Wanted { x: true, branch: false };
        let kept = Kept::of(x, wanted);
        return function::apply(Output::Fresh(y), &[x], move |g| {
            backward(&kept, g, &frozen, None, (s, wanted))?.in_dtypes(&[kept.dtype])
        });
    };
    let wanted = Wanted { x: x.track_op(), branch: down.track_op() || up.track_op() };
    let dtype = if Plain::of(x)?.is_card() { x.dtype() } else { compute_dtype(x) };
    let branch = Branch::new(LowRank { down, up, scale }, dtype)?;
    let (y, z) = forward(&x.detach(), &frozen, Some(&branch), s)?;
    let (kept, dtypes) = (Kept::of(x, wanted), [x.dtype(), down.dtype(), up.dtype()]);
    function::apply(Output::Fresh(y), &[x, down, up], move |g| {
        backward(&kept, g, &frozen, z.as_ref().map(|z| (&branch, z)), (s, wanted))?.in_dtypes(&dtypes)
    })
}

/// The same weight (o, i, kh, kw), laid out in memory as the kernels read it (o, kh, kw, i).
/// On Metal, or if it is a view of something else, the weight itself.
///
/// # Errors
/// If the weight has not four dimensions.
pub fn channels_last(weight: &Tensor) -> Result<Tensor> {
    // Views are left alone: a broadcast one may stand for far more values than there is memory.
    if weight.device().is_metal() || !weight.is_contiguous() || weight.track_op() || weight.elem_count() == 0
    {
        return Ok(weight.clone());
    }
    if weight.dtype() != DType::F32 || !weight.device().is_cpu() {
        return Ok(weight.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))?);
    }
    let (o, i, kh, kw) = weight.dims4()?;
    let turned = cpu::channels_last(&Values::of(weight)?, i, kh * kw);
    Ok(narrow(turned, (o, kh, kw, i), DType::F32)?.permute((0, 3, 1, 2))?)
}

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    b: usize,
    h: usize,
    w: usize,
    /// Input channels.
    c: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    /// Rows of zeros above.
    pad_top: usize,
    /// Columns of zeros on the left.
    pad_left: usize,
    /// Rows below and columns on the right.
    pad_after: usize,
    out_h: usize,
    out_w: usize,
}

impl Sizes {
    fn new(x: &Tensor, weight: &Tensor, geometry: Conv2dGeometry) -> Result<Self> {
        let ((b, h, w, c), (o, i, kh, kw)) = (x.dims4()?, weight.dims4()?);
        let Conv2dGeometry { stride, pad_before, pad_after } = geometry;
        let padding = pad_before + pad_after;
        let kernel = kh.min(kw);
        if c != i || o == 0 || c == 0 || stride == 0 || pad_before.max(pad_after) >= kernel.max(1) {
            return Err(Error::invalid(format!(
                "conv2d of {:?} with weight {:?} and {geometry:?} (padding must be below the kernel size)",
                x.shape(),
                weight.shape()
            )));
        }
        if h + padding < kh || w + padding < kw {
            return Err(Error::invalid(format!("conv2d: a {kh}x{kw} kernel does not fit {h}x{w} pixels")));
        }
        let (out_h, out_w) = ((h + padding - kh) / stride + 1, (w + padding - kw) / stride + 1);
        Ok(Self {
            b,
            h,
            w,
            c,
            kh,
            kw,
            stride,
            pad_top: pad_before,
            pad_left: pad_before,
            pad_after,
            out_h,
            out_w,
        })
    }

    fn is_pointwise(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.stride == 1
    }
}

fn check(weight: &Tensor, bias: Option<&Tensor>, branches: Option<LowRank<'_>>) -> Result<()> {
    let refuse =
        |what: String| Err(Error::invalid(format!("conv2d with weight {:?}: {what}", weight.shape())));
    let (o, i, kh, kw) = weight.dims4()?;
    if let Some(bias) = bias.filter(|b| b.dims() != [o]) {
        return refuse(format!("bias is {:?}", bias.shape()));
    }
    if let Some(LowRank { down, up, scale }) = branches {
        let r = scale.elem_count();
        if r == 0 || down.dims() != [r, i, kh, kw] || up.dims() != [o, r] || scale.dims() != [r] {
            let (down, up, scale) = (down.shape(), up.shape(), scale.shape());
            return refuse(format!("branches are down {down:?}, up {up:?}, scale {scale:?}"));
        }
    }
    Ok(())
}

/// A 1×1 convolution is a linear layer on every pixel.
fn pointwise(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    branches: Option<LowRank<'_>>,
) -> Result<Tensor> {
    let flat = |t: &Tensor| t.flatten_from(1);
    let weight = flat(weight)?;
    let Some(LowRank { down, up, scale }) = branches else {
        return super::linear(x, &weight, bias, None);
    };
    super::linear(x, &weight, bias, Some(LowRank { down: &flat(down)?, up, scale }))
}

/// y, and z = conv(x, down) ⊙ s (b h' w', r), which the backward pass needs.
fn forward(
    x: &Tensor,
    frozen: &Frozen,
    branch: Option<&Branch>,
    s: Sizes,
) -> Result<(Tensor, Option<Tensor>)> {
    let (pixels, window, outputs) = (s.b * s.out_h * s.out_w, s.kh * s.kw * s.c, frozen.weight.dim(0)?);
    flops::count(pixels * (window * outputs + branch.map_or(0, |b| b.rank() * (window + outputs))));
    let plain = Plain::of(x)?;
    if !x.device().is_cpu() || plain.is_card() {
        return composed::forward(&plain, &x.contiguous()?, &frozen.to_dtype(x.dtype())?, branch, s);
    }
    let weight = stored(&kernel(&frozen.weight)?)?;
    let x_stored = if cpu::is_direct(s, outputs) { factor(x, &weight)? } else { widen(x)? };
    let bias = frozen.bias.as_ref().map(widen).transpose()?;
    let (weight, bias) = (Stored::of(&weight)?, bias.as_ref().map(Values::of).transpose()?);
    let branch = branch.map(packed).transpose()?;
    let values = branch.as_ref().map(Branch::values).transpose()?;
    let (y, z) =
        cpu::forward(Stored::of(&x_stored)?.numbers(), weight.numbers(), bias.as_deref(), values.as_ref(), s);
    let z = branch.as_ref().map(|b| narrow(z, (pixels, b.rank()), DType::F32)).transpose()?;
    Ok((narrow(y, (s.b, s.out_h, s.out_w, outputs), x.dtype())?, z))
}

/// The gradients that are wanted; a branch comes with its saved z.
fn backward(
    x: &Kept,
    g: &Tensor,
    frozen: &Frozen,
    branch: Option<(&Branch, &Tensor)>,
    (s, wanted): (Sizes, Wanted),
) -> Result<Gradients> {
    let (pixels, window, outputs) = (s.b * s.out_h * s.out_w, s.kh * s.kw * s.c, frozen.weight.dim(0)?);
    flops::count(pixels * wanted.products(window, outputs, branch.map_or(0, |(b, _)| b.rank())));
    let plain = Plain::of(g)?;
    if !g.device().is_cpu() || plain.is_card() {
        let weight = frozen.weight.to_dtype(x.dtype)?;
        let values = x.values.as_ref().map(Tensor::contiguous).transpose()?;
        return composed::backward(&plain, values.as_ref(), g, &weight, branch, (s, wanted.x));
    }
    let g = if cpu::is_gradient_direct(s, outputs) { factor(g, &frozen.weight)? } else { widen(g)? };
    let g = Stored::of(&g)?;
    let g = g.numbers();
    let low_rank = branch.map(|(b, _)| packed(b)).transpose()?;
    let values = low_rank.as_ref().map(Branch::values).transpose()?;
    let gz = values.as_ref().map(|b| super::linear::cpu::rank_gradient(g, pixels, outputs, b));
    let mut grads = Gradients::default();
    if wanted.x {
        let weight = stored(&kernel(&frozen.weight)?)?;
        let weight = Stored::of(&weight)?;
        let mut terms = vec![(g, weight.numbers())];
        if let (Some(values), Some(gz)) = (&values, &gz) {
            terms.push((Numbers::F32(gz), Numbers::F32(&values.down)));
        }
        grads.x = Some(narrow(cpu::input_gradient(&terms, s), &x.shape, x.dtype)?);
    }
    if let (Some(x), Some((branch, z)), Some(gz)) = (&x.values, branch, gz) {
        let r = branch.rank();
        let gdown = cpu::down_gradient(&Values::of(&widen(x)?)?, &gz, r, s);
        let gdown = narrow(gdown, (r, s.kh, s.kw, s.c), DType::F32)?;
        grads.down = Some(gdown.permute((0, 3, 1, 2))?.contiguous()?);
        let gup = super::linear::cpu::outer(g, Stored::of(z)?.numbers(), (pixels, outputs, r));
        grads.up = Some(narrow(gup, (outputs, r), DType::F32)?);
    }
    Ok(grads)
}

/// (o, i, kh, kw) as the CPU kernel takes it, (o, kh, kw, i): no copy if it lies so in memory.
fn kernel(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.permute((0, 2, 3, 1))?.contiguous()?)
}

fn packed(branch: &Branch) -> Result<Branch> {
    Ok(Branch { down: kernel(&branch.down)?, up: branch.up.clone(), scale: branch.scale.clone() })
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{check_half, check_op, close, random};

    #[derive(Debug, Clone, Copy)]
    struct Case {
        picture: (usize, usize, usize),
        channels: (usize, usize),
        kernel: (usize, usize),
        rank: usize,
        geometry: Conv2dGeometry,
    }

    fn check_case(case: Case) -> Result<()> {
        let Case { picture: (b, h, w), channels: (i, o), kernel: (kh, kw), rank: r, geometry } = case;
        let (x, weight, bias) = (random(0, &[b, h, w, i])?, random(1, &[o, i, kh, kw])?, random(2, &[o])?);
        let (down, up, scale) = (random(3, &[r, i, kh, kw])?, random(4, &[o, r])?, random(5, &[r])?);
        let packed = channels_last(&weight)?;
        close(&packed, &weight, 0.0)?;
        assert!(packed.permute((0, 2, 3, 1))?.is_contiguous());
        check_op(
            &[&x, &down, &up],
            |t| {
                conv2d(
                    &t[0],
                    &packed,
                    Some(&bias),
                    geometry,
                    Some(LowRank { down: &t[1], up: &t[2], scale: &scale }),
                )
            },
            |t| {
                let branch = LowRank { down: &t[1], up: &t[2], scale: &scale };
                reference::conv2d(&t[0], &weight, Some(&bias), geometry, Some(branch))
            },
        )?;
        check_op(
            &[&x],
            |t| conv2d(&t[0], &weight, None, geometry, None),
            |t| reference::conv2d(&t[0], &weight, None, geometry, None),
        )?;
        check_composed(case, &[x, down, up, weight, bias, scale])
    }

    /// The path other devices take, against the kernel.
    fn check_composed(case: Case, t: &[Tensor]) -> Result<()> {
        let [x, down, up, weight, bias, scale] = t else { unreachable!("six tensors") };
        let s = Sizes::new(x, weight, case.geometry)?;
        let frozen = Frozen { weight: weight.clone(), bias: Some(bias.clone()) };
        let branch = Branch::new(LowRank { down, up, scale }, DType::F32)?;
        let (y, z) = forward(x, &frozen, Some(&branch), s)?;
        let (y2, z2) = composed::forward(&Plain::Candle, x, &frozen, Some(&branch), s)?;
        let (z, z2) = (z.expect("a branch"), z2.expect("a branch"));
        close(&y2, &y, 1e-5)?;
        close(&z2, &z, 1e-5)?;
        let (g, wanted) = (random(6, y.dims())?, Wanted { x: true, branch: true });
        let a = backward(&Kept::of(x, wanted), &g, &frozen, Some((&branch, &z)), (s, wanted))?;
        let b = composed::backward(&Plain::Candle, Some(x), &g, weight, Some((&branch, &z)), (s, true))?;
        for (a, b) in [(a.x, b.x), (a.down, b.down), (a.up, b.up)] {
            close(&a.expect("wanted"), &b.expect("wanted"), 2e-5)?;
        }
        Ok(())
    }

    fn geometry(stride: usize, pad_before: usize, pad_after: usize) -> Conv2dGeometry {
        Conv2dGeometry { stride, pad_before, pad_after }
    }

    #[test]
    fn equals_its_reference() -> Result<()> {
        let case =
            |picture, channels, kernel, geometry| Case { picture, channels, kernel, rank: 2, geometry };
        check_case(case((2, 5, 7), (3, 4), (3, 3), geometry(1, 1, 1)))?;
        check_case(case((1, 6, 9), (4, 3), (3, 3), geometry(2, 1, 1)))?;
        check_case(case((2, 8, 6), (5, 2), (3, 3), geometry(2, 0, 1)))?; // the VAE's encoder
        check_case(case((1, 4, 4), (3, 5), (1, 1), geometry(1, 0, 0)))?;
        check_case(case((1, 4, 5), (3, 5), (1, 1), geometry(2, 0, 0)))?;
        // Winograd: pictures joined in a task, with parts left over; and split, with more than one task.
        check_case(case((5, 15, 14), (17, 19), (3, 3), geometry(1, 1, 1)))?;
        check_case(case((1, 33, 63), (16, 18), (3, 3), geometry(1, 0, 1)))?;
        // More than one tile, with a part left over.
        check_case(case((2, 17, 19), (6, 7), (3, 3), geometry(1, 1, 1)))?;
        check_case(case((1, 33, 35), (2, 3), (3, 3), geometry(2, 1, 1)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_shape(
            picture in (1usize..3, 3usize..8, 3usize..8),
            channels in (1usize..6, 1usize..6),
            kernel in (2usize..4, 2usize..4),
            rank in 1usize..4,
            (stride, pad_before, pad_after) in (1usize..4, 0usize..2, 0usize..2),
        ) {
            let geometry = geometry(stride, pad_before, pad_after);
            check_case(Case { picture, channels, kernel, rank, geometry }).expect("shapes agree");
        }
    }

    #[test]
    fn frozen_operands_get_no_gradient() -> Result<()> {
        let (x, weight, bias) = (random(0, &[1, 4, 4, 3])?, random(1, &[5, 3, 3, 3])?, random(2, &[5])?);
        let down = Var::from_tensor(&random(3, &[2, 3, 3, 3])?)?;
        let up = Var::from_tensor(&random(4, &[5, 2])?)?;
        let scale = random(5, &[2])?;
        let branch = LowRank { down: &down, up: &up, scale: &scale };
        let y = conv2d(&x, &weight, Some(&bias), Conv2dGeometry::new(1, 1), Some(branch))?;
        let grads = function::backward(&y.sqr()?)?;
        for frozen in [&x, &weight, &bias, &scale] {
            assert!(grads.get(frozen).is_none());
        }
        assert!(grads.get(&down).is_some() && grads.get(&up).is_some());
        Ok(())
    }

    /// candle's own conv2d has no bf16 on the CPU. Direct sums and Winograd, odd channels and even, with and without stride.
    #[test]
    fn half_precision_keeps_its_dtype() -> Result<()> {
        for (side, i, o, stride) in [(4, 3, 5, 1), (9, 6, 21, 1), (9, 50, 4, 2), (33, 16, 18, 1)] {
            let (weight, up) = (random(1, &[o, i, 3, 3])?, random(4, &[o, 2])?);
            let (down, scale) = (Var::from_tensor(&random(3, &[2, i, 3, 3])?)?, random(5, &[2])?);
            let branch = LowRank { down: &down, up: &up, scale: &scale };
            check_half(&random(0, &[1, side, side, i])?, &down, |x| {
                let weight = weight.to_dtype(x.dtype())?;
                conv2d(x, &weight, None, Conv2dGeometry::new(stride, 1), Some(branch))
            })?;
        }
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_disagree() -> Result<()> {
        let (x, weight) = (random(0, &[1, 4, 4, 3])?, random(1, &[5, 3, 3, 3])?);
        assert!(conv2d(&x, &random(1, &[5, 4, 3, 3])?, None, Conv2dGeometry::new(1, 1), None).is_err());
        assert!(conv2d(&x, &weight, None, Conv2dGeometry::new(0, 1), None).is_err());
        assert!(conv2d(&x, &weight, None, Conv2dGeometry::new(1, 3), None).is_err());
        assert!(conv2d(&random(0, &[1, 2, 2, 3])?, &weight, None, Conv2dGeometry::new(1, 0), None).is_err());
        Ok(())
    }
}
