#include "server/cmd_bench_ttft.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "server/console.h"
#include "server/open_session.h"

namespace longhaul {
namespace {

constexpr uint64_t kSeed = 20240615;  // of random prompts; fixed, so runs compare

struct Run {
  int64_t n_tokens = 0;
  std::string mode;
  std::string resolved_mode;
  double ttft_s = 0;
  double tokenize_s = 0;
  double prefill_s = 0;
  double eta_error = 0;  // worst of the run; see WorstEtaError
  SparseReport sparse;
  double speedup = 0;  // against dense of the same length; 0 = dense was not run
};

// The first `n` tokens of the text, repeated when it is too short.
absl::StatusOr<std::vector<int32_t>> TextTokens(const Session& session, const std::string& path,
                                                int64_t n) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(fmt::format("cannot open {}", path));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  LH_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                      session.Tokenize(text, /*add_special_tokens=*/true));
  if (ids.empty()) return absl::InvalidArgumentError(fmt::format("{} has no tokens", path));
  const size_t n_text = ids.size();
  ids.resize(static_cast<size_t>(n));
  for (size_t i = n_text; i < ids.size(); ++i) ids[i] = ids[i - n_text];
  return ids;
}

std::vector<int32_t> RandomTokens(const Tokenizer& tokenizer, int64_t n) {
  std::mt19937_64 random(kSeed);
  std::vector<int32_t> ids;
  if (tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
  while (static_cast<int64_t>(ids.size()) < n) {
    const auto id = static_cast<int32_t>(random() % static_cast<uint64_t>(tokenizer.vocab_size()));
    if (!tokenizer.IsSpecial(id)) ids.push_back(id);
  }
  return ids;
}

// Of the predictions made after a tenth of the prompt: how far off they were, as a share of the
// time that was left then. In the last tenth of the time as a share of a tenth: what is left goes
// to 0.
double WorstEtaError(const std::vector<ProgressEvent>& events, int64_t ttft_us) {
  double worst = 0;
  for (const ProgressEvent& event : events) {
    if (event.phase != Phase::kPrefill || event.eta_us < 0) continue;
    if (event.processed_tokens * 10 < event.total_tokens) continue;
    const double left_us = static_cast<double>(ttft_us - event.time_us);
    const double error_us = std::abs(static_cast<double>(event.eta_us) - left_us);
    worst = std::max(worst, error_us / std::max(left_us, 0.1 * static_cast<double>(ttft_us)));
  }
  return worst;
}

absl::StatusOr<Run> RunOnce(Session& session, const std::vector<int32_t>& prompt,
                            const std::string& mode, const std::string& salt) {
  api::FrontPhases phases;
  phases.accepted = Clock::now();
  api::GenerateRequest request;
  request.request_id = "bench";
  request.prompt = prompt;
  request.max_tokens = 1;
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  request.sparse.mode = mode;
  request.cache_salt = salt;
  request.return_progress = true;
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation, session.Start(request, phases));
  ProgressLine progress(stderr);
  std::vector<ProgressEvent> events;
  for (;;) {
    const std::optional<api::Chunk> chunk = generation->Next(std::chrono::seconds(1));
    if (!chunk) continue;
    if (const auto* event = std::get_if<ProgressEvent>(&*chunk)) {
      progress.Show(*event);
      events.push_back(*event);
    }
    const auto* summary = std::get_if<api::Summary>(&*chunk);
    if (summary == nullptr) continue;
    progress.Clear();
    LH_RETURN_IF_ERROR(summary->status);
    return Run{.n_tokens = static_cast<int64_t>(prompt.size()),
               .mode = mode,
               .resolved_mode = summary->sparse_mode,
               .ttft_s = static_cast<double>(summary->timings.ttft) * 1e-6,
               .tokenize_s = static_cast<double>(summary->timings.tokenize) * 1e-6,
               .prefill_s = static_cast<double>(summary->timings.prefill) * 1e-6,
               .eta_error = WorstEtaError(events, summary->timings.ttft),
               .sparse = summary->sparse};
  }
}

