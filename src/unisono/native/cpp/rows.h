// Operators on one row: norm, rotary embedding, gates, biases, the residual stream. Lengths are
// multiples of 32, as a configuration of a model guarantees (half a head: of 16).
#pragma once
#include "fixed.h"
#include "tables.h"

namespace unisono {

struct Vector {
    const i64* values = nullptr;
    i64 exponent = 0;
    explicit operator bool() const { return values != nullptr; }
};

struct Epsilon {
    i64 mantissa, exponent;
};

// unisono.numerics.norm; the result's exponent is weight.exponent - 24. `out` may be `x`.
inline void rms_norm(const i64* x, i64 exponent, int n, Vector weight, Epsilon epsilon, i64* out) {
    const Lanes64 limit = all((i64(1) << 15) - 1);
    exponent += reduce_row(x, n, 30, out);
    const i64 shift = row_shift(out, n, 15);
    Lanes64 sums = {};
    each(n, [&](int i) {
        const Lanes64 c = clamped(round_shift(load(out + i), all(shift)), limit);
        sums += c * c;
    });
    i64 total = 0;
    for (int i = 0; i < LANES; i++) total += sums[i];
    const i64 mean = (total << 16) / n;
    const i64 added = align(epsilon.mantissa, 2 * (exponent + shift) - 16 - epsilon.exponent, 50);
    const i64 root = greater<i64>(square_root(mean + added), 1);
    const i64 inverse = (i64(1) << 46) / root;
    each(n, [&](int i) {
        const Lanes64 normal = round_shift(load(out + i) * inverse, all(shift + 14));
        store(out + i, normal * load(weight.values + i));
    });
}

// unisono.numerics.rotary on one head, in place; returns the exponent of the result.
inline i64 rotate(i64* x, i64 exponent, int size, const i64* cosines, const i64* sines) {
    exponent += reduce_row(x, size, 24, x);
    const int half = size / 2;
    each(half, [&](int i) {
        const Lanes64 a = load(x + i), b = load(x + half + i);
        const Lanes64 c = load(cosines + i), s = load(sines + i);
        store(x + i, a * c - b * s);
        store(x + half + i, b * c + a * s);
    });
    return exponent - 22 + reduce_row(x, size, 15, x);
}

inline void rotation(i64 position, const i64* frequencies, i64 factor, int half, i64* cosines,
                     i64* sines) {
    constexpr i64 TURN = (i64(1) << 42) - 1, QUARTER = i64(3) << 40;
    each(half, [&](int i) {
        const Lanes64 phase = (load(frequencies + i) * position) & TURN;
        store(cosines + i, round_shift<16>(cosine(phase) * factor));
        store(sines + i, round_shift<16>(cosine((phase + QUARTER) & TURN) * factor));
    });
}

// Adds a bias; returns the new exponent.
inline i64 add_bias(i64* x, i64 exponent, int n, Vector bias) {
    if (!bias) return exponent;
    const i64 common = greater(exponent, bias.exponent - 36);
    const Lanes64 shift = all(lesser<i64>(common - exponent, MAX_SHIFT));
    const Lanes64 right = all(common - bias.exponent);
    each(n, [&](int i) {
        const Lanes64 added = align(load(bias.values + i), right, 60);
        store(x + i, round_shift(load(x + i), shift) + added);
    });
    return common;
}

// unisono.numerics.activation: out = activation(gate) * up; `up` is overwritten.
inline i64 gated(bool gelu, const i64* gate, i64 gate_exponent, i64* up, i64 up_exponent, int n,
                 i64* out) {
    const Lanes64 limit = all((i64(1) << 24) - 1);
    const i64 shift = row_shift(gate, n, 24);
    align_row(gate, -(gate_exponent + 20), 25, n, out);
    each(n, [&](int i) {
        const Lanes64 t = load(out + i), a = gelu ? gelu_argument(t) : t;
        store(out + i, clamped(round_shift(load(gate + i), all(shift)), limit) * sigmoid(a));
    });
    const i64 active = gate_exponent + shift - 38 + reduce_row(out, n, 31, out);
    const i64 other = up_exponent + reduce_row(up, n, 31, up);
    each(n, [&](int i) { store(out + i, load(out + i) * load(up + i)); });
    return active + other;
}

// residual += x * 2^exponent, saturated; `x` is overwritten.
inline void add_residual(i64* residual, i64* x, i64 exponent, int n) {
    const Lanes64 limit = all((i64(1) << 43) - 1);
    align_row(x, -(exponent + 20), 43, n, x);
    each(n, [&](int i) { store(residual + i, clamped(load(residual + i) + load(x + i), limit)); });
}

// The heads of a row at one exponent, in place; returns it. See unisono.numerics.softmax.
inline i64 join_heads(i64* x, const i64* highest, int heads, int size) {
    i64 common = highest[0];
    for (int h = 1; h < heads; h++) common = greater(common, highest[h]);
    for (int h = 0; h < heads; h++, x += size) {
        const Lanes64 shift = all(lesser<i64>(common - highest[h], MAX_SHIFT));
        each(size, [&](int i) { store(x + i, round_shift(load(x + i) << 24, shift)); });
    }
    return common - 33;
}

}  // namespace unisono
