//! Butterfly orthogonal fine-tuning: rotations at growing distances, one after another.

use candle_core::Tensor;

use super::{Algorithm, Delta, Stored, rotation};
use crate::error::Result;

/// W' = Bₘ … B₁ B₀ W (<https://arxiv.org/abs/2311.06243>), where Bᵢ rotates, in blocks of b, rows 2ⁱ · b / 2 apart; then
/// scaled by `rescale`. The strength acts on each factor.
#[derive(Debug, Clone)]
pub struct Boft {
    /// (m, n, b, b) with n · b = out and b even.
    pub blocks: Tensor,
    /// As of [`super::OftForm::Cayley`].
    pub constraint: Option<f64>,
    /// (out, 1, …).
    pub rescale: Option<Tensor>,
}

impl Algorithm for Boft {
    fn name(&self) -> &'static str {
        "BOFT"
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let (m, n, b, _) = self.blocks.dims4()?;
        let (outputs, device) = (base.dims()[0], base.device());
        let limit = self.constraint.map(|c| c * outputs as f64);
        let rotations = rotation::at_strength(&rotation::cayley(&self.blocks, limit)?, strength)?;
        let rotations = rotations.to_device(device)?;
        let values = base.elem_count() / outputs;
        let mut rows = base.contiguous()?.reshape((outputs, values))?;
        for factor in 0..m {
            let half = (b / 2) << factor;
            let groups = outputs / (2 * half);
            let exchange = |t: Tensor, from: (usize, usize)| -> Result<Tensor> {
                Ok(t.reshape((groups, from.0, from.1, values))?.transpose(1, 2)?.contiguous()?)
            };
            let grouped = exchange(rows, (2, half))?.reshape((n, b, values))?;
            let turned = rotations.get(factor)?.contiguous()?.matmul(&grouped)?;
            rows = exchange(turned, (half, 2))?.reshape((outputs, values))?;
        }
        rotation::rescaled(&rows.reshape(base.shape())?, self.rescale.as_ref(), strength)
    }

    fn alpha(&self) -> Option<f64> {
        self.constraint
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let mut all = rotation::stored(&self.blocks, self.constraint)?.to_vec();
        all.extend(self.rescale.iter().map(|t| (".rescale", t.clone())));
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::Boft(Self {
            blocks: f(&self.blocks)?,
            constraint: self.constraint,
            rescale: self.rescale.as_ref().map(f).transpose()?,
        }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let fits = match self.blocks.dims() {
            // Each factor reaches twice as far as the one before, and groups must fill the rows.
            [m, n, b, columns] => {
                b == columns
                    && b.is_multiple_of(2)
                    && n * b == shape[0]
                    && *m < 32
                    && shape[0].is_multiple_of(b << (m - 1))
            }
            _ => false,
        };
        if !fits {
            return Err(super::misfit(format!(
                "the butterfly blocks {:?} are not [m, n, b, b] with b even, n · b = {} (the outputs of the model's \
                 weight {shape:?}) and a multiple of b · 2^(m-1)",
                self.blocks.dims(),
                shape[0]
            )));
        }
        rotation::check_rescale(self.rescale.as_ref(), shape)?;
        rotation::check_constraint(self.constraint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{
        Known, Matrix, assert_close, assert_unchanged_at_zero, capped, identity, plus, rotation_of, skew,
    };

    #[test]
    fn boft_turns_rows_at_growing_distances() -> Result<()> {
        let shape = &[8, 3];
        let (w, b, n, factors, m) = (Known::random(1, shape)?, 2, 4, 3, 0.6);
        let blocks = Known::of(&(Known::random(2, &[factors, n, b, b])?.tensor * 0.3)?)?;
        let scale = capped(&blocks, b, 0.1 * 8.0);
        let mut rows: Matrix = (0..8).map(|o| (0..3).map(|i| w.at(&[o, i])).collect()).collect();
        for factor in 0..factors {
            let half = (b / 2) << factor;
            // Row (c, g, h) of (·, 2, half) comes at place (c, h, g).
            let place = |row: usize| {
                let (c, g, h) = (row / (2 * half), row / half % 2, row % half);
                c * 2 * half + h * 2 + g
            };
            let mut ordered = rows.clone();
            for (row, values) in rows.iter().enumerate() {
                ordered[place(row)].clone_from(values);
            }
            let mut turned = ordered.clone();
            for block in 0..n {
                let r = rotation_of(&skew(&blocks, &[factor, block], b, scale));
                let r = plus(&identity(b), m, &plus(&r, -1.0, &identity(b)));
                for x in 0..b {
                    for i in 0..3 {
                        turned[block * b + x][i] = (0..b).map(|y| r[x][y] * ordered[block * b + y][i]).sum();
                    }
                }
            }
            for row in 0..8 {
                rows[row].clone_from(&turned[place(row)]);
            }
        }
        let delta = Delta::Boft(Boft { blocks: blocks.tensor.clone(), constraint: Some(0.1), rescale: None });
        delta.check(shape)?;
        assert_close("BOFT", &delta.apply(&w.tensor, m)?, &rows.concat());
        assert_unchanged_at_zero(&delta, &w.tensor)
    }
}
