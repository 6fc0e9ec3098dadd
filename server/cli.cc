#include "server/cli.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <optional>
#include <string_view>

#include "server/cmd_bench_attention.h"
#include "server/cmd_bench_linear.h"
#include "server/cmd_bench_load.h"
#include "server/cmd_bench_shape.h"
#include "server/cmd_bench_tokenizer.h"
#include "server/cmd_bench_ttft.h"
#include "server/cmd_calibrate.h"
#include "server/cmd_eval.h"
#include "server/cmd_generate.h"
#include "server/cmd_health.h"
#include "server/cmd_serve.h"
#include "server/version.h"

namespace longhaul {
namespace {

constexpr int kUsageError = 2;

// The flags of the table on one subcommand, kept as text until all sources are merged.
class TableFlags {
 public:
  void AddTo(CLI::App* app, bool with_serve_flags) {
    AddSomeTo(app, [with_serve_flags](const FlagSpec& flag) {
      return with_serve_flags || flag.group != FlagGroup::kServe;
    });
  }
  void AddSomeTo(CLI::App* app, const std::function<bool(const FlagSpec&)>& includes) {
    app->add_option("--config", config_path_, "YAML file with these settings; flags go first")
        ->group("Settings");
    for (const FlagSpec& flag : FlagTable()) {
      if (includes(flag)) AddFlag(app, flag);
    }
    app->allow_extras();  // reported with a suggestion by Unknown()
    app_ = app;
  }

  // The error for arguments that no flag took.
  std::optional<std::string> Unknown() const {
    const std::vector<std::string> extras = app_->remaining();
    if (extras.empty()) return std::nullopt;
    std::vector<std::string> known;
    for (const CLI::Option* option : app_->get_options()) known.push_back(option->get_name());
    const std::string name = extras[0].substr(0, extras[0].find('='));
    const std::string nearest = NearestName(name, known);
    return nearest.empty()
               ? fmt::format("unknown argument '{}'; see --help", extras[0])
               : fmt::format("unknown argument '{}'; did you mean '{}'?", extras[0], nearest);
  }

  absl::StatusOr<ServerConfig> Load(const Environment& environment) const {
    FlagValues given;
    for (const auto& [name, texts] : values_) {
      if (!texts.empty()) given[name] = texts;
    }
    return LoadServerConfig(config_path_, given, environment);
  }

 private:
  void AddFlag(CLI::App* app, const FlagSpec& flag) {
    std::vector<std::string>& texts = values_[flag.name];
    const std::string name = fmt::format("--{}", flag.name);
    std::string help = flag.help;
    if (!flag.choices.empty()) help += fmt::format(" ({})", fmt::join(flag.choices, ", "));
    help += fmt::format(" [{}]", DefaultText(flag));
    CLI::Option* option = nullptr;
    if (std::holds_alternative<bool ServerConfig::*>(flag.target)) {
      option = app->add_flag(fmt::format("{},!--no-{}", name, flag.name), texts, help);
    } else {
      option = app->add_option(name, texts, help)->allow_extra_args(false);
      option->type_name(*flag.unit != '\0' ? fmt::format("<{}>", flag.unit) : "<text>");
    }
    if (!std::holds_alternative<std::vector<std::string> ServerConfig::*>(flag.target)) {
      option->take_last();  // scripts append what they override
      if (option->get_expected_max() > 0) option->expected(1);
    }
    option->group("Settings");
  }

