// libascendcl.so: the AscendCL runtime on host memory.
//
// A device is a number and a memory budget; device memory is host memory. Streams run at once, so that every
// event is complete when it is recorded. What is not written here is refused: build.py generates, for every
// other symbol the torch_npu wheel needs, a function that reports its own name and fails.

#include <acl/acl.h>
#include <acl/acl_mdl.h>
#include <acl/acl_op_compiler.h>
#include <acl/acl_rt.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#define ACL_API extern "C" __attribute__((visibility("default")))

namespace {

// Error codes of acl/error_codes/rt_error_codes.h that torch_npu knows how to report.
constexpr aclError kInvalidDevice = 107001;
constexpr aclError kContextMissing = 107002;
constexpr aclError kOutOfMemory = 207001;
constexpr aclError kNotSupported = 207000;

constexpr int kMaxDevices = 64;
constexpr size_t kAlignment = 512;  // what aclrtMalloc promises
constexpr size_t kPadding = 32;     // aclrtMalloc adds 32 bytes; kernels may read that far

long setting(const char* name, long otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::atol(value) : otherwise;
}

int device_count() {
  static const int count = static_cast<int>(setting("ASCEND_SIM_DEVICES", 8));
  return count;
}

size_t memory_of_a_device() {
  static const size_t bytes = static_cast<size_t>(setting("ASCEND_SIM_MEMORY_MIB", 65536)) << 20;
  return bytes;
}

thread_local int current_device = -1;
thread_local char last_error[256] = "";

int device_or_first() { return current_device < 0 ? 0 : current_device; }

aclError fail(aclError code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

// The memory budget of every device, in this process.
class Memory {
 public:
  bool reserve(int device, size_t bytes) {
    size_t used = used_[device].load();
    do {
      if (used + bytes > memory_of_a_device()) return false;
    } while (!used_[device].compare_exchange_weak(used, used + bytes));
    return true;
  }
  void release(int device, size_t bytes) { used_[device] -= bytes; }
  size_t free_on(int device) const { return memory_of_a_device() - used_[device].load(); }

 private:
  std::atomic<size_t> used_[kMaxDevices] = {};
};
Memory memory;

struct Block {
  size_t bytes;
  int device;
};
std::mutex blocks_mutex;
std::unordered_map<void*, Block> blocks;

aclError out_of_memory(int device, size_t bytes) {
  return fail(kOutOfMemory, "EL0004: simulated device %d: %zu bytes asked for, %zu of %zu free", device, bytes,
              memory.free_on(device), memory_of_a_device());
}

aclError allocate(void** pointer, size_t bytes) {
  const int device = device_or_first();
  if (!memory.reserve(device, bytes)) return out_of_memory(device, bytes);
  if (posix_memalign(pointer, kAlignment, bytes + kPadding) != 0) {
    memory.release(device, bytes);
    return fail(kOutOfMemory, "EL0004: the host has no %zu bytes left for simulated device %d", bytes, device);
  }
  std::lock_guard<std::mutex> lock(blocks_mutex);
  blocks[*pointer] = {bytes, device};
  return ACL_SUCCESS;
}

struct Stream {
  int id;
};
struct Event {
  double milliseconds = 0;
};

double now_in_milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

aclError create_stream(aclrtStream* stream) {
  static std::atomic<int> next{0};
  *stream = new Stream{next++};
  return ACL_SUCCESS;
}

using OnOrder = void (*)(const char* what, aclrtStream stream, aclrtEvent event);
std::atomic<OnOrder> on_order{nullptr};

// Streams run at once, so that nothing is left to wait for; that it was asked for is told.
aclError order(const char* what, aclrtStream stream = nullptr, aclrtEvent event = nullptr) {
  if (const OnOrder tell = on_order.load()) tell(what, stream, event);
  return ACL_SUCCESS;
}

}  // namespace

// For counters.cpp, which is loaded later: call `function` whenever the host waits for a device, stream or event, an
// event is recorded, or a stream is to wait for one.
ACL_API void ascend_sim_on_order(OnOrder function) { on_order = function; }

// ---- process and errors

ACL_API aclError aclInit(const char*) { return ACL_SUCCESS; }
ACL_API aclError aclFinalize() { return ACL_SUCCESS; }
ACL_API const char* aclGetRecentErrMsg() { return last_error; }
ACL_API aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
ACL_API void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}
// Dumps and profiling record nothing here.
ACL_API aclError aclmdlInitDump() { return ACL_SUCCESS; }
ACL_API aclError aclmdlFinalizeDump() { return ACL_SUCCESS; }
ACL_API uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
ACL_API int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
ACL_API int32_t MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return 0; }
ACL_API uint64_t MsprofSysCycleTime() { return 0; }

