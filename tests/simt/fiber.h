// A fiber that is used again and again: each Run() starts or continues one body. Boost.Context does
// the switch (about 10 ns); this adds what AddressSanitizer must be told. Not for ThreadSanitizer.
#pragma once

#include <boost/context/fiber.hpp>
#include <functional>

namespace longhaul::simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // What the next Resume() begins. The fiber must be idle, and `body` must outlive the run. The
  // body lets no exception out.
  void Begin(const std::function<void()>* body);
  // From the scheduler: runs until the body calls Suspend() or ends.
  void Resume();
  // From inside the body.
  void Suspend();
  bool idle() const { return body_ == nullptr; }

 private:
  boost::context::fiber Main(boost::context::fiber&& scheduler);

  boost::context::fiber fiber_;      // where Resume() goes on
  boost::context::fiber scheduler_;  // where Suspend() goes on
  const std::function<void()>* body_ = nullptr;
  bool is_quitting_ = false;
  // For AddressSanitizer: the saved fake stack of either side, and the scheduler's stack.
  void* own_fake_stack_ = nullptr;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
};

}  // namespace longhaul::simt
