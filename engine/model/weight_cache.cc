#include "engine/model/weight_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace longhaul {
namespace {

constexpr char kMagic[8] = {'L', 'H', 'P', 'A', 'C', 'K', 'E', 'D'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kAlignment = 64;
constexpr uint64_t kMaxMatrices = 1 << 20;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t n_matrices;
  uint64_t key_hash;
  uint64_t index_offset;  // the index ends the file
  uint64_t file_bytes;
  uint64_t index_checksum;
  uint64_t reserved;
  uint64_t header_checksum;  // of all fields before it
};
static_assert(sizeof(Header) == kAlignment);
static_assert(sizeof(PackedMatrixEntry) == 32);

uint64_t HashText(const std::string& text) { return XXH3_64bits(text.data(), text.size()); }

uint64_t HashId(const PackedMatrixId& id) {
  return HashText(
      fmt::format("{}|{}|{}|{}", id.name, id.n_out, id.n_in, WeightFormatName(id.format)));
}

uint64_t HeaderChecksum(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, header_checksum));
}

absl::Status Refuse(const std::string& path, const std::string& why) {
  return absl::FailedPreconditionError(fmt::format("{} {}", path, why));
}

absl::Status SystemError(const std::string& what, const std::string& path, int error) {
  return absl::FailedPreconditionError(
      fmt::format("cannot {} {}: {}", what, path, std::strerror(error)));
}

// The header, when it and the sizes in it fit the file and the key.
absl::StatusOr<Header> ReadHeader(std::span<const std::byte> file, const std::string& path,
                                  const std::string& key) {
  Header header;
  if (file.size() < sizeof(header)) return Refuse(path, "is truncated");
  std::memcpy(&header, file.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return Refuse(path, "is no weight cache");
  }
  if (header.version != kVersion) {
    return Refuse(path, fmt::format("has version {}, not {}", header.version, kVersion));
  }
  if (header.header_checksum != HeaderChecksum(header)) return Refuse(path, "has a damaged header");
  if (header.key_hash != HashText(key)) return Refuse(path, "was written for another model");
  const uint64_t index_bytes = uint64_t{header.n_matrices} * sizeof(PackedMatrixEntry);
  if (header.n_matrices > kMaxMatrices || header.file_bytes != file.size() ||
      header.index_offset > file.size() || file.size() - header.index_offset != index_bytes) {
    return Refuse(path,
                  fmt::format("is truncated: {} bytes, not {}", file.size(), header.file_bytes));
  }
  if (XXH3_64bits(file.data() + header.index_offset, index_bytes) != header.index_checksum) {
    return Refuse(path, "has a damaged index");
  }
  return header;
}

}  // namespace

std::string WeightCachePath(const std::string& dir, const std::string& key) {
  return fmt::format("{}/{:016x}.packed", dir, HashText(key));
}

absl::StatusOr<WeightCacheReader> WeightCacheReader::Open(const std::string& path,
                                                          const std::string& key) {
  LH_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  WeightCacheReader reader;
  reader.file_ = std::make_shared<const MappedFile>(std::move(mapped));
  const std::span<const std::byte> file = reader.file_->bytes();
  LH_ASSIGN_OR_RETURN(const Header header, ReadHeader(file, path, key));
  for (uint32_t i = 0; i < header.n_matrices; ++i) {
    PackedMatrixEntry entry;
    std::memcpy(&entry, file.data() + header.index_offset + i * sizeof(entry), sizeof(entry));
    const bool inside = entry.offset >= sizeof(Header) && entry.offset % kAlignment == 0 &&
                        entry.offset <= header.index_offset &&
                        entry.n_bytes <= header.index_offset - entry.offset;
    if (!inside) return Refuse(path, "has a damaged index");
    const std::span<const std::byte> bytes = file.subspan(entry.offset, entry.n_bytes);
    if (XXH3_64bits(bytes.data(), bytes.size()) != entry.checksum) {
      return Refuse(path, fmt::format("is damaged in matrix {} of {}", i + 1, header.n_matrices));
    }
    reader.matrices_.emplace(entry.id_hash, bytes);
  }
  return reader;
}

std::span<const std::byte> WeightCacheReader::Find(const PackedMatrixId& id) const {
  const auto it = matrices_.find(HashId(id));
  return it == matrices_.end() ? std::span<const std::byte>() : it->second;
}

absl::StatusOr<WeightCacheWriter> WeightCacheWriter::Create(const std::string& path,
                                                            const std::string& key) {
  const std::filesystem::path dir = std::filesystem::path(path).parent_path();
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return SystemError("make the folder", dir.string(), error.value());
  std::string temporary = fmt::format("{}.{}.tmp", path, getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError("write", temporary, errno);
  return WeightCacheWriter(path, std::move(temporary), HashText(key), fd);
}

WeightCacheWriter::WeightCacheWriter(std::string path, std::string temporary, uint64_t key_hash,
                                     int fd)
    : path_(std::move(path)),
      temporary_(std::move(temporary)),
      key_hash_(key_hash),
      fd_(fd),
      end_bytes_(sizeof(Header)) {}

WeightCacheWriter::WeightCacheWriter(WeightCacheWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      key_hash_(other.key_hash_),
      fd_(std::exchange(other.fd_, -1)),
      end_bytes_(other.end_bytes_),
      index_(std::move(other.index_)) {}

WeightCacheWriter::~WeightCacheWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

absl::Status WeightCacheWriter::Write(const void* data, size_t n_bytes, uint64_t offset) {
  const auto* from = static_cast<const char*>(data);
  while (n_bytes > 0) {
    const ssize_t written = pwrite(fd_, from, n_bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return SystemError("write", temporary_, written < 0 ? errno : ENOSPC);
    from += written;
    offset += static_cast<uint64_t>(written);
    n_bytes -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::Status WeightCacheWriter::Add(const PackedMatrixId& id, std::span<const std::byte> bytes) {
  index_.push_back({.id_hash = HashId(id),
                    .offset = end_bytes_,
                    .n_bytes = bytes.size(),
                    .checksum = XXH3_64bits(bytes.data(), bytes.size())});
  LH_RETURN_IF_ERROR(Write(bytes.data(), bytes.size(), end_bytes_));
  end_bytes_ += (bytes.size() + kAlignment - 1) / kAlignment * kAlignment;
  return absl::OkStatus();
}

absl::Status WeightCacheWriter::Commit() {
  const size_t index_bytes = index_.size() * sizeof(PackedMatrixEntry);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.n_matrices = static_cast<uint32_t>(index_.size());
  header.key_hash = key_hash_;
  header.index_offset = end_bytes_;
  header.file_bytes = end_bytes_ + index_bytes;
  header.index_checksum = XXH3_64bits(index_.data(), index_bytes);
  header.header_checksum = HeaderChecksum(header);
  LH_RETURN_IF_ERROR(Write(index_.data(), index_bytes, end_bytes_));
  LH_RETURN_IF_ERROR(Write(&header, sizeof(header), 0));
  if (fsync(fd_) != 0) return SystemError("write", temporary_, errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return SystemError("write", path_, errno);
  close(std::exchange(fd_, -1));
  return absl::OkStatus();
}

}  // namespace longhaul
