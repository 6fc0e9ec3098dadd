// See module_api.h. Nothing but the sentencepiece library is used here: its header defines names in
// namespace absl that clash with the real absl.

#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/text/sentencepiece/module_api.h"

namespace longhaul::spm {
namespace {

using sentencepiece::SentencePieceProcessor;

const SentencePieceProcessor& Processor(const void* model) {
  return *static_cast<const SentencePieceProcessor*>(model);
}

void* Load(const char* model, size_t n_bytes, char* error, size_t error_bytes) {
  try {
    auto processor = std::make_unique<SentencePieceProcessor>();
    const auto status = processor->LoadFromSerializedProto(std::string_view(model, n_bytes));
    if (status.ok()) return processor.release();
    std::snprintf(error, error_bytes, "%s", status.ToString().c_str());
  } catch (const std::exception& e) {
    std::snprintf(error, error_bytes, "%s", e.what());
  }
  return nullptr;
}

void Destroy(void* model) { delete static_cast<SentencePieceProcessor*>(model); }

bool Encode(const void* model, const char* text, size_t n_bytes,
            void (*sink)(void*, const int32_t*, size_t), void* context, char* error,
            size_t error_bytes) {
  std::vector<int> ids;
  try {
    const auto status = Processor(model).Encode(std::string_view(text, n_bytes), &ids);
    if (!status.ok()) {
      std::snprintf(error, error_bytes, "%s", status.ToString().c_str());
      return false;
    }
  } catch (const std::exception& e) {
    std::snprintf(error, error_bytes, "%s", e.what());
    return false;
  }
  static_assert(sizeof(int) == sizeof(int32_t));
  sink(context, ids.data(), ids.size());
  return true;
}

int32_t NPieces(const void* model) { return Processor(model).GetPieceSize(); }

const char* Piece(const void* model, int32_t id, size_t* n_bytes) {
  const std::string& piece = Processor(model).IdToPiece(id);
  *n_bytes = piece.size();
  return piece.data();
}

PieceKind Kind(const void* model, int32_t id) {
  const SentencePieceProcessor& processor = Processor(model);
  if (processor.IsControl(id)) return PieceKind::kControl;
  if (processor.IsUnknown(id)) return PieceKind::kUnknown;
  if (processor.IsByte(id)) return PieceKind::kByte;
  if (processor.IsUnused(id)) return PieceKind::kUnused;
  return PieceKind::kNormal;
}

int32_t BosId(const void* model) { return Processor(model).bos_id(); }
int32_t EosId(const void* model) { return Processor(model).eos_id(); }

constexpr ModuleApi kApi = {.load = Load,
                            .destroy = Destroy,
                            .encode = Encode,
                            .n_pieces = NPieces,
                            .piece = Piece,
                            .kind = Kind,
                            .bos_id = BosId,
                            .eos_id = EosId};

}  // namespace
}  // namespace longhaul::spm

extern "C" const longhaul::spm::ModuleApi* LonghaulSentencePieceApi() {
  return &longhaul::spm::kApi;
}
