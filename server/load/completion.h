// One OpenAI completion as the load generator sees it: the request body, and an answer that notes
// when each piece arrived. AnswerReader takes the bytes of one answer; one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "server/load/http_client.h"
#include "server/load/sse_parser.h"

namespace longhaul::load {

// What a request has besides its prompt; the same for all of a run.
struct CompletionStyle {
  std::string model;
  bool chat = false;        // /v1/chat/completions instead of /v1/completions
  bool longhaul = false;    // the server takes our extensions
  std::string sparse_mode;  // "" = the server's default; ours only
  std::string extra_body;   // a JSON object merged into every request, or ""
};

// Greedy, streamed, with usage; progress is asked for where the server has it.
std::string CompletionBody(const CompletionStyle& style, const std::string& prompt,
                           int64_t max_tokens, bool report_progress);
const char* CompletionPath(const CompletionStyle& style);

struct ProgressPoint {
  double at_s = 0;   // since the request began
  double share = 0;  // of the prompt, cached part included
  std::string phase;
};

struct Answer {
  bool complete = false;  // a whole answer
  bool stopped = false;   // we disconnected, as planned
  std::string failure;    // a kind to count by: "HTTP 429 rate_limit_exceeded"; "" = none
  std::string detail;     // what the server said
  double begin_s = 0;     // in the time of the run
  double ttft_s = -1;     // to the first text; -1 = none came
  double total_s = 0;
  std::vector<double> gaps_s;  // between pieces of text
  int64_t prompt_tokens = -1;  // of usage; -1 = the server did not say
  int64_t cached_tokens = -1;
  int64_t output_tokens = -1;
  std::string text;    // its beginning
  bool right = false;  // complete, and begins with the code that was asked for
  std::vector<ProgressPoint> progress;
};

class AnswerReader {
 public:
  // `begin` is the zero of all times. Stops when progress reaches stop_at_share (> 1: never).
  explicit AnswerReader(Clock::time_point begin, double stop_at_share = 2)
      : begin_(begin), stop_at_share_(stop_at_share) {}

  // A BodySink: false when no more is wanted.
  bool Take(const HttpHead& head, std::string_view bytes);
  // The call is over.
  Answer Finish(const HttpOutcome& outcome);

 private:
  bool TakeEvent(const std::string& data);
  void TakeText(const std::string& text, bool finished);
  void Fail(std::string kind, std::string detail);
  double Elapsed() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  const Clock::time_point begin_;
  const double stop_at_share_;
  SseParser parser_;
  Answer answer_;
  std::string error_body_;  // of an answer that is not 200, as far as kept
  bool done_ = false;       // [DONE] came
  bool finished_ = false;   // a finish_reason came
  double last_text_s_ = 0;
};

// Counts of failures by kind, each with the first text seen.
class Failures {
 public:
  void Add(const Answer& answer);
  void Add(const std::string& kind, const std::string& detail);
  int64_t n() const;
  struct Kind {
    int64_t count = 0;
    std::string first_detail;
  };
  const std::map<std::string, Kind>& kinds() const { return kinds_; }

 private:
  std::map<std::string, Kind> kinds_;
};

}  // namespace longhaul::load
