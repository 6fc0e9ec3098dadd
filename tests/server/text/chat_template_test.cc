#include "server/text/chat_template.h"

#include "server/text/jinja/json_value.h"
#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr std::time_t kNow = 1721984703;  // 2024-07-26

std::unique_ptr<const ChatTemplate> LoadOrFail(const std::string& folder,
                                               const Tokenizer& tokenizer) {
  auto chat = ChatTemplate::Load(folder, "", tokenizer);
  EXPECT_TRUE(chat.ok()) << chat.status();
  return *std::move(chat);
}

ChatPrompt Prompt(std::vector<ChatMessage> messages) {
  ChatPrompt prompt;
  prompt.messages = std::move(messages);
  return prompt;
}

ChatPrompt PromptOf(const json& chat) {
  ChatPrompt prompt;
  for (const json& item : chat["messages"]) {
    prompt.messages.push_back({item["role"], item["content"]});
  }
  return prompt;
}

std::string RenderOrFail(const ChatTemplate& chat, const ChatPrompt& prompt) {
  const auto text = chat.Render(prompt, kNow);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *text : "";
}

jinja::Value JsonValue(std::string_view text) { return *jinja::ParseJsonValue(text); }

// The folder's template, rendered and tokenized, against transformers.
class ChatGoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ChatGoldenTest, IdsAreThoseOfTransformers) {
  const auto tokenizer = LoadGolden(GetParam());
  const auto chat = LoadOrFail(GoldenFolder(GetParam()), *tokenizer);
  EXPECT_EQ(chat->source(), "tokenizer_config.json");
  const json cases = ReadGolden(GoldenFolder(GetParam()) + "/cases.json");
  ASSERT_GE(cases["chats"].size(), 2u);
  for (const json& item : cases["chats"]) {
    const std::string text = RenderOrFail(*chat, PromptOf(item));
    EXPECT_EQ(EncodeOrFail(*tokenizer, text, SpecialTokens::kParse),
              item["ids"].get<std::vector<int32_t>>())
        << item["messages"];
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, ChatGoldenTest,
                         ::testing::Values("qwen2", "llama3", "llama2", "mistral_text",
                                           "mistral_control"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ChatTemplateTest, BuiltInFormsEqualTheTemplatesOfTheirModels) {
  for (const auto& [folder, form, name] :
       {std::tuple{"qwen2", ChatForm::kChatMl, "built in: chatml"},
        {"llama3", ChatForm::kLlama3, "built in: llama3"},
        {"mistral_control", ChatForm::kMistral, "built in: mistral"}}) {
    const auto tokenizer = LoadGolden(folder);
    ASSERT_EQ(DetectChatForm(*tokenizer), form) << folder;
    // A folder without a template: the tokens decide.
    const TempFolder empty;
    const auto chat = LoadOrFail(empty.path(), *tokenizer);
    EXPECT_EQ(chat->source(), name);
    const json golden = ReadGolden(GoldenFolder(folder) + "/cases.json");
    for (const json& item : golden["chats"]) {
      EXPECT_EQ(
          EncodeOrFail(*tokenizer, RenderOrFail(*chat, PromptOf(item)), SpecialTokens::kParse),
          item["ids"].get<std::vector<int32_t>>())
          << folder << item["messages"];
    }
  }
}

TEST(ChatTemplateTest, BuiltInFormsRefuseWhatTheyDoNotKnow) {
  const auto qwen2 = LoadGolden("qwen2"), mistral = LoadGolden("mistral_control");
  const auto code = [](const Tokenizer& tokenizer, ChatForm form, const ChatPrompt& prompt) {
    return ChatTemplate::BuiltIn(form, tokenizer)->Render(prompt, kNow).status().code();
  };
  using absl::StatusCode;
  const ChatPrompt user = Prompt({{"user", "x"}});
  EXPECT_EQ(code(*qwen2, ChatForm::kNone, user), StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(*qwen2, ChatForm::kChatMl, Prompt({})), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(*qwen2, ChatForm::kChatMl, Prompt({{"tool", "x"}})), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(*mistral, ChatForm::kMistral, user), StatusCode::kOk);
  for (const ChatPrompt& prompt : {Prompt({{"assistant", "x"}}), Prompt({{"system", "x"}}),
                                   Prompt({{"user", "x"}, {"user", "y"}})}) {
    EXPECT_EQ(code(*mistral, ChatForm::kMistral, prompt), StatusCode::kInvalidArgument);
  }
  ChatPrompt tools = user;
  tools.tools = JsonValue(R"([{"type": "function"}])");
  const auto status =
      ChatTemplate::BuiltIn(ChatForm::kChatMl, *qwen2)->Render(tools, kNow).status();
  EXPECT_NE(status.message().find("does not show tools"), std::string::npos) << status;
}

TEST(ChatTemplateTest, WhereTheTemplateComesFrom) {
  const auto qwen2 = LoadGolden("qwen2"), gpt2 = LoadGolden("gpt2");
  const ChatPrompt prompt = Prompt({{"user", "x"}});
  EXPECT_EQ(LoadOrFail(GoldenFolder("gpt2"), *gpt2)->Render(prompt, kNow).status().code(),
            absl::StatusCode::kFailedPrecondition);

  TempFolder folder;
  folder.Write("tokenizer_config.json",
               R"({"bos_token": {"content": "<b>"}, "eos_token": "<e>", "chat_template": [
                   {"name": "tool_use", "template": "tools {{ tools | length }}"},
                   {"name": "rag", "template": "{% not even a template"},
                   {"name": "default", "template": "{{ bos_token }}default{{ eos_token }}"}]})");
  const auto named = LoadOrFail(folder.path(), *qwen2);
  EXPECT_EQ(RenderOrFail(*named, prompt), "<b>default<e>");
  ChatPrompt tools = prompt;
  tools.tools = JsonValue("[{}, {}]");
  EXPECT_EQ(RenderOrFail(*named, tools), "tools 2");

