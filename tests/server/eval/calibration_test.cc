// The search of `longhaul calibrate` with a made-up model, its options, prompts, and the YAML file.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "server/eval/calibration_report.h"
#include "server/eval/calibration_run.h"
#include "server/eval/calibration_search.h"
#include "server/eval/files.h"

namespace longhaul::eval {
namespace {

// A model whose accuracy and time are formulas: alpha and wide windows keep agreement, rows keep
// recall; each costs time. Remembers what it was asked.
struct FakeModel {
  double alpha_needed = 0.85;     // below, agreement falls
  double held_out_needed = 0.85;  // the same, of the other half
  double per_window = 1e-5;       // seconds
  double per_row = 1e-4;          // seconds
  double dense_s = 4;
  std::vector<Candidate> asked = {};
  int n_held_out = 0;

  MeasureCandidate Callback() {
    return [this](const Candidate& c, TextPart part) { return Measure(c, part); };
  }

  absl::StatusOr<std::vector<LengthMeasure>> Measure(const Candidate& c, TextPart part) {
    asked.push_back(c);
    n_held_out += part == TextPart::kHeldOut;
    LengthMeasure m{.length_tokens = 4096, .n = 2};
    m.prefill_s = dense_s;
    if (c.IsDense()) return std::vector<LengthMeasure>{m};
    const double needed = part == TextPart::kSearch ? alpha_needed : held_out_needed;
    m.agreement = c.alpha >= needed && c.window >= 256 ? 0.99 : 0.9;
    m.recall_mean = c.rows >= 16 ? 0.95 : 0.7;
    m.recall_p1 = 0.5;
    m.density = c.alpha / 2;
    m.prefill_s = c.alpha + per_window * static_cast<double>(c.window) +
                  per_row * static_cast<double>(c.rows);
    return std::vector<LengthMeasure>{m};
  }
};

constexpr SearchSpace kSpace{.start = {.alpha = 0.95, .window = 1024, .rows = 32},
                             .max_window = 4096};

Calibration SearchIn(FakeModel& model, const SearchSpace& space = kSpace) {
  auto calibration = SearchCalibration(space, AccuracyTarget(), model.Callback());
  EXPECT_TRUE(calibration.ok()) << calibration.status();
  return *std::move(calibration);
}

const Candidate& BestOf(const Calibration& c) { return c.trials[c.best].candidate; }

TEST(CalibrationSearchTest, GoesDownWhileTheTargetIsMet) {
  FakeModel model{.per_window = 1e-3, .per_row = 1e-2};
  const Calibration calibration = SearchIn(model);
  EXPECT_EQ(calibration.verdict, CalibrationVerdict::kFound);
  // Of every setting the least that meets: one step further, it misses.
  EXPECT_EQ(BestOf(calibration), (Candidate{.alpha = 0.85, .window = 256, .rows = 16}));
  EXPECT_EQ(calibration.trials[calibration.best].part, TextPart::kHeldOut);
  EXPECT_EQ(model.n_held_out, 2) << "dense and the winner";
  EXPECT_LE(calibration.trials.size(), static_cast<size_t>(kTypicalTrials + 3));
  // Nothing is measured twice.
  EXPECT_EQ(model.asked.size(), calibration.trials.size());
  EXPECT_TRUE(calibration.trials[0].candidate.IsDense());
}

TEST(CalibrationSearchTest, StartsHigherWhereTheStartMisses) {
  FakeModel model{.alpha_needed = 0.98, .held_out_needed = 0.98};
  const Calibration calibration = SearchIn(model);
  EXPECT_EQ(calibration.verdict, CalibrationVerdict::kFound);
  EXPECT_EQ(BestOf(calibration).alpha, 0.98);
}

// A wider window would be slower here, a narrower one gains less than the noise: it stays.
TEST(CalibrationSearchTest, LeavesWhatGainsNothing) {
  FakeModel model{.per_window = 1e-5, .per_row = 1e-4};
  model.alpha_needed = model.held_out_needed = 0.95;
  const Calibration calibration = SearchIn(model);
  EXPECT_EQ(BestOf(calibration), kSpace.start);
}

TEST(CalibrationSearchTest, WidensWhereThatIsFaster) {
  FakeModel model{.per_window = -1e-4};  // local keys are cheaper than the others that they replace
  model.alpha_needed = model.held_out_needed = 0.95;
  const Calibration calibration = SearchIn(model);
  EXPECT_EQ(BestOf(calibration).window, 4096) << "as far as the space goes";
}

TEST(CalibrationSearchTest, HeldOutTextRaisesAlpha) {
  FakeModel model{.alpha_needed = 0.8, .held_out_needed = 0.93};
  const Calibration calibration = SearchIn(model);
  EXPECT_EQ(calibration.verdict, CalibrationVerdict::kFound);
  EXPECT_EQ(BestOf(calibration).alpha, 0.93);
  EXPECT_EQ(model.n_held_out, 5) << "dense, 0.8, 0.85, 0.9, 0.93";
}

TEST(CalibrationSearchTest, SaysWhatCameClosestWhereNothingMeets) {
  FakeModel model{.alpha_needed = 2};
  Calibration calibration = SearchIn(model);
  EXPECT_EQ(calibration.verdict, CalibrationVerdict::kMissed);
  EXPECT_FALSE(BestOf(calibration).IsDense());
  EXPECT_EQ(model.n_held_out, 0);
  EXPECT_EQ(model.asked.back().alpha, 0.99) << "up to the top of the ladder";

  FakeModel held_out{.held_out_needed = 2};
  calibration = SearchIn(held_out);
  EXPECT_EQ(calibration.verdict, CalibrationVerdict::kMissed);
  EXPECT_EQ(calibration.trials[calibration.best].part, TextPart::kHeldOut);
  EXPECT_FALSE(BestOf(calibration).IsDense());
}

TEST(CalibrationSearchTest, DenseWhereNothingIsFaster) {
  FakeModel model{.dense_s = 0.1};
  const Calibration calibration = SearchIn(model);
  EXPECT_EQ(calibration.verdict, CalibrationVerdict::kNotFaster);
  EXPECT_EQ(model.n_held_out, 0);
}

TEST(CalibrationSearchTest, EveryLengthMustMeetTheTarget) {
  FakeModel model;
  const MeasureCandidate two_lengths =
      [&](const Candidate& c, TextPart part) -> absl::StatusOr<std::vector<LengthMeasure>> {
    LH_ASSIGN_OR_RETURN(std::vector<LengthMeasure> measures, model.Measure(c, part));
    measures.push_back(measures[0]);
    measures[1].length_tokens = 8192;
    if (c.alpha < 0.93) measures[1].perplexity_rise = 0.006;
    return measures;
  };
  const auto calibration = SearchCalibration(kSpace, AccuracyTarget(), two_lengths);
  ASSERT_TRUE(calibration.ok());
  EXPECT_EQ(BestOf(*calibration).alpha, 0.93);
}

TEST(CalibrationSearchTest, EndsWithTheErrorOfAMeasurement) {
  int n_asked = 0;
  const auto calibration = SearchCalibration(
      kSpace, AccuracyTarget(),
      [&](const Candidate&, TextPart) -> absl::StatusOr<std::vector<LengthMeasure>> {
        if (++n_asked == 3) return absl::UnavailableError("the device is gone");
        return std::vector<LengthMeasure>{LengthMeasure()};
      });
  EXPECT_TRUE(absl::IsUnavailable(calibration.status()));
  EXPECT_EQ(n_asked, 3);
}

TEST(StrainTest, IsTheWorstOfTheCriteria) {
  AccuracyTarget target;
  target.max_kl = 0.01;
  LengthMeasure m{.agreement = 0.98, .perplexity_rise = -0.1};
  EXPECT_NEAR(Strain(target, m), 1, 1e-9);
  EXPECT_EQ(MissedBy(target, m), "") << "exactly what was asked for";
  m.kl = 0.02;
  m.recall_mean = 0.85;
  EXPECT_NEAR(Strain(target, m), 2, 1e-6);
  EXPECT_EQ(MissedBy(target, m), "KL, recall");
  m.agreement = 0.9;
  m.perplexity_rise = 0.01;
  EXPECT_EQ(MissedBy(target, m), "agreement, KL, perplexity, recall");

  const AccuracyTarget none{.min_agreement = 1,
                            .max_kl = 0,
                            .max_perplexity_rise = 0,
                            .min_recall = 1,
                            .min_recall_p1 = 1};
  EXPECT_EQ(MissedBy(none, LengthMeasure()), "") << "nothing is lost";
  EXPECT_EQ(MissedBy(none, {.agreement = 0.999}), "agreement");
  EXPECT_EQ(MissedBy(AccuracyTarget(), {.recall_p1 = 0, .kl = 1e9}), "") << "any by default";
  EXPECT_EQ(MissedBy({.min_recall_p1 = 0.85}, {.recall_p1 = 0.8}), "recall p1");
}

TEST(PromptBeginsTest, HalvesShareNoToken) {
  for (const int64_t n_prompts : {1, 2, 3}) {
    const auto search = PromptBegins(1201, 200, n_prompts, TextPart::kSearch);
    const auto held_out = PromptBegins(1201, 200, n_prompts, TextPart::kHeldOut);
    ASSERT_EQ(search.size(), static_cast<size_t>(n_prompts));
    std::vector<int64_t> all = search;
    all.insert(all.end(), held_out.begin(), held_out.end());
    for (size_t i = 1; i < all.size(); ++i) EXPECT_GE(all[i], all[i - 1] + 200);
    EXPECT_GE(held_out[0], 600);
    EXPECT_LE(search.back() + 200, 600);
    EXPECT_LE(all.back() + 200, 1201);
  }
}

TEST(CalibrateOptionsTest, RefusesByName) {
  const auto refused = [](auto change, const char* expected) {
    CalibrateOptions options;
    options.text_file = "book.txt";
    change(options);
    const absl::Status status = CheckOptions(options);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << expected;
    EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
  };
  refused([](CalibrateOptions& o) { o.text_file = ""; }, "--text is missing");
  refused([](CalibrateOptions& o) { o.out_path = ""; }, "--out");
  refused([](CalibrateOptions& o) { o.lengths = {}; }, "--length has 0 values");
  refused([](CalibrateOptions& o) { o.lengths = {8192, 8192}; }, "8192 twice");
  refused([](CalibrateOptions& o) { o.lengths = {10}; }, "--length is 10");
  refused([](CalibrateOptions& o) { o.samples = 0; }, "--samples is 0");
  refused([](CalibrateOptions& o) { o.target.min_agreement = 1.5; }, "--min-agreement is 1.5");
  refused([](CalibrateOptions& o) { o.target.min_recall = std::nan(""); }, "--min-recall");
  refused([](CalibrateOptions& o) { o.target.min_recall_p1 = 2; }, "--min-recall-p1 is 2");
  refused([](CalibrateOptions& o) { o.target.max_kl = -1; }, "--max-kl is -1");
  refused([](CalibrateOptions& o) { o.target.max_perplexity_rise = -1; }, "--max-perplexity-rise");
}

TEST(CalibrateOptionsTest, RefusesWhatHasNothingToSearch) {
  const auto message = [](auto change) {
    CalibrateOptions options;
    ServerConfig config;
    change(options, config);
    return std::string(CheckSpace(options, config).message());
  };
  EXPECT_EQ(message([](CalibrateOptions&, ServerConfig&) {}), "");
  const auto mode = [](CalibrateOptions&, ServerConfig& c) { c.sparse_mode = "paper"; };
  EXPECT_NE(message(mode).find("--sparse-mode is paper"), std::string::npos);
  const auto alpha = [](CalibrateOptions&, ServerConfig& c) { c.sparse_alpha = 1; };
  EXPECT_NE(message(alpha).find("--sparse-alpha is 1"), std::string::npos);
  const auto length = [](CalibrateOptions& o, ServerConfig&) { o.lengths = {16384, 4096}; };
  EXPECT_NE(message(length).find("--length 4096: mode auto is dense"), std::string::npos);
  const auto window = [](CalibrateOptions&, ServerConfig& c) { c.sparse_window = 16384; };
  EXPECT_NE(message(window).find("twice the window"), std::string::npos);
}

// A file of this process's own, removed at the end.
class TestFile {
 public:
  explicit TestFile(const std::string& text)
      : path_((std::filesystem::path(::testing::TempDir()) /
               ("longhaul_calibration_test_" + std::to_string(getpid())))
                  .string()) {
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TestFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

TEST(FilesTest, ReadsValidTextAlone) {
  const TestFile file("K\xc3\xa4se. ");
  EXPECT_EQ(*ReadText("--text", file.path()), "K\xc3\xa4se. ");
  ASSERT_TRUE(WriteFile(file.path(), "K\xe4se").ok());
  const absl::Status latin1 = ReadText("--text", file.path()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(latin1));
  EXPECT_NE(std::string(latin1.message()).find("not UTF-8 at byte 1"), std::string::npos);
  EXPECT_TRUE(absl::IsNotFound(ReadText("--text", "/nowhere/text").status()));
  const absl::Status folder = ReadText("--text", ::testing::TempDir()).status();
  EXPECT_NE(std::string(folder.message()).find("is a folder"), std::string::npos) << folder;
}

TEST(FilesTest, AskingLeavesNoFile) {
  EXPECT_TRUE(CheckWritable("--out", "").ok());
  const std::string path = TestFile("").path();  // removed again
  EXPECT_TRUE(CheckWritable("--out", path).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_NE(std::string(CheckWritable("--out", "/nowhere/x").message()).find("--out"),
            std::string::npos);
}

// Read back the way `longhaul serve --config` does.
TEST(CalibrationYamlTest, IsWhatServeReads) {
  FakeModel model;
  const Calibration calibration = SearchIn(model);
  CalibrateOptions options;
  options.text_file = "a \"book\"\nof mine";  // must not break a comment
  ServerConfig config;
  config.model = "some/folder: #1";
  config.sparse_sink = 128;
  config.epoch_tokens = 2048;
  config.port = 1234;  // none of its business
  const TestFile file(CalibrationYaml(options, config, calibration));
  const auto loaded = LoadServerConfig(file.path(), {}, {});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->model, config.model);
  EXPECT_EQ(loaded->sparse_mode, "auto");
  EXPECT_EQ(loaded->sparse_alpha, BestOf(calibration).alpha);
  EXPECT_EQ(loaded->sparse_window, BestOf(calibration).window);
  EXPECT_EQ(loaded->sparse_rows, BestOf(calibration).rows);
  EXPECT_EQ(loaded->sparse_sink, 128);
  EXPECT_EQ(loaded->epoch_tokens, 2048);
  EXPECT_EQ(loaded->port, ServerConfig().port);

  FakeModel bad{.alpha_needed = 2};
  ASSERT_TRUE(WriteFile(file.path(), CalibrationYaml(options, config, SearchIn(bad))).ok());
  const auto dense = LoadServerConfig(file.path(), {}, {});
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ(dense->sparse_mode, "dense");
  EXPECT_EQ(dense->sparse_alpha, config.sparse_alpha) << "as before";
}

TEST(CalibrationReportTest, TellsEveryTrial) {
  FakeModel model{.alpha_needed = 0.8, .held_out_needed = 0.85};
  const Calibration calibration = SearchIn(model);
  const std::string table = CalibrationTable(CalibrateOptions(), calibration);
  EXPECT_NE(table.find("misses agreement"), std::string::npos) << table;
  EXPECT_NE(table.find("held out"), std::string::npos);
  EXPECT_NE(table.find("Use alpha 0.85, window 1024, rows 32"), std::string::npos) << table;
  const auto json =
      nlohmann::json::parse(CalibrationJson(CalibrateOptions(), ServerConfig(), calibration));
  EXPECT_EQ(json["verdict"], "found");
  EXPECT_EQ(json["trials"].size(), calibration.trials.size());
  EXPECT_EQ(json["trials"][calibration.best]["candidate"]["alpha"], 0.85);
  EXPECT_TRUE(json["target"]["max_kl"].is_null());
}

}  // namespace
}  // namespace longhaul::eval
