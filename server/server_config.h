// ServerConfig: every setting of `longhaul serve | generate | bench`, and where it comes from:
// flag, environment (LONGHAUL_*), YAML file (--config), default, in this order. One table describes
// each setting once: name, type, unit, range, help; the command line, the environment and the file
// all use it. Filled once at start, const afterwards.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/config.h"
#include "kernels/base/status.h"

namespace longhaul {

struct ServerConfig {
  // Model and engine
  std::string model;
  std::string served_model_name;  // empty = last part of the model folder's path
  std::string chat_template;      // a Jinja file; empty = the model folder's template
  std::string generation_config = "auto";
  std::string backend = "auto";
  int64_t threads = 0;
  int64_t tensor_parallel_size = 1;
  int64_t max_model_len = 0;
  std::string dtype = "auto";
  std::string quantization = "none";
  std::string weight_cache;  // empty = off
  std::string kv_cache_dtype = "auto";
  int64_t kv_cache_memory_bytes = 0;
  double gpu_memory_utilization = 0.9;
  bool enforce_eager = false;
  int64_t max_num_seqs = 64;
  int64_t max_num_queued_reqs = 256;
  int64_t max_num_queued_tokens = int64_t{1} << 24;
  int64_t max_prefills = 5;
  bool enable_prefix_caching = true;
  double retry_keep_s = 120;
  double retry_keep_share = 0.5;
  bool self_measure = true;
  int64_t epoch_tokens = 4096;
  double slice_ms = 250;
  std::string prefill_order = "auto";
  std::string sparse_mode = "auto";
  double sparse_alpha = 0.95;
  int64_t sparse_sink = 64;
  int64_t sparse_window = 128;
  int64_t sparse_stripe_width = 1;
  int64_t sparse_rows = 48;
  int64_t sparse_tail_rows = 0;
  int64_t sparse_audit_rows = 16;
  double sparse_keep_max = 0.25;
  double sparse_recall_floor = 0.85;
  int64_t sparse_dense_tail = 64;
  int64_t sparse_auto_min_keys = 4096;
  int64_t sparse_columns = 1000;
  int64_t sparse_diagonals = 6096;
  std::string sparse_pattern_file;  // empty = the two above for every head
  // Front ends
  std::string host = "0.0.0.0";
  int64_t port = 8000;
  int64_t grpc_port = 8001;
  std::vector<std::string> api_keys;
  bool prefix_cache_per_key = true;
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_total_body_bytes = int64_t{1} << 30;
  int64_t max_connections = 1024;
  int64_t request_workers = 2;
  int64_t default_max_tokens = 16384;
  double sse_ping_interval_s = 10;
  bool request_log = true;
  double shutdown_timeout_s = 30;
  std::string log_level = "info";

  absl::StatusOr<EngineConfig> ToEngineConfig() const;
  std::string ServedModelName() const;
};

enum class FlagGroup : uint8_t { kEngine, kServe };  // kServe: `serve` only

struct FlagSpec {
  using Target =
      std::variant<std::string ServerConfig::*, int64_t ServerConfig::*, double ServerConfig::*,
                   bool ServerConfig::*, std::vector<std::string> ServerConfig::*>;
  const char* name;  // "max-model-len": the flag, the YAML key, and LONGHAUL_MAX_MODEL_LEN
  FlagGroup group;
  Target target;
  const char* unit;                  // of numbers, for help; "bytes" also takes K, M, G, T
  double min = 0, max = 0;           // of numbers, both allowed
  std::vector<const char*> choices;  // of strings; empty = any
  const char* help;
};

const std::vector<FlagSpec>& FlagTable();
// Text of a setting's default, for help.
std::string DefaultText(const FlagSpec& flag);
// Text of its value in a configuration, as the flag takes it.
std::string ValueText(const FlagSpec& flag, const ServerConfig& config);

// Values as text, by flag name; a list flag may have several.
using FlagValues = std::map<std::string, std::vector<std::string>>;
// Names and values of environment variables.
using Environment = std::vector<std::pair<std::string, std::string>>;

// The process's LONGHAUL_* variables: the one place that reads the environment.
Environment ReadEnvironment();

// InvalidArgument names the source (flag, variable, or file and line), the value and what is
// allowed; for an unknown name also the nearest known one. NotFound when the config file does not
// exist.
absl::StatusOr<ServerConfig> LoadServerConfig(const std::string& config_path,
                                              const FlagValues& flags,
                                              const Environment& environment);

// The nearest of `known` to a mistyped name, or "".
std::string NearestName(const std::string& name, const std::vector<std::string>& known);

}  // namespace longhaul
