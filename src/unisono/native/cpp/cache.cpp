#include "cache.h"

#include <cstdlib>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace unisono {

PagePool::PagePool(int layers, int kv_heads, int size, i64 pages)
    : kv_heads_(kv_heads), size_(size), head_bytes_(i64(4) * PAGE * size + 4 * PAGE),
      page_bytes_(i64(layers) * kv_heads * head_bytes_), pages_(pages) {
    const size_t bytes = greater<size_t>(size_t(page_bytes_) * pages, 4096);
#ifdef __linux__
    // Only pages that are written take memory.
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#else
    void* p = std::calloc(bytes, 1);
    if (!p) throw std::bad_alloc();
#endif
    memory_ = static_cast<u8*>(p);
}

PagePool::~PagePool() {
#ifdef __linux__
    munmap(memory_, greater<size_t>(size_t(page_bytes_) * pages_, 4096));
#else
    std::free(memory_);
#endif
}

HeadPage PagePool::head(i64 index, int layer, int kv_head) const {
    u8* at = page(index) + (i64(layer) * kv_heads_ + kv_head) * head_bytes_;
    const i64 plane = i64(PAGE) * size_;
    i16* exponents = reinterpret_cast<i16*>(at + 4 * plane);
    return {at, at + plane, at + 2 * plane, at + 3 * plane, exponents, exponents + PAGE};
}

void PagePool::write(i64 index, int layer, int kv_head, int slot, const i64* key,
                     i64 key_exponent, const i64* value, i64 value_exponent) const {
    const HeadPage h = head(index, layer, kv_head);
    const i64 key_at = i64(slot / 16) * 16 * size_ + (slot % 16) * 4;
    const i64 value_at = (slot / 4) * 64 + slot % 4;
    constexpr int PIECE = 16;  // elements of a value that lie together
    u8 key_high[PIECE], key_low[PIECE], value_high[PIECE], value_low[PIECE];
    for (int from = 0; from < size_; from += PIECE) {
        each(PIECE, [&](int d) {
            const Lanes64 k = load(key + from + d), v = load(value + from + d);
            store_bytes(key_high + d, k >> 8);
            store_bytes(key_low + d, k);
            store_bytes(value_high + d, v >> 8);
            store_bytes(value_low + d, v);
        });
        for (int d = 0; d < PIECE; d += 4) {
            std::memcpy(h.key_high + key_at + i64(from + d) * 16, key_high + d, 4);
            std::memcpy(h.key_low + key_at + i64(from + d) * 16, key_low + d, 4);
        }
        for (int d = 0; d < PIECE; d++) {
            h.value_high[value_at + i64(from) * PAGE + d * 4] = value_high[d];
            h.value_low[value_at + i64(from) * PAGE + d * 4] = value_low[d];
        }
    }
    h.key_exponent[slot] = static_cast<i16>(key_exponent);
    h.value_exponent[slot] = static_cast<i16>(value_exponent);
}

void PagePool::discard(i64 index) const {
#ifdef __linux__
    // Only whole system pages inside the page; the rest stays.
    constexpr i64 SYSTEM = 4096;
    const i64 from = (index * page_bytes_ + SYSTEM - 1) / SYSTEM * SYSTEM;
    const i64 to = (index + 1) * page_bytes_ / SYSTEM * SYSTEM;
    if (to > from) madvise(memory_ + from, to - from, MADV_DONTNEED);
#else
    (void)index;
#endif
}

}  // namespace unisono
