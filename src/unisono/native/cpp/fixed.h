// Integer building blocks: the same definitions as unisono.numerics.fixed, on one integer or on a
// vector of them. Vectors are the compiler's own extension (gcc and clang), so that the same text
// becomes AVX-512, AVX2 or NEON instructions.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace unisono {

using i8 = int8_t;
using u8 = uint8_t;
using i16 = int16_t;
using u16 = uint16_t;
using i32 = int32_t;
using i64 = int64_t;

constexpr int LANES = 8;
typedef i64 Lanes64 __attribute__((vector_size(LANES * sizeof(i64))));
typedef double LanesF __attribute__((vector_size(LANES * sizeof(double))));
typedef u8 Lanes8 __attribute__((vector_size(LANES)));

constexpr int MAX_SHIFT = 62;

template <class T>
inline T lesser(T a, T b) { return a < b ? a : b; }
template <class T>
inline T greater(T a, T b) { return a > b ? a : b; }
template <class T>
inline T clamped(T x, T limit) { return greater(lesser(x, limit), -limit); }

inline Lanes64 all(i64 x) { return Lanes64{} + x; }
inline Lanes64 load(const i64* at) {
    Lanes64 v;
    std::memcpy(&v, at, sizeof v);
    return v;
}
inline void store(i64* at, Lanes64 v) { std::memcpy(at, &v, sizeof v); }

// Whether any lane of a comparison holds.
inline bool any(Lanes64 mask) {
#ifdef __AVX512F__
    return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    i64 joined = 0;
    for (int i = 0; i < LANES; i++) joined |= mask[i];
    return joined != 0;
#endif
}

// out[i] = work(x[i]) for a row whose length is a multiple of LANES.
template <class Work>
inline void each(int n, const Work& work) {
    for (int i = 0; i < n; i += LANES) work(i);
}

// x / 2^s to the nearest integer, halves upward; 0 <= s <= 62.
template <class T>
inline T round_shift(T x, T s) { return (x + (((T{} + 1) << s) >> 1)) >> s; }
// The same where the shift is known when compiling.
template <int S, class T>
inline T round_shift(T x) { return S == 0 ? x : (x + (i64(1) << (S > 0 ? S - 1 : 0))) >> S; }

// x / 2^right (a left shift where right is negative), saturated to `bits` bits.
template <class T>
inline T align(T x, T right, int bits) {
    const T zero = T{}, limit = zero + ((i64(1) << bits) - 1), most = zero + MAX_SHIFT;
    const T y = round_shift(x, lesser(greater(right, zero), most));
    const T left = lesser(greater(-right, zero), most);
    const T bound = limit >> left;
    const T shifted = clamped(y, bound) << left;
    return y > bound ? limit : (y < -bound ? -limit : shifted);
}

// `align` by one shift for a whole row: out = align(x).
inline void align_row(const i64* x, i64 right, int bits, int n, i64* out) {
    const Lanes64 limit = all((i64(1) << bits) - 1);
    if (right >= 0) {
        const Lanes64 shift = all(lesser<i64>(right, MAX_SHIFT));
        each(n, [&](int i) { store(out + i, clamped(round_shift(load(x + i), shift), limit)); });
    } else {
        each(n, [&](int i) { store(out + i, align(load(x + i), all(right), bits)); });
    }
}

inline int bit_length(i64 x) { return x ? 64 - __builtin_clzll(static_cast<uint64_t>(x)) : 0; }

inline i64 largest(const i64* x, int n) {
    Lanes64 top = {};
    each(n, [&](int i) {
        const Lanes64 v = load(x + i);
        top = greater(top, greater(v, -v));
    });
    i64 out = 0;
    for (int i = 0; i < LANES; i++) out = greater<i64>(out, top[i]);
    return out;
}

// The shift that brings a row to `bits` magnitude bits.
inline int row_shift(const i64* x, int n, int bits) {
    return greater(bit_length(largest(x, n)) - bits, 0);
}

// Reduce a row in place or into another; returns the shift.
inline int reduce_row(const i64* x, int n, int bits, i64* out) {
    const int shift = row_shift(x, n, bits);
    if (shift == 0) {
        if (out != x) std::memmove(out, x, n * sizeof(i64));
        return 0;
    }
    const Lanes64 limit = all((i64(1) << bits) - 1), half = all(i64(1) << (shift - 1));
    each(n, [&](int i) { store(out + i, clamped((load(x + i) + half) >> shift, limit)); });
    return shift;
}

// Integer square root of 0 <= x < 2^52; the corrections make it independent of the float unit.
inline i64 square_root(i64 x) {
    i64 r = static_cast<i64>(__builtin_sqrt(static_cast<double>(x)));
    if (r * r > x) r -= 1;
    if ((r + 1) * (r + 1) <= x) r += 1;
    return r;
}

// Floor division by d > 0 where the quotient's magnitude is below 2^50: a float64 estimate is at
// most one off and the exact remainder corrects it. Vectors have no 64-bit division.
inline Lanes64 floor_divide(Lanes64 x, i64 d, double inverse) {
    const LanesF estimate = __builtin_convertvector(x, LanesF) * inverse;
    Lanes64 q = __builtin_convertvector(estimate, Lanes64);
    const Lanes64 r = x - q * d;
    q += r < 0 ? all(-1) : all(0);
    q += r >= d ? all(1) : all(0);
    return q;
}

}  // namespace unisono
