// Collectives on host memory, each of which returns when its result is in place: gloo's, and what gloo lacks.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <array>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "hccl_call.h"

namespace ascend_sim {

using Tensors = std::vector<at::Tensor>;
using Milliseconds = std::chrono::milliseconds;

inline at::Tensor as_bytes(const at::Tensor& host) { return host.view(at::kByte); }

// What the ranks of a group must agree on before a collective runs.
struct Terms {
  std::string text;               // the same on all ranks: "all_reduce SUM of 8 Float"
  std::vector<int64_t> sent;      // all_to_all: bytes to each rank,
  std::vector<int64_t> received;  // and from each
};

// Tensors are vectors in host memory. Reductions run in gloo's ring on the tensor's dtype, so that a result depends on
// the group and the sizes alone; everything else moves bytes.
class HostCollectives {
 public:
  explicit HostCollectives(c10::intrusive_ptr<c10d::Backend> gloo) : gloo_(std::move(gloo)) {}

  int rank() const { return gloo_->getRank(); }
  int size() const { return gloo_->getSize(); }
  void set_timeout(Milliseconds timeout) { gloo_->setTimeout(timeout); }

  // Raises on every rank unless all have the same text, and each receives what it is sent. gloo itself would end the
  // process, wait until the timeout, or take a part of the data for the whole.
  void agree(const Call& call, const Terms& terms, Milliseconds timeout) {
    if (size() == 1) return;
    Tensors all;
    for (int i = 0; i < size(); i++) all.push_back(at::empty({kText + 2 * size() * kCount}, at::kByte));
    all_gather(all, packed(terms), timeout);
    std::map<std::string, std::string> ranks_by_text;
    for (int i = 0; i < size(); i++) ranks_by_text[text_of(all[i])] += " " + std::to_string(call.global_rank(i));
    std::string asked;
    for (const auto& [text, ranks] : ranks_by_text) asked += (asked.empty() ? "" : "; ") + text + " by rank" + ranks;
    call.require(ranks_by_text.size() == 1, "the ranks ask for different things: " + asked,
                 "All ranks of a group must make the same calls in the same order");
    for (int from = 0; from < size(); from++) {
      for (int to = 0; to < size(); to++) {
        const int64_t sent = count_of(all[from], to), received = count_of(all[to], size() + from);
        call.require(sent == received,
                     "rank " + std::to_string(call.global_rank(from)) + " sends " + std::to_string(sent) +
                         " bytes to rank " + std::to_string(call.global_rank(to)) + ", which expects " +
                         std::to_string(received),
                     "Exchange the split sizes first");
      }
    }
  }

  void barrier(Milliseconds timeout) {
    c10d::BarrierOptions options;
    options.timeout = timeout;
    gloo_->barrier(options)->wait();
  }

  void all_reduce(at::Tensor host, const c10d::ReduceOp& op, Milliseconds timeout) {
    at::Tensor buffer = host.to(reduced_as(host.scalar_type()));  // host itself where the dtype stays
    reduce_everywhere(buffer, op, timeout);
    finish(host, buffer, op);
  }

  void reduce(at::Tensor host, const c10d::ReduceOptions& options) {
    // gloo uses every rank's memory on the way; HCCL changes the root's alone
    at::Tensor buffer = host.to(reduced_as(host.scalar_type()), /*non_blocking=*/false, /*copy=*/true);
    c10d::ReduceOptions sum = options;
    sum.reduceOp = without_average(options.reduceOp);
    Tensors buffers{buffer};
    gloo_->reduce(buffers, sum)->wait();
    if (rank() == options.rootRank) finish(host, buffer, options.reduceOp);
  }

  // Reduces the whole of `input` on every rank, as gloo does it too; this rank keeps what begins at `offset`.
  void reduce_scatter(at::Tensor output, const at::Tensor& input, int64_t offset, const c10d::ReduceOp& op,
                      Milliseconds timeout) {
    at::Tensor buffer = input.to(reduced_as(input.scalar_type()), /*non_blocking=*/false, /*copy=*/true);
    reduce_everywhere(buffer, op, timeout);
    finish(output, buffer.narrow(0, offset, output.numel()), op);
  }

  void broadcast(const at::Tensor& bytes, int64_t root, Milliseconds timeout) {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = timeout;
    Tensors buffers{bytes};
    gloo_->broadcast(buffers, options)->wait();
  }

  // `places` of one size: bytes of each rank.
  void all_gather(const Tensors& places, const at::Tensor& bytes, Milliseconds timeout) {
    c10d::AllgatherOptions options;
    options.timeout = timeout;
    std::vector<Tensors> received{places};
    Tensors sent{bytes};
    gloo_->allgather(received, sent, options)->wait();
  }

  // `places` of any size. Every rank broadcasts its part into its place, torch_npu's own way without HcclAllGatherV.
  void all_gather_uneven(const Tensors& places, const at::Tensor& bytes, Milliseconds timeout) {
    places[rank()].copy_(bytes);
    for (int root = 0; root < size(); root++) {
      if (places[root].numel() > 0) broadcast(places[root], root, timeout);
    }
  }

