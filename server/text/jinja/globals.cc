// Functions that every template can call, as transformers offers them.

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"

namespace longhaul::jinja {
namespace {

constexpr size_t kMaxDateText = 1024;

absl::StatusOr<Value> RaiseException(Interpreter& interpreter, const Args& args) {
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind("raise_exception", "message", args));
  LH_ASSIGN_OR_RETURN(const std::string message, interpreter.Str(*bound.Get(0)));
  interpreter.set_raised();
  return absl::InvalidArgumentError(message);
}

absl::StatusOr<Value> StrftimeNow(Interpreter& interpreter, const Args& args) {
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind("strftime_now", "format", args));
  LH_ASSIGN_OR_RETURN(const std::string format, interpreter.Str(*bound.Get(0)));
  if (format.empty()) return Value::String("");
  const std::time_t now = interpreter.now();
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[kMaxDateText];
  const size_t n = std::strftime(buffer, sizeof(buffer), format.c_str(), &local);
  if (n == 0) {
    return absl::InvalidArgumentError(
        fmt::format("'strftime_now' makes a text of up to {} bytes", kMaxDateText));
  }
  return Value::String(std::string(buffer, n));
}

absl::StatusOr<Value> Range(Interpreter& interpreter, const Args& args) {
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind("range", "start | stop step", args));
  LH_ASSIGN_OR_RETURN(const int64_t first, IntArg(bound, 0, 0));
  LH_ASSIGN_OR_RETURN(const int64_t second, IntArg(bound, 1, 0));
  LH_ASSIGN_OR_RETURN(const int64_t step, IntArg(bound, 2, 1));
  const bool has_stop = bound.Get(1) != nullptr;
  const int64_t start = has_stop ? first : 0, stop = has_stop ? second : first;
  if (step == 0) return absl::InvalidArgumentError("the step of 'range' is 0");
  std::vector<Value> items;
  int64_t at = start;
  while (step > 0 ? at < stop : at > stop) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      return absl::InvalidArgumentError(
          fmt::format("'range' makes more than {} numbers", kMaxRange));
    }
    items.push_back(Value::Int(at));
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(items.size())));
  return Value::Make(SequenceKind::kRange, std::move(items));
}

// dict(): from a dict or pairs, then from named arguments.
absl::StatusOr<Dict> BuildDict(Interpreter& interpreter, const Args& args) {
  Dict dict;
  if (args.positional.size() > 1) return absl::InvalidArgumentError("'dict' takes one argument");
  if (!args.positional.empty()) {
    const Value& from = args.positional[0];
    LH_RETURN_IF_ERROR(interpreter.Charge(from.weight()));
    if (from.is_dict()) {
      dict = from.dict();
    } else {
      LH_ASSIGN_OR_RETURN(const Value pairs, interpreter.ToSequence(from));
      for (const Value& item : pairs.sequence().items) {
        LH_ASSIGN_OR_RETURN(const Value pair, interpreter.ToSequence(item));
        const std::vector<Value>& parts = pair.sequence().items;
        if (parts.size() != 2) return absl::InvalidArgumentError("'dict' needs pairs");
        LH_RETURN_IF_ERROR(CheckKey(interpreter, parts[0]));
        dict.Set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : args.named) dict.Set(name, value);
  return dict;
}

absl::StatusOr<Value> MakeDict(Interpreter& interpreter, const Args& args) {
  LH_ASSIGN_OR_RETURN(Dict dict, BuildDict(interpreter, args));
  return Value::Of(std::move(dict));
}

absl::StatusOr<Value> MakeNamespace(Interpreter& interpreter, const Args& args) {
  LH_RETURN_IF_ERROR(interpreter.Charge(kObjectSteps));
  LH_ASSIGN_OR_RETURN(Dict dict, BuildDict(interpreter, args));
  return Value::Of(interpreter.New<Namespace>(std::move(dict)));
}

// joiner(sep): a function that is empty at its first call and the separator after it.
absl::StatusOr<Value> MakeJoiner(Interpreter& interpreter, const Args& args) {
  LH_RETURN_IF_ERROR(interpreter.Charge(kObjectSteps));
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind("joiner", "| sep", args));
  const Value separator = bound.Get(0) != nullptr ? *bound.Get(0) : Value::String(", ");
  const auto next = [separator, used = false](Interpreter&, const Args&) mutable {
    return std::exchange(used, true) ? absl::StatusOr<Value>(separator) : Value::String("");
  };
  return Value::Of(interpreter.New<Function>("joiner", next));
}

}  // namespace

std::optional<Value> MakeGlobalFunction(Interpreter& interpreter, std::string_view name) {
  struct Global {
    std::string_view name;
    absl::StatusOr<Value> (*body)(Interpreter&, const Args&);
  };
  constexpr Global kGlobals[] = {{"raise_exception", RaiseException},
                                 {"strftime_now", StrftimeNow},
                                 {"range", Range},
                                 {"dict", MakeDict},
                                 {"namespace", MakeNamespace},
                                 {"joiner", MakeJoiner}};
  for (const Global& global : kGlobals) {
    if (global.name == name) {
      return Value::Of(interpreter.New<Function>(std::string(name), global.body));
    }
  }
  return std::nullopt;
}

}  // namespace longhaul::jinja
