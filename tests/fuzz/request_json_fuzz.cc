// Request bodies: whatever arrives, a parser answers with a request or a status, and what it
// accepted stays inside the limits that later stages rely on.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/api/openai_request.h"
#include "server/api/status_map.h"

namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckIds(const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) Require(id >= 0);
}

template <typename T>
void CheckError(const absl::StatusOr<T>& result) {
  if (result.ok()) return;
  Require(absl::IsInvalidArgument(result.status()));
  Require(!longhaul::api::ErrorBody(longhaul::api::ToHttpError(result.status())).empty());
}

void CheckRequest(const absl::StatusOr<longhaul::api::GenerateRequest>& request) {
  CheckError(request);
  if (!request.ok()) return;
  Require(!request->max_tokens || *request->max_tokens >= 0);
  Require(request->sampling.n_logprobs >= -1);
  CheckIds(request->stop_token_ids);
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&request->prompt)) CheckIds(*ids);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  CheckRequest(longhaul::api::ParseCompletion(body));
  CheckRequest(longhaul::api::ParseChatCompletion(body));
  CheckError(longhaul::api::ParseTokenize(body));
  CheckError(longhaul::api::ParseDetokenize(body));
  return 0;
}