// ---- devices

ACL_API const char* aclrtGetSocName() {
  const char* name = std::getenv("ASCEND_SIM_SOC");
  return name != nullptr ? name : "Ascend910B1";
}
ACL_API aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = device_count();
  return ACL_SUCCESS;
}
ACL_API aclError aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= device_count()) {
    return fail(kInvalidDevice, "simulated device %d of %d: raise `ascend-sim run --devices`", device, device_count());
  }
  current_device = device;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtGetDevice(int32_t* device) {
  if (current_device < 0) return kContextMissing;
  *device = current_device;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }

// A context is its device's number, moved away from null.
constexpr uintptr_t kContextBase = 0x1000;
ACL_API aclError aclrtGetCurrentContext(aclrtContext* context) {
  if (current_device < 0) return kContextMissing;
  *context = reinterpret_cast<void*>(kContextBase + current_device);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtSetCurrentContext(aclrtContext context) {
  current_device = static_cast<int>(reinterpret_cast<uintptr_t>(context) - kContextBase);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
  if (flags != nullptr) *flags = 0;
  if (active != nullptr) *active = current_device == device;
  return ACL_SUCCESS;
}
ACL_API aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t* value) {
  *value = 24;  // cores; only torch_npu's own tiling asks
  return ACL_SUCCESS;
}
ACL_API aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  *pid = getpid();
  return ACL_SUCCESS;
}
ACL_API aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }
// Nothing overflows, nothing times out, nothing is compiled: these settings have no effect.
ACL_API aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
ACL_API aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
ACL_API aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }

// ---- memory

