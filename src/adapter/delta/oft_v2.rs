//! `OFTv2`: orthogonal fine-tuning of a layer's inputs.

use candle_core::{Device, Tensor};

use super::{Algorithm, Delta, Stored, math, rotation};
use crate::error::{Error, Result};

/// Each block of inputs, rotated: W'ⱼ = Wⱼ Rⱼᵀ (<https://arxiv.org/abs/2506.19847>). One block may serve all.
#[derive(Debug, Clone)]
pub struct OftV2 {
    /// (n, b (b - 1) / 2): the upper triangle of each skew block, row by row; n · b = in · kh · kw, or n = 1.
    pub skew: Tensor,
    /// How Q becomes R.
    pub series: OftSeries,
    /// `OneTrainer`'s `scaled_oft`: values are divided by 2 √(b - 1) first.
    pub scaled: bool,
    /// W R rather than W Rᵀ: `OneTrainer`'s convolutions.
    pub opposite: bool,
    /// PEFT's `coft`: caps the norm of each block at this, divided by √n.
    pub block_limit: Option<f64>,
}

/// How an [`OftV2`]'s skew blocks make rotations. The file does not say; PEFT's config does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OftSeries {
    /// The Cayley transform's Neumann series, this many terms of it: what is trained by default, with 5.
    Neumann(usize),
    /// (I - Q)(I + Q)⁻¹, which turns the other way.
    Exact,
}

/// PEFT's default is 5. Each costs a product of all blocks.
const MAX_TERMS: usize = 64;

impl OftV2 {
    /// b, of which (n, b (b - 1) / 2) values are stored.
    fn block_size(&self) -> Option<usize> {
        let stored = *self.skew.dims().get(1)?;
        let b = (1.0 + (1.0 + 8.0 * stored as f64).sqrt()) / 2.0;
        let b = b.round() as usize;
        (self.skew.dims().len() == 2 && b * (b - 1) / 2 == stored).then_some(b)
    }

    /// Q = T - Tᵀ, (n, b, b).
    fn skew_blocks(&self, b: usize) -> Result<Tensor> {
        let values: Vec<Vec<f32>> = math::f32_of(&self.skew)?.to_vec2()?;
        let scale = if self.scaled { 0.5 / ((b - 1) as f32).sqrt() } else { 1.0 };
        let limit = self.block_limit.map(|eps| (eps / (values.len() as f64).sqrt()) as f32);
        let mut q = vec![0f32; values.len() * b * b];
        for (block, triangle) in q.chunks_exact_mut(b * b).zip(&values) {
            // Each value occurs twice in Q.
            let norm = triangle.iter().map(|x| 2.0 * (x * scale).powi(2)).sum::<f32>().sqrt();
            let scale = match limit {
                Some(limit) if norm > limit => scale * limit / norm,
                _ => scale,
            };
            let places = (0..b).flat_map(|row| (row + 1..b).map(move |column| (row, column)));
            for ((row, column), value) in places.zip(triangle) {
                block[row * b + column] = value * scale;
                block[column * b + row] = -value * scale;
            }
        }
        Ok(Tensor::from_vec(q, (values.len(), b, b), &Device::Cpu)?)
    }

    fn refuse(&self, shape: &[usize]) -> Error {
        super::misfit(format!(
            "`.oft_R.weight` has shape {:?}, expected [n, b · (b - 1) / 2] with n · b (or b alone, if n = 1) filling \
             the inputs of the model's weight {shape:?}",
            self.skew.dims()
        ))
    }
}

impl Algorithm for OftV2 {
    fn name(&self) -> &'static str {
        "OFTv2"
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn apply(&self, base: &Tensor, strength: f64) -> Result<Tensor> {
        let b = self.block_size().ok_or_else(|| self.refuse(base.dims()))?;
        let q = self.skew_blocks(b)?;
        let rotations = match self.series {
            OftSeries::Neumann(terms) => rotation::neumann(&q, terms)?,
            OftSeries::Exact => rotation::cayley_inverse(&q)?,
        };
        let rotations = rotation::at_strength(&rotations, strength)?.to_device(base.device())?;
        let rotations = if self.opposite { rotations } else { rotations.transpose(1, 2)? };
        let outputs = base.dims()[0];
        let blocks = base.elem_count() / (outputs * b);
        let columns = base.contiguous()?.reshape((outputs, blocks, b))?.transpose(0, 1)?; // n o b
        let rotations = rotations.broadcast_as((blocks, b, b))?.contiguous()?;
        let turned = columns.contiguous()?.matmul(&rotations)?;
        Ok(turned.transpose(0, 1)?.contiguous()?.reshape(base.shape())?)
    }

