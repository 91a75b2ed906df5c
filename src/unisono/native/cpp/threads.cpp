#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define UNISONO_PAUSE() _mm_pause()
#else
#define UNISONO_PAUSE() std::this_thread::yield()
#endif

namespace unisono {

namespace {
// Regions of one pass follow each other within microseconds: waiting that long in a loop is
// cheaper than sleeping. Between passes the workers sleep and leave the cores to others.
constexpr int SPINS = 2000;
}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { loop(i); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
        region_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::start(int tasks, Call call, const void* work) {
    bool asleep;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        call_ = call;
        work_ = work;
        tasks_ = tasks;
        next_.store(0, std::memory_order_relaxed);
        busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        region_.fetch_add(1, std::memory_order_release);
        asleep = sleeping_ > 0;
    }
    if (asleep) wake_.notify_all();
    take(0);
    for (int i = 0; busy_.load(std::memory_order_acquire) > 0; i++) {
        if (i < SPINS) UNISONO_PAUSE();
        else std::this_thread::yield();
    }
}

void Pool::take(int thread) {
    for (;;) {
        const int task = next_.fetch_add(1, std::memory_order_relaxed);
        if (task >= tasks_) return;
        call_(work_, task, thread);
    }
}

void Pool::loop(int thread) {
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && region_.load(std::memory_order_acquire) == seen; i++) {
            UNISONO_PAUSE();
        }
        if (region_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleeping_++;
            wake_.wait(lock, [&] { return region_.load(std::memory_order_acquire) != seen; });
            sleeping_--;
        }
        seen = region_.load(std::memory_order_acquire);
        if (closing_) return;
        take(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace unisono
