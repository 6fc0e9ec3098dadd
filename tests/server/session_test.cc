// Session and Generation over an engine that plays scripts.
#include "server/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "engine/retry_after.h"
#include "server/api/status_map.h"
#include "server/generation_config.h"
#include "tests/testing/fake_engine.h"

namespace longhaul {
namespace {

using testing::HasSubstr;

constexpr std::chrono::seconds kPatience{10};

class CountingTokenizer final : public ByteTokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_bos,
                                              SpecialTokens special) const override {
    ++n_encoded;
    return ByteTokenizer::Encode(text, add_bos, special);
  }
  mutable int n_encoded = 0;
};

class SessionTest : public testing::Test {
 protected:
  void Make(FakeEngine::Script script, ChatForm form = ChatForm::kChatMl,
            int64_t max_model_len = 4096) {
    auto engine = std::make_unique<FakeEngine>(std::move(script), max_model_len);
    engine_ = engine.get();
    SessionConfig config = TestSessionConfig();
    config.on_finished = [this](const RequestRecord& record) { records_.push_back(record); };
    session_ = Session::CreateWith(config, std::make_unique<ByteTokenizer>(), FakeChat(form),
                                   std::move(engine));
  }

  struct Result {
    std::vector<std::string> text;
    std::vector<api::TextDelta> last;  // with every choice's finish
    std::vector<std::vector<api::TokenLogprobs>> logprobs;
    std::vector<int64_t> begin_bytes;  // of the last delta with logprobs
    std::vector<size_t> n_ids;
    int n_progress = 0;
    size_t n_prompt_tokens = 0;  // in chunks of prompt logprobs
    bool accepted = false;
    api::Summary summary;
  };
  Result Run(const api::GenerateRequest& request) {
    auto generation = session_->Start(request, {});
    EXPECT_TRUE(generation.ok()) << generation.status();
    Result result;
    result.text.resize(request.n);
    result.last.resize(request.n);
    result.logprobs.resize(request.n);
    result.begin_bytes.resize(request.n);
    result.n_ids.resize(request.n);
    while (true) {
      const auto chunk = (*generation)->Next(kPatience);
      if (!chunk) {
        ADD_FAILURE() << "no chunk";
        return result;
      }
      if (const auto* summary = std::get_if<api::Summary>(&*chunk)) {
        result.summary = *summary;
        EXPECT_FALSE((*generation)->TryNext().has_value()) << "something after the summary";
        return result;
      }
      if (const auto* delta = std::get_if<api::TextDelta>(&*chunk)) {
        EXPECT_FALSE(result.last[delta->choice].finish) << "text after the end of a choice";
        result.text[delta->choice] += delta->text;
        result.n_ids[delta->choice] += delta->token_ids.size();
        auto& all = result.logprobs[delta->choice];
        if (!delta->logprobs.empty()) {
          result.begin_bytes[delta->choice] = delta->logprobs_begin_bytes;
        }
        all.insert(all.end(), delta->logprobs.begin(), delta->logprobs.end());
        result.last[delta->choice] = *delta;
      } else if (const auto* prompt = std::get_if<api::PromptLogprobs>(&*chunk)) {
        result.n_prompt_tokens += prompt->tokens.size();
      } else if (std::holds_alternative<ProgressEvent>(*chunk)) {
        ++result.n_progress;
      } else {
        EXPECT_FALSE(std::exchange(result.accepted, true)) << "accepted twice";
      }
    }
  }
  absl::Status Refusal(const api::GenerateRequest& request) {
    return session_->Start(request, {}).status();
  }

  FakeEngine* engine_ = nullptr;
  std::vector<RequestRecord> records_;  // outlives the session
  std::unique_ptr<Session> session_;
};

api::GenerateRequest Completion(std::string prompt) {
  api::GenerateRequest request;
  request.request_id = "r1";
  request.prompt = std::move(prompt);
  return request;
}

api::GenerateRequest Chat(std::string content) {
  api::GenerateRequest request;
  request.prompt = ChatPrompt{{{"user", std::move(content)}}};
  return request;
}

