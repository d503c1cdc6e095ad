// One launch for many small tensors in f32. Their addresses are in a table on the card; a tensor is blockIdx.y's.

#define CHUNK 2048

struct Addresses {
    float *value;
    const float *gradient;
    float *m, *v;
    long long count;
};

DEVICE Addresses addresses(const long long *table) {
    table += 5 * blockIdx.y;
    return {(float *)table[0], (const float *)table[1], (float *)table[2], (float *)table[3], table[4]};
}

// AdamW (https://arxiv.org/abs/1711.05101), in place. Grid (longest / CHUNK, tensors); rates: a factor of the learning rate each.
extern "C" __global__ void adamw(const long long *table, const float *rates, float learning_rate, float scale, float beta1,
                                 float beta2, float eps, float weight_decay, float correction1, float correction2) {
    Addresses a = addresses(table);
    float rate = learning_rate * rates[blockIdx.y];
    long long first = (long long)blockIdx.x * CHUNK, end = first + CHUNK < a.count ? first + CHUNK : a.count;
    for (long long i = first + threadIdx.x; i < end; i += blockDim.x) {
        float g = a.gradient[i] * scale, m = a.m[i] * beta1 + g * (1.0f - beta1), v = a.v[i] * beta2 + g * g * (1.0f - beta2);
        float decayed = a.value[i] * (1.0f - rate * weight_decay);
        a.value[i] = decayed - rate / correction1 * m / (sqrtf(v) / correction2 + eps);
        a.m[i] = m;
        a.v[i] = v;
    }
}
EXPORT(adamw)

// Σ g² of each tensor. Grid (1, tensors), 256 threads, shared: 8 floats.
extern "C" __global__ void squares(const long long *table, float *sums) {
    SHARED_BYTES(raw);
    float *parts = (float *)raw, sum = 0;
    Addresses a = addresses(table);
    for (long long i = threadIdx.x; i < a.count; i += blockDim.x) sum += a.gradient[i] * a.gradient[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < 8; i++) sum += parts[i];
    sums[blockIdx.y] = sum;
}
EXPORT(squares)
