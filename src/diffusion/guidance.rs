//! Classifier-free guidance (<https://arxiv.org/abs/2207.12598>): both halves in one batch.

use candle_core::{D, DType, Tensor};

use super::Model;
use crate::error::Result;

/// Which conditioning the rows of a batch need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// The first half of the batch takes the negative prompt, the second half the prompt.
    NegativeThenPositive,
    /// Every row takes the prompt.
    Positive,
}

/// How strongly the prompt pulls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// 1 leaves the prediction alone and skips the negative half: twice as fast.
    pub scale: f64,
    /// 0 is off; 0.7 suits models with zero terminal SNR, which guidance over-exposes (section 3.4 of
    /// <https://arxiv.org/abs/2305.08891>).
    pub rescale: f64,
}

impl Default for Guidance {
    fn default() -> Self {
        Self { scale: 1.0, rescale: 0.0 }
    }
}

impl Guidance {
    /// Asks the model once and combines what both halves said.
    ///
    /// # Shapes
    /// - `x`: (b, h, w, c), already scaled for the network → (b, h, w, c) f32
    ///
    /// # Errors
    /// Whatever the model returns.
    pub fn predict(&self, model: &mut dyn Model, x: &Tensor, timestep: f64) -> Result<Tensor> {
        if self.scale == 1.0 {
            return Ok(model.predict(x, timestep, Rows::Positive)?.to_dtype(DType::F32)?);
        }
        let both = Tensor::cat(&[x, x], 0)?; // (2b, h, w, c)
        let output = model.predict(&both, timestep, Rows::NegativeThenPositive)?.to_dtype(DType::F32)?;
        let b = x.dim(0)?;
        self.combine(&output.narrow(0, 0, b)?, &output.narrow(0, b, b)?)
    }

    /// negative + scale · (positive − negative), pulled back towards the positive half's spread by `rescale`.
    fn combine(&self, negative: &Tensor, positive: &Tensor) -> Result<Tensor> {
        let guided = (negative + ((positive - negative)? * self.scale)?)?;
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let ratio = (spread(positive)? / spread(&guided)?)?; // (b, 1)
        let ratio = ((ratio * self.rescale)? + (1.0 - self.rescale))?;
        let mut shape = vec![1; guided.rank()];
        shape[0] = guided.dim(0)?;
        Ok(guided.broadcast_mul(&ratio.reshape(shape)?)?)
    }
}

/// The standard deviation of each picture.
fn spread(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(1)?.var_keepdim(D::Minus1)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    struct Fixed(Vec<f32>, Vec<Rows>);

    impl Model for Fixed {
        fn predict(&mut self, x: &Tensor, _: f64, rows: Rows) -> Result<Tensor> {
            self.1.push(rows);
            Ok(Tensor::from_slice(&self.0[..x.elem_count()], x.shape(), &Device::Cpu)?)
        }
    }

    #[test]
    fn scale_one_skips_the_negative_half() -> Result<()> {
        let x = Tensor::zeros((1, 1, 1, 2), DType::F32, &Device::Cpu)?;
        let mut model = Fixed(vec![1.0, 3.0, 2.0, 7.0], vec![]);
        let plain = Guidance::default().predict(&mut model, &x, 0.0)?.flatten_all()?.to_vec1::<f32>()?;
        let guidance = Guidance { scale: 3.0, rescale: 0.0 };
        let guided = guidance.predict(&mut model, &x, 0.0)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!((plain, guided), (vec![1.0, 3.0], vec![4.0, 15.0]));
        assert_eq!(model.1, [Rows::Positive, Rows::NegativeThenPositive]);
        let full = Guidance { scale: 3.0, rescale: 1.0 }.predict(&mut model, &x, 0.0)?;
        let spread = |t: &Tensor| -> Result<f32> { Ok(spread(t)?.flatten_all()?.to_vec1::<f32>()?[0]) };
        let positive = Tensor::new(&[[2f32, 7.0]], &Device::Cpu)?;
        assert!(
            (spread(&full)? - spread(&positive)?).abs() < 1e-5,
            "rescale 1 keeps the positive half's spread"
        );
        Ok(())
    }
}
