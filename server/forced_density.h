// ForcedDensityBackend: random weights attend to everything alike, so that no policy could leave
// out anything; this decorator makes the sparse prefill of such a model cost what it would cost at
// a given density. Every op of the pipeline runs, the choice that it comes to is then replaced: no
// head streams, each gets evenly spread stripes until its rows keep `density` of their causal
// pairs, and the audit repairs nothing. Local keys alone may be more: early epochs keep that.
// For benchmarks, on host backends.
#pragma once

#include "kernels/forwarding_backend.h"

namespace longhaul {

class ForcedDensityBackend : public ForwardingBackend {
 public:
  // density in (0, 1].
  ForcedDensityBackend(Backend& to, double density) : ForwardingBackend(to), density_(density) {}

  void SelectStreaming(const SelectStreamingArgs& args) override;
  void SelectKeys(const SelectKeysArgs& args) override;
  void Audit(const AuditArgs& args) override;

 private:
  const double density_;
};

}  // namespace longhaul
