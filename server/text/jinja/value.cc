#include "server/text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "absl/hash/hash.h"
#include "server/text/jinja/object.h"

namespace longhaul::jinja {
namespace {

// Up to this size a dict is searched from the front: messages have two to six keys.
constexpr size_t kLinearSearch = 8;

int64_t AddWeights(int64_t a, int64_t b) { return std::min(a + b, Value::kMaxWeight); }

}  // namespace

Value Value::Undefined(std::string hint) {
  return Value(Storage(UndefinedType{std::make_shared<const std::string>(std::move(hint))}));
}

Value Value::String(std::string text) {
  return Value(Storage(std::make_shared<std::string>(std::move(text))));
}

Value Value::Make(SequenceKind kind, std::vector<Value> items) {
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = kind;
  for (const Value& item : items) {
    sequence->depth = std::max(sequence->depth, item.depth() + 1);
    sequence->weight = AddWeights(sequence->weight, item.weight());
  }
  sequence->items = std::move(items);
  return Value(Storage(SequenceRef(std::move(sequence))));
}

Value Value::Of(Dict dict) {
  return Value(Storage(DictRef(std::make_shared<const Dict>(std::move(dict)))));
}

bool Value::is(SequenceKind sequence_kind) const {
  return is_sequence() && sequence().kind == sequence_kind;
}

const std::string& Value::undefined_hint() const {
  static const std::string no_hint = "the value is undefined";
  const auto& hint = std::get<UndefinedType>(storage_).hint;
  return hint ? *hint : no_hint;
}

bool Value::Truthy() const {
  switch (kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return bool_value();
    case Kind::kInt:
      return int_value() != 0;
    case Kind::kFloat:
      return float_value() != 0;
    case Kind::kString:
      return !text().empty();
    case Kind::kSequence:
      return is(SequenceKind::kIterator) || !sequence().items.empty();
    case Kind::kDict:
      return !dict().empty();
    case Kind::kObject:
      return true;
  }
  return false;
}

std::string_view Value::type_name() const {
  switch (kind()) {
    case Kind::kUndefined:
      return "undefined";
    case Kind::kNone:
      return "none";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kSequence:
      switch (sequence().kind) {
        case SequenceKind::kList:
          return "list";
        case SequenceKind::kTuple:
          return "tuple";
        case SequenceKind::kIterator:
          return "generator";
        case SequenceKind::kView:
          return "dict view";
        case SequenceKind::kRange:
          return "range";
      }
      break;
    case Kind::kDict:
      return "dict";
    case Kind::kObject:
      return object()->type_name();
  }
  return "value";
}

int Value::depth() const {
  if (is_sequence()) return sequence().depth;
  return is_dict() ? dict().depth() : 0;
}

int64_t Value::weight() const {
  if (is_string()) return 1 + static_cast<int64_t>(text().size() / 64);
  if (is_sequence()) return sequence().weight;
  return is_dict() ? dict().weight() : 1;
}

bool Value::IdenticalTo(const Value& other) const {
  if (kind() != other.kind()) return false;
  switch (kind()) {
    case Kind::kString:
      return std::get<StringRef>(storage_) == std::get<StringRef>(other.storage_);
    case Kind::kSequence:
      return std::get<SequenceRef>(storage_) == std::get<SequenceRef>(other.storage_);
    case Kind::kDict:
      return std::get<DictRef>(storage_) == std::get<DictRef>(other.storage_);
    case Kind::kObject:
      return object() == other.object();
    default:
      return false;
  }
}

Value Value::Concat(Value left, std::string_view right) {
  StringRef& text = std::get<StringRef>(left.storage_);
  if (right.empty()) return left;
  if (text.use_count() == 1) {
    text->append(right);
    return left;
  }
  std::string joined;
  joined.reserve(text->size() + right.size());
  joined.append(*text).append(right);
  return String(std::move(joined));
}

template <typename Matches>
int64_t Dict::FindIndex(uint64_t hash, const Matches& matches) const {
  if (next_of_hash_.empty()) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (matches(entries_[i].first)) return static_cast<int64_t>(i);
    }
    return -1;
  }
  const auto it = first_of_hash_.find(hash);
  if (it == first_of_hash_.end()) return -1;
  for (int64_t i = it->second; i >= 0; i = next_of_hash_[static_cast<size_t>(i)]) {
    if (matches(entries_[static_cast<size_t>(i)].first)) return i;
  }
  return -1;
}

