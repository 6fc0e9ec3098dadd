#include "server/text/chat_template.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "server/text/jinja/py_string.h"
#include "server/text/json_file.h"

namespace longhaul {
namespace {

using jinja::Dict;
using jinja::Value;
using nlohmann::json;

// Behind the last message while it is rendered, so that the text can be cut there. The space shows
// whether the template strips the message. As transformers does it.
constexpr std::string_view kContinueMark = "CONTINUE_FINAL_MESSAGE_TAG ";

constexpr std::string_view kChatMl = R"({%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant'] %}
{{- raise_exception('roles are system, user and assistant') }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %})";

constexpr std::string_view kLlama3 = R"({{- bos_token }}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant'] %}
{{- raise_exception('roles are system, user and assistant') }}
{%- endif %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim }}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %})";

// [INST] as a control token; the system text stands before the last message of the user.
constexpr std::string_view kMistral = R"({{- bos_token }}
{%- set has_system = messages[0].role == 'system' %}
{%- set turns = messages[1:] if has_system else messages %}
{%- for message in turns %}
{%- if message.role != ('user' if loop.index0 is even else 'assistant') %}
{{- raise_exception('user and assistant take turns, after one system message at most') }}
{%- endif %}
{%- if message.role == 'user' %}
{%- set is_last = loop.index0 + 2 >= loop.length + loop.length % 2 %}
{{- '[INST] ' + (messages[0].content + '\n\n' if has_system and is_last else '') }}
{{- message.content + '[/INST]' }}
{%- else %}
{{- ' ' + message.content | trim + eos_token }}
{%- endif %}
{%- else %}
{{- raise_exception('a message of the user is missing') }}
{%- endfor %})";

std::pair<const char*, std::string_view> BuiltInText(ChatForm form) {
  switch (form) {
    case ChatForm::kNone:
      break;
    case ChatForm::kChatMl:
      return {"chatml", kChatMl};
    case ChatForm::kLlama3:
      return {"llama3", kLlama3};
    case ChatForm::kMistral:
      return {"mistral", kMistral};
  }
  return {"none", ""};
}

absl::Status Annotate(const std::string& where, const absl::Status& status) {
  return absl::Status(status.code(), fmt::format("{}: {}", where, std::string(status.message())));
}

// A member that is text, or an object with the text in "content"; nullopt: neither.
std::optional<std::string> TokenOf(const json& config, const std::string& key) {
  const auto found = config.find(key);
  if (found == config.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_object()) return std::nullopt;
  const auto content = found->find("content");
  if (content == found->end() || !content->is_string()) return std::nullopt;
  return content->get<std::string>();
}

std::string StrippedMark() { return std::string(jinja::StripRight(kContinueMark)); }

// The rendered text up to the end of the last message, which is marked in it.
absl::StatusOr<std::string> CutAtMark(std::string text) {
  const size_t at = text.rfind(StrippedMark());
  if (at == std::string::npos) {
    return absl::InvalidArgumentError(
        "continue_final_message: the chat template leaves out the last message, so it cannot be "
        "continued");
  }
  const bool keeps_space = text.compare(at, kContinueMark.size(), kContinueMark) == 0;
  text.resize(at);
  // Where the template strips the message, so must its end be.
  if (!keeps_space) text.resize(jinja::StripRight(text).size());
  return text;
}

}  // namespace

