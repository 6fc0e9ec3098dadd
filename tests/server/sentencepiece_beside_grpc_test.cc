// libsentencepiece and gRPC bring two versions of protobuf. This program links everything the server
// links, and must load a sentencepiece model all the same.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "server/text/tokenizer.h"

namespace longhaul {
namespace {

TEST(SentencePieceBesideGrpc, EncodesAndDecodes) {
  EXPECT_FALSE(grpc::Version().empty());  // gRPC, and with it the newer protobuf, is loaded
  const auto tokenizer = LoadTokenizer("tests/golden/tokenizers/spm_bpe", /*n_threads=*/1);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "the river and the mountain";
  const auto ids = (*tokenizer)->Encode(text, /*add_bos=*/false, SpecialTokens::kText);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_GT(ids->size(), 0u);
  EXPECT_EQ((*tokenizer)->Decode(*ids), text);
}

}  // namespace
}  // namespace longhaul
