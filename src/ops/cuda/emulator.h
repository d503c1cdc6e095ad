// CUDA's execution model on the processor, to test the arithmetic and the synchronisation of kernels without a card.
// A block's threads are fibers that run until they meet at a barrier; blocks run one after the other. Which fiber runs first is
// given by the caller: a missing barrier gives another result in another order. Shared memory is full of NaN at the start.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define DEVICE inline
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define SHARED_BYTES(name) unsigned char *const name = emulator::shared

struct dim3 {
    unsigned x, y, z;
};

namespace emulator {
enum class State { Running, AtBlock, AtWarp, Done };

struct Copy {
    void *to;
    const void *from;
    int bytes;
};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    State state;
    // What the thread shows its warp: shuffled values, matrix fragments, addresses; by turns in two places, so that it can show
    // something new while others still look at what was before.
    alignas(16) unsigned char shown[2][32];
    int turn;
    // Asynchronous copies: of groups not yet waited for, and of the group under way.
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> group;
};

static thread_local std::vector<Fiber> fibers;
static thread_local ucontext_t scheduler;
static thread_local int current;
// Whether asynchronous copies arrive at once, or as late as they may: both happen on a card.
static thread_local bool copies_at_once;
static thread_local unsigned char *shared;
static thread_local dim3 thread_index, block_index, block_size, grid_size;
static thread_local void (*body)(void *);
static thread_local void *body_arguments;

inline void pause(State state) {
    int me = current;
    fibers[me].state = state;
    swapcontext(&fibers[me].context, &scheduler);
}

inline void start() {
    body(body_arguments);
    fibers[current].state = State::Done;
    swapcontext(&fibers[current].context, &scheduler);
}

// Fiber number `turn` in the order asked for: forwards, backwards, or a permutation.
inline int chosen(int turn, int count, int order) {
    if (order == 0) return turn;
    if (order == 1) return count - 1 - turn;
    int step = 37;
    while (count % step == 0) step += 2;
    return (int)(((long long)turn * step + 11) % count);
}

// Runs a warp until its threads wait for other warps, or for each other in vain.
inline void run_warp(int warp, int order) {
    int first = 32 * warp, lanes = (int)fibers.size() - first < 32 ? (int)fibers.size() - first : 32;
    for (;;) {
        for (int turn = 0; turn < lanes; turn++) {
            int i = first + chosen(turn, lanes, order);
            if (fibers[i].state != State::Running) continue;
            current = i;
            thread_index = {unsigned(i), 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
        }
        for (int i = first; i < first + lanes; i++)
            if (fibers[i].state != State::AtWarp) return;
        for (int i = first; i < first + lanes; i++) fibers[i].state = State::Running;
    }
}

// Runs a block to its end; false if its threads wait for each other for ever.
inline bool run_block(int order) {
    int count = (int)fibers.size();
    for (int i = 0; i < count; i++) {
        Fiber &fiber = fibers[i];
        fiber.state = State::Running;
        fiber.groups.clear();
        fiber.group.clear();
        fiber.turn = 0;
        getcontext(&fiber.context);
        fiber.stack.resize(256 * 1024);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, (void (*)())start, 0);
    }
    int warps = (count + 31) / 32;
    for (;;) {
        // A warp runs as far ahead of the others as barriers let it.
        for (int turn = 0; turn < warps; turn++) run_warp(chosen(turn, warps, order), order);
        int done = 0, at_block = 0;
        for (auto &fiber : fibers) done += fiber.state == State::Done, at_block += fiber.state == State::AtBlock;
        if (done == count) return true;
        if (at_block != count) return false;
        for (auto &fiber : fibers) fiber.state = State::Running;
    }
}

template <class... A, size_t... I> void unpack(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A> *)arguments[I]...);
}

template <class... A> struct Call {
    void (*kernel)(A...);
    void **arguments;
    static void run(void *self) {
        Call *call = (Call *)self;
        unpack(call->kernel, call->arguments, std::index_sequence_for<A...>());
    }
};

// 0: done; 1: a wrong number of arguments; 2: one of another size; 3: a barrier not all threads reach.
template <class... A>
int launch(void (*kernel)(A...), const unsigned *shape, size_t shared_bytes, void **arguments, const size_t *sizes, int count,
           int order) {
    if (count != sizeof...(A)) return 1;
    const size_t expected[] = {sizeof(A)..., 0};
    for (int i = 0; i < count; i++)
        if (sizes[i] != expected[i]) return 2;
    Call<A...> call{kernel, arguments};
    body = Call<A...>::run;
    body_arguments = &call;
    copies_at_once = order == 1;
    grid_size = {shape[0], shape[1], shape[2]};
    block_size = {shape[3], 1, 1};
    fibers.resize(shape[3]);
    std::vector<unsigned char> memory(shared_bytes + 256);
    shared = (unsigned char *)(((uintptr_t)memory.data() + 127) / 128 * 128);
    for (unsigned z = 0; z < shape[2]; z++)
        for (unsigned y = 0; y < shape[1]; y++)
            for (unsigned x = 0; x < shape[0]; x++) {
                block_index = {x, y, z};
                memset(memory.data(), 0xff, memory.size());
                if (!run_block(order)) return 3;
                for (size_t i = shared_bytes; shared + i < memory.data() + memory.size(); i++)
                    if (shared[i] != 0xff) return 4;
            }
    return 0;
}

inline Fiber &me() { return fibers[current]; }

// Shows the warp `size` bytes, and waits until all of its threads have shown theirs.
inline void show(const void *what, size_t size) {
    me().turn ^= 1;
    memcpy(me().shown[me().turn], what, size);
    pause(State::AtWarp);
}
// What another thread of the warp showed.
inline const unsigned char *shown(int lane) { return fibers[current / 32 * 32 + lane].shown[me().turn]; }
} // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

#define EXPORT(kernel)                                                                                                        \
    extern "C" int run_##kernel(const unsigned *shape, size_t shared_bytes, void **arguments, const size_t *sizes, int count, \
                                int order) {                                                                                  \
        return emulator::launch(kernel, shape, shared_bytes, arguments, sizes, count, order);                                 \
    }

inline void __syncthreads() { emulator::pause(emulator::State::AtBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::pause(emulator::State::AtWarp); }

template <class V> V shuffle(V value, int from) {
    emulator::show(&value, sizeof(V));
    V found;
    memcpy(&found, emulator::shown(from), sizeof(V));
    return found;
}
template <class V> V __shfl_xor_sync(unsigned, V value, int mask) { return shuffle(value, (emulator::current % 32) ^ mask); }
template <class V> V __shfl_sync(unsigned, V value, int from) { return shuffle(value, from); }

inline float __uint_as_float(unsigned x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
inline unsigned __float_as_uint(float x) {
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

inline float emulated_f16_to_float(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    float magnitude = exponent ? ldexpf(float(1024 + mantissa), int(exponent) - 25) : ldexpf(float(mantissa), -24);
    return sign ? -magnitude : magnitude;
}
inline unsigned short emulated_float_to_f16(float x) {
    unsigned short sign = (__float_as_uint(x) >> 16) & 0x8000;
    if (std::isnan(x)) return sign | 0x7e00;
    float magnitude = fabsf(x);
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent;
    frexpf(magnitude, &exponent);
    if (magnitude == 0 || exponent < -13) exponent = -13;
    // In units of the last place, to even.
    unsigned units = (unsigned)nearbyintf(ldexpf(magnitude, 11 - exponent));
    return sign | (unsigned short)(units + (unsigned(exponent + 13) << 10));
}
