// From settings to a running model: backend, runner, engine, session. Shared by every command.
#pragma once

#include <functional>
#include <memory>

#include "server/server_config.h"
#include "server/session.h"

namespace longhaul {

// Loads the model and starts the engine. Errors are those of CreateBackend, LoadRunner,
// Engine::Create and Session::Create; each names what to change. Both observers may be empty.
absl::StatusOr<std::unique_ptr<Session>> OpenSession(
    const ServerConfig& config, std::function<void(const RequestRecord&)> on_finished = nullptr,
    StepObserver on_step = nullptr);

}  // namespace longhaul
