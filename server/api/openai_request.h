// OpenAI request bodies (JSON text) to api::GenerateRequest and friends. Types are checked here;
// ranges that every front end shares are checked by the Session. Fields that are unknown are
// ignored, except those that would change what the answer means: these are refused. Pure functions;
// any thread. A body of 64 MiB takes a second: call them off the network threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/api/types.h"

namespace longhaul::api {

absl::StatusOr<GenerateRequest> ParseChatCompletion(std::string_view body);
absl::StatusOr<GenerateRequest> ParseCompletion(std::string_view body);

struct TokenizeRequest {
  std::string model;
  Prompt prompt;  // text or messages
  bool add_special_tokens = true;
  bool return_token_strs = false;
};
absl::StatusOr<TokenizeRequest> ParseTokenize(std::string_view body);

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};
absl::StatusOr<DetokenizeRequest> ParseDetokenize(std::string_view body);

}  // namespace longhaul::api
