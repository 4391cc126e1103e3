// The handle of a collective that runs as one or more operations of another backend.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <functional>
#include <future>
#include <mutex>
#include <utility>
#include <vector>

#include "hccl_call.h"

namespace ascend_sim {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// What a call has started: operations under way, and what puts the result in place once they have ended.
struct Transfer {
  std::vector<WorkPtr> works;
  std::vector<std::function<void()>> deliveries;

  void add(Transfer other) {
    for (auto& work : other.works) works.push_back(std::move(work));
    for (auto& delivery : other.deliveries) deliveries.push_back(std::move(delivery));
  }
};

class HcclWork : public c10d::Work {
 public:
  HcclWork(int rank, Call call, Transfer transfer, std::vector<at::Tensor> outputs)
      : Work(rank, call.type), call_(std::move(call)), transfer_(std::move(transfer)), outputs_(std::move(outputs)) {}

  // Blocks until the result is in place. An error keeps being raised, also by later calls.
  bool wait(std::chrono::milliseconds timeout) override {
    std::lock_guard<std::mutex> alone(progress_);
    if (!c10d::Work::isCompleted()) complete(timeout);
    if (auto error = c10d::Work::exception()) std::rethrow_exception(error);
    return true;
  }

  void synchronize() override { wait(kNoTimeout); }

  // gloo's messages only make progress visible to whoever waits for them, so the first question starts a waiter.
  bool isCompleted() override {
    if (!c10d::Work::isCompleted() && !waiter_.valid()) {
      waiter_ = std::async(std::launch::async, [this] {
        std::lock_guard<std::mutex> alone(progress_);
        if (!c10d::Work::isCompleted()) complete(kNoTimeout);
      });
    }
    return c10d::Work::isCompleted();
  }

  std::vector<at::Tensor> result() override { return outputs_; }

  // torch_npu's reducer takes the result from here. It is in place before the future exists.
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    wait(kNoTimeout);
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
    future->markCompleted(c10::IValue(outputs_));
    return future;
  }

  uint64_t getSequencenumber() const override { return call_.sequence; }

 private:
  void complete(std::chrono::milliseconds timeout) {
    std::exception_ptr error;
    try {
      for (auto& work : transfer_.works) work->wait(timeout);
      for (auto& delivery : transfer_.deliveries) delivery();
    } catch (const std::exception& cause) {
      error = std::make_exception_ptr(c10::DistBackendError(
          {__func__, __FILE__, static_cast<uint32_t>(__LINE__)},
          call_.name() + " failed: " + first_line(cause.what()) +
              ". Look at the other ranks of the group: one of them ended, waits elsewhere, or gave other sizes."));
    }
    transfer_ = {};  // gives the buffers back
    finish(error);
  }

  // c10 puts a backtrace below its messages.
  static std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

  const Call call_;
  Transfer transfer_;
  const std::vector<at::Tensor> outputs_;
  std::mutex progress_;
  std::future<void> waiter_;
};

}  // namespace ascend_sim