    fn tensors(&self) -> Result<Vec<Stored>> {
        let mut all = vec![(".oft_R.weight", self.skew.clone())];
        if self.scaled {
            all.push((".oft_R.scaled_oft", Tensor::new(1u8, &Device::Cpu)?));
        }
        Ok(all)
    }

    fn map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Delta> {
        Ok(Delta::OftV2(Self { skew: f(&self.skew)?, ..self.clone() }))
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        let inputs: usize = shape[1..].iter().product();
        let fits = shape.len() > 1
            && self.block_size().is_some_and(|b| {
                let n = self.skew.dims()[0];
                b > 1 && (n * b == inputs || (n == 1 && inputs.is_multiple_of(b)))
            });
        match self.series {
            _ if !fits => Err(self.refuse(shape)),
            OftSeries::Neumann(terms) if terms > MAX_TERMS => Err(Error::invalid(format!(
                "`num_cayley_neumann_terms` is {terms}, expected at most {MAX_TERMS}"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::by_hand::{
        CONV, Known, LINEAR, Matrix, assert_close, assert_unchanged_at_zero, identity, plus, product,
        rotation_of,
    };

    #[test]
    fn oft_v2_turns_blocks_of_inputs() -> Result<()> {
        for (shape, shared, opposite) in [(LINEAR, false, false), (CONV, false, true), (CONV, true, false)] {
            let inputs: usize = shape[1..].iter().product();
            let (b, m) = (4, 0.7);
            let n = if shared { 1 } else { inputs / b };
            let w = Known::random(1, &[shape[0], inputs])?;
            let stored = Known::of(&(Known::random(2, &[n, b * (b - 1) / 2])?.tensor * 0.2)?)?;
            let q = |block: usize, scale: f64| -> Matrix {
                let mut q = vec![vec![0.0; b]; b];
                let upper = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
                for (next, (i, j)) in upper.enumerate() {
                    let value = scale * stored.at(&[if shared { 0 } else { block }, next]);
                    (q[i][j], q[j][i]) = (value, -value);
                }
                q
            };
            let five_terms = |q: &Matrix| {
                let (q2, one) = (product(q, q), identity(b));
                let (q3, q4) = (product(&q2, q), product(&q2, &q2));
                plus(&plus(&plus(&plus(&one, 2.0, q), 2.0, &q2), 2.0, &q3), 1.0, &q4)
            };
            for (series, scaled) in
                [(OftSeries::Neumann(5), false), (OftSeries::Neumann(5), true), (OftSeries::Exact, false)]
            {
                let scale = if scaled { 0.5 / (b as f64 - 1.0).sqrt() } else { 1.0 };
                let rotation = |block: usize| match series {
                    OftSeries::Neumann(_) => five_terms(&q(block, scale)),
                    // The inverse of the Cayley transform is that of -Q.
                    OftSeries::Exact => rotation_of(&q(block, -scale)),
                };
                let expected: Vec<f64> = (0..shape[0] * inputs)
                    .map(|place| {
                        let (o, column) = (place / inputs, place % inputs);
                        let r = plus(&identity(b), m, &plus(&rotation(column / b), -1.0, &identity(b)));
                        (0..b)
                            .map(|x| {
                                let turn = if opposite { r[x][column % b] } else { r[column % b][x] };
                                w.at(&[o, column / b * b + x]) * turn
                            })
                            .sum()
                    })
                    .collect();
                let skew = stored.tensor.clone();
                let delta = Delta::OftV2(OftV2 { skew, series, scaled, opposite, block_limit: None });
                delta.check(shape)?;
                let base = w.reshaped(shape)?;
                assert_close("OFTv2", &delta.apply(&base, m)?, &expected);
                assert_unchanged_at_zero(&delta, &base)?;
            }
        }
        Ok(())
    }
}
