#include "server/eval/question.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <set>
#include <utility>

namespace longhaul::eval {
namespace {

constexpr int64_t kManyNeedles = 4;  // keys, values or queries of the tasks with several
constexpr int64_t kChainLength = 5;  // variables with the value asked for
constexpr int64_t kCommonWords = 10;
constexpr int64_t kFrequentWords = 3;
constexpr int64_t kPassageKnownWords = 8;
constexpr int64_t kPassageNextWords = 16;
constexpr double kZetaExponent = 2.0;  // of word frequencies in the task frequent words

constexpr std::array<std::string_view, 24> kAdjectives = {
    "amber",  "brave", "bright", "calm",  "clever", "cold",   "dark",   "early",
    "empty",  "fresh", "gentle", "green", "heavy",  "hidden", "lonely", "loud",
    "narrow", "noble", "pale",   "quiet", "rapid",  "silver", "warm",   "wild"};
constexpr std::array<std::string_view, 32> kNouns = {
    "anchor", "apple",  "basket",  "bell",    "bridge", "candle", "castle", "clock",
    "desert", "eagle",  "engine",  "feather", "forest", "garden", "hammer", "harbor",
    "island", "ladder", "lantern", "letter",  "market", "mirror", "needle", "orchard",
    "pebble", "planet", "ribbon",  "river",   "school", "tower",  "valley", "violin"};
constexpr std::array<std::string_view, 32> kSyllables = {
    "ba", "be", "da", "de", "do", "fa", "fe", "ga", "go", "ka", "ke", "ki", "la", "lo", "ma", "mi",
    "na", "ne", "no", "pa", "pe", "ra", "ri", "ro", "sa", "se", "ta", "ti", "to", "va", "ve", "zu"};
constexpr std::array<std::string_view, 8> kTrades = {"baker",  "clockmaker", "doctor", "gardener",
                                                     "lawyer", "painter",    "sailor", "teacher"};

// Numbers from a seed, the same with every compiler and library.
class Random {
 public:
  Random(const TaskSpec& spec, uint64_t seed) {
    const std::string name = fmt::format("{} {} {} {} {} {}", spec.suite, spec.task,
                                         spec.length_tokens, spec.depth, spec.index, seed);
    std::seed_seq sequence(name.begin(), name.end());
    generator_.seed(sequence);
  }
  int64_t Below(int64_t n) { return static_cast<int64_t>(generator_() % static_cast<uint64_t>(n)); }
  double Share() { return static_cast<double>(generator_() >> 11) * 0x1p-53; }
  template <size_t n>
  std::string_view Pick(const std::array<std::string_view, n>& words) {
    return words[static_cast<size_t>(Below(n))];
  }
  std::string Digits(int n_digits) {
    std::string digits(1, static_cast<char>('1' + Below(9)));
    while (static_cast<int>(digits.size()) < n_digits) {
      digits += static_cast<char>('0' + Below(10));
    }
    return digits;
  }
  std::string MadeUpWord(int n_syllables) {
    std::string word;
    for (int i = 0; i < n_syllables; ++i) word += Pick(kSyllables);
    return word;
  }
  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[static_cast<size_t>(Below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  std::mt19937_64 generator_;
};

std::string Capital(std::string word) {
  word[0] = static_cast<char>(word[0] - 'a' + 'A');
  return word;
}

// n distinct results of make().
template <typename Make>
std::vector<std::string> Distinct(int64_t n, const Make& make) {
  std::set<std::string> seen;
  std::vector<std::string> result;
  while (static_cast<int64_t>(result.size()) < n) {
    std::string value = make();
    if (seen.insert(value).second) result.push_back(std::move(value));
  }
  return result;
}

// What a task's prompt is made of, apart from its length.
struct Draft {
  std::function<std::string(int64_t)> prompt;  // with n sentences, words or passages
  std::vector<std::string> expected;
  Match match = Match::kAll;
  int64_t max_tokens = 0;
};

// ---- Texts planted in a haystack ----

struct Frame {
  std::string before;
  std::vector<Planted> planted;
  std::string after;
};

std::function<std::string(int64_t)> InHaystack(const Haystack* haystack, int64_t first,
                                               Frame frame) {
  return [haystack, first, frame = std::move(frame)](int64_t n) {
    return frame.before + Plant(*haystack, first, n, frame.planted) + frame.after;
  };
}

// models/lookup continues the last three tokens of the prompt as they were continued before.
Draft NeedleDraft(const TaskSpec& spec, Wording wording, const Haystack& haystack, Random& random) {
  const bool words = wording == Wording::kWords;
  const std::string key = fmt::format("{} {}", random.Pick(kAdjectives), random.Pick(kNouns));
  const std::string code = random.Digits(words ? 7 : 9);
  const std::string told = fmt::format("The code of {} is {}", key, words ? "" : "#");
  Frame frame;
  frame.planted = {{spec.depth, told + code + "."}};
  frame.after =
      words ? fmt::format("\nWhat is the code of {}? The code of {} is", key, key) : "\n" + told;
  return {.prompt = InHaystack(&haystack, random.Below(haystack.n_sentences()), std::move(frame)),
          .expected = {code},
          .match = Match::kAll,
          .max_tokens = 16};
}

Draft NeedlesDraft(const TaskSpec& spec, const Haystack& haystack, Random& random) {
  const bool many_values = spec.task == "niah_multivalue";
  const bool many_queries = spec.task == "niah_multiquery";
  const int64_t n_keys = many_queries || spec.task == "niah_multikey" ? kManyNeedles : 1;
  const int64_t n_values = many_values ? kManyNeedles : 1;
  const std::vector<std::string> keys = Distinct(n_keys, [&random] {
    return fmt::format("{}-{}", random.Pick(kAdjectives), random.Pick(kNouns));
  });
  const std::vector<std::string> values =
      Distinct(n_keys * n_values, [&random] { return random.Digits(7); });
  Frame frame;
  frame.before =
      "Some special magic numbers are hidden within the following text. Make sure to memorize "
      "them. I will quiz you about the numbers afterwards.\n";
  for (int64_t i = 0; i < n_keys * n_values; ++i) {
    frame.planted.push_back({random.Share(), fmt::format("One of the special magic numbers for {} "
                                                         "is: {}.",
                                                         keys[i / n_values], values[i])});
  }
  const bool all = many_values || many_queries;
  const std::string asked = many_queries ? fmt::format("{}", fmt::join(keys, ", ")) : keys[0];
  const std::string_view number = all ? "numbers" : "number", verb = all ? "are" : "is";
  frame.after = fmt::format(
      "\nWhat {} {}the special magic {} for {} mentioned in the provided text? The special magic "
      "{} for {} mentioned in the provided text {}",
      verb, all ? "all " : "", number, asked, number, asked, verb);
  return {.prompt = InHaystack(&haystack, random.Below(haystack.n_sentences()), std::move(frame)),
          .expected = all ? values : std::vector<std::string>{values[0]},
          .match = Match::kAll,
          .max_tokens = all ? 64 : 16};
}

Draft VariablesDraft(const Haystack& haystack, Random& random) {
  const std::vector<std::string> names = Distinct(kChainLength, [&random] {
    std::string name;
    for (int i = 0; i < 5; ++i) name += static_cast<char>('A' + random.Below(26));
    return name;
  });
  std::vector<double> depths;
  for (int64_t i = 0; i < kChainLength; ++i) depths.push_back(random.Share());
  std::sort(depths.begin(), depths.end());
  const std::string value = random.Digits(5);
  Frame frame;
  frame.before =
      "Memorize and track the chain(s) of variable assignment hidden in the following text.\n";
  for (int64_t i = 0; i < kChainLength; ++i) {
    const std::string right = i == 0 ? value : "VAR " + names[i - 1];
    frame.planted.push_back({depths[i], fmt::format("VAR {} = {}.", names[i], right)});
  }
  frame.after = fmt::format(
      "\nQuestion: Find all variables that are assigned the value {} in the text above. Answer: "
      "According to the chain(s) of variable assignment in the text above, {} variables are "
      "assigned the value {}, they are:",
      value, kChainLength, value);
  return {.prompt = InHaystack(&haystack, random.Below(haystack.n_sentences()), std::move(frame)),
          .expected = names,
          .match = Match::kAll,
          .max_tokens = 48};
}

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (!space) {
      words.back() += c;
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// The passage comes from right before the haystack's first sentence: as far as the text does not
// repeat, it stands in the prompt once.
Draft PassageDraft(const Haystack& haystack, Random& random) {
  const int64_t first = random.Below(haystack.n_sentences());
  constexpr size_t kWords = kPassageKnownWords + kPassageNextWords;
  std::vector<std::string> words;
  // Sentences have a word at least; a text of two of them still ends the search.
  for (int64_t n = 4; words.size() < kWords; n *= 2) {
    const int64_t begin = ((first - n) % haystack.n_sentences() + haystack.n_sentences());
    words = Words(haystack.Sentences(begin, n));
  }
  words.resize(kWords);
  const auto known_end = words.begin() + kPassageKnownWords;
  const std::string known = fmt::format("{}", fmt::join(words.begin(), known_end, " "));
  const std::string next = fmt::format("{}", fmt::join(known_end, words.end(), " "));
  Frame frame;
  frame.planted = {{random.Share(), fmt::format("\n\n{} {}\n\n", known, next)}};
  frame.after = fmt::format("\n\nContinue the passage that begins with \"{}\"\n\n{}", known, known);
  return {.prompt = InHaystack(&haystack, first, std::move(frame)),
          .expected = {next},
          .match = Match::kPrefix,
          .max_tokens = 4 * kPassageNextWords};
}

// ---- Lists of words ----

// n is the number of rare words.
Draft CommonWordsDraft(int64_t length_tokens, Random& random) {
  // As RULER: 30 and 3 times, fewer where the prompt has no room.
  const int64_t n_common = length_tokens < 8192 ? 10 : 30;
  const int64_t n_rare = length_tokens < 8192 ? 1 : 3;
  const uint64_t seed = static_cast<uint64_t>(random.Below(int64_t{1} << 62));
  const TaskSpec words_spec{.suite = "words", .task = "", .index = 0};
  const auto word = [](Random& from) {
    return from.MadeUpWord(2 + static_cast<int>(from.Below(2)));
  };
  Random first(words_spec, seed);
  const std::vector<std::string> common = Distinct(kCommonWords, [&] { return word(first); });
  // Of three syllables at most, 33792 words: more are numbered.
  auto prompt = [=](int64_t n) {
    Random from(words_spec, seed);
    std::vector<std::string> list;
    for (const std::string& w : common) list.insert(list.end(), static_cast<size_t>(n_common), w);
    std::set<std::string> seen(common.begin(), common.end());
    for (int64_t i = 0; i < n; ++i) {
      std::string rare = word(from);
      if (!seen.insert(rare).second) rare += fmt::format("-{}", i);
      list.insert(list.end(), static_cast<size_t>(n_rare), rare);
    }
    from.Shuffle(list);
    std::string text =
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n";
    for (size_t i = 0; i < list.size(); ++i) text += fmt::format("{}. {} ", i + 1, list[i]);
    return text +
           "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
           "words that appear most often in the list are:";
  };
  return {.prompt = std::move(prompt), .expected = common, .match = Match::kAll, .max_tokens = 96};
}

// n words, of which the one of rank k has a share of k^-2; the first is noise, as in RULER.
Draft FrequentWordsDraft(Random& random) {
  constexpr int64_t kVocabulary = 512;
  const std::vector<std::string> words = Distinct(
      kVocabulary, [&random] { return random.MadeUpWord(2 + static_cast<int>(random.Below(2))); });
  const uint64_t seed = static_cast<uint64_t>(random.Below(int64_t{1} << 62));
  auto prompt = [=](int64_t n) {
    std::vector<std::string> list;
    for (int64_t rank = 1; rank <= kVocabulary; ++rank) {
      const double share = std::pow(static_cast<double>(rank), -kZetaExponent) / 1.6449;
      // The three that are asked for are there however short the list, and no two as often.
      const int64_t least = rank <= 1 + kFrequentWords ? 2 * (2 + kFrequentWords - rank) : 0;
      const int64_t count = std::max<int64_t>(least, std::llround(share * static_cast<double>(n)));
      if (count == 0) break;
      list.insert(list.end(), static_cast<size_t>(count),
                  rank == 1 ? "...." : words[static_cast<size_t>(rank)]);
    }
    Random order(TaskSpec{.suite = "order", .task = "", .index = 0}, seed);
    order.Shuffle(list);
    return fmt::format(
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. {}\nQuestion: Do not provide any explanation. "
        "Please ignore the dots '....'. What are the three most frequently appeared words in the "
        "above coded text? Answer: According to the coded text above, the three most frequently "
        "appeared words are:",
        fmt::join(list, " "));
  };
  return {.prompt = std::move(prompt),
          .expected = {words.begin() + 2, words.begin() + 2 + kFrequentWords},
          .match = Match::kAll,
          .max_tokens = 32};
}

// n passages, each about a person; one is asked about.
Draft PassageQuestionDraft(Random& random) {
  const uint64_t seed = static_cast<uint64_t>(random.Below(int64_t{1} << 62));
  const double place = random.Share();
  const auto person = [](Random& from) {
    const int n_syllables = 2 + static_cast<int>(from.Below(2));
    return Capital(from.MadeUpWord(n_syllables)) + " " + Capital(from.MadeUpWord(3));
  };
  const auto passage = [](Random& from, const std::string& name, const std::string& town) {
    return fmt::format(
        "{} was born in {} in {}, the child of a {}. After some years as a {} in {}, {} moved to "
        "{} and wrote about {} there.",
        name, town, 1700 + from.Below(250), from.Pick(kTrades), from.Pick(kTrades),
        Capital(from.MadeUpWord(3)), name.substr(0, name.find(' ')), Capital(from.MadeUpWord(3)),
        Capital(from.MadeUpWord(2)));
  };
  const std::string asked = person(random);
  const std::string town = Capital(random.MadeUpWord(4));  // no other town has four syllables
  const std::string told = passage(random, asked, town);
  auto prompt = [=](int64_t n) {
    Random from(TaskSpec{.suite = "people", .task = "", .index = 0}, seed);
    const auto at = static_cast<int64_t>(place * static_cast<double>(n + 1));
    std::string text =
        "Answer the question based on the given documents. Only give me the answer and do not "
        "output any other words.\n\nThe following are given documents.\n\n";
    for (int64_t i = 0; i <= n; ++i) {
      std::string name = person(from);
      // A namesake would make two answers right; the number keeps the passages in step.
      if (name == asked) name += " the Younger";
      const std::string other = passage(from, name, Capital(from.MadeUpWord(3)));
      text += fmt::format("Document {}:\n{}\n\n", i + 1, i == at ? told : other);
    }
    return text + fmt::format("Question: In which town was {} born? Answer:", asked);
  };
  return {.prompt = std::move(prompt), .expected = {town}, .match = Match::kAll, .max_tokens = 24};
}

Draft MakeDraft(const TaskSpec& spec, Wording wording, const Haystack& haystack, Random& random) {
  if (spec.suite == "needle") return NeedleDraft(spec, wording, haystack, random);
  if (spec.suite == "passage") return PassageDraft(haystack, random);
  if (spec.task == "variable_tracking") return VariablesDraft(haystack, random);
  if (spec.task == "common_words") return CommonWordsDraft(spec.length_tokens, random);
  if (spec.task == "frequent_words") return FrequentWordsDraft(random);
  if (spec.task == "passage_question") return PassageQuestionDraft(random);
  return NeedlesDraft(spec, haystack, random);
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

}  // namespace

std::vector<std::string> TasksOf(const std::string& suite) {
  if (suite != "ruler") return {suite};
  return {"niah_single",       "niah_multikey", "niah_multivalue", "niah_multiquery",
          "variable_tracking", "common_words",  "frequent_words",  "passage_question"};
}

absl::StatusOr<Question> MakeQuestion(const TaskSpec& spec, uint64_t seed, const Haystack& haystack,
                                      const TokenCounter& count, Wording wording) {
  Random random(spec, seed);
  Draft draft = MakeDraft(spec, wording, haystack, random);
  auto fitted = FitLength(spec.length_tokens, count, draft.prompt);
  if (!fitted.ok()) {
    const std::string message(fitted.status().message());
    return absl::Status(fitted.status().code(), fmt::format("task {}: {}", spec.task, message));
  }
  return Question{.prompt = std::move(fitted->text),
                  .expected = std::move(draft.expected),
                  .match = draft.match,
                  .max_tokens = draft.max_tokens};
}

double ScoreAnswer(const Question& question, std::string_view answer) {
  const std::string said = Lower(answer);
  if (question.match == Match::kAll) {
    int64_t n_found = 0;
    for (const std::string& text : question.expected) {
      n_found += said.find(Lower(text)) != std::string::npos;
    }
    return static_cast<double>(n_found) / static_cast<double>(question.expected.size());
  }
  const std::vector<std::string> expected = Words(Lower(question.expected[0]));
  const std::vector<std::string> words = Words(said);
  const size_t n = std::min(words.size(), expected.size());
  const auto wrong = std::mismatch(expected.begin(),
                                   expected.begin() + static_cast<std::ptrdiff_t>(n), words.begin())
                         .first;
  return static_cast<double>(wrong - expected.begin()) / static_cast<double>(expected.size());
}

}  // namespace longhaul::eval
