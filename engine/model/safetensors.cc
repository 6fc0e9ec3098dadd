#include "engine/model/safetensors.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // of the reference implementation
constexpr int64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxDims = 8;

struct FileDType {
  std::string_view name;
  int64_t n_bytes;
};

// Types of the format, not only those we compute with: a checkpoint may carry an I64 buffer that is
// never used, and its span must be checked all the same.
constexpr FileDType kFileDTypes[] = {
    {"F64", 8}, {"I64", 8}, {"U64", 8},  {"F32", 4},     {"I32", 4},
    {"U32", 4}, {"F16", 2}, {"BF16", 2}, {"I16", 2},     {"U16", 2},
    {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
};

std::optional<int64_t> FileDTypeBytes(std::string_view name) {
  for (const FileDType& dtype : kFileDTypes) {
    if (dtype.name == name) return dtype.n_bytes;
  }
  return std::nullopt;
}

// A tensor as the header states it, before anything was compared with the file.
struct HeaderEntry {
  std::string name;
  std::string dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<int64_t>> offsets;
};

// Reads the header as a stream of JSON events: duplicate names are seen (a DOM would drop them),
// the depth is bounded by the states, and nothing is built but the entries themselves.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<HeaderEntry> entries;
  std::string error;

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kNames;
        return true;
      case State::kNames:
        state_ = in_metadata_ ? State::kMetadata : State::kFields;
        return true;
      default:
        return Fail("has an object where none belongs");
    }
  }
  bool end_object() override {
    if (state_ == State::kMetadata || state_ == State::kFields) {
      state_ = State::kNames;
      in_metadata_ = false;
    } else {
      state_ = State::kDone;
    }
    return true;
  }
  bool key(string_t& name) override {
    if (state_ == State::kMetadata) return true;
    if (state_ == State::kFields) {
      field_ = name;
      return true;
    }
    in_metadata_ = name == "__metadata__";
    if (!names_.insert(name).second) return Fail(fmt::format("lists '{}' twice", name));
    if (!in_metadata_) entries.push_back({.name = name, .dtype = {}, .shape = {}, .offsets = {}});
    return true;
  }
  bool start_array(std::size_t) override {
    if (state_ != State::kFields) return Fail("has an array where none belongs");
    HeaderEntry& entry = entries.back();
    auto* target = field_ == "shape"          ? &entry.shape
                   : field_ == "data_offsets" ? &entry.offsets
                                              : nullptr;
    if (target == nullptr) return UnknownField();
    if (target->has_value()) return Fail(fmt::format("{}: '{}' is there twice", Where(), field_));
    target->emplace();
    numbers_ = &**target;
    state_ = State::kNumbers;
    return true;
  }
  bool end_array() override {
    state_ = State::kFields;
    return true;
  }
  bool string(string_t& text) override {
    if (state_ == State::kMetadata) return true;
    if (state_ != State::kFields) return WrongType("a string");
    if (field_ != "dtype") return UnknownField();
    if (!entries.back().dtype.empty())
      return Fail(fmt::format("{}: 'dtype' is there twice", Where()));
    entries.back().dtype = text;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (state_ != State::kNumbers) return WrongType("a number");
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) {
      return Fail(fmt::format("{}: '{}' holds {}, which is no size", Where(), field_, value));
    }
    if (numbers_->size() >= kMaxDims) {
      return Fail(fmt::format("{}: '{}' has more than {} numbers", Where(), field_, kMaxDims));
    }
    numbers_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t value) override {
    return Fail(fmt::format("{}: '{}' holds the negative number {}", Where(), field_, value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Fail(fmt::format("{}: '{}' holds {}, which is no size", Where(), field_, text));
  }
  bool null() override { return WrongType("null"); }
  bool boolean(bool) override { return WrongType("a boolean"); }
  bool binary(binary_t&) override { return WrongType("binary data"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return Fail(fmt::format("is not valid JSON at byte {}", position));
  }

 private:
  enum class State { kStart, kNames, kMetadata, kFields, kNumbers, kDone };

  std::string Where() const {
    return entries.empty() ? "before the first tensor"
                           : fmt::format("tensor '{}'", entries.back().name);
  }
  bool Fail(std::string text) {
    if (error.empty()) error = std::move(text);
    return false;
  }
  bool WrongType(std::string_view what) {
    return Fail(fmt::format("{}: {} where none belongs", Where(), what));
  }
  bool UnknownField() {
    return Fail(fmt::format("{}: field '{}' is unknown or of the wrong type", Where(), field_));
  }

  State state_ = State::kStart;
  bool in_metadata_ = false;
  std::string field_;
  std::vector<int64_t>* numbers_ = nullptr;
  std::set<std::string, std::less<>> names_;
};

absl::Status FileError(const std::string& file_name, const std::string& text) {
  return absl::InvalidArgumentError(fmt::format("{}: {}", file_name, text));
}

absl::Status CheckEntry(const HeaderEntry& entry, int64_t n_data_bytes,
                        const std::string& file_name) {
  const auto fail = [&](const std::string& text) {
    return FileError(file_name, fmt::format("tensor '{}': {}", entry.name, text));
  };
  if (entry.dtype.empty() || !entry.shape || !entry.offsets) {
    return fail("needs the fields dtype, shape and data_offsets");
  }
  const std::optional<int64_t> element_bytes = FileDTypeBytes(entry.dtype);
  if (!element_bytes) return fail(fmt::format("dtype '{}' is unknown", entry.dtype));
  if (entry.offsets->size() != 2) return fail("data_offsets must hold two numbers");

  std::optional<int64_t> n_bytes = *element_bytes;
  for (int64_t extent : *entry.shape) {
    n_bytes = CheckedMul(*n_bytes, extent);
    if (!n_bytes) return fail("its shape overflows 64 bits");
  }
  const int64_t begin = (*entry.offsets)[0];
  const int64_t end = (*entry.offsets)[1];
  if (begin > end || end > n_data_bytes) {
    return fail(
        fmt::format("data_offsets [{}, {}] leave the {} bytes of data in the file: it is "
                    "truncated or damaged",
                    begin, end, n_data_bytes));
  }
  if (end - begin != *n_bytes) {
    return fail(
        fmt::format("shape and dtype need {} bytes, data_offsets span {}", *n_bytes, end - begin));
  }
  return absl::OkStatus();
}

// The entries must tile [0, n_data_bytes). Sorts them by position.
absl::Status CheckCoverage(std::vector<HeaderEntry>& entries, int64_t n_data_bytes,
                           const std::string& file_name) {
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return *a.offsets != *b.offsets ? *a.offsets < *b.offsets : a.name < b.name;
  });
  int64_t covered = 0;
  for (const HeaderEntry& entry : entries) {
    const int64_t begin = (*entry.offsets)[0];
    if (begin < covered) {
      return FileError(file_name, fmt::format("tensor '{}' overlaps the one before it by {} bytes",
                                              entry.name, covered - begin));
    }
    if (begin > covered) {
      return FileError(file_name, fmt::format("{} bytes before tensor '{}' belong to no tensor",
                                              begin - covered, entry.name));
    }
    covered = (*entry.offsets)[1];
  }
  if (covered != n_data_bytes) {
    return FileError(file_name, fmt::format("{} bytes behind the last tensor belong to no tensor",
                                            n_data_bytes - covered));
  }
  return absl::OkStatus();
}

