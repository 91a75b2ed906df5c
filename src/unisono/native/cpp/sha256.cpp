// SHA-256 (FIPS 180-4) of many short messages at once: the leaves and nodes of hash trees.
// One call per batch: from Python, a call per message costs more than its hash. Only for processors
// with instructions for it; elsewhere `hashlib` is faster than what a compiler makes of loops.
#if defined(__SHA__) && defined(__SSE4_1__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "fixed.h"

namespace unisono {
namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;

alignas(16) const u32 kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

const u32 kStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

// The instructions keep the state as (A B E F) and (C D G H).
void compress(u32 state[8], const u8* block, i64 blocks) {
#ifdef __AVX__
    _mm256_zeroupper();  // these instructions wait for whatever lies in the upper lanes
#endif
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));
    __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));
    low = _mm_shuffle_epi32(low, 0xb1);
    high = _mm_shuffle_epi32(high, 0x1b);
    __m128i abef = _mm_alignr_epi8(low, high, 8);
    __m128i cdgh = _mm_blend_epi16(high, low, 0xf0);
    for (; blocks > 0; --blocks, block += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i word[4];
        for (int i = 0; i < 4; ++i) {
            const auto* at = reinterpret_cast<const __m128i*>(block + 16 * i);
            word[i] = _mm_shuffle_epi8(_mm_loadu_si128(at), order);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            const __m128i now = word[i & 3];
            const auto* constants = reinterpret_cast<const __m128i*>(kRound + 4 * i);
            const __m128i sum = _mm_add_epi32(now, _mm_load_si128(constants));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            if (i < 12) {  // the four words of 16 rounds later
                const __m128i last = word[(i + 3) & 3];
                const __m128i seventh = _mm_alignr_epi8(last, word[(i + 2) & 3], 4);
                const __m128i first = _mm_sha256msg1_epu32(now, word[(i + 1) & 3]);
                word[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(first, seventh), last);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i front = _mm_shuffle_epi32(abef, 0x1b);
    const __m128i back = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(front, back, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(back, front, 8));
}

// SHA-256 of `prefix` and `size` bytes.
void hash(u8 prefix, const u8* message, i64 size, u8* out) {
    u32 state[8];
    std::memcpy(state, kStart, sizeof state);
    u8 block[128] = {prefix};
    i64 done = 0, left = 1;
    if (size >= 63) {
        std::memcpy(block + 1, message, 63);
        compress(state, block, 1);
        const i64 whole = (size - 63) / 64;
        compress(state, message + 63, whole);
        done = 63 + 64 * whole;
        left = 0;
        std::memset(block, 0, sizeof block);
    }
    std::memcpy(block + left, message + done, size - done);
    left += size - done;
    block[left] = 0x80;
    const i64 blocks = left < 56 ? 1 : 2;
    const u64 bits = 8 * static_cast<u64>(size + 1);
    for (int i = 0; i < 8; ++i) block[64 * blocks - 1 - i] = static_cast<u8>(bits >> (8 * i));
    compress(state, block, blocks);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<u8>(state[i / 4] >> (24 - 8 * (i % 4)));
}

}  // namespace
}  // namespace unisono

extern "C" {

// SHA-256 of a byte `prefix` and each of `count` messages of `size` bytes, 32 bytes each to `out`.
void unisono_hash_rows(int prefix, const unsigned char* rows, long long count, long long size,
                       unsigned char* out) {
    for (long long i = 0; i < count; ++i) {
        unisono::hash(static_cast<unisono::u8>(prefix), rows + i * size, size, out + 32 * i);
    }
}

}  // extern "C"

#endif
