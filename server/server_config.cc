#include "server/server_config.h"

#include <fmt/format.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string_view>
#include <type_traits>

#include "engine/head_budgets.h"

namespace longhaul {
namespace {

constexpr std::string_view kEnvironmentPrefix = "LONGHAUL_";
constexpr int64_t kMaxConfigFileBytes = 1 << 20;

std::string EnvironmentName(std::string_view flag) {
  std::string name(kEnvironmentPrefix);
  for (const char c : flag) name += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

// A service named "longhaul" in Kubernetes puts LONGHAUL_PORT=tcp://... and the like into every
// pod.
bool IsKubernetesServiceLink(const std::string& name, const std::string& value) {
  return name.starts_with("LONGHAUL_SERVICE_") || name.starts_with("LONGHAUL_PORT_") ||
         (name == "LONGHAUL_PORT" && value.starts_with("tcp://"));
}

// "8G" in bytes; suffixes are binary.
bool ParseBytes(std::string_view text, double* out) {
  double scale = 1;
  if (!text.empty()) {
    const size_t power =
        std::string_view("KMGT").find(static_cast<char>(std::toupper(text.back())));
    if (power != std::string_view::npos) {
      scale = std::exp2(10.0 * static_cast<double>(power + 1));
      text.remove_suffix(1);
    }
  }
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  *out = std::floor(number * scale);
  return true;
}

bool ParseNumber(std::string_view text, const FlagSpec& flag, double* out) {
  if (std::string_view(flag.unit) == "bytes") return ParseBytes(text, out);
  if (std::holds_alternative<int64_t ServerConfig::*>(flag.target)) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    *out = static_cast<double>(number);
    return error == std::errc() && end == text.data() + text.size();
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(*out);
}

bool ParseBool(std::string_view text, bool* out) {
  *out = text == "true" || text == "1" || text == "yes" || text == "on";
  return *out || text == "false" || text == "0" || text == "no" || text == "off";
}

std::string NumberText(const FlagSpec& flag, double number) {
  return std::holds_alternative<int64_t ServerConfig::*>(flag.target)
             ? fmt::format("{}", static_cast<int64_t>(number))
             : fmt::format("{}", number);
}

// Puts texts into the field. `source` stands before errors: "--port", "LONGHAUL_PORT", "a.yaml:3:
// port".
absl::Status Assign(const FlagSpec& flag, const std::vector<std::string>& texts,
                    const std::string& source, ServerConfig* config) {
  if (const auto* list = std::get_if<std::vector<std::string> ServerConfig::*>(&flag.target)) {
    for (const std::string& text : texts) {
      const bool usable = !text.empty() && std::all_of(text.begin(), text.end(),
                                                       [](char c) { return c > ' ' && c <= '~'; });
      // An empty key would lock everybody out, and say nothing.
      if (!usable) {
        return absl::InvalidArgumentError(fmt::format(
            "{}: {}; a key has printable ASCII characters without spaces. Leave the setting out to "
            "serve without a key",
            source, text.empty() ? "is empty" : "holds a space or a character that is not ASCII"));
      }
    }
    config->*(*list) = texts;
    return absl::OkStatus();
  }
  const auto wrong = [&](const std::string& expected) {
    return absl::InvalidArgumentError(fmt::format("{}: expected {}, got '{}'", source, expected,
                                                  texts.empty() ? "" : texts.back()));
  };
  if (texts.empty()) return wrong("a value");
  const std::string& text = texts.back();
  if (const auto* target = std::get_if<bool ServerConfig::*>(&flag.target)) {
    return ParseBool(text, &(config->*(*target))) ? absl::OkStatus() : wrong("true or false");
  }
  if (const auto* target = std::get_if<std::string ServerConfig::*>(&flag.target)) {
    const bool allowed = flag.choices.empty() || std::find(flag.choices.begin(), flag.choices.end(),
                                                           text) != flag.choices.end();
    if (!allowed) return wrong(fmt::format("one of {}", fmt::join(flag.choices, ", ")));
    config->*(*target) = text;
    return absl::OkStatus();
  }
  double number = 0;
  if (!ParseNumber(text, flag, &number) || !(number >= flag.min && number <= flag.max)) {
    const bool integer = std::holds_alternative<int64_t ServerConfig::*>(flag.target);
    return wrong(fmt::format("{} from {} to {} ({})", integer ? "an integer" : "a number",
                             NumberText(flag, flag.min), NumberText(flag, flag.max), flag.unit));
  }
  if (const auto* target = std::get_if<int64_t ServerConfig::*>(&flag.target)) {
    config->*(*target) = static_cast<int64_t>(number);
  } else {
    config->*std::get<double ServerConfig::*>(flag.target) = number;
  }
  return absl::OkStatus();
}

std::vector<std::string> FlagNames() {
  std::vector<std::string> names;
  for (const FlagSpec& flag : FlagTable()) names.emplace_back(flag.name);
  return names;
}

const FlagSpec* FindFlag(const std::string& name) {
  for (const FlagSpec& flag : FlagTable()) {
    if (name == flag.name) return &flag;
  }
  return nullptr;
}

absl::Status UnknownName(const std::string& source, const std::string& name,
                         const std::string& nearest) {
  return absl::InvalidArgumentError(
      nearest.empty()
          ? fmt::format("{}: unknown setting '{}'", source, name)
          : fmt::format("{}: unknown setting '{}'; did you mean '{}'?", source, name, nearest));
}

absl::StatusOr<std::string> ReadConfigFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(fmt::format("--config: cannot open '{}'; check the path", path));
  }
  std::string text;
  text.resize(kMaxConfigFileBytes + 1);
  file.read(text.data(), kMaxConfigFileBytes + 1);
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxConfigFileBytes) {
    return absl::InvalidArgumentError(
        fmt::format("--config: '{}' is larger than {} bytes", path, kMaxConfigFileBytes));
  }
  return text;
}

