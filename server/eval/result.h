// What one prompt under one policy gave, and the file that keeps such results, so that a run which
// broke off goes on where it was. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/sparse_policy.h"

namespace longhaul::eval {

struct Result {
  // needle, ruler, passage: {score}. agreement: {share, KL in nats}. ppl: for each bucket of
  // positions the sum of -logprob and the number of tokens.
  std::vector<double> values;
  std::string answer;  // its beginning
  // A dense run of suite agreement: what it generated, and what was likely at each place.
  std::vector<int32_t> tokens;
  std::vector<std::vector<std::pair<int32_t, float>>> top;

  int64_t prompt_tokens = 0;
  double ttft_s = 0;  // 0 = not measured
  double density = 1;
  double recall_mean = 1;
  std::vector<std::pair<int64_t, int64_t>> recalls;  // (cell of SparseReport::recall_histogram, n)
  double recall_sum = 0;
  std::vector<HeadReport> heads;
};

// Adds the recalls of a result, without those of heads.
void MergeRecalls(const Result& result, SparseReport* sums);

// One line of JSON, and back. InvalidArgument when the text is no such line.
std::string ResultLine(const std::string& key, const Result& result);
absl::StatusOr<std::pair<std::string, Result>> ParseResultLine(std::string_view line);

// 32 hexadecimal digits that stand for `text`.
std::string DigestOf(const std::string& text);

// Results by key, in DIR/results.jsonl; only ever appended to.
class ResultStore {
 public:
  // Reads what is there; a line that was cut off is left out. An empty `dir`: keeps them in memory
  // alone. Errors name the file, and the flag ("--out") that named the folder.
  static absl::StatusOr<ResultStore> Open(const std::string& flag, const std::string& dir);

  const Result* Find(const std::string& key) const;  // nullptr when there is none
  // Written before it returns.
  absl::Status Add(const std::string& key, Result result);
  int64_t n_unreadable() const { return n_unreadable_; }

 private:
  absl::Status Read();

  std::string flag_;
  std::string path_;  // "" = memory alone
  bool ends_in_line_ = true;
  int64_t n_unreadable_ = 0;
  std::map<std::string, Result> results_;
};

}  // namespace longhaul::eval
