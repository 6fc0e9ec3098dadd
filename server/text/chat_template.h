// Built-in chat forms: ChatML, Llama-3, Llama-2/Mistral, chosen from the model folder's files.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/tokenizer.h"

namespace longhaul {

struct ChatMessage {
  std::string role;  // system, user, assistant; others are InvalidArgument
  std::string content;
};

enum class ChatForm : uint8_t { kNone, kChatMl, kLlama3, kLlama2, kMistral };
std::string_view ChatFormName(ChatForm form);

// Looks at chat_template (tokenizer_config.json, chat_template.jinja) and at the special tokens.
// kNone when nothing fits: chat requests are then refused with FailedPrecondition and the reason.
ChatForm DetectChatForm(const std::string& model_dir, const Tokenizer& tokenizer);

// Token ids of a conversation, ready for the assistant's answer. Control tokens come from the form;
// the contents are encoded as plain text, so a user cannot forge them.
absl::StatusOr<std::vector<int32_t>> ApplyChatTemplate(ChatForm form, const Tokenizer& tokenizer,
                                                       const std::vector<ChatMessage>& messages);

}  // namespace longhaul
