#include "server/api/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/api/status_map.h"
#include "server/text/jinja/to_text.h"

namespace longhaul::api {
namespace {

using testing::HasSubstr;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

TEST(Completion, DefaultsAreOpenAis) {
  const auto request = ParseCompletion(R"({"prompt": "hi"})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(std::get<std::string>(request->prompt), "hi");
  EXPECT_FALSE(request->sampling.temperature.has_value()) << "the model's, else 1";
  EXPECT_EQ(request->n_prompt_logprobs, -1);
  EXPECT_EQ(request->sampling.n_logprobs, -1);
  EXPECT_FALSE(request->max_tokens.has_value());
  EXPECT_EQ(request->n, 1);
  EXPECT_FALSE(request->stream);
}

TEST(Completion, EveryField) {
  const auto request = ParseCompletion(R"({
    "model": "m", "prompt": [[1, 2, 3]], "max_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": -1,
    "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": -1, "frequency_penalty": 1,
    "logit_bias": {"5": -100, "6": 2.5}, "seed": -3, "logprobs": 4, "min_tokens": 2, "n": 3, "best_of": 3,
    "stop": ["a", "b"], "stop_token_ids": [9], "include_stop_str_in_output": true, "ignore_eos": true,
    "add_special_tokens": false, "echo": true, "stream": true, "stream_options": {"include_usage": true},
    "return_progress": true, "sparse": {"mode": "sample", "alpha": 0.9}, "cache_salt": "s",
    "priority": -2, "timeout_s": 1.5, "user": "ignored", "unknown_field": {"x": [1]}})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->model, "m");
  EXPECT_EQ(std::get<std::vector<int32_t>>(request->prompt), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(request->max_tokens, 7);
  const Sampling& s = request->sampling;
  EXPECT_EQ(s.temperature, 0.0f);
  EXPECT_EQ(s.top_p, 0.5f);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.min_p, 0.1f);
  EXPECT_EQ(s.repetition_penalty, 1.2f);
  EXPECT_EQ(s.presence_penalty, -1.0f);
  EXPECT_EQ(s.frequency_penalty, 1.0f);
  EXPECT_EQ(s.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {6, 2.5f}}));
  EXPECT_EQ(s.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(s.n_logprobs, 4);
  EXPECT_EQ(s.min_tokens, 2);
  EXPECT_EQ(request->n, 3);
  EXPECT_EQ(request->stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(request->stop_token_ids, (std::vector<int32_t>{9}));
  EXPECT_TRUE(request->include_stop_str_in_output);
  EXPECT_TRUE(request->ignore_eos);
  EXPECT_FALSE(request->add_special_tokens);
  EXPECT_TRUE(request->echo);
  EXPECT_TRUE(request->stream);
  EXPECT_TRUE(request->include_usage);
  EXPECT_TRUE(request->return_progress);
  EXPECT_EQ(request->sparse.mode, "sample");
  EXPECT_EQ(request->sparse.alpha, 0.9f);
  EXPECT_EQ(request->cache_salt, "s");
  EXPECT_EQ(request->priority, -2);
  EXPECT_EQ(request->timeout_s, 1.5);
}

TEST(Completion, PromptForms) {
  const auto one = ParseCompletion(R"({"prompt": ["hi"]})");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(std::get<std::string>(one->prompt), "hi");
  const auto ids = ParseCompletion(R"({"prompt": [1, 2.0]})");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(std::get<std::vector<int32_t>>(ids->prompt), (std::vector<int32_t>{1, 2}));
}

TEST(PromptLogprobs, OfBothEndpoints) {
  EXPECT_EQ(ParseCompletion(R"({"prompt": "x", "prompt_logprobs": 3})")->n_prompt_logprobs, 3);
  const auto chat = ParseChatCompletion(
      R"({"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 0})");
  EXPECT_EQ(chat->n_prompt_logprobs, 0);
}

