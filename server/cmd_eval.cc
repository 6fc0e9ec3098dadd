#include "server/cmd_eval.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>

#include "server/eval/files.h"
#include "server/eval/html_report.h"
#include "server/eval/make_report.h"
#include "server/eval/report_tables.h"
#include "server/eval/run.h"

namespace longhaul {
namespace {

absl::Status Evaluate(const ServerConfig& config, const eval::EvalOptions& options) {
  LH_RETURN_IF_ERROR(eval::CheckOptions(options));
  LH_RETURN_IF_ERROR(eval::CheckWritable("--json", options.json_path));
  LH_RETURN_IF_ERROR(eval::CheckWritable("--html", options.html_path));
  LH_RETURN_IF_ERROR(eval::CheckWritable("--markdown", options.markdown_path));
  LH_ASSIGN_OR_RETURN(eval::ResultStore store, eval::ResultStore::Open("--out", options.out_dir));
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
  fmt::print("{}", eval::ReportText(report));
  LH_RETURN_IF_ERROR(eval::WriteFile(options.json_path, eval::ReportJson(report)));
  LH_RETURN_IF_ERROR(eval::WriteFile(options.markdown_path, eval::ReportMarkdown(report)));
  if (options.html_path.empty()) return absl::OkStatus();
  return eval::WriteFile(options.html_path, eval::HtmlReport(report));
}

}  // namespace

int RunEval(const ServerConfig& config, const eval::EvalOptions& options) {
  const absl::Status status = Evaluate(config, options);
  if (status.ok()) return 0;
  fmt::print(stderr, "longhaul eval: {}\n", std::string(status.message()));
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? 2 : 1;
}

}  // namespace longhaul
