// Python's operators on values. Errors are InvalidArgument without a line; the Interpreter knows
// it.
#pragma once

#include "kernels/base/status.h"
#include "server/text/jinja/ast.h"
#include "server/text/jinja/interpreter.h"

namespace longhaul::jinja {

absl::StatusOr<Value> ApplyUnary(UnaryOp op, const Value& operand);
absl::StatusOr<Value> ApplyBinary(Interpreter& interpreter, BinaryOp op, Value left,
                                  const Value& right);
absl::StatusOr<bool> ApplyCompare(Interpreter& interpreter, CompareOp op, const Value& left,
                                  const Value& right);
// left < right as Python orders numbers, texts, lists and tuples.
absl::StatusOr<bool> Less(const Value& left, const Value& right);
// That a value may be the key of a dict.
absl::Status CheckKey(Interpreter& interpreter, const Value& key);

// format % values, as printf.
absl::StatusOr<Value> FormatPercent(Interpreter& interpreter, const std::string& format,
                                    const Value& values);
// format.format(...): {}, {0} and {name}, without format specifications.
absl::StatusOr<Value> FormatBraces(Interpreter& interpreter, const std::string& format,
                                   const Args& args);

}  // namespace longhaul::jinja