TEST(Completion, TimeoutHasTwoNames) {
  EXPECT_EQ(ParseCompletion(R"({"prompt": "x", "timeout": 2.5})")->timeout_s, 2.5);
  EXPECT_EQ(ParseCompletion(R"({"prompt": "x", "timeout_s": 2.5})")->timeout_s, 2.5);
  EXPECT_EQ(ParseCompletion(R"({"prompt": "x"})")->timeout_s, std::nullopt);
}

TEST(Completion, NullIsAbsent) {
  const auto request = ParseCompletion(
      R"({"prompt": "x", "stop": null, "max_tokens": null, "logprobs": null, "logit_bias": null,
          "stream_options": null, "suffix": null, "seed": null, "sparse": null})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FALSE(request->max_tokens.has_value());
}

struct BadCase {
  const char* body;
  const char* param;  // "" = about the whole body
  const char* text;
};

class BadCompletion : public testing::TestWithParam<BadCase> {};

TEST_P(BadCompletion, NamesTheField) {
  const auto request = ParseCompletion(GetParam().body);
  ASSERT_FALSE(request.ok()) << GetParam().body;
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParamOf(request.status()), GetParam().param);
  EXPECT_THAT(Text(request.status()), HasSubstr(GetParam().text));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadCompletion,
    testing::Values(
        BadCase{"", "", "not valid JSON"}, BadCase{"{\"prompt\": \"x\"", "", "not valid JSON"},
        BadCase{"{\"prompt\": \"\xff\"}", "", "UTF-8"}, BadCase{"[1]", "", "must be a JSON object"},
        BadCase{"{\"prompt\": \"x\"} trailing", "", "not valid JSON"},
        BadCase{"{\"prompt\": 1e999}", "", "not valid JSON"}, BadCase{"{}", "prompt", "is missing"},
        BadCase{R"({"prompt": null})", "prompt", "missing"},
        BadCase{R"({"prompt": 5})", "prompt", "got an integer"},
        BadCase{R"({"prompt": []})", "prompt", "empty"},
        BadCase{R"({"prompt": ["a", "b"]})", "prompt", "one prompt"},
        BadCase{R"({"prompt": [[1], [2]]})", "prompt", "one prompt"},
        BadCase{R"({"prompt": [1, "a"]})", "prompt", "at position 1"},
        BadCase{R"({"prompt": [-1]})", "prompt", "got -1"},
        BadCase{R"({"prompt": [4294967296]})", "prompt", "4294967296"},
        BadCase{R"({"prompt": [1.5]})", "prompt", "1.5"},
        BadCase{R"({"prompt": [{}]})", "prompt", "an object"},
        BadCase{R"({"prompt": "x", "max_tokens": -1})", "max_tokens", "from 0"},
        BadCase{R"({"prompt": "x", "max_tokens": 99999999999999999999})", "max_tokens", "integer"},
        BadCase{R"({"prompt": "x", "max_tokens": "5"})", "max_tokens", "got a string"},
        BadCase{R"({"prompt": "x", "temperature": "hot"})", "temperature", "got a string"},
        BadCase{R"({"prompt": "x", "temperature": 1e300})", "temperature", "finite"},
        BadCase{R"({"prompt": "x", "n": 1.5})", "n", "1.5"},
        BadCase{R"({"prompt": "x", "priority": "high"})", "priority", "got a string"},
        BadCase{R"({"prompt": "x", "priority": 2147483648})", "priority", "to 2147483647"},
        BadCase{R"({"prompt": "x", "timeout": "1s"})", "timeout", "number"},
        BadCase{R"({"prompt": "x", "timeout": 1, "timeout_s": 1})", "timeout_s", "only one"},
        BadCase{R"({"prompt": "x", "n": 3000000000})", "n", "3000000000"},
        BadCase{R"({"prompt": "x", "stream": "yes"})", "stream", "true or false"},
        BadCase{R"({"prompt": "x", "stop": 3})", "stop", "string"},
        BadCase{R"({"prompt": "x", "stop": ["a", 1]})", "stop", "got an integer"},
        BadCase{R"({"prompt": "x", "logit_bias": []})", "logit_bias", "object"},
        BadCase{R"({"prompt": "x", "logit_bias": {"a": 1}})", "logit_bias", "token ids"},
        BadCase{R"({"prompt": "x", "logit_bias": {"1": "a"}})", "logit_bias", "number"},
        BadCase{R"({"prompt": "x", "logprobs": true})", "logprobs", "got a boolean"},
        BadCase{R"({"prompt": "x", "logprobs": -1})", "logprobs", "negative"},
        BadCase{R"({"prompt": "x", "best_of": 4})", "best_of", "equal 'n'"},
        BadCase{R"({"prompt": "x", "suffix": "y"})", "suffix", "not supported"},
        BadCase{R"({"prompt": "x", "guided_regex": "a+"})", "guided_regex", "not supported"},
        BadCase{R"({"prompt": "x", "prompt_logprobs": -1})", "prompt_logprobs", "negative"},
        BadCase{R"({"prompt": "x", "prompt_logprobs": 1, "stream": true})", "prompt_logprobs",
                "'stream'"},
        BadCase{R"({"prompt": "x", "response_format": {"type": "json_object"}})",
                "response_format.type", "json_object"},
        BadCase{R"({"prompt": "x", "stream_options": {"include_usage": true}})", "stream_options",
                "'stream'"},
        BadCase{R"({"prompt": "x", "sparse": "dense"})", "sparse", "object"},
        BadCase{R"({"prompt": "x", "sparse": {"alpha": "high"}})", "sparse.alpha", "number"}));

