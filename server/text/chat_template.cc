#include "server/text/chat_template.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "server/text/json_file.h"
#include "server/text/unicode.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTemplate_bytes = 1 << 20;

// The template's text, from the file of its own or from tokenizer_config.json; empty: none.
std::string ReadTemplateText(const std::string& model_dir) {
  absl::StatusOr<std::string> jinja =
      ReadFileCapped(model_dir + "/chat_template.jinja", kMaxTemplate_bytes);
  if (jinja.ok()) return *std::move(jinja);
  const absl::StatusOr<json> config = ReadJsonFile(model_dir + "/tokenizer_config.json");
  if (!config.ok()) return "";
  const auto found = config->find("chat_template");
  if (found == config->end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  // Several templates by name; tools and retrieval have theirs, "default" is for plain chat.
  for (const json& item : *found) {
    if (!item.is_object()) continue;
    const auto name = item.find("name"), text = item.find("template");
    if (name != item.end() && *name == "default" && text != item.end() && text->is_string()) {
      return text->get<std::string>();
    }
  }
  return "";
}

// Python's str.strip(), which templates call on contents: White_Space and U+001C to U+001F.
std::string_view Strip(std::string_view text) {
  const auto is_space = [](uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
  };
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text.data());
    if (!is_space(c.code_point)) break;
    text.remove_prefix(c.length);
  }
  while (!text.empty()) {
    const char* end = text.data() + text.size();
    const int length = LastCharLength(end);
    if (!is_space(DecodeUtf8(end - length).code_point)) break;
    text.remove_suffix(length);
  }
  return text;
}

// Collects control tokens and text; neighbouring texts become one, as if the template had been
// rendered and then tokenized.
class PromptBuilder {
 public:
  explicit PromptBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  PromptBuilder& Text(std::string_view text) {
    if (items_.empty() || items_.back().token >= 0) items_.push_back({});
    items_.back().text.append(text);
    return *this;
  }
  PromptBuilder& Id(int32_t id) {
    if (id >= 0) items_.push_back({id, ""});
    return *this;
  }
  // A control token by name; DetectChatForm has made sure that the form's tokens exist.
  PromptBuilder& Control(std::string_view name) {
    const int32_t id = tokenizer_.SpecialId(name);
    if (id < 0 && missing_.empty()) missing_ = name;
    return Id(id);
  }

  absl::StatusOr<std::vector<int32_t>> Encode() const {
    if (!missing_.empty()) {
      return absl::FailedPreconditionError(
          fmt::format("the tokenizer has no token {}, which its chat form needs", missing_));
    }
    std::vector<PromptPart> parts;
    for (const Item& item : items_) parts.push_back({item.token, item.text});
    return tokenizer_.EncodeParts(parts);
  }

 private:
  struct Item {
    int32_t token = -1;
    std::string text;
  };
  const Tokenizer& tokenizer_;
  std::vector<Item> items_;
  std::string missing_;
};

absl::StatusOr<std::vector<int32_t>> ApplyChatMl(const Tokenizer& tokenizer,
                                                 const std::vector<ChatMessage>& messages) {
  PromptBuilder prompt(tokenizer);
  for (const ChatMessage& message : messages) {
    prompt.Control("<|im_start|>").Text(message.role).Text("\n").Text(message.content);
    prompt.Control("<|im_end|>").Text("\n");
  }
  return prompt.Control("<|im_start|>").Text("assistant\n").Encode();
}

absl::StatusOr<std::vector<int32_t>> ApplyLlama3(const Tokenizer& tokenizer,
                                                 const std::vector<ChatMessage>& messages) {
  PromptBuilder prompt(tokenizer);
  const auto header = [&prompt](std::string_view role) {
    prompt.Control("<|start_header_id|>").Text(role).Control("<|end_header_id|>").Text("\n\n");
  };
  prompt.Id(tokenizer.bos_id());
  for (const ChatMessage& message : messages) {
    header(message.role);
    prompt.Text(Strip(message.content)).Control("<|eot_id|>");
  }
  header("assistant");
  return prompt.Encode();
}

// A leading system message, and user and assistant in turns after it.
struct Turns {
  std::optional<std::string> system;
  std::vector<ChatMessage> messages;
};

absl::StatusOr<Turns> SplitTurns(const std::vector<ChatMessage>& messages) {
  Turns turns;
  size_t first = 0;
  if (messages[0].role == "system") {
    turns.system = messages[0].content;
    first = 1;
  }
  turns.messages.assign(messages.begin() + first, messages.end());
  for (size_t i = 0; i < turns.messages.size(); ++i) {
    const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
    if (turns.messages[i].role != expected) {
      return absl::InvalidArgumentError(fmt::format(
          "messages[{}].role is \"{}\"; this model's chat form needs user and assistant in turns, "
          "after one system message at most",
          first + i, turns.messages[i].role));
    }
  }
  if (turns.messages.empty()) {
    return absl::InvalidArgumentError("messages: this model's chat form needs a user message");
  }
  return turns;
}

