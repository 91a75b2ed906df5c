#include "tiles.h"

#ifdef UNISONO_AMX

namespace unisono {

namespace {

// Tiles hold whole sums over the inputs: a weight times its multiplier, at most 2^23, is cut into
// a signed and two unsigned bytes, or in a narrow matrix, at most 2^15 once the row's shift is
// taken off, into a signed and an unsigned one; an input into a signed and an unsigned one.
// Multiplying group by group instead would store the sums of each: the stores then take most of
// the time.
constexpr int SUMMED = 16384 / TILE_STEP;  // steps that int32 sums hold: 2^17 each input at most

// The digits of a block's weights.
template <int DIGITS>
struct Planes {
    Buffer<u8> bytes;
    size_t plane = 0;

    void resize(int steps) {
        const size_t needed = size_t(steps) * TILE_STEP * BLOCK;
        if (needed == plane) return;
        plane = needed;
        bytes = make_buffer<u8>(DIGITS * plane);
    }
    const u8* at(int digit, int step) const {
        return bytes.get() + digit * plane + size_t(step) * TILE_STEP * BLOCK;
    }
};

// Of a block's outputs, in 32-bit lanes.
inline __m512i row_shifts(const Matrix& w, int b) {
    return _mm512_cvtepu8_epi32(
        _mm_load_si128(reinterpret_cast<const __m128i*>(w.shifts + b * BLOCK)));
}

// Cuts the weights of a block into digits, group by group: the next block's while the matrix unit
// works on this one's.
template <int DIGITS>
class Expansion {
  public:
    void start(const Matrix& w, int b, Planes<DIGITS>& planes) {
        values_ = w.block(b);
        scales_ = w.scales(b);
        shifts_ = row_shifts(w, b);
        left_ = w.inputs / GROUP;
        plane_ = planes.plane;
        to_ = planes.bytes.get();
        const size_t filled = size_t(w.inputs) * BLOCK;  // weights past the last input are zero
        for (int digit = 0; digit < DIGITS; digit++) {
            std::memset(to_ + digit * plane_ + filled, 0, plane_ - filled);
        }
    }
    void advance() {
        if (left_ > 0) group();
    }
    void finish() {
        while (left_ > 0) group();
    }

  private:
    void group();

    const i8* values_ = nullptr;
    const u16* scales_ = nullptr;
    __m512i shifts_ = _mm512_setzero_si512();
    int left_ = 0;
    size_t plane_ = 0;
    u8* to_ = nullptr;
};

template <int DIGITS>
void Expansion<DIGITS>::group() {
    const __m512i even = _mm512_set1_epi16(0x00FF);
    __m512i wide =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales_)));
    if constexpr (DIGITS == 2) wide = _mm512_srlv_epi32(wide, shifts_);
    const __m512i scale = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
    // a signed multiplication takes an unsigned multiplier for 2^16 less from its top bit on
    const __mmask32 large = _mm512_movepi16_mask(scale);
    const auto store = [&](int digit, __m512i first, __m512i second) {
        // 0xCA: where the mask has ones the second operand, else the third
        _mm512_storeu_si512(to_ + digit * plane_,
                            _mm512_ternarylogic_epi32(even, first, second, 0xCA));
    };
    for (int i = 0; i < GROUP / 4; i++, values_ += 64, to_ += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(values_ + 2 * GROUP * BLOCK), _MM_HINT_T0);
        const __m512i v = _mm512_loadu_si512(values_);
        const __m512i v0 = _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8);
        const __m512i v1 = _mm512_srai_epi16(v, 8);
        const __m512i low0 = _mm512_mullo_epi16(v0, scale);
        const __m512i low1 = _mm512_mullo_epi16(v1, scale);
        store(0, low0, _mm512_slli_epi16(low1, 8));
        store(1, _mm512_srli_epi16(low0, 8), low1);
        if constexpr (DIGITS == 2) continue;
        const __m512i half0 = _mm512_mulhi_epi16(v0, scale);
        const __m512i half1 = _mm512_mulhi_epi16(v1, scale);
        const __m512i high0 = _mm512_mask_add_epi16(half0, large, half0, v0);
        const __m512i high1 = _mm512_mask_add_epi16(half1, large, half1, v1);
        store(2, high0, _mm512_slli_epi16(high1, 8));
    }
    scales_ += BLOCK;
    left_--;
}

// Sums of one tile by power of 256, on their way to the results: put together some rows at a time
// while the matrix unit works on the next tile.
template <int DIGITS>
class Sums {
  public:
    // What the sums of a block's outputs are multiplied by: powers of 256, and the rows' shifts.
    void scale(__m512i shifts) {
        for (int i = 0; i <= DIGITS; i++) {
            factors_[i] = _mm512_sllv_epi32(_mm512_set1_epi32(1 << 8 * i), shifts);
        }
    }
    // The sums in the first tiles, once those before are settled; `add` them to what lies in `out`.
    void take(i64* out, size_t stride, int rows, bool add) {
        _tile_stored(0, power_[0], 64);
        _tile_stored(1, power_[1], 64);
        _tile_stored(2, power_[2], 64);
        if constexpr (DIGITS == 3) _tile_stored(3, power_[3], 64);
        out_ = out;
        stride_ = stride;
        rows_ = rows;
        add_ = add;
        next_ = 0;
    }
    void advance(int rows) {
        for (const int stop = lesser(rows_, next_ + rows); next_ < stop; next_++) row(next_);
    }
    void settle() { advance(rows_); }

