// Convolution of channels-last pictures as a matrix product that never makes the matrix: rows are pixels, columns output channels,
// and the depth runs over the kernel's taps and, within a tap, the input's channels, DEEP at a time.
//
// A block of eight warps (4 x 2) makes BM x BN results. Tiles are copied STAGES ahead. With BACKWARD the rows are the input's pixels,
// the columns its channels and the depth runs over taps and output channels: the gradient of the input, by the same weight.

#define THREADS 256
#define DEEP 32
#define PITCH (DEEP + 8)
#define WIDE_PITCH (BN + 8)
#define TILE_A (BM * PITCH)
#define TILE_B (BACKWARD ? DEEP * WIDE_PITCH : BN * PITCH)
#define M_TILES (BM / 64)
#define N_TILES (BN / 16)

struct Sizes {
    // The pictures read, and those written.
    int h, w, from_c, out_h, out_w, out_c;
    int taps, pad_top, pad_left, rows;
};

// A row's pixel.
struct Pixel {
    int picture, y, x;
};

DEVICE Pixel pixel(const Sizes &s, int row) {
    // Rows beyond the last are outside of every picture.
    if (row >= s.rows) return {0, -(1 << 20), 0};
    return {row / s.out_w / s.out_h, row / s.out_w % s.out_h, row % s.out_w};
}

// Where a pixel takes a tap from, or -1.
DEVICE int source(const Sizes &s, Pixel p, int tap) {
    int y, x;
    if (BACKWARD) {
        y = p.y + s.pad_top - tap / KW;
        x = p.x + s.pad_left - tap % KW;
        if (y < 0 || x < 0 || y % STRIDE || x % STRIDE) return -1;
        y /= STRIDE;
        x /= STRIDE;
    } else {
        y = p.y * STRIDE + tap / KW - s.pad_top;
        x = p.x * STRIDE + tap % KW - s.pad_left;
    }
    return y < 0 || x < 0 || y >= s.h || x >= s.w ? -1 : (p.picture * s.h + y) * s.w + x;
}

// Starts copying the operands of one step: a tap and DEEP channels of it. `mine` are the pixels of the rows this thread copies.
DEVICE void send_step(T *tile, const T *x, const T *weight, const Sizes &s, const Pixel (&mine)[BM / 64], int step) {
    int steps_a_tap = (s.from_c + DEEP - 1) / DEEP, tap = step / steps_a_tap, channel = step % steps_a_tap * DEEP;
    int row = threadIdx.x / (DEEP / 8), column = threadIdx.x % (DEEP / 8) * 8;
#pragma unroll
    for (int i = 0; i < BM / 64; i++) {
        int at = source(s, mine[i], tap);
        bool there = at >= 0 && channel + column < s.from_c;
        const T *from = x + (there ? (long long)at * s.from_c + channel + column : 0);
        copy_16(tile + (row + 64 * i) * PITCH + column, from, there);
    }
    tile += TILE_A;
    if (BACKWARD) {
        for (int i = threadIdx.x; i < DEEP * (BN / 8); i += THREADS) {
            int row = i / (BN / 8), column = i % (BN / 8) * 8, o = channel + row, c = blockIdx.y * BN + column;
            bool there = o < s.from_c && c < s.out_c;
            copy_16(tile + row * WIDE_PITCH + column, weight + (there ? ((long long)o * s.taps + tap) * s.out_c + c : 0), there);
        }
    } else {
        for (int i = threadIdx.x; i < BN * (DEEP / 8); i += THREADS) {
            int row = i / (DEEP / 8), column = i % (DEEP / 8) * 8, o = blockIdx.y * BN + row, c = channel + column;
            bool there = o < s.out_c && c < s.from_c;
            copy_16(tile + row * PITCH + column, weight + (there ? ((long long)o * s.taps + tap) * s.from_c + c : 0), there);
        }
    }
}