TEST_F(SessionTest, TextUsageAndRecord) {
  Make(Says("hello"));
  const Result result = Run(Completion("hi"));
  EXPECT_EQ(result.text[0], "hello");
  EXPECT_EQ(result.last[0].finish, FinishReason::kStop);
  EXPECT_EQ(result.last[0].stop_reason, "");
  EXPECT_TRUE(result.summary.status.ok());
  EXPECT_EQ(result.summary.usage.prompt_tokens, 3);      // BOS and two bytes
  EXPECT_EQ(result.summary.usage.completion_tokens, 6);  // the end token counts
  EXPECT_EQ(result.summary.usage.cached_tokens, 2);
  EXPECT_EQ(result.summary.timings.queue, 10);
  EXPECT_EQ(result.summary.sparse_mode, "dense");
  EXPECT_GE(result.summary.timings.ttft, 0);
  EXPECT_LT(result.summary.timings.ttft, 10'000'000);
  ASSERT_EQ(records_.size(), 1u);
  EXPECT_EQ(records_[0].request_id, "r1");
  EXPECT_EQ(records_[0].finished, (std::vector<FinishReason>{FinishReason::kStop}));
  EXPECT_EQ(records_[0].token_gaps_s.size(), 5u);
  const Request request = engine_->last_request();
  EXPECT_EQ(request.max_tokens, 16);
  EXPECT_EQ(request.stop_token_ids, (std::vector<int32_t>{ByteTokenizer::kEos}));
}

TEST_F(SessionTest, StopStringAcrossTokensCancelsTheRest) {
  Make([](const Request& request, StreamState& state) {
    for (const char byte : std::string("one STOP two")) EmitByte(state, byte);
    while (!state.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EmitDone(state, request);
  });
  api::GenerateRequest request = Completion("x");
  request.stop = {"STOP"};
  request.sampling.n_logprobs = 1;
  const Result result = Run(request);
  EXPECT_EQ(result.text[0], "one ");
  EXPECT_EQ(result.last[0].finish, FinishReason::kStop);
  EXPECT_EQ(result.last[0].stop_reason, "STOP");
  EXPECT_TRUE(result.summary.status.ok()) << "ended by us is not a failure";
  EXPECT_EQ(result.summary.usage.completion_tokens, 8);  // up to the end of STOP
  EXPECT_EQ(result.logprobs[0].size(), 4u);              // of the text that is shown
}

TEST_F(SessionTest, StopStringMayBeIncluded) {
  Make(Says("aXYb"));
  api::GenerateRequest request = Completion("x");
  request.stop = {"XY"};
  request.include_stop_str_in_output = true;
  EXPECT_EQ(Run(request).text[0], "aXY");
}

TEST_F(SessionTest, HeldBackTextComesOutAtTheEnd) {
  Make(Says("abST"));
  api::GenerateRequest request = Completion("x");
  request.stop = {"STOP"};
  const Result result = Run(request);
  EXPECT_EQ(result.text[0], "abST");
  EXPECT_EQ(result.n_ids[0], 4u);
}

TEST_F(SessionTest, ChoicesEndOneByOne) {
  Make([](const Request& request, StreamState& state) {
    for (const char byte : std::string("aaSbb")) {
      for (int32_t i = 0; i < request.n; ++i)
        EmitByte(state, i == 1 && byte == 'S' ? 's' : byte, i);
    }
    for (int32_t i = 0; i < request.n; ++i) EmitByte(state, 'c', i, FinishReason::kLength);
    EmitDone(state, request);
  });
  api::GenerateRequest request = Completion("x");
  request.n = 2;
  request.stop = {"S"};
  const Result result = Run(request);
  EXPECT_EQ(result.text[0], "aa");
  EXPECT_EQ(result.last[0].finish, FinishReason::kStop);
  EXPECT_EQ(result.text[1], "aasbbc");
  EXPECT_EQ(result.last[1].finish, FinishReason::kLength);
  EXPECT_EQ(result.summary.usage.completion_tokens, 3 + 6);
  EXPECT_EQ(engine_->n_cancelled(), 0);
}

TEST_F(SessionTest, NeverHalfACharacter) {
  Make(Says("a\xE2\x82\xAC!"));
  const Result result = Run(Completion("x"));
  EXPECT_EQ(result.text[0], "a\xE2\x82\xAC!");
  EXPECT_EQ(result.n_ids[0], 5u);
}

TEST_F(SessionTest, EchoPutsThePromptFirst) {
  Make(Says("out"));
  api::GenerateRequest request = Completion("in:");
  request.echo = true;
  request.n = 2;
  const Result result = Run(request);
  EXPECT_EQ(result.text[0], "in:out");
  EXPECT_EQ(result.text[1], "in:out");
}

// What the engine says of a prompt: in two events, each token's id / 100 below zero, the others
// more and more likely.
void EmitPromptLogprobs(const Request& request, StreamState& state) {
  const auto n = static_cast<int64_t>(request.prompt.size());
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{1, 2}, {2, n}}) {
    PromptLogprobsEvent event;
    event.begin = begin;
    event.n_top = request.n_prompt_logprobs;
    for (int64_t i = begin; i < end; ++i) {
      event.tokens.push_back({request.prompt[i], -0.01f * static_cast<float>(request.prompt[i])});
      event.ranks.push_back(2);
      for (int32_t k = 0; k < event.n_top; ++k) {
        event.top.push_back({k == 1 ? request.prompt[i] : 240 + k, -0.1f * static_cast<float>(k)});
      }
    }
    state.Emit(event);
  }
}

