#include "server/text/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <exception>

namespace longhaul {

SentencePieceModel::SentencePieceModel(
    std::unique_ptr<sentencepiece::SentencePieceProcessor> processor)
    : processor_(std::move(processor)) {}
SentencePieceModel::~SentencePieceModel() = default;

std::unique_ptr<SentencePieceModel> SentencePieceModel::Load(std::string_view serialized,
                                                             std::string* error) {
  try {
    auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
    if (const auto status = processor->LoadFromSerializedProto(serialized); !status.ok()) {
      *error = status.ToString();
      return nullptr;
    }
    return std::unique_ptr<SentencePieceModel>(new SentencePieceModel(std::move(processor)));
  } catch (const std::exception& e) {
    *error = e.what();
    return nullptr;
  }
}

bool SentencePieceModel::Encode(std::string_view text, std::vector<int32_t>* ids,
                                std::string* error) const {
  std::vector<int> result;
  if (const auto status = processor_->Encode(text, &result); !status.ok()) {
    *error = status.ToString();
    return false;
  }
  ids->insert(ids->end(), result.begin(), result.end());
  return true;
}

int32_t SentencePieceModel::n_pieces() const { return processor_->GetPieceSize(); }
const std::string& SentencePieceModel::Piece(int32_t id) const { return processor_->IdToPiece(id); }
int32_t SentencePieceModel::bos_id() const { return processor_->bos_id(); }
int32_t SentencePieceModel::eos_id() const { return processor_->eos_id(); }

SentencePieceModel::PieceKind SentencePieceModel::Kind(int32_t id) const {
  if (processor_->IsControl(id)) return PieceKind::kControl;
  if (processor_->IsUnknown(id)) return PieceKind::kUnknown;
  if (processor_->IsByte(id)) return PieceKind::kByte;
  if (processor_->IsUnused(id)) return PieceKind::kUnused;
  return PieceKind::kNormal;
}

}  // namespace longhaul