  CLI::App* app_ = nullptr;
  std::string config_path_;
  std::map<std::string, std::vector<std::string>> values_;  // its nodes do not move
};

struct Commands {
  CLI::App app{"Longhaul: an inference server for very long prompts", "longhaul"};
  CLI::App* serve = nullptr;
  CLI::App* generate = nullptr;
  CLI::App* eval = nullptr;
  CLI::App* calibrate = nullptr;
  CLI::App* bench = nullptr;
  CLI::App* bench_ttft = nullptr;
  CLI::App* bench_attention = nullptr;
  CLI::App* bench_linear = nullptr;
  CLI::App* bench_load = nullptr;
  CLI::App* bench_tokenizer = nullptr;
  CLI::App* health = nullptr;
  CLI::App* version = nullptr;
  TableFlags serve_flags, generate_flags, eval_flags, calibrate_flags, ttft_flags, health_flags;
  GenerateOptions generate_options;
  eval::EvalOptions eval_options;
  eval::CalibrateOptions calibrate_options;
  BenchTtftOptions ttft_options;
  BenchShapeOptions shape_options;
  BenchAttentionOptions attention_options;
  BenchLinearOptions linear_options;
  load::LoadOptions load_options;
  BenchTokenizerOptions tokenizer_options;
  std::string attention_kv_dtype = "float32", attention_backend = "cpu";
};

void AddGenerate(Commands& c) {
  c.generate = c.app.add_subcommand("generate", "Answer one prompt on the command line");
  GenerateOptions& o = c.generate_options;
  auto* text = c.generate->add_option("--prompt", o.prompt, "the prompt");
  c.generate->add_option("--prompt-file", o.prompt_file, "file with the prompt; - = standard input")
      ->excludes(text);
  c.generate->add_option("--max-tokens", o.max_tokens, "longest answer")->capture_default_str();
  c.generate->add_option("--temperature", o.temperature, "0 = greedy")->capture_default_str();
  c.generate->add_option("--seed", o.seed, "of the sampler");
  c.generate->add_flag("--json", o.json, "one JSON object instead of text and table");
  c.generate_flags.AddTo(c.generate, /*with_serve_flags=*/false);
}

void AddEval(Commands& c) {
  c.eval = c.app.add_subcommand(
      "eval", "Accuracy beside speed, by policy and length: of a model folder, or of any server");
  eval::EvalOptions& o = c.eval_options;
  CLI::App* app = c.eval;
  const auto add_list = [app](const char* name, auto& values, const char* help) {
    app->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  add_list("--suites", o.suites, "needle, ruler, passage, ppl, agreement");
  add_list("--policies", o.policies, "side by side; a policy may have values: sample:alpha=0.9");
  add_list("--lengths", o.lengths, "prompt tokens");
  add_list("--depths", o.depths, "of suite needle: 0 = start of the prompt, 1 = end");
  app->add_option("--samples", o.samples, "prompts of each task, length and depth")
      ->capture_default_str();
  app->add_option("--seed", o.seed, "of the prompts")->capture_default_str();
  app->add_option("--text", o.text_file, "file that prompts are filled with [built-in sentences]");
  app->add_option("--url", o.url, "http://host:port of a server, in place of a model folder");
  app->add_option("--api-key", o.api_key, "sent to it as a bearer token");
  app->add_option("--timeout", o.timeout_s, "seconds that one request to it may take")
      ->capture_default_str();
  app->add_option("--out", o.out_dir, "folder that keeps results: the same command goes on there");
  app->add_option("--json", o.json_path, "write all numbers to this file");
  app->add_option("--html", o.html_path, "write a report with drawings to this file: one page");
  app->add_option("--markdown", o.markdown_path, "write the tables to this file");
  c.eval_flags.AddTo(app, /*with_serve_flags=*/false);
}

void AddCalibrate(Commands& c) {
  c.calibrate = c.app.add_subcommand(
      "calibrate", "Find the fastest sparse prefill that keeps your accuracy, on your text");
  eval::CalibrateOptions& o = c.calibrate_options;
  CLI::App* app = c.calibrate;
  const auto add = [app](const char* name, auto& value, const char* help) {
    return app->add_option(name, value, help)->capture_default_str();
  };
  app->add_option("--text", o.text_file, "file with text as your prompts have it");
  add("--length", o.lengths, "prompt tokens; the target must be met at each")->delimiter(',');
  add("--samples", o.samples, "prompts of each length, from each half of the text");
  add("--min-agreement", o.target.min_agreement, "share of tokens that dense would also choose");
  app->add_option("--max-kl", o.target.max_kl, "nats, of next tokens to dense [any]");
  add("--max-perplexity-rise", o.target.max_perplexity_rise, "share of dense's perplexity");
  add("--min-recall", o.target.min_recall, "mean share of softmax mass that audit rows keep");
  add("--min-recall-p1", o.target.min_recall_p1, "the same of their first percentile");
  add("--out", o.out_path, "YAML file to write, for serve --config");
  app->add_option("--json", o.json_path, "write all numbers to this file");
  app->add_option("--resume", o.state_dir,
                  "folder that keeps results: the same command goes on there");
  c.calibrate_flags.AddTo(app, /*with_serve_flags=*/false);
}

void AddBench(Commands& c) {
  c.bench = c.app.add_subcommand("bench", "Measure this machine, or a server");
  c.bench->require_subcommand(1);
  c.bench_ttft = c.bench->add_subcommand("ttft", "Time to first token by length and policy");
  BenchTtftOptions& t = c.ttft_options;
  c.bench_ttft->add_option("--lengths", t.lengths, "prompt tokens")
      ->delimiter(',')
      ->capture_default_str();
  c.bench_ttft->add_option("--modes", t.modes, "sparse modes")
      ->delimiter(',')
      ->capture_default_str();
  c.bench_ttft->add_option("--repeats", t.repeats, "the median is reported")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  c.bench_ttft->add_option("--text-file", t.text_file,
                           "prompts are cut out of it; else random ids");
  BenchShapeOptions& s = c.shape_options;
  c.bench_ttft->add_option("--shape", s.shape,
                           "in place of --model: random weights, each phase beside the machine's "
                           "peaks; layers,hidden,heads,kv_heads,head_dim,ffn,vocab");
  c.bench_ttft
      ->add_option("--decode-depths", s.decode_depths,
                   "with --shape: tokens before the decoded ones")
      ->delimiter(',');
  c.bench_ttft->add_option("--density", s.density,
                           "with --shape: forced on sparse policies, in (0, 1]");
  c.bench_ttft->add_flag("--json", t.json, "JSON instead of the table");
  c.ttft_flags.AddTo(c.bench_ttft, /*with_serve_flags=*/false);

  c.bench_attention = c.bench->add_subcommand("attention", "Speed of the attention kernels");
  BenchAttentionOptions& a = c.attention_options;
  CLI::App* app = c.bench_attention;
  app->add_option("--lengths", a.lengths, "keys")->delimiter(',')->capture_default_str();
  app->add_option("--head-dims", a.head_dims, "")->delimiter(',')->capture_default_str();
  app->add_option("--epochs", a.epochs, "epoch tokens to compare")
      ->delimiter(',')
      ->capture_default_str();
  app->add_option("--heads", a.n_heads, "query heads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_option("--kv-heads", a.n_kv_heads, "key/value heads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_option("--kv-cache-dtype", c.attention_kv_dtype, "")
      ->check(CLI::IsMember({"float32", "bfloat16", "fp8"}))
      ->capture_default_str();
  app->add_option("--density", a.density, "of the planted stripes")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app->add_option("--alpha", a.alpha, "")->check(CLI::Range(0.01, 1.0))->capture_default_str();
  app->add_option("--backend", c.attention_backend, "")->capture_default_str();
  app->add_option("--threads", a.n_threads, "0 = all processors")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_flag("--json", a.json, "JSON instead of the table");
}

void AddBenchLoad(Commands& c) {
  c.bench_load = c.bench->add_subcommand(
      "load", "Short requests beside long prompts, over HTTP, of any OpenAI-compatible server");
  load::LoadOptions& o = c.load_options;
  CLI::App* app = c.bench_load;
  const auto add = [app](const char* name, auto& value, const char* help) {
    // Scripts append what they override.
    return app->add_option(name, value, help)->take_last()->capture_default_str();
  };
  add("--url", o.url, "http://host:port of the server");
  app->add_option("--scenario", o.scenarios,
                  "mixed, parallel, cancel, retry, health, streams [all]")
      ->delimiter(',');
  app->add_option("--model", o.model, "name in the requests [the first of /v1/models]");
  app->add_option("--api-key", o.api_key, "sent as a bearer token");
  app->add_flag("--chat", o.chat, "ask /v1/chat/completions, not /v1/completions");
  app->add_option("--sparse-mode", o.sparse_mode, "of a Longhaul server's prefill [its default]");
  app->add_option("--extra-body", o.extra_body, "JSON object merged into every request");
  add("--short-tokens", o.short_tokens, "prompt tokens of a short request");
  add("--short-output", o.short_output, "tokens of its answer");
  add("--long-tokens", o.long_tokens, "prompt tokens of the long one");
  add("--utilisation", o.utilisation, "share of the time that short requests alone would take");
  add("--seconds", o.seconds, "of each window under load");
  add("--parallel", o.parallel, "long prompts at once");
  add("--parallel-tokens", o.parallel_tokens, "tokens of each");
  add("--cancels", o.cancels, "moments to cancel at");
  add("--retries", o.retries, "rounds; the median is reported");
  add("--new-tokens", o.new_tokens, "appended to a known prompt");
  add("--body-bytes", o.body_bytes, "of the body that is sent while /health is polled");
  add("--streams", o.streams, "at once");
  add("--stream-output", o.stream_output, "tokens of each of their answers");
  add("--slice-ms", o.slice_ms, "the server's --slice-ms; part of the stated bounds");
  add("--timeout", o.timeout_s, "seconds that one request may take");
  add("--seed", o.seed, "of arrivals and texts");
  app->add_option("--json", o.json_path, "write all numbers to this file");
  app->add_option("--svg", o.svg_path, "write a plot of the scenario mixed to this file");
}

void AddBenchLinear(Commands& c) {
  c.bench_linear = c.bench->add_subcommand(
      "linear", "Speed of linear layers by weight format, beside the machine's measured peaks");
  BenchLinearOptions& o = c.linear_options;
  CLI::App* app = c.bench_linear;
  app->add_option("--shapes", o.shapes, "outputs x inputs")->delimiter(',')->capture_default_str();
  app->add_option("--rows", o.rows, "tokens at a time")->delimiter(',')->capture_default_str();
  app->add_option("--threads", o.n_threads, "0 = all processors")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_flag("--json", o.json, "JSON instead of the table");
}

void AddBenchTokenizer(Commands& c) {
  c.bench_tokenizer = c.bench->add_subcommand(
      "tokenizer", "Speed of a model's tokenizer on English and on inputs that are hard for one");
  BenchTokenizerOptions& o = c.tokenizer_options;
  CLI::App* app = c.bench_tokenizer;
  app->add_option("--model", o.model_dir, "folder with the tokenizer")->required();
  app->add_option("--text-file", o.text_file, "in place of the built-in English");
  app->add_option("--megabytes", o.megabytes, "of each input")
      ->check(CLI::Range(0.001, 256.0))
      ->capture_default_str();
  app->add_option("--threads", o.n_threads, "of the second column; 0 = all processors")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_flag("--json", o.json, "JSON instead of the table");
}

void AddCommands(Commands& c) {
  c.app.require_subcommand(1);
  c.app.set_version_flag("--version", kVersion);
  c.serve = c.app.add_subcommand("serve", "Serve a model over HTTP and gRPC");
  c.serve->footer(
      "Every setting can also be given in the environment (--max-model-len as "
      "LONGHAUL_MAX_MODEL_LEN)\n"
      "or in the YAML file (max-model-len: 131072). Order: flag, environment, file, default.");
  c.serve_flags.AddTo(c.serve, /*with_serve_flags=*/true);
  AddGenerate(c);
  AddEval(c);
  AddCalibrate(c);
  AddBench(c);
  AddBenchLoad(c);
  AddBenchLinear(c);
  AddBenchTokenizer(c);
  c.health = c.app.add_subcommand("health", "Exit code 0 when a server is ready");
  c.health_flags.AddSomeTo(c.health, [](const FlagSpec& flag) {
    const std::string_view name = flag.name;
    return name == "host" || name == "port";
  });
  c.version = c.app.add_subcommand("version", "Print the version");
}

int UsageError(const std::string& message) {
  fmt::print(stderr, "longhaul: {}\n", message);
  return kUsageError;
}

void StartLogging(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("longhaul"));
  spdlog::set_level(spdlog::level::from_str(level));
}

// Merges the settings of a subcommand and runs it.
template <typename Run>
int RunWith(const TableFlags& flags, const Environment& environment, const Run& run) {
  if (const std::optional<std::string> error = flags.Unknown()) return UsageError(*error);
  const absl::StatusOr<ServerConfig> config = flags.Load(environment);
  if (!config.ok()) {
    return UsageError(
        std::string(config.status().message().data(), config.status().message().size()));
  }
  StartLogging(config->log_level);
  return run(*config);
}

// With --shape and without.
int RunTtft(Commands& c, const ServerConfig& config) {
  const BenchTtftOptions& ttft = c.ttft_options;
  BenchShapeOptions& options = c.shape_options;
  if (options.shape.empty()) {
    if (!options.density && options.decode_depths.empty()) return RunBenchTtft(config, ttft);
    return UsageError("--decode-depths and --density go with --shape");
  }
  if (!config.model.empty() || !ttft.text_file.empty()) {
    return UsageError("--shape takes neither --model nor --text-file: weights are random");
  }
  // The lengths and policies that are for looking at a model would take an hour here.
  const auto given = [&](const char* name) { return c.bench_ttft->get_option(name)->count() > 0; };
  options.lengths = given("--lengths") ? ttft.lengths : std::vector<int64_t>{512, 4096};
  options.modes = given("--modes") ? ttft.modes : std::vector<std::string>{"dense"};
  options.repeats = ttft.repeats;
  options.json = ttft.json;
  return RunBenchShape(config, options);
}

int RunAttention(Commands& c) {
  const absl::StatusOr<BackendKind> kind = ParseBackendKind(c.attention_backend);
  if (!kind.ok()) return UsageError(std::string(kind.status().message()));
  BenchAttentionOptions& options = c.attention_options;
  if (options.n_heads % options.n_kv_heads != 0) {
    return UsageError("--heads must be a multiple of --kv-heads");
  }
  options.backend = *kind;
  if (c.attention_kv_dtype == "bfloat16") options.kv_dtype = DType::kBF16;
  if (c.attention_kv_dtype == "fp8") options.kv_dtype = DType::kF8E4M3;
  return RunBenchAttention(options);
}

}  // namespace

int RunCli(int argc, const char* const* argv, const Environment& environment) {
  Commands c;
  AddCommands(c);
  try {
    c.app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return c.app.exit(error) == 0 ? 0 : kUsageError;
  }
  if (c.serve->parsed()) return RunWith(c.serve_flags, environment, RunServe);
  if (c.generate->parsed()) {
    return RunWith(c.generate_flags, environment, [&c](const ServerConfig& config) {
      return RunGenerate(config, c.generate_options);
    });
  }
  if (c.eval->parsed()) {
    return RunWith(c.eval_flags, environment,
                   [&c](const ServerConfig& config) { return RunEval(config, c.eval_options); });
  }
  if (c.calibrate->parsed()) {
    return RunWith(c.calibrate_flags, environment, [&c](const ServerConfig& config) {
      return RunCalibrate(config, c.calibrate_options);
    });
  }
  if (c.bench_ttft->parsed()) {
    return RunWith(c.ttft_flags, environment,
                   [&c](const ServerConfig& config) { return RunTtft(c, config); });
  }
  if (c.bench_attention->parsed()) return RunAttention(c);
  if (c.bench_linear->parsed()) return RunBenchLinear(c.linear_options);
  if (c.bench_load->parsed()) return RunBenchLoad(c.load_options);
  if (c.bench_tokenizer->parsed()) return RunBenchTokenizer(c.tokenizer_options);
  if (c.health->parsed()) return RunWith(c.health_flags, environment, RunHealth);
  fmt::print("longhaul {}\n", kVersion);
  return 0;
}

}  // namespace longhaul
