// The low-rank side of a linear layer: thin products that read what is wide once. The branch is f32 and stays so in memory.
//
// RANKS is the rank rounded up to 8, divided by 8. The frozen product is cuBLAS's.

// Eight neighbours as two fragments take them: the order of the depth is free, as long as both sides agree.
DEVICE void load_8(u32 (&to)[4], const T *from, bool there) {
    Pack<u32, 4> values = there ? load<4>((const u32 *)from) : Pack<u32, 4>{};
    for (int i = 0; i < 4; i++) to[i] = values.at[i];
}

// z (rows, r) = scale ⊙ (x (rows, depth) · B), in f32. B is the branch's down (r, depth), or, if UP, its up (depth, r).
// Grid (rows / 16), 8 warps: each takes every eighth part of the depth.  shared: 8 · 16 · 8 RANKS floats
extern "C" __global__ void __launch_bounds__(256)
    rank_product(const T *x, const float *branch, const float *scale, float *z, int rows, int depth, int r) {
    SHARED_BYTES(raw);
    float *parts = (float *)raw;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x * 16 + lane / 4, t = lane % 4;
    float sum[RANKS][4] = {};
    for (int at = warp * 32 + 8 * t; at - 8 * t < depth; at += 256) {
        bool there = at < depth;
        u32 upper[4], lower[4];
        load_8(upper, x + (long long)row * depth + at, there && row < rows);
        load_8(lower, x + (long long)(row + 8) * depth + at, there && row + 8 < rows);
        u32 first[4] = {upper[0], lower[0], upper[1], lower[1]}, second[4] = {upper[2], lower[2], upper[3], lower[3]};
#pragma unroll
        for (int i = 0; i < RANKS; i++) {
            int rank = 8 * i + lane / 4;
            float b[8];
            for (int j = 0; j < 8; j++)
                b[j] = !there || rank >= r ? 0.0f : UP ? branch[(long long)(at + j) * r + rank] : branch[(long long)rank * depth + at + j];
            Mma<T>::run(sum[i], first, pair(b[0], b[1]), pair(b[2], b[3]));
            Mma<T>::run(sum[i], second, pair(b[4], b[5]), pair(b[6], b[7]));
        }
    }
    for (int i = 0; i < RANKS; i++)
        for (int j = 0; j < 4; j++)
            parts[(warp * 16 + lane / 4 + j / 2 * 8) * 8 * RANKS + 8 * i + 2 * t + j % 2] = sum[i][j];
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * 8 * RANKS; i += blockDim.x) {
        int row = blockIdx.x * 16 + i / (8 * RANKS), rank = i % (8 * RANKS);
        if (row >= rows || rank >= r) continue;
        float total = 0;
        for (int part = 0; part < 8; part++) total += parts[part * 16 * 8 * RANKS + i];
        z[(long long)row * r + rank] = total * scale[rank];
    }
}
EXPORT(rank_product)

#define CHUNK 16
#define ADD_ROWS 16

// y (rows, columns) += bias + z (rows, r) · B, in place. B is the branch's up (columns, r), or, if not UP, its down (r, columns).
// Grid (rows / ADD_ROWS, columns / 128), 128 threads: a thread a column.  shared: ADD_ROWS · CHUNK floats
extern "C" __global__ void __launch_bounds__(128) rank_add(T *y, const T *bias, const float *z, const float *branch, int rows,
                                                           int columns, int r, int has_bias) {
    SHARED_BYTES(raw);
    float *tile = (float *)raw;
    int first = blockIdx.x * ADD_ROWS, column = blockIdx.y * 128 + threadIdx.x;
    float sum[ADD_ROWS], start = has_bias && column < columns ? wide(bias[column]) : 0.0f;
#pragma unroll
    for (int i = 0; i < ADD_ROWS; i++) sum[i] = start;
    for (int rank = 0; rank < r; rank += CHUNK) {
        for (int i = threadIdx.x; i < ADD_ROWS * CHUNK; i += 128) {
            int row = first + i / CHUNK, at = rank + i % CHUNK;
            tile[i] = row < rows && at < r ? z[(long long)row * r + at] : 0.0f;
        }
        float b[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            bool there = column < columns && rank + j < r;
            b[j] = !there ? 0.0f : UP ? branch[(long long)column * r + rank + j] : branch[(long long)(rank + j) * columns + column];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ADD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < CHUNK; j++) sum[i] += tile[i * CHUNK + j] * b[j];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < ADD_ROWS; i++) {
        if (first + i >= rows || column >= columns) continue;
        long long at = (long long)(first + i) * columns + column;
        y[at] = narrow<T>(wide(y[at]) + sum[i]);
    }
}
EXPORT(rank_add)