absl::StatusOr<std::vector<int32_t>> ApplyLlama2(const Tokenizer& tokenizer,
                                                 const std::vector<ChatMessage>& messages) {
  LH_ASSIGN_OR_RETURN(const Turns turns, SplitTurns(messages));
  const int32_t eos = tokenizer.SpecialId("</s>");
  PromptBuilder prompt(tokenizer);
  for (size_t i = 0; i < turns.messages.size(); ++i) {
    std::string content = turns.messages[i].content;
    if (i == 0 && turns.system) {
      content = fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", *turns.system, content);
    }
    const std::string_view stripped = Strip(content);
    if (i % 2 == 0) {
      prompt.Id(tokenizer.bos_id()).Text("[INST] ").Text(stripped).Text(" [/INST]");
    } else {
      prompt.Text(" ").Text(stripped).Text(" ").Id(eos);
    }
  }
  return prompt.Encode();
}

// Two generations: [INST] as plain text, the system text before the first user message; [INST] as a
// control token, the system text before the last one.
absl::StatusOr<std::vector<int32_t>> ApplyMistral(const Tokenizer& tokenizer,
                                                  const std::vector<ChatMessage>& messages) {
  LH_ASSIGN_OR_RETURN(const Turns turns, SplitTurns(messages));
  const int32_t eos = tokenizer.SpecialId("</s>");
  const bool has_control = tokenizer.SpecialId("[INST]") >= 0;
  const size_t n = turns.messages.size();
  const size_t system_at = has_control ? (n - 1) / 2 * 2 : 0;
  PromptBuilder prompt(tokenizer);
  prompt.Id(tokenizer.bos_id());
  for (size_t i = 0; i < n; ++i) {
    const std::string& content = turns.messages[i].content;
    if (i % 2 == 1) {
      if (has_control) {
        prompt.Text(" ").Text(Strip(content)).Id(eos);
      } else {
        prompt.Text(content).Id(eos);
      }
      continue;
    }
    const std::string system =
        turns.system && i == system_at ? *turns.system + "\n\n" : std::string();
    if (has_control) {
      prompt.Control("[INST]").Text(" ").Text(system).Text(content).Control("[/INST]");
    } else {
      prompt.Text("[INST] ").Text(system).Text(content).Text(" [/INST]");
    }
  }
  return prompt.Encode();
}

}  // namespace

std::string_view ChatFormName(ChatForm form) {
  switch (form) {
    case ChatForm::kNone:
      return "none";
    case ChatForm::kChatMl:
      return "chatml";
    case ChatForm::kLlama3:
      return "llama3";
    case ChatForm::kLlama2:
      return "llama2";
    case ChatForm::kMistral:
      return "mistral";
  }
  return "none";
}

ChatForm DetectChatForm(const std::string& model_dir, const Tokenizer& tokenizer) {
  const std::string text = ReadTemplateText(model_dir);
  const auto has_token = [&](std::string_view name) { return tokenizer.SpecialId(name) >= 0; };
  // Without a template the special tokens alone decide.
  const auto mentions = [&](std::string_view marker) {
    return text.empty() || text.find(marker) != std::string::npos;
  };
  if (mentions("<|im_start|>") && has_token("<|im_start|>") && has_token("<|im_end|>")) {
    return ChatForm::kChatMl;
  }
  if (mentions("<|start_header_id|>") && has_token("<|start_header_id|>") &&
      has_token("<|end_header_id|>") && has_token("<|eot_id|>")) {
    if (text.find("Cutting Knowledge Date") != std::string::npos) {
      spdlog::warn(
          "{}: the chat template puts dates into the system message; the built-in llama3 "
          "form does not",
          model_dir);
    }
    return ChatForm::kLlama3;
  }
  if (!text.empty() && text.find("[INST]") != std::string::npos) {
    return text.find("<<SYS>>") != std::string::npos ? ChatForm::kLlama2 : ChatForm::kMistral;
  }
  if (text.empty() && has_token("[INST]") && has_token("[/INST]")) return ChatForm::kMistral;
  return ChatForm::kNone;
}

absl::StatusOr<std::vector<int32_t>> ApplyChatTemplate(ChatForm form, const Tokenizer& tokenizer,
                                                       const std::vector<ChatMessage>& messages) {
  if (form == ChatForm::kNone) {
    return absl::FailedPreconditionError(
        "this model has no chat form that is built in (chatml, llama3, llama2, mistral); send the "
        "rendered prompt to /v1/completions");
  }
  if (messages.empty()) return absl::InvalidArgumentError("messages is empty");
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(
          fmt::format("messages[{}].role is \"{}\"; expected system, user or assistant", i, role));
    }
  }
  switch (form) {
    case ChatForm::kChatMl:
      return ApplyChatMl(tokenizer, messages);
    case ChatForm::kLlama3:
      return ApplyLlama3(tokenizer, messages);
    case ChatForm::kLlama2:
      return ApplyLlama2(tokenizer, messages);
    default:
      return ApplyMistral(tokenizer, messages);
  }
}

}  // namespace longhaul
