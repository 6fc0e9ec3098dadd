// The one table of settings; see server_config.h. Names are vLLM's where it has the setting.

#include <utility>

#include "server/server_config.h"

namespace longhaul {
namespace {

constexpr double kMaxTokens = 1 << 28;
constexpr double kMaxBytes = 1e15;

FlagSpec Text(const char* name, FlagGroup group, FlagSpec::Target target, const char* help) {
  return {name, group, target, "", 0, 0, {}, help};
}

FlagSpec Choice(const char* name, FlagGroup group, FlagSpec::Target target,
                std::vector<const char*> choices, const char* help) {
  return {name, group, target, "", 0, 0, std::move(choices), help};
}

FlagSpec Switch(const char* name, FlagGroup group, bool ServerConfig::*target, const char* help) {
  return {name, group, target, "", 0, 0, {}, help};
}

FlagSpec Number(const char* name, FlagGroup group, FlagSpec::Target target, const char* unit,
                double min, double max, const char* help) {
  return {name, group, target, unit, min, max, {}, help};
}

}  // namespace

const std::vector<FlagSpec>& FlagTable() {
  using C = ServerConfig;
  constexpr FlagGroup kEngine = FlagGroup::kEngine, kServe = FlagGroup::kServe;
  static const std::vector<FlagSpec> table = {
      Text("model", kEngine, &C::model,
           "Hugging Face model folder: config.json, *.safetensors, tokenizer files"),
      Text("served-model-name", kEngine, &C::served_model_name,
           "name in the API; empty = last part of the folder's path"),
      Text("chat-template", kEngine, &C::chat_template,
           "Jinja file to use instead of the model folder's chat template"),
      Choice("generation-config", kEngine, &C::generation_config, {"auto", "none"},
             "auto: requests that do not say how to sample get the model folder's "
             "generation_config.json"),
      Choice(
          "backend", kEngine, &C::backend, {"auto", "cpu", "ref", "cuda", "cuda-mma"},
          "what computes; ref is slow and exact, for checking; cuda-mma leaves out the kernels for "
          "Hopper GPUs"),
      Number("threads", kEngine, &C::threads, "threads", 0, 1024,
             "of the CPU backend; 0 = all processors"),
      Number("tensor-parallel-size", kEngine, &C::tensor_parallel_size,
             "ranks; this version has one", 1, 1,
             "ranks that share a model; only 1 in this version"),
      Number("max-model-len", kEngine, &C::max_model_len, "tokens", 0, kMaxTokens,
             "longest prompt and output together; 0 = what the model allows"),
      Choice("dtype", kEngine, &C::dtype, {"auto", "float32", "bfloat16"},
             "weights of linear layers; auto = bfloat16 where the checkpoint has it, else float32"),
      Choice("quantization", kEngine, &C::quantization, {"none", "int8"},
             "int8: linear layers in 8 bits, whatever --dtype says; a quarter of float32's memory"),
      Text("weight-cache", kEngine, &C::weight_cache,
           "folder where packed weights are kept for the next start; empty = they are not"),
      Choice("kv-cache-dtype", kEngine, &C::kv_cache_dtype,
             {"auto", "float32", "bfloat16", "fp8", "fp8_e4m3"},
             "storage of keys and values; auto = that of --dtype, also under --quantization; a GPU "
             "takes bfloat16 for float32"),
      Number(
          "kv-cache-memory", kEngine, &C::kv_cache_memory_bytes, "bytes", 0, kMaxBytes,
          "page pool, for example 8G; 0 = 40 % of the free memory at most, on a GPU what is left"),
      Number("gpu-memory-utilization", kEngine, &C::gpu_memory_utilization,
             "share of the GPU's memory", 0.05, 1,
             "for weights, page pool and work together; the rest is for cuBLAS and the driver"),
      Switch("enforce-eager", kEngine, &C::enforce_eager,
             "on a GPU: no CUDA graphs, every op of a decode step is issued by itself"),
      Number("max-num-seqs", kEngine, &C::max_num_seqs, "requests", 1, 65536,
             "requests that run at the same time"),
      Number("max-num-queued-reqs", kEngine, &C::max_num_queued_reqs, "requests", 1, 1e6,
             "requests that may wait; more are refused with 429"),
      Number("max-num-queued-tokens", kEngine, &C::max_num_queued_tokens, "tokens", 1, 1e12,
             "prompt tokens that may wait; an empty queue takes any prompt"),
      Number("max-prefills", kEngine, &C::max_prefills, "prompts", 1, 256,
             "prompts prefilled in turn, one place for short ones; each holds an epoch of hidden "
             "state"),
      Switch("enable-prefix-caching", kEngine, &C::enable_prefix_caching,
             "reuse keys and values of prompts that start alike"),
      Number(
          "retry-keep-seconds", kEngine, &C::retry_keep_s, "seconds", 0, 86400,
          "a cancelled or failed prompt's pages are kept for a retry; 0 = no longer than others"),
      Number("retry-keep-share", kEngine, &C::retry_keep_share, "share of the page pool", 0, 1,
             "that may be kept for retries at most"),
      Switch(
          "self-measure", kEngine, &C::self_measure,
          "time some steps at the start (about 1 s), so that predictions are right from the first"),
      Number("epoch-tokens", kEngine, &C::epoch_tokens, "tokens, a multiple of 64", 64, 1 << 20,
             "grid on which a prompt is cut"),
      Number("slice-ms", kEngine, &C::slice_ms, "milliseconds", 1, 60000,
             "time after which a long prompt yields to others"),
      Choice("prefill-order", kEngine, &C::prefill_order, {"auto", "epoch", "layer"},
             "of one long prompt: layer keeps the hidden state of a whole prompt; same bits"),
      Choice("sparse-mode", kEngine, &C::sparse_mode,
             {"auto", "dense", "sample", "adaptive", "paper", "streaming", "vertical_slash"},
             "prefill attention of requests that do not choose"),
      Number("sparse-alpha", kEngine, &C::sparse_alpha, "share of softmax mass", 0, 1,
             "what the kept keys must hold; 1 = equal to dense"),
      Number("sparse-sink", kEngine, &C::sparse_sink, "keys", 0, kMaxTokens,
             "first keys, always kept"),
      Number("sparse-window", kEngine, &C::sparse_window, "keys, a multiple of 64", 0, kMaxTokens,
             "local window, always kept"),
      Number("sparse-stripe-width", kEngine, &C::sparse_stripe_width, "keys: 1, 8, 16 or 64", 1, 64,
             "granularity of selection"),
      Number("sparse-rows", kEngine, &C::sparse_rows, "rows", 0, 4096,
             "equidistant voting rows per epoch"),
      Number("sparse-tail-rows", kEngine, &C::sparse_tail_rows, "rows", 0, 4096,
             "voting rows at the end of an epoch"),
      Number("sparse-audit-rows", kEngine, &C::sparse_audit_rows, "rows", 0, 4096,
             "rows per epoch that never vote and measure recall"),
      Number("sparse-keep-max", kEngine, &C::sparse_keep_max, "share of a row", 0, 2,
             "a key with this share of any voting row is always kept"),
      Number("sparse-recall-floor", kEngine, &C::sparse_recall_floor, "share of softmax mass", 0, 1,
             "a head whose audit falls below is repaired densely"),
      Number("sparse-dense-tail", kEngine, &C::sparse_dense_tail, "tokens", 0, kMaxTokens,
             "last rows of a prompt that attend to everything"),
      Number("sparse-auto-min-keys", kEngine, &C::sparse_auto_min_keys, "keys", 0, kMaxTokens,
             "mode auto: dense up to this length"),
      Number("sparse-columns", kEngine, &C::sparse_columns, "keys", 0, 1 << 24,
             "mode vertical_slash: columns that each head keeps"),
      Number("sparse-diagonals", kEngine, &C::sparse_diagonals,
             "diagonals, rounded up to bands of 64", 0, 1 << 24,
             "mode vertical_slash: diagonals that each head keeps"),
      Text("sparse-pattern-file", kEngine, &C::sparse_pattern_file,
           "mode vertical_slash: JSON with the budgets of each head, as MInference publishes them"),
      Choice("log-level", kEngine, &C::log_level, {"debug", "info", "warning", "error", "off"},
             "least severe lines that are logged (to stderr)"),
      Text("host", kServe, &C::host,
           "address to listen on; 127.0.0.1 = this machine only. Set --api-key on open networks"),
      Number("port", kServe, &C::port, "port", 0, 65535, "HTTP; 0 = any free port"),
      Number("grpc-port", kServe, &C::grpc_port, "port", 0, 65535, "gRPC; 0 = no gRPC"),
      Text("api-key", kServe, &C::api_keys,
           "key that clients must send; may be given several times"),
      Switch("prefix-cache-per-key", kServe, &C::prefix_cache_per_key,
             "requests with different API keys never share cached prefixes"),
      Number("max-body-bytes", kServe, &C::max_body_bytes, "bytes", 1024, 4e9,
             "largest HTTP request body"),
      Number("max-total-body-bytes", kServe, &C::max_total_body_bytes, "bytes", 1024, kMaxBytes,
             "HTTP request bodies that are read or parsed at the same time; more are refused with "
             "429"),
      Number("max-connections", kServe, &C::max_connections, "connections", 1, 1e6,
             "open at the same time"),
      Number("request-workers", kServe, &C::request_workers, "threads", 1, 256,
             "that parse and tokenize requests"),
      Number("default-max-tokens", kServe, &C::default_max_tokens, "tokens", 1, kMaxTokens,
             "longest answer to a chat request that names no max_tokens"),
      Number("sse-ping-interval", kServe, &C::sse_ping_interval_s, "seconds", 0.01, 3600,
             "silence on a stream after which a comment is sent"),
      Switch("request-log", kServe, &C::request_log,
             "one line of JSON per request in the log, never text of a prompt or an answer"),
      Number("shutdown-timeout", kServe, &C::shutdown_timeout_s, "seconds", 0, 86400,
             "that running requests get after SIGTERM"),
  };
  return table;
}

}  // namespace longhaul
