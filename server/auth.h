// ApiKeys: who may call. Holds only SHA-256 digests of the configured keys, so a crash dump or a
// log of this object shows none. Immutable; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
  // Who that is: a digest of the key in hexadecimal, "" when no key is required; nullopt when it
  // is nobody who may call. The time depends on the length of the value alone: digests are
  // compared, in constant time, with every configured key.
  std::optional<std::string> Caller(std::string_view authorization) const;
  bool Allows(std::string_view authorization) const { return Caller(authorization).has_value(); }

 private:
  std::vector<Digest> digests_;
};

}  // namespace longhaul
