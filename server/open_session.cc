#include "server/open_session.h"

#include <spdlog/spdlog.h>

#include <string>
#include <utility>

#include "engine/runner.h"
#include "kernels/backend.h"

namespace longhaul {

absl::StatusOr<std::unique_ptr<Session>> OpenSession(
    const ServerConfig& config, std::function<void(const RequestRecord&)> on_finished,
    StepObserver on_step) {
  if (config.model.empty()) {
    return absl::InvalidArgumentError(
        "no model given: name a Hugging Face model folder with --model (try --model "
        "models/lookup)");
  }
  LH_ASSIGN_OR_RETURN(EngineConfig engine_config, config.ToEngineConfig());
  LH_ASSIGN_OR_RETURN(const BackendKind kind, ParseBackendKind(config.backend));
  std::string why_cpu;
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                      CreateBackend(kind, static_cast<int>(config.threads), &why_cpu));
  if (!why_cpu.empty()) spdlog::info("the CPU serves: {}", why_cpu);

  MemoryPlan plan;
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Executor> runner,
                      LoadRunner(config.model, std::move(backend), engine_config, &plan));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                      Engine::Create(engine_config, std::move(runner), std::move(on_step)));
  SessionConfig session_config;
  session_config.model_dir = config.model;
  session_config.served_model_name = config.ServedModelName();
  session_config.chat_template_file = config.chat_template;
  session_config.use_generation_config = config.generation_config == "auto";
  session_config.sparse = engine_config.sparse;
  session_config.default_max_tokens = config.default_max_tokens;
  session_config.prefix_cache_per_key = config.prefix_cache_per_key;
  session_config.tokenizer_threads = static_cast<int>(config.threads);
  session_config.on_finished = std::move(on_finished);
  return Session::Create(session_config, std::move(engine));
}

}  // namespace longhaul
