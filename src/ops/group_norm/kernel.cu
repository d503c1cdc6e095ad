// GroupNorm (and SiLU) on channels-last pictures (b, area, c): `groups` groups of neighbouring channels.
//
// A block takes a strip of a picture's pixels and all of its channels. First every strip leaves two sums a group; then every
// strip adds up those of its picture, always in the same order, and writes its pixels.

// Σ a and Σ b of the values of each group in a strip: 2 a group into `out`. A thread has WIDTH channels of every
// `rows`-th pixel. `sums` holds 2 c floats a row.
template <class Each> DEVICE void strip_sums(float *sums, float *out, int c, int groups, int pixels, Each each) {
    int columns = c / WIDTH, rows = max(1, (int)blockDim.x / columns);
    for (int i = threadIdx.x; i < rows * columns; i += blockDim.x) {
        int channel = i % columns * WIDTH;
        float a[WIDTH] = {}, b[WIDTH] = {};
        for (int pixel = i / columns; pixel < pixels; pixel += rows) each(pixel, channel, a, b);
        float *to = sums + i / columns * 2 * c + channel;
        for (int j = 0; j < WIDTH; j++) {
            to[j] = a[j];
            to[c + j] = b[j];
        }
    }
    __syncthreads();
    int width = c / groups;
    for (int i = threadIdx.x; i < 2 * groups; i += blockDim.x) {
        float sum = 0;
        for (int row = 0; row < rows; row++)
            for (int j = 0; j < width; j++) sum += sums[(2 * row + i % 2) * c + i / 2 * width + j];
        out[i] = sum;
    }
}

// The sums of all strips of this block's picture: 2 a group, in shared memory.
DEVICE void picture_sums(float *sums, const float *partial, int groups) {
    partial += (long long)blockIdx.y * gridDim.x * 2 * groups;
    for (int i = threadIdx.x; i < 2 * groups; i += blockDim.x) {
        float sum = 0;
        for (int strip = 0; strip < gridDim.x; strip++) sum += partial[strip * 2 * groups + i];
        sums[i] = sum;
    }
    __syncthreads();
}

// This block's strip: its first pixel, counted over all pictures, and how many.
struct Strip {
    long long first;
    int pixels;
};
DEVICE Strip strip(int area, int height) {
    int first = blockIdx.x * height;
    return {(long long)blockIdx.y * area + first, min(height, area - first)};
}

// Grid (strips, pictures); shared: 2 c floats a row of threads. Sums are of values less the group's first one: no cancellation.
extern "C" __global__ void group_norm_sums(const T *x, float *partial, int area, int c, int groups, int height) {
    SHARED_BYTES(raw);
    Strip s = strip(area, height);
    const T *picture = x + (long long)blockIdx.y * area * c, *from = x + s.first * c;
    int width = c / groups;
    float *out = partial + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 2 * groups;
    strip_sums((float *)raw, out, c, groups, s.pixels, [&](int pixel, int i, float(&a)[WIDTH], float(&b)[WIDTH]) {
        auto values = load<WIDTH>(from + (long long)pixel * c + i);
        for (int j = 0; j < WIDTH; j++) {
            float value = wide(values.at[j]) - wide(picture[(i + j) / width * width]);
            a[j] += value;
            b[j] += value * value;
        }
    });
}
EXPORT(group_norm_sums)