TEST_F(SessionTest, EchoWithLogprobsOfThePrompt) {
  Make([](const Request& request, StreamState& state) {
    EmitPromptLogprobs(request, state);
    for (int32_t i = 0; i < request.n; ++i) EmitText(state, "out", i);
    EmitDone(state, request);
  });
  api::GenerateRequest request = Completion("in:");
  request.echo = true;
  request.n = 2;
  request.sampling.n_logprobs = 2;
  request.n_prompt_logprobs = 3;
  const Result result = Run(request);
  EXPECT_EQ(engine_->last_request().n_prompt_logprobs, 3) << "the larger of the two";
  for (int32_t choice = 0; choice < 2; ++choice) {
    EXPECT_EQ(result.text[choice], "in:out");
    EXPECT_EQ(result.n_ids[choice], 7u);
    const std::vector<api::TokenLogprobs>& logprobs = result.logprobs[choice];
    ASSERT_EQ(logprobs.size(), 7u);
    EXPECT_EQ(logprobs[0].chosen.token, "<bos>");
    EXPECT_TRUE(std::isnan(logprobs[0].chosen.logprob));
    EXPECT_EQ(logprobs[3].chosen.token, ":");
    EXPECT_FLOAT_EQ(logprobs[3].chosen.logprob, -0.01f * ':');
    ASSERT_EQ(logprobs[3].top.size(), 2u);
    EXPECT_EQ(logprobs[3].top[1].token, ":");
    EXPECT_EQ(logprobs[4].chosen.token, "o");
    EXPECT_EQ(result.begin_bytes[choice], 5) << "of the last token with a text";
  }
  EXPECT_EQ(result.n_prompt_tokens, 4u);
}

TEST_F(SessionTest, PromptLogprobsAreRanked) {
  Make([](const Request& request, StreamState& state) {
    EmitPromptLogprobs(request, state);
    EmitText(state, "out");
    EmitDone(state, request);
  });
  api::GenerateRequest request = Chat("a");
  request.n_prompt_logprobs = 3;
  const auto generation = session_->Start(request, {}).value();
  std::vector<std::vector<api::RankedLogprob>> tokens;
  while (const auto chunk = generation->Next(kPatience)) {
    if (const auto* logprobs = std::get_if<api::PromptLogprobs>(&*chunk)) {
      tokens.insert(tokens.end(), logprobs->tokens.begin(), logprobs->tokens.end());
    } else if (std::holds_alternative<api::Summary>(*chunk)) {
      break;
    }
  }
  const std::vector<int32_t> prompt = engine_->last_request().prompt;
  ASSERT_EQ(tokens.size(), prompt.size());
  EXPECT_TRUE(tokens[0].empty());
  for (size_t i = 1; i < tokens.size(); ++i) {
    ASSERT_EQ(tokens[i].size(), 3u) << "its own and two others";
    EXPECT_EQ(tokens[i][0].id, prompt[i]);
    EXPECT_EQ(tokens[i][0].rank, 2);
    EXPECT_EQ(tokens[i][1].id, 240);
    EXPECT_EQ(tokens[i][1].rank, 1);
    EXPECT_EQ(tokens[i][2].rank, 3);
  }
}

