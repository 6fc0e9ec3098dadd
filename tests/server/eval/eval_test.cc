// The parts of `longhaul eval` that need no model: policies, prompts, scores, the store, the
// report.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "server/eval/haystack.h"
#include "server/eval/make_report.h"
#include "server/eval/measure.h"
#include "server/eval/policy.h"
#include "server/eval/question.h"
#include "server/eval/report_tables.h"
#include "server/eval/result.h"
#include "server/eval/run.h"

namespace longhaul::eval {
namespace {

// A token is a word, as long as it is.
absl::StatusOr<int64_t> CountWords(const std::string& text) {
  int64_t n = 0;
  bool in_word = false;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n';
    n += !space && !in_word;
    in_word = !space;
  }
  return n;
}

int CountOf(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(PolicyTest, ReadsNamesAndValues) {
  const auto policy = ParsePolicy("sample:alpha=0.9:window=512");
  ASSERT_TRUE(policy.ok()) << policy.status();
  const auto options = ResolvePolicy(*policy, SparseOptions());
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->mode, SparseMode::kSample);
  EXPECT_FLOAT_EQ(options->alpha, 0.9f);
  EXPECT_EQ(options->window, 512);
  EXPECT_EQ(options->sink, SparseOptions().sink);
  EXPECT_EQ(ResolvePolicy(*ParsePolicy("vertical_slash:columns=200"), *options)->columns, 200);

  SparseOptions base;
  base.mode = SparseMode::kPaper;
  base.alpha = 0.5f;
  EXPECT_FLOAT_EQ(ResolvePolicy(*ParsePolicy("sample"), base)->alpha, 0.5f);
  EXPECT_EQ(ResolvePolicy(*ParsePolicy("default"), base)->mode, SparseMode::kPaper);
}

TEST(PolicyTest, RefusesByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"spars", "unknown"},
      {"", "unknown"},
      {"sample:beta=1", "'beta' is unknown"},
      {"sample:alpha", "must be a number"},
      {"sample:alpha=x", "must be a number"},
      {"sample:alpha=0.9x", "must be a number"},
      {"sample:alpha=nan", "must be a number"},
      {"sample:alpha=1.5", "alpha is 1.5"},
      {"sample:alpha=0.9:alpha=0.8", "given twice"},
      {"sample:window=100", "multiple of 64"},
      {"sample:window=640.5", "whole number"},
      {"default:alpha=0.9", "takes no values"},
  };
  for (const auto& [text, expected] : cases) {
    const auto policy = ParsePolicy(text);
    ASSERT_FALSE(policy.ok()) << text;
    EXPECT_TRUE(absl::IsInvalidArgument(policy.status()));
    EXPECT_NE(std::string(policy.status().message()).find(expected), std::string::npos)
        << policy.status();
  }
}

TEST(OptionsTest, RefusesByName) {
  EXPECT_TRUE(CheckOptions(EvalOptions()).ok());
  const auto refused = [](auto change, const char* expected) {
    EvalOptions options;
    change(options);
    const absl::Status status = CheckOptions(options);
    EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
  };
  refused([](EvalOptions& o) { o.suites = {"niah"}; }, "suite 'niah' is unknown");
  refused([](EvalOptions& o) { o.suites = {}; }, "--suites has 0 values");
  refused([](EvalOptions& o) { o.suites = {"ppl"}; }, "--text");
  refused([](EvalOptions& o) { o.policies = {"dense", "dense"}; }, "dense twice");
  refused([](EvalOptions& o) { o.lengths = {10}; }, "--lengths is 10");
  refused([](EvalOptions& o) { o.lengths = {int64_t{1} << 40}; }, "--lengths");
  refused([](EvalOptions& o) { o.depths = {1.5}; }, "--depths is 1.5");
  refused([](EvalOptions& o) { o.depths = {std::nan("")}; }, "--depths");
  refused([](EvalOptions& o) { o.samples = 0; }, "--samples is 0");
  refused(
      [](EvalOptions& o) {
        o.url = "http://x";
        o.suites = {"agreement"};
      },
      "suite 'agreement'");
}

