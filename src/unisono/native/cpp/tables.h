// The canonical lookup tables (unisono.numerics.tables), handed over once per process.
#pragma once
#include "fixed.h"
#include "simd.h"

namespace unisono {

struct Tables {
    i64 exp2[1025];
    i64 gate[8192];  // an entry and the step to the next, packed; constant from 16 on
    i64 cosine[4098];
    i64 log2[4098];

    void set(const i64* exp2, const i64* gate, const i64* cosine, const i64* log2);
};
extern Tables tables;

constexpr int GATE_STEP = 16;   // bits for a step between entries of the gate table

inline i64 look_up(const i64* table, i64 index) { return table[index]; }
inline Lanes64 look_up(const i64* table, Lanes64 index) {
#ifdef UNISONO_VNNI
    return (Lanes64)_mm512_i64gather_epi64((__m512i)index, table, 8);
#else
    Lanes64 out;
    for (int i = 0; i < LANES; i++) out[i] = table[index[i]];
    return out;
#endif
}

// 2^-distance with BITS fraction bits; distance >= 0 has 16.
template <int BITS, class T>
inline T exp2_negative(T distance) {
    const T index = (distance >> 6) & 1023;
    const T low = look_up(tables.exp2, index), step = low - look_up(tables.exp2 + 1, index);
    const T value = low - round_shift<6>(short_product(step, distance & 63));
    return round_shift(value, lesser((distance >> 16) + (38 - BITS), T{} + MAX_SHIFT));
}

// Logistic function in two steps, each with room for many vectors side by side: the argument has 20
// fraction bits, |a| < 2^25. First 2^-d, 38 fraction bits, with d = |a| log2(e).
template <class T>
inline T sigmoid_power(T a) {
    return exp2_negative<38>(round_shift<20>(short_product(greater(a, -a), T{} + 94548)));
}

// Then the result, 38 fraction bits.
template <class T>
inline T sigmoid(T a, T power) {
    const T size = greater(a, -a);
    const T packed = look_up(tables.gate, size >> 12), low = packed >> GATE_STEP;
    const T step = packed & ((1 << GATE_STEP) - 1);
    const T upper = low + round_shift<12>(short_product(step, size & 4095));
    const T lower = round_shift<24>(power * upper);
    return a < 0 ? lower : upper << 14;
}

// 2 sqrt(2/pi) (t + 0.044715 t^3), 20 fraction bits in and out, saturated to 25 bits.
template <class T>
inline T gelu_argument(T t) {
    const T inner =
        round_shift<20>(short_product(round_shift<20>(short_product(t, t)), T{} + 76616651)) +
        1713444047;
    return clamped(round_shift<30>(t * inner), T{} + ((i64(1) << 25) - 1));
}

// Cosine, 22 fraction bits, of a phase in turns with 42.
template <class T>
inline T cosine(T phase) {
    const T index = phase >> 30;
    const T low = look_up(tables.cosine, index), next = look_up(tables.cosine + 1, index);
    return low + round_shift<16>((next - low) * ((phase >> 14) & 0xFFFF));
}

// log2 of 0 < x < 2^50 with 38 fraction bits.
inline i64 log2_fixed(i64 x) {
    const i64 exponent = 63 - __builtin_clzll(static_cast<uint64_t>(x));
    const i64 up = greater<i64>(36 - exponent, 0), down = greater<i64>(exponent - 36, 0);
    const i64 fraction = ((x << up) >> down) & ((i64(1) << 36) - 1);
    const i64 index = fraction >> 24;
    const i64 low = tables.log2[index];
    return (exponent << 38) + low +
           round_shift<24>((tables.log2[index + 1] - low) * (fraction & 0xFFFFFF));
}

}  // namespace unisono
