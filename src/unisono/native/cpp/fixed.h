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

// The lowest byte of each lane.
inline void store_bytes(u8* at, Lanes64 v) {
    const Lanes8 bytes = __builtin_convertvector(v, Lanes8);
    std::memcpy(at, &bytes, sizeof bytes);
}

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

// a * b of factors below 2^31 in magnitude: a third of the work of a 64-bit multiplication.
inline i64 short_product(i64 a, i64 b) { return a * b; }
inline Lanes64 short_product(Lanes64 a, Lanes64 b) {
#ifdef __AVX512F__
    return (Lanes64)_mm512_mul_epi32((__m512i)a, (__m512i)b);
#else
    return a * b;
#endif
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

// `align` of whole rows by one shift: work(align) is called with a function of a vector.
template <class Work>
inline void with_align(i64 right, int bits, const Work& work) {
    if (right >= 0) {
        const Lanes64 limit = all((i64(1) << bits) - 1);
        const Lanes64 shift = all(lesser<i64>(right, MAX_SHIFT));
        work([=](Lanes64 v) { return clamped(round_shift(v, shift), limit); });
    } else {
        work([=](Lanes64 v) { return align(v, all(right), bits); });
    }
}


inline int bit_length(i64 x) { return x ? 64 - __builtin_clzll(static_cast<uint64_t>(x)) : 0; }

// The range of a row's elements, kept up while a loop writes or reads them: the next operator
// then knows its shift without another pass.
struct Extent {
    Lanes64 high = {}, low = {};

    void add(Lanes64 v) {
        high = greater(high, v);
        low = lesser(low, v);
    }
    i64 top() const {
        i64 out = high[0];
        for (int i = 1; i < LANES; i++) out = greater<i64>(out, high[i]);
        return out;
    }
    i64 bottom() const {
        i64 out = low[0];
        for (int i = 1; i < LANES; i++) out = lesser<i64>(out, low[i]);
        return out;
    }
    // The shift that brings the row to `bits` magnitude bits.
    int shift(int bits) const {
        return greater(bit_length(greater(top(), -bottom())) - bits, 0);
    }
};

inline Extent extent_of(const i64* x, int n) {
    Extent out;
    each(n, [&](int i) { out.add(load(x + i)); });
    return out;
}

// A row on its way to `bits` magnitude bits.
struct Reduction {
    Lanes64 limit, half, by;
    i64 shift;
    bool carries;  // whether rounding may bring an element to 2^bits, where it saturates

    Reduction(int bits, int right)
        : limit(all((i64(1) << bits) - 1)), half(all((i64(1) << right) >> 1)), by(all(right)),
          shift(right), carries(true) {}
    Reduction(int bits, const Extent& range) : Reduction(bits, range.shift(bits)) {
        const i64 top = round_shift(range.top(), shift), bottom = round_shift(range.bottom(), shift);
        carries = top > limit[0] || bottom < -limit[0];
    }
    Lanes64 rounded(Lanes64 v) const { return (v + half) >> by; }
    Lanes64 operator()(Lanes64 v) const { return clamped(rounded(v), limit); }
};

// Work on whole rows by up to two reductions: work(first, second) is called with functions of a
// vector. Hardly any row needs their limits.
template <class Work>
inline void with_reductions(const Reduction& a, const Reduction& b, const Work& work) {
    if (a.carries || b.carries) {
        work(a, b);
    } else {
        work([=](Lanes64 v) { return a.rounded(v); }, [=](Lanes64 v) { return b.rounded(v); });
    }
}
template <class Work>
inline void with_reduction(const Reduction& a, const Work& work) {
    if (a.carries) work(a);
    else work([=](Lanes64 v) { return a.rounded(v); });
}

// Reduce a row in place or into another; returns the shift.
inline int reduce_row(const i64* x, int n, int bits, i64* out) {
    const Reduction reduction(bits, extent_of(x, n));
    if (reduction.shift == 0) {
        if (out != x) std::memmove(out, x, n * sizeof(i64));
        return 0;
    }
    with_reduction(reduction, [&](const auto& reduced) {
        each(n, [&](int i) { store(out + i, reduced(load(x + i))); });
    });
    return static_cast<int>(reduction.shift);
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
