#include "tests/simt/fiber.h"

#include <boost/context/protected_fixedsize_stack.hpp>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)  // gcc
#define LH_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)  // clang
#define LH_SIMT_ASAN 1
#endif
#endif
#if defined(LH_SIMT_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace longhaul::simt {
namespace {

#if defined(LH_SIMT_ASAN)
constexpr size_t kStackBytes = 512 * 1024;
void StartSwitch(void** save, const void* stack, size_t n_bytes) {
  __sanitizer_start_switch_fiber(save, stack, n_bytes);
}
void FinishSwitch(void* save, const void** old_stack, size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(save, old_stack, old_bytes);
}
#else
constexpr size_t kStackBytes = 128 * 1024;
void StartSwitch(void**, const void*, size_t) {}
void FinishSwitch(void*, const void**, size_t*) {}
#endif

}  // namespace

Fiber::Fiber() {
  boost::context::protected_fixedsize_stack allocator(kStackBytes);
  const boost::context::stack_context stack = allocator.allocate();
  stack_ = static_cast<char*>(stack.sp) - kStackBytes;  // the stack grows down from sp
  stack_bytes_ = kStackBytes;
  fiber_ = boost::context::fiber(
      std::allocator_arg, boost::context::preallocated(stack.sp, stack.size, stack), allocator,
      [this](boost::context::fiber&& scheduler) { return Main(std::move(scheduler)); });
}

Fiber::~Fiber() {
  is_quitting_ = true;
  Resume();  // Main returns, which ends the fiber without unwinding it
}

void Fiber::Begin(const std::function<void()>* body) { body_ = body; }

void Fiber::Resume() {
  StartSwitch(&scheduler_fake_stack_, stack_, stack_bytes_);
  fiber_ = std::move(fiber_).resume();
  FinishSwitch(scheduler_fake_stack_, nullptr, nullptr);
}

void Fiber::Suspend() {
  StartSwitch(&own_fake_stack_, scheduler_stack_, scheduler_stack_bytes_);
  scheduler_ = std::move(scheduler_).resume();
  FinishSwitch(own_fake_stack_, &scheduler_stack_, &scheduler_stack_bytes_);
}

boost::context::fiber Fiber::Main(boost::context::fiber&& scheduler) {
  FinishSwitch(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
  scheduler_ = std::move(scheduler);
  while (!is_quitting_) {
    (*body_)();
    body_ = nullptr;
    Suspend();
  }
  StartSwitch(nullptr, scheduler_stack_, scheduler_stack_bytes_);
  return std::move(scheduler_);
}

}  // namespace longhaul::simt
