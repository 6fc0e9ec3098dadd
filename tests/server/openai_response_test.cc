#include "server/api/openai_response.h"

#include <gtest/gtest.h>

#include <cmath>

#include <nlohmann/json.hpp>

namespace longhaul::api {
namespace {

using nlohmann::json;

ResponseHead Head(bool chat, int n = 1, bool include_usage = false) {
  return {"id-1", "m", 123, chat, n, include_usage};
}

TextDelta Delta(int32_t choice, std::string text,
                std::optional<FinishReason> finish = std::nullopt) {
  TextDelta delta;
  delta.choice = choice;
  delta.text = std::move(text);
  delta.finish = finish;
  return delta;
}

Summary Done() {
  Summary summary;
  summary.usage = {10, 4, 3};
  summary.timings.ttft = 1'500'000;
  summary.sparse_mode = "sample";
  return summary;
}

// Events of a stream as JSON; [DONE] as a string.
std::vector<json> Events(const std::string& stream) {
  std::vector<json> events;
  size_t begin = 0;
  while (begin < stream.size()) {
    const size_t end = stream.find("\n\n", begin);
    EXPECT_NE(end, std::string::npos);
    const std::string line = stream.substr(begin, end - begin);
    EXPECT_EQ(line.substr(0, 6), "data: ");
    events.push_back(line == "data: [DONE]" ? json("[DONE]") : json::parse(line.substr(6)));
    begin = end + 2;
  }
  return events;
}

TEST(Stream, ChatChunksWithoutUsage) {
  StreamWriter writer(Head(true));
  std::string text = writer.Write(Delta(0, "he"));
  text += writer.Write(Delta(0, "llo", FinishReason::kStop));
  text += writer.Write(Done());
  const auto events = Events(text);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(events[0]["choices"][0]["delta"], (json{{"role", "assistant"}, {"content", "he"}}));
  EXPECT_TRUE(events[0]["choices"][0]["finish_reason"].is_null());
  EXPECT_FALSE(events[0].contains("usage"));
  EXPECT_EQ(events[1]["choices"][0]["delta"], (json{{"content", "llo"}}));
  EXPECT_EQ(events[1]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(events[1]["longhaul"]["timings"]["ttft_s"], 1.5);
  EXPECT_EQ(events[1]["longhaul"]["sparse"]["mode"], "sample");
  EXPECT_EQ(events[2], "[DONE]");
}

TEST(Stream, UsageChunkIsLastAndOthersCarryNull) {
  StreamWriter writer(Head(false, 1, true));
  std::string text = writer.Write(Delta(0, "a"));
  text += writer.Write(Delta(0, "", FinishReason::kLength));
  text += writer.Write(Done());
  const auto events = Events(text);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0]["object"], "text_completion");
  EXPECT_EQ(events[0]["choices"][0]["text"], "a");
  EXPECT_TRUE(events[0].at("usage").is_null());
  EXPECT_EQ(events[1]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(events[1].at("usage").is_null());
  EXPECT_TRUE(events[2]["choices"].empty());
  EXPECT_EQ(events[2]["usage"]["prompt_tokens"], 10);
  EXPECT_EQ(events[2]["usage"]["completion_tokens"], 3);
  EXPECT_EQ(events[2]["usage"]["total_tokens"], 13);
  EXPECT_EQ(events[2]["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
  EXPECT_TRUE(events[2].contains("longhaul"));
}

TEST(Stream, RoleOncePerChoice) {
  StreamWriter writer(Head(true, 2));
  std::string text = writer.Write(Delta(1, "x"));
  text += writer.Write(Delta(0, "y", FinishReason::kStop));
  text += writer.Write(Delta(1, "z", FinishReason::kStop));
  text += writer.Write(Done());
  const auto events = Events(text);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_TRUE(events[0]["choices"][0]["delta"].contains("role"));
  EXPECT_TRUE(events[1]["choices"][0]["delta"].contains("role"));
  EXPECT_FALSE(events[2]["choices"][0]["delta"].contains("role"));
  EXPECT_TRUE(events[2].contains("longhaul"));
}

TEST(Stream, ProgressHasLlamaCppNames) {
  StreamWriter writer(Head(true));
  ProgressEvent progress;
  progress.phase = Phase::kPrefill;
  progress.total_tokens = 100;
  progress.cached_tokens = 10;
  progress.processed_tokens = 40;
  progress.time_us = 2'000'000;
  progress.density = 0.25;
  const json event = Events(writer.Write(progress))[0];
  const json& p = event["prompt_progress"];
  EXPECT_EQ(p["total"], 100);
  EXPECT_EQ(p["cache"], 10);
  EXPECT_EQ(p["cached"], 10);
  EXPECT_EQ(p["processed"], 40);
  EXPECT_EQ(p["time_ms"], 2000);
  EXPECT_TRUE(p["eta_ms"].is_null());
  EXPECT_EQ(p["phase"], "prefill");
  EXPECT_EQ(p["density"], 0.25);
  EXPECT_EQ(event["choices"][0]["delta"]["content"], "");
}

TEST(Stream, FailureIsAnErrorEvent) {
  StreamWriter writer(Head(true));
  Summary failed = Done();
  failed.status = absl::DeadlineExceededError("too late");
  const auto events = Events(writer.Write(failed));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["error"]["message"], "too late");
  EXPECT_EQ(events[1], "[DONE]");
}

TEST(Body, ChatWithLogprobs) {
  BodyWriter writer(Head(true));
  TextDelta delta = Delta(0, "h");
  delta.logprobs = {{{"h", "h", -0.25f}, {{"h", "h", -0.25f}, {"\xff?", "\xff", -INFINITY}}}};
  writer.Add(delta);
  writer.Add(Delta(0, "i", FinishReason::kStop));
  EXPECT_FALSE(writer.summary().has_value());
  writer.Add(Done());
  const json body = json::parse(writer.Body());
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "hi");
  const json& token = body["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(token["token"], "h");
  EXPECT_EQ(token["logprob"], -0.25);
  EXPECT_EQ(token["bytes"], json::array({104}));
  EXPECT_EQ(token["top_logprobs"][1]["bytes"], json::array({255}));
  EXPECT_EQ(token["top_logprobs"][1]["logprob"], -9999.0);
  EXPECT_EQ(body["usage"]["total_tokens"], 13);
}

TEST(Body, CompletionLogprobsAndStopReason) {
  BodyWriter writer(Head(false, 2));
  TextDelta delta = Delta(1, " b", FinishReason::kStop);
  delta.stop_reason = "END";
  delta.logprobs = {{{"b", "b", -2.0f}, {{"b", "b", -2.0f}}}};
  delta.logprobs_begin_bytes = 4;
  TextDelta echoed = Delta(1, "PRO");  // a token without bytes first, as special ones are
  echoed.logprobs = {{{"<s>", "", NAN}, {}}, {{"PRO", "PRO", -1.0f}, {}}};
  writer.Add(echoed);
  writer.Add(delta);
  writer.Add(Delta(0, "", FinishReason::kLength));
  writer.Add(Done());
  const json body = json::parse(writer.Body());
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  const json& choice = body["choices"][1];
  EXPECT_EQ(choice["text"], "PRO b");
  EXPECT_EQ(choice["stop_reason"], "END");
  EXPECT_EQ(choice["logprobs"]["tokens"], (json{"<s>", "PRO", "b"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], (json{nullptr, -1.0, -2.0}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], (json{0, 0, 4}));
  EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][2]["b"], -2.0);
  EXPECT_TRUE(body["choices"][0]["logprobs"].is_null());
}

TEST(Body, PromptLogprobsHaveVllmsShape) {
  for (const bool chat : {false, true}) {
    BodyWriter writer(Head(chat, 2));
    writer.Add(PromptLogprobs{{{}}});
    writer.Add(PromptLogprobs{
        {{{7, 3, " \"a\"", -2.5f}, {9, 1, "\xff", -0.25f}}, {{8, 1, "b", -INFINITY}}}});
    TextDelta stopped = Delta(1, "y", FinishReason::kStop);
    stopped.stop_token = 12;
    writer.Add(stopped);
    writer.Add(Delta(0, "x", FinishReason::kLength));
    writer.Add(Done());
    const json body = json::parse(writer.Body());
    const json expected = json::parse(R"([null,
      {"7": {"logprob": -2.5, "rank": 3, "decoded_token": " \"a\""},
       "9": {"logprob": -0.25, "rank": 1, "decoded_token": "\ufffd"}},
      {"8": {"logprob": -9999.0, "rank": 1, "decoded_token": "b"}}])");
    if (chat) {
      EXPECT_EQ(body["prompt_logprobs"], expected);
      EXPECT_FALSE(body["choices"][0].contains("prompt_logprobs"));
    } else {
      EXPECT_EQ(body["choices"][0]["prompt_logprobs"], expected);
      EXPECT_EQ(body["choices"][1]["prompt_logprobs"], expected);
    }
    EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
    EXPECT_EQ(body["choices"][1]["stop_reason"], 12);
  }
}

TEST(Models, Shapes) {
  const json list = json::parse(ModelListBody({{"m", 5, 4096}}));
  EXPECT_EQ(list["object"], "list");
  EXPECT_EQ(list["data"][0]["id"], "m");
  EXPECT_EQ(list["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(json::parse(ModelBody({"m", 5, 4096}))["object"], "model");
  EXPECT_EQ(json::parse(TokenizeBody({1, 2}, 9, nullptr))["count"], 2);
  EXPECT_EQ(json::parse(DetokenizeBody("x"))["prompt"], "x");
}

}  // namespace
}  // namespace longhaul::api
