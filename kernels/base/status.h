// absl::Status with our two propagation macros. Messages are built with fmt::format: this absl is
// built with its own string_view, which does not take a std::string_view.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define LH_RETURN_IF_ERROR(expr)                           \
  do {                                                     \
    if (absl::Status lh_status = (expr); !lh_status.ok()) { \
      return lh_status;                                    \
    }                                                      \
  } while (0)

#define LH_CONCAT_INNER(a, b) a##b
#define LH_CONCAT(a, b) LH_CONCAT_INNER(a, b)

// LH_ASSIGN_OR_RETURN(auto x, MakeX());
#define LH_ASSIGN_OR_RETURN(lhs, expr) LH_ASSIGN_OR_RETURN_IMPL(LH_CONCAT(lh_or_, __LINE__), lhs, expr)
#define LH_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return tmp.status();            \
  lhs = *std::move(tmp)
