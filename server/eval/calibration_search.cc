#include "server/eval/calibration_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <utility>

#include "kernels/base/check.h"

namespace longhaul::eval {
namespace {

constexpr double kAlphas[] = {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99};
constexpr int64_t kMinWindow = 64;
constexpr int64_t kMinRows = 8, kMaxRows = 256;
// Times that differ by less are the same: a machine's noise. Then density decides.
constexpr double kSameTime = 0.03;
constexpr double kLeastAllowed = 1e-6;  // of a target that allows no loss at all

struct Criterion {
  const char* name;
  double strain;
};

std::array<Criterion, 5> Criteria(const AccuracyTarget& target, const LengthMeasure& m) {
  const auto strain = [](double lost, double allowed) {
    return std::max(0.0, lost) / std::max(allowed, kLeastAllowed);
  };
  return {{{"agreement", strain(1 - m.agreement, 1 - target.min_agreement)},
           {"KL", strain(m.kl, target.max_kl)},
           {"perplexity", strain(m.perplexity_rise, target.max_perplexity_rise)},
           {"recall", strain(1 - m.recall_mean, 1 - target.min_recall)},
           {"recall p1", strain(1 - m.recall_p1, 1 - target.min_recall_p1)}}};
}

// Rounding of 1 - 0.98 and the like must not decide.
bool Misses(double strain) { return !(strain <= 1 + 1e-9); }

bool IsBetter(const Trial& a, const Trial& b) {
  const double a_s = a.PrefillSeconds(), b_s = b.PrefillSeconds();
  if (a_s < b_s * (1 - kSameTime)) return true;
  return a_s <= b_s * (1 + kSameTime) && a.Density() < b.Density();
}

double RungAbove(double alpha) {
  const double* rung = std::upper_bound(std::begin(kAlphas), std::end(kAlphas), alpha);
  return rung == std::end(kAlphas) ? 1.0 : *rung;
}

std::optional<double> RungBelow(double alpha) {
  const double* rung = std::lower_bound(std::begin(kAlphas), std::end(kAlphas), alpha);
  if (rung == std::begin(kAlphas)) return std::nullopt;
  return *std::prev(rung);
}

class Search {
 public:
  Search(const SearchSpace& space, const AccuracyTarget& target, const MeasureCandidate& measure)
      : space_(space), target_(target), measure_(measure) {}

  absl::StatusOr<Calibration> Run() {
    LH_ASSIGN_OR_RETURN(const size_t dense, Try({.alpha = 1}, TextPart::kSearch));
    LH_ASSIGN_OR_RETURN(std::optional<size_t> best, FirstThatMeets());
    if (!best) return Missed(TextPart::kSearch);
    LH_RETURN_IF_ERROR(Descend(&*best, LowerAlpha));
    LH_RETURN_IF_ERROR(EitherWay(
        &*best, [](Candidate c) { return Windows(c, c.window / 2); },
        [](Candidate c) { return Windows(c, c.window * 2); }));
    LH_RETURN_IF_ERROR(EitherWay(
        &*best, [](Candidate c) { return Rows(c, c.rows / 2); },
        [](Candidate c) { return Rows(c, c.rows * 2); }));
    LH_RETURN_IF_ERROR(Descend(&*best, LowerAlpha));
    if (At(*best).PrefillSeconds() >= At(dense).PrefillSeconds()) {
      return Finish(CalibrationVerdict::kNotFaster, *best);
    }
    return Validate(At(*best).candidate);
  }

 private:
  using Step = std::function<std::optional<Candidate>(Candidate)>;

  static std::optional<Candidate> LowerAlpha(Candidate c) {
    const std::optional<double> alpha = RungBelow(c.alpha);
    if (!alpha) return std::nullopt;
    c.alpha = *alpha;
    return c;
  }
  static std::optional<Candidate> Windows(Candidate c, int64_t window) {
    c.window = window / 64 * 64;
    return c;
  }
  static std::optional<Candidate> Rows(Candidate c, int64_t rows) {
    c.rows = rows;
    return c;
  }

  const Trial& At(size_t i) const { return result_.trials[i]; }

  bool IsInside(const Candidate& c) const {
    return c.window >= kMinWindow && c.window <= space_.max_window && c.rows >= kMinRows &&
           c.rows <= kMaxRows;
  }

