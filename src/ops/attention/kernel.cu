// Attention that never stores the score matrix (https://arxiv.org/abs/2307.08691), forward and backward.
//
// q (b, n, heads · HEAD), k and v (b, m, heads · HEAD). A block of four warps has ROWS rows of one head, 16 a warp, and streams
// the other side past them in tiles of TILE rows. DEPTH is HEAD rounded up to 16. Everything between two products stays in
// registers: the fragment a product leaves is what the next one takes. No sum depends on which block ran first.

#define ROWS 64
#define THREADS 128
#define PITCH (DEPTH + 8) // an odd number of 16 bytes: ldmatrix meets each bank once
#define LOG2_E 1.44269504f

// The rows of this block's head, and its numbers, one a query.
template <class E> DEVICE E *head(E *t, int rows, int stride) {
    return t + (long long)blockIdx.z * rows * stride + blockIdx.y * HEAD;
}
template <class E> DEVICE E *each_query(E *numbers, int n) {
    return numbers + ((long long)blockIdx.z * gridDim.y + blockIdx.y) * n;
}

// Starts copying `count` rows of a head from row `first` on; zeros beyond the last of `rows`, and beyond HEAD.
DEVICE void send_tile(T *tile, const T *head, int first, int rows, int count, int stride) {
    for (int i = threadIdx.x; i < count * (DEPTH / 8); i += THREADS) {
        int row = i / (DEPTH / 8), column = i % (DEPTH / 8) * 8;
        bool there = first + row < rows && column < HEAD;
        copy_16(tile + row * PITCH + column, head + (there ? (long long)(first + row) * stride + column : 0), there);
    }
}

// c = (16 rows of `a`) · (TILE rows of `b`)ᵀ, over the depth.
DEVICE void product(float (&c)[TILE / 8][4], const T *a, const T *b) {
    int lane = threadIdx.x % 32;
    a += (lane % 16) * PITCH + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth += 16) {
        u32 left[4], right[4];
        ldmatrix(left, a + depth);
#pragma unroll
        for (int i = 0; i < TILE / 16; i++) {
            ldmatrix(right, b + i * 16 * PITCH + depth);
            Mma<T>::run(c[2 * i], left, right[0], right[1]);
            Mma<T>::run(c[2 * i + 1], left, right[2], right[3]);
        }
    }
}

// sum += p · (TILE rows of `b`), p a product's result.
DEVICE void accumulate(float (&sum)[DEPTH / 8][4], const float (&p)[TILE / 8][4], const T *b) {
    int lane = threadIdx.x % 32;
    b += (lane % 16) * PITCH + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < TILE / 16; i++) {
        const float(&low)[4] = p[2 * i], (&high)[4] = p[2 * i + 1];
        u32 left[4] = {pair(low[0], low[1]), pair(low[2], low[3]), pair(high[0], high[1]), pair(high[2], high[3])}, right[4];
#pragma unroll
        for (int j = 0; j < DEPTH / 16; j++) {
            ldmatrix_transposed(right, b + i * 16 * PITCH + j * 16);
            Mma<T>::run(sum[2 * j], left, right[0], right[1]);
            Mma<T>::run(sum[2 * j + 1], left, right[2], right[3]);
        }
    }
}

// Writes 16 rows of a head, those below `rows`, each times its factor.
DEVICE void write(T *head, const float (&sum)[DEPTH / 8][4], int first, int rows, int stride, float upper, float lower) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + lane / 4 + 8 * half;
        float factor = half ? lower : upper;
        if (row >= rows) continue;
#pragma unroll
        for (int i = 0; i < DEPTH / 8; i++) {
            int column = 8 * i + 2 * (lane % 4);
            u32 both = pair(sum[i][2 * half] * factor, sum[i][2 * half + 1] * factor);
            if (column < HEAD) *(u32 *)(head + (long long)row * stride + column) = both;
        }
    }
}

