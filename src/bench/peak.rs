//! The most this processor can do: multiply-adds on values that never leave its registers.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::ops::cpu::simd;

/// Independent sums: enough to keep every multiplier busy while one addition takes its time, few enough for 16 registers.
const SUMS: usize = 12;
/// Values of a vector register on the widest machines; narrower ones take two.
const LANES: usize = 8;
const ROUNDS: usize = 20_000;

/// 10⁹ f32 operations a second of all threads of the pool: the best of half a second.
pub fn gflops() -> f64 {
    let threads = rayon::current_num_threads();
    let (start, mut best) = (Instant::now(), f64::MAX);
    while start.elapsed() < Duration::from_millis(500) {
        let begin = Instant::now();
        let sums: Vec<f32> = (0..threads).into_par_iter().map(|i| spin(i as f32, ROUNDS)).collect();
        best = best.min(begin.elapsed().as_secs_f64());
        std::hint::black_box(sums);
    }
    (2 * SUMS * LANES * ROUNDS * threads) as f64 / best / 1e9
}

simd! {
    fn spin(seed: f32, rounds: usize) -> f32 {
        let mut sums = [[seed; LANES]; SUMS];
        let (factor, term) = (std::hint::black_box(0.999_9f32), std::hint::black_box(1e-4f32));
        for _ in 0..rounds {
            for sum in &mut sums {
                for x in sum {
                    *x = x.mul_add(factor, term);
                }
            }
        }
        sums.iter().flatten().sum()
    }
}