absl::StatusOr<std::vector<Run>> RunAll(const ServerConfig& config,
                                        const BenchTtftOptions& options) {
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, OpenSession(config, nullptr));
  std::vector<Run> result;
  for (int64_t n_tokens : options.lengths) {
    if (n_tokens < 1 || n_tokens >= session->engine().max_model_len()) {
      return absl::InvalidArgumentError(
          fmt::format("length {} does not fit: this model takes 1 to {} tokens", n_tokens,
                      session->engine().max_model_len() - 1));
    }
    std::vector<int32_t> prompt;
    if (options.text_file.empty()) {
      prompt = RandomTokens(session->tokenizer(), n_tokens);
    } else {
      LH_ASSIGN_OR_RETURN(prompt, TextTokens(*session, options.text_file, n_tokens));
    }
    // Policies take turns, so that a machine that slows down slows all of them.
    std::vector<std::vector<Run>> runs(options.modes.size());
    for (int64_t repeat = 0; repeat < options.repeats; ++repeat) {
      for (size_t m = 0; m < options.modes.size(); ++m) {
        const std::string salt = fmt::format("bench-{}-{}-{}", n_tokens, m, repeat);
        LH_ASSIGN_OR_RETURN(Run run, RunOnce(*session, prompt, options.modes[m], salt));
        runs[m].push_back(std::move(run));
      }
    }
    const size_t first = result.size();
    for (std::vector<Run>& same : runs) {
      const double eta_error =
          std::max_element(same.begin(), same.end(), [](const Run& a, const Run& b) {
            return a.eta_error < b.eta_error;
          })->eta_error;
      std::sort(same.begin(), same.end(),
                [](const Run& a, const Run& b) { return a.ttft_s < b.ttft_s; });
      result.push_back(std::move(same[same.size() / 2]));
      result.back().eta_error = eta_error;
    }
    const auto dense = std::find_if(result.begin() + static_cast<std::ptrdiff_t>(first),
                                    result.end(), [](const Run& r) { return r.mode == "dense"; });
    if (dense == result.end()) continue;
    const double dense_s = dense->ttft_s;
    for (size_t i = first; i < result.size(); ++i) result[i].speedup = dense_s / result[i].ttft_s;
  }
  return result;
}

void PrintTable(const std::vector<Run>& runs) {
  std::vector<std::vector<std::string>> rows = {
      {"prompt tokens", "policy", "TTFT", "tokens/s", "density %", "recall mean", "recall p1",
       "streaming", "dense", "repaired", "eta err", "speed-up"}};
  for (const Run& run : runs) {
    const SparseReport& s = run.sparse;
    const bool audited = s.n_recalls > 0;
    rows.push_back({fmt::format("{}", run.n_tokens), run.mode, FormatDuration(run.ttft_s),
                    fmt::format("{:.0f}", static_cast<double>(run.n_tokens) / run.ttft_s),
                    fmt::format("{:.2f}", 100 * s.Density()),
                    audited ? fmt::format("{:.4f}", s.RecallMean()) : "-",
                    audited ? fmt::format("{:.3f}", s.RecallPercentile(1)) : "-",
                    fmt::format("{}", s.n_streaming), fmt::format("{}", s.n_dense),
                    fmt::format("{}", s.n_repaired), fmt::format("{:.0f} %", 100 * run.eta_error),
                    run.speedup > 0 ? fmt::format("{:.2f}x", run.speedup) : "-"});
  }
  std::printf("%s", FormatTable(rows).c_str());
}

void PrintJson(const std::vector<Run>& runs) {
  nlohmann::json array = nlohmann::json::array();
  for (const Run& run : runs) {
    array.push_back({{"prompt_tokens", run.n_tokens},
                     {"mode", run.mode},
                     {"resolved_mode", run.resolved_mode},
                     {"ttft_s", run.ttft_s},
                     {"prefill_s", run.prefill_s},
                     {"eta_error", run.eta_error},
                     {"density", run.sparse.Density()},
                     {"recall_mean", run.sparse.RecallMean()},
                     {"recall_p1", run.sparse.RecallPercentile(1)},
                     {"recall_min", run.sparse.recall_min},
                     {"heads_streaming", run.sparse.n_streaming},
                     {"heads_dense", run.sparse.n_dense},
                     {"heads_repaired", run.sparse.n_repaired},
                     {"speedup", run.speedup}});
  }
  std::printf("%s\n", array.dump(1).c_str());
}

}  // namespace

int RunBenchTtft(const ServerConfig& config, const BenchTtftOptions& options) {
  const absl::StatusOr<std::vector<Run>> runs = RunAll(config, options);
  if (!runs.ok()) {
    std::fprintf(stderr, "longhaul bench ttft: %s\n", std::string(runs.status().message()).c_str());
    return absl::IsInvalidArgument(runs.status()) || absl::IsNotFound(runs.status()) ? 2 : 1;
  }
  if (options.json) {
    PrintJson(*runs);
  } else {
    PrintTable(*runs);
  }
  return 0;
}

}  // namespace longhaul
