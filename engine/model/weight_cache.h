// The packed weights of one model on disk (--weight-cache): written once, mapped by later starts.
//
// A file belongs to one key: checkpoint, weight format and the backend's layout on this machine. It
// is written beside its place and renamed when it is complete, so a file that is there was
// finished; it is checked whole before a byte of it is used, and one that does not pass is built
// again. Nothing here trusts a file: sizes and offsets are checked, and every matrix has a checksum
// (against damage, not against an enemy who can write the folder).
//
// Used while a model loads, on one thread. Little endian, as every machine we run on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/model/mapped_file.h"
#include "kernels/backend.h"

namespace longhaul {

// What identifies a matrix: the stored tensors that it was made of, and its form.
struct PackedMatrixId {
  std::string name;
  int64_t n_out = 0;
  int64_t n_in = 0;
  WeightFormat format = WeightFormat::kF32;
};

// As in the file; the index is an array of these.
struct PackedMatrixEntry {
  uint64_t id_hash;  // of PackedMatrixId
  uint64_t offset;   // a multiple of 64
  uint64_t n_bytes;
  uint64_t checksum;
};

// File of `key` in the folder.
std::string WeightCachePath(const std::string& dir, const std::string& key);

class WeightCacheReader {
 public:
  // NotFound when there is no file; FailedPrecondition, with the reason, for one that is damaged or
  // was written for another key. Reads the whole file.
  static absl::StatusOr<WeightCacheReader> Open(const std::string& path, const std::string& key);

  // The bytes of a matrix, 64-byte aligned; empty when it is not there.
  std::span<const std::byte> Find(const PackedMatrixId& id) const;
  // The file, to be kept as long as bytes of it are used.
  std::shared_ptr<const MappedFile> file() const { return file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::map<uint64_t, std::span<const std::byte>> matrices_;
};

class WeightCacheWriter {
 public:
  // Makes the folder and the temporary file. FailedPrecondition when it cannot.
  static absl::StatusOr<WeightCacheWriter> Create(const std::string& path, const std::string& key);
  WeightCacheWriter(WeightCacheWriter&& other) noexcept;
  WeightCacheWriter& operator=(WeightCacheWriter&&) = delete;
  ~WeightCacheWriter();  // removes what was not committed

  absl::Status Add(const PackedMatrixId& id, std::span<const std::byte> bytes);
  // Makes the file visible under its name.
  absl::Status Commit();

 private:
  WeightCacheWriter(std::string path, std::string temporary, uint64_t key_hash, int fd);
  absl::Status Write(const void* data, size_t n_bytes, uint64_t offset);

  std::string path_;
  std::string temporary_;
  uint64_t key_hash_;
  int fd_;  // -1 afterwards
  uint64_t end_bytes_;
  std::vector<PackedMatrixEntry> index_;
};

}  // namespace longhaul
