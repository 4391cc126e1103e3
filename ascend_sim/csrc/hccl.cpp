// The c10d backend "hccl" of the simulated device: gloo over the host memory that npu tensors lie in.
//
// Reductions run in gloo's own ring, on the tensor's dtype, so that a result depends on the group and the sizes alone
// and equals that of a gloo group of the same layout. Everything else moves bytes, whatever the dtype. What a device
// would refuse is refused before anything moves (hccl_call.h); what it accepts and gloo lacks is composed here.
//
// A result is in place after wait(), not before: the simulated streams have no work of their own to wait for.
#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/extension.h>

#include <numeric>

#include "counters.h"
#include "hccl_call.h"
#include "hccl_work.h"

namespace ascend_sim {
namespace {

using at::Tensor;
using c10d::OpType;
using c10d::ReduceOp;
using Tensors = std::vector<Tensor>;
using Milliseconds = std::chrono::milliseconds;

// The memory of a dense npu tensor as a vector, in the order in which it lies there.
Tensor memory(const Tensor& tensor) { return at::as_strided(host_alias(tensor), {tensor.numel()}, {1}); }

Tensor as_bytes(const Tensor& host) { return host.view(at::kByte); }

Tensor bytes(const Tensor& tensor) { return as_bytes(memory(tensor)); }

int64_t nbytes(const Tensors& tensors) {
  return std::accumulate(tensors.begin(), tensors.end(), int64_t{0},
                         [](int64_t sum, const Tensor& tensor) { return sum + static_cast<int64_t>(tensor.nbytes()); });
}

// The elements of a list's tensor in their logical order: its own memory, or a copy where it is permuted.
Tensor elements(const Tensor& tensor) { return host_alias(tensor).contiguous().view(-1); }

// Where to receive the elements of `tensor`: its own memory, or a buffer that `transfer` copies back at the end.
Tensor receiving(const Tensor& tensor, Transfer& transfer) {
  if (tensor.is_contiguous()) return bytes(tensor);
  Tensor host = host_alias(tensor);
  Tensor buffer = at::empty(host.sizes(), host.options());
  transfer.deliveries.push_back([host, buffer]() mutable { host.copy_(buffer); });
  return as_bytes(buffer.view(-1));
}

bool one_shape(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [&](const Tensor& tensor) { return tensor.sizes() == tensors.front().sizes(); });
}

// The dtype that gloo reduces in. torch_npu takes bool and uint8 through int32 itself; gloo has no int16.
at::ScalarType reduced_as(at::ScalarType dtype) {
  return dtype == at::kBool || dtype == at::kByte || dtype == at::kShort ? at::kInt : dtype;
}

ReduceOp without_average(const ReduceOp& reduction) {
  return reduction == ReduceOp::AVG ? ReduceOp(ReduceOp::SUM) : reduction;
}

std::vector<int64_t> numels(const Tensors& tensors) {
  std::vector<int64_t> counts;
  for (const auto& tensor : tensors) counts.push_back(tensor.numel());
  return counts;
}

int64_t row_bytes(const Tensor& tensor) {
  return c10::multiply_integers(tensor.sizes().slice(1)) * static_cast<int64_t>(tensor.element_size());
}

class HcclBackend : public c10d::Backend {
 public:
  HcclBackend(c10::intrusive_ptr<Backend> gloo, c10::intrusive_ptr<Options> options, std::vector<int64_t> global_ranks)
      : Backend(gloo->getRank(), gloo->getSize()),
        gloo_(std::move(gloo)),
        options_(std::move(options)),
        global_ranks_(std::move(global_ranks)) {}

