// ByteBudget: a bound on the bytes that requests hold at the same time, as they declare them. Any
// thread. It allocates nothing itself; outlives its shares.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>

namespace longhaul {

class ByteBudget {
 public:
  // What somebody holds; given back when it is destroyed. Movable.
  class Share {
   public:
    Share(Share&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), n_bytes_(other.n_bytes_) {}
    Share& operator=(Share&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(n_bytes_, other.n_bytes_);
      return *this;
    }
    ~Share() {
      if (budget_ != nullptr) budget_->n_used_ -= n_bytes_;
    }

   private:
    friend class ByteBudget;
    Share(ByteBudget* budget, int64_t n_bytes) : budget_(budget), n_bytes_(n_bytes) {}

    ByteBudget* budget_;
    int64_t n_bytes_;
  };

  explicit ByteBudget(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  ByteBudget(const ByteBudget&) = delete;
  ByteBudget& operator=(const ByteBudget&) = delete;

  // Nothing when they do not fit now. When nobody holds anything, any number fits.
  std::optional<Share> Take(int64_t n_bytes) {
    int64_t n_used = n_used_;
    do {
      if (n_used > 0 && n_bytes > limit_bytes_ - n_used) return std::nullopt;
    } while (!n_used_.compare_exchange_weak(n_used, n_used + n_bytes));
    return Share(this, n_bytes);
  }

 private:
  const int64_t limit_bytes_;
  std::atomic<int64_t> n_used_{0};
};

}  // namespace longhaul
