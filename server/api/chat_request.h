// What a chat request says about its prompt: messages, tools, documents and the variables of the
// chat template. Pure function; any thread.
#pragma once

#include <string_view>

#include "server/api/json_fields.h"
#include "server/text/chat_template.h"

namespace longhaul::api {

// `body` is the text that `fields` reads: fields for the template are read from it a second time,
// in the order in which it names their keys. Errors are kept in `fields`.
ChatPrompt ReadChatPrompt(JsonFields& fields, std::string_view body);

}  // namespace longhaul::api
