// GenerationImpl: token events of the engine to text for one request. Detokenizes, applies stop
// strings, counts, times. Made by Session::Start; used by one thread at a time.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/token_stream.h"
#include "server/request_registry.h"
#include "server/session.h"
#include "server/text/detokenizer.h"
#include "server/text/stop_strings.h"

namespace longhaul {

// What a Generation shares with its Session and may need after the Session is gone.
struct SessionShared {
  SessionConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
  std::shared_ptr<RequestRegistry> registry = std::make_shared<RequestRegistry>();
};

struct GenerationParams {
  std::string request_id;
  bool chat = false;
  int32_t n = 1;
  int64_t prompt_tokens = 0;
  std::string echo;  // text that each choice starts with
  std::vector<std::string> stop;
  bool include_stop_in_output = false;
  int32_t n_logprobs = -1;         // of the answer
  int32_t n_prompt_logprobs = -1;  // PromptLogprobs chunks
  bool echo_logprobs = false;      // n_logprobs of the echoed prompt, too
  int32_t first_prompt_token = 0;
  int32_t min_tokens = 0;                   // stop strings are not looked for before
  std::vector<int32_t> requested_stop_ids;  // a choice that ends by one of them says so
  std::string sparse_mode;
  api::FrontPhases phases;
};

class GenerationImpl final : public Generation {
 public:
  GenerationImpl(std::shared_ptr<const SessionShared> shared, GenerationParams params,
                 TokenStream stream, std::unique_ptr<RequestRegistry::Entry> entry);
  ~GenerationImpl() override;

  std::optional<api::Chunk> TryNext() override;
  std::optional<api::Chunk> Next(std::chrono::microseconds timeout) override;
  void SetReadyCallback(std::function<void()> on_ready) override;
  void Cancel() override;
  int64_t prompt_tokens() const override { return params_.prompt_tokens; }

 private:
  // A token whose text was pushed but may not be shown yet.
  struct PendingToken {
    int32_t id = 0;
    int64_t begin_bytes = 0;  // where its text starts in the choice's text
    std::optional<api::TokenLogprobs> logprobs;
  };
  struct Choice {
    Choice(const Tokenizer* tokenizer, const GenerationParams& params)
        : detokenizer(tokenizer), stops(params.stop, params.include_stop_in_output) {}

    StreamDetokenizer detokenizer;
    StopStrings stops;
    std::vector<PendingToken> pending;
    int64_t pushed_bytes = 0;  // text made of tokens so far
    int64_t shown_bytes = 0;   // text given out, echo not counted
    int32_t n_tokens = 0;
    bool started = false;
    bool finished = false;
    std::optional<Clock::time_point> last_token;
  };

  void OnEvent(StreamEvent event);
  void OnPromptLogprobs(const PromptLogprobsEvent& event);
  void OnToken(const TokenEvent& event);
  void OnDone(const DoneEvent& event);
  // Those of a token of the prompt or the answer; the first n_logprobs of `top`.
  api::TokenLogprobs MakeLogprobs(int32_t token, float logprob,
                                  std::span<const TokenLogprob> top) const;
  // Puts what is echoed in front of a choice's first delta.
  void BeginChoice(Choice& choice, api::TextDelta* delta);
  // Text made of the token, and whether it or what it completed is a stop string.
  StopStrings::Result PushText(Choice& choice, const TokenEvent& event, bool is_end_token);
  void CountToken(Choice& choice);
  // Moves the pending tokens whose text is shown (all when the choice ended without a stop string).
  void TakeShownTokens(Choice& choice, bool all, api::TextDelta* delta);
  void Record(api::Summary summary);

  const std::shared_ptr<const SessionShared> shared_;
  const GenerationParams params_;
  TokenStream stream_;
  std::unique_ptr<RequestRegistry::Entry> entry_;  // until the end; its cancel uses stream_
  std::vector<Choice> choices_;
  std::deque<api::Chunk> chunks_;
  int64_t echoed_bytes_ = 0;  // of the prompt's tokens whose logprobs were given out
  int32_t n_finished_ = 0;
  bool stopped_early_ = false;  // every choice ended by a stop string: the rest was cancelled by us
  bool accepted_ = false;       // the engine took it
  bool recorded_ = false;
  int64_t completion_tokens_ = 0;
  std::optional<Clock::time_point> first_token_;
  std::vector<FinishReason> reasons_;
  std::vector<double> token_gaps_s_;
};

}  // namespace longhaul