std::string FileNameOf(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

// tensor name -> shard file name, from model.safetensors.index.json.
absl::StatusOr<std::map<std::string, std::string>> ParseIndex(std::span<const std::byte> bytes,
                                                              const std::string& file_name) {
  if (static_cast<int64_t>(bytes.size()) > kMaxIndexBytes) {
    return FileError(file_name, fmt::format("has {} bytes, more than the allowed {}", bytes.size(),
                                            kMaxIndexBytes));
  }
  // The parser is iterative, and so is the destructor: depth costs heap, not stack.
  const char* text = reinterpret_cast<const char*>(bytes.data());
  const auto json = nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
  if (json.is_discarded()) return FileError(file_name, "is not valid JSON");
  const auto weight_map = json.is_object() ? json.find("weight_map") : json.end();
  if (weight_map == json.end() || !weight_map->is_object() || weight_map->empty()) {
    return FileError(file_name, "needs an object 'weight_map' with at least one tensor");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string()) {
      return FileError(file_name, fmt::format("'{}' does not name a file", tensor));
    }
    const std::string& name = shard.get_ref<const std::string&>();
    const bool confined = !name.empty() && name.size() <= 255 && name[0] != '.' &&
                          name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    if (!confined) {
      return FileError(
          file_name, fmt::format("'{}' names '{}', which is no file of this folder", tensor, name));
    }
    shards.emplace(tensor, name);
  }
  return shards;
}

}  // namespace

