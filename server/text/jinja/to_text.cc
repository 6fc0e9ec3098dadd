#include "server/text/jinja/to_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "server/text/jinja/object.h"
#include "server/text/jinja/py_string.h"
#include "server/text/unicode.h"

namespace longhaul::jinja {
namespace {

absl::Status TooLong(int64_t max_bytes) {
  return absl::InvalidArgumentError(
      fmt::format("a text of more than {} bytes comes out; the limit keeps a template from filling "
                  "the memory",
                  max_bytes));
}

absl::Status CheckSize(const std::string& out, int64_t max_bytes) {
  return static_cast<int64_t>(out.size()) > max_bytes ? TooLong(max_bytes) : absl::OkStatus();
}

// Nesting of a value is bounded, so these recursions are.
absl::Status AppendReprOf(const Value& value, int64_t max_bytes, std::string* out);

absl::Status AppendItems(const std::vector<Value>& items, int64_t max_bytes, std::string* out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out->append(", ");
    LH_RETURN_IF_ERROR(AppendReprOf(items[i], max_bytes, out));
  }
  return absl::OkStatus();
}

absl::Status AppendReprOf(const Value& value, int64_t max_bytes, std::string* out) {
  LH_RETURN_IF_ERROR(CheckSize(*out, max_bytes));
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      out->append("Undefined");
      return absl::OkStatus();
    case Value::Kind::kNone:
      out->append("None");
      return absl::OkStatus();
    case Value::Kind::kBool:
      out->append(value.bool_value() ? "True" : "False");
      return absl::OkStatus();
    case Value::Kind::kInt:
      out->append(std::to_string(value.int_value()));
      return absl::OkStatus();
    case Value::Kind::kFloat:
      out->append(FloatText(value.float_value()));
      return absl::OkStatus();
    case Value::Kind::kString:
      AppendRepr(value.text(), out);
      return absl::OkStatus();
    case Value::Kind::kSequence: {
      const Sequence& sequence = value.sequence();
      if (sequence.kind != SequenceKind::kList && sequence.kind != SequenceKind::kTuple) break;
      const bool is_list = sequence.kind == SequenceKind::kList;
      out->push_back(is_list ? '[' : '(');
      LH_RETURN_IF_ERROR(AppendItems(sequence.items, max_bytes, out));
      if (!is_list && sequence.items.size() == 1) out->push_back(',');
      out->push_back(is_list ? ']' : ')');
      return absl::OkStatus();
    }
    case Value::Kind::kDict: {
      out->push_back('{');
      bool first = true;
      for (const auto& [key, item] : value.dict().entries()) {
        if (!first) out->append(", ");
        first = false;
        LH_RETURN_IF_ERROR(AppendReprOf(key, max_bytes, out));
        out->append(": ");
        LH_RETURN_IF_ERROR(AppendReprOf(item, max_bytes, out));
      }
      out->push_back('}');
      return absl::OkStatus();
    }
    case Value::Kind::kObject:
      break;
  }
  return absl::InvalidArgumentError(
      fmt::format("a {} cannot be printed{}", std::string(value.type_name()),
                  value.is_sequence() ? "; make it a list with the filter 'list'" : ""));
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out) {
  constexpr std::string_view kNames = "\"\\nrtbf", kValues = "\"\\\n\r\t\b\f";
  out->push_back('"');
  while (!text.empty()) {
    const char byte = text[0];
    if (const size_t at = kValues.find(byte); at != std::string_view::npos) {
      out->push_back('\\');
      out->push_back(kNames[at]);
    } else if (static_cast<uint8_t>(byte) < 0x20) {
      fmt::format_to(std::back_inserter(*out), "\\u{:04x}", byte);
    } else if (!ensure_ascii || static_cast<uint8_t>(byte) < 0x80) {
      out->push_back(byte);
    } else {
      const Utf8Char c = DecodeUtf8(text.data());
      if (c.code_point < 0x10000) {
        fmt::format_to(std::back_inserter(*out), "\\u{:04x}", c.code_point);
      } else {
        const uint32_t rest = c.code_point - 0x10000;
        fmt::format_to(std::back_inserter(*out), "\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10),
                       0xDC00 + (rest & 0x3FF));
      }
      text.remove_prefix(static_cast<size_t>(c.length));
      continue;
    }
    text.remove_prefix(1);
  }
  out->push_back('"');
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, int64_t max_bytes, std::string* out)
      : style_(style), max_bytes_(max_bytes), out_(out) {}

  absl::Status Write(const Value& value, int level) {
    LH_RETURN_IF_ERROR(CheckSize(*out_, max_bytes_));
    switch (value.kind()) {
      case Value::Kind::kNone:
        out_->append("null");
        return absl::OkStatus();
      case Value::Kind::kBool:
        out_->append(value.bool_value() ? "true" : "false");
        return absl::OkStatus();
      case Value::Kind::kInt:
        out_->append(std::to_string(value.int_value()));
        return absl::OkStatus();
      case Value::Kind::kFloat:
        out_->append(JsonFloat(value.float_value()));
        return absl::OkStatus();
      case Value::Kind::kString:
        AppendJsonString(value.text(), style_.ensure_ascii, out_);
        return absl::OkStatus();
      case Value::Kind::kSequence:
        if (!value.is(SequenceKind::kList) && !value.is(SequenceKind::kTuple)) break;
        return WriteList(value.sequence().items, level);
      case Value::Kind::kDict:
        return WriteDict(value.dict(), level);
      case Value::Kind::kUndefined:
        return absl::InvalidArgumentError(
            fmt::format("an undefined value has no JSON form: {}", value.undefined_hint()));
      case Value::Kind::kObject:
        break;
    }
    return absl::InvalidArgumentError(
        fmt::format("a {} has no JSON form", std::string(value.type_name())));
  }

 private:
  static std::string JsonFloat(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return FloatText(value);
  }

  void Break(int level) {
    if (!style_.has_indent) return;
    out_->push_back('\n');
    for (int i = 0; i < level; ++i) out_->append(style_.indent);
  }

  absl::Status WriteList(const std::vector<Value>& items, int level) {
    out_->push_back('[');
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_->append(style_.item_separator);
      Break(level + 1);
      LH_RETURN_IF_ERROR(Write(items[i], level + 1));
    }
    if (!items.empty()) Break(level);
    out_->push_back(']');
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<std::pair<std::string, const Value*>> entries;
    entries.reserve(dict.size());
    for (const auto& [key, item] : dict.entries()) {
      if (key.is_sequence() || key.is_object() || key.is_undefined()) {
        return absl::InvalidArgumentError(
            fmt::format("a {} cannot be a key in JSON", std::string(key.type_name())));
      }
      entries.emplace_back(KeyText(key), &item);
    }
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    out_->push_back('{');
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_->append(style_.item_separator);
      Break(level + 1);
      AppendJsonString(entries[i].first, style_.ensure_ascii, out_);
      out_->append(style_.key_separator);
      LH_RETURN_IF_ERROR(Write(*entries[i].second, level + 1));
    }
    if (!entries.empty()) Break(level);
    out_->push_back('}');
    return absl::OkStatus();
  }

  static std::string KeyText(const Value& key) {
    if (key.is_string()) return key.text();
    if (key.is_none()) return "null";
    if (key.is_bool()) return key.bool_value() ? "true" : "false";
    return key.is_int() ? std::to_string(key.int_value()) : JsonFloat(key.float_value());
  }

  const JsonStyle& style_;
  const int64_t max_bytes_;
  std::string* const out_;
};

}  // namespace

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto shortest =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(shortest.ptr - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const size_t digits_at = e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(text.data() + digits_at, text.data() + text.size(), exponent);
  // Python writes an exponent below 1e-4 and from 1e16 on.
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}e{}{:02d}", text.substr(0, e), exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string result(buffer, fixed.ptr);
  if (result.find('.') == std::string::npos) result += ".0";
  return result;
}

absl::Status AppendStr(const Value& value, int64_t max_bytes, std::string* out) {
  if (value.is_string()) {
    out->append(value.text());
  } else if (!value.is_undefined()) {
    LH_RETURN_IF_ERROR(AppendReprOf(value, max_bytes, out));
  }
  return CheckSize(*out, max_bytes);
}

absl::Status AppendJson(const Value& value, const JsonStyle& style, int64_t max_bytes,
                        std::string* out) {
  LH_RETURN_IF_ERROR(JsonWriter(style, max_bytes, out).Write(value, 0));
  return CheckSize(*out, max_bytes);
}

}  // namespace longhaul::jinja
