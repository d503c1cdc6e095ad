// Nearest-neighbour enlargement of channels-last pictures; WIDTH channels a thread.

// x (b, h, w, c) -> y (b, height, width, c); `packs` is of y.
extern "C" __global__ void upsample_nearest(const T *x, T *y, int h, int w, int height, int width, int c, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int at = i * WIDTH, channel = at % c, column = at / c % width, row = at / c / width % height, b = at / c / width / height;
    int from = ((b * h + row * h / height) * w + column * w / width) * c + channel;
    store<WIDTH>(y + at, load<WIDTH>(x + from));
}
EXPORT(upsample_nearest)

// The first of `out` places that come from place `at` of `in`.
DEVICE int first_from(int at, int in, int out) { return (at * out + in - 1) / in; }

// g (b, height, width, c) -> gx (b, h, w, c): each pixel's sum over where it went; `packs` is of gx.
extern "C" __global__ void upsample_nearest_backward(const T *g, T *gx, int h, int w, int height, int width, int c, int packs) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    int at = i * WIDTH, channel = at % c, column = at / c % w, row = at / c / w % h, b = at / c / w / h;
    float sum[WIDTH] = {};
    for (int y = first_from(row, h, height); y < first_from(row + 1, h, height); y++)
        for (int x = first_from(column, w, width); x < first_from(column + 1, w, width); x++) {
            auto grads = load<WIDTH>(g + ((b * height + y) * width + x) * c + channel);
            for (int j = 0; j < WIDTH; j++) sum[j] += wide(grads.at[j]);
        }
    Pack<T, WIDTH> out;
    for (int j = 0; j < WIDTH; j++) out.at[j] = narrow<T>(sum[j]);
    store<WIDTH>(gx + at, out);
}
EXPORT(upsample_nearest_backward)
