#include "server/cmd_bench_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "server/text/json_file.h"
#include "server/text/tokenizer.h"

namespace longhaul {
namespace {

constexpr int kRepeats = 3;  // the fastest counts
constexpr std::string_view kEnglish =
    "It was late in the year when the letters arrived, tied with string, and nobody could say who "
    "had kept them. \"They're yours,\" she said; the 214 pages weren't numbered.\nSome were about "
    "the harbour, others about money, and one, dated 3 May 1897, was only a list of names. ";

struct Input {
  std::string name;
  std::string text;
};

struct Row {
  std::string name;
  size_t n_bytes = 0;
  size_t n_tokens = 0;
  double one_s = 0;   // on one thread
  double many_s = 0;  // on all
};

// `unit` again and again, cut before a character when it does not fit.
std::string Repeated(std::string_view unit, size_t n_bytes) {
  std::string text;
  text.reserve(n_bytes + unit.size());
  while (text.size() < n_bytes) text.append(unit);
  size_t end = std::min(n_bytes, text.size());
  while (end > 0 && end < text.size() && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text;
}

std::vector<Input> Inputs(std::string_view english, size_t n_bytes) {
  std::vector<Input> inputs = {{"English", Repeated(english, n_bytes)}};
  for (const auto& [name, unit] : {std::pair<const char*, std::string_view>{"a", "a"},
                                   {"spaces", " "},
                                   {"newlines", "\n"},
                                   {"digits", "7"},
                                   {"punctuation", "!"},
                                   {"emoji", "\U0001F642"},
                                   {"Chinese", "\u4E2D\u6587\u6587\u672C"},
                                   {"Korean", "\uD55C"},
                                   {"marks", "\u0301"},
                                   {"contractions", "'s"},
                                   {"<|", "<|"}}) {
    inputs.push_back({name, Repeated(unit, n_bytes)});
  }
  return inputs;
}

// Seconds of the fastest of kRepeats.
absl::StatusOr<double> Time(const Tokenizer& tokenizer, const Input& input, size_t* n_tokens) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const Clock::time_point start = Clock::now();
    LH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                        tokenizer.Encode(input.text, /*add_bos=*/false, SpecialTokens::kParse));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (i == 0 || seconds < best) best = seconds;
    *n_tokens = ids.size();
  }
  return best;
}

absl::StatusOr<std::vector<Row>> Measure(const BenchTokenizerOptions& options) {
  std::string english(kEnglish);
  if (!options.text_file.empty()) {
    LH_ASSIGN_OR_RETURN(english, ReadFileCapped(options.text_file, kMaxTextFile_bytes));
    if (english.empty()) {
      return absl::InvalidArgumentError(fmt::format("{}: is empty", options.text_file));
    }
  }
  LH_ASSIGN_OR_RETURN(const auto one, LoadTokenizer(options.model_dir, 1));
  LH_ASSIGN_OR_RETURN(const auto many, LoadTokenizer(options.model_dir, options.n_threads));
  std::vector<Row> rows;
  for (const Input& input : Inputs(english, static_cast<size_t>(options.megabytes * 1e6))) {
    Row row{.name = input.name, .n_bytes = input.text.size()};
    LH_ASSIGN_OR_RETURN(row.one_s, Time(*one, input, &row.n_tokens));
    LH_ASSIGN_OR_RETURN(row.many_s, Time(*many, input, &row.n_tokens));
    rows.push_back(row);
  }
  return rows;
}

double MegabytesPerSecond(const Row& row, double seconds) {
  return static_cast<double>(row.n_bytes) / 1e6 / std::max(seconds, 1e-9);
}

// How much longer than English on one thread.
double Ratio(const Row& row, const Row& english) {
  return row.one_s / std::max(english.one_s, 1e-9);
}

const Row& Worst(const std::vector<Row>& rows) {
  return *std::max_element(rows.begin(), rows.end(),
                           [](const Row& a, const Row& b) { return a.one_s < b.one_s; });
}

void PrintTable(const std::vector<Row>& rows) {
  fmt::print("{:14} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>8}\n", "input", "bytes", "tokens",
             "one s", "all s", "one MB/s", "all MB/s", "ratio");
  for (const Row& row : rows) {
    fmt::print("{:14} {:10} {:10} {:9.4f} {:9.4f} {:9.1f} {:9.1f} {:8.2f}\n", row.name, row.n_bytes,
               row.n_tokens, row.one_s, row.many_s, MegabytesPerSecond(row, row.one_s),
               MegabytesPerSecond(row, row.many_s), Ratio(row, rows[0]));
  }
  fmt::print("slowest: {}, {:.2f} times the time of English\n", Worst(rows).name,
             Ratio(Worst(rows), rows[0]));
}

void PrintJson(const std::vector<Row>& rows) {
  nlohmann::json inputs = nlohmann::json::array();
  for (const Row& row : rows) {
    inputs.push_back({{"input", row.name},
                      {"bytes", row.n_bytes},
                      {"tokens", row.n_tokens},
                      {"one_thread_s", row.one_s},
                      {"all_threads_s", row.many_s},
                      {"ratio", Ratio(row, rows[0])}});
  }
  const nlohmann::json result = {{"inputs", inputs}, {"worst_ratio", Ratio(Worst(rows), rows[0])}};
  fmt::print("{}\n", result.dump());
}

}  // namespace

int RunBenchTokenizer(const BenchTokenizerOptions& options) {
  const absl::StatusOr<std::vector<Row>> rows = Measure(options);
  if (!rows.ok()) {
    fmt::print(stderr, "longhaul: {}\n", std::string(rows.status().message()));
    return 1;
  }
  options.json ? PrintJson(*rows) : PrintTable(*rows);
  return 0;
}

}  // namespace longhaul
