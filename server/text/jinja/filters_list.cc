// Filters on lists and dicts. Those that are generators in Python return kIterator.

#include <fmt/format.h>

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "server/text/jinja/filters.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"

namespace longhaul::jinja {
namespace {

Value Iterator(std::vector<Value> items) {
  return Value::Make(SequenceKind::kIterator, std::move(items));
}

// A copy of what a value holds, which counts as work.
absl::StatusOr<std::vector<Value>> Items(Interpreter& interpreter, const Value& value) {
  LH_ASSIGN_OR_RETURN(const Value sequence, interpreter.ToSequence(value));
  const std::vector<Value>& items = sequence.sequence().items;
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(items.size())));
  return items;
}

// A path to an attribute: "a.b.0", an index, or nothing, which is the item itself.
class AttributePath {
 public:
  static absl::StatusOr<AttributePath> Read(const Value* attribute) {
    AttributePath path;
    if (attribute == nullptr || attribute->is_none()) return path;
    if (!attribute->is_string()) {
      path.parts_.push_back(*attribute);
      return path;
    }
    for (const std::string_view part : Split(attribute->text(), ".", -1)) {
      int64_t index = 0;
      const bool is_index =
          !part.empty() && part.size() < 18 &&
          std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
      for (const char c : part) index = is_index ? index * 10 + (c - '0') : 0;
      path.parts_.push_back(is_index ? Value::Int(index) : Value::String(std::string(part)));
    }
    return path;
  }

  absl::StatusOr<Value> Get(Interpreter& interpreter, Value item, const Value* otherwise) const {
    for (const Value& part : parts_) {
      LH_RETURN_IF_ERROR(interpreter.Charge(1));
      LH_ASSIGN_OR_RETURN(item, interpreter.GetItem(item, part));
      if (item.is_undefined() && otherwise != nullptr) item = *otherwise;
    }
    return item;
  }

 private:
  std::vector<Value> parts_;
};

// What sort, unique, min, max and groupby compare: small letters unless asked for.
absl::StatusOr<Value> SortKey(Interpreter& interpreter, Value key, bool case_sensitive) {
  LH_RETURN_IF_ERROR(interpreter.Charge(key.weight()));
  if (case_sensitive || !key.is_string()) return key;
  return Value::String(ToLower(key.text()));
}

struct Keyed {
  Value key, item;
};

absl::StatusOr<std::vector<Keyed>> WithKeys(Interpreter& interpreter, const Value& value,
                                            const AttributePath& path, const Value* otherwise,
                                            bool case_sensitive) {
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Items(interpreter, value));
  std::vector<Keyed> keyed;
  keyed.reserve(items.size());
  for (Value& item : items) {
    LH_ASSIGN_OR_RETURN(Value key, path.Get(interpreter, item, otherwise));
    LH_ASSIGN_OR_RETURN(key, SortKey(interpreter, std::move(key), case_sensitive));
    keyed.push_back({std::move(key), std::move(item)});
  }
  return keyed;
}

absl::Status SortByKey(Interpreter& interpreter, bool reverse, std::vector<Keyed>* keyed) {
  int64_t weight = 0;
  for (const Keyed& entry : *keyed) weight = std::max(weight, entry.key.weight());
  // n log n comparisons; the error of a pair that has no order is kept and reported after.
  int64_t n_levels = 1;
  for (size_t n = keyed->size(); n > 1; n /= 2) ++n_levels;
  LH_RETURN_IF_ERROR(interpreter.Charge(
      std::min(static_cast<int64_t>(keyed->size()) * n_levels, Value::kMaxWeight) *
      std::min<int64_t>(weight, 1 << 20)));
  absl::Status status;
  const auto less = [&status](const Keyed& a, const Keyed& b) {
    const absl::StatusOr<bool> result = Less(a.key, b.key);
    if (!result.ok()) status = result.status();
    return result.ok() && *result;
  };
  if (reverse) {
    std::stable_sort(keyed->begin(), keyed->end(),
                     [&less](const Keyed& a, const Keyed& b) { return less(b, a); });
  } else {
    std::stable_sort(keyed->begin(), keyed->end(), less);
  }
  return status;
}

std::vector<Value> ItemsOf(std::vector<Keyed> keyed) {
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return items;
}

