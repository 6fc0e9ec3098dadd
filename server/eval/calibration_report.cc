#include "server/eval/calibration_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "server/console.h"
#include "server/version.h"

namespace longhaul::eval {
namespace {

using nlohmann::json;

// Quoted and on one line, whatever a path holds; JSON's way is one of YAML's.
std::string Quoted(const std::string& text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string Now() { return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(std::time(nullptr))); }

std::string TargetText(const AccuracyTarget& target) {
  std::string text =
      fmt::format("agreement with dense at least {:g} %, perplexity rise at most {:g} %",
                  100 * target.min_agreement, 100 * target.max_perplexity_rise);
  if (std::isfinite(target.max_kl)) text += fmt::format(", KL at most {:g} nats", target.max_kl);
  text += fmt::format(", mean recall at least {:g}", target.min_recall);
  if (target.min_recall_p1 > 0) {
    text += fmt::format(", its first percentile at least {:g}", target.min_recall_p1);
  }
  return text;
}

std::string VerdictText(const AccuracyTarget& target, const LengthMeasure& measure) {
  const std::string missed = MissedBy(target, measure);
  return missed.empty() ? "meets" : "misses " + missed;
}

const char* PartName(TextPart part) { return part == TextPart::kSearch ? "search" : "held out"; }

const char* VerdictName(CalibrationVerdict verdict) {
  switch (verdict) {
    case CalibrationVerdict::kFound:
      return "found";
    case CalibrationVerdict::kNotFaster:
      return "not_faster";
    case CalibrationVerdict::kMissed:
      return "missed";
  }
  return "";
}

// What dense took on the same prompts; nullptr = not measured.
const LengthMeasure* DenseOf(const Calibration& calibration, TextPart part, int64_t length_tokens) {
  for (const Trial& trial : calibration.trials) {
    if (trial.part != part || !trial.candidate.IsDense()) continue;
    for (const LengthMeasure& measure : trial.lengths) {
      if (measure.length_tokens == length_tokens) return &measure;
    }
  }
  return nullptr;
}

std::string Conclusion(const CalibrateOptions& options, const Calibration& calibration) {
  const std::string best = CandidateText(calibration.trials[calibration.best].candidate);
  switch (calibration.verdict) {
    case CalibrationVerdict::kFound:
      return fmt::format("Use {}: the least time that meets the target, also on held-out text.",
                         best);
    case CalibrationVerdict::kNotFaster:
      return fmt::format(
          "Use dense: {} meets the target and takes as long. Longer prompts may gain (--length).",
          best);
    case CalibrationVerdict::kMissed:
      return fmt::format("Use dense: nothing meets the target ({}). Closest: {}.",
                         TargetText(options.target), best);
  }
  return "";
}

json MeasureJson(const AccuracyTarget& target, const LengthMeasure& measure) {
  return {{"length_tokens", measure.length_tokens},
          {"n", measure.n},
          {"density", measure.density},
          {"recall_mean", measure.recall_mean},
          {"recall_p1", measure.recall_p1},
          {"agreement", measure.agreement},
          {"kl", measure.kl},
          {"perplexity_rise", measure.perplexity_rise},
          {"prefill_s", measure.prefill_s},
          {"missed", MissedBy(target, measure)}};
}

json CandidateJson(const Candidate& candidate) {
  if (candidate.IsDense()) return {{"mode", "dense"}};
  return {{"alpha", candidate.alpha}, {"window", candidate.window}, {"rows", candidate.rows}};
}

// The settings that the measured accuracy depends on, so that the file says them all.
bool ChangesAccuracy(std::string_view flag) {
  constexpr std::array<std::string_view, 5> kNames = {"model", "dtype", "quantization",
                                                      "kv-cache-dtype", "epoch-tokens"};
  constexpr std::array<std::string_view, 3> kOfOtherModes = {"sparse-columns", "sparse-diagonals",
                                                             "sparse-pattern-file"};
  const auto is_in = [flag](const auto& names) {
    return std::find(names.begin(), names.end(), flag) != names.end();
  };
  return is_in(kNames) || (flag.substr(0, 7) == "sparse-" && !is_in(kOfOtherModes));
}

}  // namespace

std::string CandidateText(const Candidate& candidate) {
  if (candidate.IsDense()) return "dense";
  return fmt::format("alpha {}, window {}, rows {}", candidate.alpha, candidate.window,
                     candidate.rows);
}

std::string MeasureText(const AccuracyTarget& target, const LengthMeasure& m) {
  return fmt::format(
      "{} tokens: prefill {}, density {:.1f} %, recall {:.3f} (first percentile {:.3f}), agreement "
      "{:.1f} %, KL {:.5f}, perplexity {:+.2f} %: {}",
      m.length_tokens, FormatDuration(m.prefill_s), 100 * m.density, m.recall_mean, m.recall_p1,
      100 * m.agreement, m.kl, 100 * m.perplexity_rise, VerdictText(target, m));
}

std::string CalibrationTable(const CalibrateOptions& options, const Calibration& calibration) {
  std::vector<std::vector<std::string>> rows = {{"alpha", "window", "rows", "text", "tokens",
                                                 "density", "recall", "p1", "agreement", "KL",
                                                 "perplexity", "prefill", "faster", "target"}};
  for (const Trial& trial : calibration.trials) {
    const Candidate& c = trial.candidate;
    for (const LengthMeasure& m : trial.lengths) {
      const LengthMeasure* dense = DenseOf(calibration, trial.part, m.length_tokens);
      const bool timed = dense != nullptr && m.prefill_s > 0;
      rows.push_back({c.IsDense() ? "dense" : fmt::format("{}", c.alpha),
                      c.IsDense() ? "" : fmt::format("{}", c.window),
                      c.IsDense() ? "" : fmt::format("{}", c.rows), PartName(trial.part),
                      fmt::format("{}", m.length_tokens), fmt::format("{:.1f} %", 100 * m.density),
                      fmt::format("{:.3f}", m.recall_mean), fmt::format("{:.3f}", m.recall_p1),
                      fmt::format("{:.1f} %", 100 * m.agreement), fmt::format("{:.5f}", m.kl),
                      fmt::format("{:+.2f} %", 100 * m.perplexity_rise),
                      FormatDuration(m.prefill_s),
                      timed ? fmt::format("{:.2f}x", dense->prefill_s / m.prefill_s) : "",
                      VerdictText(options.target, m)});
    }
  }
  return FormatTable(rows) + "\n" + Conclusion(options, calibration) + "\n";
}

std::string CalibrationJson(const CalibrateOptions& options, const ServerConfig& config,
                            const Calibration& calibration) {
  const AccuracyTarget& target = options.target;
  json object = {{"model", config.model},
                 {"created", Now()},
                 {"version", kVersion},
                 {"text", options.text_file},
                 {"samples", options.samples},
                 {"lengths", options.lengths},
                 {"mode", config.sparse_mode},
                 {"target",
                  {{"min_agreement", target.min_agreement},
                   {"max_kl", std::isfinite(target.max_kl) ? json(target.max_kl) : json()},
                   {"max_perplexity_rise", target.max_perplexity_rise},
                   {"min_recall", target.min_recall},
                   {"min_recall_p1", target.min_recall_p1}}},
                 {"verdict", VerdictName(calibration.verdict)},
                 {"best", calibration.best},
                 {"trials", json::array()}};
  for (const Trial& trial : calibration.trials) {
    json entry = {{"candidate", CandidateJson(trial.candidate)},
                  {"text", PartName(trial.part)},
                  {"meets", trial.Meets()},
                  {"lengths", json::array()}};
    for (const LengthMeasure& m : trial.lengths) {
      entry["lengths"].push_back(MeasureJson(target, m));
    }
    object["trials"].push_back(std::move(entry));
  }
  return object.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string CalibrationYaml(const CalibrateOptions& options, const ServerConfig& config,
                            const Calibration& calibration) {
  const Trial& best = calibration.trials[calibration.best];
  std::string text = fmt::format(
      "# Written by longhaul calibrate {} on {}. Use it: longhaul serve --config {}\n"
      "# Text: {}; prompts of each length from each half: {}.\n# Target: {}.\n# {}\n",
      kVersion, Now(), Quoted(options.out_path), Quoted(options.text_file), options.samples,
      TargetText(options.target), Conclusion(options, calibration));
  text += fmt::format("# Measured with {} on {} text:\n", CandidateText(best.candidate),
                      best.part == TextPart::kSearch ? "the search's" : "held-out");
  for (const LengthMeasure& m : best.lengths) {
    text += fmt::format("#   {}\n", MeasureText(options.target, m));
    if (const LengthMeasure* dense = DenseOf(calibration, best.part, m.length_tokens)) {
      text += fmt::format("#   dense: prefill {}\n", FormatDuration(dense->prefill_s));
    }
  }
  ServerConfig chosen = config;
  if (calibration.verdict == CalibrationVerdict::kFound) {
    chosen.sparse_alpha = best.candidate.alpha;
    chosen.sparse_window = best.candidate.window;
    chosen.sparse_rows = best.candidate.rows;
  } else {
    chosen.sparse_mode = "dense";
  }
  for (const FlagSpec& flag : FlagTable()) {
    if (!ChangesAccuracy(flag.name)) continue;
    const bool is_text = std::holds_alternative<std::string ServerConfig::*>(flag.target);
    const std::string value = ValueText(flag, chosen);
    text += fmt::format("{}: {}\n", flag.name, is_text ? Quoted(value) : value);
  }
  return text;
}

}  // namespace longhaul::eval
