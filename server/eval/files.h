// The files that `longhaul eval` and `longhaul calibrate` read and write.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace longhaul::eval {

// The text of a file: valid UTF-8 of at most 64 MiB. Errors name the flag that named it.
absl::StatusOr<std::string> ReadText(const std::string& flag, const std::string& path);

// For results that are hours away, "" = not wanted: can they be written? Leaves no new file behind.
absl::Status CheckWritable(const std::string& flag, const std::string& path);
// "" = not wanted.
absl::Status WriteFile(const std::string& path, const std::string& text);

}  // namespace longhaul::eval
