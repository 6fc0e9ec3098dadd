#include "server/cmd_calibrate.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <memory>
#include <string>

#include "server/eval/calibration_report.h"
#include "server/eval/calibration_run.h"
#include "server/eval/files.h"

namespace longhaul {
namespace {

constexpr int kTargetMissed = 3;

absl::StatusOr<eval::Calibration> Calibrate(const ServerConfig& config,
                                            const eval::CalibrateOptions& options) {
  LH_RETURN_IF_ERROR(eval::CheckOptions(options));
  LH_RETURN_IF_ERROR(eval::CheckSpace(options, config));
  LH_RETURN_IF_ERROR(eval::CheckWritable("--out", options.out_path));
  LH_RETURN_IF_ERROR(eval::CheckWritable("--json", options.json_path));
  LH_ASSIGN_OR_RETURN(const std::string text, eval::ReadText("--text", options.text_file));
  LH_ASSIGN_OR_RETURN(eval::ResultStore store,
                      eval::ResultStore::Open("--resume", options.state_dir));
  if (store.n_unreadable() > 0) {
    spdlog::warn("{}: {} results could not be read and are measured again", options.state_dir,
                 store.n_unreadable());
  }
  LH_ASSIGN_OR_RETURN(std::unique_ptr<eval::ModelTarget> model, eval::ModelTarget::Open(config));
  LH_ASSIGN_OR_RETURN(eval::Calibration calibration,
                      eval::RunCalibration(options, config, text, *model, store, stderr));
  fmt::print("{}", eval::CalibrationTable(options, calibration));
  LH_RETURN_IF_ERROR(
      eval::WriteFile(options.json_path, eval::CalibrationJson(options, config, calibration)));
  LH_RETURN_IF_ERROR(
      eval::WriteFile(options.out_path, eval::CalibrationYaml(options, config, calibration)));
  fmt::print("Written: {}\n", options.out_path);
  return calibration;
}

}  // namespace

int RunCalibrate(const ServerConfig& config, const eval::CalibrateOptions& options) {
  const absl::StatusOr<eval::Calibration> calibration = Calibrate(config, options);
  if (calibration.ok()) {
    return calibration->verdict == eval::CalibrationVerdict::kMissed ? kTargetMissed : 0;
  }
  const absl::Status& status = calibration.status();
  fmt::print(stderr, "longhaul calibrate: {}\n", std::string(status.message()));
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? 2 : 1;
}

}  // namespace longhaul
