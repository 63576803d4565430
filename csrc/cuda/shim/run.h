// Runs a kernel's source on the CPU: a launch's blocks one after another, each a block of fibers. Free of torch.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cuda/shim/fibers.h"

namespace zcpipe::gpu::shim {

// The stacks of a block's threads, its shared memory and its groups' tokens. Each stack grows down towards a page that
// may not be touched, and one lies on either side of shared memory.
class Memory {
  public:
    ZCPIPE_SHIM Memory(unsigned threads, size_t shared)
        : page_(size_t(sysconf(_SC_PAGESIZE))),
          stacks_(threads * (page_ + kStack)),
          shared_pages_((shared + page_ - 1) / page_ * page_),
          size_(stacks_ + page_ + shared_pages_ + 2 * page_),
          data_(map()) {
#if !defined(__SANITIZE_THREAD__)
        for (unsigned i = 0; i < threads; ++i) mprotect(stack(i) - page_, page_, PROT_NONE);
        mprotect(data_ + stacks_, page_, PROT_NONE);
        mprotect(data_ + stacks_ + page_ + shared_pages_, page_, PROT_NONE);
#endif
    }
    ZCPIPE_SHIM ~Memory() { munmap(data_, size_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // Between two blocks: ThreadSanitizer must forget the first one's use of the memory, and does so for fresh pages.
    ZCPIPE_SHIM void renew() {
#if defined(__SANITIZE_THREAD__)
        munmap(data_, size_);
        data_ = map();
#endif
    }

    ZCPIPE_SHIM char* stack(unsigned i) const { return data_ + i * (page_ + kStack) + page_; }
    ZCPIPE_SHIM char* shared_end() const { return data_ + stacks_ + page_ + shared_pages_; }
    ZCPIPE_SHIM char* tokens(unsigned group) const { return shared_end() + page_ + 2 * group; }

  private:
    ZCPIPE_SHIM char* map() const {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* pages = mmap(nullptr, size_, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (pages == MAP_FAILED) die("no memory for a block's threads");
        return static_cast<char*>(pages);
    }

    size_t page_, stacks_, shared_pages_, size_;
    char* data_;
};

// The next thread in the schedule, or block->size where every one waits or has returned.
ZCPIPE_SHIM inline unsigned next_thread(uint64_t& random) {
    const unsigned n = block->size;
    const unsigned start = schedule.order == Order::kRandom ? unsigned(draw(random) % n) : 0;
    for (unsigned k = 0; k < n; ++k) {
        unsigned i = (start + k) % n;
        if (schedule.order == Order::kReverse) i = n - 1 - i;
        if (block->threads[i].state == State::kReady) return i;
    }
    return n;
}

ZCPIPE_SHIM inline void run_block(Memory& memory, size_t shared, uint64_t& random) {
    memory.renew();
    block->shared = nullptr;
    if (shared > 0) {
        block->shared = reinterpret_cast<unsigned char*>(memory.shared_end() - shared);
        std::memset(block->shared, 0xFF, shared);
    }
    block->all = {block->size, 0, false, memory.tokens(0), {}};
    for (unsigned i = 0; i < kMostThreads / kLanes; ++i) block->warps[i] = {kLanes, 0, false, memory.tokens(1 + i), {}};
    for (unsigned i = 0; i < block->size; ++i) {
        Thread& thread = block->threads[i];
        thread.stack = memory.stack(i);
        thread.state = State::kReady;
        thread.waits_for = nullptr;
        thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack;
        thread.context.uc_stack.ss_size = kStack;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, thread_main, 0);
        thread.context.uc_stack = {};  // AddressSanitizer would forget the stack's red zones at every switch
#if defined(__SANITIZE_THREAD__)
        if (block->fibers[i] == nullptr) block->fibers[i] = __tsan_create_fiber(0);
#endif
    }
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&block_start);
#endif
    for (unsigned i = next_thread(random); i < block->size; i = next_thread(random)) to_thread(i);
    for (unsigned i = 0; i < block->size; ++i) {
        const Thread& thread = block->threads[i];
        if (thread.state == State::kWaits)
            die("a thread waits for others that have returned or wait elsewhere", thread.waits_for->site,
                thread.waits_for->site);
    }
}

// The block that the schedule runs as number k of n: the last first, or by a permutation i -> (a i + b) mod n.
ZCPIPE_SHIM inline uint64_t scheduled_block(uint64_t k, uint64_t n, uint64_t seed) {
    if (schedule.order == Order::kForward) return k;
    if (schedule.order == Order::kReverse) return n - 1 - k;
    uint64_t a = draw(seed) % n, b = n, shift = draw(seed) % n;
    for (uint64_t tries = 0; tries < n; ++tries, a = (a + 1) % n) {  // the next factor that has no divisor in common
        uint64_t x = a;
        for (b = n; x != 0;) {
            const uint64_t rest = b % x;
            b = x;
            x = rest;
        }
        if (b == 1) break;
    }
    return (a * k + shift) % n;
}

template <typename Kernel>
void call(const void* kernel) {
    (*static_cast<const Kernel*>(kernel))();
}

ZCPIPE_SHIM inline void run_grid(dim3 grid, dim3 threads, size_t shared, void (*body)(const void*),
                                 const void* arguments) {
    const uint64_t size = uint64_t{threads.x} * threads.y * threads.z, n = uint64_t{grid.x} * grid.y * grid.z;
    if (size == 0 || size > kMostThreads || threads.z > 64) die("a launch with no threads or too many");
    if (n == 0 || grid.x >= 1u << 31 || grid.y > 65535 || grid.z > 65535) die("a launch with no blocks or too many");
    if (shared > kMostShared || shared % 16 != 0) die("shared memory must be a multiple of 16 bytes, at most 163 KiB");
    if (block != nullptr) die("a launch inside a launch");
    block = static_cast<Block*>(std::calloc(1, sizeof(Block)));
    block->size = unsigned(size);
    block->body = body;
    block->arguments = arguments;
    gridDim = grid;
    blockDim = threads;
#if defined(__SANITIZE_THREAD__)
    block->scheduler_fiber = __tsan_get_current_fiber();
#endif
    Memory memory(block->size, shared);
    uint64_t random = schedule.seed;
    for (uint64_t k = 0; k < n; ++k) {
        const uint64_t i = scheduled_block(k, n, schedule.seed);
        blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        block->fibers = fibers[k % kTurns];
        run_block(memory, shared, random);
    }
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&launch_end);
#endif
    counters.launches += 1;
    counters.blocks += int64_t(n);
    counters.threads += int64_t(n * size);
    std::free(block);
    block = nullptr;
}

template <typename Kernel>
void run(dim3 grid, dim3 threads, size_t shared, const Kernel& kernel) {
    run_grid(grid, threads, shared, &call<Kernel>, &kernel);
}

}  // namespace zcpipe::gpu::shim
