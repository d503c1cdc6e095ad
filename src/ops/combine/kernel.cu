// Sums, and channels side by side; WIDTH neighbours a thread.

extern "C" __global__ void add(const T *a, const T *b, T *y, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    auto left = load<WIDTH>(a + i * WIDTH), right = load<WIDTH>(b + i * WIDTH);
    for (int j = 0; j < WIDTH; j++) left.at[j] = narrow<T>(wide(left.at[j]) + wide(right.at[j]));
    store<WIDTH>(y + i * WIDTH, left);
}
EXPORT(add)

// x (pictures, area, c) + t (pictures, c); `picture` is area · c. With one picture: a bias on every row.
extern "C" __global__ void add_per_picture(const T *x, const T *t, T *y, int picture, int c, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int at = i * WIDTH;
    auto values = load<WIDTH>(x + at), added = load<WIDTH>(t + at / picture * c + at % c);
    for (int j = 0; j < WIDTH; j++) values.at[j] = narrow<T>(wide(values.at[j]) + wide(added.at[j]));
    store<WIDTH>(y + at, values);
}
EXPORT(add_per_picture)

// g (pictures, area, c) -> Σ over the area (pictures, c). Grid (channels / 32, pictures), 256 threads, shared: 256 floats.
extern "C" __global__ void sum_over_area(const T *g, T *sum, int area, int c) {
    SHARED_BYTES(raw);
    float *parts = (float *)raw;
    int lane = threadIdx.x % 32, channel = blockIdx.x * 32 + lane;
    float part = 0;
    if (channel < c)
        for (int pixel = threadIdx.x / 32; pixel < area; pixel += 8)
            part += wide(g[((long long)blockIdx.y * area + pixel) * c + channel]);
    parts[threadIdx.x] = part;
    __syncthreads();
    if (threadIdx.x >= 32 || channel >= c) return;
    for (int i = 1; i < 8; i++) part += parts[32 * i + lane];
    sum[blockIdx.y * c + channel] = narrow<T>(part);
}
EXPORT(sum_over_area)

// Rows of c values beside rows of d values: (rows, c + d). `packs` is rows · (c + d) / WIDTH.
extern "C" __global__ void concat(const T *a, const T *b, T *y, int c, int d, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int row = i * WIDTH / (c + d), column = i * WIDTH % (c + d);
    store<WIDTH>(y + i * WIDTH, load<WIDTH>(column < c ? a + row * c + column : b + row * d + column - c));
}
EXPORT(concat)

// The other way.
extern "C" __global__ void split(const T *y, T *a, T *b, int c, int d, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int row = i * WIDTH / (c + d), column = i * WIDTH % (c + d);
    store<WIDTH>(column < c ? a + row * c + column : b + row * d + column - c, load<WIDTH>(y + i * WIDTH));
}
EXPORT(split)
