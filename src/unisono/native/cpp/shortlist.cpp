#include "shortlist.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "sampling.h"

namespace unisono {

#ifdef UNISONO_VNNI

namespace {
typedef uint64_t Words __attribute__((vector_size(LANES * sizeof(uint64_t))));

constexpr int RECENT_ROWS = 16;
constexpr int LEARNED_ROWS = 3 * RECENT_ROWS;  // the first may be those of a warm-up, made up
constexpr int OUTPUTS_FROM = 1 << 13;  // a shorter matrix is read faster than a second region starts
constexpr int SAMPLED_BLOCKS = 256;    // enough to know the columns' means and deviations
constexpr float CLIP = 2.9f;           // weights beyond so many deviations of their row are clipped
constexpr double FLOOR = 0.5;          // of the mean |x|: inputs that were small may be larger
constexpr int LONG = 3;                // a list of more than a third of the blocks is too long
constexpr int LONGEST_PAUSE = 1024;
constexpr int TOO_OFTEN = 64;          // after such a pause the copy is made anew
constexpr int TASKS_PER_THREAD = 16;
constexpr double MOST = 7.5;           // |q - 7.5|
constexpr float NOWHERE = -1e30f;      // the bound of outputs that do not exist

constexpr float LOG2_LOG2_E = 0.528766f;
constexpr float NOISE_ROUNDING = 0.003f;  // of fixed point, and of the constant above
constexpr float RARE = 0x1p20f;   // of 2^32: where fixed point is too coarse for such a margin,
constexpr float MOST_NOISE = 40;  // tokens count as if their noise were the most there can be

// float32 rounds by 2^-24; sums of these many terms stay far below the factors.
constexpr double ROUNDING = 1e-5;
constexpr float SUMS_ROUNDING = 1.01f, TERMS_ROUNDING = 1e-6f;

// Of 16 outputs: the four weights of a 32-bit lane, one of them.
inline __m512 weight(__m512i four, int i) {
    const __m512i top = _mm512_sll_epi32(four, _mm_cvtsi32_si128(24 - 8 * i));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
}

inline __m512 multipliers(const u16* at) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
}

// work(input, weights of the block's 16 outputs): products of value and multiplier are exact.
template <class Work>
void each_input(const Matrix& w, int b, const Work& work) {
    const i8* values = w.block(b);
    const u16* scales = w.scales(b);
    for (int g = 0; g < w.inputs / GROUP; g++, scales += BLOCK) {
        const __m512 scale = multipliers(scales);
        for (int q = 0; q < GROUP / 4; q++, values += 64) {
            const __m512i four = _mm512_loadu_si512(values);
            for (int i = 0; i < 4; i++) work(g * GROUP + 4 * q + i, weight(four, i) * scale);
        }
    }
}

}  // namespace

// A row as the copy is multiplied with it.
struct Shortlist::Query {
    std::vector<u8> high, low;  // signed bytes: x' = 256 high + low
    i32 offset;                 // 7.5 times the sum of x'
    float error, length;        // of the bound: what steps and what rests are multiplied with
    double common, factor;      // a product is common + compared / factor
};

bool Shortlist::serves(Pool& pool, const NarrowRows& x, const Matrix& w) {
    if (x.rows() > ROWS || w.outputs < OUTPUTS_FROM) return false;
    if (!built_) learn(x);
    if (pause_ > 0) {
        pause_--;
        return false;
    }
    if (!built_ && learned_ < LEARNED_ROWS) return false;
    if (!built_) build(pool, w);
    return true;
}

void Shortlist::learn(const NarrowRows& x) {
    const int inputs = x.inputs();
    seen_.resize(inputs);
    for (int m = 0; m < x.rows(); m++, learned_++) {
        int top = 1;
        for (int i = 0; i < inputs; i++) top = greater(top, std::abs(x.value(m, i)));
        for (int i = 0; i < inputs; i++) {
            seen_[i] += (std::abs(x.value(m, i)) / double(top) - seen_[i]) / RECENT_ROWS;
        }
    }
}

void Shortlist::build(Pool& pool, const Matrix& w) {
    inputs_ = w.inputs;
    const int blocks = w.blocks();
    sample(w);
    if (!digits_) {
        digits_ = static_cast<u8*>(arena_.take(size_t(blocks) * BLOCK * inputs_ / 2));
        scales_ = static_cast<float*>(arena_.take(size_t(blocks) * 2 * BLOCK * sizeof(float)));
    }
    pool.share(blocks, TASKS_PER_THREAD, [&](int from, int to, int) {
        for (int b = from; b < to; b++) build_block(w, b);
    });
    built_ = true;
}

