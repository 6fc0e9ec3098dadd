#include "server/cmd_generate.h"

#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "server/console.h"
#include "server/open_session.h"

namespace longhaul {
namespace {

// A prompt of a million tokens has some 5 MB; this is far above what any model here can read.
constexpr int64_t kMaxPromptBytes = int64_t{256} << 20;

absl::StatusOr<std::string> ReadAll(std::istream& in, const std::string& name) {
  std::string text;
  std::string block(1 << 20, '\0');
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0) {
    text.append(block, 0, static_cast<size_t>(in.gcount()));
    if (static_cast<int64_t>(text.size()) > kMaxPromptBytes) {
      return absl::InvalidArgumentError(
          fmt::format("{} has more than {} MiB", name, kMaxPromptBytes >> 20));
    }
  }
  if (in.bad()) return absl::InvalidArgumentError(fmt::format("cannot read {}", name));
  return text;
}

absl::StatusOr<std::string> ReadPrompt(const GenerateOptions& options) {
  if (options.prompt_file.empty() == options.prompt.empty()) {
    return absl::InvalidArgumentError(
        "give the prompt with --prompt or --prompt-file, one of them");
  }
  if (options.prompt_file.empty()) return options.prompt;
  if (options.prompt_file == "-") return ReadAll(std::cin, "standard input");
  std::ifstream file(options.prompt_file, std::ios::binary);
  if (!file) return absl::NotFoundError(fmt::format("cannot open {}", options.prompt_file));
  return ReadAll(file, options.prompt_file);
}

// Prints text as it comes; returns the summary and everything that was said.
api::Summary Follow(Generation& generation, bool print, std::string& answer) {
  ProgressLine progress(stderr);
  for (;;) {
    std::optional<api::Chunk> chunk = generation.Next(std::chrono::seconds(1));
    if (!chunk) continue;
    if (const auto* event = std::get_if<ProgressEvent>(&*chunk)) {
      progress.Show(*event);
    } else if (const auto* delta = std::get_if<api::TextDelta>(&*chunk)) {
      progress.Clear();
      answer += delta->text;
      if (print) {
        std::fwrite(delta->text.data(), 1, delta->text.size(), stdout);
        std::fflush(stdout);
      }
    } else if (const auto* summary = std::get_if<api::Summary>(&*chunk)) {
      progress.Clear();
      return *summary;
    }
  }
}

std::string Seconds(int64_t us) { return FormatDuration(static_cast<double>(us) * 1e-6); }

std::string SummaryTable(const api::Summary& s) {
  const api::Timings& t = s.timings;
  std::vector<std::vector<std::string>> rows = {
      {"request", ""},
      {"prompt tokens",
       fmt::format("{} ({} cached)", s.usage.prompt_tokens, s.usage.cached_tokens)},
      {"output tokens", fmt::format("{}", s.usage.completion_tokens)},
      {"read + tokenize", Seconds(t.read + t.parse + t.template_ + t.tokenize)},
      {"queue", Seconds(t.queue)},
      {"prefill", Seconds(t.prefill)},
      {"TTFT", Seconds(t.ttft)},
      {"decode", Seconds(t.decode)},
      {"attention", fmt::format("{}, density {:.2f} %", s.sparse_mode, 100 * s.sparse.Density())}};
  if (s.sparse.n_recalls > 0) {
    rows.push_back({"recall mean / p1 / min",
                    fmt::format("{:.4f} / {:.3f} / {:.3f}", s.sparse.RecallMean(),
                                s.sparse.RecallPercentile(1), double{s.sparse.recall_min})});
    rows.push_back({"heads streaming / dense / repaired",
                    fmt::format("{} / {} / {} of {}", s.sparse.n_streaming, s.sparse.n_dense,
                                s.sparse.n_repaired, s.sparse.n_head_epochs)});
  }
  return FormatTable(rows);
}

nlohmann::json SummaryJson(const api::Summary& s, const std::string& answer) {
  const auto seconds = [](int64_t us) { return static_cast<double>(us) * 1e-6; };
  return {{"text", answer},
          {"prompt_tokens", s.usage.prompt_tokens},
          {"cached_tokens", s.usage.cached_tokens},
          {"completion_tokens", s.usage.completion_tokens},
          {"read_s", seconds(s.timings.read)},
          {"tokenize_s", seconds(s.timings.tokenize)},
          {"queue_s", seconds(s.timings.queue)},
          {"prefill_s", seconds(s.timings.prefill)},
          {"ttft_s", seconds(s.timings.ttft)},
          {"decode_s", seconds(s.timings.decode)},
          {"sparse_mode", s.sparse_mode},
          {"density", s.sparse.Density()},
          {"recall_mean", s.sparse.RecallMean()},
          {"recall_p1", s.sparse.RecallPercentile(1)},
          {"recall_min", s.sparse.recall_min},
          {"heads_streaming", s.sparse.n_streaming},
          {"heads_dense", s.sparse.n_dense},
          {"heads_repaired", s.sparse.n_repaired}};
}

absl::Status Generate(const ServerConfig& config, const GenerateOptions& options) {
  LH_ASSIGN_OR_RETURN(std::string prompt, ReadPrompt(options));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, OpenSession(config, nullptr));

  // TTFT counts from here: loading the model is not part of a request.
  api::FrontPhases phases;
  phases.accepted = Clock::now();
  api::GenerateRequest request;
  request.request_id = "generate";
  request.prompt = std::move(prompt);
  request.max_tokens = options.max_tokens;
  request.sampling.temperature = static_cast<float>(options.temperature);
  request.sampling.seed = options.seed;
  request.return_progress = true;
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation, session->Start(request, phases));

  std::string answer;
  const api::Summary summary = Follow(*generation, /*print=*/!options.json, answer);
  if (!options.json) std::printf("\n");
  LH_RETURN_IF_ERROR(summary.status);
  if (options.json) {
    // Invalid UTF-8 cannot occur in `answer`; replace keeps dump() from throwing all the same.
    std::printf("%s\n", SummaryJson(summary, answer)
                            .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                            .c_str());
  } else {
    std::fprintf(stderr, "\n%s", SummaryTable(summary).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

int RunGenerate(const ServerConfig& config, const GenerateOptions& options) {
  const absl::Status status = Generate(config, options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "longhaul generate: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? 2 : 1;
}

}  // namespace longhaul
