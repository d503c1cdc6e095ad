//! The same on a card: one launch for all of them.

use candle_core::{DType, Device, Tensor};

use super::{AdamWSlot, AdamWStep};
use crate::{
    error::Result,
    ops::cuda::{Arg, Card, Kernel, Launch, Module},
};

static MODULE: Module = Module { name: "foreach", source: include_str!("kernel.cu"), tensor_cores: false };

/// As in the kernels: values a block, its threads, addresses a tensor.
const CHUNK: usize = 2048;
const THREADS: usize = 256;
const ADDRESSES: usize = 5;

/// In place.
pub(super) fn adamw(card: &dyn Card, slots: &[AdamWSlot<'_>], step: AdamWStep) -> Result<()> {
    let device = slots[0].var.device().clone();
    let longest = slots.iter().map(|slot| slot.var.elem_count()).max().unwrap_or(0);
    let rates: Vec<f32> = slots.iter().map(|slot| slot.rate as f32).collect();
    let rates = Tensor::new(rates, &device)?;
    let mut rows = Vec::with_capacity(slots.len());
    for slot in slots.iter() {
        rows.push([slot.var.as_tensor(), slot.gradient, &*slot.m, &*slot.v].map(Clone::clone));
    }
    let table = table(card, &rows, &device)?;
    let numbers = [
        step.learning_rate,
        step.grad_scale,
        step.beta1,
        step.beta2,
        step.eps,
        step.weight_decay,
        step.correction1,
        step.correction2,
    ];
    let args = [&table, &rates].map(Arg::Tensor).into_iter().chain(numbers.map(Arg::Float));
    card.launch(&Launch {
        kernel: kernel("adamw"),
        grid: [longest.div_ceil(CHUNK), slots.len(), 1],
        threads: THREADS,
        shared_bytes: 0,
        args: &args.collect::<Vec<_>>(),
    })
}

/// Σ g² of each tensor: (tensors)
pub(super) fn squares(card: &dyn Card, tensors: &[&Tensor]) -> Result<Tensor> {
    let rows: Vec<[Tensor; 4]> = tensors.iter().map(|t| [*t, t, t, t].map(Clone::clone)).collect();
    let table = table(card, &rows, tensors[0].device())?;
    let sums = card.empty(&tensors.len().into(), DType::F32)?;
    card.launch(&Launch {
        kernel: kernel("squares"),
        grid: [1, tensors.len(), 1],
        threads: THREADS,
        shared_bytes: 4 * THREADS / 32,
        args: &[Arg::Tensor(&table), Arg::Tensor(&sums)],
    })?;
    Ok(sums)
}

/// Value, gradient and moments of each tensor, and how many numbers it has.
fn table(card: &dyn Card, rows: &[[Tensor; 4]], device: &Device) -> Result<Tensor> {
    let mut table = Vec::with_capacity(ADDRESSES * rows.len());
    for row in rows {
        for t in row {
            table.push(card.address(t)?.cast_signed());
        }
        table.push(row[0].elem_count() as i64);
    }
    Ok(Tensor::new(table, device)?)
}

fn kernel(function: &'static str) -> Kernel<'static> {
    Kernel { module: &MODULE, function, dtype: DType::F32, constants: &[] }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use candle_core::Var;

    use super::{super::adamw_composed, *};
    use crate::ops::{
        cuda::emulated::emulator,
        testing::{close, random},
    };

    #[test]
    fn kernels_equal_plain_candle() -> Result<()> {
        let Some(card) = emulator(1, 80) else { return Ok(()) };
        let shapes = [vec![3, 7], vec![50, 90], vec![1]];
        let vars = || -> Result<Vec<Var>> {
            shapes.iter().enumerate().map(|(i, s)| Ok(Var::from_tensor(&random(i as u64, s)?)?)).collect()
        };
        let zero = |shape: &Vec<usize>| Tensor::zeros(shape.clone(), DType::F32, &Device::Cpu);
        let moments = || shapes.iter().map(zero).collect::<Result<Vec<_>, _>>();
        let (ours, theirs) = (vars()?, vars()?);
        let (mut m, mut m2, mut v, mut v2) = (moments()?, moments()?, moments()?, moments()?);
        for round in 1..4 {
            let step = AdamWStep {
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-6,
                weight_decay: 0.1,
                learning_rate: 0.05,
                grad_scale: 0.7,
                correction1: 1.0 - 0.9f64.powi(round),
                correction2: (1.0 - 0.99f64.powi(round)).sqrt(),
            };
            let gradients: Vec<Tensor> = shapes
                .iter()
                .enumerate()
                .map(|(i, s)| random(100 * round as u64 + i as u64, s))
                .collect::<Result<_>>()?;
            adamw(&card, &slots(&ours, &gradients, &mut m, &mut v), step)?;
            for slot in &mut slots(&theirs, &gradients, &mut m2, &mut v2) {
                adamw_composed(slot, step)?;
            }
            let sums = squares(&card, &gradients.iter().collect::<Vec<_>>())?.to_vec1::<f32>()?;
            for (sum, g) in sums.into_iter().zip(&gradients) {
                close(&Tensor::new(sum, &Device::Cpu)?, &g.sqr()?.sum_all()?, 1e-5)?;
            }
        }
        for (found, expected) in ours.iter().zip(&theirs) {
            close(found, expected, 1e-5)?;
        }
        m.iter()
            .chain(&v)
            .zip(m2.iter().chain(&v2))
            .try_for_each(|(found, expected)| close(found, expected, 1e-5))
    }

    fn slots<'a>(
        vars: &'a [Var],
        gradients: &'a [Tensor],
        m: &'a mut [Tensor],
        v: &'a mut [Tensor],
    ) -> Vec<AdamWSlot<'a>> {
        let rates = [1.0, 0.5, 2.0];
        vars.iter()
            .zip(gradients)
            .zip(m.iter_mut().zip(v))
            .zip(rates)
            .map(|(((var, gradient), (m, v)), rate)| AdamWSlot { var, gradient, m, v, rate })
            .collect()
    }
}