void Shortlist::sample(const Matrix& w) {
    const int blocks = w.outputs / BLOCK;  // whole ones
    const int stride = greater(1, blocks / SAMPLED_BLOCKS);
    std::vector<double> sum(inputs_), squares(inputs_);
    double count = 0;
    for (int b = 0; b < blocks; b += stride, count += BLOCK) {
        each_input(w, b, [&](int i, __m512 v) {
            sum[i] += _mm512_reduce_add_ps(v);
            squares[i] += _mm512_reduce_add_ps(v * v);
        });
    }
    for (auto* v : {&mean_, &deviation_, &inverse_, &importance_}) v->resize(inputs_);
    seen_.resize(inputs_);
    double typical = 0, mean_seen = 0;
    for (int i = 0; i < inputs_; i++) {
        const double mean = count > 0 ? sum[i] / count : 0;
        mean_[i] = static_cast<float>(mean);
        const double variance = count > 0 ? squares[i] / count - mean * mean : 0;
        deviation_[i] = static_cast<float>(std::sqrt(greater(variance, 0.0)));
        typical += deviation_[i] / inputs_;
        mean_seen += seen_[i] / inputs_;
    }
    for (int i = 0; i < inputs_; i++) {
        // a column that hardly varies among the sampled outputs may do so among others
        float& deviation = deviation_[i];
        deviation = typical > 0 ? greater(deviation, static_cast<float>(typical / 64)) : 1.0f;
        inverse_[i] = 1 / deviation;
        const double usual = mean_seen > 0 ? seen_[i] / mean_seen + FLOOR : 1.0;
        importance_[i] = static_cast<float>(std::sqrt(usual / deviation));
    }
}

void Shortlist::build_block(const Matrix& w, int b) {
    __m512 squares = _mm512_setzero_ps(), top = squares;
    each_input(w, b, [&](int i, __m512 v) {
        const __m512 standard = (v - mean_[i]) * inverse_[i];
        squares = _mm512_fmadd_ps(standard, standard, squares);
        top = _mm512_max_ps(top, _mm512_abs_ps(standard));
    });
    const __m512 spread_of_row = _mm512_sqrt_ps(squares / float(inputs_)) * CLIP;
    const __m512 step = _mm512_min_ps(top, spread_of_row) / 8.0f;
    // rows without any spread have a step of zero, and every weight is their middle
    const __mmask16 varies = _mm512_cmp_ps_mask(step, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 inverse = _mm512_maskz_div_ps(varies, _mm512_set1_ps(1), step);
    __m512 rest = _mm512_setzero_ps(), whole = rest;
    __m512i* to = reinterpret_cast<__m512i*>(digits_ + size_t(b) * inputs_ / 2 * BLOCK);
    __m512i packed = _mm512_setzero_si512();
    each_input(w, b, [&](int i, __m512 v) {
        const __m512 centred = v - mean_[i];
        const __m512 at = centred * inverse_[i] * inverse + 8.0f;
        __m512i q = _mm512_cvttps_epi32(_mm512_max_ps(at, _mm512_setzero_ps()));
        q = _mm512_min_epi32(q, _mm512_set1_epi32(15));
        const __m512 taken = (_mm512_cvtepi32_ps(q) - 7.5f) * step * deviation_[i];
        const __m512 left = (centred - taken) * importance_[i];
        const __m512 size = (_mm512_abs_ps(centred) + _mm512_abs_ps(taken)) * importance_[i];
        rest = _mm512_fmadd_ps(left, left, rest);
        whole = _mm512_fmadd_ps(size, size, whole);
        // inputs 0 to 3 of eight are the lower halves of the lane's bytes, 4 to 7 the upper ones
        packed |= _mm512_sll_epi32(q, _mm_cvtsi32_si128(8 * (i % 4) + (i % 8) / 4 * 4));
        if (i % 8 == 7) {
            _mm512_storeu_si512(to++, packed);
            packed = _mm512_setzero_si512();
        }
    });
    const int outputs = w.outputs - b * BLOCK;
    const __mmask16 exist = outputs >= BLOCK ? 0xFFFF : static_cast<__mmask16>((1 << outputs) - 1);
    const __m512 bound =
        _mm512_sqrt_ps(rest) * SUMS_ROUNDING + _mm512_sqrt_ps(whole) * TERMS_ROUNDING;
    float* scales = scales_ + size_t(b) * 2 * BLOCK;
    _mm512_storeu_ps(scales, _mm512_maskz_mov_ps(exist, step));
    _mm512_storeu_ps(scales + BLOCK,
                     _mm512_mask_mov_ps(_mm512_set1_ps(NOWHERE), exist, bound));
}

Shortlist::Query Shortlist::prepare(const NarrowRows& x, int m) const {
    Query query;
    query.high.resize(inputs_);
    query.low.resize(inputs_);
    // two signed bytes hold 127 * 256 + 127, and sums of 15 x' stay below 2^31
    const double limit = lesser(32639.0, 2147483647.0 / (16.0 * inputs_));
    double top = 0, common = 0, importance = 0;
    for (int i = 0; i < inputs_; i++) {
        const double value = x.value(m, i);
        top = greater(top, std::abs(value * deviation_[i]));
        common += value * mean_[i];
        importance += value * value / (double(importance_[i]) * importance_[i]);
    }
    const double factor = top > 0 ? limit / top : 1.0;
    i64 sum = 0;
    double squares = 0;
    for (int i = 0; i < inputs_; i++) {
        const int scaled = static_cast<int>(std::lrint(x.value(m, i) * deviation_[i] * factor));
        query.high[i] = static_cast<u8>((scaled + 128) >> 8);
        query.low[i] = static_cast<u8>(scaled);
        sum += scaled;
        squares += double(scaled) * scaled;
    }
    query.offset = static_cast<i32>(15 * sum / 2);
    query.common = common;
    query.factor = factor;
    const double root = std::sqrt(double(inputs_));
    query.error = static_cast<float>(MOST * root * (root / 2 + ROUNDING * std::sqrt(squares)) + 1);
    query.length = static_cast<float>(std::sqrt(importance) * factor * (1 + ROUNDING));
    return query;
}

// int32 [R][16]: sums of x' q over the inputs.
template <int R>
void Shortlist::estimate(const Query* queries, int b, i32* sums) const {
    constexpr int CHAINS = 2;  // one row would wait for its own sums
    const u8* from = digits_ + size_t(b) * inputs_ / 2 * BLOCK;
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i high[R][CHAINS], low[R][CHAINS];
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < CHAINS; c++) high[r][c] = low[r][c] = _mm512_setzero_si512();
    }
    for (int i = 0; i < inputs_; i += 8, from += 64) {
        const __m512i both = _mm512_loadu_si512(from);
        const __m512i half[2] = {both & nibble, _mm512_srli_epi16(both, 4) & nibble};
        for (int r = 0; r < R; r++) {
            for (int h = 0; h < 2; h++) {
                __m512i &a = high[r][h % CHAINS], &l = low[r][h % CHAINS];
                a = _mm512_dpbusd_epi32(a, half[h], spread(&queries[r].high[i + 4 * h]));
                l = _mm512_dpbusd_epi32(l, half[h], spread(&queries[r].low[i + 4 * h]));
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int c = 1; c < CHAINS; c++) {
            high[r][0] = _mm512_add_epi32(high[r][0], high[r][c]);
            low[r][0] = _mm512_add_epi32(low[r][0], low[r][c]);
        }
        _mm512_storeu_si512(sums + r * BLOCK,
                            _mm512_add_epi32(_mm512_slli_epi32(high[r][0], 8), low[r][0]));
    }
}

