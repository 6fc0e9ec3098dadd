#include "server/load/prompt_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string_view>
#include <vector>

namespace longhaul::load {
namespace {

using Words = std::vector<std::string_view>;

// Sizes of 64 and 16: an index is a few bits of a random number.
constexpr std::array<std::string_view, 64> kNouns = {
    "acorn",  "anchor",  "apple",  "badger",   "baker",  "banner",  "barn",    "basket",
    "beacon", "bell",    "bridge", "brook",    "button", "cabin",   "camel",   "candle",
    "castle", "cellar",  "chapel", "cliff",    "clock",  "cottage", "desert",  "doctor",
    "dragon", "eagle",   "farmer", "ferry",    "fiddle", "forest",  "garden",  "glacier",
    "hammer", "harp",    "hunter", "island",   "kettle", "ladder",  "lantern", "letter",
    "lizard", "market",  "meadow", "miller",   "mirror", "monk",    "needle",  "orchard",
    "otter",  "painter", "pebble", "pilot",    "planet", "poet",    "quarry",  "raven",
    "ribbon", "sailor",  "school", "shepherd", "stable", "teacher", "tower",   "violin"};
constexpr std::array<std::string_view, 16> kAdjectives = {
    "amber", "bitter", "calm",  "dusty", "early", "fierce", "gentle", "hollow",
    "jolly", "lonely", "misty", "noble", "pale",  "rapid",  "silver", "wise"};
constexpr std::array<std::string_view, 16> kVerbs = {
    "admires", "borrows", "carries", "chases", "discovers", "finds",   "follows", "guards",
    "hears",   "keeps",   "paints",  "pushes", "remembers", "repairs", "steals",  "watches"};
constexpr std::array<std::string_view, 8> kOpeners = {"The",  "A",    "Every", "Some",
                                                      "That", "This", "My",    "Our"};
constexpr std::array<std::string_view, 8> kDeterminers = {"a",    "any", "every", "his",
                                                          "some", "the", "this",  "your"};
constexpr std::array<std::string_view, 8> kPrepositions = {"above",  "behind", "beside", "from",
                                                           "inside", "near",   "under",  "without"};

constexpr int64_t kOpeningPieces = 17;  // Opening()
constexpr int64_t kQuestionPieces = 7;  // The code of <adjective> <noun> is #
constexpr int64_t kMinFillerPieces = 16;
constexpr int kSentencesPerParagraph = 24;

template <size_t n>
std::string_view Pick(const std::array<std::string_view, n>& words, std::mt19937_64& random) {
  return words[random() % n];
}

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

Words Sentence(std::mt19937_64& random) {
  Words words = {Pick(kOpeners, random), Pick(kAdjectives, random), Pick(kNouns, random),
                 Pick(kVerbs, random)};
  const uint64_t n_phrases = 1 + random() % 3;
  for (uint64_t i = 0; i < n_phrases; ++i) {
    if (i > 0) words.push_back(Pick(kPrepositions, random));
    words.insert(words.end(),
                 {Pick(kDeterminers, random), Pick(kAdjectives, random), Pick(kNouns, random)});
  }
  return words;
}

}  // namespace

int64_t PromptText::MinTokens(int64_t n_answer) {
  return kOpeningPieces + kMinFillerPieces + 2 * kQuestionPieces +
         std::min(n_answer, kMaxCodeGroups) + 2;
}

Prompt PromptText::Make(int64_t n_tokens, int64_t n_answer) {
  const int64_t n_groups = std::clamp<int64_t>(n_answer, 1, kMaxCodeGroups);
  const auto n_pieces =
      static_cast<int64_t>(std::llround(static_cast<double>(n_tokens) / tokens_per_piece_));
  // One piece for a beginning-of-text token, one for the full stop of the statement.
  const int64_t n_filler = n_pieces - kOpeningPieces - 2 * kQuestionPieces - n_groups - 2;
  const std::string opening = Opening();
  const std::string question =
      fmt::format("The code of {} {} is #", Pick(kAdjectives, random_), Pick(kNouns, random_));
  Prompt prompt;
  prompt.code = Code(n_groups);
  const std::string& filler = Filler(std::max(n_filler, kMinFillerPieces));
  prompt.text.reserve(opening.size() + filler.size() + 2 * question.size() + prompt.code.size() +
                      8);
  prompt.text = opening;
  prompt.text += filler;
  prompt.text += ' ';
  prompt.text += question;
  prompt.text += prompt.code;
  prompt.text += ".\n";
  prompt.text += question;
  return prompt;
}

const std::string& PromptText::Filler(int64_t n_pieces) {
  std::string& filler = fillers_[n_pieces];
  if (filler.empty()) filler = MakeFiller(n_pieces);
  return filler;
}

// 16 words and a full stop from 96 bits: openings of a run differ, and those of two runs, too.
std::string PromptText::Opening() {
  uint64_t bits = Mix(run_id_ ^ Mix(n_prompts_++));
  std::string text = "The";
  for (int i = 0; i < 15; ++i) {
    if (i == 8) bits = Mix(bits);
    text += ' ';
    text += kNouns[bits % kNouns.size()];
    bits /= kNouns.size();
  }
  return text + ". ";
}

// Distinct groups: an exact lookup of three tokens then finds one place.
std::string PromptText::Code(int64_t n_groups) {
  std::array<int, 1000> groups;
  std::iota(groups.begin(), groups.end(), 0);
  std::string code;
  for (int64_t i = 0; i < n_groups; ++i) {
    const auto at = static_cast<size_t>(i);
    std::swap(groups[at], groups[at + random_() % (groups.size() - at)]);
    code += fmt::format("{:03}", groups[at]);
  }
  return code;
}

std::string PromptText::MakeFiller(int64_t n_pieces) {
  std::mt19937_64 random(Mix(static_cast<uint64_t>(n_pieces)));
  std::string text;
  text.reserve(static_cast<size_t>(n_pieces) * 6);
  for (int n_sentences = 0; n_pieces > 0; ++n_sentences) {
    Words words = Sentence(random);
    // The last sentence, a list of nouns, takes what is left; it needs a piece for its full stop.
    if (n_pieces - static_cast<int64_t>(words.size()) - 1 < 4) {
      words = {"The"};
      while (static_cast<int64_t>(words.size()) < n_pieces - 1) {
        words.push_back(Pick(kNouns, random));
      }
    }
    n_pieces -= static_cast<int64_t>(words.size()) + 1;
    if (n_sentences > 0) text += n_sentences % kSentencesPerParagraph == 0 ? '\n' : ' ';
    text += fmt::format("{}.", fmt::join(words, " "));
  }
  return text;
}

}  // namespace longhaul::load
