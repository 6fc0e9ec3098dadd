// ChatTemplate: a conversation to the text that the model was trained on. Renders the template of
// the model folder (tokenizer_config.json or chat_template.jinja), or that of --chat-template; a
// folder without one gets a built-in form that fits its special tokens. Immutable after loading;
// any thread. Never renders a template that came with a request.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/jinja/template.h"
#include "server/text/jinja/value.h"
#include "server/text/tokenizer.h"

namespace longhaul {

struct ChatMessage {
  std::string role;
  std::string content;
  // A dict of further fields for the template (name, tool_calls, ...); undefined: none.
  jinja::Value extra = jinja::Value();
};

struct ChatPrompt {
  std::vector<ChatMessage> messages;
  bool add_generation_prompt = true;    // the beginning of the assistant's turn at the end
  bool continue_final_message = false;  // the answer goes on where the last message ends
  // What the request gave for the template; undefined: nothing.
  jinja::Value tools = jinja::Value();      // a list of dicts
  jinja::Value documents = jinja::Value();  // a list of dicts
  jinja::Value variables = jinja::Value();  // chat_template_kwargs: a dict
};

// Forms for folders without a template.
enum class ChatForm : uint8_t { kNone, kChatMl, kLlama3, kMistral };
// The form that the tokenizer's special tokens belong to.
ChatForm DetectChatForm(const Tokenizer& tokenizer);

class ChatTemplate {
 public:
  // `override_file` is the file of --chat-template, or empty. An error there is an error; a
  // template of the folder that cannot be used is a warning, and chat requests are refused with the
  // reason.
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Load(const std::string& model_dir,
                                                                  const std::string& override_file,
                                                                  const Tokenizer& tokenizer);
  static std::unique_ptr<const ChatTemplate> BuiltIn(ChatForm form, const Tokenizer& tokenizer);

  // The text of a conversation. InvalidArgument: what the template says about it (raise_exception),
  // or what is wrong and in which line; FailedPrecondition: this model has no template. `now` is
  // for templates that write the date.
  absl::StatusOr<std::string> Render(const ChatPrompt& prompt, std::time_t now) const;

  // Where the template comes from: "tokenizer_config.json", "built in: chatml", "none", ...
  const std::string& source() const { return source_; }
  // Tokens that end the assistant's turn in this form, which the model's files may not list as end
  // of sequence.
  const std::vector<int32_t>& end_of_turn_ids() const { return end_of_turn_ids_; }

 private:
  ChatTemplate() = default;

  static absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadFolder(const std::string& model_dir,
                                                                  const Tokenizer& tokenizer);
  static std::unique_ptr<ChatTemplate> None(absl::Status reason);
  absl::Status AddTemplate(const std::string& name, std::string_view text);
  absl::Status ReadSpecialTokens(const std::string& model_dir, const Tokenizer& tokenizer);
  void FindEndOfTurn(std::string_view text, const Tokenizer& tokenizer);
  absl::StatusOr<const jinja::Template*> Choose(const ChatPrompt& prompt) const;
  jinja::Dict Variables(const ChatPrompt& prompt, std::string_view mark) const;

  std::string source_ = "none";
  absl::Status unusable_;  // why there is no template
  std::unique_ptr<const jinja::Template> default_;
  std::unique_ptr<const jinja::Template> tool_use_;  // for requests with tools; may be null
  jinja::Dict special_tokens_;                       // "bos_token" and so on, as text
  std::vector<int32_t> end_of_turn_ids_;
};

}  // namespace longhaul