absl::StatusOr<Value> Sort(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  // The attribute may name several: "age,name".
  const Value* attribute = args.Get(2);
  const bool has_paths = attribute != nullptr && attribute->is_string();
  std::vector<AttributePath> paths;
  if (has_paths) {
    for (const std::string_view name : Split(attribute->text(), ",", -1)) {
      const Value part = Value::String(std::string(name));
      LH_ASSIGN_OR_RETURN(AttributePath path, AttributePath::Read(&part));
      paths.push_back(std::move(path));
    }
  } else {
    LH_ASSIGN_OR_RETURN(AttributePath path, AttributePath::Read(attribute));
    paths.push_back(std::move(path));
  }
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Items(interpreter, value));
  std::vector<Keyed> keyed;
  for (Value& item : items) {
    std::vector<Value> key;
    for (const AttributePath& path : paths) {
      LH_ASSIGN_OR_RETURN(Value part, path.Get(interpreter, item, nullptr));
      LH_ASSIGN_OR_RETURN(part, SortKey(interpreter, std::move(part), args.Truthy(1)));
      key.push_back(std::move(part));
    }
    keyed.push_back({Value::List(std::move(key)), std::move(item)});
  }
  LH_RETURN_IF_ERROR(SortByKey(interpreter, args.Truthy(0), &keyed));
  return Value::List(ItemsOf(std::move(keyed)));
}

absl::StatusOr<Value> DictSort(Interpreter& interpreter, const Value& value,
                               const BoundArgs& args) {
  if (value.is_undefined()) return absl::InvalidArgumentError(value.undefined_hint());
  if (!value.is_dict()) {
    return absl::InvalidArgumentError(
        fmt::format("'dictsort' needs a dict, got {}", value.type_name()));
  }
  LH_ASSIGN_OR_RETURN(const std::string by, TextArg(interpreter, args, 1, "key"));
  if (by != "key" && by != "value") {
    return absl::InvalidArgumentError("'dictsort' sorts by 'key' or 'value'");
  }
  std::vector<Keyed> keyed;
  for (const auto& [key, item] : value.dict().entries()) {
    LH_ASSIGN_OR_RETURN(Value sort_key,
                        SortKey(interpreter, by == "key" ? key : item, args.Truthy(0)));
    keyed.push_back({std::move(sort_key), Value::Make(SequenceKind::kTuple, {key, item})});
  }
  LH_RETURN_IF_ERROR(SortByKey(interpreter, args.Truthy(2), &keyed));
  return Value::List(ItemsOf(std::move(keyed)));
}

absl::StatusOr<Value> Unique(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const AttributePath path, AttributePath::Read(args.Get(1)));
  LH_ASSIGN_OR_RETURN(std::vector<Keyed> keyed,
                      WithKeys(interpreter, value, path, nullptr, args.Truthy(0)));
  Dict seen;
  std::vector<Value> items;
  for (Keyed& entry : keyed) {
    LH_RETURN_IF_ERROR(CheckKey(interpreter, entry.key));
    if (seen.Find(entry.key) != nullptr) continue;
    seen.Set(std::move(entry.key), Value::None());
    items.push_back(std::move(entry.item));
  }
  return Iterator(std::move(items));
}

template <bool kMax>
absl::StatusOr<Value> Extreme(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const AttributePath path, AttributePath::Read(args.Get(1)));
  LH_ASSIGN_OR_RETURN(const std::vector<Keyed> keyed,
                      WithKeys(interpreter, value, path, nullptr, args.Truthy(0)));
  if (keyed.empty()) return Value::Undefined("No aggregated item, sequence was empty.");
  const Keyed* best = &keyed[0];
  for (size_t i = 1; i < keyed.size(); ++i) {
    LH_ASSIGN_OR_RETURN(const bool better,
                        kMax ? Less(best->key, keyed[i].key) : Less(keyed[i].key, best->key));
    if (better) best = &keyed[i];
  }
  return best->item;
}