TEST(HaystackTest, CutsSentences) {
  const auto haystack =
      Haystack::FromText("One 1.5 two. \"Three?\" Four\n\nFive! Six. A tail without an end");
  ASSERT_TRUE(haystack.ok());
  ASSERT_EQ(haystack->n_sentences(), 5);
  EXPECT_EQ(haystack->Sentences(0, 1), "One 1.5 two. ");
  EXPECT_EQ(haystack->Sentences(1, 2), "\"Three?\" Four\n\n");
  EXPECT_EQ(haystack->Sentences(4, 2), "Six. One 1.5 two. ") << "begins again";
  EXPECT_EQ(haystack->Sentences(3, 0), "");
  EXPECT_EQ(Plant(*haystack, 3, 2, {{1, "END"}, {0, "A"}, {0, "B"}, {0.5, "C"}}),
            "A B Five! C Six. END ");
  EXPECT_FALSE(Haystack::FromText("no sentence").ok());
  EXPECT_TRUE(absl::IsNotFound(Haystack::FromFile("/nowhere/text").status()));
}

TEST(HaystackTest, FitsLengths) {
  const auto make = [](int64_t n) {
    std::string text = "begin ";
    for (int64_t i = 0; i < n; ++i) text += i % 3 == 0 ? "word " : "several words here ";
    return text;
  };
  for (const int64_t length : {1, 2, 5, 64, 1000, 50000}) {
    int n_counts = 0;
    const auto fitted = FitLength(
        length, [&](const std::string& text) { return ++n_counts, CountWords(text); }, make);
    ASSERT_TRUE(fitted.ok());
    EXPECT_EQ(*CountWords(fitted->text), fitted->n_tokens);
    EXPECT_LE(fitted->n_tokens, length);
    EXPECT_LT(length - fitted->n_tokens, std::max<int64_t>(3, std::min<int64_t>(length / 100, 32)));
    EXPECT_LE(n_counts, 12);
  }
  EXPECT_TRUE(absl::IsInvalidArgument(FitLength(0, CountWords, make).status()));
}

std::vector<TaskSpec> AllSpecs(int64_t length) {
  std::vector<TaskSpec> specs;
  for (const char* suite : {"needle", "ruler", "passage"}) {
    for (const std::string& task : TasksOf(suite)) specs.push_back({suite, task, length, 0.5, 0});
  }
  return specs;
}

TEST(QuestionTest, HasItsLengthAndItsAnswer) {
  const Haystack haystack = Haystack::BuiltIn(20000);
  for (const int64_t length : {2048, 9000}) {
    for (const TaskSpec& spec : AllSpecs(length)) {
      SCOPED_TRACE(spec.task);
      const auto question = MakeQuestion(spec, 7, haystack, CountWords, Wording::kWords);
      ASSERT_TRUE(question.ok()) << question.status();
      EXPECT_LE(*CountWords(question->prompt), length);
      EXPECT_GE(*CountWords(question->prompt), length - 60);
      EXPECT_GT(question->max_tokens, 0);
      ASSERT_FALSE(question->expected.empty());
      std::set<std::string> distinct;
      for (const std::string& text : question->expected) {
        EXPECT_GE(CountOf(question->prompt, text), 1) << text;
        EXPECT_TRUE(distinct.insert(text).second) << text;
      }
      // A right answer scores all, silence nothing, and so does the question told again.
      std::string answer;
      for (const std::string& text : question->expected) answer += text + ", ";
      if (question->match == Match::kPrefix) answer = question->expected[0];
      EXPECT_EQ(ScoreAnswer(*question, answer), 1);
      EXPECT_EQ(ScoreAnswer(*question, ""), 0);
      EXPECT_LT(ScoreAnswer(*question, question->prompt.substr(question->prompt.size() - 40)), 0.5);
    }
  }
}

TEST(QuestionTest, IsTheSameForTheSameSpecAlone) {
  const Haystack haystack = Haystack::BuiltIn(5000);
  for (TaskSpec spec : AllSpecs(2048)) {
    SCOPED_TRACE(spec.task);
    const auto ask = [&](uint64_t seed) {
      return MakeQuestion(spec, seed, haystack, CountWords, Wording::kWords)->prompt;
    };
    const std::string prompt = ask(7);
    EXPECT_EQ(ask(7), prompt);
    EXPECT_NE(ask(8), prompt);
    spec.index = 1;
    EXPECT_NE(ask(7), prompt);
  }
}

TEST(QuestionTest, NeedleStandsAtItsDepthOnce) {
  const Haystack haystack = Haystack::BuiltIn(5000);
  for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
    const auto q = MakeQuestion({"needle", "needle", 4000, depth, 0}, 1, haystack, CountWords,
                                Wording::kWords);
    ASSERT_TRUE(q.ok());
    EXPECT_EQ(CountOf(q->prompt, q->expected[0]), 1);
    const double at = static_cast<double>(q->prompt.find(q->expected[0]));
    EXPECT_NEAR(at / static_cast<double>(q->prompt.size()), depth, 0.02);
  }
}

