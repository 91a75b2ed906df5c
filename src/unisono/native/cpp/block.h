// A block of decoder layers (unisono.models.decoder): one pass over rows of many sessions.
#pragma once
#include <memory>
#include <vector>

#include "attention.h"
#include "cache.h"
#include "product.h"
#include "rows.h"
#include "sampling.h"
#include "shortlist.h"
#include "threads.h"

namespace unisono {

// Shared with Python: 64-bit fields only.
struct BlockConfig {
    i64 layers, hidden, heads, kv_heads, head_size, mlp, vocabulary;
    i64 gelu;
    i64 epsilon_mantissa, epsilon_exponent;
    i64 scale_mantissa, scale_exponent;
    i64 embedding_mantissa, embedding_exponent;
    i64 factor, local_factor;
    i64 groups;   // page pools
    i64 threads;
};

struct LayerConfig {
    i64 window;  // 0: sees everything
    i64 local;   // which rotary frequencies
    i64 group, index;  // where its keys and values lie
};

struct Segment {
    i64 start, count;
    const i64* tables;   // [groups][table_size] pages of the session
    i64 table_size;
};

// What a pass spends its time on, in nanoseconds of the calling thread.
enum Part { PRODUCTS, ATTENTION, OPERATORS, HEAD_PRODUCT, SAMPLING, PARTS };

enum MatrixSlot { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, LAYER_MATRICES, EMBEDDING, HEAD };
enum VectorSlot {
    ATTENTION_NORM, MLP_NORM, QUERY_NORM, KEY_NORM, POST_ATTENTION_NORM, POST_MLP_NORM,
    QUERY_BIAS, KEY_BIAS, VALUE_BIAS, OUTPUT_BIAS, GATE_BIAS, UP_BIAS, DOWN_BIAS, LAYER_VECTORS,
    FINAL_NORM
};

class Block {
  public:
    Block(const BlockConfig& config, const LayerConfig* layers, const i64* frequencies,
          const i64* local_frequencies);

    // Layer -1: the ends of the model. A head that is the embedding is set once as both.
    void set_matrix(int layer, int slot, const i8* values, const u16* multipliers, int outputs,
                    int inputs, i64 exponent);
    void set_vector(int layer, int slot, const i64* values, int n, i64 exponent);
    void tie_head() { head_ = embedding_; }
    void make_pool(int group, int layers, i64 pages);
    PagePool& pool(int group) { return *pools_[group]; }
    const BlockConfig& config() const { return config_; }

    void embed(const i64* ids, int n, i64* rows) const;
    void forward(i64* rows, int n, const Segment* segments, int count);
    void logits(const i64* rows, int n, i64* out);
    // Chooses a token per draw; draw.row says which row it follows.
    void draw(const i64* rows, Draw* draws, int count);
    // Time by part since the last call.
    void take_times(i64* out);

  private:
    struct Layer {
        LayerConfig config;
        Matrix matrix[LAYER_MATRICES];
        std::vector<i64> values[LAYER_VECTORS];
        Vector vector[LAYER_VECTORS];
    };
    struct Scratch {
        std::vector<i64> row, highest;
        std::vector<u8> high, low;
        std::vector<i64> heads;
        AttentionScratch attention;
    };
    struct Place;

    template <class Work>
    void timed(Part part, const Work& work);
    template <class Work>
    void each_row(int n, const Work& work);
    void attention(Layer& layer, i64* rows, int n);
    void heads_of_row(Layer& layer, int m);
    void attend_all(Layer& layer);
    void mlp(Layer& layer, i64* rows, int n);
    void narrow(int m, const i64* x, i64 exponent, const Extent& extent);
    Extent finish(Layer& layer, int norm, int bias, const Matrix& matrix, i64* x, int m, i64* row);
    void draw_all(Draw* draws, int n);
    bool draw_listed(Draw* draws, int n);
    i64 logit_shift(int m) const;
    void score(const i64* products, int m, i64* out) const;
    void head_input(const i64* rows, const i64* which, int n);
    void resize(int n);

    Arena arena_;  // before all that lies in it
    BlockConfig config_;
    Pool threads_;
    std::vector<Layer> layers_;
    std::vector<i64> frequencies_, local_frequencies_;
    std::vector<std::unique_ptr<PagePool>> pools_;
    std::shared_ptr<Matrix> embedding_, head_;
    Shortlist shortlist_;  // of the head's outputs
    std::vector<i64> final_norm_values_;
    Vector final_norm_;
    Epsilon epsilon_;

    // one pass
    const Segment* segments_ = nullptr;
    int segment_count_ = 0;
    std::vector<int> segment_of_, first_row_;
    std::vector<Scratch> scratch_;
    NarrowRows narrow_;
    std::vector<i64> exponent_;  // of the narrow rows
    ResultRows query_, key_, value_, wide_, gate_, up_;
    std::vector<i64> cosines_, sines_, local_cosines_, local_sines_;
    std::vector<u8> query_high_, query_low_;
    std::vector<i64> query_exponent_, highest_;
    std::vector<i64> logits_;
    i64 times_[PARTS] = {};
};

}  // namespace unisono
