// Which instruction sets this build may use, and what the kernels share of them.
#pragma once
#include "fixed.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define UNISONO_VNNI 1
#include <immintrin.h>
#elif defined(__AVX2__)
#define UNISONO_AVX2 1
#include <immintrin.h>
#endif

#if defined(UNISONO_VNNI) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#define UNISONO_AMX 1
#endif

namespace unisono {

// Whether matrix tiles may be used: compiled in, granted by the kernel, not switched off.
bool tiles_enabled();
void enable_tiles(bool wanted);

#ifdef UNISONO_VNNI
// Four bytes in each 32-bit lane.
inline __m512i spread(const u8* four) {
    i32 word;
    std::memcpy(&word, four, 4);
    return _mm512_set1_epi32(word);
}

// Sixteen 64-bit lanes, from those of even and of odd numbers.
struct Sixteen {
    __m512i low, high;
};
inline Sixteen interleaved(__m512i even, __m512i odd) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    return {_mm512_permutex2var_epi64(even, low, odd), _mm512_permutex2var_epi64(even, high, odd)};
}
#endif

#ifdef UNISONO_AMX
struct alignas(64) TileConfig {
    u8 palette = 1, start_row = 0, reserved[14] = {};
    u16 column_bytes[16] = {};
    u8 rows[16] = {};

    void set(int tile, int tile_rows, int bytes) {
        rows[tile] = static_cast<u8>(tile_rows);
        column_bytes[tile] = static_cast<u16>(bytes);
    }
    // gcc's own intrinsic names only the first bytes as read: stores to the rest may be dropped.
    void load() const { __asm__ volatile("ldtilecfg %0" : : "m"(*this) : "memory"); }
};
#endif

}  // namespace unisono