  // The file of its own comes first, and --chat-template before both.
  folder.Write("chat_template.jinja", "file {{ bos_token }}<|im_end|>");
  const auto file = LoadOrFail(folder.path(), *qwen2);
  EXPECT_EQ(RenderOrFail(*file, prompt), "file <b><|im_end|>");
  EXPECT_EQ(file->end_of_turn_ids(), std::vector<int32_t>{qwen2->SpecialId("<|im_end|>")});
  folder.Write("mine.jinja", "mine {{ eos_token }}");
  const auto mine = ChatTemplate::Load(folder.path(), folder.path() + "/mine.jinja", *qwen2);
  ASSERT_TRUE(mine.ok()) << mine.status();
  EXPECT_EQ(RenderOrFail(**mine, prompt), "mine <e>");
  EXPECT_TRUE((*mine)->end_of_turn_ids().empty());
}

TEST(ChatTemplateTest, TemplatesThatCannotBeUsed) {
  const auto qwen2 = LoadGolden("qwen2");
  const ChatPrompt prompt = Prompt({{"user", "x"}});
  TempFolder folder;
  folder.Write("bad.jinja", "ok\n{% if %}");
  const auto bad = ChatTemplate::Load(folder.path(), folder.path() + "/bad.jinja", *qwen2).status();
  EXPECT_NE(bad.message().find("bad.jinja: line 2: expected an expression"), std::string::npos)
      << bad;
  EXPECT_TRUE(absl::IsNotFound(
      ChatTemplate::Load(folder.path(), folder.path() + "/none.jinja", *qwen2).status()));
  folder.Write("long.jinja", std::string((1 << 20) + 1, 'x'));
  EXPECT_FALSE(ChatTemplate::Load(folder.path(), folder.path() + "/long.jinja", *qwen2).ok());

  // In the folder it closes the chat, not the server; a guess would be worse.
  for (const char* config : {R"({"chat_template": "a\n{{ x | nope }}"})", R"({"chat_template": 5})",
                             R"({"chat_template": [{"name": "rag", "template": "x"}]})"}) {
    folder.Write("tokenizer_config.json", config);
    const auto status = LoadOrFail(folder.path(), *qwen2)->Render(prompt, kNow).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << config;
    EXPECT_NE(status.message().find("tokenizer_config.json: chat_template"), std::string::npos)
        << status;
  }
}

TEST(ChatTemplateTest, WhatARequestGivesReachesTheTemplate) {
  const auto qwen2 = LoadGolden("qwen2");
  TempFolder folder;
  folder.Write("chat_template.jinja",
               "{% for m in messages %}{{ m.role }}:{{ m.content }}:{{ m.name }};{% endfor %}"
               "{{ documents | tojson }} {{ thinking | default('on') }} {{ tools is none }} "
               "{{ add_generation_prompt }} {{ strftime_now('%Y') }}");
  const auto chat = LoadOrFail(folder.path(), *qwen2);
  ChatPrompt prompt = Prompt({{"user", "a", JsonValue(R"({"name": "n"})")}, {"tool", "b"}});
  EXPECT_EQ(RenderOrFail(*chat, prompt), "user:a:n;tool:b:;null on True True 2024");
  prompt.documents = JsonValue(R"([{"z": 1, "a": 2}])");
  prompt.variables = JsonValue(R"({"thinking": false})");
  prompt.add_generation_prompt = false;
  EXPECT_EQ(RenderOrFail(*chat, prompt),
            R"(user:a:n;tool:b:;[{"z": 1, "a": 2}] False True False 2024)");
}

TEST(ChatTemplateTest, TheFinalMessageIsContinued) {
  const auto qwen2 = LoadGolden("qwen2");
  const auto chat = LoadOrFail(GoldenFolder("qwen2"), *qwen2);
  ChatPrompt prompt = Prompt({{"user", "Count."}, {"assistant", "One, two, "}});
  prompt.continue_final_message = true;
  const std::string begin = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, two,";
  EXPECT_EQ(RenderOrFail(*chat, prompt), begin + " ");
  // A template that strips contents strips the end of this one, too.
  TempFolder folder;
  folder.Write("chat_template.jinja",
               "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
               "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}wrong{% endif %}");
  EXPECT_EQ(RenderOrFail(*LoadOrFail(folder.path(), *qwen2), prompt), begin);
  folder.Write("chat_template.jinja", "{{ messages[0].content }}");
  const auto status = LoadOrFail(folder.path(), *qwen2)->Render(prompt, kNow).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("continue_final_message"), std::string::npos) << status;
}

TEST(ChatTemplateTest, SentencePieceAndJsonAgree) {
  const auto spm = LoadGolden("spm_bpe"), hf = LoadGolden("llama2");
  const auto chat = LoadOrFail(GoldenFolder("llama2"), *hf);
  const std::string text = RenderOrFail(
      *chat,
      Prompt(
          {{"system", "be brief"}, {"user", "hello"}, {"assistant", "the world"}, {"user", "12"}}));
  EXPECT_EQ(EncodeOrFail(*spm, text, SpecialTokens::kParse),
            EncodeOrFail(*hf, text, SpecialTokens::kParse));
}

}  // namespace
}  // namespace longhaul
