// Attention of one tile of query rows over the pages of one session (unisono.numerics.softmax).
#pragma once
#include <vector>

#include "cache.h"
#include "fixed.h"

namespace unisono {

constexpr int TILE = 16;  // query rows of a tile

struct Scale {
    i64 mantissa, exponent;
};

// What one thread needs while it works on a tile; grows to the longest span seen.
struct AttentionScratch {
    std::vector<i64> scores;        // [TILE][span]
    std::vector<u8> digits;         // [4][TILE][span] of the weights
    std::vector<i64> key_exponent;  // [span]
    std::vector<i64> value_exponent;
    std::vector<HeadPage> pages;
    std::vector<i64> weights;  // [pages][LANES], all bits of a page's weights
    void reserve(i64 span);
};

struct AttentionTile {
    const PagePool* pool;
    const i64* table;  // page of every PAGE positions
    int layer, kv_head, size;
    Scale scale;
    int rows;
    const u8 *high, *low;  // [TILE][size] digits of the queries: signed, unsigned
    i64 exponent[TILE];
    i64 first[TILE], last[TILE];  // positions that each row sees, both included
};

// out: int64 [rows][size] with 9 more fraction bits than highest[row], the largest exponent of
// the values that the row sees.
void attend(const AttentionTile& tile, AttentionScratch& scratch, i64* out, i64* highest);

}  // namespace unisono
