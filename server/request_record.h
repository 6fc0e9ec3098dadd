// RequestRecord: what is known of a request when it is over, for metrics and the request log. Made
// by Session and Generation, by front ends for what never reached the Session. Holds numbers, codes
// and ids; no text of the user. Plain data, any thread.
#pragma once

#include <string>
#include <vector>

#include "server/api/types.h"

namespace longhaul {

struct RequestRecord {
  std::string request_id;
  bool chat = false;
  bool refused = false;  // not taken: summary.status says why; no token was computed for it
  int http_status = 0;   // of a refusal whose status alone does not tell; else 0
  int32_t n = 1;
  api::Summary summary;                // status Cancelled when the Generation was dropped
  std::vector<FinishReason> finished;  // of the choices that ended
  double e2e_s = 0;                    // accepted until the end
  std::vector<double> token_gaps_s;    // between the tokens of a choice; at most the first 4096
};

// The record of a request that was refused now.
RequestRecord RefusalRecord(std::string request_id, bool chat, const api::FrontPhases& phases,
                            absl::Status status);

// Why: one of kRefusalReasons.
const char* RefusalReason(const RequestRecord& record);
inline constexpr const char* kRefusalReasons[] = {
    "queue_full",      // of requests, of prompt tokens, or of requests to tokenize
    "deadline",        // cannot be met
    "context_length",  // longer than the model, or than the page pool
    "body_too_large",  // --max-body-bytes
    "unauthorized",    // no or a wrong API key
    "unavailable",     // loading or draining
    "cancelled",       // the client went away before it was taken
    "invalid",         // everything else that the client can correct
    "error",           // our fault
};

// The phases before the engine, as a summary tells them.
api::Timings FrontTimings(const api::FrontPhases& phases);

}  // namespace longhaul