absl::StatusOr<TensorMap> ParseSafetensors(std::span<const std::byte> file,
                                           const std::string& file_name) {
  constexpr int64_t kLengthBytes = 8;
  const int64_t n_file_bytes = static_cast<int64_t>(file.size());
  if (n_file_bytes < kLengthBytes) {
    return FileError(file_name,
                     fmt::format("has {} bytes, too few for a safetensors file: it is "
                                 "truncated (an unfinished download, a Git LFS pointer?)",
                                 n_file_bytes));
  }
  uint64_t n_header_bytes = 0;  // little endian, as every machine we run on
  std::memcpy(&n_header_bytes, file.data(), kLengthBytes);
  if (n_header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return FileError(file_name,
                     fmt::format("states a header of {} bytes, more than the allowed {}: "
                                 "it is not a safetensors file",
                                 n_header_bytes, kMaxHeaderBytes));
  }
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(n_header_bytes);
  if (data_begin > n_file_bytes) {
    return FileError(file_name, fmt::format("states a header of {} bytes but has only {}: it is "
                                            "truncated",
                                            n_header_bytes, n_file_bytes - kLengthBytes));
  }

  const char* header = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(header, header + n_header_bytes, &reader)) {
    return FileError(file_name, fmt::format("its header {}", reader.error));
  }
  const int64_t n_data_bytes = n_file_bytes - data_begin;
  for (const HeaderEntry& entry : reader.entries) {
    LH_RETURN_IF_ERROR(CheckEntry(entry, n_data_bytes, file_name));
  }
  LH_RETURN_IF_ERROR(CheckCoverage(reader.entries, n_data_bytes, file_name));

  TensorMap tensors;
  for (HeaderEntry& entry : reader.entries) {
    const int64_t begin = (*entry.offsets)[0];
    const int64_t end = (*entry.offsets)[1];
    tensors.emplace(std::move(entry.name),
                    StoredTensor{.dtype = std::move(entry.dtype),
                                 .shape = *std::move(entry.shape),
                                 .data = file.subspan(data_begin + begin, end - begin)});
  }
  return tensors;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& model_dir) {
  const std::string single = model_dir + "/model.safetensors";
  const std::string index = model_dir + "/model.safetensors.index.json";
  Checkpoint checkpoint;
  std::error_code ignored;
  if (std::filesystem::exists(single, ignored)) {
    LH_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(single));
    LH_ASSIGN_OR_RETURN(checkpoint.tensors_, ParseSafetensors(file.bytes(), single));
    checkpoint.files_.push_back(std::move(file));
    return checkpoint;
  }
  if (!std::filesystem::exists(index, ignored)) {
    return absl::NotFoundError(
        fmt::format("{} holds neither model.safetensors nor model.safetensors.index.json; give the "
                    "folder of a Hugging Face checkpoint in safetensors format",
                    model_dir));
  }

  LH_ASSIGN_OR_RETURN(const MappedFile index_file, MappedFile::Open(index));
  LH_ASSIGN_OR_RETURN(const auto shard_of, ParseIndex(index_file.bytes(), index));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    const std::string path = model_dir + "/" + shard;
    LH_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    LH_ASSIGN_OR_RETURN(TensorMap tensors, ParseSafetensors(file.bytes(), path));
    for (auto& [name, tensor] : tensors) {
      const auto entry = shard_of.find(name);
      if (entry == shard_of.end() || entry->second != shard) {
        return FileError(path, fmt::format("holds tensor '{}', which {} does not place there", name,
                                           FileNameOf(index)));
      }
      checkpoint.tensors_.emplace(name, std::move(tensor));
    }
    checkpoint.files_.push_back(std::move(file));
  }
  for (const auto& [tensor, shard] : shard_of) {
    if (!checkpoint.tensors_.contains(tensor)) {
      return FileError(
          index, fmt::format("places tensor '{}' in {}, which does not hold it", tensor, shard));
    }
  }
  return checkpoint;
}

Checkpoint Checkpoint::FromTensors(TensorMap tensors) {
  Checkpoint checkpoint;
  checkpoint.tensors_ = std::move(tensors);
  return checkpoint;
}

void Checkpoint::Prefetch(const StoredTensor& tensor) const {
  if (!files_.empty()) PrefetchMapped(tensor.data);
}

void Checkpoint::Release(const StoredTensor& tensor) const {
  if (!files_.empty()) ReleaseMapped(tensor.data);
}

uint64_t Checkpoint::Digest() const {
  // Small tensors whole; of large ones 16 pieces of 4 KiB spread evenly. A changed weight that
  // falls between the pieces is not seen; a fine-tuned checkpoint differs nearly everywhere.
  constexpr size_t kWholeBytes = 64 << 10;
  constexpr size_t kPieceBytes = 4 << 10;
  constexpr size_t kPieces = kWholeBytes / kPieceBytes;
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  const auto add = [&](const void* data, size_t n_bytes) {
    if (n_bytes > 0) XXH3_64bits_update(state, data, n_bytes);
  };
  for (const auto& [name, tensor] : tensors_) {
    add(name.c_str(), name.size() + 1);
    add(tensor.dtype.c_str(), tensor.dtype.size() + 1);
    const uint64_t rank = tensor.shape.size();
    add(&rank, sizeof(rank));
    add(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
    const std::span<const std::byte> data = tensor.data;
    if (data.size() <= kWholeBytes) {
      add(data.data(), data.size());
      continue;
    }
    for (size_t i = 0; i < kPieces; ++i) {
      const size_t begin = (data.size() - kPieceBytes) / (kPieces - 1) * i;
      add(data.data() + begin, kPieceBytes);
    }
  }
  const uint64_t digest = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return digest;
}

uint64_t Checkpoint::FileStamp() const {
  uint64_t stamp = 0;
  for (const MappedFile& file : files_) {
    const int64_t fields[] = {static_cast<int64_t>(file.bytes().size()), file.modified_ns()};
    stamp = XXH3_64bits_withSeed(fields, sizeof(fields), stamp);
  }
  return stamp;
}

}  // namespace longhaul
