// SentencePieceModel: the sentencepiece library behind plain types, loaded as a module of its own
// (sentencepiece/module_api.h says why). Immutable after loading; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/sentencepiece/module_api.h"

namespace longhaul {

class SentencePieceModel {
 public:
  using PieceKind = spm::PieceKind;

  // Unavailable when the module cannot be loaded, InvalidArgument when the library does not accept
  // the bytes.
  static absl::StatusOr<std::unique_ptr<SentencePieceModel>> Load(std::string_view serialized);
  ~SentencePieceModel();
  SentencePieceModel(const SentencePieceModel&) = delete;
  SentencePieceModel& operator=(const SentencePieceModel&) = delete;

  // Appends the ids of `text` as the library gives them. False and *error when it fails.
  bool Encode(std::string_view text, std::vector<int32_t>* ids, std::string* error) const;

  int32_t n_pieces() const { return api_->n_pieces(model_); }
  std::string Piece(int32_t id) const;  // with U+2581 for a space
  PieceKind Kind(int32_t id) const { return api_->kind(model_, id); }
  int32_t bos_id() const { return api_->bos_id(model_); }  // -1 = none
  int32_t eos_id() const { return api_->eos_id(model_); }

 private:
  SentencePieceModel(const spm::ModuleApi* api, void* model) : api_(api), model_(model) {}

  const spm::ModuleApi* api_;  // in the module, which is never unloaded
  void* model_;                // owned
};

}  // namespace longhaul