TEST(QuestionTest, NeedleIsAskedInWordsOrAsACode) {
  EXPECT_EQ(static_cast<double>(*CountWords(std::string(kEnglish))), kEnglishWords);
  const Haystack haystack = Haystack::BuiltIn(5000);
  const TaskSpec spec{"needle", "needle", 1000, 0.5, 0};
  const auto words = MakeQuestion(spec, 1, haystack, CountWords, Wording::kWords);
  EXPECT_EQ(words->expected[0].size(), 7u);
  EXPECT_TRUE(words->prompt.ends_with(" is"));
  const auto codes = MakeQuestion(spec, 1, haystack, CountWords, Wording::kCodes);
  EXPECT_EQ(codes->expected[0].size(), 9u);
  EXPECT_TRUE(codes->prompt.ends_with(" is #"));
  EXPECT_EQ(CountOf(codes->prompt, codes->prompt.substr(codes->prompt.rfind("The code"))), 2);
}

TEST(QuestionTest, CommonWordsAreTheMostCommon) {
  const Haystack haystack = Haystack::BuiltIn(500);
  for (const char* task : {"common_words", "frequent_words"}) {
    SCOPED_TRACE(task);
    const auto q =
        MakeQuestion({"ruler", task, 4096, -1, 0}, 3, haystack, CountWords, Wording::kWords);
    ASSERT_TRUE(q.ok());
    std::map<std::string, int> counts;
    std::string word;
    for (const char c : q->prompt) {
      if (c != ' ' && c != '\n') {
        word += c;
      } else {
        ++counts[std::exchange(word, "")];
      }
    }
    int least = 1 << 30;
    for (const std::string& text : q->expected) least = std::min(least, counts[text]);
    for (const auto& [other, n] : counts) {
      const bool asked =
          std::find(q->expected.begin(), q->expected.end(), other) != q->expected.end();
      const bool made_up = !other.empty() && other.size() % 2 == 0 &&
                           other.find_first_not_of("abdefgikmnlopqrstvzu") == std::string::npos;
      // Words of the wording and the dots of the noise may be as frequent.
      if (!asked && made_up && other != "words") {
        EXPECT_LT(n, least) << other;
      }
    }
  }
}

TEST(QuestionTest, RefusesWhatIsTooShort) {
  const auto q = MakeQuestion({"ruler", "common_words", 60, -1, 0}, 1, Haystack::BuiltIn(500),
                              CountWords, Wording::kWords);
  EXPECT_TRUE(absl::IsInvalidArgument(q.status()));
  EXPECT_NE(std::string(q.status().message()).find("common_words"), std::string::npos);
}

TEST(ScoreTest, CountsWhatWasFound) {
  Question question{.prompt = "", .expected = {"Alpha", "Beta"}, .match = Match::kAll};
  EXPECT_EQ(ScoreAnswer(question, "it is ALPHA"), 0.5);
  EXPECT_EQ(ScoreAnswer(question, "beta alpha"), 1);
  question = {.prompt = "", .expected = {"one two three four"}, .match = Match::kPrefix};
  EXPECT_EQ(ScoreAnswer(question, " One two  three x"), 0.75);
  EXPECT_EQ(ScoreAnswer(question, "two three four"), 0);
  EXPECT_EQ(ScoreAnswer(question, "one two three four five"), 1);
}

TEST(TopKlTest, IsTheDivergenceOverTheTop) {
  const auto ln = [](double p) { return static_cast<float>(std::log(p)); };
  const std::vector<std::pair<int32_t, float>> dense = {{1, ln(0.5)}, {2, ln(0.25)}};
  EXPECT_NEAR(TopKl(dense, {{1, ln(0.5)}, {2, ln(0.25)}}), 0, 1e-6);
  const double expected =
      0.5 * std::log(0.5 / 0.25) + 0.25 * std::log(0.25 / 0.5) + 0.25 * std::log(0.25 / 0.25);
  EXPECT_NEAR(TopKl(dense, {{2, ln(0.5)}, {1, ln(0.25)}}), expected, 1e-6);
  // Token 2 is not listed: it counts as the last that is.
  const double unlisted =
      0.5 * std::log(0.5 / 0.6) + 0.25 * std::log(0.25 / 0.3) + 0.25 * std::log(0.25 / 0.1);
  EXPECT_NEAR(TopKl(dense, {{1, ln(0.6)}, {9, ln(0.3)}}), unlisted, 1e-5);
  EXPECT_NEAR(TopKl({{1, 0.0f}}, {{1, 0.0f}}), 0, 1e-6) << "nothing is left for the others";
}