ChatForm DetectChatForm(const Tokenizer& tokenizer) {
  const auto has_tokens = [&](std::initializer_list<std::string_view> names) {
    return std::all_of(names.begin(), names.end(),
                       [&](std::string_view name) { return tokenizer.SpecialId(name) >= 0; });
  };
  if (has_tokens({"<|im_start|>", "<|im_end|>"})) return ChatForm::kChatMl;
  if (has_tokens({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"})) {
    return ChatForm::kLlama3;
  }
  return has_tokens({"[INST]", "[/INST]"}) ? ChatForm::kMistral : ChatForm::kNone;
}

absl::Status ChatTemplate::AddTemplate(const std::string& name, std::string_view text) {
  absl::StatusOr<std::unique_ptr<const jinja::Template>> parsed = jinja::Template::Parse(text);
  if (!parsed.ok()) return parsed.status();
  (name == "tool_use" ? tool_use_ : default_) = *std::move(parsed);
  return absl::OkStatus();
}

void ChatTemplate::FindEndOfTurn(std::string_view text, const Tokenizer& tokenizer) {
  for (const std::string_view name : {"<|im_end|>", "<|eot_id|>", "<end_of_turn>"}) {
    const int32_t id = tokenizer.SpecialId(name);
    if (id >= 0 && text.find(name) != std::string_view::npos) end_of_turn_ids_.push_back(id);
  }
}

absl::Status ChatTemplate::ReadSpecialTokens(const std::string& model_dir,
                                             const Tokenizer& tokenizer) {
  constexpr const char* kNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                    "pad_token", "cls_token", "mask_token"};
  bool any_file = false;
  for (const char* file : {"/special_tokens_map.json", "/tokenizer_config.json"}) {
    const absl::StatusOr<json> config = ReadJsonFile(model_dir + file);
    if (absl::IsNotFound(config.status())) continue;
    if (!config.ok()) return config.status();
    any_file = true;
    for (const char* name : kNames) {
      if (auto text = TokenOf(*config, name)) special_tokens_.Set(name, Value::String(*text));
    }
  }
  if (any_file) return absl::OkStatus();
  const auto set = [&](const char* name, int32_t id) {
    if (id >= 0) special_tokens_.Set(name, Value::String(tokenizer.TokenText(id)));
  };
  set("bos_token", tokenizer.bos_id());
  set("eos_token", tokenizer.eos_ids().empty() ? -1 : tokenizer.eos_ids().front());
  return absl::OkStatus();
}

std::unique_ptr<ChatTemplate> ChatTemplate::None(absl::Status reason) {
  auto none = std::unique_ptr<ChatTemplate>(new ChatTemplate());
  none->unusable_ = std::move(reason);
  return none;
}

std::unique_ptr<const ChatTemplate> ChatTemplate::BuiltIn(ChatForm form,
                                                          const Tokenizer& tokenizer) {
  if (form == ChatForm::kNone) {
    return None(absl::FailedPreconditionError(
        "this model has no chat template, and its tokens fit none that is built in (chatml, "
        "llama3, mistral); start the server with --chat-template FILE, or send the rendered prompt "
        "to /v1/completions"));
  }
  const auto [name, text] = BuiltInText(form);
  auto chat = std::unique_ptr<ChatTemplate>(new ChatTemplate());
  chat->source_ = fmt::format("built in: {}", name);
  chat->unusable_ = chat->AddTemplate("default", text);
  const auto set = [&](const char* token, int32_t id) {
    chat->special_tokens_.Set(token, Value::String(id >= 0 ? tokenizer.TokenText(id) : ""));
  };
  set("bos_token", tokenizer.bos_id());
  set("eos_token", tokenizer.eos_ids().empty() ? -1 : tokenizer.eos_ids().front());
  chat->FindEndOfTurn(text, tokenizer);
  return chat;
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::LoadFolder(const std::string& model_dir,
                                                                       const Tokenizer& tokenizer) {
  auto chat = std::unique_ptr<ChatTemplate>(new ChatTemplate());
  const std::string jinja_path = model_dir + "/chat_template.jinja";
  const absl::StatusOr<std::string> file = ReadFileCapped(jinja_path, jinja::kMaxTemplate_bytes);
  if (file.ok()) {
    chat->source_ = "chat_template.jinja";
    if (auto status = chat->AddTemplate("default", *file); !status.ok()) {
      return Annotate(jinja_path, status);
    }
    chat->FindEndOfTurn(*file, tokenizer);
    return chat;
  }
  if (!absl::IsNotFound(file.status())) return file.status();
  const std::string config_path = model_dir + "/tokenizer_config.json";
  const absl::StatusOr<json> config = ReadJsonFile(config_path);
  if (absl::IsNotFound(config.status())) return nullptr;
  if (!config.ok()) return config.status();
  const auto found = config->find("chat_template");
  if (found == config->end() || found->is_null()) return nullptr;
  chat->source_ = "tokenizer_config.json";
  // One text, or several by name of which "default" and "tool_use" mean something.
  const json list =
      found->is_string() ? json::array({{{"name", "default"}, {"template", *found}}}) : *found;
  for (const json& item : list.is_array() ? list : json::array()) {
    const auto name = item.is_object() ? TokenOf(item, "name") : std::nullopt;
    const auto text = item.is_object() ? TokenOf(item, "template") : std::nullopt;
    if (!name || !text || (*name != "default" && *name != "tool_use")) continue;
    if (auto status = chat->AddTemplate(*name, *text); !status.ok()) {
      return Annotate(fmt::format("{}: chat_template \"{}\"", config_path, *name), status);
    }
    chat->FindEndOfTurn(*text, tokenizer);
  }
  if (chat->default_ == nullptr) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: chat_template is neither a text nor a list with a template named \"default\"",
        config_path));
  }
  return chat;
}

