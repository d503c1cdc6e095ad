//! Sixteen pairs of bf16 by sixteen pairs, added to sixteen sums: by instruction, or as it does it.

use half::bf16;

use super::{
    pairs::{Pair, pair_of},
    panels::LANES,
};

/// What multiplies sixteen pairs by sixteen pairs.
///
/// # Safety
/// Its functions need a processor that has what the implementation says, and pointers to as many values as they say.
pub(super) trait Products {
    /// Sixteen pairs.
    type Pairs: Copy;
    /// Sixteen f32.
    type Sums: Copy;

    unsafe fn zeros() -> Self::Sums;
    /// Sixteen pairs.
    unsafe fn load(pairs: *const Pair) -> Self::Pairs;
    /// One pair, sixteen times.
    unsafe fn repeat(pair: *const bf16) -> Self::Pairs;
    /// To each sum both products of its pairs.
    unsafe fn add(sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums;
    unsafe fn store(sums: Self::Sums, to: &mut [f32; LANES]);
}

/// AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
pub(super) struct Instruction;

#[cfg(target_arch = "x86_64")]
mod instruction {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Instruction, LANES, Pair, Products, bf16};

    impl Products for Instruction {
        type Pairs = __m512bh;
        type Sums = __m512;

        #[inline(always)]
        unsafe fn zeros() -> __m512 {
            // SAFETY: promised by the caller, here and below.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load(pairs: *const Pair) -> __m512bh {
            // SAFETY: as above; both types are 512 bits.
            unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(pairs.cast())) }
        }

        #[inline(always)]
        unsafe fn repeat(pair: *const bf16) -> __m512bh {
            // SAFETY: as above.
            unsafe {
                let pair = pair.cast::<i32>().read_unaligned();
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair))
            }
        }

        #[inline(always)]
        unsafe fn add(sums: __m512, a: __m512bh, b: __m512bh) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_dpbf16_ps(sums, a, b) }
        }

        #[inline(always)]
        unsafe fn store(sums: __m512, to: &mut [f32; LANES]) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sums) }
        }
    }
}

/// What the instruction does, for any processor.
pub(super) struct Emulated;

impl Products for Emulated {
    type Pairs = [Pair; LANES];
    type Sums = [f32; LANES];

    #[inline(always)]
    unsafe fn zeros() -> Self::Sums {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn load(pairs: *const Pair) -> Self::Pairs {
        // SAFETY: promised by the caller.
        unsafe { pairs.cast::<Self::Pairs>().read() }
    }

    #[inline(always)]
    unsafe fn repeat(pair: *const bf16) -> Self::Pairs {
        // SAFETY: promised by the caller.
        let [first, second] = unsafe { pair.cast::<[bf16; 2]>().read() };
        [pair_of(first, second); LANES]
    }

    #[inline(always)]
    unsafe fn add(mut sums: Self::Sums, a: Self::Pairs, b: Self::Pairs) -> Self::Sums {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = add_products(*sum, a, b);
        }
        sums
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, to: &mut [f32; LANES]) {
        *to = sums;
    }
}

/// As Intel's manual describes `vdpbf16ps`: the second numbers' product is added first; each addition is rounded once, to
/// nearest even; denormal operands and sums count as zero.
#[inline(always)]
fn add_products(sum: f32, a: Pair, b: Pair) -> f32 {
    let first = |pair: Pair| flushed(f32::from_bits(pair << 16));
    let second = |pair: Pair| flushed(f32::from_bits(pair & 0xffff_0000));
    let sum = flushed(second(a).mul_add(second(b), flushed(sum)));
    flushed(first(a).mul_add(first(b), sum))
}

#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(first: f32, second: f32) -> Pair {
        pair_of(bf16::from_f32(first), bf16::from_f32(second))
    }

    #[test]
    fn the_emulation_rounds_after_each_product_and_flushes_denormals() {
        let large = 4096.0; // 2^24 = large²; 2^24 + 1 is no f32
        assert_eq!(add_products(1.0, pair(-large, large), pair(large, large)), 0.0);
        assert_eq!(add_products(1.0, pair(large, -large), pair(large, large)), 1.0);
        assert_eq!(add_products(0.5, pair(3.0, 5.0), pair(7.0, -2.0)), 11.5);
        let tiny = f32::MIN_POSITIVE;
        assert_eq!(add_products(0.0, pair(tiny / 2.0, 0.0), pair(large, 0.0)), 0.0);
        assert_eq!(add_products(tiny, pair(-tiny, 0.0), pair(0.5, 0.0)), 0.0);
        assert_eq!(add_products(tiny, pair(tiny, 0.0), pair(0.5, 0.0)), tiny * 1.5);
        assert!(add_products(1.0, pair(f32::INFINITY, 1.0), pair(0.0, 1.0)).is_nan());
    }
}
