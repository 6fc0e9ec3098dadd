// Questions whose answer stands far back in a long prompt: suites needle, ruler and passage.
// Ruler's tasks follow the definitions of RULER (Hsieh et al., arXiv 2404.06654), without its
// worked examples and with made-up words and names in place of its word lists and question sets.
// Pure functions of their arguments.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/eval/haystack.h"

namespace longhaul::eval {

// One prompt to make. Two specs that differ in anything give different prompts.
struct TaskSpec {
  std::string suite;
  std::string task;
  int64_t length_tokens = 0;
  double depth = -1;  // of suite needle
  int64_t index = 0;  // which of the prompts that are alike but for this
};

enum class Match : uint8_t {
  kAll,     // the share of the expected texts that the answer contains
  kPrefix,  // of the words of the one expected text: the share before the first that is wrong
};

struct Question {
  std::string prompt;
  std::vector<std::string> expected;
  Match match = Match::kAll;
  int64_t max_tokens = 0;  // of the answer
};

// Tasks of a suite of questions, in the order in which they are asked.
std::vector<std::string> TasksOf(const std::string& suite);

// As long as FitLength says. InvalidArgument names the task when the length is too short for it.
absl::StatusOr<Question> MakeQuestion(const TaskSpec& spec, uint64_t seed, const Haystack& haystack,
                                      const TokenCounter& count);

// 0 to 1. Capital and small letters are the same.
double ScoreAnswer(const Question& question, std::string_view answer);

}  // namespace longhaul::eval
