// libFuzzer: any bytes as tokenizer.json. Either an error, or a tokenizer that encodes and decodes.
#include <cstdlib>

#include "server/text/hf_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longhaul;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  absl::StatusOr<HfTokenizerSpec> spec = ReadHfTokenizer("tokenizer.json", text, SpecialConfig());
  if (!spec.ok()) return 0;
  const HfTokenizer tokenizer(*std::move(spec), /*n_threads=*/1);
  for (const SpecialTokens special : {SpecialTokens::kText, SpecialTokens::kParse}) {
    const auto ids =
        tokenizer.Encode("The caf\u00e9's 12345 <s> \u65e5\u672c \n\n ab", true, special);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
    }
    tokenizer.Decode(*ids);
  }
  return 0;
}
