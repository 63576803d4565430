// Runs a kernel's source on the CPU: a fiber for every CUDA thread, the blocks one after another. Free of torch.
//
// The fibers of a block share one system thread and change places at barriers and shuffles only, in one of three
// orders. Everything that a GPU would leave undefined and that can be seen from here ends the program with a message.
// Under ThreadSanitizer every CUDA thread is a thread of its own: what orders two of them is the start and the end of
// their launch and the barriers they share, so two blocks of a launch are never ordered, nor are lanes by a shuffle.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <source_location>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "cuda/shim/types.h"

// The shim's own accesses are not the kernel's: the sanitizer must not see them.
#define ZCPIPE_SHIM __attribute__((noinline, no_sanitize("thread")))

namespace zcpipe::gpu::shim {

using Site = std::source_location;

enum class Order { kForward, kReverse, kRandom };

struct Schedule {
    Order order = Order::kForward;
    uint64_t seed = 0;  // of kRandom
};

// What has run since the program set it to zero.
struct Counters {
    int64_t launches, blocks, threads;
    int64_t block_barriers, warp_barriers, exchanges;  // one for all the threads that meet
    int64_t events[8];                                 // of count_event
};

inline Schedule schedule;
inline Counters counters;
inline unsigned omitted_line = 0;  // barriers at this line of `omitted_file` do nothing: a seeded bug
inline const char* omitted_file = "";

// The places of all barriers that were met.
constexpr unsigned kMostSites = 64;
inline Site sites[kMostSites];
inline unsigned site_count = 0;

constexpr unsigned kLanes = 32, kMostThreads = 1024;
constexpr size_t kMostShared = 163 * 1024;  // of sm_80, the smallest we build for
constexpr size_t kStack = 256 * 1024;

[[noreturn]] ZCPIPE_SHIM inline void die(const char* what, Site a, Site b) {
    std::fprintf(stderr, "shim: %s (%s:%u and %s:%u)\n", what, a.file_name(), a.line(), b.file_name(), b.line());
    std::abort();
}

[[noreturn]] ZCPIPE_SHIM inline void die(const char* what) {
    std::fprintf(stderr, "shim: %s\n", what);
    std::abort();
}

// Threads that wait for one another: a block or a warp. Tokens carry ThreadSanitizer's order from one barrier to the
// threads that leave it; there are two in turn, because a fast thread reaches the next barrier before a slow one
// leaves.
struct Group {
    unsigned size, arrived;
    bool second;
    char tokens[2];
    Site site;
};

enum class State : unsigned char { kReady, kWaits, kReturned };

struct Thread {
    ucontext_t context;
    State state;
    Group* waits_for;
    uint3 index;
    char* stack;
    void* fake_stack;  // AddressSanitizer's
};

struct Block {
    Thread threads[kMostThreads];
    Group all, warps[kMostThreads / kLanes];
    uint64_t exchanged[2][kMostThreads];
    unsigned size, current;
    void** fibers;  // ThreadSanitizer's, one a thread
    ucontext_t scheduler;
    void* scheduler_fiber;
    const void* scheduler_stack;
    size_t scheduler_stack_size;
    unsigned char* shared;
    void (*body)(const void*);
    const void* arguments;
};

inline Block* block;
inline char block_start, launch_end;  // tokens: what came before the launch, and all that it did

// ThreadSanitizer's contexts are dear, so they are used again, in turn: only blocks that are a multiple of kTurns apart
// look ordered to it.
constexpr unsigned kTurns = 3;
inline void* fibers[kTurns][kMostThreads];

// A small generator of its own, so that a seed means the same order everywhere.
ZCPIPE_SHIM inline uint64_t draw(uint64_t& state) {
    state += 0x9E3779B97F4A7C15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

ZCPIPE_SHIM inline void to_thread(unsigned i) {
    Thread& thread = block->threads[i];
    block->current = i;
    threadIdx = thread.index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, thread.stack, kStack);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(block->fibers[i], __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&block->scheduler, &thread.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

ZCPIPE_SHIM inline void to_scheduler() {
    Thread& thread = block->threads[block->current];
#if defined(__SANITIZE_ADDRESS__)
    const bool ends = thread.state == State::kReturned;
    __sanitizer_start_switch_fiber(ends ? nullptr : &thread.fake_stack, block->scheduler_stack,
                                   block->scheduler_stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(block->scheduler_fiber, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(&thread.context, &block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(thread.fake_stack, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
}

ZCPIPE_SHIM inline void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&block_start);
#endif
    block->body(block->arguments);
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&launch_end);
#endif
    block->threads[block->current].state = State::kReturned;
    to_scheduler();
}

ZCPIPE_SHIM inline bool same(Site a, Site b) {
    return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

// Waits until all threads of the group are at this site. `ordered` says whether it orders their memory accesses.
ZCPIPE_SHIM inline void meet(Group& group, Site site, [[maybe_unused]] bool ordered) {
    if (group.arrived == 0)
        group.site = site;
    else if (!same(group.site, site))
        die("threads that should meet wait at different places", group.site, site);
#if defined(__SANITIZE_THREAD__)
    char* const token = ordered ? &group.tokens[group.second] : nullptr;
    if (ordered) __tsan_release(token);
#endif
    if (++group.arrived == group.size) {
        for (unsigned i = 0; i < block->size; ++i)
            if (block->threads[i].waits_for == &group) {
                block->threads[i].state = State::kReady;
                block->threads[i].waits_for = nullptr;
            }
        group.arrived = 0;
        group.second = !group.second;
        // The last to arrive gives way too, so that the schedule decides who goes on first.
        to_scheduler();
    } else {
        block->threads[block->current].state = State::kWaits;
        block->threads[block->current].waits_for = &group;
        to_scheduler();
    }
#if defined(__SANITIZE_THREAD__)
    if (ordered) __tsan_acquire(token);
#endif
}

ZCPIPE_SHIM inline void remember(Site site) {
    for (unsigned i = 0; i < site_count; ++i)
        if (same(sites[i], site)) return;
    if (site_count == kMostSites) die("more than 64 barriers in one program");
    sites[site_count++] = site;
}

// The file's name without its folders.
ZCPIPE_SHIM inline const char* base_name(Site site) {
    const char* slash = std::strrchr(site.file_name(), '/');
    return slash == nullptr ? site.file_name() : slash + 1;
}

ZCPIPE_SHIM inline bool omitted(Site site) {
    remember(site);
    return site.line() == omitted_line && std::strcmp(base_name(site), omitted_file) == 0;
}

ZCPIPE_SHIM inline Group& warp_group(unsigned mask) {
    if (mask != 0xFFFFFFFFu) die("a warp operation on some of the lanes: the shim knows full masks only");
    if (block->size % kLanes != 0) die("a warp operation in a block that is not a multiple of 32 threads");
    return block->warps[block->current / kLanes];
}

ZCPIPE_SHIM inline void block_barrier(Site site) {
    if (omitted(site)) return;
    if (block->all.arrived == 0) ++counters.block_barriers;
    meet(block->all, site, true);
}

ZCPIPE_SHIM inline void warp_barrier(unsigned mask, Site site) {
    Group& warp = warp_group(mask);
    if (omitted(site)) return;
    if (warp.arrived == 0) ++counters.warp_barriers;
    meet(warp, site, true);
}

// Gives every lane what the lane `from` of its warp brought. Two buffers in turn, for the reason that tokens have.
ZCPIPE_SHIM inline uint64_t exchange(unsigned mask, uint64_t value, unsigned from, Site site) {
    Group& warp = warp_group(mask);
    const bool second = warp.second;
    if (warp.arrived == 0) ++counters.exchanges;
    block->exchanged[second][block->current] = value;
    meet(warp, site, false);
    return block->exchanged[second][block->current / kLanes * kLanes + from];
}

ZCPIPE_SHIM inline unsigned lane() { return block->current % kLanes; }

ZCPIPE_SHIM inline unsigned ballot(unsigned mask, bool vote, Site site) {
    Group& warp = warp_group(mask);
    const bool second = warp.second;
    exchange(mask, vote, lane(), site);
    const uint64_t* votes = block->exchanged[second] + block->current / kLanes * kLanes;
    unsigned bits = 0;
    for (unsigned i = 0; i < kLanes; ++i) bits |= unsigned(votes[i]) << i;
    return bits;
}

ZCPIPE_SHIM inline unsigned char* shared_memory() {
    if (block->shared == nullptr) die("shared memory in a launch that asked for none");
    return block->shared;
}

ZCPIPE_SHIM inline void count_event(int event) { ++counters.events[event]; }

// The stacks of a block's threads and its shared memory. Each stack grows down towards a page that may not be touched,
// and one lies on either side of shared memory.
class Memory {
  public:
    ZCPIPE_SHIM Memory(unsigned threads, size_t shared)
        : page_(size_t(sysconf(_SC_PAGESIZE))),
          stacks_(threads * (page_ + kStack)),
          shared_pages_((shared + page_ - 1) / page_ * page_),
          size_(stacks_ + 2 * page_ + shared_pages_),
          data_(map(nullptr, 0)) {
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
        map(data_, MAP_FIXED);
#endif
    }

    ZCPIPE_SHIM char* stack(unsigned i) const { return data_ + i * (page_ + kStack) + page_; }
    ZCPIPE_SHIM char* shared_end() const { return data_ + stacks_ + page_ + shared_pages_; }

  private:
    ZCPIPE_SHIM char* map(char* at, int how) const {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | how;
        void* pages = mmap(at, size_, PROT_READ | PROT_WRITE, flags, -1, 0);
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
    block->all = {block->size, 0, false, {}, {}};
    for (Group& warp : block->warps) warp = {kLanes, 0, false, {}, {}};
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