namespace {

// At least the noise of a block's tokens, in units of ln 2.
inline __m512 noise_bound(int first, const Shortlist::Choice& choice) {
    const Words low = Words{0, 1, 2, 3, 4, 5, 6, 7} + static_cast<uint64_t>(first);
    const Words position = Words{} + static_cast<uint64_t>(choice.position);
    const __m256i a = _mm512_cvtepi64_epi32((__m512i)philox(low, position, choice.seed));
    const __m256i b = _mm512_cvtepi64_epi32((__m512i)philox(low + LANES, position, choice.seed));
    const __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    // z = (2^33 - (2 word + 1)) / 2^33, in units of 2^-32
    const __m512 z = _mm512_cvtepu32_ps(~words) + 0.5f;
    const __m512 log2 = _mm512_cvtepi32_ps(_mm512_castps_si512(z)) * 0x1p-23f - (127 + 32);
    const __m512 bound = NOISE_ROUNDING - LOG2_LOG2_E - log2;
    return _mm512_mask_mov_ps(bound, _mm512_cmp_ps_mask(z, _mm512_set1_ps(RARE), _CMP_LT_OQ),
                              _mm512_set1_ps(MOST_NOISE));
}

// The block with the highest of some values, as one thread sees them come.
struct Candidate {
    float value = NOWHERE;
    int block = -1;

    void offer(__m512 values, int b) {
        const __m512 known = _mm512_set1_ps(value);
        if (block < 0 || _mm512_cmp_ps_mask(values, known, _CMP_GT_OQ)) {
            value = _mm512_reduce_max_ps(values);
            block = b;
        }
    }
};

}  // namespace

