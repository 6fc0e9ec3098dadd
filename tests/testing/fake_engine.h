// A model-free engine and a byte tokenizer for tests of the server: what each request answers is a
// script of the test, run on a thread of its own as the engine thread would. Each request is
// accepted first, unless SetVerdict says otherwise.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/stream_state.h"
#include "server/session.h"

namespace longhaul {

// Token ids are bytes; 256 = <bos>, 257 = <eos>, 258 = <|im_start|>, 259 = <|im_end|>.
class ByteTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kBos = 256, kEos = 257, kImStart = 258, kImEnd = 259, kVocab = 260;

  ByteTokenizer() {
    for (int b = 0; b < 256; ++b) bytes_[b] = static_cast<char>(b);
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_bos,
                                              SpecialTokens special) const override {
    std::vector<int32_t> ids;
    if (add_bos) ids.push_back(kBos);
    while (!text.empty()) {
      int32_t id = static_cast<uint8_t>(text[0]);
      for (int32_t s = 256; special == SpecialTokens::kParse && s < kVocab; ++s) {
        if (text.substr(0, TokenText(s).size()) == TokenText(s)) id = s;
      }
      ids.push_back(id);
      text.remove_prefix(id < 256 ? 1 : TokenText(id).size());
    }
    return ids;
  }
  std::string_view TokenBytes(int32_t id) const override {
    return id < 256 ? std::string_view(&bytes_[id], 1) : std::string_view();
  }
  std::string TokenText(int32_t id) const override {
    static const std::array<const char*, 4> kNames = {"<bos>", "<eos>", "<|im_start|>",
                                                      "<|im_end|>"};
    return id < 256 ? std::string(TokenBytes(id)) : kNames[id - 256];
  }
  std::string Decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    for (const int32_t id : ids) text += TokenBytes(id);
    return text;
  }
  bool drops_first_space() const override { return false; }
  int32_t vocab_size() const override { return kVocab; }
  int32_t bos_id() const override { return kBos; }
  const std::vector<int32_t>& eos_ids() const override { return eos_ids_; }
  bool IsSpecial(int32_t id) const override { return id >= 256; }
  int32_t SpecialId(std::string_view text) const override {
    for (int32_t id = 256; id < kVocab; ++id) {
      if (TokenText(id) == text) return id;
    }
    return -1;
  }

 private:
  std::array<char, 256> bytes_;
  std::vector<int32_t> eos_ids_ = {kEos};
};

inline std::unique_ptr<const ChatTemplate> FakeChat(ChatForm form = ChatForm::kChatMl) {
  return ChatTemplate::BuiltIn(form, ByteTokenizer());
}

class FakeEngine final : public Engine {
 public:
  // Must end with a DoneEvent, and soon when state.cancelled().
  using Script = std::function<void(const Request& request, StreamState& state)>;

  explicit FakeEngine(Script script, int64_t max_model_len = 4096)
      : script_(std::move(script)), max_model_len_(max_model_len) {
    shape_.n_layers = 2;
    shape_.vocab_size = ByteTokenizer::kVocab;
  }
  ~FakeEngine() override {
    for (std::thread& thread : threads_) thread.join();
  }

  absl::StatusOr<TokenStream> Submit(Request request) override {
    const std::lock_guard lock(mutex_);
    if (!submit_status_.ok()) return submit_status_;
    requests_.push_back(request);
    auto state = std::make_shared<StreamState>([] {});
    ++n_running_;
    threads_.emplace_back([this, state, request = std::move(request), verdict = verdict_] {
      RunScript(request, verdict, *state);
      if (state->cancelled()) ++n_cancelled_;
      --n_running_;
    });
    return TokenStream(state);
  }
  absl::Status CheckQueue() const override {
    const std::lock_guard lock(mutex_);
    return queue_status_;
  }
  EngineStats Stats() const override {
    EngineStats stats;
    stats.n_running = n_running_;
    stats.n_pages_total = 100;
    stats.prompt_tokens = 7;
    return stats;
  }
  absl::Status Health() const override {
    const std::lock_guard lock(mutex_);
    return health_;
  }
  const ModelShape& shape() const override { return shape_; }
  int64_t max_model_len() const override { return max_model_len_; }
  bool Drain(std::chrono::milliseconds) override { return n_running_ == 0; }
  absl::Status CheckIntegrity() override { return absl::OkStatus(); }

