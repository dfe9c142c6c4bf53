// A lane: a set of cores with its own pinned threads. The caller's thread is worker 0.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernels.h"

namespace forerun {

// Zeroed anonymous memory, 2 MiB aligned, huge pages where the kernel offers them.
class Arena {
 public:
  Arena() = default;
  explicit Arena(size_t bytes);  // throws std::bad_alloc
  Arena(Arena&& other) noexcept { *this = static_cast<Arena&&>(other); }
  Arena& operator=(Arena&& other) noexcept;
  ~Arena();
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* mapping_ = nullptr;
  size_t mapped_ = 0;
};

// Held during a call from outside: one at a time, whichever thread asks.
class InUse {
 public:
  template <typename Asked>
  explicit InUse(Asked& asked) : flag_(asked.in_use()) {
    if (flag_.test_and_set(std::memory_order_acquire))
      throw std::runtime_error("this model is computing in another thread: one call at a time");
  }
  ~InUse() { flag_.clear(std::memory_order_release); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  std::atomic_flag& flag_;
};

class Lane {
 public:
  // One thread per core; empty `cores` leaves placement to the system with `num_threads` threads.
  Lane(std::vector<int> cores, int num_threads, const std::string& path);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  const Kernels& kernels() const { return kernels_; }
  int num_threads() const { return num_threads_; }
  const std::vector<int>& cores() const { return cores_; }

  // Run job(worker) on every worker at once and wait for all. Not reentrant. The floating point
  // mode is the canonical one inside and restored afterwards. The first exception of a job is
  // thrown again here; a job with barriers inside must not throw.
  template <typename Job>
  void run(Job&& job) {
    run_erased([](void* context, int worker) { (*static_cast<Job*>(context))(worker); }, &job);
  }

  // Inside a job: wait until every worker has arrived.
  void barrier(int worker);

  // Inside a job: call body(index) for 0..count-1, most in fixed contiguous slices (one
  // stream a worker), an eighth by whoever is free: shared hosts take a core away unannounced.
  // Which worker computes an index can never change its bits.
  // A barrier must separate two uses of one phase number.
  template <typename Body>
  void share(int worker, int phase, int64_t count, Body&& body) {
    const int64_t fixed = num_threads_ == 1 ? count : count - count / 8;
    const int64_t begin = fixed * worker / num_threads_, end = fixed * (worker + 1) / num_threads_;
    for (int64_t i = begin; i < end; ++i) body(i);
    if (num_threads_ == 1) return;
    std::atomic<int64_t>& next = phases_[phase].next;
    for (int64_t i; (i = fixed + next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  }

  // Bytes per second of the best of several ways to read a private buffer once on all threads.
  double read_bandwidth(int64_t num_bytes);

  // Before a job that shares `count` phases: forget their progress.
  void reset_phases(int count);

 private:
  struct alignas(128) Signal {
    std::atomic<uint32_t> value{0};
    std::atomic<uint32_t> sleeping{0};
  };
  struct alignas(64) Phase {
    std::atomic<int64_t> next{0};
  };
  using Erased = void (*)(void*, int);

  void run_erased(Erased job, void* context);
  void work(int worker);
  void perform(int worker);
  void stop();
  void await(Signal& signal, uint32_t seen);
  void publish(Signal& signal);

  const Kernels& kernels_;
  std::vector<int> cores_;
  int num_threads_;
  int process_;
  Erased job_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stop_{false};
  std::atomic_flag failed_;
  std::exception_ptr failure_;         // of the running job, read behind its last barrier
  Signal start_;                       // epoch of jobs
  std::unique_ptr<Signal[]> arrived_;  // per worker: barriers passed
  Signal released_;                    // barriers released by worker 0
  std::unique_ptr<Phase[]> phases_;
  int num_phases_ = 0;
  std::vector<std::thread> threads_;
  Arena read_buffer_;  // of the last read_bandwidth size, kept warm as a model's weights are
};

}  // namespace forerun