// The largest, or the sum, over the four lanes that share a row.
DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// Calls `use` with each tile of two streamed sides, the next one on its way meanwhile.
template <class Use>
DEVICE void stream(T *tiles, const T *one, const T *other, int first, int end, int rows, int stride, Use use) {
    auto send = [&](int at) {
        T *to = tiles + (at - first) / TILE % STAGES * 2 * TILE * PITCH;
        if (at < end) {
            send_tile(to, one, at, rows, TILE, stride);
            send_tile(to + TILE * PITCH, other, at, rows, TILE, stride);
        }
        copies_sent();
    };
    send(first);
    for (int at = first; at < end; at += TILE) {
        if (STAGES > 1) send(at + TILE);
        copies_arrived<STAGES - 1>();
        __syncthreads();
        const T *tile = tiles + (at - first) / TILE % STAGES * 2 * TILE * PITCH;
        use(at, tile, tile + TILE * PITCH);
        __syncthreads();
        if (STAGES == 1) send(at + TILE);
    }
}

// out (b, n, heads · HEAD); totals (b, heads, n): log2 Σ 2^score, scores in units of ln 2. Grid (n / ROWS, heads, b).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention(const T *q, const T *k, const T *v, T *out, float *totals, int n, int m, int stride, float scale, int causal) {
    SHARED_BYTES(raw);
    T *queries = (T *)raw, *tiles = queries + ROWS * PITCH;
    int first = blockIdx.x * ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = first + 16 * warp + lane / 4;
    send_tile(queries, head(q, n, stride), first, n, ROWS, stride);
    float sum[DEPTH / 8][4] = {}, largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {};
    int end = causal ? min(m, first + ROWS) : m;
    stream(tiles, head(k, m, stride), head(v, m, stride), 0, end, m, stride, [&](int at, const T *keys, const T *values) {
        float p[TILE / 8][4];
        product(p, queries + 16 * warp * PITCH, keys);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float seen = largest[half];
#pragma unroll
            for (int i = 0; i < TILE / 8; i++)
#pragma unroll
                for (int j = 2 * half; j < 2 * half + 2; j++) {
                    int key = at + 8 * i + 2 * (lane % 4) + j % 2;
                    bool visible = key < m && (!causal || key <= row + 8 * half);
                    p[i][j] = visible ? p[i][j] * (scale * LOG2_E) : MINUS_INFINITY;
                    seen = fmaxf(seen, p[i][j]);
                }
            seen = row_max(seen);
            float base = seen == MINUS_INFINITY ? 0.0f : seen, shrink = exp2f(largest[half] - base), part = 0;
#pragma unroll
            for (int i = 0; i < TILE / 8; i++)
#pragma unroll
                for (int j = 2 * half; j < 2 * half + 2; j++) {
                    p[i][j] = exp2f(p[i][j] - base);
                    part += p[i][j];
                }
#pragma unroll
            for (int i = 0; i < DEPTH / 8; i++) {
                sum[i][2 * half] *= shrink;
                sum[i][2 * half + 1] *= shrink;
            }
            total[half] = total[half] * shrink + part;
            largest[half] = seen;
        }
        accumulate(sum, p, values);
    });
    total[0] = row_sum(total[0]);
    total[1] = row_sum(total[1]);
    write(head(out, n, stride), sum, first + 16 * warp, n, stride, 1.0f / total[0], 1.0f / total[1]);
    for (int half = 0; half < 2; half++)
        if (lane % 4 == 0 && row + 8 * half < n)
            each_query(totals, n)[row + 8 * half] = largest[half] + log2f(total[half]);
}
EXPORT(attention)

// Σ g · out of each row of each head: (b, heads, n). A warp a row; grid (n / 4, heads, b).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_shares(const T *out, const T *g, float *shares, int n, int stride) {
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n) return;
    out = head(out, n, stride) + (long long)row * stride;
    g = head(g, n, stride) + (long long)row * stride;
    float sum = 0;
    for (int i = lane; i < HEAD; i += 32) sum += wide(out[i]) * wide(g[i]);
    sum = warp_sum(sum);
    if (lane == 0) each_query(shares, n)[row] = sum;
}
EXPORT(attention_shares)

