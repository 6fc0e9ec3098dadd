// The version of this build, from CMake.
#pragma once

namespace longhaul {

inline constexpr char kVersion[] = LONGHAUL_VERSION;

}  // namespace longhaul
