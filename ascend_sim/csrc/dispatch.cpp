// aten on a simulated device: one boxed kernel that runs any operator of npu tensors on the CPU backend.
//
// The memory of an npu tensor is host memory, so the kernel makes CPU tensors over the same memory, calls the CPU
// kernel and maps its results back: the same tensor, a view, or new memory, which is copied to the device.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "counters.h"

namespace at_npu::detail {
const at::Generator& getDefaultNPUGenerator(c10::DeviceIndex device_index = -1);
}

namespace ascend_sim {
namespace {

using at::Tensor;
using c10::IValue;

constexpr auto kNpu = c10::DeviceType::PrivateUse1;

bool on_npu(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kNpu; }

c10::Device with_index(c10::Device device) {
  if (device.type() == kNpu && !device.has_index()) return c10::impl::VirtualGuardImpl(kNpu).getDevice();
  return device;
}

// Memory a kernel touches for this tensor: an expanded dimension is read once.
int64_t bytes_of(const Tensor& tensor) {
  if (!tensor.defined()) return 0;
  int64_t elements = 1;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) elements *= tensor.stride(dim) == 0 ? 1 : tensor.size(dim);
  return tensor.numel() == 0 ? 0 : elements * static_cast<int64_t>(tensor.element_size());
}

// The host's side of one call.
class Host {
 public:
  // The npu device of the first tensor seen, or none.
  std::optional<c10::Device> device;

