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
};

// `logits` int64 [vocabulary], 16 fraction bits; altered.
void choose(i64* logits, int vocabulary, Draw& draw);

}  // namespace unisono