TEST_F(SessionTest, LogprobsOfThePromptAreBounded) {
  Make(Says("ok"), ChatForm::kNone, 1 << 20);
  api::GenerateRequest request = Completion(std::string(100'000, 'a'));
  request.n_prompt_logprobs = 20;
  EXPECT_EQ(api::ParamOf(Refusal(request)), "prompt_logprobs");
  request.n_prompt_logprobs = 19;
  EXPECT_TRUE(Run(request).summary.status.ok());
  request.n = 2;
  EXPECT_EQ(api::ParamOf(Refusal(request)), "prompt_logprobs") << "each choice repeats them";
  request.n_prompt_logprobs = -1;
  request.sampling.n_logprobs = 20;
  EXPECT_TRUE(Run(request).summary.status.ok());
  request.echo = true;
  const absl::Status refusal = Refusal(request);
  EXPECT_EQ(api::ParamOf(refusal), "logprobs");
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("100001 prompt tokens"));
}

TEST_F(SessionTest, IgnoreEosKeepsTheStopTokensOfTheRequest) {
  Make([](const Request& request, StreamState& state) {
    EmitByte(state, 'a');
    EmitByte(state, 'b', 0, FinishReason::kStop);
    EmitDone(state, request);
  });
  api::GenerateRequest request = Completion("x");
  request.stop_token_ids = {'b'};
  request.ignore_eos = true;
  const Result result = Run(request);
  EXPECT_EQ(engine_->last_request().stop_token_ids, (std::vector<int32_t>{'b'}));
  EXPECT_EQ(result.text[0], "a");
  EXPECT_EQ(result.last[0].stop_token, 'b');
  request.ignore_eos = false;
  Run(request);
  EXPECT_EQ(engine_->last_request().stop_token_ids,
            (std::vector<int32_t>{'b', ByteTokenizer::kEos}));
}

TEST_F(SessionTest, MinTokensHoldsStopStringsBack) {
  Make(Says("a.b.c.d"));
  api::GenerateRequest request = Completion("x");
  request.stop = {"."};
  EXPECT_EQ(Run(request).text[0], "a");
  request.sampling.min_tokens = 4;
  EXPECT_EQ(Run(request).text[0], "a.b.c");
}

TEST_F(SessionTest, TheModelsDefaultsAreForRequestsThatSayNothing) {
  auto engine = std::make_unique<FakeEngine>(Says("ok"));
  engine_ = engine.get();
  SessionConfig config = TestSessionConfig();
  config.defaults.sampling.temperature = 0.6f;
  config.defaults.sampling.top_k = 20;
  config.defaults.max_tokens = 7;
  session_ =
      Session::CreateWith(config, std::make_unique<ByteTokenizer>(), FakeChat(), std::move(engine));
  api::GenerateRequest request = Completion("x");
  request.sampling.temperature = 0.0f;
  Run(request);
  EXPECT_EQ(engine_->last_request().sampling.temperature, 0.0f);
  EXPECT_EQ(engine_->last_request().sampling.top_k, 20);
  EXPECT_EQ(engine_->last_request().sampling.top_p, 1.0f);
  EXPECT_EQ(engine_->last_request().max_tokens, 16) << "OpenAI's, of completions";
  Run(Chat("x"));
  EXPECT_EQ(engine_->last_request().sampling.temperature, 0.6f);
  EXPECT_EQ(engine_->last_request().max_tokens, 7);
}

absl::StatusOr<api::GenerationDefaults> DefaultsOf(const std::string& file) {
  const std::string dir = testing::TempDir() + "/generation_config";
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/generation_config.json") << file;
  return ReadGenerationDefaults(dir);
}

TEST(GenerationDefaults, OfAModelFolder) {
  EXPECT_FALSE(ReadGenerationDefaults("/nonexistent")->sampling.temperature.has_value());
  const auto defaults = DefaultsOf(
      R"({"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": true, "temperature": 0.7,
          "top_p": 0.8, "top_k": 20, "min_p": null, "repetition_penalty": 1,
          "max_new_tokens": 2048, "transformers_version": "4.37.0"})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->sampling.temperature, 0.7f);
  EXPECT_EQ(defaults->sampling.top_p, 0.8f);
  EXPECT_EQ(defaults->sampling.top_k, 20);
  EXPECT_EQ(defaults->sampling.min_p, std::nullopt);
  EXPECT_EQ(defaults->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(defaults->max_tokens, 2048);
}

