// The engine thread and everything around it: submit, streams, cancel, drain, shutdown. With a fake
// model; meant to run under ThreadSanitizer too.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/retry_after.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_executor.h"

namespace longhaul {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::FakeExecutor;
using testing::FakeModel;

// Stops before a step until it is let through, so that a test can act at a known moment.
class Gate {
 public:
  void Close() { Set(true); }
  void Open() { Set(false); }
  void Pass() {
    std::unique_lock lock(mutex_);
    n_waiting_ += 1;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !closed_; });
    n_waiting_ -= 1;
  }
  void WaitUntilSomebodyWaits() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return n_waiting_ > 0; });
  }

 private:
  void Set(bool closed) {
    std::lock_guard lock(mutex_);
    closed_ = closed;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  int n_waiting_ = 0;
};

class GatedExecutor : public FakeExecutor {
 public:
  GatedExecutor(FakeModel model, std::shared_ptr<Gate> gate)
      : FakeExecutor(model), gate_(std::move(gate)) {}
  ~GatedExecutor() override { EXPECT_TRUE(violations().empty()) << violations().front(); }
  absl::StatusOr<StepResult> Execute(const StepPlan& plan) override {
    gate_->Pass();
    return FakeExecutor::Execute(plan);
  }

 private:
  std::shared_ptr<Gate> gate_;
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    model_.n_pages = 128;
    config_.epoch_tokens = model_.epoch_tokens;
    config_.max_prefills = model_.max_prefills;
    config_.slice_us = 1'000;
    config_.max_num_seqs = 8;
    config_.max_num_queued_reqs = 64;
    config_.self_measure = false;  // steps are counted
  }

  void Start() {
    auto executor = std::make_unique<GatedExecutor>(model_, gate_);
    executor_ = executor.get();
    auto engine = Engine::Create(config_, std::move(executor), on_step_);
    ASSERT_TRUE(engine.ok()) << engine.status().ToString();
    engine_ = *std::move(engine);
  }

  static Request Prompt(int64_t n_tokens, int64_t max_tokens, int32_t text = 0) {
    Request request;
    for (int64_t i = 0; i < n_tokens; ++i) {
      request.prompt.push_back(static_cast<int32_t>((i * 13 + i / 61 + text) % 61));
    }
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    return request;
  }

  // Reads to the end; the tokens of choice 0.
  static std::vector<int32_t> ReadAll(TokenStream& stream, absl::Status* status = nullptr) {
    std::vector<int32_t> tokens;
    while (const auto event = stream.Next(seconds(20))) {
      if (const auto* token = std::get_if<TokenEvent>(&*event)) {
        if (token->choice == 0) tokens.push_back(token->token);
      } else if (const auto* done = std::get_if<DoneEvent>(&*event)) {
        if (status != nullptr) *status = done->status;
        return tokens;
      }
    }
    ADD_FAILURE() << "the stream did not end";
    return tokens;
  }

  void ExpectAllPagesReturned() {
    EXPECT_TRUE(engine_->CheckIntegrity().ok());
    for (int i = 0; i < 1'000 && engine_->Stats().n_pages_used > 0; ++i) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    EXPECT_EQ(engine_->Stats().n_pages_used, 0);
  }

  FakeModel model_;
  EngineConfig config_;
  std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  FakeExecutor* executor_ = nullptr;
  StepObserver on_step_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, AnswersARequest) {
  Start();
  auto stream = engine_->Submit(Prompt(300, 12));
  ASSERT_TRUE(stream.ok()) << stream.status().ToString();
  absl::Status status;
  EXPECT_EQ(ReadAll(*stream, &status).size(), 12u);
  EXPECT_TRUE(status.ok());
  ExpectAllPagesReturned();
  const EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.prompt_tokens, 300);
  EXPECT_EQ(stats.generation_tokens, 12);
  EXPECT_EQ(stats.n_finished_length, 1);
  EXPECT_EQ(stats.n_pages_total, 128);
  EXPECT_GT(stats.n_pages_cached, 0);
}

