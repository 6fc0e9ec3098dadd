#include "server/text/sentencepiece_model.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace longhaul {
namespace {

constexpr size_t kErrorBytes = 512;

// RTLD_DEEPBIND: the module and the libraries it needs look for symbols among themselves first.
// The address sanitizer cannot be combined with it; its builds load the module plainly, which is
// right as long as gRPC is not in the same program.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kLoadFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr int kLoadFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;
#else
constexpr int kLoadFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE | RTLD_DEEPBIND;
#endif
#else
constexpr int kLoadFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE | RTLD_DEEPBIND;
#endif

absl::StatusOr<const spm::ModuleApi*> LoadModule() {
  void* module = dlopen(spm::kModuleFile, kLoadFlags);
  void* entry = module == nullptr ? nullptr : dlsym(module, spm::kModuleEntry);
  if (entry == nullptr) {
    const char* reason = dlerror();
    return absl::UnavailableError(
        fmt::format("sentencepiece tokenizers need the module {} of this installation, and it does "
                    "not load: {}",
                    spm::kModuleFile, reason == nullptr ? "unknown reason" : reason));
  }
  return reinterpret_cast<const spm::ModuleApi* (*)()>(entry)();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SentencePieceModel>> SentencePieceModel::Load(
    std::string_view serialized) {
  LH_ASSIGN_OR_RETURN(const spm::ModuleApi* api, LoadModule());
  std::string error(kErrorBytes, '\0');
  void* model = api->load(serialized.data(), serialized.size(), error.data(), error.size());
  if (model == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("not a sentencepiece model: {}; is the file complete?", error.c_str()));
  }
  return std::unique_ptr<SentencePieceModel>(new SentencePieceModel(api, model));
}

SentencePieceModel::~SentencePieceModel() { api_->destroy(model_); }

bool SentencePieceModel::Encode(std::string_view text, std::vector<int32_t>* ids,
                                std::string* error) const {
  const auto append = [](void* context, const int32_t* first, size_t n_ids) {
    auto* result = static_cast<std::vector<int32_t>*>(context);
    result->insert(result->end(), first, first + n_ids);
  };
  std::string reason(kErrorBytes, '\0');
  if (api_->encode(model_, text.data(), text.size(), append, ids, reason.data(), reason.size())) {
    return true;
  }
  *error = reason.c_str();
  return false;
}

std::string SentencePieceModel::Piece(int32_t id) const {
  size_t n_bytes = 0;
  const char* piece = api_->piece(model_, id, &n_bytes);
  return std::string(piece, n_bytes);
}

}  // namespace longhaul