absl::Status AssignNode(const std::string& path, const YAML::Node& key, const YAML::Node& value,
                        ServerConfig* config) {
  if (!key.IsScalar()) {
    return absl::InvalidArgumentError(fmt::format("{}: keys must be setting names", path));
  }
  const std::string name = key.Scalar();
  const std::string source = fmt::format("{}:{}: {}", path, key.Mark().line + 1, name);
  const FlagSpec* flag = FindFlag(name);
  if (flag == nullptr) {
    return UnknownName(fmt::format("{}:{}", path, key.Mark().line + 1), name,
                       NearestName(name, FlagNames()));
  }
  std::vector<std::string> texts;
  if (value.IsScalar()) {
    texts.push_back(value.Scalar());
  } else if (value.IsSequence() &&
             std::holds_alternative<std::vector<std::string> ServerConfig::*>(flag->target)) {
    for (const YAML::Node& element : value) {
      if (!element.IsScalar()) {
        return absl::InvalidArgumentError(fmt::format("{}: expected a list of texts", source));
      }
      texts.push_back(element.Scalar());
    }
  } else {
    return absl::InvalidArgumentError(fmt::format("{}: expected a single value", source));
  }
  return Assign(*flag, texts, source, config);
}

absl::Status ApplyFile(const std::string& path, ServerConfig* config) {
  LH_ASSIGN_OR_RETURN(const std::string text, ReadConfigFile(path));
  try {
    const YAML::Node root = YAML::Load(text);
    if (root.IsNull()) return absl::OkStatus();  // an empty file
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: expected lines of the form 'name: value'", path));
    }
    for (const auto& entry : root) {
      LH_RETURN_IF_ERROR(AssignNode(path, entry.first, entry.second, config));
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(fmt::format("{}: not valid YAML: {}", path, error.what()));
  }
  return absl::OkStatus();
}

absl::Status ApplyEnvironment(const Environment& environment, ServerConfig* config) {
  std::vector<std::string> names;
  for (const FlagSpec& flag : FlagTable()) names.push_back(EnvironmentName(flag.name));
  for (const auto& [name, value] : environment) {
    if (name == "LONGHAUL_CONFIG" || IsKubernetesServiceLink(name, value)) continue;
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end()) return UnknownName("environment", name, NearestName(name, names));
    const FlagSpec& flag = FlagTable()[static_cast<size_t>(it - names.begin())];
    LH_RETURN_IF_ERROR(Assign(flag, {value}, name, config));
  }
  return absl::OkStatus();
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substituted}));
    }
  }
  return row[b.size()];
}

}  // namespace