TEST(GenerationDefaults, BadFilesAreNamed) {
  const auto expect = [](const char* file, const char* text) {
    const absl::Status status = DefaultsOf(file).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << file;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_THAT(std::string(status.message()), HasSubstr("generation_config.json"));
  };
  expect("{", "not valid JSON");
  expect("[]", "expected an object");
  expect(R"({"temperature": "warm"})", "temperature: is \"warm\"");
  expect(R"({"temperature": -1})", "from 0 to 2");
  expect(R"({"top_p": 0})", "top_p");
  expect(R"({"top_k": 2.5})", "an integer");
  expect(R"({"top_k": 99999999999})", "top_k: is 99999999999");
  expect(R"({"min_p": 1.5})", "from 0 to 1");
  expect(R"({"repetition_penalty": true})", "--generation-config none");
  expect(R"({"max_new_tokens": 0})", "max_new_tokens");
}

TEST_F(SessionTest, EchoIsBounded) {
  Make(Says("ok"), ChatForm::kChatMl, 4 << 20);
  api::GenerateRequest request = Completion(std::string((1 << 20) + 1, 'a'));
  request.echo = true;
  EXPECT_EQ(api::ParamOf(Refusal(request)), "echo");
  request.prompt = std::vector<int32_t>((1 << 20) + 1, 'a');
  EXPECT_EQ(api::ParamOf(Refusal(request)), "echo");
  request.prompt = std::vector<int32_t>(1 << 20, 'a');
  EXPECT_EQ(Run(request).text[0].size(), (size_t{1} << 20) + 2);
}

TEST_F(SessionTest, EchoOfIdsWithoutGeneration) {
  Make([](const Request& request, StreamState& state) {
    TokenEvent end;
    end.finish = FinishReason::kLength;
    state.Emit(end);
    EmitDone(state, request);
  });
  api::GenerateRequest request;
  request.prompt = std::vector<int32_t>{'h', 'i'};
  request.echo = true;
  request.max_tokens = 0;
  const Result result = Run(request);
  EXPECT_EQ(result.text[0], "hi");
  EXPECT_EQ(result.summary.usage.completion_tokens, 0);
}

TEST_F(SessionTest, Logprobs) {
  Make(Says("ab"));
  api::GenerateRequest request = Completion("x");
  request.sampling.n_logprobs = 2;
  const Result result = Run(request);
  ASSERT_EQ(result.logprobs[0].size(), 2u);
  EXPECT_EQ(result.logprobs[0][1].chosen.token, "b");
  EXPECT_EQ(result.logprobs[0][1].chosen.logprob, -0.5f);
  EXPECT_EQ(result.logprobs[0][1].top.size(), 2u);
}

TEST_F(SessionTest, ProgressIsPassedOn) {
  Make([](const Request& request, StreamState& state) {
    EXPECT_TRUE(request.report_progress);
    state.Emit(ProgressEvent{});
    EmitText(state, "a");
    EmitDone(state, request);
  });
  api::GenerateRequest request = Completion("x");
  request.return_progress = true;
  EXPECT_EQ(Run(request).n_progress, 1);
}

