#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "fixed.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace unisono {

namespace {
constexpr size_t HUGE_PAGE = size_t(2) << 20;
}

void* allocate(size_t bytes) {
    const size_t line = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
    const size_t size = (bytes + 64 + line - 1) / line * line;
    void* p = std::aligned_alloc(line, size);
    if (!p) throw std::bad_alloc();
#ifdef __linux__
    if (line == HUGE_PAGE) madvise(p, size, MADV_HUGEPAGE);
#endif
    std::memset(p, 0, size);
    return p;
}

void Free::operator()(void* p) const { std::free(p); }

void* Arena::take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (chunks_.empty() || used_ + bytes > chunks_.back().bytes) {
        const size_t size = (greater(chunk_, bytes) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
#ifdef __linux__
        // Untouched parts take no memory. Aligned by hand: mmap knows only small pages.
        u8* p = static_cast<u8*>(mmap(nullptr, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (p == MAP_FAILED) throw std::bad_alloc();
        const size_t before = (HUGE_PAGE - reinterpret_cast<uintptr_t>(p) % HUGE_PAGE) % HUGE_PAGE;
        if (before) munmap(p, before);
        if (HUGE_PAGE - before) munmap(p + before + size, HUGE_PAGE - before);
        void* memory = p + before;
        madvise(memory, size, MADV_HUGEPAGE);
#else
        void* memory = allocate(size);
#endif
        chunks_.push_back({memory, size});
        used_ = 0;
    }
    void* out = static_cast<u8*>(chunks_.back().memory) + used_;
    used_ += bytes;
    return out;
}

Arena::~Arena() {
    for (const Chunk& chunk : chunks_) {
#ifdef __linux__
        munmap(chunk.memory, chunk.bytes);
#else
        std::free(chunk.memory);
#endif
    }
}

}  // namespace unisono