  void all_to_all(at::Tensor output, at::Tensor input, const Terms& terms, Milliseconds timeout) {
    c10d::AllToAllOptions options;
    options.timeout = timeout;
    auto received = terms.received, sent = terms.sent;
    gloo_->alltoall_base(output, input, received, sent, options)->wait();
  }

  // `places` is empty except on the root.
  void gather(const Tensors& places, const at::Tensor& bytes, const c10d::GatherOptions& options) {
    std::vector<Tensors> received;
    if (rank() == options.rootRank) received.push_back(places);
    Tensors sent{bytes};
    gloo_->gather(received, sent, options)->wait();
  }

  // `parts` is empty except on the root.
  void scatter(const at::Tensor& bytes, const Tensors& parts, const c10d::ScatterOptions& options) {
    std::vector<Tensors> sent;
    if (rank() == options.rootRank) sent.push_back(parts);
    Tensors received{bytes};
    gloo_->scatter(received, sent, options)->wait();
  }

  // A message and, before it, what it is: the receiver must expect the same.
  void send(at::Tensor bytes, at::ScalarType dtype, int peer) {
    auto label = start_send(label_of(bytes, dtype), peer, kLabel);
    auto message = start_send(bytes, peer, kMessage);
    label->wait();
    message->wait();
  }

  void recv(const Call& call, at::Tensor bytes, at::ScalarType dtype, int peer) {
    const at::Tensor expected = label_of(bytes, dtype);
    at::Tensor label = at::empty_like(expected);
    start_recv(label, peer, kLabel)->wait();
    call.require(at::equal(label, expected),
                 "rank " + std::to_string(call.global_rank(peer)) + " sends " + described(label) + " where " +
                     described(expected) + " are expected",
                 "Messages between two ranks arrive in the order in which they are sent");
    start_recv(bytes, peer, kMessage)->wait();
  }

 private:
  static constexpr int64_t kText = 256, kCount = sizeof(int64_t);
  static constexpr int kMessage = 0, kLabel = 1;  // gloo's tags

  // ---- reductions

  // The dtype that gloo reduces in. torch_npu takes bool and uint8 through int32 itself; gloo has no int16.
  static at::ScalarType reduced_as(at::ScalarType dtype) {
    return dtype == at::kBool || dtype == at::kByte || dtype == at::kShort ? at::kInt : dtype;
  }

  static c10d::ReduceOp without_average(const c10d::ReduceOp& op) {
    return op == c10d::ReduceOp::AVG ? c10d::ReduceOp(c10d::ReduceOp::SUM) : op;
  }

  void reduce_everywhere(const at::Tensor& buffer, const c10d::ReduceOp& op, Milliseconds timeout) {
    c10d::AllreduceOptions options;
    options.reduceOp = without_average(op);
    options.timeout = timeout;
    Tensors buffers{buffer};
    gloo_->allreduce(buffers, options)->wait();
  }

  // Puts the result in place and divides for AVG, as torch_npu does after HCCL's sum.
  void finish(at::Tensor target, const at::Tensor& buffer, const c10d::ReduceOp& op) const {
    if (!target.is_same(buffer)) target.copy_(buffer);
    if (op == c10d::ReduceOp::AVG) target.div_(size());
  }

  // ---- terms: the text, then the bytes sent to each rank and received from each

  at::Tensor packed(const Terms& terms) const {
    at::Tensor packed = at::zeros({kText + 2 * size() * kCount}, at::kByte);
    std::string text = terms.text;
    if (text.size() >= kText) {  // many coalesced tensors: the rest as a number
      text = text.substr(0, kText - 32) + " … " + std::to_string(std::hash<std::string>{}(text));
    }
    auto* memory = packed.data_ptr<uint8_t>();
    std::memcpy(memory, text.data(), text.size());
    const size_t counts = terms.sent.size() * kCount;
    std::memcpy(memory + kText, terms.sent.data(), counts);
    std::memcpy(memory + kText + counts, terms.received.data(), terms.received.size() * kCount);
    return packed;
  }

  static std::string text_of(const at::Tensor& packed) {
    return reinterpret_cast<const char*>(packed.const_data_ptr<uint8_t>());
  }

  static int64_t count_of(const at::Tensor& packed, int index) {
    int64_t count;
    std::memcpy(&count, packed.const_data_ptr<uint8_t>() + kText + index * kCount, kCount);
    return count;
  }

  // ---- messages

  static at::Tensor label_of(const at::Tensor& bytes, at::ScalarType dtype) {
    return at::tensor({bytes.numel(), static_cast<int64_t>(dtype)}, at::kLong);
  }

  static std::string described(const at::Tensor& label) {
    const auto dtype = static_cast<at::ScalarType>(label[1].item<int64_t>());
    return std::to_string(label[0].item<int64_t>() / static_cast<int64_t>(c10::elementSize(dtype))) + " " +
           c10::toString(dtype);
  }

  c10::intrusive_ptr<c10d::Work> start_send(const at::Tensor& host, int peer, int tag) {
    Tensors message{host};
    return gloo_->send(message, peer, tag);
  }

  c10::intrusive_ptr<c10d::Work> start_recv(const at::Tensor& host, int peer, int tag) {
    Tensors message{host};
    return gloo_->recv(message, peer, tag);
  }

  const c10::intrusive_ptr<c10d::Backend> gloo_;
};

}  // namespace ascend_sim
