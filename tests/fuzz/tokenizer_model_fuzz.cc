// libFuzzer: any bytes as tokenizer.model. Either an error, or a tokenizer that encodes and decodes.
#include <cstdint>
#include <cstdlib>

#include "server/text/sentencepiece_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longhaul;
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto tokenizer =
      SentencePieceTokenizer::Create("tokenizer.model", file, SpecialConfig(), /*n_threads=*/1);
  if (!tokenizer.ok()) return 0;
  for (const SpecialTokens special : {SpecialTokens::kText, SpecialTokens::kParse}) {
    const auto ids =
        (*tokenizer)->Encode("The caf\u00e9's 12345 <s> \u65e5\u672c \n\n ab", true, special);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
    }
    (*tokenizer)->Decode(*ids);
  }
  return 0;
}
