#include "attention.h"

#include <cstring>

#include "simd.h"
#include "tables.h"

namespace unisono {

void AttentionScratch::reserve(i64 span) {
    if (static_cast<i64>(key_exponent.size()) >= span) return;
    scores.resize(TILE * span);
    digits.resize(4 * TILE * span);
    key_exponent.resize(span);
    value_exponent.resize(span);
    weights.resize(span / PAGE * LANES);
}

namespace {

constexpr i64 MAX_DISTANCE = i64(40) << 16;
constexpr int CHUNK = 256;  // pages whose weighted values an int32 holds: 4 * 2^21 each

typedef i32 Lanes32 __attribute__((vector_size(LANES * sizeof(i32))));

inline Lanes64 widened(const i32* at) {
    Lanes32 v;
    std::memcpy(&v, at, sizeof v);
    return __builtin_convertvector(v, Lanes64);
}

// Exact products of up to 16 rows with 16 keys, from their digits.
struct Dots {
    alignas(64) i32 high[TILE * 16], mixed[TILE * 16], low[TILE * 16];
    Lanes64 operator()(int i) const {
        return (widened(high + i) << 16) + (widened(mixed + i) << 8) + widened(low + i);
    }
};

#ifdef UNISONO_AMX

int key_step(int size) { return size % 64 ? 32 : 64; }

void configure_keys(int rows, int size) {
    TileConfig config;
    for (int tile = 0; tile < 3; tile++) config.set(tile, rows, 64);
    for (int tile = 4; tile < 6; tile++) config.set(tile, rows, key_step(size));
    for (int tile = 6; tile < 8; tile++) config.set(tile, key_step(size) / 4, 64);
    config.load();
}

void dots_tiled(const AttentionTile& t, const u8* key_high, const u8* key_low, Dots& out) {
    const int step = key_step(t.size);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int d = 0; d < t.size; d += step) {
        _tile_loadd(4, t.high + d, t.size);
        _tile_loadd(5, t.low + d, t.size);
        _tile_loadd(6, key_high + d * 16, 64);
        _tile_loadd(7, key_low + d * 16, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbusd(1, 5, 6);
        _tile_dpbuud(2, 5, 7);
    }
    _tile_stored(0, out.high, 64);
    _tile_stored(1, out.mixed, 64);
    _tile_stored(2, out.low, 64);
}

void configure_values(int rows) {
    TileConfig config;
    for (int tile = 0; tile < 6; tile++) config.set(tile, rows, 64);
    for (int tile = 6; tile < 8; tile++) config.set(tile, 16, 64);
    config.load();
}

// One page: rows' weight digits [4][TILE][span] times 16 elements of the values.
// `weights` has the bits that any weight of the page has: few pages weigh much.
inline void weigh_tiled(i64 weights, const u8* digits, i64 span, const u8* value_high,
                        const u8* value_low) {
    if (!weights) return;
    const i64 plane = TILE * span;
    _tile_loadd(6, value_high, 64);
    _tile_loadd(7, value_low, 64);
    _tile_loadd(5, digits, span);
    _tile_dpbuud(0, 5, 7);
    _tile_dpbusd(1, 5, 6);
    if (!(weights >> 8)) return;
    _tile_loadd(5, digits + plane, span);
    _tile_dpbuud(1, 5, 7);
    _tile_dpbusd(2, 5, 6);
    if (!(weights >> 16)) return;
    _tile_loadd(5, digits + 2 * plane, span);
    _tile_dpbuud(2, 5, 7);
    _tile_dpbusd(3, 5, 6);
    if (!(weights >> 24)) return;
    _tile_loadd(5, digits + 3 * plane, span);
    _tile_dpbuud(3, 5, 7);
    _tile_dpbusd(4, 5, 6);
}

#endif

#ifdef UNISONO_VNNI

// The instruction multiplies unsigned by signed bytes. Where both are of one kind, one side is
// moved by 128 and 128 times the other side's sum taken off again.
void dots_plain(const AttentionTile& t, const u8* key_high, const u8* key_low, Dots& out) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int r = 0; r < t.rows; r++) {
        const u8 *high = t.high + r * t.size, *low = t.low + r * t.size;
        __m512i hh = _mm512_setzero_si512(), hl = hh, lh = hh, ll = hh;
        i32 high_sum = 0, low_sum = 0;
        for (int d = 0; d < t.size; d++) {
            high_sum += static_cast<i8>(high[d]);
            low_sum += low[d];
        }
        for (int d = 0; d < t.size; d += 4) {
            const __m512i kh = _mm512_loadu_si512(key_high + d * 16);
            const __m512i kl = _mm512_loadu_si512(key_low + d * 16);
            const __m512i qh = spread(high + d), ql = spread(low + d);
            hh = _mm512_dpbusd_epi32(hh, _mm512_xor_si512(kh, flip), qh);
            hl = _mm512_dpbusd_epi32(hl, kl, qh);
            lh = _mm512_dpbusd_epi32(lh, ql, kh);
            ll = _mm512_dpbusd_epi32(ll, ql, _mm512_xor_si512(kl, flip));
        }
        hh = _mm512_sub_epi32(hh, _mm512_set1_epi32(128 * high_sum));
        ll = _mm512_add_epi32(ll, _mm512_set1_epi32(128 * low_sum));
        _mm512_store_si512(out.high + r * 16, hh);
        _mm512_store_si512(out.mixed + r * 16, _mm512_add_epi32(hl, lh));
        _mm512_store_si512(out.low + r * 16, ll);
    }
}

