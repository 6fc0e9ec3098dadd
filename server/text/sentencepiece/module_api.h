// The C interface of the sentencepiece module, a shared object of its own: Debian's libsentencepiece
// exports the symbols of the protobuf it was built with, gRPC needs a newer one, and in one symbol
// scope whichever is loaded first breaks the other. The module is loaded with dlopen into a scope
// of its own (see sentencepiece_model.cc), so only plain C types cross.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longhaul::spm {

enum class PieceKind : int32_t { kNormal, kControl, kUnknown, kByte, kUnused };

// Functions that can fail write a text of at most error_bytes (ended by 0) and return null or false.
struct ModuleApi {
  void* (*load)(const char* model, size_t n_bytes, char* error, size_t error_bytes);
  void (*destroy)(void* model);
  // Calls sink(context, ids, n_ids) once.
  bool (*encode)(const void* model, const char* text, size_t n_bytes,
                 void (*sink)(void* context, const int32_t* ids, size_t n_ids), void* context,
                 char* error, size_t error_bytes);
  int32_t (*n_pieces)(const void* model);
  const char* (*piece)(const void* model, int32_t id, size_t* n_bytes);  // owned by the model
  PieceKind (*kind)(const void* model, int32_t id);
  int32_t (*bos_id)(const void* model);  // -1 = none
  int32_t (*eos_id)(const void* model);
};

inline constexpr char kModuleFile[] = "liblonghaul_sentencepiece.so";
inline constexpr char kModuleEntry[] = "LonghaulSentencePieceApi";  // const ModuleApi* ()

}  // namespace longhaul::spm
