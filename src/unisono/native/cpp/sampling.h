// Choosing a token (unisono.numerics.sampling).
#pragma once
#include <vector>

#include "fixed.h"

namespace unisono {

// One choice. Fractions have 16 fraction bits. Shared with Python: plain 64-bit fields.
struct Draw {
    i64 row;
    i64 position;
    i64 temperature, top_k, top_p, min_p;
    i64 repetition, presence, frequency;
    uint64_t seed;
    const i32* tokens;  // prompt and answer so far
    i64 prompt, known;  // their lengths: the prompt's, and of both together
    const i64* bias_ids;
    const i64* bias_values;
    i64 biases;
    i64 top;  // how many likeliest tokens to report; -1: no log probabilities at all
    i64 token, logprob;  // results from here on
    i64 top_ids[32], top_logprobs[32];

    bool adjusts() const;
    // Whether the token is simply the largest logit.
    bool is_largest() const { return temperature == 0 && top < 0 && !adjusts(); }
    // Whether it is the largest sum of a logit and noise, among tokens that are likely enough.
    bool is_noisy() const {
        return temperature > 0 && top < 0 && top_k == 0 && top_p == (i64(1) << 16) && !adjusts();
    }
};

struct Scored {
    i64 score;  // a logit
    i32 id;
};

// Philox 4x32-10 (Salmon et al., SC 2011), the first of its words: 32 bits of a 64-bit lane, of
// which the upper half is zero.
template <class T>
inline T philox(T counter, T position, uint64_t seed) {
    const T word = T{} + 0xFFFFFFFFu;
    T a = counter, b = position, c = T{}, d = T{};
    uint64_t key0 = seed & 0xFFFFFFFF, key1 = seed >> 32;
    for (int round = 0; round < 10; round++) {
        const T x = a * 0xD2511F53u, y = c * 0xCD9E8D57u;
        a = (y >> 32) ^ b ^ key0;
        b = y & word;
        c = (x >> 32) ^ d ^ key1;
        d = x & word;
        key0 = (key0 + 0x9E3779B9u) & 0xFFFFFFFF;
        key1 = (key1 + 0xBB67AE85u) & 0xFFFFFFFF;
    }
    return a;
}

// Standard Gumbel noise of a token in units of ln 2, 16 fraction bits.
i64 gumbel(i64 id, const Draw& draw);
// The token of a draw that is_noisy. `likeliest` has the largest logit and may leave out tokens that
// are quieter than the one with the logit `reached`: -1 if that one is not likely enough to be drawn.
i64 draw_among(const std::vector<Scored>& likeliest, i64 reached, const Draw& draw);

// `logits` int64 [vocabulary], 16 fraction bits; altered.
void choose(i64* logits, int vocabulary, Draw& draw);

}  // namespace unisono
