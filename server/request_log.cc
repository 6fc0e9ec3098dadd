#include "server/request_log.h"

#include <spdlog/spdlog.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "server/api/openai_response.h"
#include "server/api/status_map.h"

namespace longhaul {
namespace {

using Json = nlohmann::ordered_json;

// To a microsecond: shorter lines than the doubles' own digits.
double Milliseconds(double us) { return std::round(us) / 1000; }

double Rounded(double share) { return std::round(share * 1e4) / 1e4; }

// The texts of errors that are about what the client sent may quote it.
bool MayQuoteTheClient(absl::StatusCode code) {
  return code == absl::StatusCode::kInvalidArgument || code == absl::StatusCode::kNotFound ||
         code == absl::StatusCode::kUnimplemented || code == absl::StatusCode::kFailedPrecondition;
}

void AddStatus(const RequestRecord& record, Json& line) {
  const absl::Status& status = record.summary.status;
  if (status.ok()) {
    line["status"] = "ok";
    Json reasons = Json::array();
    for (const FinishReason reason : record.finished) {
      reasons.push_back(api::FinishReasonName(reason));
    }
    line["finish_reasons"] = std::move(reasons);
    return;
  }
  line["status"] = record.refused ? "refused" : absl::IsCancelled(status) ? "cancelled" : "failed";
  line["code"] = absl::StatusCodeToString(status.code());
  if (record.refused) {
    line["reason"] = RefusalReason(record);
    line["http_status"] =
        record.http_status != 0 ? record.http_status : api::ToHttpError(status).http_status;
  }
  if (const std::string param = api::ParamOf(status); !param.empty()) line["param"] = param;
  if (!status.message().empty() && !MayQuoteTheClient(status.code())) {
    line["error"] = std::string(status.message().data(), status.message().size());
  }
}

Json PhasesMs(const RequestRecord& record) {
  const api::Timings& t = record.summary.timings;
  const auto ms = [](int64_t us) { return Milliseconds(static_cast<double>(us)); };
  Json phases = {{"read", ms(t.read)},
                 {"parse", ms(t.parse)},
                 {"template", ms(t.template_)},
                 {"tokenize", ms(t.tokenize)}};
  if (!record.refused) {
    phases["queue"] = ms(t.queue);
    phases["prefill"] = ms(t.prefill);
    phases["decode"] = ms(t.decode);
  }
  return phases;
}

}  // namespace

std::string RequestLogLine(const RequestRecord& record) {
  const api::Summary& summary = record.summary;
  Json line = {{"event", "request"},
               {"request_id", record.request_id},
               {"kind", record.chat ? "chat" : "completion"}};
  AddStatus(record, line);
  line["n"] = record.n;
  if (!record.refused) {
    line["prompt_tokens"] = summary.usage.prompt_tokens;
    line["cached_tokens"] = summary.usage.cached_tokens;
    line["output_tokens"] = summary.usage.completion_tokens;
  }
  line["phases_ms"] = PhasesMs(record);
  if (summary.status.ok()) {
    line["ttft_ms"] = Milliseconds(static_cast<double>(summary.timings.ttft));
  }
  line["e2e_ms"] = Milliseconds(record.e2e_s * 1e6);
  const SparseReport& sparse = summary.sparse;
  if (!summary.sparse_mode.empty()) line["sparse_mode"] = summary.sparse_mode;
  if (sparse.causal_pairs > 0) line["density"] = Rounded(sparse.Density());
  if (sparse.n_recalls > 0) {
    line["recall_mean"] = Rounded(sparse.RecallMean());
    line["recall_min"] = Rounded(sparse.recall_min);
    line["n_repaired"] = sparse.n_repaired;
  }
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void LogRequest(const RequestRecord& record) { spdlog::info("{}", RequestLogLine(record)); }

}  // namespace longhaul