absl::StatusOr<Value> GroupBy(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const AttributePath path, AttributePath::Read(args.Get(0)));
  LH_ASSIGN_OR_RETURN(std::vector<Keyed> keyed,
                      WithKeys(interpreter, value, path, args.Get(1), args.Truthy(2)));
  LH_RETURN_IF_ERROR(SortByKey(interpreter, /*reverse=*/false, &keyed));
  std::vector<Value> groups;
  for (size_t begin = 0; begin < keyed.size();) {
    size_t end = begin;
    std::vector<Value> items;
    while (end < keyed.size() && Equal(keyed[begin].key, keyed[end].key)) {
      items.push_back(keyed[end++].item);
    }
    LH_ASSIGN_OR_RETURN(Value key, path.Get(interpreter, items[0], args.Get(1)));
    groups.push_back(
        Value::Make(SequenceKind::kTuple, {std::move(key), Value::List(std::move(items))}));
    begin = end;
  }
  return Value::List(std::move(groups));
}

absl::StatusOr<Value> Sum(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const AttributePath path, AttributePath::Read(args.Get(0)));
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(interpreter, value));
  Value sum = args.Get(1) != nullptr ? *args.Get(1) : Value::Int(0);
  if (sum.is_string()) return absl::InvalidArgumentError("'sum' does not join texts; use 'join'");
  for (const Value& item : items) {
    LH_ASSIGN_OR_RETURN(const Value part, path.Get(interpreter, item, nullptr));
    LH_ASSIGN_OR_RETURN(sum, ApplyBinary(interpreter, BinaryOp::kAdd, std::move(sum), part));
  }
  return sum;
}

absl::StatusOr<Value> ToList(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Items(interpreter, value));
  return Value::List(std::move(items));
}

absl::StatusOr<Value> First(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  if (value.is_string() && !value.text().empty()) {
    return Value::String(SliceChars(std::string_view(value.text()).substr(0, 4), 0, 1, 1));
  }
  LH_ASSIGN_OR_RETURN(const Value sequence, interpreter.ToSequence(value));
  const std::vector<Value>& items = sequence.sequence().items;
  return items.empty() ? Value::Undefined("No first item, sequence was empty.") : items.front();
}

absl::StatusOr<Value> Last(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  if (value.is(SequenceKind::kIterator)) {
    return absl::InvalidArgumentError("'last' does not work on a generator; use 'list' before it");
  }
  LH_ASSIGN_OR_RETURN(const Value sequence, interpreter.ToSequence(value));
  const std::vector<Value>& items = sequence.sequence().items;
  return items.empty() ? Value::Undefined("No last item, sequence was empty.") : items.back();
}

absl::StatusOr<Value> Reverse(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  if (value.is_string()) {
    return interpreter.GetSlice(value, Value::None(), Value::None(), Value::Int(-1));
  }
  const bool makes_list = value.is(SequenceKind::kIterator);
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Items(interpreter, value));
  std::reverse(items.begin(), items.end());
  return makes_list ? Value::List(std::move(items)) : Iterator(std::move(items));
}

absl::StatusOr<Value> DictItems(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  if (value.is_undefined()) return Iterator({});
  if (!value.is_dict()) {
    return absl::InvalidArgumentError(
        fmt::format("'items' needs a dict, got {}", value.type_name()));
  }
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(value.dict().size())));
  std::vector<Value> items;
  for (const auto& [key, item] : value.dict().entries()) {
    items.push_back(Value::Make(SequenceKind::kTuple, {key, item}));
  }
  return Iterator(std::move(items));
}

absl::StatusOr<Value> Batch(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const int64_t size, IntArg(args, 0, 0));
  if (size < 1) return absl::InvalidArgumentError("'batch' needs a size of at least 1");
  LH_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(interpreter, value));
  std::vector<Value> batches, batch;
  for (const Value& item : items) {
    if (static_cast<int64_t>(batch.size()) == size) {
      batches.push_back(Value::List(std::exchange(batch, {})));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    if (const Value* fill = args.Get(1); fill != nullptr && !fill->is_none()) {
      LH_RETURN_IF_ERROR(interpreter.Charge(size));
      batch.resize(static_cast<size_t>(size), *fill);
    }
    batches.push_back(Value::List(std::move(batch)));
  }
  return Iterator(std::move(batches));
}

