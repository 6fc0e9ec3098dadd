// ApiKeys: who may call. Holds only SHA-256 digests of the configured keys, so a crash dump or a
// log of this object shows none. Immutable; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul {

class ApiKeys {
 public:
  using Digest = std::array<uint8_t, 32>;

  // No keys: everybody is allowed.
  explicit ApiKeys(const std::vector<std::string>& keys);

  bool required() const { return !digests_.empty(); }

  // `authorization` is the whole header or metadata value, "Bearer <key>" (scheme in any case).
  // True when no key is required. The time depends on the length of the value alone: digests are
  // compared, in constant time, with every configured key.
  bool Allows(std::string_view authorization) const;

 private:
  std::vector<Digest> digests_;
};

}  // namespace longhaul
