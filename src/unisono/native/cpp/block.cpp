#include "block.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

namespace unisono {

namespace {
constexpr int ROWS_SHARED_FROM = 4;  // fewer rows are done faster than other threads wake
constexpr int ROWS_TOGETHER = 16;    // keys and values of neighbours share cache lines
constexpr i64 RESIDUAL_EXPONENT = -20;
constexpr int FULL_ROWS = 32;  // rows of logits kept at once
constexpr int LOGIT_BITS = 40;
}  // namespace

Block::Block(const BlockConfig& config, const LayerConfig* layers, const i64* frequencies,
             const i64* local_frequencies)
    : config_(config), threads_(static_cast<int>(config.threads)), layers_(config.layers),
      frequencies_(frequencies, frequencies + config.head_size / 2),
      local_frequencies_(local_frequencies, local_frequencies + config.head_size / 2),
      pools_(config.groups), epsilon_{config.epsilon_mantissa, config.epsilon_exponent},
      scratch_(threads_.size()) {
    for (size_t i = 0; i < layers_.size(); i++) layers_[i].config = layers[i];
    const i64 widest = std::max({config.hidden, config.mlp, config.heads * config.head_size});
    for (Scratch& s : scratch_) {
        s.row.resize(widest);
        s.high.resize(TILE * config.head_size + 64);
        s.low.resize(TILE * config.head_size + 64);
        s.heads.resize(TILE * config.head_size);
        s.highest.resize(TILE);
    }
}

void Block::set_matrix(int layer, int slot, const i8* values, const u16* multipliers, int outputs,
                       int inputs, i64 exponent) {
    Matrix made(arena_, values, multipliers, outputs, inputs, exponent);
    if (layer >= 0) layers_[layer].matrix[slot] = std::move(made);
    else (slot == EMBEDDING ? embedding_ : head_) = std::make_shared<Matrix>(std::move(made));
}

void Block::set_vector(int layer, int slot, const i64* values, int n, i64 exponent) {
    std::vector<i64>& kept = layer >= 0 ? layers_[layer].values[slot] : final_norm_values_;
    kept.assign(values, values + n);
    (layer >= 0 ? layers_[layer].vector[slot] : final_norm_) = Vector{kept.data(), exponent};
}

void Block::make_pool(int group, int layers, i64 pages) {
    pools_[group] = std::make_unique<PagePool>(layers, static_cast<int>(config_.kv_heads),
                                               static_cast<int>(config_.head_size), pages);
}

void Block::embed(const i64* ids, int n, i64* rows) const {
    const Matrix& w = *embedding_;
    const i64 right = -(w.exponent + config_.embedding_exponent - RESIDUAL_EXPONENT);
    with_align(right, 43, [&](const auto& aligned) {
        for (int m = 0; m < n; m++) {
            const int id = static_cast<int>(ids[m]);
            for (int k = 0; k < w.inputs; k += LANES) {
                const i64 scale = w.multiplier(id, k) * config_.embedding_mantissa;
                Lanes64 values;
                for (int i = 0; i < LANES; i++) values[i] = w.value(id, k + i);
                store(rows + i64(m) * w.inputs + k, aligned(values * scale));
            }
        }
    });
}

template <class Work>
void Block::timed(Part part, const Work& work) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    work();
    times_[part] +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

void Block::take_times(i64* out) {
    std::copy(times_, times_ + PARTS, out);
    std::fill(times_, times_ + PARTS, 0);
}

template <class Work>
void Block::each_row(int n, const Work& work) {
    timed(OPERATORS, [&] {
        if (n < ROWS_SHARED_FROM) {
            for (int m = 0; m < n; m++) work(m, scratch_[0]);
        } else {
            const int size = greater(1, lesser(ROWS_TOGETHER, n / (4 * threads_.size())));
            threads_.run((n + size - 1) / size, [&](int task, int thread) {
                const int stop = lesser(n, (task + 1) * size);
                for (int m = task * size; m < stop; m++) work(m, scratch_[thread]);
            });
        }
    });
}

void Block::resize(int n) {
    const auto room = [](auto& v, i64 size) {
        if (static_cast<i64>(v.size()) < size) v.resize(size);
    };
    const BlockConfig& c = config_;
    const int heads = static_cast<int>(c.heads * c.head_size);
    const int kv_heads = static_cast<int>(c.kv_heads * c.head_size);
    query_.resize(n, heads);
    key_.resize(n, kv_heads);
    value_.resize(n, kv_heads);
    wide_.resize(n, static_cast<int>(c.hidden));
    gate_.resize(n, static_cast<int>(c.mlp));
    up_.resize(n, static_cast<int>(c.mlp));
    room(exponent_, n);
    room(query_high_, n * c.heads * c.head_size);
    room(query_low_, n * c.heads * c.head_size);
    room(query_exponent_, n * c.heads);
    room(highest_, n * c.heads);
    for (auto* v : {&cosines_, &sines_, &local_cosines_, &local_sines_}) {
        room(*v, n * c.head_size / 2);
    }
    room(segment_of_, n);
}

void Block::forward(i64* rows, int n, const Segment* segments, int count) {
    resize(n);
    segments_ = segments;
    segment_count_ = count;
    first_row_.assign(count, 0);
    const int half = static_cast<int>(config_.head_size / 2);
    int m = 0;
    for (int s = 0; s < count; s++) {
        first_row_[s] = m;
        for (i64 i = 0; i < segments[s].count; i++) segment_of_[m++] = s;
    }
    each_row(n, [&](int r, Scratch&) {
        const Segment& s = segments[segment_of_[r]];
        const i64 position = s.start + r - first_row_[segment_of_[r]], at = i64(r) * half;
        rotation(position, frequencies_.data(), config_.factor, half, &cosines_[at], &sines_[at]);
        rotation(position, local_frequencies_.data(), config_.local_factor, half,
                 &local_cosines_[at], &local_sines_[at]);
    });
    for (Layer& layer : layers_) {
        attention(layer, rows, n);
        mlp(layer, rows, n);
    }
}

// Row m of the next product: reduced to 15 bits.
void Block::narrow(int m, const i64* x, i64 exponent, const Extent& extent) {
    const Reduction reduction(15, extent);
    exponent_[m] = exponent + reduction.shift;
    narrow_.set(m, x, reduction);
}

// The end of attention and MLP: bias, norm, and the sum with the residual row, whose range it
// returns.
Extent Block::finish(Layer& layer, int norm, int bias, const Matrix& matrix, i64* x, int m,
                     i64* row) {
    const int hidden = static_cast<int>(config_.hidden);
    i64 exponent = add_bias(x, exponent_[m] + matrix.exponent, hidden, layer.vector[bias]);
    if (const Vector weight = layer.vector[norm]) {
        rms_norm(x, exponent, hidden, weight, epsilon_, x);
        exponent = weight.exponent - 24;
    }
    return add_residual(row, x, exponent, hidden);
}

void Block::attention(Layer& layer, i64* rows, int n) {
    const int hidden = static_cast<int>(config_.hidden);
    const int width = static_cast<int>(config_.heads * config_.head_size);
    narrow_.resize(n, hidden);
    each_row(n, [&](int m, Scratch& s) {
        const Vector weight = layer.vector[ATTENTION_NORM];
        const Extent extent = rms_norm(rows + i64(m) * hidden, RESIDUAL_EXPONENT, hidden, weight,
                                       epsilon_, s.row.data());
        narrow(m, s.row.data(), weight.exponent - 24, extent);
    });
    const Target targets[] = {{layer.matrix[QUERY], query_},
                              {layer.matrix[KEY], key_},
                              {layer.matrix[VALUE], value_}};
    timed(PRODUCTS, [&] { multiply(threads_, narrow_, targets, 3); });
    each_row(n, [&](int m, Scratch&) { heads_of_row(layer, m); });
    timed(ATTENTION, [&] { attend_all(layer); });
    narrow_.resize(n, width);
    each_row(n, [&](int m, Scratch&) {
        i64* x = query_.row(m);
        const Scaled joined = join_heads(x, &highest_[i64(m) * config_.heads],
                                         static_cast<int>(config_.heads),
                                         static_cast<int>(config_.head_size));
        narrow(m, x, joined.exponent, joined.extent);
    });
    const Target output(layer.matrix[OUTPUT], wide_);
    timed(PRODUCTS, [&] { multiply(threads_, narrow_, &output, 1); });
    narrow_.resize(n, hidden);
    each_row(n, [&](int m, Scratch& s) {
        i64* row = rows + i64(m) * hidden;
        const Extent sum = finish(layer, POST_ATTENTION_NORM, OUTPUT_BIAS, layer.matrix[OUTPUT],
                                  wide_.row(m), m, row);
        const Vector weight = layer.vector[MLP_NORM];
        const Extent extent =
            rms_norm(row, sum, RESIDUAL_EXPONENT, hidden, weight, epsilon_, s.row.data());
        narrow(m, s.row.data(), weight.exponent - 24, extent);
    });
}

// Queries, keys and values of one row: biases, norms, rotation; keys and values are stored.
void Block::heads_of_row(Layer& layer, int m) {
    const int size = static_cast<int>(config_.head_size), half = size / 2;
    const Segment& segment = segments_[segment_of_[m]];
    const i64 position = segment.start + m - first_row_[segment_of_[m]];
    const bool local = layer.config.local;
    const i64* cosines = (local ? local_cosines_ : cosines_).data() + i64(m) * half;
    const i64* sines = (local ? local_sines_ : sines_).data() + i64(m) * half;
    const auto turned = [&](i64* x, i64 exponent, Vector norm) {
        if (norm) {
            rms_norm(x, exponent, size, norm, epsilon_, x);
            exponent = norm.exponent - 24;
        }
        return rotate(x, exponent, size, cosines, sines);
    };
    const i64 heads = config_.heads, kv_heads = config_.kv_heads;
    i64* q = query_.row(m);
    const i64 q_exponent = add_bias(q, exponent_[m] + layer.matrix[QUERY].exponent,
                                    static_cast<int>(heads * size), layer.vector[QUERY_BIAS]);
    for (i64 h = 0; h < heads; h++) {
        i64* x = q + h * size;
        query_exponent_[m * heads + h] = turned(x, q_exponent, layer.vector[QUERY_NORM]);
        u8* high = query_high_.data() + (m * heads + h) * size;
        u8* low = query_low_.data() + (m * heads + h) * size;
        each(size, [&](int i) {
            const Lanes64 v = load(x + i);
            store_bytes(high + i, v >> 8);
            store_bytes(low + i, v);
        });
    }
    i64 *k = key_.row(m), *v = value_.row(m);
    const int width = static_cast<int>(kv_heads * size);
    const i64 k_exponent = add_bias(k, exponent_[m] + layer.matrix[KEY].exponent, width,
                                    layer.vector[KEY_BIAS]);
    const i64 v_exponent = add_bias(v, exponent_[m] + layer.matrix[VALUE].exponent, width,
                                    layer.vector[VALUE_BIAS]);
    const i64 group = layer.config.group;
    const i64 page = segment.tables[group * segment.table_size + position / PAGE];
    for (i64 h = 0; h < kv_heads; h++) {
        const i64 turned_exponent = turned(k + h * size, k_exponent, layer.vector[KEY_NORM]);
        const i64 reduced = v_exponent + reduce_row(v + h * size, size, 15, v + h * size);
        pools_[group]->write(page, static_cast<int>(layer.config.index), static_cast<int>(h),
                             static_cast<int>(position % PAGE), k + h * size, turned_exponent,
                             v + h * size, reduced);
    }
}

// Tiles of consecutive (position, head of a key/value group) pairs of one session.
struct Block::Place {
    int segment, kv_head;
    i64 from, to;
};

void Block::attend_all(Layer& layer) {
    const i64 heads = config_.heads, kv_heads = config_.kv_heads, per = heads / kv_heads;
    const int size = static_cast<int>(config_.head_size);
    std::vector<Place> places;
    i64 pairs = 0;
    for (int s = 0; s < segment_count_; s++) pairs += segments_[s].count * heads;
    // a lone token's heads are shared out among the threads
    const i64 tile = greater<i64>(1, lesser<i64>(TILE, (pairs + threads_.size() - 1) /
                                                           threads_.size()));
    for (int s = 0; s < segment_count_; s++) {
        for (int k = 0; k < kv_heads; k++) {
            const i64 all = segments_[s].count * per;
            for (i64 from = 0; from < all; from += tile) {
                places.push_back({s, k, from, lesser(from + tile, all)});
            }
        }
    }
    const i64 window = layer.config.window;
    threads_.run(static_cast<int>(places.size()), [&](int task, int thread) {
        const Place& place = places[task];
        const Segment& segment = segments_[place.segment];
        Scratch& s = scratch_[thread];
        AttentionTile t;
        t.pool = pools_[layer.config.group].get();
        t.table = segment.tables + layer.config.group * segment.table_size;
        t.layer = static_cast<int>(layer.config.index);
        t.kv_head = place.kv_head;
        t.size = size;
        t.scale = {config_.scale_mantissa, config_.scale_exponent};
        t.rows = static_cast<int>(place.to - place.from);
        t.high = s.high.data();
        t.low = s.low.data();
        const auto index = [&](int r) {  // of the row's head among all rows' heads
            const i64 pair = place.from + r;
            const i64 m = first_row_[place.segment] + pair / per;
            return m * heads + place.kv_head * per + pair % per;
        };
        for (int r = 0; r < t.rows; r++) {
            const i64 at = index(r), position = segment.start + (place.from + r) / per;
            std::memcpy(s.high.data() + r * size, query_high_.data() + at * size, size);
            std::memcpy(s.low.data() + r * size, query_low_.data() + at * size, size);
            t.exponent[r] = query_exponent_[at];
            t.last[r] = position;
            t.first[r] = window ? greater<i64>(0, position - window + 1) : 0;
        }
        attend(t, s.attention, s.heads.data(), s.highest.data());
        for (int r = 0; r < t.rows; r++) {
            const i64 at = index(r);
            i64* to = query_.row(static_cast<int>(at / heads)) + at % heads * size;
            std::memcpy(to, s.heads.data() + r * size, size * sizeof(i64));
            highest_[at] = s.highest[r];
        }
    });
}

void Block::mlp(Layer& layer, i64* rows, int n) {
    const int hidden = static_cast<int>(config_.hidden), width = static_cast<int>(config_.mlp);
    const Target targets[] = {{layer.matrix[GATE], gate_}, {layer.matrix[UP], up_}};
    timed(PRODUCTS, [&] { multiply(threads_, narrow_, targets, 2); });
    narrow_.resize(n, width);
    each_row(n, [&](int m, Scratch& s) {
        i64 *gate = gate_.row(m), *up = up_.row(m);
        const i64 gate_exponent = add_bias(gate, exponent_[m] + layer.matrix[GATE].exponent, width,
                                           layer.vector[GATE_BIAS]);
        const i64 up_exponent = add_bias(up, exponent_[m] + layer.matrix[UP].exponent, width,
                                         layer.vector[UP_BIAS]);
        const Scaled product = gated(config_.gelu, gate, gate_exponent, up, up_exponent, width,
                                     s.row.data());
        narrow(m, s.row.data(), product.exponent, product.extent);
    });
    const Target down(layer.matrix[DOWN], wide_);
    timed(PRODUCTS, [&] { multiply(threads_, narrow_, &down, 1); });
    each_row(n, [&](int m, Scratch&) {
        finish(layer, POST_MLP_NORM, DOWN_BIAS, layer.matrix[DOWN],
               wide_.row(m), m, rows + i64(m) * hidden);
    });
}

// The final norm of some rows, as the input of the output matrix.
void Block::head_input(const i64* rows, const i64* which, int n) {
    const int hidden = static_cast<int>(config_.hidden);
    if (static_cast<int>(exponent_.size()) < n) exponent_.resize(n);
    narrow_.resize(n, hidden);
    each_row(n, [&](int m, Scratch& s) {
        const Extent extent = rms_norm(rows + which[m] * hidden, RESIDUAL_EXPONENT, hidden,
                                       final_norm_, epsilon_, s.row.data());
        narrow(m, s.row.data(), final_norm_.exponent - 24, extent);
    });
}

// The power of two that makes logits with 16 fraction bits of row m's products.
i64 Block::logit_shift(int m) const { return exponent_[m] + head_->exponent + 16; }

// One block of row m's products as logits: 16 fraction bits, 40 magnitude bits.
void Block::score(const i64* products, int m, i64* out) const {
    with_align(-logit_shift(m), LOGIT_BITS, [&](const auto& aligned) {
        each(BLOCK, [&](int i) { store(out + i, aligned(load(products + i))); });
    });
}

void Block::logits(const i64* rows, int n, i64* out) {
    std::vector<i64> which(n);
    for (int m = 0; m < n; m++) which[m] = m;
    head_input(rows, which.data(), n);
    const i64 vocabulary = head_->outputs;
    multiply(threads_, narrow_, *head_, [&](int m, int count, int first, int outputs,
                                            const i64* block, int) {
        for (int r = 0; r < count; r++) {
            alignas(64) i64 scores[BLOCK];
            score(block + r * BLOCK, m + r, scores);
            std::memcpy(out + (m + r) * vocabulary + first, scores, outputs * sizeof(i64));
        }
    });
}

void Block::draw(const i64* rows, Draw* draws, int count) {
    for (int from = 0; from < count; from += FULL_ROWS) {
        const int n = lesser(FULL_ROWS, count - from);
        std::vector<i64> which(n);
        bool listable = true;
        for (int m = 0; m < n; m++) {
            const Draw& d = draws[from + m];
            which[m] = d.row;
            listable = listable && (d.is_largest() || d.is_noisy());
        }
        head_input(rows, which.data(), n);
        if (!listable || !shortlist_.serves(threads_, narrow_, *head_) ||
            !draw_listed(draws + from, n)) {
            draw_all(draws + from, n);
        }
    }
}

namespace {
// The largest logit, the first of several, as blocks of them come in any order.
struct Largest {
    i64 score = 0, id = -1;

