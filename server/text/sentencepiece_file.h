// The fields of a sentencepiece tokenizer.model that its library does not show: how a text is
// normalized, of which kind the model is, every piece's score. Plain values; reads what the library
// has accepted, and still trusts no length.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace longhaul {

struct SentencePieceFile {
  // As in sentencepiece_model.proto.
  enum class ModelType : uint64_t { kUnigram = 1, kBpe = 2 };
  enum class PieceType : uint64_t {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  struct Piece {
    std::string_view text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };

  ModelType model_type = ModelType::kUnigram;
  bool byte_fallback = false;
  bool whitespace_is_suffix = false;
  bool maps_characters = false;  // has a table of normalizations
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::vector<Piece> pieces;  // by id; texts point into the file
};

// nullopt: not such a file.
std::optional<SentencePieceFile> ReadSentencePieceFile(std::string_view serialized);

}  // namespace longhaul
