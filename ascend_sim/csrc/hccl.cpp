// The c10d backend "hccl" of the simulated device: gloo over the host memory that npu tensors lie in.
//
// Before anything moves, a call is refused that a device would refuse (hccl_call.h), and the ranks compare what they
// ask for (HostCollectives::agree). The calls of a group then run one after the other in a thread of its own (Lane),
// as on a communication stream of the device.
#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/extension.h>

#include <map>
#include <numeric>

#include "counters.h"
#include "hccl_call.h"
#include "hccl_host.h"
#include "hccl_work.h"

namespace ascend_sim {
namespace {

using at::Tensor;
using c10d::OpType;
using c10d::ReduceOp;

// The memory of a dense npu tensor as a vector, in the order in which it lies there.
Tensor memory(const Tensor& tensor) { return at::as_strided(host_alias(tensor), {tensor.numel()}, {1}); }

Tensor bytes(const Tensor& tensor) { return as_bytes(memory(tensor)); }

// The bytes of the elements in their logical order: the tensor's own memory, or a copy where it is permuted.
Tensor element_bytes(const Tensor& tensor) { return as_bytes(host_alias(tensor).contiguous().view(-1)); }

// Places in which to receive the elements of tensors: their own memory, or buffers where they are permuted.
class Places {
 public:
  explicit Places(const Tensors& tensors) {
    for (const auto& tensor : tensors) {
      hosts_.push_back(host_alias(tensor));
      buffers_.push_back(tensor.is_contiguous() ? hosts_.back() : at::empty(tensor.sizes(), hosts_.back().options()));
    }
  }

  Tensors bytes() const {
    Tensors places;
    for (const auto& buffer : buffers_) places.push_back(as_bytes(buffer.view(-1)));
    return places;
  }

  // Puts what has arrived in buffers into the tensors.
  void deliver() {
    for (size_t i = 0; i < hosts_.size(); i++) {
      if (!hosts_[i].is_same(buffers_[i])) hosts_[i].copy_(buffers_[i]);
    }
  }