absl::StatusOr<Value> Map(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  if (!value.Truthy()) return Iterator({});
  const Interpreter::DepthGuard guard(&interpreter);  // map('map', 'map', ...)
  LH_RETURN_IF_ERROR(guard.status());
  const Args& given = args.rest();
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(given.positional.size())));
  if (given.positional.empty()) {
    const Value* attribute = nullptr;
    const Value* otherwise = nullptr;
    for (const auto& [name, arg] : given.named) {
      if (name == "attribute") {
        attribute = &arg;
      } else if (name == "default") {
        otherwise = &arg;
      } else {
        return absl::InvalidArgumentError(fmt::format("'map' has no argument '{}'", name));
      }
    }
    if (attribute == nullptr) {
      return absl::InvalidArgumentError("'map' needs the name of a filter, or attribute=");
    }
    if (otherwise != nullptr && otherwise->is_none()) otherwise = nullptr;
    return MapAttribute(interpreter, value, *attribute, otherwise);
  }
  LH_ASSIGN_OR_RETURN(const std::string name, interpreter.Str(given.positional[0]));
  const Filter* filter = FindFilter(name);
  if (filter == nullptr)
    return absl::InvalidArgumentError(fmt::format("no filter named '{}'", name));
  Args rest = given;
  rest.positional.erase(rest.positional.begin());
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind(filter->name, filter->signature, rest));
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Items(interpreter, value));
  for (Value& item : items) {
    LH_ASSIGN_OR_RETURN(item, filter->apply(interpreter, item, bound));
  }
  return Iterator(std::move(items));
}

// select, reject, selectattr and rejectattr.
template <bool kKeep, bool kAttribute>
absl::StatusOr<Value> Select(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  if (!value.Truthy()) return Iterator({});
  Args rest = args.rest();
  AttributePath path;
  if (kAttribute) {
    if (rest.positional.empty()) {
      return absl::InvalidArgumentError("the name of an attribute is missing");
    }
    LH_ASSIGN_OR_RETURN(path, AttributePath::Read(&rest.positional[0]));
    rest.positional.erase(rest.positional.begin());
  }
  const Test* test = nullptr;
  BoundArgs bound;
  if (!rest.positional.empty()) {
    LH_ASSIGN_OR_RETURN(const std::string name, interpreter.Str(rest.positional[0]));
    test = FindTest(name);
    if (test == nullptr) return absl::InvalidArgumentError(fmt::format("no test named '{}'", name));
    rest.positional.erase(rest.positional.begin());
    LH_ASSIGN_OR_RETURN(bound, Bind(test->name, test->signature, rest));
  }
  LH_ASSIGN_OR_RETURN(std::vector<Value> items, Items(interpreter, value));
  std::vector<Value> kept;
  for (Value& item : items) {
    LH_ASSIGN_OR_RETURN(const Value looked_at, path.Get(interpreter, item, nullptr));
    bool holds = looked_at.Truthy();
    if (test != nullptr) {
      LH_ASSIGN_OR_RETURN(holds, test->apply(interpreter, looked_at, bound));
    }
    if (holds == kKeep) kept.push_back(std::move(item));
  }
  return Iterator(std::move(kept));
}

}  // namespace

absl::StatusOr<Value> MapAttribute(Interpreter& interpreter, const Value& items,
                                   const Value& attribute, const Value* otherwise) {
  LH_ASSIGN_OR_RETURN(const AttributePath path, AttributePath::Read(&attribute));
  LH_ASSIGN_OR_RETURN(std::vector<Value> mapped, Items(interpreter, items));
  for (Value& item : mapped) {
    LH_ASSIGN_OR_RETURN(item, path.Get(interpreter, std::move(item), otherwise));
  }
  return Iterator(std::move(mapped));
}

const std::vector<Filter>& ListFilters() {
  static const std::vector<Filter> table = {
      {"list", "", ToList},
      {"first", "", First},
      {"last", "", Last},
      {"reverse", "", Reverse},
      {"items", "", DictItems},
      {"dictsort", "| case_sensitive by reverse", DictSort},
      {"sort", "| reverse case_sensitive attribute", Sort},
      {"unique", "| case_sensitive attribute", Unique},
      {"min", "| case_sensitive attribute", Extreme<false>},
      {"max", "| case_sensitive attribute", Extreme<true>},
      {"groupby", "attribute | default case_sensitive", GroupBy},
      {"sum", "| attribute start", Sum},
      {"batch", "linecount | fill_with", Batch},
      {"map", "*", Map},
      {"select", "*", Select<true, false>},
      {"reject", "*", Select<false, false>},
      {"selectattr", "*", Select<true, true>},
      {"rejectattr", "*", Select<false, true>},
  };
  return table;
}

}  // namespace longhaul::jinja
