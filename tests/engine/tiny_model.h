// Tiny models written to a temporary folder, and a driver that runs prompts through an Executor the
// way a scheduler would. Test code only.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/runner.h"
#include "kernels/base/checked_math.h"

namespace longhaul::testing {

// A folder that is removed with its owner.
class TempDir {
 public:
  TempDir() {
    std::string pattern = ::testing::TempDir() + "/longhaul_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
  }

 private:
  std::string path_;
};

// A safetensors file: the length of the header, the header, the data.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  const uint64_t n = header.size();
  std::memcpy(file.data(), &n, sizeof(n));
  return file + header + data;
}

struct TinyTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

inline std::string SafetensorsBytes(const std::map<std::string, TinyTensor>& tensors) {
  std::string header, data;
  for (const auto& [name, tensor] : tensors) {
    std::string shape;
    for (int64_t extent : tensor.shape)
      shape += fmt::format("{}{}", shape.empty() ? "" : ",", extent);
    const size_t n_bytes = tensor.values.size() * sizeof(float);
    header +=
        fmt::format(R"({}"{}":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}})",
                    header.empty() ? "{" : ",", name, shape, data.size(), data.size() + n_bytes);
    data.append(reinterpret_cast<const char*>(tensor.values.data()), n_bytes);
  }
  return SafetensorsBytes(header + "}", data);
}

// A random Llama with 2 layers, 4 heads on 2 kv heads of 16, hidden 32, vocabulary 64.
inline constexpr char kTinyConfig[] = R"({
  "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 24,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "vocab_size": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "hidden_act": "silu", "tie_word_embeddings": false})";

inline std::map<std::string, TinyTensor> TinyTensors(uint32_t seed = 1) {
  std::mt19937 rng(seed);
  std::map<std::string, TinyTensor> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean,
                       float spread) {
    std::normal_distribution<float> normal(mean, spread);
    TinyTensor tensor{.shape = shape, .values = {}};
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    for (int64_t i = 0; i < n; ++i) tensor.values.push_back(normal(rng));
    tensors[name] = tensor;
  };
  add("model.embed_tokens.weight", {64, 32}, 0, 1);
  add("lm_head.weight", {64, 32}, 0, 0.3f);
  add("model.norm.weight", {32}, 1, 0.1f);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = fmt::format("model.layers.{}.", layer);
    add(p + "input_layernorm.weight", {32}, 1, 0.1f);
    add(p + "post_attention_layernorm.weight", {32}, 1, 0.1f);
    add(p + "self_attn.q_proj.weight", {64, 32}, 0, 0.35f);
    add(p + "self_attn.k_proj.weight", {32, 32}, 0, 0.35f);
    add(p + "self_attn.v_proj.weight", {32, 32}, 0, 0.3f);
    add(p + "self_attn.o_proj.weight", {32, 64}, 0, 0.2f);
    add(p + "mlp.gate_proj.weight", {24, 32}, 0, 0.2f);
    add(p + "mlp.up_proj.weight", {24, 32}, 0, 0.2f);
    add(p + "mlp.down_proj.weight", {32, 24}, 0, 0.2f);
  }
  return tensors;
}

inline void WriteTinyModel(const TempDir& dir,
                           const std::map<std::string, TinyTensor>& tensors = TinyTensors(),
                           const std::string& config = kTinyConfig) {
  dir.Write("config.json", config);
  dir.Write("model.safetensors", SafetensorsBytes(tensors));
}

inline std::vector<int32_t> RandomTokens(int64_t n, int32_t vocab_size, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % vocab_size);
  return tokens;
}

// One sequence: its tokens, its pages in the pool, and what is carried between epochs.
struct DrivenSequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;
  SparseOptions sparse{.mode = SparseMode::kDense};
  SparseState state;
  SparseReport report;
  int32_t hidden_slot = 0;
  int64_t n_prompt = 0;
};

// Pages first_page, first_page + stride, ... for n_tokens.
inline DrivenSequence MakeSequence(std::vector<int32_t> prompt, int32_t first_page,
                                   int32_t stride = 1, int64_t n_tokens = 0) {
  DrivenSequence sequence;
  n_tokens = std::max<int64_t>(n_tokens, prompt.size());
  for (int64_t i = 0; i < CeilDiv(n_tokens, kPageTokens); ++i) {
    sequence.pages.push_back(first_page + static_cast<int32_t>(i) * stride);
  }
  sequence.n_prompt = static_cast<int64_t>(prompt.size());
  sequence.tokens = std::move(prompt);
  return sequence;
}

inline PrefillSlice SliceOf(DrivenSequence& s, int64_t begin, int64_t end, int32_t layer_begin,
                            int32_t layer_end) {
  return {.seq_id = s.hidden_slot,
          .begin = begin,
          .end = end,
          .layer_begin = layer_begin,
          .layer_end = layer_end,
          .prompt_tokens = s.n_prompt,
          .tokens = std::span(s.tokens).subspan(begin, end - begin),
          .pages = s.pages,
          .hidden_slot = s.hidden_slot,
          .sparse = &s.sparse,
          .sparse_state = &s.state,
          .report_heads = true};
}

// Executes one slice; the logits, when it produced any.
inline std::vector<float> RunSlice(Executor& executor, DrivenSequence& s,
                                   const PrefillSlice& slice) {
  StepPlan plan;
  plan.prefill.push_back(slice);
  const auto result = executor.Execute(plan);
  EXPECT_TRUE(result.ok()) << result.status();
  s.report.Merge(result->slices[0].report);
  const auto logits = result->slices[0].logits;
  return {logits.begin(), logits.end()};
}

// Prefills positions [begin, n_prompt) epoch by epoch, layers_per_slice layers at a time (0 = all).
inline std::vector<float> Prefill(Executor& executor, DrivenSequence& s, int64_t epoch_tokens,
                                  int32_t layers_per_slice = 0, int64_t begin = 0) {
  const int32_t n_layers = executor.shape().n_layers;
  const int32_t step = layers_per_slice == 0 ? n_layers : layers_per_slice;
  std::vector<float> logits;
  while (begin < s.n_prompt) {
    const int64_t end = std::min((begin / epoch_tokens + 1) * epoch_tokens, s.n_prompt);
    for (int32_t layer = 0; layer < n_layers; layer += step) {
      logits =
          RunSlice(executor, s, SliceOf(s, begin, end, layer, std::min(layer + step, n_layers)));
    }
    begin = end;
  }
  return logits;
}

// Appends `token` and returns the logits that follow it.
inline std::vector<float> DecodeOne(Executor& executor, DrivenSequence& s, int32_t token) {
  const int64_t position = static_cast<int64_t>(s.tokens.size());
  s.tokens.push_back(token);
  StepPlan plan;
  plan.decode.push_back({.seq_id = 0,
                         .token = token,
                         .position = position,
                         .pages = std::span<const int32_t>(s.pages).first(position / 64 + 1)});
  const auto result = executor.Execute(plan);
  EXPECT_TRUE(result.ok()) << result.status();
  const std::span<const float> logits = result->decode[0].logits;
  return {logits.begin(), logits.end()};
}

inline std::unique_ptr<Backend> MakeBackend(const std::string& name) {
  return name == "ref" ? CreateRefBackend() : CreateCpuBackend(2);
}

}  // namespace longhaul::testing
