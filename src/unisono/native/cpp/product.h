// Products of integer rows with grouped int8 weights (unisono.numerics.linear), exact.
#pragma once
#include <functional>
#include <vector>

#include "fixed.h"
#include "memory.h"
#include "simd.h"
#include "threads.h"

namespace unisono {

constexpr int GROUP = 32;   // inputs that share a multiplier
constexpr int BLOCK = 16;   // outputs that lie together: one vector of 32-bit lanes
constexpr int TILE_STEP = 64;  // inputs of one product of matrix tiles

// Weights [outputs, inputs] as [outputs / 16][inputs / 4][16][4] int8: four inputs of one output
// are the 32-bit lane of a dot-product instruction, and the rows of a matrix tile.
struct Matrix {
    int outputs = 0, inputs = 0;
    i64 exponent = 0;
    i8* values = nullptr;         // in an arena, as what follows
    u16* multipliers = nullptr;   // [outputs / 16][inputs / 32][16]

    Matrix() = default;
    Matrix(Arena& arena, const i8* rows, const u16* scales, int outputs, int inputs, i64 exponent);
    int blocks() const { return (outputs + BLOCK - 1) / BLOCK; }
    const i8* block(int b) const { return values + size_t(b) * inputs * BLOCK; }
    const u16* scales(int b) const {
        return multipliers + size_t(b) * (inputs / GROUP) * BLOCK;
    }
    i64 value(int output, int input) const {
        return block(output / BLOCK)[(input / 4) * 64 + (output % BLOCK) * 4 + input % 4];
    }
    i64 multiplier(int output, int input) const {
        return scales(output / BLOCK)[(input / GROUP) * BLOCK + output % BLOCK];
    }

#ifdef UNISONO_AMX
    // Whether every value times its multiplier has 15 magnitude bits at most once its row's shift,
    // zeros that all multipliers of the row end with, is taken off. Without: shifts of zero.
    bool narrow = false;
    u8* shifts = nullptr;  // [outputs / 16][16]

  private:
    static constexpr int MAX_ROW_SHIFT = 14;  // times 2^16 a signed factor of 32 bits
    void find_shifts(const i8* rows, const u16* scales);
#endif
};

// Rows of at most 15 magnitude bits in the forms that the kernels read.
class NarrowRows {
  public:
    void resize(int rows, int inputs);
    // Row m becomes `x`, reduced; any thread, once per row.
    void set(int m, const i64* x, const Reduction& reduction);
    int rows() const { return rows_; }
    int inputs() const { return inputs_; }
    const i16* row(int m) const { return x_.data() + size_t(m) * inputs_; }
    const u8* high(int m) const { return high_.get() + size_t(m) * inputs_; }
    const u8* low(int m) const { return low_.get() + size_t(m) * inputs_; }
    // One input of a row that is not in tiles.
    int value(int m, int i) const {
#ifdef UNISONO_VNNI
        return 256 * (high(m)[i] - 128) + low(m)[i];
#else
        return row(m)[i];
#endif
    }
    bool tiled() const { return tiled_; }
    // Sixteen rows from m on, TILE_STEP inputs from step * TILE_STEP on: [16][TILE_STEP].
    const u8* high_tile(int m, int step) const { return high_.get() + tile_at(m, step); }
    const u8* low_tile(int m, int step) const { return low_.get() + tile_at(m, step); }

  private:
    template <class Reduced>
    void fill(int m, const i64* x, const Reduced& reduced);
    size_t tile_at(int m, int step) const {
        return (size_t(m / 16) * steps_ + step) * 16 * TILE_STEP;
    }

    int rows_ = 0, inputs_ = 0, steps_ = 0;
    bool tiled_ = false;
    size_t room_ = 0;
    std::vector<i16> x_;
    Buffer<u8> high_, low_;  // x = 256 high + low; high is signed for tiles, else plus 128
};

// Takes a block of results: rows m.., outputs n.., int64 [rows][BLOCK].
using Sink =
    std::function<void(int m, int rows, int n, int outputs, const i64* block, int thread)>;

// Rows of results. They lie a block further apart than they are long: a column of rows that are a
// power of two apart would share a few sets of the caches.
class ResultRows {
  public:
    void resize(int rows, int outputs) {
        stride_ = size_t(outputs) + BLOCK;
        if (room_ >= rows * stride_) return;
        room_ = rows * stride_;
        rows_ = make_buffer<i64>(room_);
    }
    i64* row(int m) { return rows_.get() + m * stride_; }
    size_t stride() const { return stride_; }

  private:
    size_t room_ = 0, stride_ = 0;
    Buffer<i64> rows_;
};

struct Target {
    const Matrix* matrix;
    i64* out;  // [rows][stride]
    size_t stride;

    Target(const Matrix& w, i64* to, size_t apart) : matrix(&w), out(to), stride(apart) {}
    Target(const Matrix& w, ResultRows& to) : Target(w, to.row(0), to.stride()) {}
};

// out = x @ matrix.T for several matrices of the same input, in one parallel region.
void multiply(Pool& pool, const NarrowRows& x, const Target* targets, int count);
// The same for one matrix, blocks handed to a sink instead of stored.
void multiply(Pool& pool, const NarrowRows& x, const Matrix& matrix, const Sink& sink);

// Row m, not in tiles, times one block: int64 [BLOCK].
void product_block(const NarrowRows& x, int m, const Matrix& matrix, int b, i64* out);

}  // namespace unisono
