// longhaul bench ttft --shape: the shapes it takes, the model it makes, what it prints and what it
// refuses.
#include "server/cmd_bench_shape.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "server/random_model.h"
#include "server/random_model_run.h"

namespace longhaul {
namespace {

constexpr char kTiny[] = "2,64,4,2,16,96,300";

TEST(RandomModel, BadShapesAreNamed) {
  for (const char* text : {"", "x", "2", "2,64,4,2,16,96", "2,64,4,2,16,96,300,",
                           "2,64,4,2,16,96,300,1", "2,64,4,2,16,96,x", " 2,64,4,2,16,96,300",
                           "2;64;4;2;16;96;300", "2,64,4,2,16,96,99999999999999999999"}) {
    const auto shape = ParseRandomModelShape(text);
    ASSERT_FALSE(shape.ok()) << text;
    EXPECT_NE(shape.status().message().find(text), absl::string_view::npos);
  }
  const auto shape = ParseRandomModelShape(kTiny);
  ASSERT_TRUE(shape.ok());
  EXPECT_EQ(shape->n_layers, 2);
  EXPECT_EQ(shape->intermediate_size, 96);
  EXPECT_EQ(shape->vocab_size, 300);
}

TEST(RandomModel, ShapesThatTheEngineDoesNotTake) {
  for (const char* text : {"0,64,4,2,16,96,300", "2000,64,4,2,16,96,300", "2,64,4,3,16,96,300",
                           "2,64,4,2,15,96,300", "2,-64,4,2,16,96,300", "2,64,4,2,16,0,300"}) {
    const auto shape = ParseRandomModelShape(text);
    ASSERT_TRUE(shape.ok()) << text;
    const auto config = RandomModelConfig(*shape, 100);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

std::unique_ptr<RandomModelRun> MakeRun(int64_t max_tokens, std::optional<double> density) {
  EngineConfig config;
  config.epoch_tokens = 256;
  config.sparse.window = 64;
  config.sparse.sink = 16;
  auto run = RandomModelRun::Create(*ParseRandomModelShape(kTiny), config, max_tokens, density,
                                    CreateCpuBackend(1));
  EXPECT_TRUE(run.ok()) << run.status();
  return *std::move(run);
}

TEST(RandomModelRun, CountsWhatItDid) {
  const auto run = MakeRun(700, std::nullopt);
  EXPECT_EQ(run->n_parameters(),
            2 * 300 * 64 + 64 + 2 * (2 * 64 + 64 * 128 + 64 * 64 + 3 * 96 * 64));
  EXPECT_EQ(run->weight_format(), WeightFormat::kBF16);
  EXPECT_EQ(run->kv_dtype(), DType::kBF16);
  const PrefillTiming dense = run->Prefill(600, SparseMode::kDense);
  EXPECT_EQ(dense.density, 1);
  // Of the second layer, only keys and values of the rows before the last one.
  EXPECT_EQ(dense.attention_flop, 4.0 * 16 * 4 * (600 * 601 / 2 + 600));
  EXPECT_EQ(dense.selection_flop, 0);
  EXPECT_EQ(dense.ops.linear_flop,
            2.0 * (600 * 2 * 64 * 128 + 601 * (64 * 64 + 3 * 96 * 64) + 300 * 64));
  EXPECT_GT(dense.ops.linear_s, 0);
  EXPECT_GT(dense.ops.dense_s, 0);
  EXPECT_LE(dense.ops.linear_s + dense.ops.dense_s, dense.seconds);

  const DecodeTiming decode = run->Decode(650);  // 50 more than were filled
  EXPECT_EQ(decode.n_steps, 32);
  int64_t n_keys = 0;
  for (int64_t depth = 652; depth < 684; ++depth) n_keys += depth + 1;
  EXPECT_EQ(decode.ops.kv_bytes, n_keys * 2 * 2 * 2 * 16 * 2);
  EXPECT_EQ(decode.ops.AttentionSeconds(), decode.ops.decode_s);
  EXPECT_GT(decode.step_seconds, 0);
}

TEST(RandomModelRun, DensityIsForced) {
  for (double density : {0.3, 0.5}) {
    const PrefillTiming timing = MakeRun(2048, density)->Prefill(2048, SparseMode::kSample);
    EXPECT_NEAR(timing.density, density, 0.06);
    EXPECT_EQ(timing.ops.dense_s > 0, true);  // the exact rows at the end
    EXPECT_GT(timing.ops.sparse_pairs, 0);
    EXPECT_GT(timing.selection_flop, 0);
  }
  // Below what the local keys are: these alone. Above 1/2 lists of stripes do not fit.
  const PrefillTiming local = MakeRun(2048, 0.001)->Prefill(2048, SparseMode::kSample);
  EXPECT_LT(local.density, 0.15);
  EXPECT_GT(local.density, 80.0 * 1500 / (2048 * 1024));
}

TEST(BenchShape, ReportOfATinyModel) {
  ServerConfig config;
  config.backend = "cpu";
  config.threads = 1;
  config.quantization = "int8";
  BenchShapeOptions options{.shape = kTiny,
                            .lengths = {70, 300},
                            .modes = {"dense", "sample"},
                            .decode_depths = {0, 400},
                            .density = 0.4,
                            .json = true};
  spdlog::set_level(spdlog::level::off);  // the program's log is on stderr
  ::testing::internal::CaptureStdout();
  ASSERT_EQ(RunBenchShape(config, options), 0);
  const auto report = nlohmann::json::parse(::testing::internal::GetCapturedStdout());
  EXPECT_EQ(report["weight_format"], "int8");
  EXPECT_EQ(report["kv_dtype"], DTypeName(DType::kBF16));
  EXPECT_EQ(report["forced_density"], 0.4);
  EXPECT_GT(report["peak_f32_gflops"], 0);
  EXPECT_GT(report["memory_copy_gb_per_s"], 0);
  ASSERT_EQ(report["prefill"].size(), 4u);
  for (const nlohmann::json& run : report["prefill"]) {
    EXPECT_GT(run["tokens_per_s"], 0) << run;
    EXPECT_NEAR(
        run["tokens_per_f32_tflop"].get<double>() * report["peak_f32_gflops"].get<double>() / 1000,
        run["tokens_per_s"].get<double>(), 1e-6 * run["tokens_per_s"].get<double>());
    EXPECT_GT(run["linear_gops"], 0) << run;
    const double phases = run["linear_s"].get<double>() + run["attention_s"].get<double>() +
                          run["selection_s"].get<double>() + run["other_s"].get<double>();
    EXPECT_NEAR(phases, run["seconds"].get<double>(), 1e-6) << run;
  }
  ASSERT_EQ(report["decode"].size(), 2u);
  EXPECT_EQ(report["decode"][1]["depth"], 400);
  EXPECT_GT(report["decode"][1]["kv_gb_per_s"], 0);
}

TEST(BenchShape, BadOptionsAreNamed) {
  const auto error = [](const BenchShapeOptions& options, int code) {
    ServerConfig config;
    config.backend = "cpu";
    config.threads = 1;
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(RunBenchShape(config, options), code);
    return ::testing::internal::GetCapturedStderr();
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  BenchShapeOptions good{.shape = kTiny, .lengths = {64}, .modes = {"dense"}};
  BenchShapeOptions bad = good;
  bad.lengths = {0};
  EXPECT_TRUE(has(error(bad, 2), "length 0"));
  bad = good;
  bad.decode_depths = {-1};
  EXPECT_TRUE(has(error(bad, 2), "decode depth -1"));
  bad = good;
  bad.density = 1.5;
  EXPECT_TRUE(has(error(bad, 2), "--density 1.5"));
  bad = good;
  bad.density = std::nan("");
  EXPECT_TRUE(has(error(bad, 2), "--density nan"));
  bad = good;
  bad.modes = {"fast"};
  EXPECT_TRUE(has(error(bad, 2), "fast"));
  bad = good;
  bad.shape = "2,64,4,2,15,96,300";
  EXPECT_TRUE(has(error(bad, 2), "head_dim"));
  bad = good;
  bad.shape = "1024,65536,1024,1024,1024,1048576,4194304";
  EXPECT_TRUE(has(error(bad, 1), "does not fit"));
  bad = good;
  bad.lengths = {int64_t{1} << 24};
  bad.shape = "1024,64,1024,1024,1024,96,300";
  EXPECT_TRUE(has(error(bad, 1), "does not fit"));
}

}  // namespace
}  // namespace longhaul
