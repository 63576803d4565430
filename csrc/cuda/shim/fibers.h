// The threads of a CUDA block as fibers, and what they do to one another: barriers, exchanges. Free of torch.
//
// The fibers of a block share one system thread and change places at barriers and shuffles only, in one of three
// orders. Everything that a GPU would leave undefined and that can be seen from here ends the program with a message.
// Under ThreadSanitizer every CUDA thread is a thread of its own: what orders two of them is the start and the end of
// their launch and the barriers they share, so two blocks of a launch are never ordered, nor are lanes by a shuffle.
#pragma once

#include <ucontext.h>

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

// Threads that wait for one another: a block or a warp. Two tokens carry ThreadSanitizer's order from one barrier to
// the threads that leave it, in turn, because a fast thread reaches the next barrier before a slow one leaves. They are
// in the block's own memory, or they would carry it to the next block too.
struct Group {
    unsigned size, arrived;
    bool second;
    char* tokens;
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

}  // namespace zcpipe::gpu::shim