  Tensor from_device(const Tensor& tensor) {
    if (!on_npu(tensor)) {
      if (tensor.defined()) tensors_.push_back({tensor, tensor, tensor.has_storage() ? tensor.storage().data() : nullptr});
      return tensor;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(tensor.has_storage() && tensor.layout() == c10::kStrided,
                                "ascend_sim: a tensor of layout ", tensor.layout(), " has no simulated kernels");
    if (!device) device = tensor.device();
    Tensor host = at::detail::make_tensor<c10::TensorImpl>(
        host_storage(tensor), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    host.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
    host.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
    if (tensor.is_conj()) host._set_conj(true);
    if (tensor.is_neg()) host._set_neg(true);
    tensors_.push_back({tensor, host, host.storage().data()});
    return host;
  }

  // The npu tensor that a result of the CPU kernel stands for. `written` grows by what is new.
  Tensor to_device(const Tensor& result, c10::Device target, int64_t& written) const {
    if (!result.defined() || result.device().type() != c10::kCPU) return result;
    for (const auto& known : tensors_) {  // a tensor that was on the host to begin with stands for itself
      if (known.host.is_same(result)) return known.device;
    }
    for (const auto& storage : storages_) {
      if (storage.host.is_alias_of(result.storage())) return view(storage.tensor, result);
    }
    if (target.type() != kNpu) return result;
    written += bytes_of(result);
    return copy(result, target);
  }

  // After an operator with out= has resized the host's tensor: the same for the device's.
  void resize_like_host(const Tensor& tensor, const Tensor& host) const {
    if (!on_npu(tensor)) return;
    const bool moved = data_before(host) != host.storage().data();
    if (!moved && tensor.sizes() == host.sizes() && tensor.strides() == host.strides()) return;
    if (tensor.sizes() != host.sizes()) tensor.resize_(host.sizes());
    if (tensor.strides() != host.strides()) {
      tensor.as_strided_(host.sizes(), host.strides(), tensor.storage_offset());
    }
    if (moved) host_alias(tensor).copy_(host);
  }

 private:
  struct KnownStorage {
    c10::Storage device;
    c10::Storage host;
    Tensor tensor;  // any npu tensor on it
  };
  struct KnownTensor {
    Tensor device;
    Tensor host;
    const void* data;
  };
  std::vector<KnownStorage> storages_;
  std::vector<KnownTensor> tensors_;

  c10::Storage host_storage(const Tensor& tensor) {
    const c10::Storage& storage = tensor.storage();
    for (const auto& known : storages_) {
      if (known.device.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) return known.host;
    }
    auto* owner = new c10::Storage(storage);  // the alias keeps the memory
    c10::DataPtr pointer(
        storage.mutable_data(), owner, [](void* context) { delete static_cast<c10::Storage*>(context); },
        c10::Device(c10::kCPU));
    c10::Storage host(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(pointer),
                      c10::GetAllocator(c10::kCPU), /*resizable=*/true);
    storages_.push_back({storage, host, tensor});
    return host;
  }

  const void* data_before(const Tensor& host) const {
    for (const auto& known : tensors_) {
      if (known.host.is_same(host)) return known.data;
    }
    return nullptr;
  }

  static Tensor view(Tensor base, const Tensor& result) {
    if (base.scalar_type() != result.scalar_type()) base = base.view(result.scalar_type()).reshape(-1);
    return at::as_strided(base, result.sizes(), result.strides(), result.storage_offset());
  }

  static Tensor copy(const Tensor& result, c10::Device target) {
    c10::DeviceGuard guard(target);
    Tensor copy = at::empty_strided(result.sizes(), result.strides(), result.options().device(target));
    if (result.numel() != 0) {
      int64_t bytes = result.element_size();
      for (int64_t dim = 0; dim < result.dim(); ++dim) {
        bytes += (result.size(dim) - 1) * result.stride(dim) * result.element_size();
      }
      std::memcpy(copy.storage().mutable_data(), result.const_data_ptr(), bytes);
    }
    if (result.is_conj()) copy._set_conj(true);
    if (result.is_neg()) copy._set_neg(true);
    return copy;
  }
};

// Random operators draw from the CPU generator, seeded from seed and offset of the NPU's, as an NPU kernel would be.
class RandomState {
 public:
  explicit RandomState(const at::Generator& npu)
      : lock_(mutex()), cpu_(at::detail::getDefaultCPUGenerator()), saved_(cpu_.unsafeGetGeneratorImpl()->get_state()) {
    auto* generator = npu.unsafeGetGeneratorImpl();
    const uint64_t seed = generator->current_seed(), offset = generator->get_offset();
    // The mixing constants of splitmix64 keep neighbouring seeds and offsets apart.
    cpu_.set_current_seed((seed * 0x9E3779B97F4A7C15ull) ^ (offset * 0xBF58476D1CE4E5B9ull + 0x94D049BB133111EBull));
    generator->set_offset(offset + 4);  // a Philox counter counts in steps of four
  }
  ~RandomState() { cpu_.unsafeGetGeneratorImpl()->set_state(*saved_); }

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  std::unique_lock<std::mutex> lock_;
  at::Generator cpu_;
  c10::intrusive_ptr<c10::TensorImpl> saved_;
};

std::string name_of(const c10::FunctionSchema& schema) {
  return schema.overload_name().empty() ? schema.name() : schema.name() + '.' + schema.overload_name();
}

// What one call means for the counters.
class Account {
 public:
  Account(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments)
      : schema_(schema), arguments_(arguments), base_(schema.name().substr(schema.name().rfind(':') + 1)) {}

  // `written` are the bytes of new results; `returns_host_value` that something other than a tensor came back.
  void close(int64_t written, bool returns_host_value) const {
    const bool is_copy = base_ == "copy_" || base_ == "_to_copy" || base_ == "_copy_from";
    int64_t read = 0;
    bool reads_npu = false, reads_host = false;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      const bool writes = alias != nullptr && alias->isWrite();
      each_tensor(arguments_[i], [&](const Tensor& tensor) {
        const bool device = on_npu(tensor);
        if (writes && device) written += bytes_of(tensor);
        if (writes && overwrites(i)) return;
        (device ? reads_npu : reads_host) = true;
        if (device) read += bytes_of(tensor);
      });
    }
    const std::string name = name_of(schema_);
    if (is_copy && reads_npu && written == 0) return wait_for_copy(name, "", 0);
    if (is_copy && reads_host && !reads_npu && written > 0) {
      count_upload(name, written);
      return wait_for_copy(name, "self", 1);
    }
    if (reads_npu && (returns_host_value || has_data_dependent_shape())) count_sync(name);
    if (written > 0) count_launch(name, read, written);
  }

 private:
  const c10::FunctionSchema& schema_;
  const std::vector<IValue>& arguments_;
  std::string base_;

  template <class Function>
  static void each_tensor(const IValue& value, const Function& function) {
    if (value.isTensor()) {
      if (value.toTensor().defined()) function(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) function(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) {
        if (tensor && tensor->defined()) function(*tensor);
      }
    }
  }

  // The argument's old content is not read.
  bool overwrites(size_t i) const {
    static const std::unordered_set<std::string> kOverwriting = {
        "copy_",    "fill_",       "zero_",      "normal_", "uniform_", "random_", "bernoulli_", "exponential_",
        "_foreach_copy_", "_foreach_zero_"};
    return schema_.arguments()[i].is_out() || (i == 0 && kOverwriting.count(base_) != 0);
  }

  // The host learns the size of the result from the device.
  bool has_data_dependent_shape() const {
    static const std::unordered_set<std::string> kAlways = {
        "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
        "bincount"};
    if (kAlways.count(base_) != 0) return true;
    if (base_ == "repeat_interleave") return arguments_.back().isNone();  // output_size
    if (base_ == "index" || base_ == "index_put_" || base_ == "_index_put_impl_") {
      const bool scalar_value = base_ != "index" && arguments_[2].toTensor().numel() == 1;  // becomes masked_fill_
      bool by_mask = false;
      each_tensor(arguments_[1], [&](const Tensor& t) { by_mask |= t.scalar_type() == at::kBool; });
      return by_mask && !scalar_value;
    }
    return false;
  }

  // Between device and host, torch_npu does not have the host wait only for pinned memory and where it was asked not
  // to block. The host's side is the argument `host`, or for `copy_` the one at `position`.
  void wait_for_copy(const std::string& name, const std::string& host, size_t position) const {
    bool non_blocking = false, pinned = false;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const auto& argument = schema_.arguments()[i];
      if (argument.name() == "non_blocking") non_blocking = arguments_[i].toBool();
      if (argument.name() == "pin_memory" && arguments_[i].isBool()) pinned = arguments_[i].toBool();
      if (base_ == "copy_" ? i == position : argument.name() == host) pinned = arguments_[i].toTensor().is_pinned();
    }
    if (!(non_blocking && pinned)) count_sync(name);
  }
};

void boxed(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const auto passed = torch::jit::last(*stack, count);
  const std::vector<IValue> arguments(passed.begin(), passed.end());

  Host host;
  std::optional<c10::Device> device_argument;
  at::Generator generator;
  torch::jit::Stack call;
  call.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const IValue& value = arguments[i];
    if (value.isTensor()) {
      call.emplace_back(host.from_device(value.toTensor()));
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(host.from_device(tensor));
      call.emplace_back(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) {
        list.push_back(tensor ? std::optional<Tensor>(host.from_device(*tensor)) : std::nullopt);
      }
      call.emplace_back(list);
    } else if (value.isDevice()) {
      device_argument = with_index(value.toDevice());
      call.emplace_back(device_argument->type() == kNpu ? c10::Device(c10::kCPU) : *device_argument);
    } else if (value.isGenerator() && value.toGenerator().defined() && value.toGenerator().device().type() == kNpu) {
      generator = value.toGenerator();
      call.emplace_back();
    } else if (schema.arguments()[i].name() == "pin_memory" && value.isBool()) {
      call.emplace_back(false);
    } else {
      call.emplace_back(value);
    }
  }
  torch::jit::drop(*stack, count);
  const c10::Device device = device_argument ? *device_argument : host.device.value_or(c10::Device(c10::kCPU));
  const std::vector<IValue> host_arguments(call);
  {
    // The CPU kernel runs below autograd, which has done its work for the npu tensors.
    c10::impl::ExcludeDispatchKeyGuard below_autograd(c10::autograd_dispatch_keyset |
                                                      c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView));
    std::optional<RandomState> random;
    if (generator.defined() || op.hasTag(at::Tag::nondeterministic_seeded)) {
      if (!generator.defined()) {
        const auto npu = device.type() == kNpu ? device : with_index(c10::Device(kNpu));
        generator = at_npu::detail::getDefaultNPUGenerator(npu.index());
      }
      random.emplace(generator);
    }
    op.callBoxed(&call);
  }
  for (size_t i = 0; i < count; ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias == nullptr || !alias->isWrite()) continue;
    if (arguments[i].isTensor()) {
      host.resize_like_host(arguments[i].toTensor(), host_arguments[i].toTensor());
    } else if (arguments[i].isTensorList()) {
      const auto tensors = arguments[i].toTensorVector(), hosts = host_arguments[i].toTensorVector();
      for (size_t k = 0; k < tensors.size(); ++k) host.resize_like_host(tensors[k], hosts[k]);
    }
  }
  int64_t written = 0;
  bool returns_host_value = false;
  for (const IValue& value : call) {
    if (value.isTensor()) {
      torch::jit::push(*stack, host.to_device(value.toTensor(), device, written));
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(host.to_device(tensor, device, written));
      torch::jit::push(*stack, list);
    } else {
      returns_host_value = true;
      torch::jit::push(*stack, value);
    }
  }
  Account(schema, arguments).close(written, returns_host_value);
}