TEST(Completion, DeepNestingIsRefusedBeforeParsing) {
  const std::string bomb = "{\"prompt\": " + std::string(1'000'000, '[');
  const auto request = ParseCompletion(bomb);
  ASSERT_FALSE(request.ok());
  EXPECT_THAT(Text(request.status()), HasSubstr("64 levels"));
  // Brackets inside strings do not count.
  const auto text = ParseCompletion("{\"prompt\": \"\\\"" + std::string(1000, '[') + "\"}");
  EXPECT_TRUE(text.ok()) << text.status();
}

TEST(Chat, MessagesAndParts) {
  const auto request = ParseChatCompletion(R"({"messages": [
      {"role": "developer", "content": "be kind"},
      {"role": "user", "name": "u", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null}],
    "max_tokens": 3, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2,
    "tools": [], "tool_choice": "none", "modalities": ["text"], "response_format": {"type": "text"}})");
  ASSERT_TRUE(request.ok()) << request.status();
  const auto& messages = std::get<ChatPrompt>(request->prompt).messages;
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "ab");
  EXPECT_EQ(messages[2].content, "");
  EXPECT_EQ(request->max_tokens, 5);
  EXPECT_EQ(request->sampling.n_logprobs, 2);
}

class BadChat : public testing::TestWithParam<BadCase> {};

TEST_P(BadChat, NamesTheField) {
  const auto request = ParseChatCompletion(GetParam().body);
  ASSERT_FALSE(request.ok()) << GetParam().body;
  EXPECT_EQ(ParamOf(request.status()), GetParam().param);
  EXPECT_THAT(Text(request.status()), HasSubstr(GetParam().text));
}