    void offer(i64* scores, int first, int outputs) {
        for (int i = outputs; i < BLOCK; i++) scores[i] = -(i64(1) << 62);
        const Lanes64 tops = greater(load(scores), load(scores + LANES));
        if (id >= 0 && first > id && !any(tops > score)) return;
        i64 top = tops[0];
        for (int i = 1; i < LANES; i++) top = greater<i64>(top, tops[i]);
        int i = 0;
        while (scores[i] != top) i++;
        offer({top, first + i});
    }
    void offer(const Largest& other) {
        if (other.id < 0) return;
        if (id < 0 || other.score > score || (other.score == score && other.id < id)) *this = other;
    }
};
}  // namespace

// From all logits, which are kept for draws that need more than the largest.
void Block::draw_all(Draw* draws, int n) {
    const i64 vocabulary = head_->outputs;
    std::vector<i64> slot(n, -1);
    i64 full = 0;
    for (int m = 0; m < n; m++) {
        if (!draws[m].is_largest()) slot[m] = full++;
    }
    if (static_cast<i64>(logits_.size()) < full * vocabulary) logits_.resize(full * vocabulary);
    std::vector<Largest> largest(size_t(n) * threads_.size());
    const Sink sink = [&](int m, int rows, int first, int outputs, const i64* block, int thread) {
        for (int r = 0; r < rows; r++) {
            alignas(64) i64 scores[BLOCK];
            score(block + r * BLOCK, m + r, scores);
            if (slot[m + r] >= 0) {
                std::memcpy(&logits_[slot[m + r] * vocabulary + first], scores,
                            outputs * sizeof(i64));
            } else {
                largest[size_t(thread) * n + m + r].offer(scores, first, outputs);
            }
        }
    };
    timed(HEAD_PRODUCT, [&] { multiply(threads_, narrow_, *head_, sink); });
    const auto settle = [&](int m, int) {
        if (slot[m] >= 0) {
            choose(&logits_[slot[m] * vocabulary], static_cast<int>(vocabulary), draws[m]);
            return;
        }
        for (int t = 1; t < threads_.size(); t++) largest[m].offer(largest[size_t(t) * n + m]);
        draws[m].token = largest[m].id;
    };
    timed(SAMPLING, [&] { threads_.run(n, settle); });
}

// From a shortlist; false if it may lack a token that could be drawn.
bool Block::draw_listed(Draw* draws, int n) {
    constexpr double NOISE = 65536, EXPONENT = 94548;  // units of noise; log2(e), 16 fraction bits
    constexpr double ROUNDING = 16;                    // of distances and noise, in 2^-16
    constexpr double EVERYTHING = -std::numeric_limits<double>::infinity();
    std::vector<Shortlist::Choice> choices(n);
    const auto unit = [&](int m) {  // of a logit, as a product: those within it may round the same
        return std::ldexp(1.0, static_cast<int>(clamped<i64>(-logit_shift(m), 900)));
    };
    for (int m = 0; m < n; m++) {
        if (draws[m].is_largest()) continue;
        choices[m] = {draws[m].temperature / EXPONENT * NOISE * unit(m), draws[m].position,
                      draws[m].seed};
    }
    const i64 limit = (i64(1) << LOGIT_BITS) - 1;
    std::vector<i64> reached(n);  // the logit whose sum with noise was taken as the least
    const auto judge = [&](int m, const Shortlist::Known& product, const Shortlist::Known& sum) {
        Shortlist::Least least{EVERYTHING, EVERYTHING};
        for (const Shortlist::Known* known : {&product, &sum}) {
            alignas(64) i64 scores[BLOCK];
            score(known->products, m, scores);
            for (int i = 0; i < known->outputs; i++) {
                if (scores[i] >= limit || scores[i] <= -limit) {  // saturated ones are the same
                    return Shortlist::Least{EVERYTHING, EVERYTHING};
                }
                const double value = double(known->products[i]);
                least.product = greater(least.product, value);
                if (draws[m].is_largest()) continue;
                const i64 noise = gumbel(known->first + i, draws[m]);
                const double heard = value + noise / NOISE * choices[m].noise;
                if (heard <= least.sum) continue;
                least.sum = heard;
                reached[m] = scores[i];
            }
        }
        least.product -= unit(m);
        least.sum -= unit(m) + ROUNDING / NOISE * choices[m].noise;
        return least;
    };
    std::vector<Largest> largest(size_t(n) * threads_.size());
    std::vector<std::vector<Scored>> heard(size_t(n) * threads_.size());
    const Sink sink = [&](int m, int, int first, int outputs, const i64* block, int thread) {
        const size_t at = size_t(thread) * n + m;
        alignas(64) i64 scores[BLOCK];
        score(block, m, scores);
        if (!draws[m].is_largest()) {
            for (int i = 0; i < outputs; i++) heard[at].push_back({scores[i], first + i});
        } else {
            largest[at].offer(scores, first, outputs);
        }
    };
    timed(HEAD_PRODUCT, [&] {
        shortlist_.search(threads_, narrow_, *head_, choices.data(), judge, sink);
    });
    bool complete = true;
    const auto settle = [&](int m) {
        for (int t = 1; t < threads_.size(); t++) {
            const size_t at = size_t(t) * n + m;
            largest[m].offer(largest[at]);
            heard[m].insert(heard[m].end(), heard[at].begin(), heard[at].end());
        }
        draws[m].token = draws[m].is_largest() ? largest[m].id
                                               : draw_among(heard[m], reached[m], draws[m]);
        complete = complete && draws[m].token >= 0;
    };
    timed(SAMPLING, [&] {
        for (int m = 0; m < n; m++) settle(m);
    });
    return complete;
}

}  // namespace unisono