// Grid (strips, pictures); shared: 2 groups + 2 c floats. Writes y, and mean and 1/σ of each group for the backward pass.
extern "C" __global__ void group_norm(const T *x, const T *weight, const T *bias, const float *partial, float *moments,
                                      T *y, int area, int c, int groups, int height, float eps, int then_silu) {
    SHARED_BYTES(raw);
    float *sums = (float *)raw, *scale = sums + 2 * groups, *shift = scale + c;
    int width = c / groups;
    const T *picture = x + (long long)blockIdx.y * area * c;
    picture_sums(sums, partial, groups);
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        int group = i / width;
        float count = (float)area * width, off = sums[2 * group] / count;
        float mean = wide(picture[group * width]) + off;
        float rstd = rsqrtf(fmaxf(sums[2 * group + 1] / count - off * off, 0.0f) + eps);
        scale[i] = rstd * wide(weight[i]);
        shift[i] = wide(bias[i]) - mean * scale[i];
        if (blockIdx.x == 0 && i % width == 0) {
            moments[(blockIdx.y * groups + group) * 2] = mean;
            moments[(blockIdx.y * groups + group) * 2 + 1] = rstd;
        }
    }
    __syncthreads();
    Strip s = strip(area, height);
    for (long long i = (long long)threadIdx.x * WIDTH; i < (long long)s.pixels * c; i += blockDim.x * WIDTH) {
        auto values = load<WIDTH>(x + s.first * c + i);
        int channel = i % c;
        for (int j = 0; j < WIDTH; j++) {
            float u = wide(values.at[j]) * scale[channel + j] + shift[channel + j];
            values.at[j] = narrow<T>(then_silu ? u * sigmoid(u) : u);
        }
        store<WIDTH>(y + s.first * c + i, values);
    }
}
EXPORT(group_norm)

// x̂ and ĝ = g y'(u) w of a value.
struct Local {
    float normal, grad;
};
DEVICE Local local(float x, float g, const float *moments, float weight, float bias, int then_silu) {
    float normal = (x - moments[0]) * moments[1];
    if (then_silu) g *= silu_slope(normal * weight + bias);
    return {normal, g * weight};
}

// Σ ĝ and Σ ĝ x̂; grid and shared memory as group_norm_sums.
extern "C" __global__ void group_norm_backward_sums(const T *x, const T *g, const T *weight, const T *bias,
                                                    const float *moments, float *partial, int area, int c, int groups,
                                                    int height, int then_silu) {
    SHARED_BYTES(raw);
    Strip s = strip(area, height);
    int width = c / groups;
    const float *m = moments + blockIdx.y * groups * 2;
    float *out = partial + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 2 * groups;
    strip_sums((float *)raw, out, c, groups, s.pixels, [&](int pixel, int i, float(&a)[WIDTH], float(&b)[WIDTH]) {
        long long at = (s.first + pixel) * c + i;
        auto values = load<WIDTH>(x + at), grads = load<WIDTH>(g + at);
        for (int j = 0; j < WIDTH; j++) {
            int k = i + j;
            Local l = local(wide(values.at[j]), wide(grads.at[j]), m + k / width * 2, wide(weight[k]), wide(bias[k]), then_silu);
            a[j] += l.grad;
            b[j] += l.grad * l.normal;
        }
    });
}
EXPORT(group_norm_backward_sums)

// gx = rstd (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)); grid (strips, pictures); shared: 2 groups floats.
extern "C" __global__ void group_norm_backward(const T *x, const T *g, const T *weight, const T *bias,
                                               const float *moments, const float *partial, T *gx, int area, int c, int groups,
                                               int height, int then_silu) {
    SHARED_BYTES(raw);
    float *sums = (float *)raw;
    picture_sums(sums, partial, groups);
    Strip s = strip(area, height);
    int width = c / groups;
    float count = (float)area * width;
    const float *m = moments + blockIdx.y * groups * 2;
    for (long long i = (long long)threadIdx.x * WIDTH; i < (long long)s.pixels * c; i += blockDim.x * WIDTH) {
        auto values = load<WIDTH>(x + s.first * c + i), grads = load<WIDTH>(g + s.first * c + i);
        int channel = i % c;
        for (int j = 0; j < WIDTH; j++) {
            int k = channel + j, group = k / width;
            Local l = local(wide(values.at[j]), wide(grads.at[j]), m + group * 2, wide(weight[k]), wide(bias[k]), then_silu);
            float mean = sums[2 * group] / count, shared = sums[2 * group + 1] / count;
            grads.at[j] = narrow<T>(m[group * 2 + 1] * (l.grad - mean - l.normal * shared));
        }
        store<WIDTH>(gx + s.first * c + i, grads);
    }
}
EXPORT(group_norm_backward)