// One row: total[16] += the weighted sum of 16 elements over the pages.
void weigh_plain(const u8* digits, i64 span, i64 from, i64 to, const HeadPage* pages, int element,
                 i64* total) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    const i64 plane = TILE * span;
    __m512i power[5];
    for (auto& p : power) p = _mm512_setzero_si512();
    i64 digit_sum[4] = {};
    for (int i = 0; i < 4; i++) {
        for (i64 j = from * PAGE; j < to * PAGE; j++) digit_sum[i] += digits[i * plane + j];
    }
    for (i64 p = from; p < to; p++) {
        const u8* high = pages[p].value_high + i64(element) * PAGE;
        const u8* low = pages[p].value_low + i64(element) * PAGE;
        for (int j = 0; j < PAGE; j += 4) {
            const __m512i vh = _mm512_loadu_si512(high + j * 16);
            const __m512i vl = _mm512_xor_si512(_mm512_loadu_si512(low + j * 16), flip);
            for (int i = 0; i < 4; i++) {
                const __m512i w = spread(digits + i * plane + p * PAGE + j);
                power[i] = _mm512_dpbusd_epi32(power[i], w, vl);
                power[i + 1] = _mm512_dpbusd_epi32(power[i + 1], w, vh);
            }
        }
    }
    alignas(64) i32 sums[5][16];
    for (int i = 0; i < 5; i++) _mm512_store_si512(sums[i], power[i]);
    for (int n = 0; n < 16; n++) {
        for (int i = 0; i < 5; i++) total[n] += i64(sums[i][n]) << (8 * i);
        for (int i = 0; i < 4; i++) total[n] += (digit_sum[i] * 128) << (8 * i);
    }
}

#else

void dots_plain(const AttentionTile& t, const u8* key_high, const u8* key_low, Dots& out) {
    for (int r = 0; r < t.rows; r++) {
        i64 total[16] = {};
        for (int d = 0; d < t.size; d++) {
            const i32 q = static_cast<i8>(t.high[r * t.size + d]) * 256 + t.low[r * t.size + d];
            for (int n = 0; n < 16; n++) {
                const i64 at = (d / 4) * 64 + n * 4 + d % 4;
                total[n] += q * (static_cast<i8>(key_high[at]) * 256 + key_low[at]);
            }
        }
        for (int n = 0; n < 16; n++) {
            out.high[r * 16 + n] = static_cast<i32>(total[n] >> 16);
            out.mixed[r * 16 + n] = 0;
            out.low[r * 16 + n] = static_cast<i32>(total[n] & 0xFFFF);
        }
    }
}

