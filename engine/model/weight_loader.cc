#include "engine/model/weight_loader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/host_memory.h"

namespace longhaul {
namespace {

std::optional<DType> WeightDType(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  return std::nullopt;
}

void CopyAsF32(const StoredTensor& tensor, float* out) {
  const int64_t n = tensor.shape[0];
  const std::byte* data = tensor.data.data();
  if (tensor.dtype == "F32") {
    std::memcpy(out, data, n * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + i * sizeof(bits), sizeof(bits));
    out[i] = tensor.dtype == "BF16" ? ToF32(BF16{bits}) : ToF32(F16{bits});
  }
}

}  // namespace

absl::Status WeightLoader::Expect(const std::string& name, std::vector<int64_t> shape) {
  const auto it = checkpoint_.tensors().find(name);
  if (it == checkpoint_.tensors().end()) {
    return absl::InvalidArgumentError(
        fmt::format("the checkpoint has no tensor '{}' (shape [{}]), which config.json asks for",
                    name, fmt::join(shape, ", ")));
  }
  const StoredTensor& tensor = it->second;
  if (tensor.shape != shape) {
    return absl::InvalidArgumentError(
        fmt::format("tensor '{}' has shape [{}], config.json asks for [{}]", name,
                    fmt::join(tensor.shape, ", "), fmt::join(shape, ", ")));
  }
  if (!WeightDType(tensor.dtype)) {
    return absl::InvalidArgumentError(fmt::format(
        "tensor '{}' is of type {}; weights must be F32, BF16 or F16", name, tensor.dtype));
  }
  expected_.insert(name);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> WeightLoader::CountRows(const std::string& name, int64_t most,
                                                int64_t n_columns) const {
  const auto it = checkpoint_.tensors().find(name);
  if (it == checkpoint_.tensors().end()) {
    return absl::InvalidArgumentError(fmt::format(
        "the checkpoint has no tensor '{}' (shape [1 to {}, {}]), which config.json asks for", name,
        most, n_columns));
  }
  const std::vector<int64_t>& shape = it->second.shape;
  if (shape.size() == 2 && shape[0] >= 1 && shape[0] <= most && shape[1] == n_columns) {
    return shape[0];
  }
  return absl::InvalidArgumentError(
      fmt::format("tensor '{}' has shape [{}], config.json asks for [1 to {}, {}]", name,
                  fmt::join(shape, ", "), most, n_columns));
}

absl::Status WeightLoader::CheckNothingElse() const {
  for (const auto& [name, tensor] : checkpoint_.tensors()) {
    if (!expected_.contains(name) && !ignored_.contains(name)) {
      return absl::InvalidArgumentError(
          fmt::format("tensor '{}' (shape [{}]) is no part of the model that config.json describes",
                      name, fmt::join(tensor.shape, ", ")));
    }
  }
  return absl::OkStatus();
}

int64_t WeightLoader::ExpectedParameters() const {
  int64_t n = 0;
  for (const std::string& name : expected_) {
    const StoredTensor& tensor = Stored(name);
    n += static_cast<int64_t>(tensor.data.size() / DTypeBytes(*WeightDType(tensor.dtype)));
  }
  return n;
}

absl::Status WeightLoader::OpenCache(const std::string& dir, const std::string& key) {
  const std::string layout = backend_.PackedLayoutName();
  if (layout.empty()) {
    spdlog::warn("the weight cache is not used: {} keeps no packed weights",
                 backend_.Description());
    return absl::OkStatus();
  }
  const std::string full_key =
      fmt::format("{}|{}|{}|{:016x}|{:016x}", layout, format_ ? WeightFormatName(*format_) : "auto",
                  key, checkpoint_.Digest(), checkpoint_.FileStamp());
  const std::string path = WeightCachePath(dir, full_key);
  absl::StatusOr<WeightCacheReader> reader = WeightCacheReader::Open(path, full_key);
  if (reader.ok()) {
    spdlog::info("packed weights are mapped from {}", path);
    cache_reader_ = *std::move(reader);
    return absl::OkStatus();
  }
  if (!absl::IsNotFound(reader.status())) {
    spdlog::warn("weight cache: {}; it is written again", std::string(reader.status().message()));
  }
  LH_ASSIGN_OR_RETURN(WeightCacheWriter writer, WeightCacheWriter::Create(path, full_key));
  cache_writer_.emplace(std::move(writer));
  return absl::OkStatus();
}

void WeightLoader::KeepPacked(const PackedMatrixId& id, const LinearWeight& weight) {
  if (!cache_writer_) return;
  const absl::Status status = cache_writer_->Add(id, weight.packed);
  if (status.ok()) return;
  spdlog::warn("weight cache: {}; it is not kept", std::string(status.message()));
  cache_writer_.reset();
}

void WeightLoader::FinishCache() {
  if (!cache_writer_) return;
  const absl::Status status = cache_writer_->Commit();
  if (!status.ok()) {
    spdlog::warn("weight cache: {}; it is not kept", std::string(status.message()));
  }
  cache_writer_.reset();
}

std::shared_ptr<const MappedFile> WeightLoader::packed_file() const {
  return cache_reader_ ? cache_reader_->file() : nullptr;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> WeightLoader::Linear(
    const std::vector<std::string>& names, std::span<const int64_t> order) {
  const bool bf16 = backend_.activation_dtype() == DType::kBF16 || Stored(names[0]).dtype == "BF16";
  return Prepare(names, order, format_.value_or(bf16 ? WeightFormat::kBF16 : WeightFormat::kF32));
}

absl::StatusOr<std::unique_ptr<LinearWeight>> WeightLoader::ExactLinear(const std::string& name) {
  const bool bf16 = backend_.activation_dtype() == DType::kBF16;
  return Prepare({name}, {}, bf16 ? WeightFormat::kBF16 : WeightFormat::kF32);
}

absl::StatusOr<std::unique_ptr<LinearWeight>> WeightLoader::Prepare(
    const std::vector<std::string>& names, std::span<const int64_t> order, WeightFormat format) {
  PackedMatrixId id{.name = fmt::format("{}", fmt::join(names, "+")),
                    .n_in = Stored(names[0]).shape[1],
                    .format = format};
  for (const std::string& name : names) id.n_out += Stored(name).shape[0];
  if (cache_reader_) {
    absl::StatusOr<std::unique_ptr<LinearWeight>> weight =
        backend_.AdoptLinear(id.n_out, id.n_in, format, cache_reader_->Find(id));
    if (weight.ok()) {
      n_bytes_ += (*weight)->n_bytes;
      return weight;
    }
    spdlog::warn("weight cache: {}: {}; packed again", id.name,
                 std::string(weight.status().message()));
  }
  for (const std::string& name : names) checkpoint_.Prefetch(Stored(name));
  LH_ASSIGN_OR_RETURN(const TensorView matrix, Stage(names, order));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<LinearWeight> weight, backend_.PrepareLinear(matrix, format));
  n_bytes_ += weight->n_bytes;
  KeepPacked(id, *weight);
  Advance(names);
  return weight;
}

// Gives the tensors' memory back, and says now and then how far the load is.
void WeightLoader::Advance(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    checkpoint_.Release(Stored(name));
    n_bytes_read_ += static_cast<int64_t>(Stored(name).data.size());
  }
  constexpr auto kInterval = std::chrono::seconds(3);
  const Clock::time_point now = Clock::now();
  if (now - last_report_ < kInterval) return;
  last_report_ = now;
  int64_t n_bytes_total = 0;
  for (const std::string& name : expected_) {
    n_bytes_total += static_cast<int64_t>(Stored(name).data.size());
  }
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double share = static_cast<double>(n_bytes_read_) / static_cast<double>(n_bytes_total);
  spdlog::info("loading weights: {:.0f} % of {:.1f} GiB, about {:.0f} s left", 100 * share,
               static_cast<double>(n_bytes_total) / (1 << 30),
               seconds / share * std::max(0.0, 1 - share));
}

absl::StatusOr<TensorView> WeightLoader::VectorF32(const std::vector<std::string>& names,
                                                   std::span<const int64_t> order) {
  int64_t n = 0;
  for (const std::string& name : names) n += Stored(name).shape[0];
  std::vector<float> stored(n);
  float* out = stored.data();
  for (const std::string& name : names) {
    const StoredTensor& tensor = Stored(name);
    CopyAsF32(tensor, out);
    out += tensor.shape[0];
  }
  if (!order.empty()) {
    LH_CHECK(static_cast<int64_t>(order.size()) == n);
    std::vector<float> ordered(n);
    for (int64_t i = 0; i < n; ++i) ordered[i] = stored[order[i]];
    stored = std::move(ordered);
  }
  LH_ASSIGN_OR_RETURN(std::byte * data,
                      Keep(stored.data(), n * static_cast<int64_t>(sizeof(float))));
  return TensorView(data, DType::kF32, {n});
}

absl::StatusOr<TensorView> WeightLoader::Matrix(const std::string& name) {
  const StoredTensor& tensor = Stored(name);
  LH_ASSIGN_OR_RETURN(std::byte * data,
                      Keep(tensor.data.data(), static_cast<int64_t>(tensor.data.size())));
  return TensorView(data, *WeightDType(tensor.dtype), {tensor.shape[0], tensor.shape[1]});
}

const StoredTensor& WeightLoader::Stored(const std::string& name) const {
  LH_CHECK(expected_.contains(name));
  return checkpoint_.tensors().find(name)->second;
}

absl::StatusOr<std::byte*> WeightLoader::Keep(const void* from, int64_t n_bytes) {
  LH_ASSIGN_OR_RETURN(Buffer buffer, backend_.Allocate(n_bytes));
  backend_.Upload(from, buffer.data(), n_bytes);
  n_bytes_ += n_bytes;
  buffers_.push_back(std::move(buffer));
  return static_cast<std::byte*>(buffers_.back().data());
}

// One aligned matrix of the named ones. A single one that is aligned and in order is used where it
// is mapped.
absl::StatusOr<TensorView> WeightLoader::Stage(const std::vector<std::string>& names,
                                               std::span<const int64_t> order) {
  const StoredTensor& first = Stored(names[0]);
  const DType dtype = *WeightDType(first.dtype);
  const int64_t n_columns = first.shape[1];
  const size_t row_bytes = static_cast<size_t>(n_columns) * DTypeBytes(dtype);
  std::vector<const std::byte*> rows;  // of all matrices, as stored
  for (const std::string& name : names) {
    const StoredTensor& tensor = Stored(name);
    if (tensor.dtype != first.dtype) {
      return absl::InvalidArgumentError(
          fmt::format("tensor '{}' is {} but '{}' is {}; projections that are fused must agree",
                      names[0], first.dtype, name, tensor.dtype));
    }
    for (int64_t r = 0; r < tensor.shape[0]; ++r)
      rows.push_back(tensor.data.data() + r * row_bytes);
  }
  const auto n_rows = static_cast<int64_t>(rows.size());
  std::byte* data = const_cast<std::byte*>(first.data.data());
  const bool aligned = reinterpret_cast<uintptr_t>(data) % DTypeBytes(dtype) == 0;
  if (names.size() > 1 || !order.empty() || !aligned) {
    LH_CHECK(order.empty() || static_cast<int64_t>(order.size()) == n_rows);
    const size_t n_bytes = static_cast<size_t>(n_rows) * row_bytes;
    if (staging_.n_bytes() < n_bytes) {
      LH_ASSIGN_OR_RETURN(staging_, AllocateHost(static_cast<int64_t>(n_bytes)));
    }
    data = static_cast<std::byte*>(staging_.data());
    for (int64_t r = 0; r < n_rows; ++r) {
      std::memcpy(data + r * row_bytes, rows[order.empty() ? r : order[r]], row_bytes);
    }
  }
  return TensorView(data, dtype, {n_rows, n_columns});
}

}  // namespace longhaul
