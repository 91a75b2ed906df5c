// Products of many rows: 16 rows by 16 outputs at a time in matrix tiles.
#pragma once
#include <cstring>

#include "product.h"

namespace unisono {

// Where a range of blocks goes: straight into a matrix of results, or block by block to a sink.
struct Output {
    const Matrix& w;
    i64* out;  // [rows][stride], or null
    size_t row_stride;
    const Sink* sink;
    int thread;

    // Where rows from m on of block b may be written, `stride` elements apart: into the results
    // if all of the block's outputs exist there, else into `block`.
    i64* place(int m, int b, i64* block, size_t& stride) const {
        const bool whole = (b + 1) * BLOCK <= w.outputs;
        stride = out && whole ? row_stride : BLOCK;
        return out && whole ? out + m * row_stride + b * BLOCK : block;
    }
    void finish(int m, int rows, int b, const i64* block, const i64* written) const {
        if (written != block) return;
        const int outputs = lesser(BLOCK, w.outputs - b * BLOCK);
        if (sink) {
            (*sink)(m, rows, b * BLOCK, outputs, block, thread);
            return;
        }
        for (int r = 0; r < rows; r++) {
            std::memcpy(out + (m + r) * row_stride + b * BLOCK, block + r * BLOCK,
                        outputs * sizeof(i64));
        }
    }
};

#ifdef UNISONO_AMX
// Blocks `from` to `to` of the product of tiled rows.
void tile_range(const NarrowRows& x, const Matrix& w, int from, int to, const Output& output);
#endif

}  // namespace unisono
