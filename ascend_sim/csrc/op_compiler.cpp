// libacl_op_compiler.so: the functions that torch_npu looks up in this library and not in libascendcl.so.

#include <cstddef>
#include <cstdint>
#include <cstring>

#define ACL_API extern "C" __attribute__((visibility("default")))

namespace {
constexpr int kOptions = 64;
int64_t system_options[kOptions] = {};
bool known(int option) { return option >= 0 && option < kOptions; }
}  // namespace

// Options are kept so that torch_npu reads back what it wrote (deterministic mode among them).
ACL_API int aclrtSetSysParamOpt(int option, int64_t value) {
  if (known(option)) system_options[option] = value;
  return 0;
}
ACL_API int aclrtGetSysParamOpt(int option, int64_t* value) {
  *value = known(option) ? system_options[option] : 0;
  return 0;
}
ACL_API int aclrtCtxSetSysParamOpt(int option, int64_t value) { return aclrtSetSysParamOpt(option, value); }

// Nothing is compiled. torch_npu asks for the value of an option at start and needs a size that is not zero.
constexpr char kDisabled[] = "disable";
ACL_API int aclSetCompileopt(int, const char*) { return 0; }
ACL_API size_t aclGetCompileoptSize(int) { return sizeof kDisabled; }
ACL_API int aclGetCompileopt(int, char* value, size_t length) {
  std::strncpy(value, kDisabled, length);
  return 0;
}
ACL_API int aclopStartDumpArgs(unsigned, const char*) { return 0; }
ACL_API int aclopStopDumpArgs(unsigned) { return 0; }
