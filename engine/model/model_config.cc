#include "engine/model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string_view>

#include "engine/model/mapped_file.h"

namespace longhaul {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfigBytes = 4 << 20;

// What differs between the architectures that share this forward pass.
struct Architecture {
  std::string_view name;
  bool always_qkv_bias;     // a bias on q, k and v that config.json does not mention
  bool sliding_by_default;  // uses sliding_window wherever it is set, without use_sliding_window
};

constexpr Architecture kArchitectures[] = {
    {.name = "LlamaForCausalLM", .always_qkv_bias = false, .sliding_by_default = false},
    {.name = "MistralForCausalLM", .always_qkv_bias = false, .sliding_by_default = true},
    {.name = "Qwen2ForCausalLM", .always_qkv_bias = true, .sliding_by_default = false},
};

// Typed access to the fields of one JSON object. The first error sticks; later reads return
// defaults, so that a parser reads like the list of its fields and checks once.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const absl::Status& status() const { return status_; }

  // The value, or null where it is absent or JSON null (Hugging Face writes both).
  const Json* Find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t Int(const char* name, int64_t low, int64_t high) {
    if (Find(name) == nullptr) {
      Fail(fmt::format("field '{}' is missing", name));
      return low;
    }
    return Int(name, low, high, low);
  }
  int64_t Int(const char* name, int64_t low, int64_t high, int64_t fallback) {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    const bool fits = value->is_number_unsigned()
                          ? value->get<uint64_t>() <= static_cast<uint64_t>(high)
                          : value->is_number_integer();
    if (fits && value->get<int64_t>() >= low && value->get<int64_t>() <= high) {
      return value->get<int64_t>();
    }
    Fail(fmt::format("'{}' is {}, it must be an integer in [{}, {}]", name, Show(*value), low,
                     high));
    return fallback;
  }

  // In (low, high].
  double Number(const char* name, double low, double high, double fallback) {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (value->is_number()) {
      const double number = value->get<double>();
      if (number > low && number <= high) return number;
    }
    Fail(fmt::format("'{}' is {}, it must be a number above {} and at most {}", name, Show(*value),
                     low, high));
    return fallback;
  }

  bool Bool(const char* name, bool fallback) {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (value->is_boolean()) return value->get<bool>();
    Fail(fmt::format("'{}' is {}, it must be true or false", name, Show(*value)));
    return fallback;
  }

  std::string String(const char* name, const std::string& fallback) {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (value->is_string()) return value->get<std::string>();
    Fail(fmt::format("'{}' is {}, it must be a string", name, Show(*value)));
    return fallback;
  }

  void Fail(const std::string& text) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(fmt::format("{}: {}", where_, text));
  }
  void FailUnimplemented(const std::string& text) {
    if (status_.ok()) status_ = absl::UnimplementedError(fmt::format("{}: {}", where_, text));
  }

  // A value as text for an error message, cut when long. Never throws on invalid UTF-8.
  static std::string Show(const Json& value) {
    std::string text = value.is_structured()
                           ? std::string(value.type_name())
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 64) text = text.substr(0, 61) + "...";
    return text;
  }

 private:
  const Json& object_;
  std::string where_;
  absl::Status status_;
};

const Architecture* FindArchitecture(Fields& fields) {
  const Json* names = fields.Find("architectures");
  if (names == nullptr || !names->is_array() || names->size() != 1 || !(*names)[0].is_string()) {
    fields.Fail("'architectures' must be a list with one name");
    return nullptr;
  }
  const std::string& name = (*names)[0].get_ref<const std::string&>();
  std::string supported;
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return &architecture;
    supported += (supported.empty() ? "" : ", ") + std::string(architecture.name);
  }
  fields.FailUnimplemented(fmt::format("architecture {} is not supported; supported are {}",
                                       Fields::Show((*names)[0]), supported));
  return nullptr;
}

// The older form has rope_theta at the top and rope_scaling {type | rope_type, ...} or null; the
// newer one a single rope_parameters {rope_type, rope_theta, ...}.
absl::StatusOr<RopeConfig> ParseRope(Fields& top, const std::string& file_name) {
  constexpr double kMaxTheta = 1e30;
  constexpr double kMaxFactor = 1e6;
  RopeConfig rope;
  rope.theta = top.Number("rope_theta", 0.0, kMaxTheta, rope.theta);
  const bool newer = top.Find("rope_parameters") != nullptr;
  const char* section = newer ? "rope_parameters" : "rope_scaling";
  const Json* object = top.Find(section);
  if (object == nullptr) return rope;
  if (!object->is_object()) {
    top.Fail(
        fmt::format("'{}' is {}, it must be an object or null", section, Fields::Show(*object)));
    return rope;
  }
  Fields fields(*object, fmt::format("{}: {}", file_name, section));
  rope.theta = fields.Number("rope_theta", 0.0, kMaxTheta, rope.theta);
  const std::string kind =
      fields.String("rope_type", fields.String("type", newer ? "default" : ""));
  if (kind == "default") {
    rope.kind = RopeKind::kDefault;
  } else if (kind == "linear" || kind == "llama3") {
    rope.kind = kind == "linear" ? RopeKind::kLinear : RopeKind::kLlama3;
    if (fields.Find("factor") == nullptr) fields.Fail("field 'factor' is missing");
    rope.factor = fields.Number("factor", 0.0, kMaxFactor, 1.0);
  } else {
    fields.FailUnimplemented(fmt::format(
        "rope type '{}' is not supported; supported are default, linear, llama3", kind));
  }
  if (rope.kind == RopeKind::kLlama3) {
    rope.low_freq_factor = fields.Number("low_freq_factor", 0.0, kMaxFactor, 1.0);
    rope.high_freq_factor = fields.Number("high_freq_factor", 0.0, kMaxFactor, 4.0);
    rope.original_max_positions =
        fields.Int("original_max_position_embeddings", 1, int64_t{1} << 30, 8192);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      fields.Fail("'high_freq_factor' must be above 'low_freq_factor'");
    }
  }
  LH_RETURN_IF_ERROR(fields.status());
  return rope;
}