// The gradient of the queries. Grid (n / ROWS, heads, b).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_queries(const T *q, const T *k, const T *v, const T *g, const float *totals, const float *shares, T *gq,
                               int n, int m, int stride, float scale, int causal) {
    SHARED_BYTES(raw);
    T *queries = (T *)raw, *grads = queries + ROWS * PITCH, *tiles = grads + ROWS * PITCH;
    int first = blockIdx.x * ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = first + 16 * warp + lane / 4;
    totals = each_query(totals, n), shares = each_query(shares, n);
    float total[2], share[2];
    for (int half = 0; half < 2; half++) {
        total[half] = row + 8 * half < n ? totals[row + 8 * half] : 0.0f;
        share[half] = row + 8 * half < n ? shares[row + 8 * half] : 0.0f;
    }
    send_tile(queries, head(q, n, stride), first, n, ROWS, stride);
    send_tile(grads, head(g, n, stride), first, n, ROWS, stride);
    float sum[DEPTH / 8][4] = {};
    int end = causal ? min(m, first + ROWS) : m;
    stream(tiles, head(k, m, stride), head(v, m, stride), 0, end, m, stride, [&](int at, const T *keys, const T *values) {
        float p[TILE / 8][4], gp[TILE / 8][4];
        product(p, queries + 16 * warp * PITCH, keys);
        product(gp, grads + 16 * warp * PITCH, values);
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = at + 8 * i + 2 * (lane % 4) + j % 2;
                bool visible = key < m && (!causal || key <= row + j / 2 * 8);
                float weight = visible ? exp2f(p[i][j] * (scale * LOG2_E) - total[j / 2]) : 0.0f;
                p[i][j] = weight * (gp[i][j] - share[j / 2]);
            }
        accumulate(sum, p, keys);
    });
    write(head(gq, n, stride), sum, first + 16 * warp, n, stride, scale, scale);
}
EXPORT(attention_backward_queries)

// The gradients of keys and values. Grid (m / ROWS, heads, b).
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_keys(const T *q, const T *k, const T *v, const T *g, const float *totals, const float *shares, T *gk,
                            T *gv, int n, int m, int stride, float scale, int causal) {
    SHARED_BYTES(raw);
    T *keys = (T *)raw, *values = keys + ROWS * PITCH, *tiles = values + ROWS * PITCH;
    int first = blockIdx.x * ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32, key = first + 16 * warp + lane / 4;
    totals = each_query(totals, n), shares = each_query(shares, n);
    send_tile(keys, head(k, m, stride), first, m, ROWS, stride);
    send_tile(values, head(v, m, stride), first, m, ROWS, stride);
    float key_sum[DEPTH / 8][4] = {}, value_sum[DEPTH / 8][4] = {};
    int start = causal ? first / TILE * TILE : 0;
    stream(tiles, head(q, n, stride), head(g, n, stride), start, n, n, stride, [&](int at, const T *queries, const T *grads) {
        float p[TILE / 8][4], gp[TILE / 8][4];
        product(p, keys + 16 * warp * PITCH, queries);
        product(gp, values + 16 * warp * PITCH, grads);
#pragma unroll
        for (int i = 0; i < TILE / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int query = at + 8 * i + 2 * (lane % 4) + j % 2;
                bool visible = query < n && (!causal || key + j / 2 * 8 <= query);
                p[i][j] = visible ? exp2f(p[i][j] * (scale * LOG2_E) - totals[query]) : 0.0f;
                gp[i][j] = visible ? p[i][j] * (gp[i][j] - shares[query]) : 0.0f;
            }
        accumulate(value_sum, p, grads);
        accumulate(key_sum, gp, queries);
    });
    write(head(gk, m, stride), key_sum, first + 16 * warp, m, stride, scale, scale);
    write(head(gv, m, stride), value_sum, first + 16 * warp, m, stride, 1.0f, 1.0f);
}
EXPORT(attention_backward_keys)
