// Checkpoint: the tensors of a Hugging Face folder, memory-mapped: model.safetensors, or the shards
// named by model.safetensors.index.json. Every header field is checked against the file before a
// pointer is handed out: a truncated, overlapping or lying file is an error naming file and tensor.
//
// Read once while a model loads, from one thread; tensors point into the mapping and die with it.
// It does not convert, and does not know which tensors a model needs (weights.h does).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/mapped_file.h"
#include "kernels/base/status.h"

namespace longhaul {

// One tensor as a file stores it. `data` has no alignment: the format promises none.
struct StoredTensor {
  std::string dtype;           // as in the file: "F32", "BF16", "F16", "I64", ...
  std::vector<int64_t> shape;  // every extent >= 0; the product times the size fits the file
  std::span<const std::byte> data;
};

using TensorMap = std::map<std::string, StoredTensor, std::less<>>;

// Parses one safetensors file that is already in memory. `file_name` only appears in errors.
// Caps: header 100 MB, 8 dimensions, JSON depth 3. Requires, like the reference implementation,
// that the tensors cover the data section exactly: no overlap, no gap, nothing behind the last one.
absl::StatusOr<TensorMap> ParseSafetensors(std::span<const std::byte> file,
                                           const std::string& file_name);

class Checkpoint {
 public:
  // NotFound when the folder holds neither model.safetensors nor an index; InvalidArgument for a
  // file that is not what it says, for shard names that leave the folder, and for an index that
  // disagrees with its shards.
  static absl::StatusOr<Checkpoint> Open(const std::string& model_dir);

  // Tensors of the caller's, whose data outlives this object: a model made in memory.
  static Checkpoint FromTensors(TensorMap tensors);

  const TensorMap& tensors() const { return tensors_; }
  // Hints about the data of tensors, see mapped_file.h; nothing for tensors that are not in files.
  void Prefetch(const StoredTensor& tensor) const;
  void Release(const StoredTensor& tensor) const;
  int64_t n_files() const { return static_cast<int64_t>(files_.size()); }

  // Hash over names, types, shapes and samples of the data of every tensor: tells checkpoints of
  // one architecture apart without reading them whole. Independent of file names and sharding.
  uint64_t Digest() const;
  // Hash over the sizes and times of change of the files: what Digest may overlook, but for files
  // that are copied it changes too.
  uint64_t FileStamp() const;

 private:
  std::vector<MappedFile> files_;
  TensorMap tensors_;
};

}  // namespace longhaul
