// SHA-256 (FIPS 180-4) of many short messages at once: the leaves and nodes of hash trees.
// One call per batch: from Python, a call per message costs more than its hash. Only for processors
// with instructions for it; elsewhere `hashlib` is faster than what a compiler makes of loops.
#if defined(__SHA__) && defined(__SSE4_1__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <vector>

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

// The instructions keep the state as (A B E F) and (C D G H). They wait for each other, so that two
// messages at once take little longer than one.
template <int N>
void compress(u32 (*state)[8], const u8* const* blocks, i64 count) {
#ifdef __AVX__
    _mm256_zeroupper();  // these instructions wait for whatever lies in the upper lanes
#endif
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i abef[N], cdgh[N];
    for (int n = 0; n < N; ++n) {
        __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state[n]));
        __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state[n] + 4));
        low = _mm_shuffle_epi32(low, 0xb1);
        high = _mm_shuffle_epi32(high, 0x1b);
        abef[n] = _mm_alignr_epi8(low, high, 8);
        cdgh[n] = _mm_blend_epi16(high, low, 0xf0);
    }
    for (i64 at = 0; at < 64 * count; at += 64) {
        __m128i word[N][4], abef_before[N], cdgh_before[N];
        for (int n = 0; n < N; ++n) {
            abef_before[n] = abef[n];
            cdgh_before[n] = cdgh[n];
            for (int i = 0; i < 4; ++i) {
                const auto* from = reinterpret_cast<const __m128i*>(blocks[n] + at + 16 * i);
                word[n][i] = _mm_shuffle_epi8(_mm_loadu_si128(from), order);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            const auto* constants = reinterpret_cast<const __m128i*>(kRound + 4 * i);
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) {
                const __m128i now = word[n][i & 3];
                const __m128i sum = _mm_add_epi32(now, _mm_load_si128(constants));
                cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], sum);
                abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32(sum, 0x0e));
                if (i < 12) {  // the four words of 16 rounds later
                    const __m128i last = word[n][(i + 3) & 3];
                    const __m128i seventh = _mm_alignr_epi8(last, word[n][(i + 2) & 3], 4);
                    const __m128i first = _mm_sha256msg1_epu32(now, word[n][(i + 1) & 3]);
                    word[n][i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(first, seventh), last);
                }
            }
        }
        for (int n = 0; n < N; ++n) {
            abef[n] = _mm_add_epi32(abef[n], abef_before[n]);
            cdgh[n] = _mm_add_epi32(cdgh[n], cdgh_before[n]);
        }
    }
    for (int n = 0; n < N; ++n) {
        const __m128i front = _mm_shuffle_epi32(abef[n], 0x1b);
        const __m128i back = _mm_shuffle_epi32(cdgh[n], 0xb1);
        auto* to = reinterpret_cast<__m128i*>(state[n]);
        _mm_storeu_si128(to, _mm_blend_epi16(front, back, 0xf0));
        _mm_storeu_si128(to + 1, _mm_alignr_epi8(back, front, 8));
    }
}

// SHA-256 of `prefix` and `size` bytes, of N messages that lie one behind the other.
template <int N>
void hash(u8 prefix, const u8* messages, i64 size, u8* out) {
    u32 state[N][8];
    u8 block[N][128];
    const u8 *at[N], *rest[N];
    for (int n = 0; n < N; ++n) {
        std::memcpy(state[n], kStart, sizeof kStart);
        rest[n] = messages + n * size;
        at[n] = block[n];
        block[n][0] = prefix;
    }
    i64 done = 0, left = 1;
    if (size >= 63) {
        const u8* whole[N];
        for (int n = 0; n < N; ++n) {
            std::memcpy(block[n] + 1, rest[n], 63);
            whole[n] = rest[n] + 63;
        }
        compress<N>(state, at, 1);
        compress<N>(state, whole, (size - 63) / 64);
        done = 63 + (size - 63) / 64 * 64;
        left = 0;
    }
    const i64 tail = size - done;
    const i64 blocks = left + tail < 56 ? 1 : 2;
    const u64 bits = 8 * static_cast<u64>(size + 1);
    for (int n = 0; n < N; ++n) {
        u8* end = block[n] + left;
        std::memset(end, 0, 128 - left);
        std::memcpy(end, rest[n] + done, tail);
        end[tail] = 0x80;
        for (int i = 0; i < 8; ++i) block[n][64 * blocks - 1 - i] = static_cast<u8>(bits >> (8 * i));
    }
    compress<N>(state, at, blocks);
    for (int n = 0; n < N; ++n) {
        for (int i = 0; i < 32; ++i) {
            out[32 * n + i] = static_cast<u8>(state[n][i / 4] >> (24 - 8 * (i % 4)));
        }
    }
}