TEST_F(SessionTest, DroppingTheGenerationCancels) {
  Make(Hangs());
  {
    auto generation = session_->Start(Completion("x"), {});
    ASSERT_TRUE(generation.ok());
    EXPECT_TRUE(std::holds_alternative<AcceptedEvent>((*generation)->Next(kPatience).value()));
  }
  ASSERT_EQ(records_.size(), 1u);
  EXPECT_TRUE(absl::IsCancelled(records_[0].summary.status));
  const Clock::time_point deadline = Clock::now() + kPatience;
  while (engine_->n_cancelled() == 0 && Clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(engine_->n_cancelled(), 1);
}

TEST_F(SessionTest, FailureAfterAdmission) {
  Make([](const Request& request, StreamState& state) {
    EmitByte(state, 'a');
    EmitDone(state, request, absl::InternalError("the step failed"));
  });
  const Result result = Run(Completion("x"));
  EXPECT_EQ(result.summary.status.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(records_[0].summary.status.ok());
}

TEST_F(SessionTest, ChatUsesTheFormAndItsEndToken) {
  Make(Says("ok"));
  Run(Chat("hi"));
  const Request request = engine_->last_request();
  EXPECT_EQ(request.prompt.front(), ByteTokenizer::kImStart);
  EXPECT_THAT(request.stop_token_ids, testing::Contains(ByteTokenizer::kImEnd));
  // The rest of the context: 4096 tokens less the prompt.
  EXPECT_EQ(request.max_tokens, 4096 - static_cast<int64_t>(request.prompt.size()));
  // Special tokens are found in the rendered text, as transformers does: also those of a content.
  Run(Chat("<|im_end|>"));
  const std::vector<int32_t> ids = engine_->last_request().prompt;
  EXPECT_EQ(std::count(ids.begin(), ids.end(), ByteTokenizer::kImEnd), 2);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), ByteTokenizer::kBos), 0)
      << "the template's business";
}

TEST_F(SessionTest, ChatWithoutAForm) {
  Make(Says("ok"), ChatForm::kNone);
  EXPECT_EQ(Refusal(Chat("hi")).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Run(Completion("still works")).text[0], "ok");
}

TEST_F(SessionTest, TooLongIsOutOfRangeBeforeWork) {
  Make(Says("ok"), ChatForm::kChatMl, 128);
  api::GenerateRequest request = Completion(std::string(100, 'a'));
  request.max_tokens = 27;
  EXPECT_EQ(Run(request).text[0], "ok");
  request.max_tokens = 28;
  const absl::Status status = Refusal(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("maximum context length is 128"));
  EXPECT_EQ(Refusal(Completion(std::string(1'000'000, 'a'))).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Refusal(Chat(std::string(1000, 'a'))).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Run(Completion(std::string(120, 'a'))).text[0], "ok");
  EXPECT_EQ(engine_->last_request().max_tokens, 7) << "the default is cut to the room there is";
  EXPECT_EQ(engine_->n_requests(), 2u);
}

TEST_F(SessionTest, EngineRefusalsPassThrough) {
  Make(Says("ok"));
  engine_->SetSubmitStatus(absl::ResourceExhaustedError("the queue is full"));
  EXPECT_EQ(Refusal(Completion("x")).code(), absl::StatusCode::kResourceExhausted);
  engine_->SetSubmitStatus(absl::OutOfRangeError("never fits"));
  EXPECT_EQ(api::ParamOf(Refusal(Completion("x"))), "prompt");
}

TEST_F(SessionTest, AVerdictOfTheEngineIsTheOnlyChunk) {
  Make(Says("ok"));
  EXPECT_TRUE(Run(Completion("x")).accepted);
  engine_->SetVerdict(absl::DeadlineExceededError("needs 40 s, the deadline is in 2 s"));
  Result result = Run(Completion("x"));
  EXPECT_FALSE(result.accepted);
  EXPECT_EQ(result.text[0], "");
  EXPECT_EQ(api::ToHttpError(result.summary.status).code, "deadline_unreachable");
  EXPECT_TRUE(records_.back().refused);
  engine_->SetVerdict(WithRetryAfter(absl::ResourceExhaustedError("in 7 s"), 7'000'000));
  result = Run(Completion("x"));
  EXPECT_EQ(api::ToHttpError(result.summary.status).http_status, 429);
  EXPECT_EQ(api::RetryAfterSeconds(result.summary.status), 7);
}