TEST(CompareTest, AsksForTheSameLikeliestToken) {
  const TopLists dense = {{{1, -0.5f}, {2, -1.0f}}, {{3, -0.7f}, {4, -0.7f}}};
  PromptScores scores;
  scores.top = {{{1, -0.5f}, {2, -1.0f}}, {{3, -0.7f}, {4, -0.7f}}};
  Agreement agreement = Compare(dense, scores);
  EXPECT_EQ(agreement.share, 1);
  EXPECT_NEAR(agreement.kl, 0, 1e-6);
  std::swap(scores.top[1][0], scores.top[1][1]);
  agreement = Compare(dense, scores);
  EXPECT_EQ(agreement.share, 0.5);
  EXPECT_NEAR(agreement.kl, 0, 1e-6) << "as likely as before";
}

Result MakeResult() {
  Result result;
  result.values = {0.75, 0.125};
  result.answer = "seven \xff eight\n";  // not UTF-8
  result.tokens = {3, 4};
  result.top = {{{3, -0.5f}, {5, -1.5f}}, {{4, -0.25f}, {6, -3.0f}}};
  result.prompt_tokens = 4000;
  result.ttft_s = 1.25;
  result.density = 0.25;
  result.recall_mean = 0.95;
  result.recalls = {{0, 1}, {950, 99}};
  result.recall_sum = 94.5;
  result.heads = {{.kept_pairs = 10,
                   .causal_pairs = 40,
                   .n_epochs = 4,
                   .n_streaming = 1,
                   .n_dense = 1,
                   .recall_sum = 7.5,
                   .n_recalls = 8},
                  {.kept_pairs = 40,
                   .causal_pairs = 40,
                   .n_epochs = 4,
                   .n_streaming = 0,
                   .n_dense = 4,
                   .recall_sum = 8,
                   .n_recalls = 8}};
  return result;
}

TEST(ResultTest, LineAndBack) {
  const Result result = MakeResult();
  const std::string line = ResultLine("key", result);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto parsed = ParseResultLine(line);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->first, "key");
  EXPECT_EQ(parsed->second.values, result.values);
  EXPECT_EQ(parsed->second.tokens, result.tokens);
  EXPECT_EQ(parsed->second.top, result.top);
  EXPECT_EQ(parsed->second.recalls, result.recalls);
  ASSERT_EQ(parsed->second.heads.size(), 2u);
  EXPECT_EQ(parsed->second.heads[0].recall_sum, 7.5);
  EXPECT_EQ(ResultLine("key", parsed->second), ResultLine("key", ParseResultLine(line)->second));
}

TEST(ResultTest, RefusesOtherLines) {
  for (const char* line : {"", "{", "[]", "{}", "{\"key\": 1}", "null"}) {
    EXPECT_FALSE(ParseResultLine(line).ok()) << line;
  }
  std::string line = ResultLine("key", MakeResult());
  const size_t at = line.find("[950,");
  ASSERT_NE(at, std::string::npos);
  EXPECT_FALSE(ParseResultLine(line.replace(at, 5, "[1950,")).ok()) << "outside the histogram";
  Result result = MakeResult();
  result.tokens.push_back(5);
  EXPECT_FALSE(ParseResultLine(ResultLine("key", result)).ok()) << "not known what was likely";
  result.top.emplace_back();
  EXPECT_FALSE(ParseResultLine(ResultLine("key", result)).ok()) << "nothing was";
}

TEST(ResultStoreTest, GoesOnWhereItWas) {
  const auto dir = std::filesystem::path(::testing::TempDir()) / "longhaul_eval_store_test";
  std::filesystem::remove_all(dir);
  {
    auto store = ResultStore::Open("--out", dir.string());
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(store->Find("a"), nullptr);
    ASSERT_TRUE(store->Add("a", MakeResult()).ok());
    ASSERT_NE(store->Find("a"), nullptr);
  }
  const auto file = dir / "results.jsonl";
  {  // the run was killed while it wrote
    std::ofstream out(file, std::ios::app);
    out << ResultLine("b", MakeResult()).substr(0, 30);
  }
  {
    auto store = ResultStore::Open("--out", dir.string());
    ASSERT_TRUE(store.ok());
    EXPECT_EQ(store->n_unreadable(), 1);
    EXPECT_NE(store->Find("a"), nullptr);
    EXPECT_EQ(store->Find("b"), nullptr);
    ASSERT_TRUE(store->Add("c", MakeResult()).ok());
  }
  auto store = ResultStore::Open("--out", dir.string());
  ASSERT_TRUE(store.ok());
  EXPECT_NE(store->Find("a"), nullptr);
  EXPECT_NE(store->Find("c"), nullptr) << "it stands on a line of its own";
  std::filesystem::remove_all(dir);
  EXPECT_TRUE(absl::IsInvalidArgument(ResultStore::Open("--out", "/dev/null/x").status()));
}

