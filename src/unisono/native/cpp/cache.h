// Pages of keys and values. A page holds PAGE positions of every layer of one group (the layers
// that see equally far), in the byte order that dot products read:
//   keys   per digit [PAGE / 16][size / 4][16 positions][4 elements]
//   values per digit [size / 16][PAGE / 4][16 elements][4 positions]
// Both are x = 256 high + low with a signed high and an unsigned low digit; one exponent each.
#pragma once
#include "fixed.h"

namespace unisono {

constexpr int PAGE = 64;

struct HeadPage {
    u8 *key_high, *key_low, *value_high, *value_low;
    i16 *key_exponent, *value_exponent;
};

class PagePool {
  public:
    PagePool(int layers, int kv_heads, int size, i64 pages);
    ~PagePool();
    PagePool(const PagePool&) = delete;
    PagePool& operator=(const PagePool&) = delete;

    i64 page_bytes() const { return page_bytes_; }
    i64 pages() const { return pages_; }
    u8* page(i64 index) const { return memory_ + index * page_bytes_; }
    HeadPage head(i64 page_index, int layer, int kv_head) const;
    // Store one position's key and value (15 magnitude bits) of one head.
    void write(i64 page_index, int layer, int kv_head, int slot, const i64* key, i64 key_exponent,
               const i64* value, i64 value_exponent) const;
    // Give a page's memory back to the system; its content is lost.
    void discard(i64 index) const;

  private:
    int kv_heads_, size_;
    i64 head_bytes_, page_bytes_, pages_;
    u8* memory_;
};

}  // namespace unisono
