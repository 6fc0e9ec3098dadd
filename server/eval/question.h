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

// How suite needle asks.
enum class Wording : uint8_t {
  kWords,  // "The code of quiet harbor is 2436065." What is the code of quiet harbor? ...
  kCodes,  // "The code of quiet harbor is #243606557.", which models/lookup continues
};

// Plain English to tell them apart: a tokenizer that spells it out belongs to a model that knows no
// words.
inline constexpr std::string_view kEnglish =
    "What was the number that someone mentioned in the text which you have just read, and how "
    "often was it written down? Please answer in a few words, as well as you remember it.";
inline constexpr double kEnglishWords = 34;
inline constexpr double kMostTokensPerWord = 2.0;  // models/lookup: 2.5

// Tasks of a suite of questions, in the order in which they are asked.
std::vector<std::string> TasksOf(const std::string& suite);

// As long as FitLength says. InvalidArgument names the task when the length is too short for it.
absl::StatusOr<Question> MakeQuestion(const TaskSpec& spec, uint64_t seed, const Haystack& haystack,
                                      const TokenCounter& count, Wording wording);

// 0 to 1. Capital and small letters are the same.
double ScoreAnswer(const Question& question, std::string_view answer);

}  // namespace longhaul::eval
