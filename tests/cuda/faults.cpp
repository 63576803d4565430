// Small kernels with one fault each, and their clean twins: what the shim, the guard pages and the sanitizers must
// find, as the beginning of a name says (test_faults.py). Usage: faults NAME, or faults --list.

#include <map>

#include "proof.h"

namespace {

using namespace zcpipe;
using gpu::shared_memory, gpu::kAllLanes;

constexpr unsigned kThreads = 64;

enum class Barrier { kKept, kLeftOut };

// Each thread passes its number to the next by shared memory.
template <Barrier kFirst>
__global__ void pass_on(int* out) {
    int* const shared = shared_memory<int>();
    shared[threadIdx.x] = int(threadIdx.x);
    if (kFirst == Barrier::kKept) __syncthreads();
    out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

// And twice over one buffer: the second barrier keeps a fast thread from writing what a slow one has still to read.
template <Barrier kSecond>
__global__ void pass_on_twice(int* out) {
    int* const shared = shared_memory<int>();
    int mine = int(threadIdx.x);
    for (int turn = 0; turn < 2; ++turn) {
        shared[threadIdx.x] = mine;
        __syncthreads();
        mine = shared[(threadIdx.x + 1) % kThreads];
        if (kSecond == Barrier::kKept) __syncthreads();
    }
    out[threadIdx.x] = mine;
}

template <Barrier kWarpBarrier>
__global__ void pass_on_in_a_warp(int* out) {
    int* const shared = shared_memory<int>();
    shared[threadIdx.x] = int(threadIdx.x);
    if (kWarpBarrier == Barrier::kKept) __syncwarp();
    out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// A shuffle brings lanes together but orders no memory.
__global__ void shuffle_for_a_barrier(int* out) {
    int* const shared = shared_memory<int>();
    shared[threadIdx.x] = int(threadIdx.x);
    __shfl_sync(kAllLanes, 0, 0);
    out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void every_block_writes(int* out) { out[0] = int(blockIdx.x); }

__global__ void every_block_writes_after_a_barrier(int* out) {
    __syncthreads();
    if (threadIdx.x == blockIdx.x) out[0] = int(blockIdx.x);
}

__global__ void reads_the_block_before(int* out) {
    out[blockIdx.x + 1] = int(blockIdx.x) + (blockIdx.x > 0 ? out[blockIdx.x] : 0);
}

__global__ void counts(int* out) { atomicAdd(out, 1); }

__global__ void warp_sum(int* out) {
    int sum = int(threadIdx.x);
    for (int half = 16; half > 0; half /= 2) sum += __shfl_down_sync(kAllLanes, sum, half);
    const unsigned odd = __ballot_sync(kAllLanes, threadIdx.x % 2);
    if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = sum + __popc(odd);
}

__global__ void partial_mask(int* out) { out[threadIdx.x] = __shfl_xor_sync(0xFFFFu, int(threadIdx.x), 1); }

__global__ void a_warp_operation(int* out) { out[threadIdx.x] = __shfl_xor_sync(kAllLanes, int(threadIdx.x), 1); }

__global__ void two_barriers_for_one(int*) {
    if (threadIdx.x % 2 == 0)
        __syncthreads();
    else
        __syncthreads();
}

__global__ void returns_before_a_barrier(int*) {
    if (threadIdx.x == 3) return;
    __syncthreads();
}

__global__ void reads_unwritten_shared(float* out) {
    out[threadIdx.x] = threadIdx.x == 5 ? shared_memory<float>()[5] : 1.0f;
}

__global__ void writes_past_shared(int* out, int by) {
    shared_memory<int>()[kThreads + by] = 1;
    out[0] = shared_memory<int>()[kThreads + by];
}

__global__ void writes_past_an_array(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void writes_past_its_own_array(int* out, int size) {
    int mine[4];
    int* place = mine;
    asm volatile("" : "+r"(place));  // so that nothing but the red zones knows where it ends
    for (int i = 0; i < size; ++i) {
        __syncthreads();  // the red zones must survive a change of fibers
        place[i] = i;
    }
    out[threadIdx.x] = mine[threadIdx.x % 4];
}

__global__ void reads_a_vector_off_its_address(int* out) {
    struct alignas(16) Four {
        int data[4];
    };
    out[0] = reinterpret_cast<const Four*>(out + 1)->data[0];
}

std::vector<int> out;

template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared, Arguments... arguments) {
    gpu::launch(kernel, {.grid = blocks, .block = threads, .shared = shared, .stream = nullptr}, arguments...);
}

// Runs a kernel of one block and compares what it writes with f(thread).
template <typename F>
void block_gives(void (*kernel)(int*), const F& f) {
    out.assign(kThreads, -1);
    start(kernel, 1, kThreads, kThreads * sizeof(int), out.data());
    for (unsigned i = 0; i < kThreads; ++i) EXPECT(out[i] == f(int(i)), "thread %u has %d", i, out[i]);
}

int next(int i) { return (i + 1) % int(kThreads); }
int next_but_one(int i) { return (i + 2) % int(kThreads); }
int other(int i) { return i ^ 1; }

const std::map<std::string, void (*)()> kCases = {
    {"clean",
     [] {
         block_gives(pass_on<Barrier::kKept>, next);
         block_gives(pass_on_twice<Barrier::kKept>, next_but_one);
         block_gives(pass_on_in_a_warp<Barrier::kKept>, other);
         out.assign(2, 0);
         start(counts, 5, kThreads, 0, out.data());
         EXPECT(out[0] == 5 * int(kThreads), "counted %d", out[0]);
         start(warp_sum, 1, kThreads, 0, out.data());
         EXPECT(out[0] == 496 + 16 && out[1] == 496 + 1024 + 16, "sums %d and %d", out[0], out[1]);
         for (int launches = 0; launches < 2; ++launches) start(every_block_writes, 1, 1, 0, out.data());
     }},
    {"race: no barrier", [] { block_gives(pass_on<Barrier::kLeftOut>, next); }},
    {"race: no second barrier", [] { block_gives(pass_on_twice<Barrier::kLeftOut>, next_but_one); }},
    {"race: no warp barrier", [] { block_gives(pass_on_in_a_warp<Barrier::kLeftOut>, other); }},
    {"race: a shuffle for a barrier", [] { block_gives(shuffle_for_a_barrier, other); }},
    {"race: blocks write one place",
     [] {
         out.assign(1, 0);
         start(every_block_writes, 2, 1, 0, out.data());
     }},
    {"race: blocks write one place after a barrier",
     [] {
         out.assign(1, 0);
         start(every_block_writes_after_a_barrier, 2, 32, 0, out.data());
     }},
    {"race: a block reads another's",
     [] {
         out.assign(4, 0);
         start(reads_the_block_before, 3, 1, 0, out.data());
     }},
    {"dies: some of the lanes", [] { block_gives(partial_mask, other); }},
    {"dies: not a multiple of 32 threads",
     [] {
         out.assign(48, 0);
         start(a_warp_operation, 1, 48, 0, out.data());
     }},
    {"dies: wait at different places", [] { block_gives(two_barriers_for_one, next); }},
    {"dies: have returned", [] { block_gives(returns_before_a_barrier, next); }},
    {"dies: no threads or too many", [] { start(counts, 1, 1025, 0, static_cast<int*>(nullptr)); }},
    {"dies: no blocks or too many", [] { start(counts, 0, 32, 0, static_cast<int*>(nullptr)); }},
    {"dies: asked for none",
     [] {
         out.assign(kThreads, 0);
         start(pass_on<Barrier::kKept>, 1, kThreads, 0, out.data());
     }},
    {"dies: a multiple of 16 bytes", [] { start(counts, 1, 32, 8, static_cast<int*>(nullptr)); }},
    {"value: unwritten shared memory",
     [] {
         std::vector<float> values(kThreads);
         start(reads_unwritten_shared, 1, kThreads, 16 * kThreads, values.data());
         float sum = 0;
         for (const float v : values) sum += v;
         EXPECT(sum == float(kThreads), "sum %g", double(sum));
     }},
    {"guard: after shared memory",
     [] {
         out.assign(1, 0);
         start(writes_past_shared, 1, 1, kThreads * sizeof(int), out.data(), 0);
     }},
    {"address: heap-buffer-overflow",
     [] {
         out.assign(kThreads, 0);
         out.shrink_to_fit();
         start(writes_past_an_array, 1, kThreads, 0, out.data());
     }},
    {"address: stack-buffer-overflow",
     [] {
         out.assign(kThreads, 0);
         start(writes_past_its_own_array, 1, kThreads, 0, out.data(), 5);
     }},
    {"address: misaligned address",
     [] {
         out.assign(8, 0);
         start(reads_a_vector_off_its_address, 1, 1, 0, out.data());
     }},
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    if (std::string(argv[1]) == "--list") {
        for (const auto& [name, run] : kCases) std::printf("%s\n", name.c_str());
        return 0;
    }
    kCases.at(argv[1])();
    return proof::failures == 0 ? 0 : 1;
}
