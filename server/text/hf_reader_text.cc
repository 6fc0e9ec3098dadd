// The normalizer and the pre-tokenizer of a tokenizer.json.
#include <fmt/format.h>

#include <cctype>
#include <nlohmann/json.hpp>

#include "server/text/hf_tokenizer_reader.h"

namespace longhaul {
namespace {

using nlohmann::json;

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581, sentencepiece's space

std::optional<SplitBehavior> BehaviorOf(std::string_view name, bool invert) {
  if (name == "Removed") {
    return invert ? SplitBehavior::kOthersRemoved : SplitBehavior::kRemoved;
  }
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return std::nullopt;
}

// A pattern that matches `literal` and nothing else.
std::string EscapedLiteral(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (std::ispunct(static_cast<unsigned char>(c))) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

}  // namespace

absl::Status HfTokenizerReader::ReadNormalizer() {
  return ForEachStep("normalizer", "normalizers",
                     [this](const JsonFields& fields) { return ReadNormalizerStep(fields); });
}

absl::Status HfTokenizerReader::ReadNormalizerStep(const JsonFields& fields) {
  const std::string type = HfTypeOf(fields);
  for (const auto& [name, form] : {std::pair<std::string_view, NormalForm>{"NFC", NormalForm::kNfc},
                                   {"NFD", NormalForm::kNfd},
                                   {"NFKC", NormalForm::kNfkc},
                                   {"NFKD", NormalForm::kNfkd}}) {
    if (type != name) continue;
    spec_.normalizer.push_back({.kind = NormalizerStep::kForm, .form = form});
    return absl::OkStatus();
  }
  if (type == "Lowercase") {
    spec_.normalizer.push_back({.kind = NormalizerStep::kLowercase});
    return absl::OkStatus();
  }
  if (type == "Strip") {
    LH_ASSIGN_OR_RETURN(const std::optional<bool> left, fields.Bool("strip_left"));
    LH_ASSIGN_OR_RETURN(const std::optional<bool> right, fields.Bool("strip_right"));
    spec_.normalizer.push_back({.kind = NormalizerStep::kStrip,
                                .strip_left = left.value_or(true),
                                .strip_right = right.value_or(true)});
    return absl::OkStatus();
  }
  if (type == "Prepend") {
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> text, fields.String("prepend"));
    if (!text || text->size() > kMaxToken_bytes) return fields.Error("prepend", "must be a string");
    spec_.normalizer.push_back({.kind = NormalizerStep::kPrepend, .to = *text});
    if (*text == kWordMark) prepends_mark_ = true;
    return absl::OkStatus();
  }
  if (type == "Replace") {
    LH_ASSIGN_OR_RETURN(const json* pattern, fields.Object("pattern"));
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> to, fields.String("content"));
    if (pattern == nullptr || !to) return fields.Error("", "Replace needs pattern and content");
    const JsonFields inner = fields.Child("pattern", pattern);
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> from, inner.String("String"));
    LH_ASSIGN_OR_RETURN(const std::optional<std::string> regex, inner.String("Regex"));
    if (!from && !regex) return inner.Error("", "needs Regex or String");
    NormalizerStep step{.kind = NormalizerStep::kReplace, .from = from.value_or(""), .to = *to};
    if (!from) {
      absl::StatusOr<std::unique_ptr<RegexSplitter>> compiled = RegexSplitter::Compile(*regex);
      if (!compiled.ok()) {
        return HfUnsupported(inner, "Regex", std::string(compiled.status().message()));
      }
      step.pattern = *std::move(compiled);
    }
    const size_t n_from = from ? from->size() : step.pattern->MinMatch_bytes();
    if (n_from == 0) return HfUnsupported(fields, "pattern", "may match an empty text");
    // The text may grow by the factor that offsets leave room for.
    if (to->size() > 3 * n_from) {
      return HfUnsupported(fields, "content",
                           "must be at most three times as long as what the pattern matches");
    }
    spec_.normalizer.push_back(std::move(step));
    return absl::OkStatus();
  }
  return HfUnsupported(
      fields, "type",
      fmt::format("normalizer \"{}\" is not supported; supported are NFC, NFD, NFKC, "
                  "NFKD, Lowercase, Strip, Prepend, Replace and Sequence",
                  type));
}

absl::Status HfTokenizerReader::ReadPreTokenizer() {
  return ForEachStep("pre_tokenizer", "pretokenizers",
                     [this](const JsonFields& fields) { return ReadPreTokenizerStep(fields); });
}

