// One call of a collective: how errors and counters name it, and what HCCL takes.
//
// Sources of the rules: ProcessGroupHCCL.cpp of torch_npu (branch v2.9.0, github.com/Ascend/pytorch) for tensors,
// dtypes and reductions; the HCCL API reference (HcclAllReduce, HcclReduceScatter) for `prod` on Atlas A2.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <string>
#include <vector>

namespace ascend_sim {

struct Call {
  std::string operation;              // torch.distributed's name: "all_reduce"
  std::string group;                  // the group's description, or its number where it has none
  std::vector<int64_t> global_ranks;  // of the group's members; empty for the default group
  int rank = 0;                       // in the group
  int size = 1;
  uint64_t sequence = 0;  // counts the calls of this rank on this group
  c10d::OpType type = c10d::OpType::UNKNOWN;
  std::string communicator;

  int64_t global_rank(int member) const { return global_ranks.empty() ? member : global_ranks.at(member); }

  // "simulated hccl: all_reduce (call 12) on rank 5 (rank 1 of 2 in group EXPERT_MODEL_PARALLEL_GROUP, ranks 4 5)"
  std::string name() const {
    std::string text = "simulated hccl: " + operation + " (call " + std::to_string(sequence) + ") on rank " +
                       std::to_string(global_rank(rank)) + " (rank " + std::to_string(rank) + " of " +
                       std::to_string(size) + " in group " + group;
    if (!global_ranks.empty()) {
      text += ", ranks";
      for (const int64_t member : global_ranks) text += " " + std::to_string(member);
    }
    return text + ")";
  }

  // Ends the call: what was found, and what HCCL takes instead.
  [[noreturn]] void refuse(const std::string& found, const std::string& allowed) const {
    C10_THROW_ERROR(Error, name() + ": " + found + ". " + allowed + ".");
  }

  void require(bool condition, const std::string& found, const std::string& allowed) const {
    if (!condition) refuse(found, allowed);
  }

  // The one tensor of a call that c10d hands over as a list.
  const at::Tensor& single(const std::vector<at::Tensor>& tensors) const {
    require(tensors.size() == 1, std::to_string(tensors.size()) + " tensors were given",
            "A process has one NPU and gives one tensor");
    return tensors.front();
  }

  // A tensor in an NPU's memory, without gaps, of a dtype that HCCL can move.
  void require_dense(const at::Tensor& tensor) const {
    require(tensor.device().type() == c10::DeviceType::PrivateUse1 && tensor.layout() == c10::kStrided,
            "a " + c10::str(tensor.layout()) + " tensor on " + tensor.device().str() + " was given",
            "HCCL takes dense npu tensors; move it with .npu(), or use a gloo group for host tensors");
    require(tensor.is_non_overlapping_and_dense(), "a tensor with strides " + c10::str(tensor.strides()) + " was given",
            "HCCL takes tensors without gaps; call .contiguous()");
    switch (tensor.scalar_type()) {
      case at::kByte: case at::kChar: case at::kShort: case at::kInt: case at::kLong: case at::kHalf: case at::kFloat:
      case at::kDouble: case at::kBool: case at::kBFloat16: case at::kUInt16: case at::kUInt32: case at::kUInt64:
      case at::kFloat8_e4m3fn: case at::kFloat8_e5m2:
        return;
      default:
        refuse("dtype " + c10::str(tensor.scalar_type()) + " was given",
               "HCCL has integers of 8 to 64 bits, bool, float8_e4m3fn, float8_e5m2, float16, bfloat16, float32 and "
               "float64");
    }
  }

  void require_contiguous(const at::Tensor& tensor) const {
    require_dense(tensor);
    require(tensor.is_contiguous(tensor.suggest_memory_format()),
            "a tensor with sizes " + c10::str(tensor.sizes()) + " and strides " + c10::str(tensor.strides()) +
                " was given",
            "HCCL takes contiguous tensors; call .contiguous()");
  }

  void require_same_dtype(const at::Tensor& one, const at::Tensor& other) const {
    require(one.scalar_type() == other.scalar_type(),
            "tensors of " + c10::str(one.scalar_type()) + " and " + c10::str(other.scalar_type()) + " were given",
            "All tensors of a call must have the same dtype");
  }

  void require_list(const std::vector<at::Tensor>& tensors) const {
    require(tensors.size() == static_cast<size_t>(size),
            "a list of " + std::to_string(tensors.size()) + " tensors was given",
            "It needs one for each of the " + std::to_string(size) + " ranks of the group");
    for (const auto& tensor : tensors) {
      require_dense(tensor);
      require_same_dtype(tensors.front(), tensor);
      require(tensor.device() == tensors.front().device(),
              "tensors on " + tensor.device().str() + " and " + tensors.front().device().str() + " were given",
              "They must be on one device");
    }
  }

  void require_root(int64_t root) const {
    require(root >= 0 && root < size, "root rank " + std::to_string(root) + " was named",
            "The group has ranks 0 to " + std::to_string(size - 1));
  }

  void require_peer(int64_t peer) const {
    require(peer >= 0 && peer < size, "rank " + std::to_string(peer) + " was named",
            "The group has ranks 0 to " + std::to_string(size - 1));
    require(peer != rank, "the peer is this rank itself",
            "The simulator does not model messages to oneself; use copy_");
  }

  // `through_int32`: torch_npu computes in int32 where the dtype is bool or uint8 (all_reduce and reduce only).
  void require_reduction(const c10d::ReduceOp& reduction, at::ScalarType dtype, bool through_int32) const {
    using c10d::ReduceOp;
    const bool known = reduction == ReduceOp::SUM || reduction == ReduceOp::AVG || reduction == ReduceOp::MIN ||
                       reduction == ReduceOp::MAX || reduction == ReduceOp::PRODUCT;
    require(!(reduction == ReduceOp::PREMUL_SUM), "ReduceOp.PREMUL_SUM was given",
            "The simulator does not model it; scale the tensor, then use SUM");
    require(known, "a bitwise ReduceOp was given", "HCCL has SUM, AVG, MIN, MAX and PRODUCT");
    const bool small = dtype == at::kBool || dtype == at::kByte;
    const bool reducible = dtype == at::kChar || dtype == at::kShort || dtype == at::kInt || dtype == at::kLong ||
                           dtype == at::kHalf || dtype == at::kFloat || dtype == at::kBFloat16;
    require(reducible || (small && through_int32), "dtype " + c10::str(dtype) + " was given",
            "HCCL reduces int8, int16, int32, int64, float16, bfloat16 and float32" +
                std::string(through_int32 ? " (and bool and uint8, as int32)" : ""));
    require(!(reduction == ReduceOp::AVG) || at::isFloatingType(dtype),
            "ReduceOp.AVG of " + c10::str(dtype) + " was given",
            "torch_npu divides the sum in place, which only a floating point dtype can hold");
    require(!(reduction == ReduceOp::PRODUCT) || (dtype != at::kShort && dtype != at::kBFloat16),
            "ReduceOp.PRODUCT of " + c10::str(dtype) + " was given",
            "HCCL has no product of int16 and bfloat16 on Atlas A2 and A3");
  }
};

}  // namespace ascend_sim
