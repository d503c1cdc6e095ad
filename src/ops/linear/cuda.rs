//! The same on a card, in f16 or bf16: the frozen product by cuBLAS, the branch by kernels that keep it in f32.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::{
    error::Result,
    ops::{
        cuda::{self, Arg, Card, Kernel, Launch, Module, each_pack},
        low_rank::{Branch, Frozen, Gradients, Wanted},
    },
};

static MODULE: Module = Module { name: "linear", source: include_str!("kernel.cu"), tensor_cores: true };

/// As in the kernels.
const RANK_ROWS: usize = 16;
const ADD_ROWS: usize = 16;
const ADD_COLUMNS: usize = 128;
const ADD_CHUNK: usize = 16;
const OUTER_ROWS: usize = 32;
const OUTER_COLUMNS: usize = 64;

/// Beyond it, the sums do not fit a thread's registers.
const HIGHEST_RANK: usize = 128;

/// The card `x` is on, if its kernels take a layer of this weight (out, in) with a branch of `rank`.
pub(super) fn taking(x: &Tensor, weight: &Tensor, rank: usize) -> Result<Option<Arc<dyn Card>>> {
    let (outputs, inputs) = weight.dims2()?;
    Ok(cuda::card(x.device())?.filter(|card| takes(&**card, x.dtype(), (inputs, outputs), rank)))
}

fn takes(card: &dyn Card, dtype: DType, (inputs, outputs): (usize, usize), rank: usize) -> bool {
    // Rows are copied 16 bytes at a time.
    cuda::multiplies(card, dtype)
        && rank <= HIGHEST_RANK
        && (rank == 0 || (inputs.is_multiple_of(8) && outputs.is_multiple_of(8)))
}

/// x (rows, in) → y (rows, out), and z = (x downᵀ) ⊙ s (rows, r) in f32. The branch is f32.
pub(super) fn forward(
    card: &dyn Card,
    x: &Tensor,
    frozen: &Frozen,
    branch: Option<&Branch>,
) -> Result<(Tensor, Option<Tensor>)> {
    let y = x.matmul(&frozen.weight.t()?)?;
    let Some(branch) = branch else {
        if let Some(bias) = &frozen.bias {
            add(card, &y, Some(bias), None)?;
        }
        return Ok((y, None));
    };
    let z = product(card, x, &branch.down, &branch.scale, Side::Down)?;
    add(card, &y, frozen.bias.as_ref(), Some((&z, &branch.up, Side::Up)))?;
    Ok((y, Some(z)))
}

/// The gradients that are wanted, for g (rows, out); a branch comes with its saved z.
pub(super) fn backward(
    card: &dyn Card,
    x: Option<&Tensor>,
    g: &Tensor,
    weight: &Tensor,
    (branch, wanted): (Option<(&Branch, &Tensor)>, Wanted),
) -> Result<Gradients> {
    let mut grads = Gradients::default();
    if wanted.x {
        grads.x = Some(g.matmul(weight)?);
    }
    let Some((branch, z)) = branch else { return Ok(grads) };
    let gz = product(card, g, &branch.up, &branch.scale, Side::Up)?;
    if let Some(gx) = &grads.x {
        add(card, gx, None, Some((&gz, &branch.down, Side::Down)))?;
    }
    if let Some(x) = x {
        grads.down = Some(outer(card, x, &gz, Side::Down)?);
        grads.up = Some(outer(card, g, z, Side::Up)?);
    }
    Ok(grads)
}

/// Which factor of the branch: down (r, in) or up (out, r).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Down,
    Up,
}

/// (x downᵀ) ⊙ s or (x up) ⊙ s: (rows, r)
fn product(card: &dyn Card, x: &Tensor, factor: &Tensor, scale: &Tensor, side: Side) -> Result<Tensor> {
    let ((rows, depth), r) = (x.dims2()?, scale.elem_count());
    let z = card.empty(&(rows, r).into(), DType::F32)?;
    let constants = constants(r, side);
    card.launch(&Launch {
        kernel: kernel("rank_product", x, &constants),
        grid: [rows.div_ceil(RANK_ROWS), 1, 1],
        threads: 256,
        shared_bytes: 4 * 8 * RANK_ROWS * r.next_multiple_of(8),
        args: &[
            Arg::Tensor(x),
            Arg::Tensor(factor),
            Arg::Tensor(scale),
            Arg::Tensor(&z),
            Arg::Int(rows),
            Arg::Int(depth),
            Arg::Int(r),
        ],
    })?;
    Ok(z)
}

/// y += bias + z · upᵀ or z · down, in place: y was just computed, and nobody else has it.
fn add(
    card: &dyn Card,
    y: &Tensor,
    bias: Option<&Tensor>,
    low_rank: Option<(&Tensor, &Tensor, Side)>,
) -> Result<()> {
    let (rows, columns) = y.dims2()?;
    let (z, factor, side) = low_rank.unwrap_or((y, y, Side::Up));
    let r = if low_rank.is_some() { z.dim(1)? } else { 0 };
    let constants = constants(r, side);
    card.launch(&Launch {
        kernel: kernel("rank_add", y, &constants),
        grid: [rows.div_ceil(ADD_ROWS), columns.div_ceil(ADD_COLUMNS), 1],
        threads: ADD_COLUMNS,
        shared_bytes: 4 * ADD_ROWS * ADD_CHUNK,
        args: &[
            Arg::Tensor(y),
            Arg::Tensor(bias.unwrap_or(y)),
            Arg::Tensor(z),
            Arg::Tensor(factor),
            Arg::Int(rows),
            Arg::Int(columns),
            Arg::Int(r),
            Arg::Int(bias.is_some().into()),
        ],
    })
}

