#include "server/cmd_eval.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <fstream>
#include <memory>

#include "server/eval/html_report.h"
#include "server/eval/make_report.h"
#include "server/eval/run.h"

namespace longhaul {
namespace {

absl::Status WriteFile(const std::string& path, const std::string& text) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("cannot write {}", path));
}

// Now, not after hours of measuring.
absl::Status CheckWritable(const char* flag, const std::string& path) {
  if (path.empty() || std::ofstream(path, std::ios::app)) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}: cannot write {}", flag, path));
}

absl::Status Evaluate(const ServerConfig& config, const eval::EvalOptions& options) {
  LH_RETURN_IF_ERROR(eval::CheckOptions(options));
  LH_RETURN_IF_ERROR(CheckWritable("--json", options.json_path));
  LH_RETURN_IF_ERROR(CheckWritable("--html", options.html_path));
  LH_ASSIGN_OR_RETURN(eval::ResultStore store, eval::ResultStore::Open(options.out_dir));
  if (store.n_unreadable() > 0) {
    spdlog::warn("{}: {} results could not be read and are measured again", options.out_dir,
                 store.n_unreadable());
  }
  std::unique_ptr<eval::EvalTarget> target;
  eval::ModelTarget* model = nullptr;
  if (options.url.empty()) {
    LH_ASSIGN_OR_RETURN(auto opened, eval::ModelTarget::Open(config));
    model = opened.get();
    target = std::move(opened);
  } else {
    LH_ASSIGN_OR_RETURN(target, eval::OpenUrlTarget(options, config.model));
  }
  LH_ASSIGN_OR_RETURN(const eval::EvalReport report,
                      eval::RunEval(options, *target, model, store, stderr));
  fmt::print("{}", eval::ReportTables(report));
  LH_RETURN_IF_ERROR(WriteFile(options.json_path, eval::ReportJson(report)));
  if (options.html_path.empty()) return absl::OkStatus();
  return WriteFile(options.html_path, eval::HtmlReport(report));
}

}  // namespace

int RunEval(const ServerConfig& config, const eval::EvalOptions& options) {
  const absl::Status status = Evaluate(config, options);
  if (status.ok()) return 0;
  fmt::print(stderr, "longhaul eval: {}\n", std::string(status.message()));
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? 2 : 1;
}

}  // namespace longhaul
