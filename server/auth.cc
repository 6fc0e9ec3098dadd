#include "server/auth.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>

namespace longhaul {
namespace {

ApiKeys::Digest Sha256(std::string_view text) {
  ApiKeys::Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

char ToLower(char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; }

// The key of "Bearer <key>", empty when the value has another form.
std::string_view BearerKey(std::string_view value) {
  constexpr std::string_view kScheme = "bearer ";
  if (value.size() < kScheme.size()) return {};
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (ToLower(value[i]) != kScheme[i]) return {};
  }
  value.remove_prefix(kScheme.size());
  while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
  while (!value.empty() && value.back() == ' ') value.remove_suffix(1);
  return value;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  digests_.reserve(keys.size());
  for (const std::string& key : keys) digests_.push_back(Sha256(key));
}

std::optional<std::string> ApiKeys::Caller(std::string_view authorization) const {
  if (!required()) return "";
  const std::string_view key = BearerKey(authorization);
  const Digest digest = Sha256(key);
  bool found = false;
  for (const Digest& allowed : digests_) {
    found |= CRYPTO_memcmp(digest.data(), allowed.data(), digest.size()) == 0;
  }
  if (!found || key.empty()) return std::nullopt;
  std::string caller;
  for (const uint8_t byte : digest) caller += fmt::format("{:02x}", byte);
  return caller;
}

}  // namespace longhaul