DEVICE void multiply_step(float (&sum)[M_TILES][N_TILES][4], const T *tile) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const T *a = tile + (warp / 2 * (BM / 4) + lane % 16) * PITCH + lane / 16 * 8, *b = tile + TILE_A;
    int first = warp % 2 * (BN / 2);
    b += BACKWARD ? (lane % 16) * WIDE_PITCH + lane / 16 * 8 + first
                  : (first + lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll
    for (int depth = 0; depth < DEEP; depth += 16) {
        u32 left[M_TILES][4], right[4];
#pragma unroll
        for (int i = 0; i < M_TILES; i++) ldmatrix(left[i], a + i * 16 * PITCH + depth);
#pragma unroll
        for (int j = 0; j < N_TILES / 2; j++) {
            if (BACKWARD)
                ldmatrix_transposed(right, b + depth * WIDE_PITCH + j * 16);
            else
                ldmatrix(right, b + j * 16 * PITCH + depth);
#pragma unroll
            for (int i = 0; i < M_TILES; i++) {
                Mma<T>::run(sum[i][2 * j], left[i], right[0], right[1]);
                Mma<T>::run(sum[i][2 * j + 1], left[i], right[2], right[3]);
            }
        }
    }
}

// Grid (rows / BM, columns / BN, splits). With one split it writes y, plus the bias if there is one; with more, each leaves its
// part of the sum, (splits, rows, columns), for `conv2d_join`.
extern "C" __global__ void __launch_bounds__(THREADS)
    conv2d(const T *x, const T *weight, const T *bias, T *y, float *parts, int h, int w, int from_c, int out_h, int out_w,
           int out_c, int taps, int pad_top, int pad_left, int rows, int has_bias) {
    SHARED_BYTES(raw);
    T *tiles = (T *)raw;
    Sizes s = {h, w, from_c, out_h, out_w, out_c, taps, pad_top, pad_left, rows};
    Pixel mine[BM / 64];
    for (int i = 0; i < BM / 64; i++) mine[i] = pixel(s, blockIdx.x * BM + threadIdx.x / (DEEP / 8) + 64 * i);
    int steps = taps * ((from_c + DEEP - 1) / DEEP), each = (steps + gridDim.z - 1) / gridDim.z;
    int first = blockIdx.z * each, end = min(steps, first + each);
    float sum[M_TILES][N_TILES][4] = {};
    auto send = [&](int step) {
        if (step < end) send_step(tiles + (step - first) % STAGES * (TILE_A + TILE_B), x, weight, s, mine, step);
        copies_sent();
    };
    for (int step = first; step < first + STAGES - 1; step++) send(step);
    for (int step = first; step < end; step++) {
        if (STAGES == 1) send(step);
        copies_arrived<STAGES == 1 ? 0 : STAGES - 2>();
        __syncthreads();
        // Into the buffer all warps were done with before this barrier.
        if (STAGES > 1) send(step + STAGES - 1);
        multiply_step(sum, tiles + (step - first) % STAGES * (TILE_A + TILE_B));
        if (STAGES == 1) __syncthreads();
    }
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < M_TILES; i++)
#pragma unroll
        for (int j = 0; j < N_TILES; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = blockIdx.x * BM + warp / 2 * (BM / 4) + 16 * i + lane / 4 + 8 * half;
                int column = blockIdx.y * BN + warp % 2 * (BN / 2) + 8 * j + 2 * (lane % 4);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    if (row >= rows || column + k >= out_c) continue;
                    float value = sum[i][j][2 * half + k];
                    long long at = (long long)row * out_c + column + k;
                    if (gridDim.z > 1)
                        parts[(long long)blockIdx.z * rows * out_c + at] = value;
                    else
                        y[at] = narrow<T>(value + (has_bias ? wide(bias[column + k]) : 0.0f));
                }
            }
}
EXPORT(conv2d)

// Adds up the parts, always in the same order, and the bias.
extern "C" __global__ void conv2d_join(const float *parts, const T *bias, T *y, int splits, int values, int out_c,
                                       int has_bias) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= values) return;
    float sum = has_bias ? wide(bias[i % out_c]) : 0.0f;
    for (int split = 0; split < splits; split++) sum += parts[(long long)split * values + i];
    y[i] = narrow<T>(sum);
}
EXPORT(conv2d_join)
