//! The same arithmetic on many tensors at once, outside of any graph: what an optimizer does.

mod cuda;

use candle_core::{DType, Tensor, Var};

use super::cuda::card;
use crate::error::Result;

/// A variable with what one step of AdamW reads, all f32, of one shape.
#[derive(Debug)]
pub struct AdamWSlot<'a> {
    /// Changed in place.
    pub var: &'a Var,
    /// This step's gradient.
    pub gradient: &'a Tensor,
    /// The mean of gradients. A card changes it, as the next, in place: it shares its memory with nothing.
    pub m: &'a mut Tensor,
    /// The mean of squared gradients.
    pub v: &'a mut Tensor,
    /// What the learning rate is multiplied by.
    pub rate: f64,
}

/// The numbers of one step, the same for all variables. Gradients are multiplied by `grad_scale`.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// How slowly the mean of gradients forgets.
    pub beta1: f64,
    /// How slowly the mean of their squares forgets.
    pub beta2: f64,
    /// Keeps the division finite.
    pub eps: f64,
    /// How fast values decay towards 0, times the learning rate.
    pub weight_decay: f64,
    /// Before the slots' own factors.
    pub learning_rate: f64,
    /// Accumulation and clipping.
    pub grad_scale: f64,
    /// 1 - beta1ᵏ in step k.
    pub correction1: f64,
    /// √(1 - beta2ᵏ)
    pub correction2: f64,
}

/// One step of AdamW (<https://arxiv.org/abs/1711.05101>), step for step `torch.optim.AdamW`.
///
/// # Errors
/// If a gradient has another shape than its variable.
pub fn adamw(slots: &mut [AdamWSlot<'_>], step: AdamWStep) -> Result<()> {
    let Some(first) = slots.first() else { return Ok(()) };
    if let Some(card) = card(first.var.device())?.filter(|_| slots.iter().all(is_plain)) {
        return cuda::adamw(&*card, slots, step);
    }
    slots.iter_mut().try_for_each(|slot| adamw_composed(slot, step))
}

/// Σ g² of each tensor.
///
/// # Errors
/// If a value cannot be read back.
pub fn squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let plain = |t: &&Tensor| t.dtype() == DType::F32 && t.is_contiguous();
    let sums = match card(first.device())?.filter(|_| tensors.iter().all(plain)) {
        Some(card) => cuda::squares(&*card, tensors)?,
        None => {
            let sums = tensors.iter().map(|t| Ok(t.sqr()?.sum_all()?)).collect::<Result<Vec<_>>>()?;
            Tensor::stack(&sums, 0)?
        }
    };
    let sums: Vec<f32> = sums.to_vec1()?; // one wait for the device
    Ok(sums.into_iter().map(f64::from).collect())
}

fn is_plain(slot: &AdamWSlot<'_>) -> bool {
    let all = [slot.var.as_tensor(), slot.gradient, slot.m, slot.v];
    all.iter().all(|t| t.dtype() == DType::F32 && t.is_contiguous() && t.shape() == slot.var.shape())
}

fn adamw_composed(slot: &mut AdamWSlot<'_>, step: AdamWStep) -> Result<()> {
    let AdamWStep { beta1, beta2, eps, weight_decay, .. } = step;
    let g = (slot.gradient.to_dtype(slot.var.dtype())? * step.grad_scale)?;
    let rate = step.learning_rate * slot.rate;
    let m = ((&*slot.m * beta1)? + (&g * (1.0 - beta1))?)?;
    let v = ((&*slot.v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
    let denominator = ((v.sqrt()? / step.correction2)? + eps)?;
    let decayed = (slot.var.as_tensor().detach() * (1.0 - rate * weight_decay))?;
    slot.var.set(&(decayed - ((&m * (rate / step.correction1))? / denominator)?)?)?;
    (*slot.m, *slot.v) = (m, v);
    Ok(())
}
