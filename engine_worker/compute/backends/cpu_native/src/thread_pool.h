// Threads of the kernels: they wait in a short spin between calls and are parked afterwards.
//
// A call is a sequence of phases that every thread walks through in the same order. The items of a
// phase are claimed one by one, so a thread that the system runs late takes less work, and a thread
// that is never run takes none: nobody waits for a thread to arrive, only for items begun.
#pragma once

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

namespace penstock {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits: busy at first, then letting other threads of the machine run in between.
class Backoff {
 public:
  void wait() {
    if (++turns_ < kBusyTurns) {
      pause_cpu();
    } else {
      sched_yield();
    }
  }

 private:
  static constexpr int kBusyTurns = 1000;
  int turns_ = 0;
};

struct alignas(64) Phase {
  std::atomic<int64_t> claimed{0};
  std::atomic<int64_t> done{0};
};

// What one thread sees of a call.
class Team {
 public:
  Team(int thread, int num_threads, Phase* phases, int num_phases)
      : thread_(thread), num_threads_(num_threads), phases_(phases), num_phases_(num_phases) {}

  int thread() const { return thread_; }

  // Runs f(0) … f(num_items - 1), spread over the threads; returns when all of them are done.
  template <class F>
  void each(int64_t num_items, F&& f) {
    if (next_phase_ >= num_phases_) __builtin_trap();  // The caller of run counted too few.
    Phase& phase = phases_[next_phase_++];
    for (;;) {
      int64_t item = phase.claimed.fetch_add(1, std::memory_order_relaxed);
      if (item >= num_items) break;
      f(item);
      phase.done.fetch_add(1, std::memory_order_release);
    }
    Backoff backoff;
    while (phase.done.load(std::memory_order_acquire) < num_items) backoff.wait();
  }

  // The same for rows, of which a thread takes some neighbours at once: what these write to lies
  // side by side, and a line that two threads write to goes to and fro between their caches.
  template <class F>
  void each_row(int64_t num_rows, F&& f) {
    constexpr int64_t kMostRows = 32;
    const int64_t shared = num_rows / (4 * num_threads_);
    const int64_t rows = shared < 1 ? 1 : shared < kMostRows ? shared : kMostRows;
    each((num_rows + rows - 1) / rows, [&](int64_t item) {
      const int64_t first = item * rows, end = first + rows < num_rows ? first + rows : num_rows;
      for (int64_t row = first; row < end; row++) f(row);
    });
  }

 private:
  int thread_;
  int num_threads_;
  Phase* phases_;
  int num_phases_;
  int next_phase_ = 0;
};

class ThreadPool {
 public:
  // The process's one pool. It is never destroyed: parked threads may outlive main.
  static ThreadPool& instance();

  // Bounds of `start`.
  static constexpr int kMaxThreads = 256;

  // Starts the threads, once; later calls change nothing. Returns how many take part in a call.
  int start(int num_threads);

  int num_threads() const { return num_threads_; }

  // One call at a time: a second one waits here.
  using CallLock = std::unique_lock<std::mutex>;
  CallLock begin_call() { return CallLock(call_mutex_); }

  // Calls f(Team&) on this thread and on every other that is there in time. `num_phases` is at
  // least how often f calls Team::each.
  template <class F>
  void run(const CallLock&, int num_phases, F&& f) {
    run_locked(num_phases, [](void* context, Team& team) {
      (*static_cast<std::remove_reference_t<F>*>(context))(team);
    }, &f);
  }

 private:
  using Function = void (*)(void*, Team&);

  void run_locked(int num_phases, Function function, void* context);
  void work(int thread);
  uint64_t wait_for_call(uint64_t seen);

  // Bit 0: threads may join the call; bits 1 to 31: threads that did; from bit 32: number of calls.
  static constexpr uint64_t kOpen = 1, kJoined = 2, kCall = uint64_t{1} << 32;
  static uint64_t call_of(uint64_t state) { return state >> 32; }
  static uint64_t joined_of(uint64_t state) { return (state & (kCall - 1)) >> 1; }

  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> num_parked_{0};
  std::mutex call_mutex_;
  std::mutex park_mutex_;
  std::condition_variable wake_;
  int num_threads_ = 1;
  bool is_started_ = false;
  Function function_ = nullptr;
  void* context_ = nullptr;
  std::unique_ptr<Phase[]> phases_;
  int num_phases_ = 0;
};

}  // namespace penstock
