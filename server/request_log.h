// The request log: one line of JSON per request that is over, refused ones included. Ids, counts,
// codes and times; never text of a prompt or an answer. Any thread.
#pragma once

#include <string>

#include "server/request_record.h"

namespace longhaul {

// The line, without its end.
std::string RequestLogLine(const RequestRecord& record);

// Writes it to the process's log at level info.
void LogRequest(const RequestRecord& record);

}  // namespace longhaul