absl::StatusOr<std::unique_ptr<const ChatTemplate>> ChatTemplate::Load(
    const std::string& model_dir, const std::string& override_file, const Tokenizer& tokenizer) {
  std::unique_ptr<ChatTemplate> chat;
  if (!override_file.empty()) {
    LH_ASSIGN_OR_RETURN(const std::string text,
                        ReadFileCapped(override_file, jinja::kMaxTemplate_bytes));
    chat = std::unique_ptr<ChatTemplate>(new ChatTemplate());
    chat->source_ = override_file;
    if (auto status = chat->AddTemplate("default", text); !status.ok()) {
      return Annotate(override_file, status);
    }
    chat->FindEndOfTurn(text, tokenizer);
  } else {
    absl::StatusOr<std::unique_ptr<ChatTemplate>> loaded = LoadFolder(model_dir, tokenizer);
    if (!loaded.ok()) {
      const std::string reason(loaded.status().message());
      spdlog::warn("{}; chat requests will be refused. --chat-template FILE gives another one",
                   reason);
      return None(absl::FailedPreconditionError(
          fmt::format("this model's chat template cannot be used: {}", reason)));
    }
    if (*loaded == nullptr) return BuiltIn(DetectChatForm(tokenizer), tokenizer);
    chat = *std::move(loaded);
  }
  LH_RETURN_IF_ERROR(chat->ReadSpecialTokens(model_dir, tokenizer));
  return chat;
}

absl::StatusOr<const jinja::Template*> ChatTemplate::Choose(const ChatPrompt& prompt) const {
  if (!unusable_.ok()) return unusable_;
  if (prompt.messages.empty()) return absl::InvalidArgumentError("messages is empty");
  if (!prompt.tools.Truthy()) return default_.get();
  const jinja::Template* chosen = tool_use_ != nullptr ? tool_use_.get() : default_.get();
  if (chosen->Uses("tools")) return chosen;
  return absl::InvalidArgumentError(
      "tools: this model's chat template does not show tools to the model; leave them out");
}

// `mark` is put behind the content of the last message.
Dict ChatTemplate::Variables(const ChatPrompt& prompt, std::string_view mark) const {
  std::vector<Value> messages;
  messages.reserve(prompt.messages.size());
  for (const ChatMessage& message : prompt.messages) {
    Dict dict;
    dict.Set("role", Value::String(message.role));
    const bool is_last = &message == &prompt.messages.back();
    dict.Set("content", Value::String(is_last && !mark.empty() ? message.content + std::string(mark)
                                                               : message.content));
    if (message.extra.is_dict()) {
      for (const auto& [key, value] : message.extra.dict().entries()) dict.Set(key, value);
    }
    messages.push_back(Value::Of(std::move(dict)));
  }
  const auto or_none = [](const Value& value) { return value.Truthy() ? value : Value::None(); };
  Dict variables = special_tokens_;
  variables.Set("messages", Value::List(std::move(messages)));
  variables.Set("tools", or_none(prompt.tools));
  variables.Set("documents", or_none(prompt.documents));
  variables.Set("add_generation_prompt",
                Value::Bool(prompt.add_generation_prompt && !prompt.continue_final_message));
  if (prompt.variables.is_dict()) {
    for (const auto& [key, value] : prompt.variables.dict().entries()) variables.Set(key, value);
  }
  return variables;
}

absl::StatusOr<std::string> ChatTemplate::Render(const ChatPrompt& prompt, std::time_t now) const {
  LH_ASSIGN_OR_RETURN(const jinja::Template* chosen, Choose(prompt));
  const std::string_view mark = prompt.continue_final_message ? kContinueMark : "";
  LH_ASSIGN_OR_RETURN(std::string text, chosen->Render(Variables(prompt, mark), now));
  if (mark.empty()) return text;
  return CutAtMark(std::move(text));
}

}  // namespace longhaul
