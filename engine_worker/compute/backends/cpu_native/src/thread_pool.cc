#include "thread_pool.h"

#include <chrono>
#include <system_error>
#include <thread>

namespace penstock {

namespace {
// Longer than the pauses between the calls of one step, shorter than anybody's patience.
constexpr std::chrono::microseconds kSpin{100};
constexpr int kTurnsByClockReading = 64;
}  // namespace

ThreadPool& ThreadPool::instance() {
  static ThreadPool* pool = new ThreadPool;
  return *pool;
}

int ThreadPool::start(int num_threads) {
  std::lock_guard<std::mutex> one_call(call_mutex_);
  if (is_started_) return num_threads_;
  is_started_ = true;
  num_threads_ = num_threads < 1 ? 1 : num_threads > kMaxThreads ? kMaxThreads : num_threads;
  for (int thread = 1; thread < num_threads_; thread++) {
    try {
      std::thread([this, thread] { work(thread); }).detach();
    } catch (const std::system_error&) {
      num_threads_ = thread;  // The system has no more of them: fewer take part.
    }
  }
  return num_threads_;
}

void ThreadPool::run_locked(int num_phases, Function function, void* context) {
  if (num_phases > num_phases_) {
    phases_.reset(new Phase[num_phases]);
    num_phases_ = num_phases;
  }
  for (int i = 0; i < num_phases; i++) {
    phases_[i].claimed.store(0, std::memory_order_relaxed);
    phases_[i].done.store(0, std::memory_order_relaxed);
  }
  function_ = function;
  context_ = context;
  Team team(0, num_threads_, phases_.get(), num_phases_);
  if (num_threads_ == 1) {
    function(context, team);
    return;
  }
  // Sequentially consistent, as is the count of the parked: one side sees what the other did.
  state_.store((call_of(state_.load(std::memory_order_relaxed)) + 1) * kCall | kOpen);
  if (num_parked_.load() > 0) {
    std::lock_guard<std::mutex> lock(park_mutex_);
    wake_.notify_all();
  }
  function(context, team);
  state_.fetch_and(~kOpen, std::memory_order_relaxed);
  Backoff backoff;
  while (joined_of(state_.load(std::memory_order_acquire)) > 0) backoff.wait();
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    uint64_t state = wait_for_call(seen);
    seen = call_of(state);
    bool joined = false;
    while (!joined && (state & kOpen) && call_of(state) == seen) {
      joined = state_.compare_exchange_weak(state, state + kJoined, std::memory_order_acq_rel,
                                            std::memory_order_acquire);
    }
    if (!joined) continue;
    Team team(thread, num_threads_, phases_.get(), num_phases_);
    function_(context_, team);
    state_.fetch_sub(kJoined, std::memory_order_release);
  }
}

// Returns the state once a call after `seen` has begun.
uint64_t ThreadPool::wait_for_call(uint64_t seen) {
  auto deadline = std::chrono::steady_clock::now() + kSpin;
  Backoff backoff;
  for (int turn = 1;; turn++) {
    uint64_t state = state_.load(std::memory_order_acquire);
    if (call_of(state) != seen) return state;
    backoff.wait();
    if (turn % kTurnsByClockReading == 0 && std::chrono::steady_clock::now() > deadline) break;
  }
  std::unique_lock<std::mutex> lock(park_mutex_);
  num_parked_.fetch_add(1);
  wake_.wait(lock, [&] { return call_of(state_.load()) != seen; });
  num_parked_.fetch_sub(1);
  return state_.load(std::memory_order_acquire);
}

}  // namespace penstock
