#include "lane.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "cpu.h"
#include "mode.h"

namespace forerun {
namespace {

constexpr size_t kHugePage = 2u << 20;
constexpr int64_t kSpinNs = 50'000;      // pause this long, then yield
constexpr int64_t kYieldNs = 3'000'000;  // yield this long, then sleep until woken

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation | FUTEX_PRIVATE_FLAG, value,
          nullptr, nullptr, 0);
}

void pin_to(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof(set), &set);  // refused: run unpinned, only slower
}

// Pins the calling thread for one job and gives it its old cores back.
class Pinned {
 public:
  explicit Pinned(const std::vector<int>& cores) : active_(!cores.empty()) {
    if (!active_) return;
    active_ = sched_getaffinity(0, sizeof(saved_), &saved_) == 0;
    if (active_) pin_to(cores[0]);
  }
  ~Pinned() {
    if (active_) sched_setaffinity(0, sizeof(saved_), &saved_);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  bool active_;
  cpu_set_t saved_;
};

// Threads made while this lives never catch the process's signals: those belong to the main thread.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t saved_;
};

}  // namespace

Arena::Arena(size_t bytes) : size_(bytes), mapped_(bytes + kHugePage) {
  if (bytes == 0) {
    mapped_ = 0;
    return;
  }
  if (mapped_ < bytes) throw std::bad_alloc();
  mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::bad_alloc();
  }
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapping_);
  data_ = reinterpret_cast<uint8_t*>((start + kHugePage - 1) / kHugePage * kHugePage);
  if (bytes >= kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
}

Arena& Arena::operator=(Arena&& other) noexcept {
  if (this == &other) return *this;
  if (mapping_) munmap(mapping_, mapped_);
  data_ = other.data_;
  size_ = other.size_;
  mapping_ = other.mapping_;
  mapped_ = other.mapped_;
  other.data_ = nullptr;
  other.mapping_ = nullptr;
  other.size_ = other.mapped_ = 0;
  return *this;
}

Arena::~Arena() {
  if (mapping_) munmap(mapping_, mapped_);
}

Lane::Lane(std::vector<int> cores, int num_threads, const std::string& path)
    : kernels_(kernels_by_name(path)),
      cores_(std::move(cores)),
      num_threads_(cores_.empty() ? num_threads : static_cast<int>(cores_.size())),
      process_(getpid()) {
  if (num_threads_ < 1) throw std::invalid_argument("a lane needs at least one thread");
  arrived_ = std::make_unique<Signal[]>(static_cast<size_t>(num_threads_));
  const SignalsBlocked blocked;
  try {
    for (int worker = 1; worker < num_threads_; ++worker)
      threads_.emplace_back([this, worker] { work(worker); });
  } catch (const std::system_error& error) {
    stop();
    throw std::runtime_error("cannot start " + std::to_string(num_threads_ - 1) +
                             " threads: " + error.what());
  }
}

Lane::~Lane() {
  if (getpid() != process_) {  // after a fork the workers do not exist here
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  stop();
}

void Lane::stop() {
  stop_.store(true, std::memory_order_release);
  publish(start_);
  for (std::thread& thread : threads_) thread.join();
}

void Lane::reset_phases(int count) {
  if (count > num_phases_) {
    phases_ = std::make_unique<Phase[]>(static_cast<size_t>(count));
    num_phases_ = count;
  }
  for (int i = 0; i < count; ++i) phases_[i].next.store(0, std::memory_order_relaxed);
}

double Lane::read_bandwidth(int64_t num_bytes) {
  const int64_t slice = num_bytes / num_threads_ / 256 * 256;
  if (slice == 0) throw std::invalid_argument("read_bandwidth needs at least 256 bytes a thread");
  if (static_cast<int64_t>(read_buffer_.size()) != num_bytes) {
    read_buffer_ = Arena();
    read_buffer_ = Arena(static_cast<size_t>(num_bytes));
    for (size_t i = 0; i < read_buffer_.size(); i += 64) read_buffer_.data()[i] = 1;
  }
  double best = 0;
  std::atomic<uint32_t> sink{0};
  for (const int64_t ahead : {0, 512, 1024, 2048}) {
    const int64_t start = now_ns();
    run([&](int worker) {
      sink ^= kernels_.read(read_buffer_.data() + worker * slice, slice, ahead);
    });
    const double seconds = static_cast<double>(now_ns() - start) * 1e-9;
    best = std::max(best, static_cast<double>(slice * num_threads_) / seconds);
  }
  return best;
}

void Lane::publish(Signal& signal) {
  signal.value.fetch_add(1, std::memory_order_seq_cst);
  if (signal.sleeping.load(std::memory_order_seq_cst) > 0)
    futex(signal.value, FUTEX_WAKE, INT32_MAX);
}

// The wait ladder: spin while the others compute, yield while somebody else needs this core, sleep
// once nobody generates.
void Lane::await(Signal& signal, uint32_t seen) {
  if (signal.value.load(std::memory_order_acquire) != seen) return;
  const int64_t start = now_ns();
  while (now_ns() - start < kSpinNs)
    for (int i = 0; i < 32; ++i) {
      if (signal.value.load(std::memory_order_acquire) != seen) return;
      _mm_pause();
    }
  while (now_ns() - start < kYieldNs) {
    if (signal.value.load(std::memory_order_acquire) != seen) return;
    sched_yield();
  }
  signal.sleeping.fetch_add(1, std::memory_order_seq_cst);
  while (signal.value.load(std::memory_order_seq_cst) == seen)
    futex(signal.value, FUTEX_WAIT, seen);
  signal.sleeping.fetch_sub(1, std::memory_order_seq_cst);
}

void Lane::barrier(int worker) {
  if (num_threads_ == 1) return;
  const uint32_t round = released_.value.load(std::memory_order_acquire);
  if (worker != 0) {
    publish(arrived_[worker]);
    await(released_, round);
    return;
  }
  for (int other = 1; other < num_threads_; ++other) await(arrived_[other], round);
  publish(released_);
}

void Lane::work(int worker) {
  if (!cores_.empty()) pin_to(cores_[static_cast<size_t>(worker)]);
  const CanonicalMode mode;
  for (uint32_t seen = 0;;) {
    await(start_, seen);
    seen = seen + 1;
    if (stop_.load(std::memory_order_acquire)) return;
    perform(worker);
  }
}

void Lane::perform(int worker) {
  kernels_.begin();
  try {
    job_(context_, worker);
  } catch (...) {
    if (!failed_.test_and_set()) failure_ = std::current_exception();
  }
  kernels_.end();
  barrier(worker);
}

void Lane::run_erased(Erased job, void* context) {
  if (getpid() != process_)
    throw std::runtime_error("a lane does not survive fork: open the engine after forking");
  const Pinned pinned(cores_);
  const CanonicalMode mode;
  job_ = job;
  context_ = context;
  if (num_threads_ > 1) publish(start_);
  perform(0);
  if (!failure_) return;
  failed_.clear();
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace forerun