  void SetSubmitStatus(absl::Status status) {
    const std::lock_guard lock(mutex_);
    submit_status_ = std::move(status);
  }
  void SetQueueStatus(absl::Status status) {
    const std::lock_guard lock(mutex_);
    queue_status_ = std::move(status);
  }
  void SetHealth(absl::Status status) {
    const std::lock_guard lock(mutex_);
    health_ = std::move(status);
  }
  // Requests from now on get this as their only event, as from an engine whose prediction says no.
  void SetVerdict(absl::Status status) {
    const std::lock_guard lock(mutex_);
    verdict_ = std::move(status);
  }
  // As long as held, requests are neither accepted nor refused.
  void HoldVerdicts(bool hold) { hold_verdicts_ = hold; }
  Request last_request() {
    const std::lock_guard lock(mutex_);
    return requests_.back();
  }
  size_t n_requests() {
    const std::lock_guard lock(mutex_);
    return requests_.size();
  }
  int n_cancelled() const { return n_cancelled_; }
  int n_running() const { return n_running_; }

 private:
  void RunScript(const Request& request, const absl::Status& verdict, StreamState& state) const {
    while (hold_verdicts_ && !state.cancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (verdict.ok()) {
      state.Emit(AcceptedEvent{});
      return script_(request, state);
    }
    DoneEvent done;
    done.status = verdict;
    done.prompt_tokens = static_cast<int64_t>(request.prompt.size());
    state.Emit(done);
  }

  const Script script_;
  const int64_t max_model_len_;
  ModelShape shape_;
  mutable std::mutex mutex_;
  absl::Status submit_status_, queue_status_, verdict_, health_;
  std::vector<Request> requests_;
  std::vector<std::thread> threads_;
  std::atomic<bool> hold_verdicts_{false};
  std::atomic<int> n_running_{0};
  std::atomic<int> n_cancelled_{0};
};

// Emits one byte of a choice.
inline void EmitByte(StreamState& state, char byte, int32_t choice = 0,
                     std::optional<FinishReason> finish = std::nullopt) {
  TokenEvent event;
  event.choice = choice;
  event.token = static_cast<uint8_t>(byte);
  event.finish = finish;
  event.logprob = -0.5f;
  event.top_logprobs = {{event.token, -0.5f}, {'z', -2.0f}};
  state.Emit(event);
}

// Emits text byte by byte and an end token.
inline void EmitText(StreamState& state, std::string_view text, int32_t choice = 0) {
  for (const char byte : text) EmitByte(state, byte, choice);
  TokenEvent end;
  end.choice = choice;
  end.token = ByteTokenizer::kEos;
  end.finish = FinishReason::kStop;
  state.Emit(end);
}

inline void EmitDone(StreamState& state, const Request& request,
                     absl::Status status = absl::OkStatus()) {
  DoneEvent done;
  done.status = state.cancelled() ? absl::CancelledError("cancelled") : std::move(status);
  done.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  done.cached_tokens = 2;
  done.queue_us = 10;
  done.prefill_us = 20;
  done.decode_us = 30;
  state.Emit(done);
}

// Every choice says `text`.
inline FakeEngine::Script Says(std::string text) {
  return [text](const Request& request, StreamState& state) {
    for (int32_t i = 0; i < request.n; ++i) EmitText(state, text, i);
    EmitDone(state, request);
  };
}

// Says nothing until it is cancelled.
inline FakeEngine::Script Hangs() {
  return [](const Request& request, StreamState& state) {
    while (!state.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EmitDone(state, request);
  };
}

inline SessionConfig TestSessionConfig() {
  SessionConfig config;
  config.served_model_name = "test-model";
  config.sparse.mode = SparseMode::kDense;
  return config;
}

}  // namespace longhaul
