// What a process asked of its simulated device: launches, host synchronisations, collectives.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace ascend_sim {

// A CPU tensor over the memory of an npu tensor, same sizes and strides. The memory lives as long as either.
at::Tensor host_alias(const at::Tensor& tensor);

// One kernel started on the device.
void count_launch(const std::string& op, int64_t bytes_read, int64_t bytes_written);
// The host waits for a value that the device computes.
void count_sync(const std::string& op);
// A copy from the host's memory to the device's.
void count_upload(const std::string& op, int64_t bytes);
// `bytes` is what this rank contributes; `sequence` numbers the calls on the communicator.
void count_collective(const std::string& op, const std::string& group, int64_t bytes, const std::string& communicator,
                      uint64_t sequence);
// What the current stream does next waits for a collective.
void wait_for_collective(const std::string& communicator, uint64_t sequence);

}  // namespace ascend_sim