  // Index of the trial; measured once.
  absl::StatusOr<size_t> Try(const Candidate& candidate, TextPart part) {
    const auto same = [&](const Trial& t) { return t.candidate == candidate && t.part == part; };
    const auto known = std::find_if(result_.trials.begin(), result_.trials.end(), same);
    if (known != result_.trials.end()) {
      return static_cast<size_t>(known - result_.trials.begin());
    }
    Trial trial{.candidate = candidate, .part = part, .lengths = {}, .strain = 0};
    LH_ASSIGN_OR_RETURN(trial.lengths, measure_(candidate, part));
    for (const LengthMeasure& length : trial.lengths) {
      trial.strain = std::max(trial.strain, Strain(target_, length));
    }
    result_.trials.push_back(std::move(trial));
    return result_.trials.size() - 1;
  }

  // From the start up the ladder.
  absl::StatusOr<std::optional<size_t>> FirstThatMeets() {
    for (Candidate c = space_.start; !c.IsDense(); c.alpha = RungAbove(c.alpha)) {
      LH_ASSIGN_OR_RETURN(const size_t tried, Try(c, TextPart::kSearch));
      if (At(tried).Meets()) return std::optional<size_t>(tried);
    }
    return std::optional<size_t>();
  }

  // Steps while they gain and meet the target.
  absl::Status Descend(size_t* best, const Step& step) {
    for (;;) {
      const std::optional<Candidate> next = step(At(*best).candidate);
      if (!next || !IsInside(*next)) return absl::OkStatus();
      LH_ASSIGN_OR_RETURN(const size_t tried, Try(*next, TextPart::kSearch));
      if (!At(tried).Meets() || !IsBetter(At(tried), At(*best))) return absl::OkStatus();
      *best = tried;
    }
  }

  // Upwards only where downwards gained nothing.
  absl::Status EitherWay(size_t* best, const Step& down, const Step& up) {
    const size_t before = *best;
    LH_RETURN_IF_ERROR(Descend(best, down));
    return *best == before ? Descend(best, up) : absl::OkStatus();
  }

  // On held-out text; what misses there gets a higher alpha.
  absl::StatusOr<Calibration> Validate(Candidate c) {
    LH_ASSIGN_OR_RETURN(const size_t dense, Try({.alpha = 1}, TextPart::kHeldOut));
    for (; !c.IsDense(); c.alpha = RungAbove(c.alpha)) {
      LH_ASSIGN_OR_RETURN(const size_t tried, Try(c, TextPart::kHeldOut));
      if (!At(tried).Meets()) continue;
      const bool faster = At(tried).PrefillSeconds() < At(dense).PrefillSeconds();
      return Finish(faster ? CalibrationVerdict::kFound : CalibrationVerdict::kNotFaster, tried);
    }
    return Missed(TextPart::kHeldOut);
  }

  absl::StatusOr<Calibration> Missed(TextPart part) {
    std::optional<size_t> closest;
    for (size_t i = 0; i < result_.trials.size(); ++i) {
      if (At(i).part != part || At(i).candidate.IsDense()) continue;
      if (!closest || At(i).strain < At(*closest).strain) closest = i;
    }
    return Finish(CalibrationVerdict::kMissed, closest.value_or(0));
  }

  Calibration Finish(CalibrationVerdict verdict, size_t best) {
    result_.verdict = verdict;
    result_.best = best;
    return std::move(result_);
  }

  const SearchSpace& space_;
  const AccuracyTarget& target_;
  const MeasureCandidate& measure_;
  Calibration result_;
};

}  // namespace

double Strain(const AccuracyTarget& target, const LengthMeasure& measure) {
  double worst = 0;
  for (const Criterion& criterion : Criteria(target, measure)) {
    worst = std::max(worst, criterion.strain);
  }
  return worst;
}

std::string MissedBy(const AccuracyTarget& target, const LengthMeasure& measure) {
  std::vector<std::string> names;
  for (const Criterion& criterion : Criteria(target, measure)) {
    if (Misses(criterion.strain)) names.emplace_back(criterion.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

bool Trial::Meets() const { return !Misses(strain); }

double Trial::PrefillSeconds() const {
  double sum = 0;
  for (const LengthMeasure& length : lengths) sum += length.prefill_s;
  return sum;
}

double Trial::Density() const {
  double sum = 0;
  for (const LengthMeasure& length : lengths) sum += length.density;
  return lengths.empty() ? 1 : sum / static_cast<double>(lengths.size());
}

absl::StatusOr<Calibration> SearchCalibration(const SearchSpace& space,
                                              const AccuracyTarget& target,
                                              const MeasureCandidate& measure) {
  LH_CHECK(!space.start.IsDense());
  return Search(space, target, measure).Run();
}

}  // namespace longhaul::eval