absl::Status HfTokenizerReader::ReadPreTokenizerStep(const JsonFields& fields) {
  const std::string type = HfTypeOf(fields);
  if (spec_.bpe.byte_symbols) {
    return HfUnsupported(fields, "type",
                         fmt::format("\"{}\" after ByteLevel is not supported", type));
  }
  if (type == "Split") return ReadSplit(fields);
  if (type == "Metaspace") return ReadMetaspace(fields);
  if (type == "Digits") {
    LH_ASSIGN_OR_RETURN(const std::optional<bool> single, fields.Bool("individual_digits"));
    return spec_.pretokenizer.AddPattern(single.value_or(false) ? "\\p{N}" : "\\p{N}+");
  }
  if (type == "ByteLevel") {
    spec_.bpe.byte_symbols = true;
    LH_ASSIGN_OR_RETURN(const std::optional<bool> use_regex, fields.Bool("use_regex"));
    LH_ASSIGN_OR_RETURN(const std::optional<bool> prefix, fields.Bool("add_prefix_space"));
    spec_.add_prefix_space = prefix.value_or(true);
    if (spec_.add_prefix_space && spec_.pretokenizer.n_steps() > 0) {
      return HfUnsupported(fields, "add_prefix_space", "true is not supported after a Split");
    }
    if (!use_regex.value_or(true)) return absl::OkStatus();
    return spec_.pretokenizer.AddPattern(std::string(kGpt2Pattern));
  }
  return HfUnsupported(
      fields, "type",
      fmt::format("pre-tokenizer \"{}\" is not supported; supported are Split, Digits, ByteLevel, "
                  "Metaspace and Sequence",
                  type));
}

absl::Status HfTokenizerReader::ReadSplit(const JsonFields& fields) {
  LH_ASSIGN_OR_RETURN(const json* pattern, fields.Object("pattern"));
  if (pattern == nullptr) return fields.Error("pattern", "is missing");
  const JsonFields inner = fields.Child("pattern", pattern);
  LH_ASSIGN_OR_RETURN(std::optional<std::string> regex, inner.String("Regex"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> literal, inner.String("String"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> behavior, fields.String("behavior"));
  if (!regex && !literal) return inner.Error("", "needs Regex or String");
  LH_ASSIGN_OR_RETURN(const std::optional<bool> invert, fields.Bool("invert"));
  const std::optional<SplitBehavior> known =
      BehaviorOf(behavior.value_or(""), invert.value_or(false));
  if (!known) {
    return HfUnsupported(fields, "behavior",
                         fmt::format("\"{}\" is not supported; supported are Isolated, Contiguous, "
                                     "MergedWithPrevious, MergedWithNext and Removed",
                                     behavior.value_or("")));
  }
  const bool is_merged =
      known == SplitBehavior::kMergedWithPrevious || known == SplitBehavior::kMergedWithNext;
  if (invert.value_or(false) && is_merged) {
    return HfUnsupported(fields, "invert",
                         fmt::format("true is not supported with \"{}\"", *behavior));
  }
  if (!regex) regex = EscapedLiteral(*literal);
  const absl::Status status = spec_.pretokenizer.AddPattern(*regex, *known);
  if (status.ok()) return status;
  return HfUnsupported(inner, "Regex", std::string(status.message()));
}

absl::Status HfTokenizerReader::ReadMetaspace(const JsonFields& fields) {
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> mark, fields.String("replacement"));
  LH_ASSIGN_OR_RETURN(const std::optional<std::string> scheme, fields.String("prepend_scheme"));
  LH_ASSIGN_OR_RETURN(const std::optional<bool> add_prefix, fields.Bool("add_prefix_space"));
  LH_ASSIGN_OR_RETURN(const std::optional<bool> split, fields.Bool("split"));
  if (mark != kWordMark)
    return HfUnsupported(fields, "replacement", "only \"\u2581\" is supported");
  if (spec_.pretokenizer.n_steps() > 0 || !spec_.metaspace.mark.empty()) {
    return HfUnsupported(fields, "type", "Metaspace after another pre-tokenizer is not supported");
  }
  Metaspace& metaspace = spec_.metaspace;
  metaspace.mark = *mark;
  metaspace.split = split.value_or(true);
  if (scheme == "always" || (!scheme && add_prefix.value_or(true))) {
    metaspace.prepend = Metaspace::Prepend::kAlways;
  } else if (scheme == "first") {
    metaspace.prepend = Metaspace::Prepend::kFirst;
  } else if (scheme && scheme != "never") {
    return fields.Error("prepend_scheme",
                        fmt::format("\"{}\" is none of always, first, never", *scheme));
  }
  prepends_mark_ = metaspace.prepend != Metaspace::Prepend::kNever;
  return absl::OkStatus();
}

}  // namespace longhaul
