#include "product.h"

#include <cstring>

#include "tiles.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace unisono {

// --- weights ------------------------------------------------------------------------------------

Matrix::Matrix(Arena& arena, const i8* rows, const u16* scales_in, int n, int k, i64 e)
    : outputs(n), inputs(k), exponent(e) {
    const size_t count = size_t(blocks()) * BLOCK * k;
    values = static_cast<i8*>(arena.take(count));
    multipliers = static_cast<u16*>(arena.take(count / GROUP * sizeof(u16)));
    const int groups = k / GROUP;
    for (int b = 0; b < blocks(); b++) {
        i32* to = reinterpret_cast<i32*>(values + size_t(b) * k * BLOCK);
        u16* scale_to = multipliers + size_t(b) * groups * BLOCK;
        const int count = lesser(BLOCK, n - b * BLOCK);
        for (int j = 0; j < count; j++) {
            const i8* from = rows + (size_t(b) * BLOCK + j) * k;
            for (int q = 0; q < k / 4; q++) std::memcpy(&to[q * BLOCK + j], from + 4 * q, 4);
            const u16* scale_from = scales_in + (size_t(b) * BLOCK + j) * groups;
            for (int g = 0; g < groups; g++) scale_to[g * BLOCK + j] = scale_from[g];
        }
    }
#ifdef UNISONO_AMX
    shifts = static_cast<u8*>(arena.take(size_t(blocks()) * BLOCK));
    find_shifts(rows, scales_in);
#endif
}

#ifdef UNISONO_AMX
void Matrix::find_shifts(const i8* rows, const u16* scales) {
    const int groups = inputs / GROUP;
    for (int n = 0; n < outputs; n++, scales += groups) {
        int bits = 0, product = 0;
        for (int g = 0; g < groups; g++, rows += GROUP) {
            i8 most = 0, least = 0;
            for (int k = 0; k < GROUP; k++) {
                most = greater(most, rows[k]);
                least = lesser(least, rows[k]);
            }
            bits |= scales[g];
            product = greater(product, greater<int>(most, -least) * scales[g]);
        }
        const int shift = bits ? lesser(MAX_ROW_SHIFT, __builtin_ctz(bits)) : 0;
        if (product >> shift >= 1 << 15) {
            std::memset(shifts, 0, n);
            return;
        }
        shifts[n] = static_cast<u8>(shift);
    }
    narrow = true;
}
#endif

// --- inputs -----------------------------------------------------------------------------------

namespace {
#ifdef UNISONO_AMX
// From this many rows matrix tiles beat dot-product instructions (bench/kernels.py).
constexpr int TILE_ROWS_FROM = 10;
bool tiles_granted() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool granted =
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return granted;
}
#endif
bool tiles_wanted = true;
}  // namespace

bool tiles_enabled() {
#ifdef UNISONO_AMX
    return tiles_wanted && tiles_granted();
#else
    return false;
#endif
}

void enable_tiles(bool wanted) { tiles_wanted = wanted; }

void NarrowRows::resize(int rows, int inputs) {
    rows_ = rows;
    inputs_ = inputs;
    steps_ = (inputs + TILE_STEP - 1) / TILE_STEP;
#ifdef UNISONO_AMX
    tiled_ = tiles_enabled() && rows >= TILE_ROWS_FROM;
#endif
#ifdef UNISONO_VNNI
    const size_t padded = size_t((rows + 15) / 16 * 16) * steps_ * TILE_STEP;
    if (room_ < padded) {
        room_ = padded;
        high_ = make_buffer<u8>(padded);
        low_ = make_buffer<u8>(padded);
    }
#else
    if (x_.size() < size_t(rows) * inputs) x_.resize(size_t(rows) * inputs);
#endif
}

void NarrowRows::set(int m, const i64* x, const Reduction& reduction) {
    with_reduction(reduction, [&](const auto& reduced) { fill(m, x, reduced); });
}