TEST_F(EngineTest, CreateRefusesABadConfiguration) {
  config_.epoch_tokens = 100;
  auto engine = Engine::Create(config_, std::make_unique<FakeExecutor>(model_));
  EXPECT_TRUE(absl::IsInvalidArgument(engine.status()));
  config_.epoch_tokens = 128;
  config_.max_model_len = model_.shape.max_positions + 1;
  engine = Engine::Create(config_, std::make_unique<FakeExecutor>(model_));
  EXPECT_TRUE(absl::IsInvalidArgument(engine.status()));
  config_.max_model_len = 0;
  FakeModel none = model_;
  none.n_pages = 0;
  engine = Engine::Create(config_, std::make_unique<FakeExecutor>(none));
  EXPECT_TRUE(absl::IsInvalidArgument(engine.status()));
}

TEST_F(EngineTest, RefusesBeforeAnyWork) {
  config_.max_model_len = 4'096;
  Start();
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Submit(Prompt(0, 1)).status()));
  EXPECT_TRUE(absl::IsOutOfRange(engine_->Submit(Prompt(4'096, 1)).status()));
  Request many = Prompt(3'000, 1'000);
  many.n = 8;
  const absl::Status too_large = engine_->Submit(std::move(many)).status();
  EXPECT_TRUE(absl::IsOutOfRange(too_large));
  EXPECT_NE(too_large.ToString().find("whole cache has 128"), std::string::npos) << too_large;
  EXPECT_EQ(engine_->Stats().n_steps, 0);
}

TEST_F(EngineTest, AFullQueueIsRefusedAndRecovers) {
  config_.max_num_queued_reqs = 3;
  config_.max_num_seqs = 1;
  Start();
  gate_->Close();
  std::vector<TokenStream> streams;
  streams.push_back(*engine_->Submit(Prompt(10, 2)));
  gate_->WaitUntilSomebodyWaits();  // the first one runs
  for (int i = 0; i < 3; ++i) streams.push_back(*engine_->Submit(Prompt(10, 2)));
  EXPECT_TRUE(absl::IsResourceExhausted(engine_->Submit(Prompt(10, 2)).status()));
  EXPECT_EQ(engine_->Stats().n_waiting, 3);
  gate_->Open();
  for (TokenStream& stream : streams) EXPECT_EQ(ReadAll(stream).size(), 2u);
  EXPECT_TRUE(engine_->Submit(Prompt(10, 2)).ok());
}

TEST_F(EngineTest, DroppingAStreamFreesItsPagesAfterTheStepInFlight) {
  Start();
  gate_->Close();
  {
    auto stream = engine_->Submit(Prompt(6'000, 4));
    ASSERT_TRUE(stream.ok());
    gate_->WaitUntilSomebodyWaits();
  }
  auto next = engine_->Submit(Prompt(50, 3, 9));
  gate_->Open();
  EXPECT_EQ(ReadAll(*next).size(), 3u);
  ExpectAllPagesReturned();
  EXPECT_EQ(engine_->Stats().n_cancelled, 1);
}

TEST_F(EngineTest, CancelIsAnsweredEvenWhileQueued) {
  config_.max_num_seqs = 1;
  Start();
  gate_->Close();
  auto running = engine_->Submit(Prompt(100, 3));
  gate_->WaitUntilSomebodyWaits();
  auto queued = engine_->Submit(Prompt(100, 3));
  queued->Cancel();
  gate_->Open();
  absl::Status status;
  EXPECT_TRUE(ReadAll(*queued, &status).empty());
  EXPECT_TRUE(absl::IsCancelled(status));
  EXPECT_EQ(ReadAll(*running).size(), 3u);
}

TEST_F(EngineTest, AFailingExecutorEndsTheRequestNotTheEngine) {
  Start();
  executor_->FailStep(2);
  auto stream = engine_->Submit(Prompt(100, 10));
  absl::Status status;
  ReadAll(*stream, &status);
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  auto next = engine_->Submit(Prompt(100, 10));
  EXPECT_EQ(ReadAll(*next, &status).size(), 10u);
  EXPECT_TRUE(status.ok());
  ExpectAllPagesReturned();
}

TEST_F(EngineTest, CreateMeasuresTheExecutor) {
  config_.self_measure = true;
  auto executor = std::make_unique<FakeExecutor>(model_);
  FakeExecutor* const fake = executor.get();
  const auto engine = Engine::Create(config_, std::move(executor));
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_GT(fake->n_steps(), 3);
  EXPECT_EQ((*engine)->Stats().n_steps, 0) << "not on behalf of anybody";
  auto broken = std::make_unique<FakeExecutor>(model_);
  broken->FailStep(2);
  EXPECT_TRUE(absl::IsInternal(Engine::Create(config_, std::move(broken)).status()));
}

TEST_F(EngineTest, StepsAreObserved) {
  std::vector<StepRecord> records;  // by the engine thread, read when it is gone
  on_step_ = [&records](const StepRecord& record) { records.push_back(record); };
  Start();
  executor_->FailStep(30);
  for (int text = 0; text < 3; ++text) {
    auto stream = engine_->Submit(Prompt(700, 12, text));
    ReadAll(*stream);
  }
  EXPECT_TRUE(engine_->Drain(seconds(20)));
  const EngineStats stats = engine_->Stats();
  engine_.reset();
  EXPECT_EQ(static_cast<int64_t>(records.size()), stats.n_steps);
  int64_t n_tokens = 0, n_rows = 0, n_failed = 0;
  for (const StepRecord& record : records) {
    EXPECT_TRUE(record.n_decode_rows > 0 || record.n_slices > 0);
    EXPECT_GE(record.elapsed_us, 0);
    EXPECT_GT(record.predicted_us, 0);
    EXPECT_EQ(record.slices_us > 0, record.n_slices > 0 && !record.failed);
    EXPECT_EQ(record.decode_us > 0, record.n_decode_rows > 0 && !record.failed);
    n_tokens += record.prefill_tokens;
    n_rows += record.n_decode_rows;
    n_failed += record.failed;
  }
  EXPECT_EQ(n_failed, 1);
  EXPECT_GT(n_rows, 2 * 11);
  EXPECT_NEAR(static_cast<double>(n_tokens), 3 * 700, 100) << "less what is cached or failed";
}

TEST_F(EngineTest, ADeviceThatFailsAgainAndAgainIsUnhealthy) {
  Start();
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(engine_->Health().ok());
    executor_->FailStep(executor_->n_steps() + 1);
    auto stream = engine_->Submit(Prompt(100, 10, i));
    absl::Status status;
    ReadAll(*stream, &status);
    EXPECT_TRUE(absl::IsInternal(status)) << status;
  }
  EXPECT_TRUE(absl::IsUnavailable(engine_->Health())) << engine_->Health();
  auto stream = engine_->Submit(Prompt(100, 10));
  ReadAll(*stream);
  EXPECT_TRUE(engine_->Health().ok()) << engine_->Health();
}

TEST_F(EngineTest, TheQueueIsBoundedInTokens) {
  config_.max_num_seqs = 1;
  config_.max_num_queued_tokens = 1'000;
  Start();
  gate_->Close();
  auto running = engine_->Submit(Prompt(100, 3));
  gate_->WaitUntilSomebodyWaits();
  auto queued = engine_->Submit(Prompt(5'000, 3));
  EXPECT_TRUE(queued.ok()) << "an empty queue takes any prompt";
  const absl::Status refused = engine_->Submit(Prompt(10, 3)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_GE(RetryAfterUs(refused).value_or(0), 1'000'000) << refused;
  EXPECT_TRUE(absl::IsResourceExhausted(engine_->CheckQueue()));
  EXPECT_EQ(engine_->Stats().n_waiting, 1);
  EXPECT_EQ(engine_->Stats().n_waiting_tokens, 5'000);
  EXPECT_EQ(engine_->Stats().n_refused_queue_full, 2);
  gate_->Open();
  EXPECT_EQ(ReadAll(*queued).size(), 3u);
  EXPECT_TRUE(engine_->CheckQueue().ok());
  EXPECT_EQ(engine_->Stats().n_waiting_tokens, 0);
}

TEST_F(EngineTest, DrainFinishesWhatRunsAndTakesNothingNew) {
  Start();
  auto stream = engine_->Submit(Prompt(2'000, 30));
  EXPECT_TRUE(engine_->Drain(seconds(20)));
  EXPECT_TRUE(absl::IsUnavailable(engine_->Submit(Prompt(10, 1)).status()));
  EXPECT_EQ(ReadAll(*stream).size(), 30u);
  EXPECT_TRUE(engine_->Drain(milliseconds(0))) << "again";
}

TEST_F(EngineTest, DrainCancelsWhatTakesTooLong) {
  Start();
  gate_->Close();
  auto stream = engine_->Submit(Prompt(2'000, 30));
  gate_->WaitUntilSomebodyWaits();
  std::thread opener([&] {
    std::this_thread::sleep_for(milliseconds(20));
    gate_->Open();
  });
  EXPECT_FALSE(engine_->Drain(milliseconds(1)));
  absl::Status status;
  ReadAll(*stream, &status);
  EXPECT_TRUE(absl::IsCancelled(status));
  opener.join();
}

TEST_F(EngineTest, StreamsOutliveTheEngine) {
  Start();
  auto stream = engine_->Submit(Prompt(3'000, 1'000));
  ASSERT_TRUE(stream.ok());
  engine_.reset();
  absl::Status status;
  ReadAll(*stream, &status);
  EXPECT_TRUE(absl::IsCancelled(status));
}

TEST_F(EngineTest, ManyClients) {
  config_.max_num_queued_reqs = 1'000;
  Start();
  // The answers that everybody should get.
  std::vector<std::vector<int32_t>> expected;
  for (int32_t text = 0; text < 4; ++text) {
    auto stream = engine_->Submit(Prompt(100 + 150 * text, 20, text));
    expected.push_back(ReadAll(*stream));
  }
  std::atomic<int> n_wrong{0};
  std::atomic<int> n_answers{0};
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 25; ++i) {
        const int32_t text = (client + i) % 4;
        Request request = Prompt(100 + 150 * text, 20, text);
        request.report_progress = i % 2 == 0;
        request.n = 1 + i % 3 / 2;
        auto stream = engine_->Submit(std::move(request));
        if (!stream.ok()) {
          ++n_wrong;
          continue;
        }
        std::atomic<int> n_ready{0};
        stream->SetReadyCallback([&] { ++n_ready; });
        if (i % 5 == 4) {
          stream->Next(milliseconds(1));
          continue;  // dropped while it runs
        }
        if (ReadAll(*stream) != expected[text] || n_ready == 0) ++n_wrong;
        ++n_answers;
        if (i % 10 == 0 && !engine_->CheckIntegrity().ok()) ++n_wrong;
      }
    });
  }
  std::atomic<bool> stop{false};
  std::thread watcher([&] {
    while (!stop) {
      const EngineStats stats = engine_->Stats();
      if (stats.n_waiting < 0 || stats.n_waiting_tokens < 0) ++n_wrong;
      if (!engine_->Health().ok() || !engine_->CheckQueue().ok()) ++n_wrong;
    }
  });
  for (std::thread& client : clients) client.join();
  stop = true;
  watcher.join();
  EXPECT_EQ(n_wrong, 0);
  EXPECT_EQ(n_answers, 8 * 20);
  EXPECT_TRUE(engine_->Drain(seconds(20)));
  ExpectAllPagesReturned();
}

}  // namespace
}  // namespace longhaul
