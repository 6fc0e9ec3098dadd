// WeightLoader: copies tensors out of a checkpoint into backend memory. Every tensor is declared
// with its shape first; what is declared is there and fits, so later uses cannot fail on the file.
// Lives while a model loads, on one thread. Knows no architecture.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/safetensors.h"
#include "engine/model/weight_cache.h"
#include "kernels/backend.h"

namespace longhaul {

class WeightLoader {
 public:
  // Both must outlive this object. format: see WeightOptions.
  WeightLoader(const Checkpoint& checkpoint, Backend& backend, std::optional<WeightFormat> format)
      : checkpoint_(checkpoint), backend_(backend), format_(format) {}

  // Declares a tensor. InvalidArgument when it is missing, has another shape, or is no F32, BF16 or
  // F16.
  absl::Status Expect(const std::string& name, std::vector<int64_t> shape);
  // Rows of a matrix whose number the checkpoint decides: in [1, most], n_columns wide.
  absl::StatusOr<int64_t> CountRows(const std::string& name, int64_t most, int64_t n_columns) const;
  // Declares a tensor that may be there in any form and is not used.
  void Ignore(const std::string& name) { ignored_.insert(name); }
  // InvalidArgument naming a tensor that was not declared.
  absl::Status CheckNothingElse() const;

  // Matrices packed by an earlier start are taken from the folder, or kept there for the next.
  // `key` names what they depend on besides the checkpoint, the format and the machine. After all
  // tensors were declared, before the first is converted. FailedPrecondition when the folder cannot
  // be written; a file that is damaged is replaced with a warning.
  absl::Status OpenCache(const std::string& dir, const std::string& key);
  // After the last matrix.
  void FinishCache();
  // Bytes that the matrices may point into.
  std::shared_ptr<const MappedFile> packed_file() const;

  // Elements of all declared tensors.
  int64_t ExpectedParameters() const;

  // Matrices with the same number of columns, one below the other. Row r of the result is row
  // order[r] of them; an empty order keeps theirs.
  absl::StatusOr<std::unique_ptr<LinearWeight>> Linear(const std::vector<std::string>& names,
                                                       std::span<const int64_t> order = {});
  // A matrix in the most exact format that the backend computes in.
  absl::StatusOr<std::unique_ptr<LinearWeight>> ExactLinear(const std::string& name);
  // Vectors, one after the other, as f32; ordered like the rows of Linear.
  absl::StatusOr<TensorView> VectorF32(const std::vector<std::string>& names,
                                       std::span<const int64_t> order = {});
  // A matrix in its own dtype.
  absl::StatusOr<TensorView> Matrix(const std::string& name);

  int64_t n_bytes() const { return n_bytes_; }  // of everything made so far
  std::vector<Buffer> TakeBuffers() { return std::move(buffers_); }

 private:
  const StoredTensor& Stored(const std::string& name) const;
  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(const std::vector<std::string>& names,
                                                        std::span<const int64_t> order,
                                                        WeightFormat format);
  void KeepPacked(const PackedMatrixId& id, const LinearWeight& weight);
  void Advance(const std::vector<std::string>& names);
  // A copy in backend memory that lives as long as the model.
  absl::StatusOr<std::byte*> Keep(const void* from, int64_t n_bytes);
  absl::StatusOr<TensorView> Stage(const std::vector<std::string>& names,
                                   std::span<const int64_t> order);

  const Checkpoint& checkpoint_;
  Backend& backend_;
  const std::optional<WeightFormat> format_;
  std::optional<WeightCacheReader> cache_reader_;
  std::optional<WeightCacheWriter> cache_writer_;
  std::set<std::string, std::less<>> expected_;
  std::set<std::string, std::less<>> ignored_;
  Buffer staging_;  // host memory, of the largest matrix so far
  std::vector<Buffer> buffers_;
  int64_t n_bytes_ = 0;

  // Of the log lines.
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_report_ = start_;
  int64_t n_bytes_read_ = 0;  // of the checkpoint
};

}  // namespace longhaul
