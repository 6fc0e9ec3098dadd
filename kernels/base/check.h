// CHECK for our own bugs only. Whatever a user, a file, the network or a device can cause is an
// absl::Status instead (see status.h).
#pragma once

#include <cstdio>
#include <cstdlib>

namespace longhaul::internal {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace longhaul::internal

#define LH_CHECK(condition) \
  ((condition) ? void(0) : ::longhaul::internal::CheckFailed(__FILE__, __LINE__, #condition))

#ifdef NDEBUG
#define LH_DCHECK(condition) void(sizeof(condition))
#else
#define LH_DCHECK(condition) LH_CHECK(condition)
#endif