void CheckSlidingWindow(Fields& fields, const Architecture& architecture, int64_t max_positions) {
  const int64_t window = fields.Int("sliding_window", 1, INT64_MAX, INT64_MAX);
  const bool used = fields.Bool("use_sliding_window", architecture.sliding_by_default);
  if (used && window < max_positions) {
    fields.FailUnimplemented(
        fmt::format("sliding window attention over {} tokens is not supported", window));
  }
}

void CheckUnsupported(Fields& fields) {
  if (const Json* quantization = fields.Find("quantization_config"); quantization != nullptr) {
    const bool named = quantization->is_object() && quantization->contains("quant_method");
    fields.FailUnimplemented(
        fmt::format("quantized weights ({}) are not supported; use the bf16, f16 or f32 checkpoint",
                    named ? Fields::Show((*quantization)["quant_method"]) : "unknown method"));
  }
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu") {
    fields.FailUnimplemented(
        fmt::format("activation '{}' is not supported; supported is silu", activation));
  }
  if (fields.Bool("mlp_bias", false)) {
    fields.FailUnimplemented("'mlp_bias' is true: biased feed-forward layers are not supported");
  }
  if (fields.Number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0) {
    fields.FailUnimplemented("'partial_rotary_factor' below 1 is not supported");
  }
}

}  // namespace

std::vector<double> ModelConfig::InverseFrequencies() const {
  const int64_t n = shape.head_dim / 2;
  std::vector<double> inv_freq(n);
  for (int64_t i = 0; i < n; ++i) {
    const double base = std::pow(rope.theta, -static_cast<double>(i) / static_cast<double>(n));
    switch (rope.kind) {
      case RopeKind::kDefault:
        inv_freq[i] = base;
        break;
      case RopeKind::kLinear:
        inv_freq[i] = base / rope.factor;
        break;
      case RopeKind::kLlama3: {
        // 1 where the wave turns often within the original context (kept), 0 where it turns rarely
        // (divided by the factor), linear between.
        const double turns =
            static_cast<double>(rope.original_max_positions) * base / (2 * std::numbers::pi);
        const double keep = std::clamp(
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
            1.0);
        inv_freq[i] = keep * base + (1 - keep) * base / rope.factor;
        break;
      }
    }
  }
  return inv_freq;
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json_text,
                                             const std::string& file_name) {
  // The parser is iterative, and so is the destructor: depth costs heap, not stack.
  const Json json = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(fmt::format("{}: is not a JSON object", file_name));
  }
  Fields fields(json, file_name);
  const Architecture* architecture = FindArchitecture(fields);
  LH_RETURN_IF_ERROR(fields.status());
  CheckUnsupported(fields);

  ModelConfig config;
  config.architecture = std::string(architecture->name);
  ModelShape& shape = config.shape;
  shape.n_layers = static_cast<int32_t>(fields.Int("num_hidden_layers", 1, 1024));
  shape.hidden_size = static_cast<int32_t>(fields.Int("hidden_size", 1, 65536));
  shape.n_heads = static_cast<int32_t>(fields.Int("num_attention_heads", 1, 1024));
  shape.n_kv_heads =
      static_cast<int32_t>(fields.Int("num_key_value_heads", 1, 1024, shape.n_heads));
  shape.head_dim = static_cast<int32_t>(
      fields.Int("head_dim", 2, 1024, std::max(1, shape.hidden_size / shape.n_heads)));
  shape.vocab_size = static_cast<int32_t>(fields.Int("vocab_size", 1, 4 << 20));
  shape.max_positions = fields.Int("max_position_embeddings", 1, int64_t{1} << 30);
  config.intermediate_size = static_cast<int32_t>(fields.Int("intermediate_size", 1, 1 << 20));
  config.rms_norm_eps = static_cast<float>(fields.Number("rms_norm_eps", 0.0, 1.0, 1e-6));
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  config.o_bias = fields.Bool("attention_bias", false);
  config.qkv_bias = config.o_bias || architecture->always_qkv_bias;
  CheckSlidingWindow(fields, *architecture, shape.max_positions);
  LH_RETURN_IF_ERROR(fields.status());

  if (shape.head_dim % 2 != 0) {
    fields.Fail(fmt::format("head_dim is {}, rotary embeddings need an even one", shape.head_dim));
  }
  if (shape.n_heads % shape.n_kv_heads != 0) {
    fields.Fail(fmt::format("num_attention_heads {} is no multiple of num_key_value_heads {}",
                            shape.n_heads, shape.n_kv_heads));
  }
  LH_ASSIGN_OR_RETURN(config.rope, ParseRope(fields, file_name));
  LH_RETURN_IF_ERROR(fields.status());
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  LH_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const auto bytes = file.bytes();
  if (bytes.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(fmt::format("{}: has {} bytes, more than the allowed {}",
                                                  path, bytes.size(), kMaxConfigBytes));
  }
  return ParseModelConfig(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
                          path);
}

}  // namespace longhaul
