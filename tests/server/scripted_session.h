// A session whose generations the test plays by hand: what a Script pushes, the server reads. For
// tests of the gRPC server.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/session.h"
#include "tests/testing/fake_engine.h"

namespace longhaul {

// The end of a generation that the test holds: what it pushes, the server reads.
class Script {
 public:
  void Push(api::Chunk chunk) {
    std::function<void()> on_ready;
    {
      std::lock_guard lock(mutex_);
      chunks_.push_back(std::move(chunk));
      on_ready = on_ready_;
    }
    if (on_ready) on_ready();
  }
  void PushText(const std::string& text) {
    api::TextDelta delta;
    delta.text = text;
    Push(delta);
  }
  void PushSummary(absl::Status status = absl::OkStatus()) {
    api::Summary summary;
    summary.status = std::move(status);
    summary.usage.prompt_tokens = 7;
    summary.sparse_mode = "dense";
    Push(summary);
  }
  bool WaitDropped() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [this] { return dropped_; });
  }

 private:
  friend class FakeGeneration;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<api::Chunk> chunks_;
  std::function<void()> on_ready_;
  bool dropped_ = false;
};

class FakeGeneration final : public Generation {
 public:
  explicit FakeGeneration(std::shared_ptr<Script> script) : script_(std::move(script)) {}
  ~FakeGeneration() override {
    std::lock_guard lock(script_->mutex_);
    script_->dropped_ = true;
    script_->on_ready_ = nullptr;
    script_->changed_.notify_all();
  }
  std::optional<api::Chunk> TryNext() override {
    std::lock_guard lock(script_->mutex_);
    if (script_->chunks_.empty()) return std::nullopt;
    api::Chunk chunk = std::move(script_->chunks_.front());
    script_->chunks_.pop_front();
    return chunk;
  }
  std::optional<api::Chunk> Next(std::chrono::microseconds) override { return TryNext(); }
  void SetReadyCallback(std::function<void()> on_ready) override {
    std::lock_guard lock(script_->mutex_);
    script_->on_ready_ = on_ready;
    if (!script_->chunks_.empty()) on_ready();
  }
  void Cancel() override {}
  int64_t prompt_tokens() const override { return 7; }

 private:
  std::shared_ptr<Script> script_;
};

class FakeSession final : public Session {
 public:
  FakeSession() { config_.served_model_name = "fake"; }

  absl::StatusOr<std::unique_ptr<Generation>> Start(const api::GenerateRequest& request,
                                                    const api::FrontPhases&) override {
    std::unique_lock lock(mutex_);
    last_request_ = request;
    started_.notify_all();
    started_.wait(lock, [this] { return !hold_; });
    if (!error_.ok()) return error_;
    return std::make_unique<FakeGeneration>(script_);
  }
  int Cancel(const std::string& caller, const std::string& request_id) override {
    return caller == last_request().caller && request_id == last_request().request_id ? 2 : 0;
  }
  absl::StatusOr<std::vector<int32_t>> Tokenize(const api::Prompt& prompt,
                                                bool add_special_tokens) const override {
    const auto* text = std::get_if<std::string>(&prompt);
    if (text == nullptr) return absl::FailedPreconditionError("no chat form");
    return tokenizer_.Encode(*text, add_special_tokens, SpecialTokens::kParse);
  }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  Engine& engine() override { return engine_; }
  const SessionConfig& config() const override { return config_; }
  std::string chat_form() const override { return "none"; }

  api::GenerateRequest last_request() {
    std::lock_guard lock(mutex_);
    return last_request_.value();
  }
  void WaitStarted() {
    std::unique_lock lock(mutex_);
    started_.wait_for(lock, std::chrono::seconds(10), [this] { return last_request_.has_value(); });
  }
  void Hold(bool hold) {
    std::lock_guard lock(mutex_);
    hold_ = hold;
    started_.notify_all();
  }
  void FailWith(absl::Status error) {
    std::lock_guard lock(mutex_);
    error_ = std::move(error);
  }
  const std::shared_ptr<Script>& script() { return script_; }

 private:
  SessionConfig config_;
  ByteTokenizer tokenizer_;
  FakeEngine engine_{FakeEngine::Script()};  // nothing is submitted to it
  std::shared_ptr<Script> script_ = std::make_shared<Script>();
  std::mutex mutex_;
  std::condition_variable started_;
  std::optional<api::GenerateRequest> last_request_;
  absl::Status error_;
  bool hold_ = false;
};

}  // namespace longhaul
