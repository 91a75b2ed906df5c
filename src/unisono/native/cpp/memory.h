// Memory for rows and for weights.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

namespace unisono {

// Zeroed memory aligned to a cache line.
void* allocate(size_t bytes);
struct Free {
    void operator()(void* p) const;
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;
template <class T>
Buffer<T> make_buffer(size_t count) {
    return Buffer<T>(static_cast<T*>(allocate(count * sizeof(T))));
}

// Memory for weights, in the order they are read, on huge pages: small matrices on pages of 4 KB
// were read at two thirds of the speed.
class Arena {
  public:
    explicit Arena(size_t chunk = size_t(64) << 20) : chunk_(chunk) {}
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    // Zeroed, aligned to a cache line, freed with the arena.
    void* take(size_t bytes);

  private:
    struct Chunk {
        void* memory;
        size_t bytes;
    };
    size_t chunk_, used_ = 0;
    std::vector<Chunk> chunks_;
};

}  // namespace unisono
