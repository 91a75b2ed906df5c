// The C interface that unisono.native.library loads. Nothing throws across it: a failure leaves
// its text in `unisono_error` and returns null or -1.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "block.h"

using namespace unisono;

namespace {
thread_local std::string failure;

template <class Work>
int guarded(const Work& work) {
    try {
        work();
        return 0;
    } catch (const std::exception& e) {
        failure = e.what();
        return -1;
    }
}
}  // namespace

extern "C" {

// CPU features (as Linux names them) that this build's instructions need, separated by spaces.
extern const char unisono_features[];
const char unisono_features[] =
    "base "
#ifdef __AVX2__
    "avx2 "
#endif
#ifdef __FMA__
    "fma "
#endif
#ifdef __SHA__
    "sha_ni "
#endif
#ifdef __AVX512F__
    "avx512f "
#endif
#ifdef __AVX512BW__
    "avx512bw "
#endif
#ifdef __AVX512DQ__
    "avx512dq "
#endif
#ifdef __AVX512VL__
    "avx512vl "
#endif
#ifdef __AVX512VNNI__
    "avx512_vnni "
#endif
#ifdef __AVX512VBMI__
    "avx512vbmi "
#endif
#ifdef __AVX512FP16__
    "avx512_fp16 "
#endif
#ifdef __AVX512VBMI2__
    "avx512_vbmi2 "
#endif
#ifdef __BMI__
    "bmi1 "
#endif
#ifdef __BMI2__
    "bmi2 "
#endif
#ifdef __LZCNT__
    "abm "
#endif
#ifdef __GFNI__
    "gfni "
#endif
#ifdef __AMX_INT8__
    "amx_int8 "
#endif
    ;

const char* unisono_error() { return failure.c_str(); }

int unisono_set_tables(const i64* exp2, const i64* gate, const i64* cosine, const i64* log2) {
    return guarded([&] { tables.set(exp2, gate, cosine, log2); });
}

// Returns what computes products now: 0 portable, 1 AVX2, 2 VNNI, 3 tiles.
int unisono_kernels() {
#if defined(UNISONO_VNNI)
    return tiles_enabled() ? 3 : 2;
#elif defined(UNISONO_AVX2)
    return 1;
#else
    return 0;
#endif
}

void unisono_enable_tiles(int wanted) { enable_tiles(wanted != 0); }

Block* unisono_block(const BlockConfig* config, const LayerConfig* layers, const i64* frequencies,
                     const i64* local_frequencies) {
    Block* made = nullptr;
    guarded([&] { made = new Block(*config, layers, frequencies, local_frequencies); });
    return made;
}

void unisono_free_block(Block* block) { delete block; }

int unisono_set_matrix(Block* block, i64 layer, i64 slot, const i8* values, const u16* multipliers,
                       i64 outputs, i64 inputs, i64 exponent) {
    return guarded([&] {
        block->set_matrix(static_cast<int>(layer), static_cast<int>(slot), values, multipliers,
                          static_cast<int>(outputs), static_cast<int>(inputs), exponent);
    });
}

int unisono_set_vector(Block* block, i64 layer, i64 slot, const i64* values, i64 n, i64 exponent) {
    return guarded([&] {
        block->set_vector(static_cast<int>(layer), static_cast<int>(slot), values,
                          static_cast<int>(n), exponent);
    });
}

void unisono_tie_head(Block* block) { block->tie_head(); }

int unisono_make_pool(Block* block, i64 group, i64 layers, i64 pages) {
    return guarded([&] {
        block->make_pool(static_cast<int>(group), static_cast<int>(layers), pages);
    });
}

// A page's bytes: to copy it, to swap it out and in.
u8* unisono_page(Block* block, i64 group, i64 page) {
    return block->pool(static_cast<int>(group)).page(page);
}

i64 unisono_page_bytes(Block* block, i64 group) {
    return block->pool(static_cast<int>(group)).page_bytes();
}

void unisono_discard_page(Block* block, i64 group, i64 page) {
    block->pool(static_cast<int>(group)).discard(page);
}

int unisono_embed(Block* block, const i64* ids, i64 n, i64* rows) {
    return guarded([&] { block->embed(ids, static_cast<int>(n), rows); });
}

int unisono_forward(Block* block, i64* rows, i64 n, const Segment* segments, i64 count) {
    return guarded([&] {
        block->forward(rows, static_cast<int>(n), segments, static_cast<int>(count));
    });
}

int unisono_logits(Block* block, const i64* rows, i64 n, i64* out) {
    return guarded([&] { block->logits(rows, static_cast<int>(n), out); });
}

int unisono_draw(Block* block, const i64* rows, Draw* draws, i64 count) {
    return guarded([&] { block->draw(rows, draws, static_cast<int>(count)); });
}

// int64 [5]: nanoseconds of products, attention, other operators, output matrix, sampling.
void unisono_take_times(Block* block, i64* out) { block->take_times(out); }

// Single operators, for tests and benchmarks.

struct HeldMatrix {
    Arena arena{size_t(1) << 20};
    Matrix matrix;
};

HeldMatrix* unisono_matrix(const i8* values, const u16* multipliers, i64 outputs, i64 inputs) {
    HeldMatrix* made = nullptr;
    guarded([&] {
        auto held = std::make_unique<HeldMatrix>();
        held->matrix = Matrix(held->arena, values, multipliers, static_cast<int>(outputs),
                              static_cast<int>(inputs), 0);
        made = held.release();
    });
    return made;
}

void unisono_free_matrix(HeldMatrix* held) { delete held; }

int unisono_product(const HeldMatrix* held, const i64* x, i64 rows, i64 threads, i64* out) {
    const Matrix* matrix = &held->matrix;
    return guarded([&] {
        Pool pool(static_cast<int>(threads));
        NarrowRows narrow;
        narrow.resize(static_cast<int>(rows), matrix->inputs);
        const Reduction unchanged(15, 0);
        for (int m = 0; m < rows; m++) narrow.set(m, x + i64(m) * matrix->inputs, unchanged);
        const Target target(*matrix, out, size_t(matrix->outputs));
        multiply(pool, narrow, &target, 1);
    });
}

// The output with the largest product of each row, the first of several, by a shortlist that was
// made after `learned` rows; `listed` is how many blocks were computed for all of them together.
int unisono_largest(const HeldMatrix* held, const i64* x, i64 rows, i64 learned, i64 threads,
                    i64* out, i64* listed) {
    const Matrix& matrix = held->matrix;
    return guarded([&] {
        Pool pool(static_cast<int>(threads));
        Shortlist shortlist;
        NarrowRows narrow;
        const Reduction unchanged(15, 0);
        const auto take = [&](i64 from, i64 count) {
            narrow.resize(static_cast<int>(count), matrix.inputs);
            for (int m = 0; m < count; m++) narrow.set(m, x + (from + m) * matrix.inputs, unchanged);
        };
        for (i64 m = 0; m < learned; m++) {
            take(m, 1);
            shortlist.learn(narrow);
        }
        shortlist.build(pool, matrix);
        *listed = 0;
        for (i64 from = 0; from < rows; from += Shortlist::ROWS) {
            const i64 count = lesser<i64>(Shortlist::ROWS, rows - from);
            take(from, count);
            std::mutex lock;
            std::vector<std::pair<i64, i64>> best(count, {INT64_MIN, 0});  // product, -output
            const Shortlist::Choice choices[Shortlist::ROWS] = {};
            const auto judge = [](int, const Shortlist::Known& known, const Shortlist::Known&) {
                const i64* first = known.products;
                return Shortlist::Least{double(*std::max_element(first, first + known.outputs)), 0};
            };
            const Sink sink = [&](int m, int rows_here, int first, int outputs, const i64* block,
                                  int) {
                const std::lock_guard<std::mutex> held_here(lock);
                for (int i = 0; i < rows_here * outputs; i++) {
                    const int r = i / outputs, n = i % outputs;
                    best[m + r] = std::max(best[m + r], {block[r * BLOCK + n], -(first + n)});
                }
            };
            *listed += shortlist.search(pool, narrow, matrix, choices, judge, sink);
            for (int m = 0; m < count; m++) out[from + m] = -best[m].second;
        }
    });
}

void unisono_norm(const i64* x, i64 exponent, i64 n, const i64* weight, i64 mantissa,
                  i64 epsilon_exponent, i64* out) {
    rms_norm(x, exponent, static_cast<int>(n), Vector{weight, 0}, {mantissa, epsilon_exponent},
             out);
}

i64 unisono_rotate(i64* x, i64 exponent, i64 size, const i64* cosines, const i64* sines) {
    return rotate(x, exponent, static_cast<int>(size), cosines, sines);
}

void unisono_rotation(i64 position, const i64* frequencies, i64 factor, i64 half, i64* cosines,
                      i64* sines) {
    rotation(position, frequencies, factor, static_cast<int>(half), cosines, sines);
}

i64 unisono_gated(i64 gelu, const i64* gate, i64 gate_exponent, const i64* up, i64 up_exponent, i64 n,
                  i64* out) {
    return gated(gelu != 0, gate, gate_exponent, up, up_exponent, static_cast<int>(n), out)
        .exponent;
}

i64 unisono_add_bias(i64* x, i64 exponent, i64 n, const i64* bias, i64 bias_exponent) {
    return add_bias(x, exponent, static_cast<int>(n), Vector{bias, bias_exponent});
}

void unisono_add_residual(i64* residual, const i64* x, i64 exponent, i64 n) {
    add_residual(residual, x, exponent, static_cast<int>(n));
}

void unisono_choose(i64* logits, i64 vocabulary, Draw* draw) {
    choose(logits, static_cast<int>(vocabulary), *draw);
}

}  // extern "C"
