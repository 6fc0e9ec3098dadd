// Values of the template language: Python's types as far as chat templates see them. Immutable and
// shared: copying a Value never copies a text or a list. Values without an Object may be used by
// several threads at once; Objects (macros, namespaces, ...) belong to one rendering and die with
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace longhaul::jinja {

class Object;  // object.h
struct Sequence;
class Dict;

// kIterator is what Python calls a generator: always true, without a length, gone after one pass.
// Views come from dict.keys(), .values() and .items().
enum class SequenceKind : uint8_t { kList, kTuple, kIterator, kView, kRange };

class Value {
 public:
  enum class Kind : uint8_t {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kSequence,
    kDict,
    kObject
  };

  Value() = default;  // undefined
  static Value Undefined(std::string hint);
  static Value None() { return Value(Storage(NoneType())); }
  static Value Bool(bool value) { return Value(Storage(value)); }
  static Value Int(int64_t value) { return Value(Storage(value)); }
  static Value Float(double value) { return Value(Storage(value)); }
  static Value String(std::string text);
  static Value List(std::vector<Value> items) {
    return Make(SequenceKind::kList, std::move(items));
  }
  static Value Make(SequenceKind kind, std::vector<Value> items);
  static Value Of(Dict dict);
  static Value Of(Object* object) { return Value(Storage(object)); }  // not owned

  Kind kind() const { return static_cast<Kind>(storage_.index()); }
  bool is_undefined() const { return kind() == Kind::kUndefined; }
  bool is_none() const { return kind() == Kind::kNone; }
  bool is_bool() const { return kind() == Kind::kBool; }
  bool is_int() const { return kind() == Kind::kInt; }  // not a bool
  bool is_float() const { return kind() == Kind::kFloat; }
  bool is_string() const { return kind() == Kind::kString; }
  bool is_sequence() const { return kind() == Kind::kSequence; }
  bool is_dict() const { return kind() == Kind::kDict; }
  bool is_object() const { return kind() == Kind::kObject; }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is(SequenceKind sequence_kind) const;

  // Each only for its own kind.
  bool bool_value() const { return std::get<bool>(storage_); }
  double float_value() const { return std::get<double>(storage_); }
  const std::string& text() const { return *std::get<StringRef>(storage_); }
  const Sequence& sequence() const { return *std::get<SequenceRef>(storage_); }
  const Dict& dict() const { return *std::get<DictRef>(storage_); }
  Object* object() const { return std::get<Object*>(storage_); }
  const std::string& undefined_hint() const;
  // Of a bool or an int.
  int64_t int_value() const { return is_bool() ? bool_value() : std::get<int64_t>(storage_); }
  // Of any number.
  double number() const { return is_float() ? float_value() : static_cast<double>(int_value()); }

  // Python's bool(value).
  bool Truthy() const;
  // "str", "list", "dict": for error texts.
  std::string_view type_name() const;
  // How deep containers nest; 0 for a scalar.
  int depth() const;
  // About how much work it is to look at everything inside: entries, and 64 bytes of text count
  // as one. A list that holds one list many times counts it many times. Saturates at kMaxWeight.
  int64_t weight() const;
  // Same storage: comparing costs nothing. False says nothing.
  bool IdenticalTo(const Value& other) const;

  // Text of left and right. A left side that nobody else holds grows in place, so a chain of
  // additions copies each text once.
  static Value Concat(Value left, std::string_view right);

  static constexpr int64_t kMaxWeight = int64_t{1} << 40;

 private:
  struct UndefinedType {
    std::shared_ptr<const std::string> hint;
  };
  struct NoneType {};
  using StringRef = std::shared_ptr<std::string>;  // written to only by Concat, if unshared
  using SequenceRef = std::shared_ptr<const Sequence>;
  using DictRef = std::shared_ptr<const Dict>;
  // In the order of Kind.
  using Storage = std::variant<UndefinedType, NoneType, bool, int64_t, double, StringRef,
                               SequenceRef, DictRef, Object*>;

  explicit Value(Storage storage) : storage_(std::move(storage)) {}

  Storage storage_;
};

struct Sequence {
  SequenceKind kind = SequenceKind::kList;
  std::vector<Value> items;
  int depth = 1;
  int64_t weight = 1;
  // Of an iterator: items that were handed out. Iterators are made and used by one rendering.
  mutable size_t n_consumed = 0;
};

// Keeps the order of insertion. Keys are hashable values: see IsHashable.
class Dict {
 public:
  using Entry = std::pair<Value, Value>;

  // Replaces the value of an equal key, whose place it keeps.
  void Set(Value key, Value value);
  void Set(std::string key, Value value) { Set(Value::String(std::move(key)), std::move(value)); }
  const Value* Find(const Value& key) const;  // nullptr when there is none
  const Value* Find(std::string_view key) const;
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  int depth() const { return depth_; }
  int64_t weight() const { return weight_; }

 private:
  template <typename Matches>
  int64_t FindIndex(uint64_t hash, const Matches& matches) const;

  std::vector<Entry> entries_;
  // First entry of each hash, and the next one of the same hash; only for large dicts.
  absl::flat_hash_map<uint64_t, uint32_t> first_of_hash_;
  std::vector<int64_t> next_of_hash_;
  int depth_ = 1;
  int64_t weight_ = 1;
};

// Python's ==: numbers across types, containers by content, objects by identity.
bool Equal(const Value& a, const Value& b);
bool IsHashable(const Value& value);
// Equal values have equal hashes. Only for what IsHashable says.
uint64_t HashOf(const Value& value);

}  // namespace longhaul::jinja
