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
    const Reduction to_row(30, given);
    exponent += to_row.shift;
    // the range of the reduced row, from that of the given one: reducing is monotonic
    Extent kept;
    kept.add(to_row(all(given.top())));
    kept.add(to_row(all(given.bottom())));
    const Reduction to_copy(15, kept);
    const i64 shift = to_copy.shift;
    Lanes64 sums = {};
    with_reductions(to_row, to_copy, [&](const auto& row, const auto& copy) {
        each(n, [&](int i) {
            const Lanes64 c = copy(row(load(x + i)));
            sums += short_product(c, c);
        });
    });
    i64 total = 0;
    for (int i = 0; i < LANES; i++) total += sums[i];
    const i64 mean = (total << 16) / n;
    const i64 added = align(epsilon.mantissa, 2 * (exponent + shift) - 16 - epsilon.exponent, 50);
    const i64 root = greater<i64>(square_root(mean + added), 1);
    const i64 inverse = (i64(1) << 46) / root;
    const Lanes64 half = all(i64(1) << (shift + 13)), right = all(shift + 14);
    Extent result;
    with_reduction(to_row, [&](const auto& row) {
        each(n, [&](int i) {
            const Lanes64 normal = (row(load(x + i)) * inverse + half) >> right;
            const Lanes64 v = normal * load(weight.values + i);
            result.add(v);
            store(out + i, v);
        });
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
        const Lanes64 first = short_product(a, c) - short_product(b, s);
        const Lanes64 second = short_product(b, c) + short_product(a, s);
        turned.add(first);
        turned.add(second);
        store(x + i, first);
        store(x + half + i, second);
    });
    const Reduction reduction(15, turned);
    with_reduction(reduction, [&](const auto& reduced) {
        each(size, [&](int i) { store(x + i, reduced(load(x + i))); });
    });
    return exponent - 22 + reduction.shift;
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

// Elements that go through the steps of a gate together: each step alone has few enough
// dependent instructions that many vectors are on their way at once.
constexpr int STRIP = 128;

// unisono.numerics.activation: out = activation(gate) * up.
inline Scaled gated(bool gelu, const i64* gate, i64 gate_exponent, const i64* up, i64 up_exponent,
                    int n, i64* out) {
    const Reduction to_row(24, extent_of(gate, n));
    Extent weighted, beside;
    with_align(-(gate_exponent + 20), 25, [&](const auto& aligned) {
        alignas(64) i64 argument[STRIP], power[STRIP];
        for (int from = 0; from < n; from += STRIP) {
            const int count = lesser(STRIP, n - from);
            each(count, [&](int i) {
                const Lanes64 t = aligned(load(gate + from + i));
                store(argument + i, gelu ? gelu_argument(t) : t);
            });
            each(count, [&](int i) { store(power + i, sigmoid_power(load(argument + i))); });
            each(count, [&](int i) {
                const Lanes64 sigmoids = sigmoid(load(argument + i), load(power + i));
                const Lanes64 v = to_row(load(gate + from + i)) * sigmoids;
                weighted.add(v);
                beside.add(load(up + from + i));
                store(out + from + i, v);
            });
        }
    });
    const Reduction to_active(31, weighted), to_other(31, beside);
    Scaled result{gate_exponent + to_row.shift - 38 + to_active.shift + up_exponent +
                      to_other.shift,
                  {}};
    with_reductions(to_active, to_other, [&](const auto& active, const auto& other) {
        each(n, [&](int i) {
            const Lanes64 v = short_product(active(load(out + i)), other(load(up + i)));
            result.extent.add(v);
            store(out + i, v);
        });
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
