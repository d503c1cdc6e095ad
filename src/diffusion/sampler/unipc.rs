//! UniPC (<https://arxiv.org/abs/2302.04867>): a predictor of order 2 whose every look also corrects the step before.
//! diffusers' `UniPCMultistepScheduler` with its defaults (B2, data prediction, lower order at the end).

use candle_core::Tensor;

use super::{
    Walk,
    walk::{lerp, towards},
};
use crate::error::Result;

/// diffusers' `solver_order`.
const ORDER: usize = 2;

/// A look: the level and the clean latents guessed there.
type Look = (f64, Tensor);

pub(super) fn sample(walk: &mut Walk<'_>, mut x: Tensor) -> Result<Tensor> {
    let mut looks: Vec<Look> = Vec::new(); // oldest first
    let mut before: Option<(Tensor, usize)> = None; // x before the last predictor, and that predictor's order
    for i in 0..walk.steps() {
        let (sigma, sigma_next) = walk.pair(i);
        let denoised = walk.denoise(&x, i)?;
        if let Some((x_before, order)) = &before {
            x = correct(x_before, &looks, (sigma, &denoised), *order)?;
        }
        looks.push((sigma, denoised));
        if looks.len() > ORDER {
            looks.remove(0);
        }
        let order = ORDER.min(walk.steps() - i).min(i + 1);
        let predicted = predict(&x, &looks, sigma_next, order)?;
        before = Some((x, order));
        x = predicted;
    }
    Ok(x)
}

/// UniP: from the newest look's level to `sigma_next`.
fn predict(x: &Tensor, looks: &[Look], sigma_next: f64, order: usize) -> Result<Tensor> {
    let [older @ .., newest] = looks else { return Ok(x.clone()) };
    let (sigma, m0) = newest;
    let x_next = towards(x, m0, *sigma, sigma_next)?;
    match older.last() {
        Some(older) if order >= 2 && sigma_next > 0.0 => {
            let (d1, _) = slope(older, newest, sigma_next)?;
            let b_h = sigma_next / sigma - 1.0; // expm1(−h)
            lerp(&x_next, 1.0, &d1, -0.5 * b_h)
        }
        _ => Ok(x_next),
    }
}

/// UniC: the step to `this` level again, now that the network has looked there.
fn correct(x: &Tensor, looks: &[Look], this: (f64, &Tensor), order: usize) -> Result<Tensor> {
    let (sigma, m_t) = this;
    let [older @ .., newest] = looks else { return Ok(x.clone()) };
    let (sigma_0, m0) = newest;
    let x_t = towards(x, m0, *sigma_0, sigma)?;
    let d1_t = (m_t - m0)?;
    let b_h = sigma / sigma_0 - 1.0;
    let Some(older) = older.last().filter(|_| order >= 2) else {
        return lerp(&x_t, 1.0, &d1_t, -0.5 * b_h);
    };
    // Solve [1 1; r 1] ρ = b for the two weights; hh = −h.
    let (d1, r) = slope(older, newest, sigma)?;
    let hh = (sigma / sigma_0).ln();
    let phi_2 = b_h / hh - 1.0;
    let phi_3 = phi_2 / hh - 0.5;
    let (b1, b2) = (phi_2 / b_h, 2.0 * phi_3 / b_h);
    let rho_1 = (b1 - b2) / (1.0 - r);
    let rho_2 = b1 - rho_1;
    let residual = lerp(&d1, rho_1, &d1_t, rho_2)?;
    lerp(&x_t, 1.0, &residual, -b_h)
}

/// D1 = (m₋₁ − m₀) / r and r = (λ₋₁ − λ₀) / h of the two newest looks, for a step to `sigma_next`.
fn slope(older: &Look, newest: &Look, sigma_next: f64) -> Result<(Tensor, f64)> {
    let ((sigma_1, m1), (sigma_0, m0)) = (older, newest);
    let r = (sigma_1 / sigma_0).ln() / (sigma_next / sigma_0).ln();
    Ok((((m1 - m0)? * (1.0 / r))?, r))
}
