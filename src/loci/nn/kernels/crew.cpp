#include "crew.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

namespace loci {
namespace {

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waiting in turns: at once, then politely, because there may be more threads than processors.
class Patience {
 public:
  void wait() {
    if (++turns_ < 1000) pause_briefly();
    else std::this_thread::yield();
  }

 private:
  int turns_ = 0;
};

// What is left of one worker's share of a job: the job's number, then the first and the last piece.
// The owner takes from the front, the others from the back; the number makes it impossible to take
// a piece of a job that is over.
class alignas(64) Share {
 public:
  void set(uint32_t job, uint32_t from, uint32_t to) {
    left_.store(uint64_t(job) << 32 | from << 16 | to, std::memory_order_relaxed);
  }

  // Returns a piece, or -1 when there is none.
  int take(uint32_t job, bool from_front) {
    uint64_t left = left_.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t from = (left >> 16) & 0xffff, to = left & 0xffff;
      if (uint32_t(left >> 32) != job || from >= to) return -1;
      const uint64_t rest = from_front ? left + (1 << 16) : left - 1;
      if (left_.compare_exchange_weak(left, rest, std::memory_order_acq_rel))
        return int(from_front ? from : to - 1);
    }
  }

 private:
  std::atomic<uint64_t> left_{0};
};

constexpr int64_t kMostPieces = 0xffff;
constexpr auto kAwake = std::chrono::microseconds(200);  // a worker waits before it sleeps

class Crew {
 public:
  explicit Crew(int size) : size_(size), shares_(size) {
    for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { attend(i); });
  }

  ~Crew() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void run(int64_t items, int64_t step, Piecework body, void* data) {
    if (items <= 0) return;
    step = std::max(step, (items + kMostPieces - 1) / kMostPieces);
    const int64_t pieces = (items + step - 1) / step;
    if (size_ == 1 || pieces == 1) return body(data, 0, items, 0);
    const uint32_t job = now_.job.load(std::memory_order_relaxed) + 1;
    now_.items = items;
    now_.step = step;
    now_.body = body;
    now_.data = data;
    done_.store(0, std::memory_order_relaxed);
    for (int i = 0; i < size_; ++i)
      shares_[i].set(job, uint32_t(pieces * i / size_), uint32_t(pieces * (i + 1) / size_));
    now_.job.store(job, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(job, 0);
    Patience patience;
    while (done_.load(std::memory_order_acquire) < pieces) patience.wait();
  }

 private:
  // Nothing of the job is read before a piece of it was taken: until that is done, it stays.
  void work(uint32_t job, int worker) {
    for (int other = 0; other < size_; ++other) {
      Share& share = shares_[(worker + other) % size_];
      int64_t finished = 0;
      for (int piece = share.take(job, other == 0); piece >= 0; piece = share.take(job, other == 0)) {
        const int64_t from = piece * now_.step;
        now_.body(now_.data, from, std::min(from + now_.step, now_.items), worker);
        ++finished;
      }
      if (finished > 0) done_.fetch_add(finished, std::memory_order_acq_rel);
    }
  }

  void attend(int worker) {
    uint32_t seen = 0;
    for (;;) {
      Patience patience;
      const auto began = std::chrono::steady_clock::now();
      for (int turn = 0; now_.job.load(std::memory_order_acquire) == seen; ++turn) {
        patience.wait();
        if (turn % 64 != 63 || std::chrono::steady_clock::now() - began < kAwake) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return stop_.load() || now_.job.load(std::memory_order_seq_cst) != seen; });
        asleep_.fetch_sub(1, std::memory_order_relaxed);
        if (stop_.load()) return;
      }
      if (stop_.load(std::memory_order_relaxed)) return;
      seen = now_.job.load(std::memory_order_acquire);
      work(seen, worker);
    }
  }

  const int size_;
  std::vector<Share> shares_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> asleep_{0};
  alignas(64) struct {  // one cache line, which is what a worker waits for
    std::atomic<uint32_t> job{0};
    Piecework body = nullptr;
    void* data = nullptr;
    int64_t items = 0, step = 1;
  } now_;
  alignas(64) std::atomic<int64_t> done_{0};
};

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return int(std::max(1u, std::thread::hardware_concurrency()));
}

int g_size = processors();
Crew* g_crew = nullptr;
pid_t g_owner = 0;
std::mutex g_turn;

}  // namespace

int crew_size() { return g_size; }

void set_crew_size(int threads) {
  std::lock_guard<std::mutex> turn(g_turn);
  g_size = std::max(1, threads);
  if (g_crew != nullptr && g_owner == getpid()) delete g_crew;
  g_crew = nullptr;
}

void run_pieces(int64_t items, int64_t step, Piecework body, void* data) {
  std::lock_guard<std::mutex> turn(g_turn);
  if (g_crew == nullptr || g_owner != getpid()) {
    // After a fork the workers of the parent do not exist here; its crew is left alone.
    g_crew = new Crew(g_size);
    g_owner = getpid();
  }
  g_crew->run(items, step, body, data);
}

}  // namespace loci