  const std::string getBackendName() const override { return "hccl"; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  bool supportsCoalescing() const override { return true; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  void setTimeout(Milliseconds timeout) override {
    options_->timeout = timeout;
    gloo_->setTimeout(timeout);
  }

  void shutdown() override { close("shut down"); }
  void abort() override { close("aborted"); }

  std::string comm_name() const { return "hcom_" + getGroupUid(); }

  // ---- collectives that reduce

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    Call call = begin("all_reduce", OpType::ALLREDUCE);
    call.require_contiguous(call.single(tensors));
    call.require_reduction(options.reduceOp, tensors[0].scalar_type(), true);
    return submit(call, tensors, nbytes(tensors),
                  [&] { return start_all_reduce(memory(tensors[0]), options.reduceOp, options.timeout); });
  }

  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    Call call = begin("all_reduce", OpType::ALLREDUCE);
    for (const auto& tensor : tensors) {
      call.require_dense(tensor);
      call.require_reduction(options.reduceOp, tensor.scalar_type(), true);
    }
    return submit_each(call, tensors, tensors, [&](size_t i) {
      return start_all_reduce(memory(tensors[i]), options.reduceOp, options.timeout);
    });
  }

  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    Call call = begin("reduce", OpType::REDUCE);
    call.require_contiguous(call.single(tensors));
    call.require_reduction(options.reduceOp, tensors[0].scalar_type(), true);
    return submit(call, tensors, nbytes(tensors), [&] { return start_reduce(memory(tensors[0]), options); });
  }