TEST_F(SessionTest, WhatNeedsNoPromptIsCheckedBeforeIt) {
  auto counting = std::make_unique<CountingTokenizer>();
  const CountingTokenizer& tokenizer = *counting;
  auto engine = std::make_unique<FakeEngine>(Says("ok"));
  FakeEngine* fake = engine.get();
  session_ =
      Session::CreateWith(TestSessionConfig(), std::move(counting), FakeChat(), std::move(engine));
  // Wrong in every way: the cheapest check speaks.
  api::GenerateRequest request = Completion(std::string(1'000'000, 'a'));
  request.timeout_s = 1;
  api::FrontPhases phases;
  phases.accepted = Clock::now() - std::chrono::seconds(2);
  fake->SetQueueStatus(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(session_->Start(request, phases).status().code(), absl::StatusCode::kResourceExhausted);
  fake->SetQueueStatus(absl::OkStatus());
  const absl::Status late = session_->Start(request, phases).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(api::ToHttpError(late).http_status, 504) << "it passed; it was not out of reach";
  EXPECT_EQ(session_->Start(request, {}).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(tokenizer.n_encoded, 0);
  EXPECT_EQ(fake->n_requests(), 0u);
  EXPECT_TRUE(session_->Start(Completion("short"), {}).ok());
  EXPECT_EQ(tokenizer.n_encoded, 1);
}

TEST_F(SessionTest, CancelEndsEveryRequestOfThatCallerWithThatId) {
  Make(Hangs());
  const auto start = [&](const std::string& caller, const std::string& id) {
    api::GenerateRequest request = Completion("x");
    request.caller = caller;
    request.request_id = id;
    auto generation = session_->Start(request, {});
    EXPECT_TRUE(generation.ok()) << generation.status();
    return *std::move(generation);
  };
  auto first = start("alice", "id"), second = start("alice", "id");
  auto other_id = start("alice", "id2"), other_caller = start("bob", "id");
  EXPECT_EQ(session_->Cancel("carol", "id"), 0);
  EXPECT_EQ(session_->Cancel("alice", "i"), 0);
  EXPECT_EQ(session_->Cancel("", "alice\nid"), 0);
  EXPECT_EQ(session_->Cancel("alice", "id"), 2);
  for (const auto& generation : {first.get(), second.get()}) {
    EXPECT_TRUE(std::holds_alternative<AcceptedEvent>(generation->Next(kPatience).value()));
    const api::Chunk last = generation->Next(kPatience).value();
    EXPECT_TRUE(absl::IsCancelled(std::get<api::Summary>(last).status));
  }
  EXPECT_EQ(session_->Cancel("alice", "id"), 0) << "they ended";
  other_id.reset();
  EXPECT_EQ(session_->Cancel("alice", "id2"), 0) << "dropped";
  EXPECT_EQ(session_->Cancel("bob", "id"), 1);
}

TEST_F(SessionTest, CallersDoNotShareCachedPrefixes) {
  Make(Says("ok"));
  const auto salt = [&](const std::string& caller, const std::string& cache_salt) {
    api::GenerateRequest request = Completion("x");
    request.caller = caller;
    request.cache_salt = cache_salt;
    Run(request);
    return engine_->last_request().cache_salt;
  };
  const std::string alice(64, 'a'), bob(64, 'b');
  EXPECT_NE(salt(alice, ""), salt(bob, ""));
  EXPECT_NE(salt(alice, "s"), salt(bob, "s"));
  EXPECT_NE(salt(alice, "s"), salt(alice, "t"));
  EXPECT_EQ(salt(alice, "s"), salt(alice, "s"));
  EXPECT_NE(salt(bob, alice + "/s"), salt(alice, "s")) << "a salt cannot name another's namespace";
  EXPECT_EQ(salt("", "s"), "s");
  SessionConfig config = TestSessionConfig();
  config.prefix_cache_per_key = false;
  auto engine = std::make_unique<FakeEngine>(Says("ok"));
  engine_ = engine.get();
  session_ =
      Session::CreateWith(config, std::make_unique<ByteTokenizer>(), FakeChat(), std::move(engine));
  EXPECT_EQ(salt(alice, "s"), salt(bob, "s"));
}

TEST_F(SessionTest, RangesNameTheField) {
  Make(Says("ok"));
  const auto expect = [&](const char* param,
                          const std::function<void(api::GenerateRequest&)>& change) {
    api::GenerateRequest request = Completion("x");
    change(request);
    const absl::Status status = Refusal(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << param;
    EXPECT_EQ(api::ParamOf(status), param) << status;
  };
  using R = api::GenerateRequest;
  expect("prompt", [](R& r) { r.prompt = std::string(); });
  expect("prompt", [](R& r) { r.prompt = std::vector<int32_t>{}; });
  expect("prompt", [](R& r) { r.prompt = std::vector<int32_t>{ByteTokenizer::kVocab}; });
  expect("prompt", [](R& r) { r.prompt = std::vector<int32_t>{-1}; });
  expect("n", [](R& r) { r.n = 0; });
  expect("n", [](R& r) { r.n = 129; });
  expect("max_tokens", [](R& r) { r.max_tokens = -1; });
  expect("temperature", [](R& r) { r.sampling.temperature = -0.1f; });
  expect("temperature", [](R& r) { r.sampling.temperature = NAN; });
  expect("top_p", [](R& r) { r.sampling.top_p = 0; });
  expect("top_p", [](R& r) { r.sampling.top_p = 1.1f; });
  expect("top_k", [](R& r) { r.sampling.top_k = -2; });
  expect("min_p", [](R& r) { r.sampling.min_p = 2; });
  expect("repetition_penalty", [](R& r) { r.sampling.repetition_penalty = 0; });
  expect("presence_penalty", [](R& r) { r.sampling.presence_penalty = 3; });
  expect("frequency_penalty", [](R& r) { r.sampling.frequency_penalty = -3; });
  expect("logprobs", [](R& r) { r.sampling.n_logprobs = 21; });
  expect("prompt_logprobs", [](R& r) { r.n_prompt_logprobs = 21; });
  expect("logit_bias", [](R& r) { r.sampling.logit_bias = {{0, 101.0f}}; });
  expect("logit_bias", [](R& r) { r.sampling.logit_bias = {{9999, 1.0f}}; });
  expect("logit_bias", [](R& r) { r.sampling.logit_bias.assign(1025, {0, 1.0f}); });
  expect("min_tokens", [](R& r) { r.sampling.min_tokens = -1; });
  expect("stop", [](R& r) { r.stop.assign(17, "x"); });
  expect("stop", [](R& r) { r.stop = {""}; });
  expect("stop_token_ids", [](R& r) { r.stop_token_ids = {-5}; });
  expect("cache_salt", [](R& r) { r.cache_salt.assign(257, 'x'); });
  expect("timeout", [](R& r) { r.timeout_s = 0; });
  expect("sparse.mode", [](R& r) { r.sparse.mode = "magic"; });
  expect("sparse", [](R& r) { r.sparse.alpha = 1.5f; });
  api::GenerateRequest request = Completion("x");
  request.model = "gpt-5";
  EXPECT_EQ(Refusal(request).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine_->n_requests(), 0u);
}

TEST_F(SessionTest, SparseChoiceReachesTheEngine) {
  Make(Says("ok"));
  api::GenerateRequest request = Completion("x");
  request.sparse.mode = "sample";
  request.sparse.alpha = 0.9f;
  EXPECT_EQ(Run(request).summary.sparse_mode, "sample");
  EXPECT_EQ(engine_->last_request().sparse->mode, SparseMode::kSample);
  EXPECT_EQ(engine_->last_request().sparse->alpha, 0.9f);
}

}  // namespace
}  // namespace longhaul
