#include "server/text/jinja/json_value.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "kernels/base/json_depth.h"
#include "server/text/json_file.h"

namespace longhaul::jinja {
namespace {

using nlohmann::json;

// Builds values from the events of nlohmann's parser, whose own objects would sort the keys.
class Builder final : public json::json_sax_t {
 public:
  std::optional<Value> TakeResult() { return std::move(result_); }

  bool null() override { return Add(Value::None()); }
  bool boolean(bool value) override { return Add(Value::Bool(value)); }
  bool number_integer(int64_t value) override { return Add(Value::Int(value)); }
  bool number_unsigned(uint64_t value) override {
    return Add(value > static_cast<uint64_t>(INT64_MAX) ? Value::Float(static_cast<double>(value))
                                                        : Value::Int(static_cast<int64_t>(value)));
  }
  bool number_float(double value, const std::string&) override { return Add(Value::Float(value)); }
  bool string(std::string& value) override { return Add(Value::String(std::move(value))); }
  bool binary(json::binary_t&) override { return false; }
  bool start_object(size_t) override {
    open_.emplace_back().is_object = true;
    return true;
  }
  bool key(std::string& value) override {
    open_.back().key = std::move(value);
    return true;
  }
  bool end_object() override {
    Dict dict = std::move(open_.back().dict);
    open_.pop_back();
    return Add(Value::Of(std::move(dict)));
  }
  bool start_array(size_t) override {
    open_.emplace_back();
    return true;
  }
  bool end_array() override {
    std::vector<Value> items = std::move(open_.back().items);
    open_.pop_back();
    return Add(Value::List(std::move(items)));
  }
  bool parse_error(size_t, const std::string&, const json::exception&) override { return false; }

 private:
  struct Container {
    bool is_object = false;
    std::string key;
    Dict dict;
    std::vector<Value> items;
  };

  bool Add(Value value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (open_.back().is_object) {
      open_.back().dict.Set(std::move(open_.back().key), std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  std::vector<Container> open_;
  std::optional<Value> result_;
};

}  // namespace

absl::StatusOr<Value> ParseJsonValue(std::string_view text) {
  if (!JsonDepthWithin(text, kMaxJsonDepth)) {
    return absl::InvalidArgumentError(
        fmt::format("JSON is nested deeper than {} levels", kMaxJsonDepth));
  }
  Builder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError("not valid JSON");
  }
  return *builder.TakeResult();
}

}  // namespace longhaul::jinja
