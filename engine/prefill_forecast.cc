#include "engine/prefill_forecast.h"

#include <algorithm>
#include <limits>

namespace longhaul {
namespace {

class Forecast {
 public:
  Forecast(std::span<const ForecastJob> jobs, int64_t n_admitted, const ForecastRules& rules)
      : jobs_(jobs),
        rules_(rules),
        max_long_(std::max<int64_t>(1, rules.max_prefills - 1)),
        times_(jobs.size()),
        left_us_(jobs.size()),
        done_(jobs.size(), false) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      left_us_[i] = std::max(0.0, jobs[i].left_us);
      const auto job = static_cast<int64_t>(i);
      if (job < n_admitted) {
        Admit(job);
      } else {
        waiting_.push_back(job);
      }
    }
  }

  std::vector<ForecastTime> Run() {
    AdmitWaiting();
    while (!active_.empty()) {
      ChooseRates();
      // Whoever is done first; those after it in the order of arrival where several are.
      int64_t first = -1;
      double first_us = std::numeric_limits<double>::max();
      for (size_t i = 0; i < active_.size(); ++i) {
        if (rates_[i] <= 0) continue;
        const double us = left_us_[active_[i]] / rates_[i];
        if (us < first_us) {
          first_us = us;
          first = static_cast<int64_t>(i);
        }
      }
      if (first < 0) break;  // a circle of leaders: not predictable
      now_us_ += first_us;
      for (size_t i = 0; i < active_.size(); ++i) left_us_[active_[i]] -= rates_[i] * first_us;
      const int64_t job = active_[first];
      active_.erase(active_.begin() + first);
      times_[job].done_us = now_us_;
      done_[job] = true;
      n_long_ -= jobs_[job].is_long;
      AdmitWaiting();
    }
    return std::move(times_);
  }

 private:
  void Admit(int64_t job) {
    active_.push_back(job);
    n_long_ += jobs_[job].is_long;
    times_[job].admitted_us = now_us_;
  }

  void AdmitWaiting() {
    std::erase_if(waiting_, [this](int64_t job) {
      if (static_cast<int64_t>(active_.size()) >= rules_.max_prefills) return false;
      if (jobs_[job].is_long && n_long_ >= max_long_) return false;
      Admit(job);
      return true;
    });
  }

  bool Blocked(int64_t job) const { return jobs_[job].leader >= 0 && !done_[jobs_[job].leader]; }

  // Of the best priority only: long ones share alike; short ones go one after the other; where
  // there are both, the short ones have short_share.
  void ChooseRates() {
    int32_t best_priority = std::numeric_limits<int32_t>::max();
    for (int64_t job : active_) {
      if (!Blocked(job)) best_priority = std::min(best_priority, jobs_[job].priority);
    }
    const auto runs = [&](int64_t job) {
      return !Blocked(job) && jobs_[job].priority == best_priority;
    };
    int64_t n_long = 0, n_short = 0;
    for (int64_t job : active_) {
      if (runs(job)) ++(jobs_[job].is_long ? n_long : n_short);
    }
    const double short_share = n_long > 0 ? rules_.short_share : 1.0;
    const double long_share = n_short > 0 ? 1.0 - rules_.short_share : 1.0;
    rates_.assign(active_.size(), 0.0);
    bool short_runs = false;
    for (size_t i = 0; i < active_.size(); ++i) {
      if (!runs(active_[i])) continue;
      if (jobs_[active_[i]].is_long) {
        rates_[i] = long_share / static_cast<double>(n_long);
      } else if (!short_runs) {
        rates_[i] = short_share;
        short_runs = true;
      }
    }
  }

  std::span<const ForecastJob> jobs_;
  const ForecastRules rules_;
  const int64_t max_long_;
  std::vector<ForecastTime> times_;
  std::vector<double> left_us_;
  std::vector<bool> done_;
  std::vector<int64_t> active_;   // jobs with a slot, in the order of admission
  std::vector<double> rates_;     // parallel to active_
  std::vector<int64_t> waiting_;  // jobs
  int64_t n_long_ = 0;            // of active_
  double now_us_ = 0;
};

}  // namespace

std::vector<ForecastTime> ForecastPrefills(std::span<const ForecastJob> jobs, int64_t n_admitted,
                                           const ForecastRules& rules) {
  return Forecast(jobs, n_admitted, rules).Run();
}

}  // namespace longhaul
