// EvalReport: everything that `longhaul eval` measured, as plain values. Made once at the end of a
// run (MakeReport), then printed as a table, written as JSON and drawn as HTML. No files, no JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::eval {

// The unit of EvalScore::score.
enum class Unit : uint8_t {
  kShare,       // 0 to 1, larger is better
  kPerplexity,  // 1 and more, smaller is better
  kNats,        // 0 and more, smaller is better
};

// The mean score of all prompts of one kind under one policy.
struct EvalScore {
  std::string suite;          // "needle"
  std::string task;           // "needle"; "niah_multikey" of ruler; "agreement" or "kl"
  Unit unit = Unit::kShare;   // of score
  int64_t length_tokens = 0;  // as asked for
  double depth = -1;          // 0 = start of the prompt, 1 = its end; -1: the task has none
  int64_t bucket_begin =
      -1;                   // perplexity of the tokens [bucket_begin, bucket_end) of the document;
  int64_t bucket_end = -1;  // -1: of all of it
  int64_t n = 0;            // prompts
  double score = 0;
};

// A mean over prompts.
struct MeanScore {
  double sum = 0;
  int64_t n = 0;
  void Add(const EvalScore& score) {
    sum += score.score * static_cast<double>(score.n);
    n += score.n;
  }
  double Value() const { return sum / static_cast<double>(n); }  // n > 0
};

// One prefill under one policy.
struct EvalSample {
  std::string suite;
  int64_t length_tokens = 0;  // as asked for
  int64_t prompt_tokens = 0;  // what it was
  double ttft_s = 0;          // 0 = not measured: suites ppl and agreement
  double density = 1;         // attended (query, key) pairs / all of the causal triangle
  double recall_mean = 1;     // of the audit rows; 1 where nothing was audited
};

// All prefills of one length under one policy.
struct EvalLength {
  int64_t length_tokens = 0;  // as asked for
  int64_t n = 0;              // prompts
  double density = 1;         // mean
  double recall_mean = 1;  // of all audit rows; where there is no histogram, of the prompts' means
  double recall_p1 = 1;    // first percentile of the audit rows; 1 where there is no histogram
  double ttft_median_s = 0;  // 0 = not measured
};

// What the policy did with one query head of one layer, over all prompts.
struct EvalHead {
  int32_t layer = 0;
  int32_t head = 0;
  double density = 1;
  int64_t n_epochs = 0;     // under a sparse policy; of these:
  int64_t n_streaming = 0;  // local keys alone
  int64_t n_sparse = 0;     // local keys, stripes and bands
  int64_t n_dense = 0;      // everything, by cost or after the audit (repaired)
  double recall_mean = 1;
};

struct EvalPolicy {
  std::string name;  // as given: "sample:alpha=0.9"
  std::vector<EvalScore> scores;
  std::vector<EvalSample> samples;
  std::vector<EvalLength> lengths;  // those that were measured, in the order of --lengths
  // Of audit recalls over all prompts, 1001 cells of 1/1000 (the last one: exactly 1); empty where
  // the server does not tell.
  std::vector<int64_t> recall_histogram;
  double recall_mean = 1;       // of the histogram's values
  double recall_p1 = 1;         // their first percentile
  double density = 1;           // mean over samples
  std::vector<EvalHead> heads;  // layer by layer, those with epochs; empty where nothing is known
};

struct EvalReport {
  std::string target;   // model folder or URL
  std::string model;    // served name
  std::string created;  // "2026-01-31 12:00 UTC"
  std::string version;  // of this program
  std::string text;     // file of the filler text; "" = built in
  int64_t n_samples = 0;
  uint64_t seed = 0;
  int32_t n_layers = 0;
  int32_t n_heads = 0;
  std::vector<std::string> suites;
  std::vector<int64_t> lengths;  // tokens
  std::vector<double> depths;
  std::vector<EvalPolicy> policies;  // in the order of --policies
};

}  // namespace longhaul::eval