#ifdef __AVX512BW__
// Without those instructions, but sixteen messages at once: word i of all is one vector.
using Words = __m512i;

const i64 kLongest = 1024;  // bytes of a message that is hashed so

Words big_endian(Words x) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order));
}

Words sum(Words a, Words b) { return _mm512_add_epi32(a, b); }
Words odd(Words a, Words b, Words c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }

template <int A, int B, int C>
Words turned(Words x) {
    return odd(_mm512_ror_epi32(x, A), _mm512_ror_epi32(x, B), _mm512_ror_epi32(x, C));
}

template <int A, int B, int C>
Words shifted(Words x) {
    return odd(_mm512_ror_epi32(x, A), _mm512_ror_epi32(x, B), _mm512_srli_epi32(x, C));
}

void transpose(Words r[16]) {
    Words t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        for (int k = 0; k < 2; ++k) {
            r[i + 2 * k] = _mm512_unpacklo_epi64(t[i + k], t[i + k + 2]);
            r[i + 2 * k + 1] = _mm512_unpackhi_epi64(t[i + k], t[i + k + 2]);
        }
    }
    for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 16; k += 8) {
            t[i + k] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0x88);
            t[i + k + 4] = _mm512_shuffle_i32x4(r[i + k], r[i + k + 4], 0xdd);
        }
    }
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// One block of each message; they lie `apart` bytes from each other.
void compress_16(Words state[8], const u8* block, i64 apart) {
    Words w[16];
    for (int i = 0; i < 16; ++i) w[i] = big_endian(_mm512_loadu_si512(block + i * apart));
    transpose(w);
    Words a = state[0], b = state[1], c = state[2], d = state[3];
    Words e = state[4], f = state[5], g = state[6], h = state[7];
#pragma GCC unroll 64
    for (int i = 0; i < 64; ++i) {
        Words& now = w[i & 15];
        if (i >= 16) {
            const Words early = shifted<7, 18, 3>(w[(i + 1) & 15]);
            const Words late = shifted<17, 19, 10>(w[(i + 14) & 15]);
            now = sum(sum(now, w[(i + 9) & 15]), sum(early, late));
        }
        const Words chosen = _mm512_ternarylogic_epi32(e, f, g, 0xca);
        const Words most = _mm512_ternarylogic_epi32(a, b, c, 0xe8);
        const Words round = sum(h, sum(now, _mm512_set1_epi32(static_cast<int>(kRound[i]))));
        const Words first = sum(round, sum(turned<6, 11, 25>(e), chosen));
        const Words second = sum(turned<2, 13, 22>(a), most);
        h = g;
        g = f;
        f = e;
        e = sum(d, first);
        d = c;
        c = b;
        b = a;
        a = sum(first, second);
    }
    const Words after[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] = sum(state[i], after[i]);
}