void weigh_plain(const u8* digits, i64 span, i64 from, i64 to, const HeadPage* pages, int element,
                 i64* total) {
    const i64 plane = TILE * span;
    for (i64 p = from; p < to; p++) {
        for (int j = 0; j < PAGE; j++) {
            i64 w = 0;
            for (int i = 3; i >= 0; i--) w = (w << 8) + digits[i * plane + p * PAGE + j];
            if (!w) continue;
            for (int n = 0; n < 16; n++) {
                const i64 at = i64(element) * PAGE + (j / 4) * 64 + n * 4 + j % 4;
                const i32 v = static_cast<i8>(pages[p].value_high[at]) * 256 +
                              pages[p].value_low[at];
                total[n] += w * v;
            }
        }
    }
}

#endif

}  // namespace

void attend(const AttentionTile& t, AttentionScratch& scratch, i64* out, i64* highest) {
    i64 first = t.first[0], last = t.last[0];
    for (int r = 1; r < t.rows; r++) {
        first = lesser(first, t.first[r]);
        last = greater(last, t.last[r]);
    }
    const i64 begin = first / PAGE, pages = last / PAGE + 1 - begin, span = pages * PAGE;
    const i64 base = begin * PAGE;
    scratch.reserve(span);
    std::vector<HeadPage>& heads = scratch.pages;
    if (static_cast<i64>(heads.size()) < pages) heads.resize(pages);
    for (i64 p = 0; p < pages; p++) {
        heads[p] = t.pool->head(t.table[begin + p], t.layer, t.kv_head);
        for (int j = 0; j < PAGE; j++) {
            scratch.key_exponent[p * PAGE + j] = heads[p].key_exponent[j];
            scratch.value_exponent[p * PAGE + j] = heads[p].value_exponent[j];
        }
    }
    const bool tiles = tiles_enabled();
#ifdef UNISONO_AMX
    if (tiles) configure_keys(t.rows, t.size);
#endif
    Dots dots;
    const Lanes64 limit = all((i64(1) << 40) - 1);
    const Extent keys = extent_of(scratch.key_exponent.data(), static_cast<int>(span));
    const i64 highest_key = keys.top(), lowest_key = keys.bottom();
    for (i64 p = 0; p < pages; p++) {
        for (int k = 0; k < PAGE; k += 16) {
            const u8 *high = heads[p].key_high + i64(k) * t.size;
            const u8 *low = heads[p].key_low + i64(k) * t.size;
#ifdef UNISONO_AMX
            if (tiles) dots_tiled(t, high, low, dots);
            else
#endif
                dots_plain(t, high, low, dots);
            const i64* exponent = scratch.key_exponent.data() + p * PAGE + k;
            for (int r = 0; r < t.rows; r++) {
                i64* score = scratch.scores.data() + r * span + p * PAGE + k;
                const i64 common = -(t.exponent[r] + t.scale.exponent + 16);
                // usually nothing is shifted left, nor by more than there are bits
                const bool usual = common >= highest_key && common <= lowest_key + MAX_SHIFT;
                for (int n = 0; n < 16; n += LANES) {
                    const Lanes64 scaled = dots(r * 16 + n) * t.scale.mantissa;
                    const Lanes64 right = common - load(exponent + n);
                    store(score + n, usual ? clamped(round_shift(scaled, right), limit)
                                           : align(scaled, right, 40));
                }
            }
        }
    }

    const Lanes64 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    i64 divisor[TILE];
    std::memset(scratch.weights.data(), 0, pages * LANES * sizeof(i64));
    for (int r = 0; r < t.rows; r++) {
        // what this row sees, in whole vectors; lanes outside take no part
        const i64 from = t.first[r] - base, to = t.last[r] + 1 - base;
        const i64 start = from / LANES * LANES, stop = (to + LANES - 1) / LANES * LANES;
        const i64* score = scratch.scores.data() + r * span;
        const i64* exponent = scratch.value_exponent.data();
        Lanes64 tops = all(-(i64(1) << 62)), highs = tops;
        for (i64 j = start; j < stop; j += LANES) {
            const Lanes64 at = lane + j;
            const auto seen = (at >= from) & (at < to);
            tops = greater(tops, seen ? load(score + j) : tops);
            highs = greater(highs, seen ? load(exponent + j) : highs);
        }
        i64 top = tops[0], high = highs[0];
        for (int i = 1; i < LANES; i++) {
            top = greater<i64>(top, tops[i]);
            high = greater<i64>(high, highs[i]);
        }
        u8* digit[4];
        for (int i = 0; i < 4; i++) {
            digit[i] = scratch.digits.data() + (i64(i) * TILE + r) * span;
            std::memset(digit[i], 0, start);
            std::memset(digit[i] + stop, 0, span - stop);
        }
        Lanes64 totals = {};
        for (i64 j = start; j < stop; j += LANES) {
            const Lanes64 at = lane + j;
            const auto seen = (at >= from) & (at < to);
            const Lanes64 below = seen ? all(top) - load(score + j) : all(MAX_DISTANCE);
            const Lanes64 p =
                seen ? exp2_negative<28>(lesser(below, all(MAX_DISTANCE))) : all(0);
            totals += p;
            const Lanes64 shift = lesser(all(high) - load(exponent + j), all(MAX_SHIFT));
            const Lanes64 w = round_shift(p, seen ? shift : all(0));
            for (int i = 0; i < 4; i++) store_bytes(digit[i] + j, w >> (8 * i));
            store(scratch.weights.data() + j / PAGE * LANES,
                  load(scratch.weights.data() + j / PAGE * LANES) | w);
        }
        i64 total = 0;
        for (int i = 0; i < LANES; i++) total += totals[i];
        divisor[r] = total >> 9;
        highest[r] = high;
    }

    for (i64 p = 0; p < pages; p++) {
        const i64* lanes = scratch.weights.data() + p * LANES;
        i64 joined = 0;
        for (int i = 0; i < LANES; i++) joined |= lanes[i];
        scratch.weights[p] = joined;  // at or before what was read
    }
#ifdef UNISONO_AMX
    if (tiles) configure_values(t.rows);
#endif
    for (int element = 0; element < t.size; element += 16) {
        i64 total[TILE * 16] = {};
        for (i64 from = 0; from < pages; from += CHUNK) {
            const i64 to = lesser<i64>(from + CHUNK, pages);
#ifdef UNISONO_AMX
            if (tiles) {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                _tile_zero(4);
                for (i64 p = from; p < to; p++) {
                    weigh_tiled(scratch.weights[p], scratch.digits.data() + p * PAGE, span,
                                heads[p].value_high + i64(element) * PAGE,
                                heads[p].value_low + i64(element) * PAGE);
                }
                alignas(64) i32 power[5][TILE * 16];
                _tile_stored(0, power[0], 64);
                _tile_stored(1, power[1], 64);
                _tile_stored(2, power[2], 64);
                _tile_stored(3, power[3], 64);
                _tile_stored(4, power[4], 64);
                each(t.rows * 16, [&](int i) {
                    Lanes64 sum = load(total + i) + widened(power[0] + i);
                    for (int k = 1; k < 5; k++) sum += widened(power[k] + i) << (8 * k);
                    store(total + i, sum);
                });
                continue;
            }
#endif
            for (int r = 0; r < t.rows; r++) {
                weigh_plain(scratch.digits.data() + r * span, span, from, to, heads.data(),
                            element, total + r * 16);
            }
        }
        for (int r = 0; r < t.rows; r++) {
            const double inverse = 1.0 / static_cast<double>(divisor[r]);
            each(16, [&](int n) {
                store(out + r * t.size + element + n,
                      floor_divide(load(total + r * 16 + n), divisor[r], inverse));
            });
        }
    }
#ifdef UNISONO_AMX
    if (tiles) _tile_release();
#endif
}

}  // namespace unisono