TEST(ReportTest, SumsByPolicyAndLength) {
  EvalOptions options;
  options.policies = {"dense", "sample"};
  options.lengths = {4096};
  options.depths = {0, 1};
  Result dense = MakeResult(), sample = MakeResult();
  dense.values = {1};
  dense.recalls.clear();
  dense.heads.clear();
  sample.values = {0};
  Result sample_right = sample;
  sample_right.values = {1};
  sample_right.ttft_s = 3;
  const std::vector<Measured> measured = {
      {{"needle", "needle", 4096, 0, 0}, {&dense, &sample}},
      {{"needle", "needle", 4096, 0, 1}, {&dense, &sample_right}},
      {{"needle", "needle", 4096, 1, 0}, {&dense, &sample_right}},
  };
  const EvalReport report = MakeReport(
      options, {.target = "x", .model = "x", .state = "", .n_layers = 1, .n_heads = 2}, measured);
  ASSERT_EQ(report.policies.size(), 2u);
  const EvalPolicy& policy = report.policies[1];
  ASSERT_EQ(policy.scores.size(), 2u);
  EXPECT_EQ(policy.scores[0].depth, 0);
  EXPECT_EQ(policy.scores[0].n, 2);
  EXPECT_EQ(policy.scores[0].score, 0.5);
  EXPECT_EQ(policy.scores[1].score, 1);
  EXPECT_EQ(policy.samples.size(), 3u);
  ASSERT_EQ(policy.recall_histogram.size(), 1001u);
  EXPECT_EQ(policy.recall_histogram[950], 3 * 99);
  EXPECT_DOUBLE_EQ(policy.recall_mean, 0.945);
  EXPECT_DOUBLE_EQ(policy.recall_p1, 0);
  ASSERT_EQ(policy.lengths.size(), 1u);
  EXPECT_EQ(policy.lengths[0].ttft_median_s, 3);
  ASSERT_EQ(policy.heads.size(), 2u);
  EXPECT_EQ(policy.heads[0].density, 0.25);
  EXPECT_EQ(policy.heads[0].n_sparse, 6);
  EXPECT_EQ(policy.heads[1].head, 1);
  EXPECT_EQ(policy.heads[1].n_dense, 12);
  EXPECT_TRUE(report.policies[0].heads.empty());
  EXPECT_TRUE(report.policies[0].recall_histogram.empty());
  const std::string tables = ReportText(report);
  EXPECT_NE(tables.find("100.0 %"), std::string::npos) << tables;
  EXPECT_NE(tables.find("66.7 %"), std::string::npos) << "over depths, by prompts: " << tables;
  EXPECT_NE(ReportJson(report).find("\"recall_p1\""), std::string::npos);
}

TEST(ReportTest, PerplexityByBucket) {
  EvalOptions options;
  options.suites = {"ppl"};
  options.policies = {"dense"};
  options.lengths = {4096};
  Result result;
  result.ttft_s = 0;
  for (int64_t b = 0; b < kPerplexityBuckets; ++b) {
    const double n = b == 0 ? 511 : 512;
    result.values.insert(result.values.end(), {n * std::log(2.0 + static_cast<double>(b)), n});
  }
  const EvalReport report = MakeReport(options, {}, {{{"ppl", "ppl", 4096, -1, 0}, {&result}}});
  const std::vector<EvalScore>& scores = report.policies[0].scores;
  ASSERT_EQ(scores.size(), size_t{1 + kPerplexityBuckets});
  EXPECT_EQ(scores[0].unit, Unit::kPerplexity);
  EXPECT_EQ(scores[0].bucket_begin, -1);
  EXPECT_NEAR(scores[1].score, 2, 1e-9);
  EXPECT_NEAR(scores[8].score, 9, 1e-9);
  EXPECT_EQ(scores[8].bucket_begin, 3584);
  EXPECT_EQ(scores[8].bucket_end, 4096);
  EXPECT_EQ(report.policies[0].lengths[0].ttft_median_s, 0) << "not measured";
  EXPECT_GT(scores[0].score, 2);
  EXPECT_LT(scores[0].score, 9);
}

}  // namespace
}  // namespace longhaul::eval