template <class Reduced>
void NarrowRows::fill(int m, const i64* x, const Reduced& reduced) {
#ifdef UNISONO_VNNI
    const auto digits = [&](u8* high, u8* low, const i64* from, int count, i64 offset) {
        each(count, [&](int k) {
            const Lanes64 v = reduced(load(from + k));
            store_bytes(high + k, (v >> 8) + offset);
            store_bytes(low + k, v);
        });
    };
    if (tiled_) {
        // inputs past the last meet weights of zero there: what lies in them does not matter
        for (int step = 0; step < steps_; step++) {
            const size_t at = tile_at(m, step) + size_t(m % 16) * TILE_STEP;
            const int from = step * TILE_STEP;
            digits(high_.get() + at, low_.get() + at, x + from, lesser(TILE_STEP, inputs_ - from),
                   0);
        }
    } else {
        const size_t at = size_t(m) * inputs_;
        digits(high_.get() + at, low_.get() + at, x, inputs_, 128);
    }
#else
    i16* to = x_.data() + size_t(m) * inputs_;
    each(inputs_, [&](int k) {
        const Lanes64 v = reduced(load(x + k));
        for (int i = 0; i < LANES; i++) to[k + i] = static_cast<i16>(v[i]);
    });
#endif
}

// --- kernels ----------------------------------------------------------------------------------

namespace {

#ifdef UNISONO_VNNI

// A group's int32 sums times 16-bit multipliers, added up in int64: even lanes and odd lanes
// apart, so that nothing is shuffled before the end.
struct Totals {
    __m512i even, odd;
    void add(__m512i sums, __m512i scale_even, __m512i scale_odd) {
        even = _mm512_add_epi64(even, _mm512_mul_epi32(sums, scale_even));
        odd = _mm512_add_epi64(odd, _mm512_mul_epi32(_mm512_srli_epi64(sums, 32), scale_odd));
    }
    void store(i64* to) const {
        const Sixteen sums = interleaved(even, odd);
        _mm512_storeu_si512(to, sums.low);
        _mm512_storeu_si512(to + 8, sums.high);
    }
};

struct Scales {
    __m512i even, odd;
    explicit Scales(const u16* at)
        : even(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)))),
          odd(_mm512_srli_epi64(even, 32)) {}
};

// R rows times one block. Both digits of x are unsigned here (u = x + 2^15 in base 256), so that
// the signed weights come straight from memory; the weights' own sum takes the 2^15 off again.
template <int R>
void dot_block(const NarrowRows& x, int m, const i8* w, const u16* scales, i64* out, int stride) {
    const int inputs = x.inputs(), groups = inputs / GROUP;
    const u8 *high[R], *low[R];
    Totals total[R];
    for (int r = 0; r < R; r++) {
        high[r] = x.high(m + r);
        low[r] = x.low(m + r);
        total[r] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    }
    const __m512i ones = _mm512_set1_epi8(1);
    for (int g = 0; g < groups; g++, w += GROUP * BLOCK, scales += BLOCK) {
        __m512i v[8], plain = _mm512_setzero_si512();
        for (int i = 0; i < 8; i++) {
            v[i] = _mm512_loadu_si512(w + 64 * i);
            plain = _mm512_dpbusd_epi32(plain, ones, v[i]);
        }
        const __m512i offset = _mm512_slli_epi32(plain, 15);
        const Scales s(scales);
        for (int r = 0; r < R; r++) {
            __m512i a = _mm512_setzero_si512(), b = a;
            for (int i = 0; i < 8; i++) {
                a = _mm512_dpbusd_epi32(a, spread(high[r] + g * GROUP + 4 * i), v[i]);
                b = _mm512_dpbusd_epi32(b, spread(low[r] + g * GROUP + 4 * i), v[i]);
            }
            const __m512i sums =
                _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(a, 8), b), offset);
            total[r].add(sums, s.even, s.odd);
        }
    }
    for (int r = 0; r < R; r++) total[r].store(out + size_t(r) * stride);
}

void dot_rows(const NarrowRows& x, int m, int rows, const i8* w, const u16* scales, i64* out,
              int stride) {
    switch (rows) {
        case 1: return dot_block<1>(x, m, w, scales, out, stride);
        case 2: return dot_block<2>(x, m, w, scales, out, stride);
        case 3: return dot_block<3>(x, m, w, scales, out, stride);
        case 4: return dot_block<4>(x, m, w, scales, out, stride);
        case 5: return dot_block<5>(x, m, w, scales, out, stride);
        case 6: return dot_block<6>(x, m, w, scales, out, stride);
        case 7: return dot_block<7>(x, m, w, scales, out, stride);
        default: return dot_block<8>(x, m, w, scales, out, stride);
    }
}
constexpr int DOT_ROWS = 8;

