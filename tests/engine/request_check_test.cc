#include "engine/request_check.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "engine/sequence.h"
#include "gtest/gtest.h"

namespace longhaul {
namespace {

constexpr RequestLimits kLimits{
    .max_model_len = 1'000, .n_pages = 20, .max_choices = 4, .vocab_size = 100};

Request Good() {
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 10;
  request.stop_token_ids = {0};
  return request;
}

TEST(RequestCheck, AcceptsTheExtremes) {
  Request request = Good();
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
  request.prompt.assign(990, 99);
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
  request.max_tokens = 0;
  request.n = 4;
  request.sampling.temperature = 0;
  request.sampling.min_p = 1;
  request.sampling.n_logprobs = 100;
  request.sampling.logit_bias = {{99, -100.0f}};
  EXPECT_TRUE(CheckRequest(request, kLimits).ok());
}

struct BadCase {
  const char* name;
  std::function<void(Request&)> spoil;
  absl::StatusCode code;
  const char* text;  // must occur in the message
};

class RefusesBad : public ::testing::TestWithParam<BadCase> {};

TEST_P(RefusesBad, WithATextThatSaysWhat) {
  Request request = Good();
  GetParam().spoil(request);
  const absl::Status status = CheckRequest(request, kLimits);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_NE(status.ToString().find(GetParam().text), std::string::npos) << status;
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kRange = absl::StatusCode::kOutOfRange;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    All, RefusesBad,
    ::testing::Values(
        BadCase{"EmptyPrompt", [](Request& r) { r.prompt.clear(); }, kInvalid, "empty"},
        BadCase{"TokenTooLarge", [](Request& r) { r.prompt[1] = 100; }, kInvalid,
                "token 1 has id 100"},
        BadCase{"TokenNegative", [](Request& r) { r.prompt[2] = -1; }, kInvalid,
                "token 2 has id -1"},
        BadCase{"TooLong", [](Request& r) { r.max_tokens = 998; }, kRange, "998"},
        BadCase{"HugeMaxTokens",
                [](Request& r) { r.max_tokens = std::numeric_limits<int64_t>::max(); }, kRange,
                "1000 tokens"},
        BadCase{"NegativeMaxTokens", [](Request& r) { r.max_tokens = -1; }, kInvalid, "max_tokens"},
        BadCase{"TooManyPages",
                [](Request& r) {
                  r.n = 4;
                  r.max_tokens = 900;
                },
                kRange, "the whole cache has 20"},
        BadCase{"NoChoice", [](Request& r) { r.n = 0; }, kInvalid, "n is 0"},
        BadCase{"ManyChoices", [](Request& r) { r.n = 5; }, kInvalid, "[1, 4]"},
        BadCase{"Temperature", [](Request& r) { r.sampling.temperature = -0.1f; }, kInvalid,
                "temperature"},
        BadCase{"TemperatureNan", [](Request& r) { r.sampling.temperature = kNan; }, kInvalid,
                "temperature"},
        BadCase{"TopK", [](Request& r) { r.sampling.top_k = -1; }, kInvalid, "top_k"},
        BadCase{"TopP", [](Request& r) { r.sampling.top_p = 0; }, kInvalid, "top_p"},
        BadCase{"TopPNan", [](Request& r) { r.sampling.top_p = kNan; }, kInvalid, "top_p"},
        BadCase{"MinP", [](Request& r) { r.sampling.min_p = 1.5f; }, kInvalid, "min_p"},
        BadCase{"Repetition", [](Request& r) { r.sampling.repetition_penalty = 0; }, kInvalid,
                "repetition_penalty"},
        BadCase{"Presence", [](Request& r) { r.sampling.presence_penalty = 3; }, kInvalid,
                "presence_penalty"},
        BadCase{"Frequency", [](Request& r) { r.sampling.frequency_penalty = kNan; }, kInvalid,
                "frequency_penalty"},
        BadCase{"Logprobs", [](Request& r) { r.sampling.n_logprobs = 101; }, kInvalid,
                "n_logprobs"},
        BadCase{"MinTokens", [](Request& r) { r.sampling.min_tokens = -1; }, kInvalid,
                "min_tokens"},
        BadCase{"BiasToken",
                [](Request& r) {
                  r.sampling.logit_bias = {{100, 1.0f}};
                },
                kInvalid, "logit_bias"},
        BadCase{"BiasValue",
                [](Request& r) {
                  r.sampling.logit_bias = {{1, INFINITY}};
                },
                kInvalid, "logit_bias"},
        BadCase{"StopToken", [](Request& r) { r.stop_token_ids = {-5}; }, kInvalid, "stop token"},
        BadCase{"Alpha",
                [](Request& r) {
                  r.sparse = SparseOptions{};
                  r.sparse->alpha = 2;
                },
                kInvalid, "alpha"}),
    [](const auto& info) { return info.param.name; });

TEST(PagesNeeded, CountsSharedAndOwnPages) {
  EXPECT_EQ(PagesNeeded(1, 0, 1), 1);
  EXPECT_EQ(PagesNeeded(64, 1, 1), 1) << "the only new token is never fed";
  EXPECT_EQ(PagesNeeded(64, 2, 1), 2);
  EXPECT_EQ(PagesNeeded(64, 2, 5), 6);
  EXPECT_EQ(PagesNeeded(100, 30, 3), 1 + 3 * 2);
  EXPECT_EQ(PagesNeeded(100, 29, 3), 1 + 3 * 1);
}

TEST(CheckLogits, FindsWhatCannotBeSampled) {
  std::vector<float> logits = {0.0f, 1.0f, -INFINITY};
  EXPECT_TRUE(CheckLogits(logits, 3).ok());
  EXPECT_FALSE(CheckLogits(logits, 4).ok());
  logits[0] = kNan;
  EXPECT_TRUE(absl::IsInternal(CheckLogits(logits, 3)));
  logits[0] = INFINITY;
  EXPECT_FALSE(CheckLogits(logits, 3).ok());
  EXPECT_FALSE(CheckLogits(std::vector<float>(3, -INFINITY), 3).ok());
}

TEST(EngineConfig, RefusesValuesOutsideTheirRange) {
  EXPECT_TRUE(EngineConfig{}.Validate().ok());
  EngineConfig config;
  config.epoch_tokens = 65;
  EXPECT_FALSE(config.Validate().ok());
  config = EngineConfig{};
  config.kv_dtype = DType::kU8;
  EXPECT_FALSE(config.Validate().ok());
  config = EngineConfig{};
  config.max_prefills = 0;
  EXPECT_FALSE(config.Validate().ok());
  config = EngineConfig{};
  config.slice_us = 0;
  EXPECT_FALSE(config.Validate().ok());
  config = EngineConfig{};
  config.sparse.alpha = 0;
  EXPECT_FALSE(config.Validate().ok());
}

}  // namespace
}  // namespace longhaul
