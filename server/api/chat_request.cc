#include "server/api/chat_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/api/status_map.h"
#include "server/text/jinja/json_value.h"

namespace longhaul::api {
namespace {

using jinja::Dict;
using jinja::Value;
using nlohmann::json;

constexpr size_t kMaxMessages = 65536;

// Variables that the server sets itself.
constexpr std::string_view kReserved[] = {"messages",      "tools",     "documents",
                                          "chat_template", "bos_token", "add_generation_prompt"};

// Content of a message: text, or parts of type text. Only an assistant may have said nothing.
std::string ReadContent(JsonFields& message, const std::string& role) {
  const json* content = message.Get("content");
  if (content == nullptr) {
    if (role != "assistant") message.Fail("content", "is missing");
    return "";
  }
  if (content->is_string()) return content->get_ref<const std::string&>();
  if (!content->is_array()) {
    message.Fail("content", fmt::format("must be a string or an array of parts, got {}",
                                        JsonTypeName(*content)));
    return "";
  }
  std::string text;
  for (const json& part : *content) {
    if (!part.is_object()) {
      message.Fail("content", fmt::format("must hold objects, got {}", JsonTypeName(part)));
      return "";
    }
    JsonFields fields(part);
    std::string type, part_text;
    fields.String("type", &type);
    if (type != "text") {
      message.Fail("content",
                   fmt::format("holds a part of type '{}'; only 'text' is supported", type));
    } else if (!fields.String("text", &part_text)) {
      message.Fail("content", "holds a part of type 'text' without a string 'text'");
    }
    text += part_text;
  }
  return text;
}

// True when a message has fields that only the template can use.
bool HasExtra(const json& message) {
  return std::any_of(message.items().begin(), message.items().end(), [](const auto& item) {
    return item.key() != "role" && item.key() != "content";
  });
}

std::vector<ChatMessage> ReadMessages(JsonFields& fields, bool* has_extra) {
  const json* messages = fields.Get("messages");
  std::vector<ChatMessage> out;
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    fields.Fail("messages", "must be an array with at least one message");
    return out;
  }
  if (messages->size() > kMaxMessages) {
    fields.Fail("messages", fmt::format("may hold at most {} messages, got {}", kMaxMessages,
                                        messages->size()));
    return out;
  }
  out.reserve(messages->size());
  for (size_t i = 0; i < messages->size(); ++i) {
    const json& element = (*messages)[i];
    if (!element.is_object()) {
      fields.Fail("messages", fmt::format("must hold objects, got {}", JsonTypeName(element)));
      return out;
    }
    JsonFields message(element, fmt::format("messages[{}].", i));
    ChatMessage& parsed = out.emplace_back();
    if (!message.String("role", &parsed.role)) message.Fail("role", "is missing");
    if (parsed.role == "developer") parsed.role = "system";  // OpenAI's newer name
    parsed.content = ReadContent(message, parsed.role);
    message.Refuse("function_call");
    message.Refuse("audio");
    *has_extra |= HasExtra(element);
    if (!message.ok()) {
      fields.Adopt(message.status());
      return out;
    }
  }
  return out;
}

// OpenAI sends the arguments of a call as JSON in a string, templates expect them as a dict.
Value WithParsedArguments(const Value& call) {
  if (!call.is_dict()) return call;
  const Value* function = call.dict().Find("function");
  if (function == nullptr || !function->is_dict()) return call;
  const Value* arguments = function->dict().Find("arguments");
  if (arguments == nullptr || !arguments->is_string()) return call;
  absl::StatusOr<Value> parsed = jinja::ParseJsonValue(
      arguments->text().empty() ? std::string_view("{}") : std::string_view(arguments->text()));
  if (!parsed.ok()) return call;
  Dict new_function = function->dict(), new_call = call.dict();
  new_function.Set("arguments", *std::move(parsed));
  new_call.Set("function", Value::Of(std::move(new_function)));
  return Value::Of(std::move(new_call));
}

// Templates read the thoughts of earlier answers as reasoning_content; clients send older names,
// too.
void AliasReasoning(Dict* fields) {
  for (const std::string_view name : {"reasoning_content", "thinking", "reasoning"}) {
    const Value* found = fields->Find(name);
    if (found == nullptr || found->is_none()) continue;
    const Value reasoning = *found;
    fields->Set("reasoning_content", reasoning);
    if (fields->Find("thinking") == nullptr) fields->Set("thinking", reasoning);
    return;
  }
}

Value ExtraOf(const Value& message) {
  Dict extra;
  for (const auto& [key, value] : message.dict().entries()) {
    if (key.text() == "role" || key.text() == "content") continue;
    if (key.text() != "tool_calls" || !value.is_sequence()) {
      extra.Set(key, value);
      continue;
    }
    // Without calls a message is a plain one, whatever the template makes of an empty list.
    if (!value.Truthy()) continue;
    std::vector<Value> calls;
    for (const Value& call : value.sequence().items) calls.push_back(WithParsedArguments(call));
    extra.Set(key, Value::List(std::move(calls)));
  }
  AliasReasoning(&extra);
  return extra.empty() ? Value() : Value::Of(std::move(extra));
}

// A list of objects, as tools and documents are.
bool CheckObjects(JsonFields& fields, const char* name) {
  const json* list = fields.Get(name);
  if (list == nullptr) return false;
  if (!list->is_array() ||
      !std::all_of(list->begin(), list->end(), [](const json& item) { return item.is_object(); })) {
    fields.Fail(name, "must be an array of objects");
    return false;
  }
  return !list->empty();
}

// Whether the template shall see the tools.
bool WantsTools(JsonFields& fields) {
  const json* choice = fields.Get("tool_choice");
  const bool has_tools = CheckObjects(fields, "tools");
  if (choice == nullptr || !has_tools) return has_tools;
  if (*choice == "none") return false;
  if (*choice != "auto") {
    fields.Fail("tool_choice", "may be 'auto' or 'none': this server does not force a call");
  }
  return true;
}

bool CheckVariables(JsonFields& fields) {
  const json* variables = fields.Object("chat_template_kwargs");
  if (variables == nullptr) return false;
  for (const std::string_view name : kReserved) {
    if (variables->contains(std::string(name))) {
      fields.Fail("chat_template_kwargs",
                  fmt::format("may not set '{}', which the server sets itself", name));
    }
  }
  return !variables->empty();
}

}  // namespace