/// zᵀ x (r, columns) or xᵀ z (columns, r), in f32
fn outer(card: &dyn Card, x: &Tensor, z: &Tensor, side: Side) -> Result<Tensor> {
    let ((rows, columns), r) = (x.dims2()?, z.dim(1)?);
    let across = columns.div_ceil(OUTER_COLUMNS);
    let splits = (2 * card.processors()).div_ceil(across).min(rows.div_ceil(2 * OUTER_ROWS)).clamp(1, 64);
    let each = rows.div_ceil(splits).next_multiple_of(OUTER_ROWS);
    let splits = rows.div_ceil(each);
    let shape = if side == Side::Up { (columns, r) } else { (r, columns) };
    let parts = card.empty(&(splits, shape.0, shape.1).into(), DType::F32)?;
    let constants = constants(r, side);
    card.launch(&Launch {
        kernel: kernel("rank_outer", x, &constants),
        grid: [across, splits, 1],
        threads: 128,
        shared_bytes: 2 * 2 * OUTER_ROWS * (OUTER_COLUMNS + 8),
        args: &[
            Arg::Tensor(x),
            Arg::Tensor(z),
            Arg::Tensor(&parts),
            Arg::Int(rows),
            Arg::Int(columns),
            Arg::Int(r),
            Arg::Int(each),
        ],
    })?;
    if splits == 1 {
        return Ok(parts.reshape(shape)?);
    }
    let (sum, values) = (card.empty(&shape.into(), DType::F32)?, columns * r);
    let args = [Arg::Tensor(&parts), Arg::Tensor(&sum), Arg::Int(splits), Arg::Int(values)];
    each_pack(card, kernel("join", x, &constants), values, &args)?;
    Ok(sum)
}

fn constants(rank: usize, side: Side) -> [(&'static str, usize); 2] {
    [("RANKS", rank.div_ceil(8)), ("UP", (side == Side::Up).into())]
}

fn kernel<'a>(function: &'static str, like: &Tensor, constants: &'a [(&'static str, usize)]) -> Kernel<'a> {
    Kernel { module: &MODULE, function, dtype: like.dtype(), constants }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{super::reference, *};
    use crate::ops::{
        LowRank,
        testing::{HALVES, check_kernel_in, random},
    };

    /// `down` and `up` come in the dtype that is tested; the kernels take them in f32.
    fn branch(t: &[Tensor], scale: &Tensor) -> Result<Branch> {
        Branch::new(LowRank { down: &t[1], up: &t[2], scale }, DType::F32)
    }

    #[test]
    fn kernels_equal_their_references() -> Result<()> {
        for (rows, inputs, outputs, r) in
            [(37, 40, 72, 3), (130, 320, 136, 8), (5, 8, 16, 20), (130, 64, 24, 1)]
        {
            let (x, weight) = (random(0, &[rows, inputs])?, random(1, &[outputs, inputs])?);
            let weight = (weight / (inputs as f64).sqrt())?;
            let (bias, scale) = (random(2, &[outputs])?, random(5, &[r])?);
            let (down, up) =
                ((random(3, &[r, inputs])? / (inputs as f64).sqrt())?, random(4, &[outputs, r])?);
            check_kernel_in(
                HALVES,
                &[&x, &down, &up],
                |card, t, g| {
                    let dtype = t[0].dtype();
                    assert!(takes(card, dtype, (inputs, outputs), r));
                    let frozen =
                        Frozen { weight: weight.to_dtype(dtype)?, bias: Some(bias.to_dtype(dtype)?) };
                    let branch = branch(t, &scale)?;
                    let (y, z) = forward(card, &t[0], &frozen, Some(&branch))?;
                    let z = z.expect("a branch");
                    let wanted = Wanted { x: true, branch: true };
                    let grads =
                        backward(card, Some(&t[0]), g, &frozen.weight, (Some((&branch, &z)), wanted))?;
                    let grads = grads.in_dtypes(&[dtype; 3])?;
                    Ok((y, grads.into_iter().map(|g| g.expect("wanted")).collect()))
                },
                |t| {
                    let branch = LowRank { down: &t[1], up: &t[2], scale: &scale };
                    reference::linear(&t[0], &weight, Some(&bias), Some(branch))
                },
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_zero_branch_changes_no_bit() -> Result<()> {
        let Some(card) = cuda::emulated::emulator(0, 80) else { return Ok(()) };
        let half = |t: Tensor| -> Result<Tensor> { Ok(t.to_dtype(DType::BF16)?) };
        let x = half(random(0, &[20, 16])?)?;
        let frozen = Frozen { weight: half(random(1, &[24, 16])?)?, bias: Some(half(random(2, &[24])?)?) };
        let t = [x.clone(), random(3, &[4, 16])?, random(4, &[24, 4])?.zeros_like()?];
        let (plain, _) = forward(&card, &x, &frozen, None)?;
        let (y, _) = forward(&card, &x, &frozen, Some(&branch(&t, &random(5, &[4])?)?))?;
        assert_eq!(y.to_vec2::<half::bf16>()?, plain.to_vec2::<half::bf16>()?);
        Ok(())
    }
}
