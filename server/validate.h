// Ranges of a request that hold for every front end. Pure functions, any thread.
#pragma once

#include "server/api/types.h"
#include "server/session.h"

namespace longhaul {

// InvalidArgument naming the field (OpenAI's name), its value and the allowed range.
absl::Status ValidateRequest(const api::GenerateRequest& request, const SessionConfig& config,
                             int32_t vocab_size);

// Token ids of a prompt or of stop_token_ids are inside the vocabulary.
absl::Status ValidateIds(const std::vector<int32_t>& ids, int32_t vocab_size,
                         const std::string& param);

// The server's policy with what the request asks for put in.
absl::StatusOr<SparseOptions> ResolveSparse(const api::SparseChoice& choice,
                                            const SparseOptions& defaults);

}  // namespace longhaul
