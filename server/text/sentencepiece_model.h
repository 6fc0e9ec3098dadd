// SentencePieceModel: the sentencepiece library behind plain types. A file of its own because the
// library's header defines names in namespace absl that clash with the real absl. Immutable after
// loading; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace longhaul {

class SentencePieceModel {
 public:
  enum class PieceKind : uint8_t { kNormal, kControl, kUnknown, kByte, kUnused };

  // nullptr and *error when the library does not accept the bytes.
  static std::unique_ptr<SentencePieceModel> Load(std::string_view serialized, std::string* error);
  ~SentencePieceModel();

  // Appends the ids of `text` as the library gives them. False and *error when it fails.
  bool Encode(std::string_view text, std::vector<int32_t>* ids, std::string* error) const;

  int32_t n_pieces() const;
  const std::string& Piece(int32_t id) const;  // with U+2581 for a space
  PieceKind Kind(int32_t id) const;
  int32_t bos_id() const;  // -1 = none
  int32_t eos_id() const;

 private:
  explicit SentencePieceModel(std::unique_ptr<sentencepiece::SentencePieceProcessor> processor);

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace longhaul
