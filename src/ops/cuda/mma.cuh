// Products of small matrices by tensor cores, and the copies that feed them.
//
// Fragments are PTX's for m16n8k16: with g = lane / 4 and t = lane % 4, register i of
//   A (16 rows, 16 deep)   holds row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next;
//   B (16 deep, 8 columns) holds column g, rows 2 t + 8 i and the next;
//   C (16 rows, 8 columns) holds row g + 8 (i / 2), column 2 t + i % 2.
// So C, rounded to T, is half of an A.

#ifndef SCUMBLE_EMULATED

template <class E> struct Mma;
template <> struct Mma<f16> {
    static DEVICE void run(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
        // Half as deep on Turing.
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b0));
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
    }
};
#if __CUDA_ARCH__ >= 800
template <> struct Mma<bf16> {
    static DEVICE void run(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};
#endif

// Four 8x8 matrices: lane l gives the address of row l % 8 of matrix l / 8, and gets of matrix i in register i row
// l / 4, columns 2 (l % 4) and the next.
DEVICE void ldmatrix(u32 (&r)[4], const void *row) {
    u32 address = u32(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// The same of the transposed matrices.
DEVICE void ldmatrix_transposed(u32 (&r)[4], const void *row) {
    u32 address = u32(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// 16 bytes to shared memory, zeros if not `there`; known to have arrived after copies_arrived and a barrier.
DEVICE void copy_16(void *to, const void *from, bool there) {
#if __CUDA_ARCH__ >= 800
    u32 address = u32(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0));
#else
    *(uint4 *)to = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
#endif
}

// Ends a group of copies.
DEVICE void copies_sent() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}

// Waits until all but the last `later` groups of this thread have arrived.
template <int later> DEVICE void copies_arrived() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
#endif
}

#else // emulated

template <class E> struct Mma {
    static void run(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
        emulator::show(mine, sizeof(mine));
        auto element = [](u32 pair, int which) { return wide(E{u16(pair >> 16 * which)}); };
        auto shown = [](int lane, int i) {
            u32 value;
            memcpy(&value, emulator::shown(lane) + 4 * i, 4);
            return value;
        };
        int lane = emulator::current % 32;
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) {
                int t = k % 8 / 2;
                float x = element(shown(4 * (row % 8) + t, row / 8 + 2 * (k / 8)), k % 2);
                float y = element(shown(4 * column + t, 4 + k / 8), k % 2);
                sum += x * y;
            }
            c[i] += sum;
        }
    }
};

inline void emulated_ldmatrix(u32 (&r)[4], const void *row, bool transposed) {
    emulator::show(&row, sizeof(row));
    int lane = emulator::current % 32;
    for (int i = 0; i < 4; i++) {
        u16 pair[2];
        for (int j = 0; j < 2; j++) {
            int from = transposed ? 2 * (lane % 4) + j : lane / 4, column = transposed ? lane / 4 : 2 * (lane % 4) + j;
            const u16 *address;
            memcpy(&address, emulator::shown(8 * i + from), sizeof(address));
            pair[j] = address[column];
        }
        r[i] = pair[0] | u32(pair[1]) << 16;
    }
}
inline void ldmatrix(u32 (&r)[4], const void *row) { emulated_ldmatrix(r, row, false); }
inline void ldmatrix_transposed(u32 (&r)[4], const void *row) { emulated_ldmatrix(r, row, true); }

// Late: what is read before it was waited for is NaN, or old. At once: what is still read is overwritten.
inline void copy_16(void *to, const void *from, bool there) {
    if (emulator::copies_at_once) {
        memset(to, 0, 16);
        memcpy(to, from, there ? 16 : 0);
    } else {
        emulator::me().group.push_back({to, from, there ? 16 : 0});
    }
}
inline void copies_sent() {
    emulator::me().groups.push_back(emulator::me().group);
    emulator::me().group.clear();
}
template <int later> void copies_arrived() {
    auto &groups = emulator::me().groups;
    while (groups.size() > size_t(later)) {
        for (auto &copy : groups.front()) {
            memset(copy.to, 0, 16);
            memcpy(copy.to, copy.from, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

#endif

// Two neighbours as a register holds them.
DEVICE u32 pair(float low, float high) { return u32(narrow<T>(low).bits) | u32(narrow<T>(high).bits) << 16; }
