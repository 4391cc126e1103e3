// The handle of a call, and the thread that carries calls out in the order in which they were made.
#pragma once

#include <c10/core/InferenceMode.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "counters.h"
#include "hccl_call.h"

namespace ascend_sim {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// The handle of one call, or of several that are coalesced: what has parts, in whichever lanes.
class HcclWork : public c10d::Work {
 public:
  HcclWork(Call call, std::vector<at::Tensor> outputs, size_t parts = 1)
      : Work(call.rank, call.type),
        call_(std::move(call)),
        outputs_(std::move(outputs)),
        parts_(parts),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {}

  // Carries out one part. After the last one the call has ended, with the error of the first part that had one.
  void run(const std::function<void()>& part) {
    std::exception_ptr error;
    try {
      c10::InferenceMode no_autograd;
      part();
    } catch (const std::exception& cause) {
      error = named(cause.what());
    }
    {
      std::lock_guard<std::mutex> lock(parts_mutex_);
      if (error && !error_) error_ = error;
      if (--parts_ > 0) return;
    }
    finish(error_);
    error_ ? future_->setError(error_) : future_->markCompleted(c10::IValue(outputs_));
  }

  // Blocks until the result is in place, where a device would only have the current stream wait. An error is raised by
  // every call of it.
  bool wait(std::chrono::milliseconds timeout) override {
    wait_for_collective(call_.communicator, call_.sequence);
    if (timeout != kNoTimeout) {
      std::unique_lock<std::mutex> lock(mutex_);
      if (!cv_.wait_for(lock, timeout, [this] { return completed_; })) {
        std::rethrow_exception(named("not done after " + std::to_string(timeout.count()) + " ms"));
      }
    }
    return Work::wait(kNoTimeout);
  }

  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  uint64_t getSequencenumber() const override { return call_.sequence; }

 private:
  std::exception_ptr named(const std::string& cause) const {
    const std::string first_line = cause.substr(0, cause.find('\n'));  // c10 puts a backtrace below its messages
    const bool complete = first_line.rfind("simulated hccl: ", 0) == 0;  // a refusal, or that of a coalesced call
    return std::make_exception_ptr(
        c10::DistBackendError({__func__, __FILE__, static_cast<uint32_t>(__LINE__)},
                              complete ? first_line
                                       : call_.name() + " failed: " + first_line +
                                             ". Another rank of the group has ended, or does not make this call"));
  }

  const Call call_;
  const std::vector<at::Tensor> outputs_;
  std::mutex parts_mutex_;
  size_t parts_;
  std::exception_ptr error_;
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// A thread that carries out tasks one after the other, as a communication stream of the device does.
//
// It starts with the first task. It is never joined: a process that ends with an error must not wait for ranks that
// will not come, so a task owns all that it uses.
class Lane {
 public:
  ~Lane() {
    if (!state_) return;
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->closed = true;
    state_->changed.notify_one();
  }

  void add(std::function<void()> task) {
    if (!state_) {
      state_ = std::make_shared<State>();
      std::thread(&Lane::loop, state_).detach();
    }
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->tasks.push_back(std::move(task));
    state_->changed.notify_one();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> tasks;
    bool closed = false;
  };

  static void loop(std::shared_ptr<State> state) {
    while (true) {
      std::unique_lock<std::mutex> lock(state->mutex);
      state->changed.wait(lock, [&] { return state->closed || !state->tasks.empty(); });
      if (state->tasks.empty()) return;
      auto task = std::move(state->tasks.front());
      state->tasks.pop_front();
      lock.unlock();
      task();
    }
  }

  std::shared_ptr<State> state_;
};

}  // namespace ascend_sim
