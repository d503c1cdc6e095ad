// Pointwise non-linearities, WIDTH neighbours a thread.

struct Silu {
    static DEVICE float value(float x) { return x * sigmoid(x); }
    static DEVICE float slope(float x) { return silu_slope(x); }
};
struct Gelu {
    static DEVICE float value(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
    static DEVICE float slope(float x) {
        return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
    }
};
struct QuickGelu {
    static DEVICE float value(float x) { return x * sigmoid(1.702f * x); }
    static DEVICE float slope(float x) { return silu_slope(1.702f * x); }
};

template <class F> DEVICE void forward(const T *x, T *y, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    auto values = load<WIDTH>(x + i * WIDTH);
    for (int j = 0; j < WIDTH; j++) values.at[j] = narrow<T>(F::value(wide(values.at[j])));
    store<WIDTH>(y + i * WIDTH, values);
}

template <class F> DEVICE void backward(const T *x, const T *g, T *gx, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    auto values = load<WIDTH>(x + i * WIDTH), grads = load<WIDTH>(g + i * WIDTH);
    for (int j = 0; j < WIDTH; j++) grads.at[j] = narrow<T>(wide(grads.at[j]) * F::slope(wide(values.at[j])));
    store<WIDTH>(gx + i * WIDTH, grads);
}

extern "C" __global__ void silu(const T *x, T *y, int packs) { forward<Silu>(x, y, packs); }
extern "C" __global__ void gelu(const T *x, T *y, int packs) { forward<Gelu>(x, y, packs); }
extern "C" __global__ void quick_gelu(const T *x, T *y, int packs) { forward<QuickGelu>(x, y, packs); }
extern "C" __global__ void silu_backward(const T *x, const T *g, T *gx, int packs) { backward<Silu>(x, g, gx, packs); }
extern "C" __global__ void gelu_backward(const T *x, const T *g, T *gx, int packs) { backward<Gelu>(x, g, gx, packs); }
extern "C" __global__ void quick_gelu_backward(const T *x, const T *g, T *gx, int packs) {
    backward<QuickGelu>(x, g, gx, packs);
}
EXPORT(silu)
EXPORT(gelu)
EXPORT(quick_gelu)
EXPORT(silu_backward)
EXPORT(gelu_backward)
EXPORT(quick_gelu_backward)

// x (rows, 2 d) -> y (rows, d): the first half times the GELU of the second. `packs` is rows · d / WIDTH.
extern "C" __global__ void geglu(const T *x, T *y, int d, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int at = i * WIDTH / d * d + i * WIDTH; // row · 2 d + column
    auto values = load<WIDTH>(x + at), gates = load<WIDTH>(x + at + d);
    for (int j = 0; j < WIDTH; j++) values.at[j] = narrow<T>(wide(values.at[j]) * Gelu::value(wide(gates.at[j])));
    store<WIDTH>(y + i * WIDTH, values);
}

extern "C" __global__ void geglu_backward(const T *x, const T *g, T *gx, int d, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int at = i * WIDTH / d * d + i * WIDTH;
    auto values = load<WIDTH>(x + at), gates = load<WIDTH>(x + at + d), grads = load<WIDTH>(g + i * WIDTH);
    for (int j = 0; j < WIDTH; j++) {
        float value = wide(values.at[j]), gate = wide(gates.at[j]), grad = wide(grads.at[j]);
        values.at[j] = narrow<T>(grad * Gelu::value(gate));
        gates.at[j] = narrow<T>(grad * value * Gelu::slope(gate));
    }
    store<WIDTH>(gx + at, values);
    store<WIDTH>(gx + at + d, gates);
}
EXPORT(geglu)
EXPORT(geglu_backward)
