// The tables of filters, tests and methods. A signature names the parameters after the value
// itself; those before '|' must be given. The functions find them in that order, nullptr where not
// given.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/jinja/object.h"

namespace longhaul::jinja {

class BoundArgs {
 public:
  // nullptr: not given.
  const Value* Get(size_t i) const { return slots_[i]; }
  bool Truthy(size_t i) const { return slots_[i] != nullptr && slots_[i]->Truthy(); }
  // What was given beyond the named parameters, where the signature ends in "*".
  const Args& rest() const { return *args_; }

 private:
  friend absl::StatusOr<BoundArgs> Bind(std::string_view function, std::string_view signature,
                                        const Args& args);
  std::vector<const Value*> slots_;
  const Args* args_ = nullptr;
};

// Signature: "a b | c d *". Errors name the function and the parameter.
absl::StatusOr<BoundArgs> Bind(std::string_view function, std::string_view signature,
                               const Args& args);

using Operation = absl::StatusOr<Value> (*)(Interpreter&, const Value&, const BoundArgs&);

struct Filter {
  std::string_view name;
  std::string_view signature;
  Operation apply;
};
struct Test {
  std::string_view name;
  std::string_view signature;
  absl::StatusOr<bool> (*apply)(Interpreter&, const Value&, const BoundArgs&);
};
using Method = Filter;

const Filter* FindFilter(std::string_view name);  // nullptr: none
const Test* FindTest(std::string_view name);
const Method* FindMethod(const Value& value, std::string_view name);

// Parts of the table, by subject.
const std::vector<Filter>& TextFilters();
const std::vector<Filter>& ListFilters();
const std::vector<Filter>& ValueFilters();

// Reads one argument.
absl::StatusOr<int64_t> IntArg(const BoundArgs& args, size_t i, int64_t otherwise);
absl::StatusOr<std::string> TextArg(Interpreter& interpreter, const BoundArgs& args, size_t i,
                                    std::string_view otherwise);

// text with every `from` (the first `count`, -1 = all) replaced; the same value if there is none.
absl::StatusOr<Value> ReplaceText(Interpreter& interpreter, const Value& text,
                                  const std::string& from, const std::string& to, int64_t count);
// The texts of items with a separator between them; convert: items may be anything.
absl::StatusOr<Value> JoinText(Interpreter& interpreter, const std::string& separator,
                               const Value& items, bool convert);
// A list of an attribute of each item: "name", "a.b" or an index. otherwise (may be nullptr) stands
// for what is undefined.
absl::StatusOr<Value> MapAttribute(Interpreter& interpreter, const Value& items,
                                   const Value& attribute, const Value* otherwise);

}  // namespace longhaul::jinja