  private:
    // A multiplication of even lanes widens, shifts and takes the place of two instructions.
    void row(int r) {
        __m512i even = _mm512_setzero_si512(), odd = even;
        for (int i = 0; i <= DIGITS; i++) {
            const __m512i sums = _mm512_load_si512(&power_[i][r * BLOCK]);
            even = _mm512_add_epi64(even, _mm512_mul_epi32(sums, factors_[i]));
            odd = _mm512_add_epi64(odd, _mm512_mul_epi32(odd_lanes(sums), odd_lanes(factors_[i])));
        }
        const Sixteen sums = interleaved(even, odd);
        i64* to = out_ + r * stride_;
        store(to, sums.low);
        store(to + 8, sums.high);
    }
    void store(i64* to, __m512i sums) const {
        if (add_) sums = _mm512_add_epi64(sums, _mm512_loadu_si512(to));
        _mm512_storeu_si512(to, sums);
    }
    static __m512i odd_lanes(__m512i v) { return _mm512_shuffle_epi32(v, _MM_PERM_DDBB); }

    alignas(64) i32 power_[DIGITS + 1][16 * BLOCK];
    __m512i factors_[DIGITS + 1];
    i64* out_ = nullptr;
    size_t stride_ = 0;
    int rows_ = 0, next_ = 0;
    bool add_ = false;
};

// Up to 16 rows times one block, sums by power of 256 into tiles 0..DIGITS. Tiles 4 and 5 are x, 6
// and 7 weights. Every other tile of rows goes backwards, so that it begins with the weights that
// the one before it ended with: those are still in the nearest cache.
template <int DIGITS, class Beside>
void tile_steps(const NarrowRows& x, int m, const Planes<DIGITS>& w, int start, int stop,
                const Beside& beside) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    if constexpr (DIGITS == 3) _tile_zero(3);
    for (int i = start; i < stop; i++) {
        const int step = m / 16 % 2 ? start + stop - 1 - i : i;
        _tile_loadd(4, x.high_tile(m, step), TILE_STEP);
        _tile_loadd(5, x.low_tile(m, step), TILE_STEP);
        if constexpr (DIGITS == 3) {
            _tile_loadd(6, w.at(2, step), 64);
            _tile_dpbssd(3, 4, 6);
            _tile_dpbusd(2, 5, 6);
            _tile_loadd(7, w.at(1, step), 64);
            _tile_dpbsud(2, 4, 7);
            _tile_dpbuud(1, 5, 7);
        } else {
            _tile_loadd(7, w.at(1, step), 64);
            _tile_dpbssd(2, 4, 7);
            _tile_dpbusd(1, 5, 7);
        }
        _tile_loadd(6, w.at(0, step), 64);
        _tile_dpbsud(1, 4, 6);
        _tile_dpbuud(0, 5, 6);
        beside(i);
    }
}

void configure(int rows) {
    TileConfig config;
    for (int tile = 0; tile < 6; tile++) config.set(tile, lesser(16, rows), 64);
    for (int tile = 6; tile < 8; tile++) config.set(tile, 16, 64);
    config.load();
}

template <int DIGITS>
void digit_range(const NarrowRows& x, const Matrix& w, int from, int to, const Output& output) {
    alignas(64) i64 block[16 * BLOCK];
    thread_local Planes<DIGITS> planes[2];
    const int steps = (w.inputs + TILE_STEP - 1) / TILE_STEP, tiles = (x.rows() + 15) / 16;
    for (auto& p : planes) p.resize(steps);
    configure(x.rows());
    Sums<DIGITS> sums;
    Expansion<DIGITS> expansion;
    const int rows_each = (16 + steps - 1) / steps;
    const int group_after = greater(1, tiles * TILE_STEP / GROUP / 4);  // of the steps
    expansion.start(w, from, planes[0]);
    for (int b = from; b < to; b++) {
        expansion.finish();
        const auto& digits = planes[(b - from) % 2];
        if (b + 1 < to) expansion.start(w, b + 1, planes[(b + 1 - from) % 2]);
        for (int m = 0; m < x.rows(); m += 16) {
            const int rows = lesser(16, x.rows() - m);  // what a last tile reads beyond is unused
            size_t stride;
            i64* to_rows = output.place(m, b, block, stride);
            for (int start = 0; start < steps; start += SUMMED) {
                const int stop = lesser(steps, start + SUMMED);
                tile_steps(x, m, digits, start, stop, [&](int step) {
                    sums.advance(rows_each);
                    if (step % group_after == 0) expansion.advance();
                });
                sums.settle();
                sums.scale(row_shifts(w, b));
                sums.take(to_rows, stride, rows, start > 0);
            }
            if (to_rows != block) continue;
            sums.settle();
            output.finish(m, rows, b, block, to_rows);
        }
    }
    sums.settle();
    _tile_release();
}

}  // namespace

void tile_range(const NarrowRows& x, const Matrix& w, int from, int to, const Output& output) {
    (w.narrow ? digit_range<2> : digit_range<3>)(x, w, from, to, output);
}

}  // namespace unisono

#endif