  WorkPtr _reduce_scatter_base(Tensor& output, Tensor& input, const c10d::ReduceScatterOptions& options) override {
    Call call = begin("reduce_scatter_tensor", OpType::_REDUCE_SCATTER_BASE);
    require_even_reduce_scatter(call, output, input, options.reduceOp);
    return submit(call, {output}, input.nbytes(), [&] {
      return start_reduce_scatter(memory(input), memory(output), getRank() * output.numel(), options);
    });
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    Call call = begin("reduce_scatter_tensor", OpType::REDUCE_SCATTER);
    for (size_t i = 0; i < inputs.size(); i++) {
      require_even_reduce_scatter(call, outputs[i], inputs[i], options.reduceOp);
    }
    return submit_each(call, outputs, inputs, [&](size_t i) {
      return start_reduce_scatter(memory(inputs[i]), memory(outputs[i]), getRank() * outputs[i].numel(), options);
    });
  }

  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    Call call = begin("reduce_scatter", OpType::REDUCE_SCATTER);
    const Tensor& output = call.single(outputs);
    const Tensors& parts = inputs.at(0);
    call.require_contiguous(output);
    call.require_list(parts, getSize());
    call.require_same_dtype(parts[0], output);
    call.require_reduction(options.reduceOp, output.scalar_type(), false);
    require_own_part(call, "output", output, parts[getRank()]);
    return submit(call, outputs, nbytes(parts), [&] {
      Tensors flat;
      for (const auto& part : parts) flat.push_back(elements(part));
      return start_reduce_scatter(at::cat(flat), memory(output), offset_of_own_part(numels(parts)), options);
    });
  }

  WorkPtr reduce_scatter_tensor_uneven(Tensor& output, Tensor& input, std::vector<int64_t> splits,
                                       const c10d::ReduceScatterOptions& options) {
    Call call = begin("reduce_scatter_tensor_uneven", OpType::REDUCE_SCATTER);
    require_pair(call, output, input);
    call.require_reduction(options.reduceOp, output.scalar_type(), false);
    const auto counts = split_bytes(call, "input", input, splits);
    const int64_t offset = offset_of_own_part(counts) / input.element_size();
    require_own_bytes(call, "output", output, counts);
    return submit(call, {output}, input.nbytes(),
                  [&] { return start_reduce_scatter(memory(input), memory(output), offset, options); });
  }

  // ---- collectives that move

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    Call call = begin("broadcast", OpType::BROADCAST);
    call.require_contiguous(call.single(tensors));
    const int64_t contributed = getRank() == options.rootRank ? nbytes(tensors) : 0;
    return submit(call, tensors, contributed,
                  [&] { return start_broadcast(bytes(tensors[0]), options.rootRank, options.timeout); });
  }

  WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
    Call call = begin("all_gather_into_tensor", OpType::_ALLGATHER_BASE);
    require_even_all_gather(call, output, input);
    return submit(call, {output}, input.nbytes(), [&] { return start_all_gather(output, input, options.timeout); });
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    Call call = begin("all_gather_into_tensor", OpType::ALLGATHER);
    for (size_t i = 0; i < inputs.size(); i++) require_even_all_gather(call, outputs[i], inputs[i]);
    return submit_each(call, outputs, inputs,
                       [&](size_t i) { return start_all_gather(outputs[i], inputs[i], options.timeout); });
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    Call call = begin("all_gather", OpType::ALLGATHER);
    const Tensor& input = call.single(inputs);
    const Tensors& parts = outputs.at(0);
    call.require_contiguous(input);
    call.require_list(parts, getSize());
    call.require_same_dtype(input, parts[0]);
    require_own_part(call, "input", input, parts[getRank()]);
    return submit(call, parts, input.nbytes(), [&] {
      Transfer transfer;
      Tensors received;
      for (const auto& part : parts) received.push_back(receiving(part, transfer));
      transfer.add(one_shape(parts) ? start_gather_all(received, as_bytes(elements(input)), options.timeout)
                                    : start_broadcasts(received, elements(input), options.timeout));
      return transfer;
    });
  }

  WorkPtr all_gather_into_tensor_uneven(Tensor& output, Tensor& input, std::vector<int64_t> splits,
                                        const c10d::AllgatherOptions& options) {
    Call call = begin("all_gather_into_tensor_uneven", OpType::ALLGATHER);
    require_pair(call, output, input);
    const auto counts = split_bytes(call, "output", output, splits);
    require_own_bytes(call, "input", input, counts);
    return submit(call, {output}, input.nbytes(), [&] {
      return start_broadcasts(bytes(output).split_with_sizes(counts), memory(input), options.timeout);
    });
  }

  WorkPtr alltoall_base(Tensor& output, Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options) override {
    Call call = begin("all_to_all_single", OpType::ALLTOALL_BASE);
    require_pair(call, output, input);
    const auto received = split_bytes(call, "output", output, output_splits);
    const auto sent = split_bytes(call, "input", input, input_splits);
    return submit(call, {output}, input.nbytes(), [&] {
      return start_all_to_all(bytes(output), bytes(input), received, sent, options.timeout);
    });
  }

  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override {
    Call call = begin("all_to_all", OpType::ALLTOALL);
    call.require_list(outputs, getSize());
    call.require_list(inputs, getSize());
    call.require_same_dtype(inputs[0], outputs[0]);
    for (const auto& tensor : outputs) call.require_contiguous(tensor);
    for (const auto& tensor : inputs) call.require_contiguous(tensor);
    return submit(call, outputs, nbytes(inputs), [&] {
      Tensors outgoing, places;
      std::vector<int64_t> sent, received;
      for (const auto& tensor : inputs) {
        outgoing.push_back(bytes(tensor));
        sent.push_back(tensor.nbytes());
      }
      for (const auto& tensor : outputs) {
        places.push_back(bytes(tensor));
        received.push_back(tensor.nbytes());
      }
      Tensor incoming = at::empty({nbytes(outputs)}, places[0].options());
      Transfer transfer = start_all_to_all(incoming, at::cat(outgoing), received, sent, options.timeout);
      transfer.deliveries.push_back([places, incoming, received] {
        const auto parts = incoming.split_with_sizes(received);
        for (size_t i = 0; i < places.size(); i++) places[i].copy_(parts[i]);
      });
      return transfer;
    });
  }

  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    Call call = begin("gather", OpType::GATHER);
    const Tensor& input = call.single(inputs);
    call.require(compatible_implementation(), "the backend itself was asked to gather",
                 "ProcessGroupHCCL does so only after torch.npu.use_compatible_impl(True); torch.distributed.gather, "
                 "as torch_npu replaces it, uses all_gather instead");
    call.require_contiguous(input);
    const bool root = getRank() == options.rootRank;
    if (root) require_like(call, "output", outputs.at(0), input);
    return submit(call, root ? outputs[0] : Tensors{}, input.nbytes(), [&] {
      Transfer transfer;
      std::vector<Tensors> received;
      if (root) {
        received.emplace_back();
        for (const auto& part : outputs[0]) received[0].push_back(receiving(part, transfer));
      }
      Tensors sent{bytes(input)};
      transfer.works.push_back(gloo_->gather(received, sent, options));
      return transfer;
    });
  }

  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override {
    Call call = begin("scatter", OpType::SCATTER);
    const Tensor& output = call.single(outputs);
    call.require_contiguous(output);
    const bool root = getRank() == options.rootRank;
    if (root) require_like(call, "input", inputs.at(0), output);
    return submit(call, outputs, root ? nbytes(inputs[0]) : 0, [&] {
      std::vector<Tensors> sent;
      if (root) {
        sent.emplace_back();
        for (const auto& part : inputs[0]) sent[0].push_back(as_bytes(elements(part)));
      }
      Tensors received{bytes(output)};
      return Transfer{{gloo_->scatter(received, sent, options)}, {}};
    });
  }

  // torch_npu makes a barrier of an all_reduce of one float32.
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    Call call = begin("barrier", OpType::BARRIER);
    return submit(call, {}, sizeof(float), [&] {
      c10d::BarrierOptions same;
      same.timeout = options.timeout;
      return Transfer{{gloo_->barrier(same)}, {}};
    });
  }

  // ---- messages. HCCL knows no tags: messages between two ranks arrive in the order in which they are sent.

  WorkPtr send(Tensors& tensors, int peer, int /*tag*/) override {
    Call call = begin("send", OpType::SEND);
    call.require_contiguous(call.single(tensors));
    call.require_peer(peer, getRank(), getSize());
    return submit(call, tensors, nbytes(tensors), [&] { return start_send(tensors[0], peer); });
  }

  WorkPtr recv(Tensors& tensors, int peer, int /*tag*/) override {
    Call call = begin("recv", OpType::RECV);
    call.require_contiguous(call.single(tensors));
    call.require_peer(peer, getRank(), getSize());
    return submit(call, tensors, 0, [&] { return start_recv(tensors[0], peer); });
  }

  WorkPtr recvAnysource(Tensors&, int) override {
    begin("recv", OpType::RECVANYSOURCE).refuse("no source rank was named", "HCCL receives from a named rank only");
  }

  // torch_npu's torch.distributed.batch_isend_irecv comes here: one HcclBatchSendRecv for all of them.
  WorkPtr batch_isend_irecv(const std::vector<std::string>& kinds, Tensors tensors, const std::vector<int64_t>& peers) {
    Call call = begin("batch_isend_irecv", OpType::UNKNOWN);
    call.require(kinds.size() == tensors.size() && kinds.size() == peers.size() && !kinds.empty(),
                 "lists of " + c10::str(kinds.size()) + " operations, " + c10::str(tensors.size()) + " tensors and " +
                     c10::str(peers.size()) + " peers were given",
                 "They must have the same length, at least 1");
    int64_t contributed = 0;
    for (size_t i = 0; i < kinds.size(); i++) {
      call.require(kinds[i] == "isend" || kinds[i] == "irecv", "operation " + kinds[i] + " was given",
                   "A batch has isend and irecv");
      call.require_contiguous(tensors[i]);
      call.require_peer(peers[i], getRank(), getSize());
      if (kinds[i] == "isend") contributed += tensors[i].nbytes();
    }
    return submit(call, tensors, contributed, [&] {
      Transfer transfer;
      for (size_t i = 0; i < kinds.size(); i++) {
        const int peer = static_cast<int>(peers[i]);
        transfer.add(kinds[i] == "isend" ? start_send(tensors[i], peer) : start_recv(tensors[i], peer));
      }
      return transfer;
    });
  }

  // ---- coalescing: calls start at once, one handle stands for all of them

  void startCoalescing() override {
    TORCH_CHECK(!coalescing_, "simulated hccl: coalescing was started twice on ", place());
    coalescing_ = true;
  }

  WorkPtr endCoalescing() override {
    TORCH_CHECK(coalescing_, "simulated hccl: coalescing was ended but not started on ", place());
    coalescing_ = false;
    if (coalesced_.empty()) return nullptr;
    Call call{"coalesced calls", group(), place(), sequence_, OpType::COALESCED};
    return c10::make_intrusive<HcclWork>(getRank(), call, Transfer{std::exchange(coalesced_, {}), {}}, Tensors{});
  }

 private:
  // ---- a call, from its name to its handle

  Call begin(const char* operation, OpType type) {
    Call call{operation, group(), place(), ++sequence_, type};
    call.require(closed_.empty(), "the group was " + closed_, "Make a new one");
    return call;
  }

  // Counts the call, starts it and returns its handle.
  template <typename Start>
  WorkPtr submit(const Call& call, Tensors outputs, int64_t contributed, Start start) {
    count_collective(call.operation, call.group, contributed);
    return handle(call, start(), std::move(outputs));
  }

  // The same for tensors that are coalesced: HCCL runs one collective for each of them.
  template <typename Start>
  WorkPtr submit_each(const Call& call, Tensors outputs, const Tensors& inputs, Start start) {
    Transfer all;
    for (size_t i = 0; i < inputs.size(); i++) {
      count_collective(call.operation, call.group, inputs[i].nbytes());
      all.add(start(i));
    }
    return handle(call, std::move(all), std::move(outputs));
  }

  WorkPtr handle(const Call& call, Transfer transfer, Tensors outputs) {
    WorkPtr work = c10::make_intrusive<HcclWork>(getRank(), call, std::move(transfer), std::move(outputs));
    if (coalescing_) coalesced_.push_back(work);
    return work;
  }

  std::string group() const {
    const auto& description = getGroupDesc();
    return description.empty() || description == "undefined" ? "group " + getGroupUid() : description;
  }

  std::string place() const {
    const int64_t global = global_ranks_.empty() ? getRank() : global_ranks_.at(getRank());
    std::string text = "rank " + std::to_string(global) + " (rank " + std::to_string(getRank()) + " of " +
                       std::to_string(getSize()) + " in " + group();
    if (!global_ranks_.empty()) text += ", ranks " + c10::str(c10::IntArrayRef(global_ranks_));
    return text + ")";
  }

  void close(const char* how) {
    closed_ = how;
    coalesced_.clear();
  }

  // ---- rules that compare tensors

  void require_pair(const Call& call, const Tensor& output, const Tensor& input) const {
    call.require_contiguous(input);
    call.require_contiguous(output);
    call.require_same_dtype(input, output);
  }

  void require_even_all_gather(const Call& call, const Tensor& output, const Tensor& input) const {
    require_pair(call, output, input);
    call.require(output.numel() == input.numel() * getSize(),
                 "the input has " + c10::str(input.numel()) + " elements and the output " + c10::str(output.numel()),
                 "The output must have " + c10::str(getSize()) + " times the input");
  }

  void require_even_reduce_scatter(const Call& call, const Tensor& output, const Tensor& input,
                                   const ReduceOp& reduction) const {
    require_pair(call, output, input);
    call.require_reduction(reduction, input.scalar_type(), false);
    call.require(input.numel() == output.numel() * getSize(),
                 "the input has " + c10::str(input.numel()) + " elements and the output " + c10::str(output.numel()),
                 "The input must have " + c10::str(getSize()) + " times the output");
  }

  void require_own_part(const Call& call, const char* what, const Tensor& own, const Tensor& part) const {
    call.require(own.numel() == part.numel(),
                 std::string("the ") + what + " has " + c10::str(own.numel()) + " elements and the list has " +
                     c10::str(part.numel()) + " for this rank",
                 "They must be equal");
  }

  void require_own_bytes(const Call& call, const char* what, const Tensor& own,
                         const std::vector<int64_t>& counts) const {
    const auto expected = counts[getRank()] / own.element_size();
    call.require(own.numel() == expected,
                 std::string("the ") + what + " has " + c10::str(own.numel()) + " elements and the split sizes give " +
                     c10::str(expected) + " to this rank",
                 "They must be equal");
  }

  void require_like(const Call& call, const char* what, const Tensors& parts, const Tensor& own) const {
    call.require_list(parts, getSize());
    call.require_same_dtype(own, parts[0]);
    for (const auto& part : parts) {
      call.require(part.sizes() == own.sizes(),
                   std::string("an ") + what + " of sizes " + c10::str(part.sizes()) + " was given",
                   "All must have the sizes " + c10::str(own.sizes()));
    }
  }

  // Bytes for each rank of a tensor that is split along its first dimension; without split sizes, evenly.
  std::vector<int64_t> split_bytes(const Call& call, const char* what, const Tensor& tensor,
                                   const std::vector<int64_t>& splits) const {
    call.require(tensor.dim() >= 1, std::string("the ") + what + " has no dimension", "Give it one to split along");
    const int64_t rows = tensor.size(0), row = row_bytes(tensor);
    if (splits.empty()) {
      call.require(rows % getSize() == 0, std::string("the ") + what + " has " + c10::str(rows) + " rows",
                   "Without split sizes they must be a multiple of " + c10::str(getSize()));
      return std::vector<int64_t>(getSize(), rows / getSize() * row);
    }
    const bool each = splits.size() == static_cast<size_t>(getSize()) &&
                      std::all_of(splits.begin(), splits.end(), [](int64_t split) { return split >= 0; });
    call.require(each && c10::sum_integers(splits) == rows,
                 std::string("split sizes ") + c10::str(splits) + " of the " + what + " with " + c10::str(rows) +
                     " rows were given",
                 "There must be one for each rank, not negative, and their sum the number of rows");
    std::vector<int64_t> counts;
    for (const int64_t split : splits) counts.push_back(split * row);
    return counts;
  }

  int64_t offset_of_own_part(const std::vector<int64_t>& counts) const {
    return std::accumulate(counts.begin(), counts.begin() + getRank(), int64_t{0});
  }

  bool compatible_implementation() const {
    py::gil_scoped_acquire gil;
    return py::module_::import("torch_npu").attr("npu").attr("are_compatible_impl_enabled")().cast<bool>();
  }

  // ---- gloo operations over host memory

  // Reduces `host` in place on all ranks.
  Transfer start_all_reduce(Tensor host, const ReduceOp& reduction, Milliseconds timeout) {
    Tensor buffer = host.to(reduced_as(host.scalar_type()));  // host itself where the dtype stays
    c10d::AllreduceOptions options;
    options.reduceOp = without_average(reduction);
    options.timeout = timeout;
    Tensors buffers{buffer};
    return {{gloo_->allreduce(buffers, options)}, {finishing(host, buffer, reduction)}};
  }

  Transfer start_reduce(Tensor host, const c10d::ReduceOptions& options) {
    // gloo uses every rank's memory on the way; HCCL changes the root's alone
    Tensor buffer = host.to(reduced_as(host.scalar_type()), /*non_blocking=*/false, /*copy=*/true);
    c10d::ReduceOptions without = options;
    without.reduceOp = without_average(options.reduceOp);
    Tensors buffers{buffer};
    Transfer transfer{{gloo_->reduce(buffers, without)}, {}};
    if (getRank() == options.rootRank) transfer.deliveries.push_back(finishing(host, buffer, options.reduceOp));
    return transfer;
  }

  // The whole of `input` is reduced on every rank, as gloo does it too, and this rank keeps its part.
  Transfer start_reduce_scatter(const Tensor& input, Tensor output, int64_t offset,
                                const c10d::ReduceScatterOptions& options) {
    Tensor buffer = input.to(reduced_as(input.scalar_type()), /*non_blocking=*/false, /*copy=*/true);
    c10d::AllreduceOptions all;
    all.reduceOp = without_average(options.reduceOp);
    all.timeout = options.timeout;
    Tensors buffers{buffer};
    return {{gloo_->allreduce(buffers, all)},
            {finishing(output, buffer.narrow(0, offset, output.numel()), options.reduceOp)}};
  }

  // Divides for AVG, as torch_npu does after HCCL's sum, and puts the result in place.
  std::function<void()> finishing(Tensor target, Tensor buffer, const ReduceOp& reduction) {
    const bool average = reduction == ReduceOp::AVG;
    return [target, buffer, average, size = getSize()]() mutable {
      if (!target.is_same(buffer)) target.copy_(buffer);
      if (average) target.div_(size);
    };
  }

  Transfer start_broadcast(const Tensor& host, int64_t root, Milliseconds timeout) {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = timeout;
    Tensors buffers{host};
    return {{gloo_->broadcast(buffers, options)}, {}};
  }

  // Every rank broadcasts its part into its place: torch_npu's own way where the parts differ in size.
  Transfer start_broadcasts(Tensors places, const Tensor& own, Milliseconds timeout) {
    places[getRank()].copy_(as_bytes(own));
    Transfer transfer;
    for (size_t rank = 0; rank < places.size(); rank++) {
      if (places[rank].numel() > 0) transfer.add(start_broadcast(places[rank], rank, timeout));
    }
    return transfer;
  }

  Transfer start_gather_all(Tensors places, const Tensor& own, Milliseconds timeout) {
    c10d::AllgatherOptions options;
    options.timeout = timeout;
    std::vector<Tensors> received{std::move(places)};
    Tensors sent{own};
    return {{gloo_->allgather(received, sent, options)}, {}};
  }

  Transfer start_all_gather(const Tensor& output, const Tensor& input, Milliseconds timeout) {
    return start_gather_all(bytes(output).chunk(getSize()), bytes(input), timeout);
  }

  Transfer start_all_to_all(Tensor output, Tensor input, std::vector<int64_t> received, std::vector<int64_t> sent,
                            Milliseconds timeout) {
    c10d::AllToAllOptions options;
    options.timeout = timeout;
    return {{gloo_->alltoall_base(output, input, received, sent, options)}, {}};
  }

  Transfer start_send(const Tensor& tensor, int peer) {
    Tensors message{bytes(tensor)};
    return {{gloo_->send(message, peer, 0)}, {}};
  }

  Transfer start_recv(const Tensor& tensor, int peer) {
    Tensors message{bytes(tensor)};
    return {{gloo_->recv(message, peer, 0)}, {}};
  }

  const c10::intrusive_ptr<Backend> gloo_;
  const c10::intrusive_ptr<Options> options_;
  const std::vector<int64_t> global_ranks_;  // empty for the default group
  uint64_t sequence_ = 0;
  bool coalescing_ = false;
  std::vector<WorkPtr> coalesced_;
  std::string closed_;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::module_::import("torch.distributed");  // declares c10d::Backend
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<HcclBackend, c10d::Backend, c10::intrusive_ptr<HcclBackend>>(module, "ProcessGroupHCCL")
      .def(py::init<c10::intrusive_ptr<c10d::Backend>, c10::intrusive_ptr<c10d::Backend::Options>,
                    std::vector<int64_t>>(),
           py::arg("gloo"), py::arg("options"), py::arg("global_ranks"))
      .def_property_readonly("options", &HcclBackend::getBackendOptions)
      .def("get_hccl_comm_name",
           [](const HcclBackend& self, int /*rank*/, bool /*init_comm*/) { return self.comm_name(); }, py::arg("rankid"),
           py::arg("init_comm") = true)
      .def("batch_isend_irecv", &HcclBackend::batch_isend_irecv, no_gil)
      .def("reduce_scatter_tensor_uneven", &HcclBackend::reduce_scatter_tensor_uneven, py::arg("output"),
           py::arg("input"), py::arg("input_split_sizes") = std::vector<int64_t>{},
           py::arg("opts") = c10d::ReduceScatterOptions(), no_gil)
      .def("all_gather_into_tensor_uneven", &HcclBackend::all_gather_into_tensor_uneven, py::arg("output"),
           py::arg("input"), py::arg("output_split_sizes") = std::vector<int64_t>{},
           py::arg("opts") = c10d::AllgatherOptions(), no_gil);
}

}  // namespace ascend_sim