#else

#ifdef UNISONO_AVX2
inline void group_sums(const i16* x, const i8* w, i32* sums) {
    __m256i total[4];
    for (auto& t : total) t = _mm256_setzero_si256();
    for (int i = 0; i < 8; i++) {
        i64 four;
        std::memcpy(&four, x + 4 * i, 8);
        const __m256i inputs = _mm256_set1_epi64x(four);
        for (int j = 0; j < 4; j++) {
            const __m128i narrow =
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 64 * i + 16 * j));
            const __m256i wide = _mm256_cvtepi8_epi16(narrow);
            total[j] = _mm256_add_epi32(total[j], _mm256_madd_epi16(wide, inputs));
        }
    }
    for (int j = 0; j < 2; j++) {  // neighbouring lanes belong to one output
        const __m256i pairs = _mm256_hadd_epi32(total[2 * j], total[2 * j + 1]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * j),
                            _mm256_permute4x64_epi64(pairs, 0xD8));
    }
}
#else
inline void group_sums(const i16* x, const i8* w, i32* sums) {
    for (int n = 0; n < BLOCK; n++) sums[n] = 0;
    for (int i = 0; i < 8; i++) {
        for (int n = 0; n < BLOCK; n++) {
            const i8* v = w + 64 * i + 4 * n;
            sums[n] += x[4 * i] * v[0] + x[4 * i + 1] * v[1] + x[4 * i + 2] * v[2] +
                       x[4 * i + 3] * v[3];
        }
    }
}
#endif

void dot_rows(const NarrowRows& x, int m, int rows, const i8* w, const u16* scales, i64* out,
              int stride) {
    const int groups = x.inputs() / GROUP;
    for (int r = 0; r < rows; r++) {
        const i16* row = x.row(m + r);
        i64 total[BLOCK] = {};
        for (int g = 0; g < groups; g++) {
            i32 sums[BLOCK];
            group_sums(row + g * GROUP, w + size_t(g) * GROUP * BLOCK, sums);
            for (int n = 0; n < BLOCK; n++) total[n] += i64(sums[n]) * scales[g * BLOCK + n];
        }
        std::memcpy(out + size_t(r) * stride, total, sizeof total);
    }
}
constexpr int DOT_ROWS = 8;

#endif

void product_range(const NarrowRows& x, const Matrix& w, int from, int to, const Output& output) {
#ifdef UNISONO_AMX
    if (x.tiled()) return tile_range(x, w, from, to, output);
#endif
    alignas(64) i64 block[DOT_ROWS * BLOCK];
    for (int b = from; b < to; b++) {
        for (int m = 0; m < x.rows(); m += DOT_ROWS) {
            const int rows = lesser(DOT_ROWS, x.rows() - m);
            size_t stride;
            i64* to_rows = output.place(m, b, block, stride);
            dot_rows(x, m, rows, w.block(b), w.scales(b), to_rows, static_cast<int>(stride));
            output.finish(m, rows, b, block, to_rows);
        }
    }
}

constexpr int TASKS_PER_THREAD = 4;

}  // namespace

void multiply(Pool& pool, const NarrowRows& x, const Target* targets, int count) {
    int blocks = 0;
    for (int i = 0; i < count; i++) blocks += targets[i].matrix->blocks();
    pool.share(blocks, TASKS_PER_THREAD, [&](int from, int to, int thread) {
        int left = to - from;
        for (int i = 0; i < count && left > 0; i++) {
            const Matrix& w = *targets[i].matrix;
            if (from >= w.blocks()) {
                from -= w.blocks();
                continue;
            }
            const int stop = lesser(w.blocks(), from + left);
            product_range(x, w, from, stop,
                          Output{w, targets[i].out, targets[i].stride, nullptr, thread});
            left -= stop - from;
            from = 0;
        }
    });
}

void multiply(Pool& pool, const NarrowRows& x, const Matrix& w, const Sink& sink) {
    pool.share(w.blocks(), TASKS_PER_THREAD, [&](int from, int to, int thread) {
        product_range(x, w, from, to, Output{w, nullptr, 0, &sink, thread});
    });
}

void product_block(const NarrowRows& x, int m, const Matrix& w, int b, i64* out) {
    dot_rows(x, m, 1, w.block(b), w.scales(b), out, BLOCK);
}

}  // namespace unisono