#define OUTER_ROWS 32
#define OUTER_COLUMNS 64
#define OUTER_PITCH (OUTER_COLUMNS + 8)

// Σ over rows of x[row][column] · z[row][rank]: the gradients of a branch. Each split of the rows leaves its part, (splits, r,
// columns), or, if UP, (splits, columns, r). Grid (columns / 64, splits), 4 warps.  shared: 2 tiles of x
extern "C" __global__ void __launch_bounds__(128)
    rank_outer(const T *x, const float *z, float *parts, int rows, int columns, int r, int each) {
    SHARED_BYTES(raw);
    T *tiles = (T *)raw;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
    int first = blockIdx.y * each, end = min(rows, first + each), left = blockIdx.x * OUTER_COLUMNS;
    float sum[RANKS][4] = {};
    auto send = [&](int at) {
        T *to = tiles + (at - first) / OUTER_ROWS % 2 * OUTER_ROWS * OUTER_PITCH;
        for (int i = threadIdx.x; i < OUTER_ROWS * OUTER_COLUMNS / 8 && at < end; i += 128) {
            int row = at + i / (OUTER_COLUMNS / 8), column = i % (OUTER_COLUMNS / 8) * 8;
            bool there = row < end && left + column < columns;
            const T *from = x + (there ? (long long)row * columns + left + column : 0);
            copy_16(to + i / (OUTER_COLUMNS / 8) * OUTER_PITCH + column, from, there);
        }
        copies_sent();
    };
    send(first);
    for (int at = first; at < end; at += OUTER_ROWS) {
        send(at + OUTER_ROWS);
        copies_arrived<1>();
        __syncthreads();
        // Rows of x are the depth: A is read transposed, its registers 1 and 2 the other way round.
        const T *tile = tiles + (at - first) / OUTER_ROWS % 2 * OUTER_ROWS * OUTER_PITCH;
#pragma unroll
        for (int depth = 0; depth < OUTER_ROWS; depth += 16) {
            u32 read[4];
            ldmatrix_transposed(read, tile + (depth + lane % 16) * OUTER_PITCH + 16 * warp + lane / 16 * 8);
            u32 a[4] = {read[0], read[2], read[1], read[3]};
#pragma unroll
            for (int i = 0; i < RANKS; i++) {
                int rank = 8 * i + lane / 4;
                float b[4];
                for (int j = 0; j < 4; j++) {
                    int row = at + depth + 2 * t + j % 2 + j / 2 * 8;
                    b[j] = row < end && rank < r ? z[(long long)row * r + rank] : 0.0f;
                }
                Mma<T>::run(sum[i], a, pair(b[0], b[1]), pair(b[2], b[3]));
            }
        }
        __syncthreads();
    }
    parts += (long long)blockIdx.y * columns * r;
    for (int i = 0; i < RANKS; i++)
        for (int j = 0; j < 4; j++) {
            int column = left + 16 * warp + lane / 4 + j / 2 * 8, rank = 8 * i + 2 * t + j % 2;
            if (column < columns && rank < r) parts[UP ? (long long)column * r + rank : (long long)rank * columns + column] = sum[i][j];
        }
}
EXPORT(rank_outer)

// Adds up the parts, always in the same order.
extern "C" __global__ void join(const float *parts, float *sum, int splits, int values) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= values) return;
    float total = 0;
    for (int split = 0; split < splits; split++) total += parts[(long long)split * values + i];
    sum[i] = total;
}
EXPORT(join)