void Dict::Set(Value key, Value value) {
  const uint64_t hash = HashOf(key);
  const int64_t at = FindIndex(hash, [&key](const Value& other) { return Equal(key, other); });
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  weight_ = AddWeights(weight_, AddWeights(key.weight(), value.weight()));
  if (at >= 0) {
    entries_[static_cast<size_t>(at)].second = std::move(value);
    return;
  }
  entries_.emplace_back(std::move(key), std::move(value));
  if (entries_.size() <= kLinearSearch) return;
  for (size_t i = next_of_hash_.size(); i < entries_.size(); ++i) {
    const uint32_t index = static_cast<uint32_t>(i);
    const auto [it, is_new] = first_of_hash_.try_emplace(HashOf(entries_[i].first), index);
    next_of_hash_.push_back(is_new ? -1 : int64_t{it->second});
    it->second = index;
  }
}

const Value* Dict::Find(const Value& key) const {
  const int64_t at =
      FindIndex(HashOf(key), [&key](const Value& other) { return Equal(key, other); });
  return at < 0 ? nullptr : &entries_[static_cast<size_t>(at)].second;
}

const Value* Dict::Find(std::string_view key) const {
  const uint64_t hash = next_of_hash_.empty() ? 0 : absl::HashOf(key);
  const int64_t at = FindIndex(
      hash, [key](const Value& other) { return other.is_string() && other.text() == key; });
  return at < 0 ? nullptr : &entries_[static_cast<size_t>(at)].second;
}

bool Equal(const Value& a, const Value& b) {
  if (a.IdenticalTo(b)) return true;
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.number() == b.number() : a.int_value() == b.int_value();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Value::Kind::kUndefined:
    case Value::Kind::kNone:
      return true;
    case Value::Kind::kString:
      return a.text() == b.text();
    case Value::Kind::kSequence:
      if (a.sequence().kind != b.sequence().kind || a.is(SequenceKind::kIterator)) return false;
      return std::equal(a.sequence().items.begin(), a.sequence().items.end(),
                        b.sequence().items.begin(), b.sequence().items.end(), Equal);
    case Value::Kind::kDict:
      if (a.dict().size() != b.dict().size()) return false;
      return std::all_of(a.dict().entries().begin(), a.dict().entries().end(),
                         [&b](const Dict::Entry& entry) {
                           const Value* other = b.dict().Find(entry.first);
                           return other != nullptr && Equal(entry.second, *other);
                         });
    default:
      return false;
  }
}

bool IsHashable(const Value& value) {
  if (value.is_dict()) return false;
  if (!value.is_sequence()) return true;
  if (!value.is(SequenceKind::kTuple)) return false;
  const std::vector<Value>& items = value.sequence().items;
  return std::all_of(items.begin(), items.end(), IsHashable);
}

uint64_t HashOf(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      return absl::HashOf(1);
    case Value::Kind::kNone:
      return absl::HashOf(2);
    case Value::Kind::kString:
      return absl::HashOf(std::string_view(value.text()));
    case Value::Kind::kObject:
      return absl::HashOf(static_cast<const void*>(value.object()));
    case Value::Kind::kSequence: {
      uint64_t hash = value.sequence().items.size();
      for (const Value& item : value.sequence().items) hash = absl::HashOf(hash, HashOf(item));
      return hash;
    }
    case Value::Kind::kDict:
      return absl::HashOf(value.dict().size());
    default:
      return absl::HashOf(value.number());  // 1 == 1.0 == True; -0.0 == 0.0
  }
}

}  // namespace longhaul::jinja