 private:
  Tensors hosts_, buffers_;
};

int64_t nbytes(const Tensors& tensors) {
  return std::accumulate(tensors.begin(), tensors.end(), int64_t{0},
                         [](int64_t sum, const Tensor& tensor) { return sum + static_cast<int64_t>(tensor.nbytes()); });
}

bool one_shape(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [&](const Tensor& tensor) { return tensor.sizes() == tensors.front().sizes(); });
}

// Bytes before this rank's part.
int64_t offset_of(int rank, const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

std::vector<int64_t> byte_counts(const Tensors& tensors) {
  std::vector<int64_t> counts;
  for (const auto& tensor : tensors) counts.push_back(tensor.nbytes());
  return counts;
}

// ---- what the ranks compare: "all_reduce SUM of 8 Float", "broadcast from rank 0 of 8 Float"

std::string of(const Tensor& tensor) { return " of " + c10::str(tensor.numel(), " ", tensor.scalar_type()); }

std::string of(const std::vector<int64_t>& counts, const Tensor& tensor) {
  std::string text = " of " + c10::str(tensor.scalar_type()) + " parts";
  for (const int64_t count : counts) text += " " + c10::str(count / static_cast<int64_t>(tensor.element_size()));
  return text;
}

std::string by(const ReduceOp& op) {
  static const std::map<ReduceOp::RedOpType, std::string> names{
      {ReduceOp::SUM, " SUM"}, {ReduceOp::AVG, " AVG"},         {ReduceOp::MIN, " MIN"},
      {ReduceOp::MAX, " MAX"}, {ReduceOp::PRODUCT, " PRODUCT"},
  };
  return names.at(op.op_);
}

std::string from(int64_t root) { return " from rank " + std::to_string(root) + " of the group"; }

std::string to(int64_t root) { return " to rank " + std::to_string(root) + " of the group"; }

class HcclBackend : public c10d::Backend {
 public:
  HcclBackend(c10::intrusive_ptr<Backend> gloo, c10::intrusive_ptr<Options> options, std::vector<int64_t> global_ranks)
      : Backend(gloo->getRank(), gloo->getSize()),
        host_(std::make_shared<HostCollectives>(std::move(gloo))),
        options_(std::move(options)),
        global_ranks_(std::move(global_ranks)) {}

  const std::string getBackendName() const override { return "hccl"; }
  c10::intrusive_ptr<Options> getBackendOptions() override { return options_; }
  bool supportsCoalescing() const override { return true; }
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_; }

  void setTimeout(Milliseconds timeout) override {
    options_->timeout = timeout;
    host_->set_timeout(timeout);
  }

  void shutdown() override { closed_ = "shut down"; }
  void abort() override { closed_ = "aborted"; }

  std::string comm_name() const { return "hcom_" + getGroupUid(); }

  // ---- collectives that reduce

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    Call call = begin("all_reduce", OpType::ALLREDUCE);
    call.require_contiguous(call.single(tensors));
    call.require_reduction(options.reduceOp, tensors[0].scalar_type(), true);
    return submit(call, tensors, nbytes(tensors), {by(options.reduceOp) + of(tensors[0])}, options.timeout,
                  [host = host_, memory = memory(tensors[0]), op = options.reduceOp, timeout = options.timeout] {
                    host->all_reduce(memory, op, timeout);
                  });
  }

  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    Call call = begin("all_reduce", OpType::ALLREDUCE);
    Tensors memories;
    std::string text = by(options.reduceOp);
    for (const auto& tensor : tensors) {
      call.require_dense(tensor);
      call.require_reduction(options.reduceOp, tensor.scalar_type(), true);
      memories.push_back(memory(tensor));
      text += of(tensor);
    }
    count_each(call, tensors);
    return start(call, tensors, {text}, options.timeout,
                 [host = host_, memories, op = options.reduceOp, timeout = options.timeout] {
                   for (const auto& memory : memories) host->all_reduce(memory, op, timeout);
                 });
  }

  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    Call call = begin("reduce", OpType::REDUCE);
    call.require_root(options.rootRank);
    call.require_contiguous(call.single(tensors));
    call.require_reduction(options.reduceOp, tensors[0].scalar_type(), true);
    return submit(call, tensors, nbytes(tensors), {by(options.reduceOp) + to(options.rootRank) + of(tensors[0])},
                  options.timeout,
                  [host = host_, memory = memory(tensors[0]), options] { host->reduce(memory, options); });
  }

  WorkPtr _reduce_scatter_base(Tensor& output, Tensor& input, const c10d::ReduceScatterOptions& options) override {
    Tensors outputs{output}, inputs{input};
    return reduce_scatter_tensor_coalesced(outputs, inputs, options);
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    Call call = begin("reduce_scatter_tensor", OpType::_REDUCE_SCATTER_BASE);
    std::vector<std::pair<Tensor, Tensor>> memories;
    std::string text = by(options.reduceOp);
    for (size_t i = 0; i < inputs.size(); i++) {
      require_even(call, inputs[i], outputs[i], "input", "output");
      call.require_reduction(options.reduceOp, inputs[i].scalar_type(), false);
      memories.emplace_back(memory(outputs[i]), memory(inputs[i]));
      text += of(inputs[i]);
    }
    count_each(call, inputs);
    return start(call, outputs, {text}, options.timeout,
                 [host = host_, memories, op = options.reduceOp, timeout = options.timeout] {
                   for (const auto& [output, input] : memories) {
                     host->reduce_scatter(output, input, host->rank() * output.numel(), op, timeout);
                   }
                 });
  }

  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    Call call = begin("reduce_scatter", OpType::REDUCE_SCATTER);
    const Tensor& output = call.single(outputs);
    const Tensors& parts = inputs.at(0);
    call.require_contiguous(output);
    call.require_list(parts);
    call.require_same_dtype(parts[0], output);
    call.require_reduction(options.reduceOp, output.scalar_type(), false);
    const auto counts = byte_counts(parts);
    require_own(call, "output", output, counts);
    Tensors flat;
    for (const auto& part : parts) flat.push_back(element_bytes(part));
    return submit(call, outputs, nbytes(parts), {by(options.reduceOp) + of(counts, output)}, options.timeout,
                  reduces_and_scatters(output, at::cat(flat).view(output.scalar_type()), counts, options));
  }

  WorkPtr reduce_scatter_tensor_uneven(Tensor& output, Tensor& input, std::vector<int64_t> splits,
                                       const c10d::ReduceScatterOptions& options) {
    Call call = begin("reduce_scatter_tensor_uneven", OpType::REDUCE_SCATTER);
    require_pair(call, output, input);
    call.require_reduction(options.reduceOp, output.scalar_type(), false);
    const auto counts = split_bytes(call, "input", input, splits);
    require_own(call, "output", output, counts);
    return submit(call, {output}, input.nbytes(), {by(options.reduceOp) + of(counts, output)}, options.timeout,
                  reduces_and_scatters(output, memory(input), counts, options));
  }

  // ---- collectives that move

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    Call call = begin("broadcast", OpType::BROADCAST);
    call.require_root(options.rootRank);
    call.require_contiguous(call.single(tensors));
    const int64_t contributed = getRank() == options.rootRank ? nbytes(tensors) : 0;
    return submit(call, tensors, contributed, {from(options.rootRank) + of(tensors[0])}, options.timeout,
                  [host = host_, bytes = bytes(tensors[0]), root = options.rootRank, timeout = options.timeout] {
                    host->broadcast(bytes, root, timeout);
                  });
  }

  WorkPtr _allgather_base(Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
    Tensors outputs{output}, inputs{input};
    return allgather_into_tensor_coalesced(outputs, inputs, options);
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    Call call = begin("all_gather_into_tensor", OpType::_ALLGATHER_BASE);
    std::vector<std::pair<Tensors, Tensor>> memories;
    std::string text;
    for (size_t i = 0; i < inputs.size(); i++) {
      require_even(call, outputs[i], inputs[i], "output", "input");
      const auto parts = std::vector<int64_t>(getSize(), inputs[i].nbytes());
      memories.emplace_back(bytes(outputs[i]).split_with_sizes(parts), bytes(inputs[i]));
      text += of(inputs[i]);
    }
    count_each(call, inputs);
    return start(call, outputs, {text}, options.timeout, [host = host_, memories, timeout = options.timeout] {
      for (const auto& [places, input] : memories) host->all_gather(places, input, timeout);
    });
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    Call call = begin("all_gather", OpType::ALLGATHER);
    const Tensor& input = call.single(inputs);
    const Tensors& parts = outputs.at(0);
    call.require_contiguous(input);
    call.require_list(parts);
    call.require_same_dtype(input, parts[0]);
    const auto counts = byte_counts(parts);
    require_own(call, "input", input, counts);
    return submit(call, parts, input.nbytes(), {of(counts, input)}, options.timeout,
                  [host = host_, places = Places(parts), bytes = element_bytes(input), even = one_shape(parts),
                   timeout = options.timeout]() mutable {
                    even ? host->all_gather(places.bytes(), bytes, timeout)
                         : host->all_gather_uneven(places.bytes(), bytes, timeout);
                    places.deliver();
                  });
  }

  WorkPtr all_gather_into_tensor_uneven(Tensor& output, Tensor& input, std::vector<int64_t> splits,
                                        const c10d::AllgatherOptions& options) {
    Call call = begin("all_gather_into_tensor_uneven", OpType::ALLGATHER);
    require_pair(call, output, input);
    const auto counts = split_bytes(call, "output", output, splits);
    require_own(call, "input", input, counts);
    return submit(call, {output}, input.nbytes(), {of(counts, input)}, options.timeout,
                  [host = host_, places = bytes(output).split_with_sizes(counts), bytes = bytes(input),
                   timeout = options.timeout] { host->all_gather_uneven(places, bytes, timeout); });
  }

  WorkPtr alltoall_base(Tensor& output, Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options) override {
    Call call = begin("all_to_all_single", OpType::ALLTOALL_BASE);
    require_pair(call, output, input);
    const Terms terms{" of " + c10::str(input.scalar_type()), split_bytes(call, "input", input, input_splits),
                      split_bytes(call, "output", output, output_splits)};
    return submit(call, {output}, input.nbytes(), terms, options.timeout,
                  [host = host_, output = bytes(output), input = bytes(input), terms, timeout = options.timeout] {
                    host->all_to_all(output, input, terms, timeout);
                  });
  }

  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override {
    Call call = begin("all_to_all", OpType::ALLTOALL);
    call.require_list(outputs);
    call.require_list(inputs);
    call.require_same_dtype(inputs[0], outputs[0]);
    Tensors outgoing, places;
    for (int i = 0; i < getSize(); i++) {
      call.require_contiguous(outputs[i]);
      call.require_contiguous(inputs[i]);
      outgoing.push_back(bytes(inputs[i]));
      places.push_back(bytes(outputs[i]));
    }
    const Terms terms{" of " + c10::str(inputs[0].scalar_type()), byte_counts(inputs), byte_counts(outputs)};
    return submit(call, outputs, nbytes(inputs), terms, options.timeout,
                  [host = host_, outgoing, places, terms, timeout = options.timeout] {
                    Tensor incoming = at::empty({c10::sum_integers(terms.received)}, at::kByte);
                    host->all_to_all(incoming, at::cat(outgoing), terms, timeout);
                    const auto parts = incoming.split_with_sizes(terms.received);
                    for (size_t i = 0; i < places.size(); i++) places[i].copy_(parts[i]);
                  });
  }

  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    Call call = begin("gather", OpType::GATHER);
    call.require_root(options.rootRank);
    const Tensor& input = call.single(inputs);
    call.require(compatible_implementation(), "the backend itself was asked to gather",
                 "ProcessGroupHCCL does so only after torch.npu.use_compatible_impl(True); torch.distributed.gather, "
                 "as torch_npu replaces it, uses all_gather instead");
    call.require_contiguous(input);
    const bool root = getRank() == options.rootRank;
    const Tensors parts = root ? outputs.at(0) : Tensors{};
    if (root) require_like(call, "output", parts, input);
    return submit(call, parts, input.nbytes(), {to(options.rootRank) + of(input)}, options.timeout,
                  [host = host_, places = Places(parts), bytes = bytes(input), options]() mutable {
                    host->gather(places.bytes(), bytes, options);
                    places.deliver();
                  });
  }

  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override {
    Call call = begin("scatter", OpType::SCATTER);
    call.require_root(options.rootRank);
    const Tensor& output = call.single(outputs);
    call.require_contiguous(output);
    const bool root = getRank() == options.rootRank;
    if (root) require_like(call, "input", inputs.at(0), output);
    Tensors parts;
    if (root) std::transform(inputs[0].begin(), inputs[0].end(), std::back_inserter(parts), element_bytes);
    return submit(call, outputs, root ? nbytes(inputs[0]) : 0, {from(options.rootRank) + of(output)}, options.timeout,
                  [host = host_, bytes = bytes(output), parts, options] { host->scatter(bytes, parts, options); });
  }

  // torch_npu makes a barrier of an all_reduce of one float32.
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    Call call = begin("barrier", OpType::BARRIER);
    return submit(call, {}, sizeof(float), {""}, options.timeout,
                  [host = host_, timeout = options.timeout] { host->barrier(timeout); });
  }

  // ---- messages. HCCL knows no tags: messages between two ranks arrive in the order in which they are sent.

  WorkPtr send(Tensors& tensors, int peer, int /*tag*/) override {
    Call call = begin("send", OpType::SEND);
    call.require_contiguous(call.single(tensors));
    call.require_peer(peer);
    count(call, nbytes(tensors));
    return start_messages(call, {"isend"}, tensors, {peer});
  }

  WorkPtr recv(Tensors& tensors, int peer, int /*tag*/) override {
    Call call = begin("recv", OpType::RECV);
    call.require_contiguous(call.single(tensors));
    call.require_peer(peer);
    count(call, 0);
    return start_messages(call, {"irecv"}, tensors, {peer});
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
      call.require_peer(peers[i]);
      if (kinds[i] == "isend") contributed += tensors[i].nbytes();
    }
    count(call, contributed);
    return start_messages(call, kinds, tensors, peers);
  }

  // ---- coalescing: calls start at once, one handle stands for all of them

  void startCoalescing() override {
    TORCH_CHECK(!coalescing_, "simulated hccl: coalescing was started twice in group ", group());
    coalescing_ = true;
  }

  WorkPtr endCoalescing() override {
    TORCH_CHECK(coalescing_, "simulated hccl: coalescing was ended but not started in group ", group());
    coalescing_ = false;
    if (coalesced_.empty()) return nullptr;
    // To wait for it is to wait for the last of them: the calls of a group run one after the other.
    Call call{"coalesced calls", group(), global_ranks_, getRank(), getSize(), sequence_, OpType::COALESCED,
              comm_name()};
    auto all = c10::make_intrusive<HcclWork>(call, Tensors{}, coalesced_.size());
    for (const auto& work : std::exchange(coalesced_, {})) {
      work->getFuture()->addCallback([all](c10::ivalue::Future& one) {
        all->run([&] { one.hasError() ? std::rethrow_exception(one.exception_ptr()) : void(); });
      });
    }
    return all;
  }

 private:
  // ---- a call, from its name to its handle

  Call begin(const char* operation, OpType type) {
    Call call{operation, group(), global_ranks_, getRank(), getSize(), ++sequence_, type, comm_name()};
    call.require(closed_.empty(), "the group was " + closed_, "Make a new one");
    return call;
  }

  static void count(const Call& call, int64_t contributed) {
    count_collective(call.operation, call.group, contributed, call.communicator, call.sequence);
  }

  // Counts the call and starts it; `terms.text` goes on behind the operation's name.
  template <typename Task>
  WorkPtr submit(const Call& call, Tensors outputs, int64_t contributed, Terms terms, Milliseconds timeout, Task task) {
    count(call, contributed);
    return start(call, std::move(outputs), std::move(terms), timeout, std::move(task));
  }

  // HCCL runs one collective for each of the tensors that are coalesced.
  static void count_each(const Call& call, const Tensors& inputs) {
    for (const auto& input : inputs) count(call, input.nbytes());
  }

  template <typename Task>
  WorkPtr start(const Call& call, Tensors outputs, Terms terms, Milliseconds timeout, Task task) {
    terms.text = call.operation + terms.text;
    auto work = c10::make_intrusive<HcclWork>(call, std::move(outputs));
    collectives_.add([work, host = host_, call, terms, timeout, task]() mutable {
      work->run([&] {
        host->agree(call, terms, timeout);
        task();
      });
    });
    return started(work);
  }

  // Each peer has a lane for each direction, so that no message waits for one of another pair of ranks.
  WorkPtr start_messages(const Call& call, const std::vector<std::string>& kinds, const Tensors& tensors,
                         const std::vector<int64_t>& peers) {
    auto work = c10::make_intrusive<HcclWork>(call, tensors, tensors.size());
    for (size_t i = 0; i < tensors.size(); i++) {
      const bool sends = kinds[i] == "isend";
      const int peer = static_cast<int>(peers[i]);
      auto message = [work, host = host_, call, sends, peer, bytes = bytes(tensors[i]),
                      dtype = tensors[i].scalar_type()] {
        work->run([&] { sends ? host->send(bytes, dtype, peer) : host->recv(call, bytes, dtype, peer); });
      };
      (sends ? sending_ : receiving_)[peer].add(std::move(message));
    }
    return started(work);
  }

  WorkPtr started(WorkPtr work) {
    if (coalescing_) coalesced_.push_back(work);
    return work;
  }

  std::function<void()> reduces_and_scatters(const Tensor& output, const Tensor& input,
                                             const std::vector<int64_t>& counts,
                                             const c10d::ReduceScatterOptions& options) const {
    const int64_t offset = offset_of(getRank(), counts) / static_cast<int64_t>(output.element_size());
    return [host = host_, output = memory(output), input, offset, op = options.reduceOp, timeout = options.timeout] {
      host->reduce_scatter(output, input, offset, op, timeout);
    };
  }

  std::string group() const {
    const auto& description = getGroupDesc();
    return description.empty() || description == "undefined" ? getGroupUid() : description;
  }

  // ---- rules that compare tensors

  void require_pair(const Call& call, const Tensor& output, const Tensor& input) const {
    call.require_contiguous(input);
    call.require_contiguous(output);
    call.require_same_dtype(input, output);
  }

  void require_even(const Call& call, const Tensor& whole, const Tensor& part, const char* whole_name,
                    const char* part_name) const {
    require_pair(call, whole, part);
    call.require(whole.numel() == part.numel() * getSize(),
                 std::string("the ") + whole_name + " has " + c10::str(whole.numel()) + " elements and the " +
                     part_name + " " + c10::str(part.numel()),
                 std::string("The ") + whole_name + " must have " + c10::str(getSize()) + " times as many");
  }

  void require_own(const Call& call, const char* what, const Tensor& own, const std::vector<int64_t>& counts) const {
    const int64_t element = own.element_size();
    call.require(static_cast<int64_t>(own.nbytes()) == counts[getRank()],
                 std::string("the ") + what + " has " + c10::str(own.numel()) + " elements and the sizes given leave " +
                     c10::str(counts[getRank()] / element) + " to this rank",
                 "They must be equal");
  }

  void require_like(const Call& call, const char* what, const Tensors& parts, const Tensor& own) const {
    call.require_list(parts);
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
    const int64_t rows = tensor.size(0);
    const int64_t row = c10::multiply_integers(tensor.sizes().slice(1)) * static_cast<int64_t>(tensor.element_size());
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

  bool compatible_implementation() const {
    py::gil_scoped_acquire gil;
    return py::module_::import("torch_npu").attr("npu").attr("are_compatible_impl_enabled")().cast<bool>();
  }

  const std::shared_ptr<HostCollectives> host_;  // shared with the tasks, which may outlive this
  const c10::intrusive_ptr<Options> options_;
  const std::vector<int64_t> global_ranks_;  // empty for the default group
  uint64_t sequence_ = 0;
  bool coalescing_ = false;
  std::vector<WorkPtr> coalesced_;
  std::string closed_;
  Lane collectives_;
  std::map<int, Lane> sending_, receiving_;
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
           [](const HcclBackend& self, int /*rank*/, bool /*init_comm*/) { return self.comm_name(); },
           py::arg("rankid"), py::arg("init_comm") = true)
      .def("batch_isend_irecv", &HcclBackend::batch_isend_irecv, no_gil)
      .def("reduce_scatter_tensor_uneven", &HcclBackend::reduce_scatter_tensor_uneven, py::arg("output"),
           py::arg("input"), py::arg("input_split_sizes") = std::vector<int64_t>{},
           py::arg("opts") = c10d::ReduceScatterOptions(), no_gil)
      .def("all_gather_into_tensor_uneven", &HcclBackend::all_gather_into_tensor_uneven, py::arg("output"),
           py::arg("input"), py::arg("output_split_sizes") = std::vector<int64_t>{},
           py::arg("opts") = c10d::AllgatherOptions(), no_gil);
}

}  // namespace ascend_sim