ChatPrompt ReadChatPrompt(JsonFields& fields, std::string_view body) {
  ChatPrompt prompt;
  bool has_extra = false;
  prompt.messages = ReadMessages(fields, &has_extra);
  if (fields.Get("chat_template") != nullptr) {
    fields.Fail("chat_template",
                "is not taken from requests: a template is a program, and this server runs only "
                "the model's own or that of --chat-template; leave it out");
  }
  const bool has_generation_prompt =
      fields.Bool("add_generation_prompt", &prompt.add_generation_prompt);
  fields.Bool("continue_final_message", &prompt.continue_final_message);
  if (prompt.continue_final_message && has_generation_prompt && prompt.add_generation_prompt) {
    fields.Fail("continue_final_message", "cannot be set together with 'add_generation_prompt'");
  }
  const bool has_tools = WantsTools(fields), has_documents = CheckObjects(fields, "documents");
  const bool has_variables = CheckVariables(fields);
  if (!fields.ok() || (!has_extra && !has_tools && !has_documents && !has_variables)) return prompt;

  const absl::StatusOr<Value> parsed = jinja::ParseJsonValue(body);
  if (!parsed.ok()) {
    fields.Adopt(parsed.status());
    return prompt;
  }
  const Dict& object = parsed->dict();
  if (has_tools) prompt.tools = *object.Find("tools");
  if (has_documents) prompt.documents = *object.Find("documents");
  if (has_variables) prompt.variables = *object.Find("chat_template_kwargs");
  if (!has_extra) return prompt;
  const std::vector<Value>& messages = object.Find("messages")->sequence().items;
  for (size_t i = 0; i < prompt.messages.size(); ++i)
    prompt.messages[i].extra = ExtraOf(messages[i]);
  return prompt;
}

}  // namespace longhaul::api
