// A small pool: one region after another, tasks taken from a shared counter.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace unisono {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Call work(task, thread) for every task below `tasks`; returns when all are done. The calling
    // thread takes part as thread 0. Not reentrant.
    template <class Work>
    void run(int tasks, const Work& work) {
        if (workers_.empty() || tasks <= 1) {
            for (int task = 0; task < tasks; task++) work(task, 0);
            return;
        }
        start(tasks, [](const void* w, int task, int thread) {
            (*static_cast<const Work*>(w))(task, thread);
        }, &work);
    }

    // Call work(from, to, thread) for pieces of 0..count, `each` of them per thread: enough that a
    // thread which the machine took away for a while does not hold up the others.
    template <class Work>
    void share(int count, int each, const Work& work) {
        const int pieces = size() * each, most = (count + pieces - 1) / pieces;
        run(most ? (count + most - 1) / most : 0, [&](int piece, int thread) {
            const int from = piece * most, rest = count - from;
            work(from, from + (most < rest ? most : rest), thread);
        });
    }

  private:
    using Call = void (*)(const void*, int, int);
    void start(int tasks, Call call, const void* work);
    void take(int thread);
    void loop(int thread);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    Call call_ = nullptr;
    const void* work_ = nullptr;
    int tasks_ = 0;
    bool closing_ = false;
    int sleeping_ = 0;
    alignas(64) std::atomic<unsigned> region_{0};
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> busy_{0};
};

}  // namespace unisono
