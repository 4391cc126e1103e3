// Counters by scope. A scope is a name that Python sets around a part of the forward pass. A kernel that the
// autograd engine starts belongs to the scope in which its node was created: nodes carry the sequence number and
// the thread of their creation, and every change of scope is recorded with the same pair.

#include "counters.h"

#include <ATen/SequenceNumber.h>
#include <ATen/core/Dict.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <algorithm>
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

void add(const char* kind, const std::string& name, int64_t read, int64_t written) {
  const auto node = scopes.empty() ? torch::autograd::get_current_node() : nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  const std::string scope = !scopes.empty() ? scopes.back() : node ? scope_of(*node) : "";
  Totals& sums = totals.try_emplace(std::string(kind) + '\t' + scope + '\t' + name, 3, 0).first->second;
  sums[0] += 1;
  sums[1] += read;
  sums[2] += written;
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

}  // namespace

void count_launch(const std::string& op, int64_t bytes_read, int64_t bytes_written) {
  add("launch", op, bytes_read, bytes_written);
}
void count_sync(const std::string& op) { add("sync", op, 0, 0); }
void count_upload(const std::string& op, int64_t bytes) { add("upload", op, bytes, 0); }
void count_collective(const std::string& op, const std::string& group, int64_t bytes) {
  add("collective", op + '\t' + group, bytes, 0);
}

// libascendcl.so is loaded with torch_npu, before this library, and knows nothing of it.
void watch_synchronizations() {
  using OnSynchronize = void (*)(const char*);
  auto* set = reinterpret_cast<void (*)(OnSynchronize)>(dlsym(RTLD_DEFAULT, "ascend_sim_on_synchronize"));
  TORCH_CHECK(set != nullptr, "ascend_sim: the simulated libascendcl.so is not loaded");
  set([](const char* what) { count_sync(what); });
}

TORCH_LIBRARY_FRAGMENT(ascend_sim, library) {
  library.def("watch_synchronizations() -> ()", &watch_synchronizations);
  library.def("count_launch(str op, int bytes_read, int bytes_written) -> ()", &count_launch);
  library.def("count_sync(str op) -> ()", &count_sync);
  library.def("count_collective(str op, str group, int bytes) -> ()", &count_collective);
  library.def("take_counts() -> Dict(str, int[])", &take_counts);
  library.def("enter_scope(str name) -> ()", &enter_scope);
  library.def("leave_scope() -> ()", &leave_scope);
}

}  // namespace ascend_sim
