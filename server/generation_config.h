// generation_config.json of a model folder: what its authors advise for requests that do not say
// how to sample. Read once at the start; a plain value. The end tokens in the same file are the
// tokenizer's business and always read.
#pragma once

#include <string>

#include "kernels/base/status.h"
#include "server/api/types.h"

namespace longhaul {

// Nothing where there is no such file. InvalidArgument names the file, the field, its value and the
// range.
absl::StatusOr<api::GenerationDefaults> ReadGenerationDefaults(const std::string& model_dir);

}  // namespace longhaul
