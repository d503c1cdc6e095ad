// What every kernel stands on: element types, packs, reductions. Also compiled for the processor, by emulator.h.
// T is the element type of the activations: f32, bf16 or f16. All arithmetic is in float.

typedef unsigned short u16;
typedef unsigned int u32;

#ifdef SCUMBLE_EMULATED
#include "emulator.h"
#else
#define DEVICE __device__ __forceinline__
// The kernel can be found by its name. (The emulator makes an entry for it.)
#define EXPORT(kernel)
// The block's memory, as long as the launch says.
#define SHARED_BYTES(name) extern __shared__ __align__(128) unsigned char name[]
#endif

struct __align__(2) bf16 { u16 bits; };
struct __align__(2) f16 { u16 bits; };
typedef float f32;

DEVICE float wide(f32 x) { return x; }
DEVICE float wide(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
DEVICE float wide(f16 x) {
#ifdef SCUMBLE_EMULATED
    return emulated_f16_to_float(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// To nearest, ties to even.
template <class E> DEVICE E narrow(float x);
template <> DEVICE f32 narrow<f32>(float x) { return x; }
template <> DEVICE bf16 narrow<bf16>(float x) {
#if !defined(SCUMBLE_EMULATED) && __CUDA_ARCH__ >= 800
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    u32 bits = __float_as_uint(x);
    u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return bf16{u16((bits & 0x7fffffff) > 0x7f800000 ? ((bits >> 16) | 0x40) : rounded)};
#endif
}
template <> DEVICE f16 narrow<f16>(float x) {
#ifdef SCUMBLE_EMULATED
    return f16{emulated_float_to_f16(x)};
#else
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

// N neighbours, moved by one instruction.
template <class E, int N> struct __align__(sizeof(E) * N) Pack { E at[N]; };
template <int N, class E> DEVICE Pack<E, N> load(const E *from) { return *(const Pack<E, N> *)from; }
template <int N, class E> DEVICE void store(E *to, const Pack<E, N> &pack) { *(Pack<E, N> *)to = pack; }

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
DEVICE float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

#define FULL_WARP 0xffffffffu
#define MINUS_INFINITY __uint_as_float(0xff800000u)

DEVICE float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}
