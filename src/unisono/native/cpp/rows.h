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

// unisono.numerics.norm of a row of known range; the result's exponent is weight.exponent - 24.
// `out` may be `x`.
inline Extent rms_norm(const i64* x, const Extent& given, i64 exponent, int n, Vector weight,
                       Epsilon epsilon, i64* out) {
    const int first = given.shift(30);
    const Reduction row(30, first);
    exponent += first;
    // the range of the reduced row, from that of the given one: reducing is monotonic
    Extent kept;
    kept.add(row(all(given.top())));
    kept.add(row(all(given.bottom())));
    const int shift = kept.shift(15);
    const Reduction copy(15, shift);
    Lanes64 sums = {};
    each(n, [&](int i) {
        const Lanes64 c = copy(row(load(x + i)));
        sums += c * c;
    });
    i64 total = 0;
    for (int i = 0; i < LANES; i++) total += sums[i];
    const i64 mean = (total << 16) / n;
    const i64 added = align(epsilon.mantissa, 2 * (exponent + shift) - 16 - epsilon.exponent, 50);
    const i64 root = greater<i64>(square_root(mean + added), 1);
    const i64 inverse = (i64(1) << 46) / root;
    Extent result;
    each(n, [&](int i) {
        const Lanes64 normal = round_shift(row(load(x + i)) * inverse, all(shift + 14));
        const Lanes64 v = normal * load(weight.values + i);
        result.add(v);
        store(out + i, v);
    });
    return result;
}

inline Extent rms_norm(const i64* x, i64 exponent, int n, Vector weight, Epsilon epsilon,
                       i64* out) {
    return rms_norm(x, extent_of(x, n), exponent, n, weight, epsilon, out);
}

// unisono.numerics.rotary on one head, in place; returns the exponent of the result.
inline i64 rotate(i64* x, i64 exponent, int size, const i64* cosines, const i64* sines) {
    exponent += reduce_row(x, size, 24, x);
    const int half = size / 2;
    Extent turned;
    each(half, [&](int i) {
        const Lanes64 a = load(x + i), b = load(x + half + i);
        const Lanes64 c = load(cosines + i), s = load(sines + i);
        const Lanes64 first = a * c - b * s, second = b * c + a * s;
        turned.add(first);
        turned.add(second);
        store(x + i, first);
        store(x + half + i, second);
    });
    const Reduction reduced(15, turned.shift(15));
    each(size, [&](int i) { store(x + i, reduced(load(x + i))); });
    return exponent - 22 + reduced.shift;
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

struct Scaled {
    i64 exponent;
    Extent extent;
};

// unisono.numerics.activation: out = activation(gate) * up.
inline Scaled gated(bool gelu, const i64* gate, i64 gate_exponent, const i64* up, i64 up_exponent,
                    int n, i64* out) {
    const int shift = extent_of(gate, n).shift(24);
    const Reduction row(24, shift);
    Extent weighted, beside;
    with_align(-(gate_exponent + 20), 25, [&](const auto& aligned) {
        each(n, [&](int i) {
            const Lanes64 g = load(gate + i), t = aligned(g);
            const Lanes64 v = row(g) * sigmoid(gelu ? gelu_argument(t) : t);
            weighted.add(v);
            beside.add(load(up + i));
            store(out + i, v);
        });
    });
    const Reduction active(31, weighted.shift(31)), other(31, beside.shift(31));
    Scaled result{gate_exponent + shift - 38 + active.shift + up_exponent + other.shift, {}};
    each(n, [&](int i) {
        const Lanes64 v = active(load(out + i)) * other(load(up + i));
        result.extent.add(v);
        store(out + i, v);
    });
    return result;
}

// residual += x * 2^exponent, saturated; returns the sum's range.
inline Extent add_residual(i64* residual, const i64* x, i64 exponent, int n) {
    const Lanes64 limit = all((i64(1) << 43) - 1);
    Extent result;
    with_align(-(exponent + 20), 43, [&](const auto& aligned) {
        each(n, [&](int i) {
            const Lanes64 v = clamped(load(residual + i) + aligned(load(x + i)), limit);
            result.add(v);
            store(residual + i, v);
        });
    });
    return result;
}

// The heads of a row at one exponent, in place. See unisono.numerics.softmax.
inline Scaled join_heads(i64* x, const i64* highest, int heads, int size) {
    i64 common = highest[0];
    for (int h = 1; h < heads; h++) common = greater(common, highest[h]);
    Scaled result{common - 33, {}};
    for (int h = 0; h < heads; h++, x += size) {
        const Lanes64 shift = all(lesser<i64>(common - highest[h], MAX_SHIFT));
        each(size, [&](int i) {
            const Lanes64 v = round_shift(load(x + i) << 24, shift);
            result.extent.add(v);
            store(x + i, v);
        });
    }
    return result;
}

}  // namespace unisono
