#include "server/text/hf_tokenizer.h"

#include "server/text/detokenizer.h"

namespace longhaul {
namespace {

// Below this the threads cost more than they give.
constexpr size_t kParallelText_bytes = 64 << 10;

}  // namespace

HfTokenizer::HfTokenizer(HfTokenizerSpec spec, int n_threads)
    : spec_(std::move(spec)), bpe_(std::move(spec_.bpe)), pool_(n_threads) {
  is_special_.resize(spec_.token_bytes.size());
  for (const AddedToken& token : spec_.added) {
    (token.normalized ? normalized_added_ : raw_added_).Add(token);
    special_ids_[token.content] = token.id;
    if (token.special) is_special_[token.id] = true;
  }
}

absl::StatusOr<std::vector<int32_t>> HfTokenizer::Encode(std::string_view text, bool add_bos,
                                                         SpecialTokens special) const {
  std::vector<int32_t> ids;
  if (add_bos) ids = spec_.prefix_ids;
  LH_RETURN_IF_ERROR(EncodeText(text, special == SpecialTokens::kParse, &ids));
  return ids;
}

absl::Status HfTokenizer::EncodeText(std::string_view text, bool find_control,
                                     std::vector<int32_t>* ids) const {
  LH_RETURN_IF_ERROR(CheckText(text));
  size_t done = 0;
  for (const AddedTokens::Match& match : raw_added_.Find(text, find_control, classes_)) {
    LH_RETURN_IF_ERROR(EncodeBetweenTokens(text.substr(done, match.begin - done),
                                           /*at_start=*/done == 0, find_control, ids));
    ids->push_back(match.id);
    done = match.end;
  }
  return EncodeBetweenTokens(text.substr(done), /*at_start=*/done == 0, find_control, ids);
}

absl::Status HfTokenizer::EncodeBetweenTokens(std::string_view text, bool at_start,
                                              bool find_control, std::vector<int32_t>* ids) const {
  if (text.empty()) return absl::OkStatus();
  std::string buffer;
  LH_ASSIGN_OR_RETURN(text, Normalize(spec_.normalizer, classes_, text, &buffer));
  size_t done = 0;
  for (const AddedTokens::Match& match : normalized_added_.Find(text, find_control, classes_)) {
    LH_RETURN_IF_ERROR(
        EncodeNormalized(text.substr(done, match.begin - done), at_start && done == 0, ids));
    ids->push_back(match.id);
    done = match.end;
  }
  return EncodeNormalized(text.substr(done), at_start && done == 0, ids);
}

// What a pre-tokenizer changes in the text before it cuts.
std::string_view HfTokenizer::AddPrefixes(std::string_view text, bool at_start,
                                          std::string* buffer) const {
  if (spec_.add_prefix_space && text.front() != ' ') {
    buffer->append(" ").append(text);
    return *buffer;
  }
  const Metaspace& metaspace = spec_.metaspace;
  if (metaspace.mark.empty()) return text;
  const bool prepend = metaspace.prepend == Metaspace::Prepend::kAlways ||
                       (metaspace.prepend == Metaspace::Prepend::kFirst && at_start);
  if (prepend && text.front() != ' ' && text.substr(0, metaspace.mark.size()) != metaspace.mark) {
    buffer->append(metaspace.mark);
  }
  ReplaceAll(text, " ", metaspace.mark, buffer);
  return *buffer;
}

absl::Status HfTokenizer::EncodeNormalized(std::string_view text, bool at_start,
                                           std::vector<int32_t>* ids) const {
  if (text.empty()) return absl::OkStatus();
  std::string buffer, kept;
  text = AddPrefixes(text, at_start, &buffer);
  std::unique_lock<std::mutex> lock(pool_mutex_, std::defer_lock);
  const bool parallel = text.size() >= kParallelText_bytes && lock.try_lock();
  ThreadPool* pool = parallel ? &pool_ : nullptr;
  std::vector<uint32_t> ends;
  if (spec_.metaspace.split) {
    for (size_t at = 0; (at = text.find(spec_.metaspace.mark, at + 1)) != std::string_view::npos;) {
      ends.push_back(static_cast<uint32_t>(at));
    }
    ends.push_back(static_cast<uint32_t>(text.size()));
  } else if (spec_.pretokenizer.n_steps() > 0 || bpe_.byte_symbols()) {
    LH_RETURN_IF_ERROR(spec_.pretokenizer.Split(text, &ends, pool, &kept));
    if (spec_.pretokenizer.removes()) text = kept;
  } else {
    bpe_.CutWhereNoTokenSpans(text, &ends);
  }
  bpe_.EncodePieces(text, ends, pool, ids);
  return absl::OkStatus();
}

std::string_view HfTokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return spec_.token_bytes[id];
}

std::string HfTokenizer::TokenText(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const std::string& name = spec_.token_names[id];
  return name.empty() ? SanitizeUtf8(spec_.token_bytes[id]) : name;
}

bool HfTokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && is_special_[id];
}

int32_t HfTokenizer::SpecialId(std::string_view text) const {
  const auto found = special_ids_.find(std::string(text));
  return found == special_ids_.end() ? -1 : found->second;
}

}  // namespace longhaul
