// LayerNorm over the last dimension: a warp a row, WIDTH neighbours a lane at a time. The row stays in the cache between passes.

struct Moments {
    float mean, rstd;
};

DEVICE Moments moments(const T *x, int d, float eps) {
    int lane = threadIdx.x % 32;
    float sum = 0;
    for (int i = lane * WIDTH; i < d; i += 32 * WIDTH) {
        auto values = load<WIDTH>(x + i);
        for (int j = 0; j < WIDTH; j++) sum += wide(values.at[j]);
    }
    float mean = warp_sum(sum) / d, squares = 0;
    for (int i = lane * WIDTH; i < d; i += 32 * WIDTH) {
        auto values = load<WIDTH>(x + i);
        for (int j = 0; j < WIDTH; j++) {
            float centred = wide(values.at[j]) - mean;
            squares += centred * centred;
        }
    }
    return {mean, rsqrtf(warp_sum(squares) / d + eps)};
}

extern "C" __global__ void layer_norm(const T *x, const T *weight, const T *bias, T *y, int rows, int d, float eps) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (long long)row * d;
    y += (long long)row * d;
    Moments m = moments(x, d, eps);
    for (int i = lane * WIDTH; i < d; i += 32 * WIDTH) {
        auto values = load<WIDTH>(x + i);
        for (int j = 0; j < WIDTH; j++)
            values.at[j] = narrow<T>((wide(values.at[j]) - m.mean) * m.rstd * wide(weight[i + j]) + wide(bias[i + j]));
        store<WIDTH>(y + i, values);
    }
}
EXPORT(layer_norm)

// gx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)), with ĝ = g w and x̂ the normalised row.
extern "C" __global__ void layer_norm_backward(const T *x, const T *weight, const T *g, T *gx, int rows, int d, float eps) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (long long)row * d;
    g += (long long)row * d;
    gx += (long long)row * d;
    Moments m = moments(x, d, eps);
    float sum = 0, shared = 0;
    for (int i = lane * WIDTH; i < d; i += 32 * WIDTH) {
        auto values = load<WIDTH>(x + i), grads = load<WIDTH>(g + i);
        for (int j = 0; j < WIDTH; j++) {
            float grad = wide(grads.at[j]) * wide(weight[i + j]);
            sum += grad;
            shared += grad * (wide(values.at[j]) - m.mean) * m.rstd;
        }
    }
    sum = warp_sum(sum) / d;
    shared = warp_sum(shared) / d;
    for (int i = lane * WIDTH; i < d; i += 32 * WIDTH) {
        auto values = load<WIDTH>(x + i), grads = load<WIDTH>(g + i);
        for (int j = 0; j < WIDTH; j++) {
            float grad = wide(grads.at[j]) * wide(weight[i + j]), normal = (wide(values.at[j]) - m.mean) * m.rstd;
            grads.at[j] = narrow<T>(m.rstd * (grad - sum - normal * shared));
        }
        store<WIDTH>(gx + i, grads);
    }
}
EXPORT(layer_norm_backward)