std::string NearestName(const std::string& name, const std::vector<std::string>& known) {
  std::string nearest;
  size_t best = std::min<size_t>(4, name.size() / 2 + 1);  // farther is no typing error
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(std::string_view(name).substr(0, 64), candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string DefaultText(const FlagSpec& flag) { return ValueText(flag, ServerConfig()); }

std::string ValueText(const FlagSpec& flag, const ServerConfig& config) {
  return std::visit(
      [&](auto member) -> std::string {
        const auto& value = config.*member;
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return value;
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          return value.empty() ? "none" : fmt::format("{}", fmt::join(value, ", "));
        } else if constexpr (std::is_same_v<T, bool>) {
          return value ? "true" : "false";
        } else {
          return fmt::format("{}", value);
        }
      },
      flag.target);
}

Environment ReadEnvironment() {
  Environment environment;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (!text.starts_with(kEnvironmentPrefix) || equals == std::string_view::npos) continue;
    environment.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

absl::StatusOr<ServerConfig> LoadServerConfig(const std::string& config_path,
                                              const FlagValues& flags,
                                              const Environment& environment) {
  ServerConfig config;
  std::string path = config_path;
  for (const auto& [name, value] : environment) {
    if (path.empty() && name == "LONGHAUL_CONFIG") path = value;
  }
  if (!path.empty()) LH_RETURN_IF_ERROR(ApplyFile(path, &config));
  LH_RETURN_IF_ERROR(ApplyEnvironment(environment, &config));
  for (const auto& [name, texts] : flags) {
    const FlagSpec* flag = FindFlag(name);
    if (flag == nullptr) return UnknownName("--" + name, name, NearestName(name, FlagNames()));
    LH_RETURN_IF_ERROR(Assign(*flag, texts, "--" + name, &config));
  }
  return config;
}

std::string ServerConfig::ServedModelName() const {
  if (!served_model_name.empty()) return served_model_name;
  std::string path = model;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

absl::StatusOr<EngineConfig> ServerConfig::ToEngineConfig() const {
  if (model.empty()) {
    return absl::InvalidArgumentError(
        "--model is missing: name a Hugging Face model folder, for example --model models/lookup");
  }
  EngineConfig engine;
  engine.max_model_len = max_model_len;
  engine.kv_cache_bytes = kv_cache_memory_bytes;
  engine.gpu_memory_utilization = gpu_memory_utilization;
  engine.enforce_eager = enforce_eager;
  // auto: the type that weights were asked to be in, else the checkpoint's, which the engine knows.
  const std::string& kv = kv_cache_dtype == "auto" ? dtype : kv_cache_dtype;
  if (kv == "float32") engine.kv_dtype = DType::kF32;
  if (kv == "bfloat16") engine.kv_dtype = DType::kBF16;
  if (kv == "fp8" || kv == "fp8_e4m3") engine.kv_dtype = DType::kF8E4M3;
  if (dtype == "float32") engine.weight_format = WeightFormat::kF32;
  if (dtype == "bfloat16") engine.weight_format = WeightFormat::kBF16;
  if (quantization == "int8") engine.weight_format = WeightFormat::kInt8;
  engine.weight_cache_dir = weight_cache;
  engine.epoch_tokens = epoch_tokens;
  engine.slice_us = static_cast<int64_t>(slice_ms * 1000);
  if (prefill_order == "epoch") engine.prefill_order = PrefillOrder::kEpoch;
  if (prefill_order == "layer") engine.prefill_order = PrefillOrder::kLayer;
  engine.max_num_seqs = max_num_seqs;
  engine.max_prefills = max_prefills;
  engine.max_num_queued_reqs = max_num_queued_reqs;
  engine.max_num_queued_tokens = max_num_queued_tokens;
  engine.enable_prefix_caching = enable_prefix_caching;
  engine.retry_keep_us = static_cast<int64_t>(retry_keep_s * 1e6);
  engine.retry_keep_share = retry_keep_share;
  engine.self_measure = self_measure;
  SparseOptions& sparse = engine.sparse;
  LH_ASSIGN_OR_RETURN(sparse.mode, ParseSparseMode(sparse_mode));
  sparse.alpha = static_cast<float>(sparse_alpha);
  sparse.sink = sparse_sink;
  sparse.window = sparse_window;
  sparse.stripe_width = sparse_stripe_width;
  sparse.sampled_rows = sparse_rows;
  sparse.tail_rows = sparse_tail_rows;
  sparse.audit_rows = sparse_audit_rows;
  sparse.keep_max = static_cast<float>(sparse_keep_max);
  sparse.recall_floor = static_cast<float>(sparse_recall_floor);
  sparse.dense_tail_tokens = sparse_dense_tail;
  sparse.auto_min_keys = sparse_auto_min_keys;
  sparse.columns = sparse_columns;
  sparse.diagonals = sparse_diagonals;
  if (!sparse_pattern_file.empty()) {
    LH_ASSIGN_OR_RETURN(sparse.head_budgets, ReadHeadBudgets(sparse_pattern_file));
  }
  LH_RETURN_IF_ERROR(sparse.Validate());
  return engine;
}

}  // namespace longhaul