#define LH_USER R"("messages": [{"role": "user", "content": "x"}])"
INSTANTIATE_TEST_SUITE_P(
    All, BadChat,
    testing::Values(
        BadCase{"{}", "messages", "at least one"},
        BadCase{R"({"messages": []})", "messages", "at least"},
        BadCase{R"({"messages": "hi"})", "messages", "array"},
        BadCase{R"({"messages": [5]})", "messages", "objects"},
        BadCase{R"({"messages": [{"content": "x"}]})", "messages[0].role", "missing"},
        BadCase{R"({"messages": [{"role": "user"}]})", "messages[0].content", "missing"},
        BadCase{R"({"messages": [{"role": "user", "content": null}]})", "messages[0].content",
                "missing"},
        BadCase{R"({"messages": [{"role": "user", "content": 5}]})", "messages[0].content",
                "integer"},
        BadCase{R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
                "messages[0].content", "image_url"},
        BadCase{"{" LH_USER R"(, "tools": {"type": "function"}})", "tools", "array of objects"},
        BadCase{"{" LH_USER R"(, "tools": [{}], "tool_choice": "required"})", "tool_choice",
                "auto"},
        BadCase{"{" LH_USER R"(, "documents": ["x"]})", "documents", "array of objects"},
        BadCase{"{" LH_USER R"(, "chat_template": "{{ 1 }}"})", "chat_template", "from requests"},
        BadCase{"{" LH_USER R"(, "chat_template_kwargs": 5})", "chat_template_kwargs", "object"},
        BadCase{"{" LH_USER R"(, "chat_template_kwargs": {"messages": []}})",
                "chat_template_kwargs", "'messages'"},
        BadCase{"{" LH_USER R"(, "continue_final_message": true, "add_generation_prompt": true})",
                "continue_final_message", "together"},
        BadCase{"{" LH_USER R"(, "logprobs": 5})", "logprobs", "true or false"},
        BadCase{"{" LH_USER R"(, "top_logprobs": 5})", "top_logprobs", "needs 'logprobs'"},
        BadCase{"{" LH_USER R"(, "modalities": ["audio"]})", "modalities", "not supported"},
        BadCase{"{" LH_USER R"(, "echo": true})", "echo", "not supported"},
        BadCase{"{" LH_USER R"(, "add_generation_prompt": 0})", "add_generation_prompt",
                "true or false"}));

TEST(Chat, FieldsForTheTemplateKeepTheirOrder) {
  const auto request = ParseChatCompletion(R"({"messages": [
      {"role": "user", "content": "x", "name": "u"},
      {"role": "assistant", "reasoning": "why", "tool_calls": [
         {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": [2.0]}"}}]},
      {"role": "tool", "tool_call_id": "1", "content": "5"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}],
    "documents": [{"title": "t", "text": "d"}], "chat_template_kwargs": {"enable_thinking": false},
    "add_generation_prompt": false, "continue_final_message": true})");
  ASSERT_TRUE(request.ok()) << request.status();
  const auto& prompt = std::get<ChatPrompt>(request->prompt);
  EXPECT_FALSE(prompt.add_generation_prompt);
  EXPECT_TRUE(prompt.continue_final_message);
  const auto shown = [](const jinja::Value& value) {
    std::string text;
    EXPECT_TRUE(jinja::AppendJson(value, {}, 1 << 20, &text).ok());
    return text;
  };
  EXPECT_EQ(shown(prompt.tools),
            R"([{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}])");
  EXPECT_EQ(shown(prompt.documents), R"([{"title": "t", "text": "d"}])");
  EXPECT_EQ(shown(prompt.variables), R"({"enable_thinking": false})");
  EXPECT_EQ(shown(prompt.messages[0].extra), R"({"name": "u"})");
  // Arguments come as text and go to the template as a dict.
  EXPECT_EQ(shown(prompt.messages[1].extra),
            R"({"reasoning": "why", "tool_calls": [{"id": "1", "type": "function", )"
            R"("function": {"name": "f", "arguments": {"z": 1, "a": [2.0]}}}], )"
            R"("reasoning_content": "why", "thinking": "why"})");
  EXPECT_EQ(shown(prompt.messages[2].extra), R"({"tool_call_id": "1"})");
}

TEST(Tokenize, TextOrMessages) {
  const auto text =
      ParseTokenize(R"({"prompt": "a", "add_special_tokens": false, "return_token_strs": true})");
  ASSERT_TRUE(text.ok());
  EXPECT_FALSE(text->add_special_tokens);
  EXPECT_TRUE(text->return_token_strs);
  EXPECT_TRUE(ParseTokenize("{" LH_USER "}").ok());
  EXPECT_FALSE(ParseTokenize("{}").ok());
  EXPECT_FALSE(ParseTokenize(R"({"prompt": [1]})").ok());
  EXPECT_EQ(ParseDetokenize(R"({"tokens": [1, 2]})")->tokens.size(), 2u);
  EXPECT_FALSE(ParseDetokenize("{}").ok());
}

}  // namespace
}  // namespace longhaul::api
