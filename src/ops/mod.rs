//! The arithmetic of the networks: each op with its value and its gradient.
//!
//! Activations are channels-last: pictures (b, h, w, c), token sequences (b, n, d).
//! Every function here is differentiable in its activations, never computes a gradient for a frozen operand,
//! and has a plain-candle `reference` beside it as the oracle. Where a weight that is usually frozen is itself
//! tracked, the reference computes, so that no gradient is ever lost.

pub mod activation;
pub mod attention;
pub mod checkpoint;
pub mod combine;
pub mod conv2d;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod flops;
pub mod foreach;
pub mod function;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
mod low_rank;
pub mod resample;
#[cfg(test)]
mod testing;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use attention::{Mask, attention};
pub use checkpoint::Tape;
pub use combine::{add, add_per_picture, concat_channels};
pub use conv2d::{Conv2dGeometry, conv2d};
pub use function::{backward, view};
pub use group_norm::group_norm;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use low_rank::LowRank;
pub use resample::upsample_nearest;

#[cfg(test)]
mod tests {
    use candle_core::{Tensor, Var};

    use super::{testing::random, *};
    use crate::error::{Error, Result};

    /// A value and the gradients of the input and of branches, for each op that runs in parallel.
    fn outputs() -> Result<Vec<Tensor>> {
        let mut all = Vec::new();
        let mut add = |x: Tensor, vars: &[&Var], op: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<()> {
            let leaf = Var::from_tensor(&x)?;
            let y = op(&leaf)?;
            let grads = backward(&y.sqr()?)?;
            all.push(y.detach());
            all.extend([&leaf].iter().chain(vars).map(|var| grads.get(var).expect("a gradient").clone()));
            Ok(())
        };
        let geometry = Conv2dGeometry::new(1, 1);
        for (side, i, o) in [(24, 40, 24), (24, 40, 5), (5, 40, 24)] {
            let weight = random(1, &[o, i, 3, 3])?;
            let (down, up) =
                (Var::from_tensor(&random(2, &[4, i, 3, 3])?)?, Var::from_tensor(&random(3, &[o, 4])?)?);
            let scale = random(4, &[4])?;
            let branch = LowRank { down: &down, up: &up, scale: &scale };
            add(random(0, &[2, side, side, i])?, &[&down, &up], &|x| {
                conv2d(x, &weight, None, geometry, Some(branch))
            })?;
        }
        let (weight, norm) = (random(1, &[300, 200])?, random(2, &[200])?);
        for rows in [40, 400] {
            add(random(0, &[rows, 200])?, &[], &|x| linear(x, &weight, None, None))?;
        }
        add(random(0, &[2, 30, 30, 200])?, &[], &|x| group_norm(x, &norm, &norm, 8, 1e-5, true))?;
        add(random(0, &[900, 200])?, &[], &|x| layer_norm(x, &norm, &norm, 1e-5))?;
        add(random(0, &[2, 150, 200])?, &[], &|x| attention(x, x, x, 4, Mask::Causal))?;
        add(random(0, &[900, 200])?, &[], &geglu)?;
        Ok(all)
    }

    #[test]
    fn bits_do_not_depend_on_the_thread_count() -> Result<()> {
        let bits = |threads: usize| -> Result<Vec<Vec<u32>>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.map_err(|e| Error::invalid(e.to_string()))?;
            let bits = |t: &Tensor| -> Result<Vec<u32>> {
                Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            pool.install(outputs)?.iter().map(bits).collect()
        };
        assert!(bits(1)? == bits(3)?);
        Ok(())
    }
}
