#include "server/eval/result.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

namespace longhaul::eval {
namespace {

using nlohmann::json;

constexpr size_t kMaxLineBytes = 16 << 20;
constexpr size_t kRecallCells = 1001;
constexpr size_t kMaxHeads = size_t{1} << 20;

json HeadJson(const HeadReport& head) {
  return {head.kept_pairs, head.causal_pairs, head.n_epochs, head.n_streaming,
          head.n_dense,    head.recall_sum,   head.n_recalls};
}

HeadReport HeadOf(const json& from) {
  return {.kept_pairs = from.at(0).get<int64_t>(),
          .causal_pairs = from.at(1).get<int64_t>(),
          .n_epochs = from.at(2).get<int64_t>(),
          .n_streaming = from.at(3).get<int64_t>(),
          .n_dense = from.at(4).get<int64_t>(),
          .recall_sum = from.at(5).get<double>(),
          .n_recalls = from.at(6).get<int64_t>()};
}

// Throws what nlohmann throws when a member is missing or of another type.
std::pair<std::string, Result> ReadLine(const json& line) {
  Result result;
  line.at("values").get_to(result.values);
  line.at("answer").get_to(result.answer);
  line.at("tokens").get_to(result.tokens);
  line.at("top").get_to(result.top);
  line.at("prompt_tokens").get_to(result.prompt_tokens);
  line.at("ttft_s").get_to(result.ttft_s);
  line.at("density").get_to(result.density);
  line.at("recall_mean").get_to(result.recall_mean);
  line.at("recalls").get_to(result.recalls);
  line.at("recall_sum").get_to(result.recall_sum);
  for (const json& head : line.at("heads")) result.heads.push_back(HeadOf(head));
  return {line.at("key").get<std::string>(), std::move(result)};
}

}  // namespace

void MergeRecalls(const Result& result, SparseReport* sums) {
  for (const auto& [cell, count] : result.recalls) {
    sums->recall_histogram[static_cast<size_t>(cell)] += count;
    sums->n_recalls += count;
  }
  sums->recall_sum += result.recall_sum;
}

std::string ResultLine(const std::string& key, const Result& result) {
  json heads = json::array();
  for (const HeadReport& head : result.heads) heads.push_back(HeadJson(head));
  const json line = {{"key", key},
                     {"values", result.values},
                     {"answer", result.answer},
                     {"tokens", result.tokens},
                     {"top", result.top},
                     {"prompt_tokens", result.prompt_tokens},
                     {"ttft_s", result.ttft_s},
                     {"density", result.density},
                     {"recall_mean", result.recall_mean},
                     {"recalls", result.recalls},
                     {"recall_sum", result.recall_sum},
                     {"heads", std::move(heads)}};
  return line.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<std::pair<std::string, Result>> ParseResultLine(std::string_view line) {
  const auto bad = [](const char* what) { return absl::InvalidArgumentError(what); };
  if (line.size() > kMaxLineBytes) return bad("the line is too long");
  const json parsed = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return bad("the line is no JSON object");
  std::pair<std::string, Result> entry;
  try {
    entry = ReadLine(parsed);
  } catch (const json::exception&) {
    return bad("the line lacks a member, or one has another type");
  }
  const Result& result = entry.second;
  if (result.tokens.size() != result.top.size())
    return bad("the line has tokens without likely ones");
  for (const auto& place : result.top) {
    if (place.empty()) return bad("the line has a place where nothing is likely");
  }
  if (result.heads.size() > kMaxHeads) return bad("the line has too many heads");
  for (const auto& [cell, n] : result.recalls) {
    if (cell < 0 || cell >= static_cast<int64_t>(kRecallCells) || n < 0) {
      return bad("the line has a recall that is none");
    }
  }
  return entry;
}

std::string DigestOf(const std::string& text) {
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

absl::StatusOr<ResultStore> ResultStore::Open(const std::string& flag, const std::string& dir) {
  ResultStore store;
  store.flag_ = flag;
  if (dir.empty()) return store;
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) {
    return absl::InvalidArgumentError(
        fmt::format("{}: cannot make the folder {}: {}", flag, dir, error.message()));
  }
  store.path_ = (std::filesystem::path(dir) / "results.jsonl").string();
  LH_RETURN_IF_ERROR(store.Read());
  return store;
}

absl::Status ResultStore::Read() {
  if (!std::ofstream(path_, std::ios::app)) {
    return absl::InvalidArgumentError(fmt::format("{}: cannot write {}", flag_, path_));
  }
  std::ifstream file(path_, std::ios::binary);
  for (std::string line; std::getline(file, line);) {
    ends_in_line_ = !file.eof();
    auto entry = ParseResultLine(line);
    if (entry.ok()) {
      results_[entry->first] = std::move(entry->second);
    } else {
      ++n_unreadable_;
    }
  }
  if (file.bad()) return absl::UnavailableError(fmt::format("{}: cannot read {}", flag_, path_));
  return absl::OkStatus();
}

const Result* ResultStore::Find(const std::string& key) const {
  const auto at = results_.find(key);
  return at == results_.end() ? nullptr : &at->second;
}

absl::Status ResultStore::Add(const std::string& key, Result result) {
  if (!path_.empty()) {
    std::ofstream file(path_, std::ios::binary | std::ios::app);
    if (!ends_in_line_) file << '\n';
    file << ResultLine(key, result) << '\n';
    file.close();
    if (!file) return absl::UnavailableError(fmt::format("{}: cannot write {}", flag_, path_));
    ends_in_line_ = true;
  }
  results_[key] = std::move(result);
  return absl::OkStatus();
}

}  // namespace longhaul::eval
