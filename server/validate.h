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

// Logprobs of a prompt, with n_top likeliest tokens each and written n_copies times, are no more
// than an answer may hold. InvalidArgument names `param`.
absl::Status ValidatePromptLogprobs(int64_t n_prompt_tokens, int32_t n_top, int64_t n_copies,
                                    const SessionConfig& config, const std::string& param);

// What the request says, else the model, else the engine.
SamplingParams ResolveSampling(const api::Sampling& sampling, const api::SamplingChoice& defaults);

// The server's policy with what the request asks for put in.
absl::StatusOr<SparseOptions> ResolveSparse(const api::SparseChoice& choice,
                                            const SparseOptions& defaults);

}  // namespace longhaul
