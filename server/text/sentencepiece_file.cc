#include "server/text/sentencepiece_file.h"

#include <cstring>

#include "server/text/special_config.h"

namespace longhaul {
namespace {

// Fields of one protobuf message, one after the other.
class WireReader {
 public:
  explicit WireReader(std::string_view message) : rest_(message) {}

  // False at the end, and where the message is broken.
  bool Next() {
    uint64_t key = 0;
    if (rest_.empty()) return false;
    if (!ReadVarint(&key)) return Fail();
    field_ = key >> 3;
    value_ = 0;
    bytes_ = {};
    switch (key & 7) {
      case 0:
        return ReadVarint(&value_) || Fail();
      case 1:
        return Take(8) || Fail();
      case 2:
        return (ReadVarint(&value_) && Take(value_)) || Fail();
      case 5:
        return Take(4) || Fail();
      default:
        return Fail();
    }
  }

  bool failed() const { return failed_; }
  uint64_t field() const { return field_; }
  uint64_t value() const { return value_; }          // of a number
  std::string_view bytes() const { return bytes_; }  // of a string or a message
  float AsFloat() const {
    float number = 0;
    if (bytes_.size() == sizeof(number)) std::memcpy(&number, bytes_.data(), sizeof(number));
    return number;
  }

 private:
  bool ReadVarint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  bool Take(uint64_t n_bytes) {
    if (n_bytes > rest_.size()) return false;
    bytes_ = rest_.substr(0, n_bytes);
    rest_.remove_prefix(n_bytes);
    return true;
  }

  bool Fail() {
    failed_ = true;
    return false;
  }

  std::string_view rest_;
  uint64_t field_ = 0;
  uint64_t value_ = 0;
  std::string_view bytes_;
  bool failed_ = false;
};

bool ReadPiece(std::string_view message, SentencePieceFile* file) {
  SentencePieceFile::Piece piece;
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.field() == 1) piece.text = reader.bytes();
    if (reader.field() == 2) piece.score = reader.AsFloat();
    if (reader.field() == 3) {
      piece.type = static_cast<SentencePieceFile::PieceType>(reader.value());
    }
  }
  if (reader.failed() || file->pieces.size() == static_cast<size_t>(kMaxVocab)) return false;
  file->pieces.push_back(piece);
  return true;
}

bool ReadTrainer(std::string_view message, SentencePieceFile* file) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.field() == 3) {
      file->model_type = static_cast<SentencePieceFile::ModelType>(reader.value());
    }
    if (reader.field() == 24) file->whitespace_is_suffix = reader.value() != 0;
    if (reader.field() == 35) file->byte_fallback = reader.value() != 0;
  }
  return !reader.failed();
}

bool ReadNormalizer(std::string_view message, SentencePieceFile* file) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.field() == 2) file->maps_characters = !reader.bytes().empty();
    if (reader.field() == 3) file->add_dummy_prefix = reader.value() != 0;
    if (reader.field() == 4) file->remove_extra_whitespaces = reader.value() != 0;
    if (reader.field() == 5) file->escape_whitespaces = reader.value() != 0;
  }
  return !reader.failed();
}

}  // namespace

std::optional<SentencePieceFile> ReadSentencePieceFile(std::string_view serialized) {
  SentencePieceFile file;
  WireReader reader(serialized);
  bool good = true;
  while (good && reader.Next()) {
    if (reader.field() == 1) good = ReadPiece(reader.bytes(), &file);
    if (reader.field() == 2) good = ReadTrainer(reader.bytes(), &file);
    if (reader.field() == 3) good = ReadNormalizer(reader.bytes(), &file);
  }
  if (!good || reader.failed()) return std::nullopt;
  return file;
}

}  // namespace longhaul