void refuse(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "ascend_sim has no kernel for the operator ", name_of(op.schema()),
                              ". Add one to ascend_sim/kernels, or use an operator that has one.");
}

// Libraries unregister their kernels when they are destroyed.
std::vector<std::unique_ptr<torch::Library>>& libraries() {
  static auto* kept = new std::vector<std::unique_ptr<torch::Library>>;
  return *kept;
}

template <torch::CppFunction (*function)()>
void bind(const std::string& name_space, c10::List<std::string> names) {
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, name_space,
                                                  std::make_optional(c10::DispatchKey::PrivateUse1), __FILE__, __LINE__);
  for (const std::string name : names) library->impl(name.c_str(), function());
  libraries().push_back(std::move(library));
}

torch::CppFunction on_host() { return torch::CppFunction::makeFromBoxedFunction<&boxed>(); }
torch::CppFunction refused() { return torch::CppFunction::makeFromBoxedFunction<&refuse>(); }

}  // namespace

Tensor host_alias(const Tensor& tensor) { return Host().from_device(tensor); }

TORCH_LIBRARY(ascend_sim, library) {
  library.def("run_on_host(str name_space, str[] names) -> ()",
              [](std::string name_space, c10::List<std::string> names) { bind<&on_host>(name_space, names); });
  library.def("refuse(str name_space, str[] names) -> ()",
              [](std::string name_space, c10::List<std::string> names) { bind<&refused>(name_space, names); });
  library.def("host_alias(Tensor tensor) -> Tensor", torch::CppFunction::makeFromUnboxedFunction(&host_alias));
}

}  // namespace ascend_sim
