// One calibration of a model in this process: prompts cut out of the user's text, what dense and
// each candidate of the search make of them, and the settings that come out. What is known already
// is taken from the store. One thread.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "server/eval/calibration_search.h"
#include "server/eval/options.h"
#include "server/eval/result.h"
#include "server/eval/target.h"
#include "server/server_config.h"

namespace longhaul::eval {

// Where prompts of a length begin in a text of n tokens: they do not overlap; those of the search
// lie in the text's first half, held-out ones in its second.
std::vector<int64_t> PromptBegins(int64_t n_tokens, int64_t length_tokens, int64_t n_prompts,
                                  TextPart part);

// InvalidArgument when --sparse-mode has nothing to search for, or a length is dense by itself.
absl::Status CheckSpace(const CalibrateOptions& options, const ServerConfig& config);

// `text`: valid UTF-8. Progress goes to `progress`: one line on a terminal, and a line for each
// candidate.
absl::StatusOr<Calibration> RunCalibration(const CalibrateOptions& options,
                                           const ServerConfig& config, const std::string& text,
                                           ModelTarget& model, ResultStore& store,
                                           std::FILE* progress);

}  // namespace longhaul::eval
