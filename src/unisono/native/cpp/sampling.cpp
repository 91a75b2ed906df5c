#include "sampling.h"

#include <algorithm>
#include <numeric>

#include "tables.h"

namespace unisono {

namespace {

constexpr i64 ONE = i64(1) << 16;
constexpr i64 LIMIT = i64(1) << 42;
constexpr i64 MAX_DISTANCE = i64(40) << 16;

i64 base2_distance(i64 below) {
    return lesser(round_shift<16>(lesser(below, MAX_DISTANCE) * 94548), MAX_DISTANCE);
}

// Penalties and bias, then the range that everything after it is proven for.
void adjust(i64* scores, int vocabulary, const Draw& d) {
    if (d.repetition != ONE) {
        std::vector<i32> seen(d.tokens, d.tokens + d.known);
        std::sort(seen.begin(), seen.end());
        seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
        for (i32 t : seen) {
            i64& l = scores[t];
            l = l > 0 ? (l << 16) / d.repetition : (l * d.repetition) >> 16;
        }
    }
    if (d.presence || d.frequency) {
        std::vector<i32> answer(d.tokens + d.prompt, d.tokens + d.known);
        std::sort(answer.begin(), answer.end());
        for (size_t i = 0; i < answer.size();) {
            size_t j = i;
            while (j < answer.size() && answer[j] == answer[i]) j++;
            scores[answer[i]] -= d.presence + d.frequency * static_cast<i64>(j - i);
            i = j;
        }
    }
    for (i64 i = 0; i < d.biases; i++) scores[d.bias_ids[i]] += d.bias_values[i];
    for (int i = 0; i < vocabulary; i++) scores[i] = clamped(scores[i], LIMIT);
}

struct Candidate {
    i64 below, p;
    i32 id;
};

bool better(const Candidate& a, const Candidate& b) {
    return a.below != b.below ? a.below < b.below : a.id < b.id;
}

// Tokens of probability 0 rank behind all others and are never drawn.
void keep(std::vector<Candidate>& kept, i32 id, i64 distance, const Draw& d) {
    const i64 farthest = (MAX_DISTANCE * d.temperature) >> 16;  // below this, p may be above 0
    if (distance > farthest + 1) return;
    const i64 below = (distance << 16) / d.temperature;
    const i64 p = exp2_negative<28>(base2_distance(below));
    if (p) kept.push_back({below, p, id});
}

i64 loudest(const std::vector<Candidate>& kept, const Draw& d) {
    const i64 least = d.min_p << 12;
    i64 best = 0, chosen = -1;
    for (const Candidate& c : kept) {
        if (c.p < least) continue;
        const i64 key = gumbel(c.id, d) - base2_distance(c.below);
        if (chosen < 0 || key > best || (key == best && c.id < chosen)) {
            best = key;
            chosen = c.id;
        }
    }
    return chosen;
}

i64 draw_token(const i64* scores, int vocabulary, const Draw& d) {
    const i64 top = *std::max_element(scores, scores + vocabulary);
    if (d.temperature == 0) return std::find(scores, scores + vocabulary, top) - scores;
    std::vector<Candidate> kept;
    for (int i = 0; i < vocabulary; i++) keep(kept, i, top - scores[i], d);
    if (d.top_k > 0 && d.top_k < static_cast<i64>(kept.size())) {
        std::nth_element(kept.begin(), kept.begin() + (d.top_k - 1), kept.end(), better);
        kept.resize(d.top_k);
    }
    if (d.top_p < ONE) {
        std::sort(kept.begin(), kept.end(), better);
        i64 total = 0;
        for (const Candidate& c : kept) total += c.p;
        const i64 threshold = (total >> 16) * d.top_p + (((total & 0xFFFF) * d.top_p) >> 16);
        i64 before = 0;
        size_t count = 0;
        for (; count < kept.size() && (count == 0 || before < threshold); count++) {
            before += kept[count].p;
        }
        kept.resize(count);
    }
    return loudest(kept, d);
}

void report(const i64* logits, int vocabulary, Draw& d, const std::vector<i32>& likeliest) {
    const i64 top = *std::max_element(logits, logits + vocabulary);
    i64 total = 0;
    for (int i = 0; i < vocabulary; i++) {
        total += exp2_negative<28>(base2_distance(top - logits[i]));
    }
    const i64 log_total = round_shift<22>(log2_fixed(total) - (i64(28) << 38));
    const auto log_probability = [&](i64 id) {
        return round_shift<16>(-(base2_distance(top - logits[id]) + log_total) * 45426);
    };
    d.logprob = log_probability(d.token);
    for (i64 i = 0; i < d.top; i++) {
        d.top_ids[i] = likeliest[i];
        d.top_logprobs[i] = log_probability(likeliest[i]);
    }
}

std::vector<i32> ranked(const i64* logits, int vocabulary, i64 count) {
    std::vector<i32> ids(vocabulary);
    std::iota(ids.begin(), ids.end(), 0);
    std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](i32 a, i32 b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    ids.resize(count);
    return ids;
}

}  // namespace

i64 gumbel(i64 id, const Draw& d) {
    const i64 uniform = 2 * static_cast<i64>(philox<uint64_t>(id, d.position, d.seed)) + 1;
    const i64 exponential = greater<i64>((i64(33) << 38) - log2_fixed(uniform), 1);
    return round_shift<22>((i64(38) << 38) - log2_fixed(exponential));
}

i64 draw_among(const std::vector<Scored>& likeliest, i64 reached, const Draw& d) {
    if (likeliest.empty()) return -1;
    i64 top = likeliest[0].score;
    for (const Scored& s : likeliest) top = greater(top, s.score);
    std::vector<Candidate> kept;
    keep(kept, 0, top - reached, d);
    if (kept.empty() || kept[0].p < d.min_p << 12) return -1;
    kept.clear();
    for (const Scored& s : likeliest) keep(kept, s.id, top - s.score, d);
    return loudest(kept, d);
}

bool Draw::adjusts() const {
    return (repetition != ONE && known) || ((presence || frequency) && known > prompt) || biases;
}

void choose(i64* logits, int vocabulary, Draw& d) {
    std::vector<i64> original;
    if (d.top >= 0) original.assign(logits, logits + vocabulary);
    adjust(logits, vocabulary, d);
    d.token = draw_token(logits, vocabulary, d);
    if (d.top >= 0) report(original.data(), vocabulary, d, ranked(original.data(), vocabulary, d.top));
}

}  // namespace unisono