ACL_API aclError aclrtMalloc(void** pointer, size_t bytes, aclrtMemMallocPolicy) { return allocate(pointer, bytes); }
ACL_API aclError aclrtMallocAlign32(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  return allocate(pointer, bytes);
}
ACL_API aclError aclrtFree(void* pointer) {
  std::lock_guard<std::mutex> lock(blocks_mutex);
  const auto block = blocks.find(pointer);
  if (block != blocks.end()) {
    memory.release(block->second.device, block->second.bytes);
    blocks.erase(block);
    std::free(pointer);
  }
  return ACL_SUCCESS;
}
ACL_API aclError aclrtMallocHost(void** pointer, size_t bytes) {
  return posix_memalign(pointer, kAlignment, bytes != 0 ? bytes : kAlignment) == 0 ? ACL_SUCCESS : kOutOfMemory;
}
ACL_API aclError aclrtFreeHost(void* pointer) {
  std::free(pointer);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtHostRegister(void* pointer, uint64_t, int, void** device_pointer) {
  *device_pointer = pointer;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtHostUnregister(void*) { return ACL_SUCCESS; }
ACL_API aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind) {
  std::memmove(to, from, bytes);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtMemcpyAsync(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind, aclrtStream) {
  std::memmove(to, from, bytes);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtMemset(void* to, size_t, int32_t value, size_t bytes) {
  std::memset(to, value, bytes);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  *total = memory_of_a_device();
  *free = memory.free_on(device_or_first());
  return ACL_SUCCESS;
}

// Virtual memory, for torch_npu's expandable segments: addresses come from mmap, "physical" memory is the budget.
ACL_API aclError aclrtReserveMemAddress(void** address, size_t bytes, size_t, void*, uint64_t) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return fail(kOutOfMemory, "EL0004: the host has no address range of %zu bytes", bytes);
  std::lock_guard<std::mutex> lock(blocks_mutex);
  blocks[pages] = {bytes, -1};
  *address = pages;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtReleaseMemAddress(void* address) {
  std::lock_guard<std::mutex> lock(blocks_mutex);
  const auto block = blocks.find(address);
  if (block != blocks.end()) {
    munmap(address, block->second.bytes);
    blocks.erase(block);
  }
  return ACL_SUCCESS;
}
ACL_API aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp*, uint64_t) {
  const int device = device_or_first();
  if (!memory.reserve(device, bytes)) return out_of_memory(device, bytes);
  *handle = reinterpret_cast<aclrtDrvMemHandle>(new Block{bytes, device});
  return ACL_SUCCESS;
}
ACL_API aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  auto* block = reinterpret_cast<Block*>(handle);
  memory.release(block->device, block->bytes);
  delete block;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtMapMem(void*, size_t, size_t, aclrtDrvMemHandle, uint64_t) { return ACL_SUCCESS; }
ACL_API aclError aclrtUnmapMem(void*) { return ACL_SUCCESS; }

// ---- streams and events

ACL_API aclError aclrtCreateStream(aclrtStream* stream) { return create_stream(stream); }
ACL_API aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) { return create_stream(stream); }
ACL_API aclError aclrtDestroyStream(aclrtStream stream) {
  delete static_cast<Stream*>(stream);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }
ACL_API aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }
ACL_API aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) { return ACL_SUCCESS; }
ACL_API aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return ACL_SUCCESS; }
ACL_API aclError aclrtSynchronizeStream(aclrtStream stream) { return order("synchronize stream", stream); }
ACL_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) {
  return order("synchronize stream", stream);
}
ACL_API aclError aclrtSynchronizeDevice() { return order("synchronize device"); }
ACL_API aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return order("synchronize device"); }
ACL_API aclError aclrtStreamQuery(aclrtStream, aclrtStreamStatus* status) {
  *status = ACL_STREAM_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  *id = stream != nullptr ? static_cast<Stream*>(stream)->id : 0;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  return order("wait event", stream, event);
}
ACL_API aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) {
  *event = new Event;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t flag) {
  return aclrtCreateEventWithFlag(event, flag);
}
ACL_API aclError aclrtDestroyEvent(aclrtEvent event) {
  delete static_cast<Event*>(event);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  static_cast<Event*>(event)->milliseconds = now_in_milliseconds();
  return order("record event", stream, event);
}
ACL_API aclError aclrtResetEvent(aclrtEvent, aclrtStream) { return ACL_SUCCESS; }
ACL_API aclError aclrtSynchronizeEvent(aclrtEvent event) { return order("synchronize event", nullptr, event); }
ACL_API aclError aclrtQueryEventStatus(aclrtEvent, aclrtEventRecordedStatus* status) {
  *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
ACL_API aclError aclQueryEventRecordedStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return aclrtQueryEventStatus(event, status);
}
ACL_API aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
ACL_API aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  *milliseconds = static_cast<float>(static_cast<Event*>(end)->milliseconds - static_cast<Event*>(start)->milliseconds);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t* microseconds) {
  *microseconds = static_cast<uint64_t>(static_cast<Event*>(event)->milliseconds * 1000);
  return ACL_SUCCESS;
}
// Host functions queued on a stream run where they are queued.
ACL_API aclError aclrtLaunchCallback(aclrtCallback function, void* argument, aclrtCallbackBlockType, aclrtStream) {
  function(argument);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtLaunchHostFunc(aclrtStream, aclrtHostFunc function, void* argument) {
  function(argument);
  return ACL_SUCCESS;
}
ACL_API aclError aclrtSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
ACL_API aclError aclrtUnSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }

// ---- the legacy operator path: torch_npu describes a call, then asks for it; the last step is refused, because an
// outcome of 0 would leave garbage in the outputs.

ACL_API aclError aclopCompileAndExecute(const char* operator_type, int, const aclTensorDesc* const*,
                                        const aclDataBuffer* const*, int, const aclTensorDesc* const*,
                                        aclDataBuffer* const*, const aclopAttr*, aclopEngineType, aclopCompileType,
                                        const char*, aclrtStream) {
  std::fprintf(stderr, "ascend_sim: no kernel for the operator %s, called through aclopCompileAndExecute\n",
               operator_type);
  return fail(kNotSupported, "EZ9999: ascend_sim has no kernel for the operator %s", operator_type);
}
