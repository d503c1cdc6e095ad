//! Several compilations of one function, the best one chosen at run time.

use std::sync::OnceLock;

use super::Numbers;

/// Which vector instructions are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, DQ and BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same and products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// The best this processor has, or less if `SCUMBLE_SIMD` (`portable`, `avx2` or `avx512`) says so; `dot` is for
/// [`dot`](super::dot()).
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let most = match std::env::var("SCUMBLE_SIMD").as_deref() {
            Ok("portable") => Some(Level::Portable),
            #[cfg(target_arch = "x86_64")]
            Ok("avx2") => Some(Level::Avx2),
            #[cfg(target_arch = "x86_64")]
            Ok("avx512") => Some(Level::Avx512),
            _ => None,
        };
        most.map_or(found(), |most| most.min(found()))
    })
}

#[cfg(target_arch = "x86_64")]
fn found() -> Level {
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return Level::Portable;
    }
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw");
    if !wide {
        return Level::Avx2;
    }
    if is_x86_feature_detected!("avx512bf16") { Level::Avx512Bf16 } else { Level::Avx512 }
}

#[cfg(not(target_arch = "x86_64"))]
fn found() -> Level {
    Level::Portable
}

/// Defines functions whose bodies are also compiled for AVX2 + FMA and AVX-512; the call picks what [`level`] found.
/// The loops are plain Rust, vectorised by the compiler; other architectures use their baseline. Bodies may ask the
/// constant `FMA` whether multiply and add come in one.
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match $crate::ops::cpu::level() {
                    $crate::ops::cpu::Level::Avx512 | $crate::ops::cpu::Level::Avx512Bf16 => {
                        // SAFETY: the processor has every feature the function is compiled for.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::ops::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::cpu::Level::Portable => {}
                }
            }
            // Every AArch64 processor multiplies and adds in one.
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    )*};
}
pub(crate) use simd;

/// Asks for numbers that are needed soon.
#[inline]
pub(crate) fn prefetch(numbers: Numbers<'_>) {
    match numbers {
        Numbers::F32(values) => prefetch_lines(values),
        Numbers::F16(values) => prefetch_lines(values),
        Numbers::Bf16(values) => prefetch_lines(values),
    }
}

#[inline]
fn prefetch_lines<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        /// Bytes of a cache line.
        const LINE: usize = 64;
        let lines = values.chunks(LINE / size_of::<T>()).filter_map(<[T]>::first).chain(values.last());
        for value in lines {
            // SAFETY: a prefetch reads nothing, and the address is a value's.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}
