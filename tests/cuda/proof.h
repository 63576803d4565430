// What the executables of tests/cuda share. Each runs one op's kernels on the shim, in one schedule, and compares them
// with loops of its own. Usage: <op> forward|reverse|random [seed] [--omit FILE:LINE], or <op> --sites.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/images.h"
#include "cuda/launch.h"

namespace proof {

using zcpipe::gpu::shim::counters;

inline int failures = 0;

#define EXPECT(condition, ...)                                          \
    do {                                                                \
        if (!(condition)) {                                             \
            ++proof::failures;                                          \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                   \
            std::printf("\n");                                          \
        }                                                               \
    } while (false)

// Normals, so that no two elements are equal.
template <typename T>
std::vector<T> normals(int64_t count, unsigned seed, double mean = 0) {
    std::mt19937 bits(seed);
    std::normal_distribution<double> normal(mean, 1);
    std::vector<T> values(count);
    for (T& v : values) v = T(normal(bits));
    return values;
}

// Room that a kernel must fill: what it leaves out shows.
template <typename T>
std::vector<T> unwritten(int64_t count) {
    return std::vector<T>(count, std::numeric_limits<T>::has_quiet_NaN ? std::numeric_limits<T>::quiet_NaN() : T(-77));
}

// The largest |a - b|, infinite where either is not a number or the lengths differ.
template <typename A, typename B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
    if (a.size() != b.size()) return INFINITY;
    double most = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(double(a[i]) - double(b[i]));
        if (!(d <= most)) most = std::isnan(d) ? INFINITY : d;
    }
    return most;
}

// Where element (n, c, p) of images lies.
inline int64_t at(const zcpipe::gpu::Images& g, int64_t n, int64_t c, int64_t p) {
    return g.channels_last ? (n * g.pixels() + p) * g.channels + c : (n * g.channels + c) * g.pixels() + p;
}

inline std::string name(const zcpipe::gpu::Images& g) {
    std::string name;
    for (const int64_t size : {g.samples, g.channels, g.height, g.width}) name += std::to_string(size) + " ";
    return name + (g.channels_last ? "channels_last" : "contiguous");
}

inline int run(int argc, char** argv, void (*cases)()) {
    namespace shim = zcpipe::gpu::shim;
    static std::string omitted;
    bool list = false;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word == "forward") {
            shim::schedule.order = shim::Order::kForward;
        } else if (word == "reverse") {
            shim::schedule.order = shim::Order::kReverse;
        } else if (word == "random" && i + 1 < argc) {
            shim::schedule = {shim::Order::kRandom, std::strtoull(argv[++i], nullptr, 10)};
        } else if (word == "--omit" && i + 1 < argc) {
            omitted = argv[++i];
            const size_t colon = omitted.find(':');
            shim::omitted_line = unsigned(std::atoi(omitted.c_str() + colon + 1));
            omitted.resize(colon);
            shim::omitted_file = omitted.c_str();
        } else if (word == "--sites") {
            list = true;
        } else {
            std::fprintf(stderr, "unknown argument %s\n", argv[i]);
            return 2;
        }
    }
    cases();
    for (unsigned i = 0; list && i < shim::site_count; ++i)
        std::printf("%s:%u\n", shim::base_name(shim::sites[i]), shim::sites[i].line());
    return failures == 0 ? 0 : 1;
}

}  // namespace proof