void hash_16(u8 prefix, const u8* messages, i64 size, u8* out) {
    alignas(64) u8 padded[16 * (kLongest + 128)];
    const i64 apart = (size + 1 + 8) / 64 * 64 + 64;
    const u64 bits = 8 * static_cast<u64>(size + 1);
    for (int n = 0; n < 16; ++n) {
        u8* to = padded + n * apart;
        to[0] = prefix;
        std::memcpy(to + 1, messages + n * size, size);
        std::memset(to + 1 + size, 0, apart - 1 - size);
        to[1 + size] = 0x80;
        for (int i = 0; i < 8; ++i) to[apart - 1 - i] = static_cast<u8>(bits >> (8 * i));
    }
    Words state[16];
    for (int i = 0; i < 8; ++i) state[i] = _mm512_set1_epi32(static_cast<int>(kStart[i]));
    for (i64 at = 0; at < apart; at += 64) compress_16(state, padded + at, apart);
    for (int i = 8; i < 16; ++i) state[i] = _mm512_setzero_si512();
    transpose(state);
    for (int n = 0; n < 16; ++n) {
        const __m256i hash = _mm512_castsi512_si256(big_endian(state[n]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * n), hash);
    }
}
#endif

// Hashes may take the place of messages of 64 bytes: each is written behind what was read.
void hash_all(u8 prefix, const u8* messages, i64 count, i64 size, u8* out) {
    i64 i = 0;
#ifdef __AVX512BW__
    for (; i + 16 <= count && size <= kLongest; i += 16) {
        hash_16(prefix, messages + i * size, size, out + 32 * i);
    }
#endif
    for (; i + 2 <= count; i += 2) hash<2>(prefix, messages + i * size, size, out + 32 * i);
    if (i < count) hash<1>(prefix, messages + i * size, size, out + 32 * i);
}

// Roots of trees without leaves, by their depth.
struct Gaps {
    u8 root[64][32] = {};
    Gaps() {
        for (int depth = 1; depth < 64; ++depth) {
            u8 pair[64];
            std::memcpy(pair, root[depth - 1], 32);
            std::memcpy(pair + 32, root[depth - 1], 32);
            hash<1>(1, pair, 64, root[depth]);
        }
    }
};

}  // namespace
}  // namespace unisono

extern "C" {

// SHA-256 of a byte `prefix` and each of `count` messages of `size` bytes, 32 bytes each to `out`.
void unisono_hash_rows(int prefix, const unsigned char* rows, long long count, long long size,
                       unsigned char* out) {
    unisono::hash_all(static_cast<unisono::u8>(prefix), rows, count, size, out);
}

// The root over each of `count` rows of `size` > 0 bytes, cut into leaves of `leaf` bytes of which
// the last may be shorter: 32 bytes each to `out`. A leaf is hashed behind a byte 0, two nodes
// behind a byte 1; leaves that are missing on the right are 32 zero bytes.
void unisono_tree_roots(const unsigned char* rows, long long count, long long size, long long leaf,
                        unsigned char* out) {
    static const unisono::Gaps gaps;
    const long long whole = size / leaf, rest = size % leaf, leaves = whole + (rest > 0);
    const long long most = count < 64 ? count : 64;  // rows at once, so that many hashes are
    std::vector<unisono::u8> nodes(32 * most * (leaves + 1));
    unisono::u8* node = nodes.data();
    for (long long done = 0; done < count; done += most) {
        const long long part = count - done < most ? count - done : most;
        const unisono::u8* row = rows + done * size;
        if (rest == 0) unisono::hash_all(0, row, part * whole, leaf, node);
        for (long long i = 0; i < part && rest > 0; ++i, row += size) {
            unisono::u8* first = node + 32 * i * leaves;
            unisono::hash_all(0, row, whole, leaf, first);
            unisono::hash<1>(0, row + whole * leaf, rest, first + 32 * whole);
        }
        int depth = 0;
        for (long long n = leaves; n > 1; n /= 2, ++depth) {
            // every row's last of an odd number gets a partner
            for (long long i = part - 1; i >= 0 && n % 2 == 1; --i) {
                unisono::u8* first = node + 32 * i * (n + 1);
                std::memmove(first, node + 32 * i * n, 32 * n);
                std::memcpy(first + 32 * n, gaps.root[depth], 32);
            }
            n += n % 2;
            unisono::hash_all(1, node, part * n / 2, 64, node);
        }
        std::memcpy(out + 32 * done, node, 32 * part);
    }
}

}  // extern "C"

#endif
