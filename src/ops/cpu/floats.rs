//! Vectors of f32, one implementation for each kind of register: the compiler finds them in loops over arrays only
//! sometimes.

/// Some f32 that one instruction works on.
///
/// # Safety
/// Its functions need a processor that has the instructions, and pointers to as many values as there are lanes.
pub(super) trait Floats: Copy {
    const LANES: usize;
    /// Whether [`plus`](Self::plus) rounds once.
    const FUSED: bool;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// a b + self.
    unsafe fn plus(self, a: Self, b: Self) -> Self;
}

/// What every processor of the architecture has.
#[cfg(target_arch = "aarch64")]
pub(super) type Baseline = std::arch::aarch64::float32x4_t;
/// What every processor of the architecture has.
#[cfg(not(target_arch = "aarch64"))]
pub(super) type Baseline = [f32; 8];

impl Floats for [f32; 8] {
    const LANES: usize = 8;
    const FUSED: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { from.cast::<Self>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { to.cast::<Self>().write(self) }
    }

    #[inline(always)]
    unsafe fn plus(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
        self
    }
}

/// Implements [`Floats`] by four instructions.
macro_rules! floats {
    ($vector:ty, $lanes:literal, $splat:path, $load:path, $store:path, $plus:expr) => {
        impl Floats for $vector {
            const LANES: usize = $lanes;
            const FUSED: bool = true;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: promised by the caller, here and below.
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: as above.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: as above.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn plus(self, a: Self, b: Self) -> Self {
                // SAFETY: as above.
                unsafe { $plus(self, a, b) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::Floats;

    // AVX2 and FMA.
    floats!(__m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, |sum, a, b| _mm256_fmadd_ps(
        a, b, sum
    ));
    // AVX-512 F.
    floats!(__m512, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, |sum, a, b| _mm512_fmadd_ps(
        a, b, sum
    ));
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

    use super::Floats;

    floats!(float32x4_t, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, vfmaq_f32);
}
