// Counters by scope. A scope is a name that Python sets around a part of the forward pass. A kernel that the
// autograd engine starts belongs to the scope in which its node was created: nodes carry the sequence number and
// the thread of their creation, and every change of scope is recorded with the same pair.
//
// When asked, the order of launches, collectives and waits is kept as well, with the streams they were given to.

#include "counters.h"

#include <ATen/SequenceNumber.h>
#include <ATen/core/Dict.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ascend_sim {
namespace {

// "launch", "sync", "upload" or "collective", then scope, name and (of a collective) group, separated by tabs.
using Key = std::string;
// Count, bytes read, bytes written; a collective and an upload leave the last at zero, a sync both.
using Totals = std::vector<int64_t>;

struct Change {
  uint64_t sequence_number;
  std::string scope;
};

std::mutex mutex;
std::unordered_map<Key, Totals> totals;
std::unordered_map<uint64_t, std::vector<Change>> changes;  // by thread, ascending sequence numbers
thread_local std::vector<std::string> scopes;

std::atomic<bool> recording{false};
std::vector<std::string> order;  // each the attributes of an Event of ascend_sim/timeline.py, separated by tabs

void changed() {
  const std::string& now = scopes.empty() ? std::string() : scopes.back();
  std::lock_guard<std::mutex> lock(mutex);
  auto& history = changes[at::RecordFunction::currentThreadId()];
  const uint64_t number = at::sequence_number::peek();
  if (!history.empty() && history.back().sequence_number == number) history.pop_back();
  history.push_back({number, now});
}

// With the mutex held.
std::string scope_of(const torch::autograd::Node& node) {
  const auto history = changes.find(node.thread_id());
  if (history == changes.end()) return "";
  const auto after = std::upper_bound(
      history->second.begin(), history->second.end(), node.sequence_nr(),
      [](uint64_t number, const Change& change) { return number < change.sequence_number; });
  return after == history->second.begin() ? "" : std::prev(after)->scope;
}

// A collective's place among those of its communicator.
struct Place {
  std::string communicator;
  uint64_t sequence = 0;
};

// With the mutex held.
void record(const std::string& kind, const void* stream, const void* event, const Place& place = {},
            const std::string& scope = "", const std::string& op = "", const std::string& group = "",
            int64_t bytes = 0) {
  order.push_back(c10::str(kind, '\t', reinterpret_cast<uintptr_t>(stream), '\t', reinterpret_cast<uintptr_t>(event),
                           '\t', place.communicator, '\t', place.sequence, '\t', scope, '\t', op, '\t', group, '\t',
                           bytes));
}

const void* current_stream() { return c10_npu::getCurrentNPUStream().stream(/*need_empty=*/false); }

void add(const char* kind, const std::string& op, const std::string& group, int64_t read, int64_t written,
         const char* recorded_as, const Place& place = {}) {
  const auto node = scopes.empty() ? torch::autograd::get_current_node() : nullptr;
  const bool records = recording && recorded_as != nullptr;
  const void* stream = records ? current_stream() : nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  const std::string scope = !scopes.empty() ? scopes.back() : node ? scope_of(*node) : "";
  const std::string name = group.empty() ? op : op + '\t' + group;
  Totals& sums = totals.try_emplace(std::string(kind) + '\t' + scope + '\t' + name, 3, 0).first->second;
  sums[0] += 1;
  sums[1] += read;
  sums[2] += written;
  if (records) record(recorded_as, stream, nullptr, place, scope, op, group, read + written);
}

void enter_scope(std::string name) {
  scopes.push_back(std::move(name));
  changed();
}

void leave_scope() {
  TORCH_CHECK(!scopes.empty(), "ascend_sim: a scope was left that was not entered");
  scopes.pop_back();
  changed();
}

// Everything counted since the last call.
c10::Dict<std::string, std::vector<int64_t>> take_counts() {
  c10::Dict<std::string, std::vector<int64_t>> taken;
  std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [key, sums] : totals) taken.insert(key, sums);
  totals.clear();
  return taken;
}

// Collectives up to the next launch belong to the operator that is launched then.
void begin_operator() {
  if (!recording) return;
  std::lock_guard<std::mutex> lock(mutex);
  record("operator", nullptr, nullptr);
}

// Whether the order is kept from now on; returns what was kept before.
std::vector<std::string> record_order(bool on) {
  std::lock_guard<std::mutex> lock(mutex);
  recording = on;
  return std::exchange(order, {});
}

}  // namespace

void count_launch(const std::string& op, int64_t bytes_read, int64_t bytes_written) {
  add("launch", op, "", bytes_read, bytes_written, "launch");
}
void count_sync(const std::string& op) { add("sync", op, "", 0, 0, "synchronize stream"); }
void count_upload(const std::string& op, int64_t bytes) { add("upload", op, "", bytes, 0, nullptr); }
void count_collective(const std::string& op, const std::string& group, int64_t bytes, const std::string& communicator,
                      uint64_t sequence) {
  add("collective", op, group, bytes, 0, "collective", {communicator, sequence});
}

void wait_for_collective(const std::string& communicator, uint64_t sequence) {
  if (!recording) return;
  const void* stream = current_stream();
  std::lock_guard<std::mutex> lock(mutex);
  record("wait", stream, nullptr, {communicator, sequence});
}

// libascendcl.so is loaded with torch_npu, before this library, and knows nothing of it.
void watch_order() {
  using OnOrder = void (*)(const char*, const void*, const void*);
  auto* set = reinterpret_cast<void (*)(OnOrder)>(dlsym(RTLD_DEFAULT, "ascend_sim_on_order"));
  TORCH_CHECK(set != nullptr, "ascend_sim: the simulated libascendcl.so is not loaded");
  set([](const char* what, const void* stream, const void* event) {
    const std::string kind = what;
    if (kind.rfind("synchronize", 0) == 0) add("sync", kind, "", 0, 0, nullptr);
    if (!recording) return;
    std::lock_guard<std::mutex> lock(mutex);
    record(kind, stream, event);
  });
}

TORCH_LIBRARY_FRAGMENT(ascend_sim, library) {
  library.def("watch_order() -> ()", &watch_order);
  library.def("count_launch(str op, int bytes_read, int bytes_written) -> ()", &count_launch);
  library.def("count_sync(str op) -> ()", &count_sync);
  library.def("take_counts() -> Dict(str, int[])", &take_counts);
  library.def("begin_operator() -> ()", &begin_operator);
  library.def("record_order(bool on) -> str[]", &record_order);
  library.def("enter_scope(str name) -> ()", &enter_scope);
  library.def("leave_scope() -> ()", &leave_scope);
}

}  // namespace ascend_sim