int Shortlist::search(Pool& pool, const NarrowRows& x, const Matrix& w, const Choice* choices,
                      const Judge& judge, const Sink& sink) {
    const int rows = x.rows(), blocks = w.blocks();
    std::vector<Query> queries;
    for (int m = 0; m < rows; m++) queries.push_back(prepare(x, m));
    for (auto* v : {&highest_, &loudest_}) {
        if (v->size() < size_t(rows) * blocks) v->resize(size_t(rows) * blocks);
    }
    struct Seen {
        Candidate product, sum;
    };
    std::vector<Seen> seen(size_t(rows) * pool.size());

    pool.share(blocks, TASKS_PER_THREAD, [&](int from, int to, int thread) {
        alignas(64) i32 sums[ROWS * BLOCK];
        for (int b = from; b < to; b++) {
            switch (rows) {
                case 1: estimate<1>(queries.data(), b, sums); break;
                case 2: estimate<2>(queries.data(), b, sums); break;
                case 3: estimate<3>(queries.data(), b, sums); break;
                default: estimate<4>(queries.data(), b, sums);
            }
            const __m512 step = _mm512_loadu_ps(scales_ + size_t(b) * 2 * BLOCK);
            const __m512 rest = _mm512_loadu_ps(scales_ + size_t(b) * 2 * BLOCK + BLOCK);
            for (int m = 0; m < rows; m++) {
                const Query& query = queries[m];
                const __m512i centred = _mm512_sub_epi32(_mm512_load_si512(sums + m * BLOCK),
                                                         _mm512_set1_epi32(query.offset));
                const __m512 middle = _mm512_cvtepi32_ps(centred);
                const __m512 most = step * (middle + query.error) + rest * query.length;
                Seen& found = seen[size_t(thread) * rows + m];
                highest_[size_t(m) * blocks + b] = _mm512_reduce_max_ps(most);
                found.product.offer(step * middle, b);
                if (choices[m].noise > 0) {
                    const float unit = static_cast<float>(choices[m].noise * query.factor);
                    const __m512 noise = noise_bound(b * BLOCK, choices[m]) * unit;
                    loudest_[size_t(m) * blocks + b] = _mm512_reduce_max_ps(most + noise);
                    found.sum.offer(step * middle + noise, b);
                }
            }
        }
    });

    float lowest[ROWS], quietest[ROWS];
    for (int m = 0; m < rows; m++) {
        Seen best;
        for (int t = 0; t < pool.size(); t++) {
            const Seen& other = seen[size_t(t) * rows + m];
            if (other.product.value > best.product.value) best.product = other.product;
            if (other.sum.value > best.sum.value) best.sum = other.sum;
        }
        alignas(64) i64 products[2][BLOCK];
        const auto known = [&](const Candidate& candidate, i64* to) {
            const int b = greater(candidate.block, 0);
            product_block(x, m, w, b, to);
            return Known{b * BLOCK, lesser(BLOCK, w.outputs - b * BLOCK), to};
        };
        const Known likely = known(best.product, products[0]);
        const Least least =
            judge(m, likely, choices[m].noise > 0 ? known(best.sum, products[1]) : likely);
        const auto compared = [&](double product) {
            const double value = (product - queries[m].common) * queries[m].factor;
            return static_cast<float>(value - ROUNDING * std::abs(value));
        };
        lowest[m] = compared(least.product);
        quietest[m] = compared(least.sum);
    }

    std::atomic<int> listed{0};
    pool.share(blocks, TASKS_PER_THREAD, [&](int from, int to, int thread) {
        alignas(64) i64 products[BLOCK];
        int here = 0;
        for (int m = 0; m < rows; m++) {
            const float* highest = highest_.data() + size_t(m) * blocks;
            const float* loudest = loudest_.data() + size_t(m) * blocks;
            for (int b = from; b < to; b++) {
                const bool heard = choices[m].noise > 0 && loudest[b] >= quietest[m];
                if (highest[b] < lowest[m] && !heard) continue;
                product_block(x, m, w, b, products);
                sink(m, 1, b * BLOCK, lesser(BLOCK, w.outputs - b * BLOCK), products, thread);
                here++;
            }
        }
        listed += here;
    });
    if (listed <= rows * blocks / LONG) {
        next_pause_ = FIRST_PAUSE;
    } else {
        pause_ = next_pause_;
        next_pause_ = lesser(2 * next_pause_, LONGEST_PAUSE);
        if (pause_ >= TOO_OFTEN) built_ = false, learned_ = 0;
    }
    return listed;
}

#else

// Without the instructions for it the copy would not be read faster than the matrix.
struct Shortlist::Query {};
bool Shortlist::serves(Pool&, const NarrowRows&, const Matrix&) { return false; }
void Shortlist::learn(const NarrowRows&) {}
void Shortlist::build(Pool&, const Matrix&) {}
int Shortlist::search(Pool& pool, const NarrowRows& x, const Matrix& w, const Choice*,
                      const Judge&, const Sink& sink) {
    multiply(pool, x, w, sink);
    return x.rows() * w.blocks();
}

#endif

}  // namespace unisono
