// Two standard normals from one Philox block (Box-Muller), in double precision and without libm: only the operations
// that IEEE 754 rounds in one way (+ - * / sqrt), in a fixed order, so that every machine and the numpy twin
// (zcpipe/ops/_philox_twin.py, the same expressions in the same order) give the same bits. Free of torch.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/philox.h"

namespace zcpipe {

struct NormalPair {
    double first, second;
};

// log(u) for u in [2^-53, 1]: u = 2^e z with z in [sqrt(1/2), sqrt(2)), log z = 2 atanh((z - 1) / (z + 1)).
ZCPIPE_INLINE double log_unit(double u) {
    constexpr uint64_t kOne = 0x3FF0000000000000u, kSqrtHalf = 0x3FE6A09E00000000u, kMantissa = 0x000FFFFFFFFFFFFFu;
    constexpr uint64_t kTwo52Bits = 0x4330000000000000u;        // 2^52, whose low mantissa bits count in ones
    constexpr double kTwo52Bias = 4503599627370496.0 + 1023.0;  // 2^52 and the exponent's bias
    constexpr double kLn2High = 0x1.62e42feep-1;                // 32 bits: a multiple by an exponent is exact
    constexpr double kLn2Low = 0x1.a39ef35793c76p-33;

    const uint64_t bits = std::bit_cast<uint64_t>(u) + (kOne - kSqrtHalf);
    const double e = std::bit_cast<double>((bits >> 52) | kTwo52Bits) - kTwo52Bias;
    const double z = std::bit_cast<double>((bits & kMantissa) + kSqrtHalf);
    const double f = z - 1.0;
    const double s = f / (2.0 + f);
    const double q = s * s;
    double p = 2.0 / 21.0;
    p = p * q + 2.0 / 19.0;
    p = p * q + 2.0 / 17.0;
    p = p * q + 2.0 / 15.0;
    p = p * q + 2.0 / 13.0;
    p = p * q + 2.0 / 11.0;
    p = p * q + 2.0 / 9.0;
    p = p * q + 2.0 / 7.0;
    p = p * q + 2.0 / 5.0;
    p = p * q + 2.0 / 3.0;
    return e * kLn2High + (e * kLn2Low + (2.0 * s + s * (q * p)));
}

// cos and sin of 2 pi v for v in [0, 1): v = quarter / 4 + r with |r| <= 1/8, exactly, then Taylor polynomials.
// `top` holds v's first 27 bits.
ZCPIPE_INLINE NormalPair cos_sin_turn(double v, int32_t top) {
    const int32_t quarter = ((top >> 24) + 1) >> 1;  // 0..4, rounded to nearest
    const double t = (v - 0.25 * quarter) * 0x1.921fb54442d18p+2;
    const double q = t * t;
    double s = 1.0 / 355687428096000.0;  // 1 / 17!
    s = s * q - 1.0 / 1307674368000.0;
    s = s * q + 1.0 / 6227020800.0;
    s = s * q - 1.0 / 39916800.0;
    s = s * q + 1.0 / 362880.0;
    s = s * q - 1.0 / 5040.0;
    s = s * q + 1.0 / 120.0;
    s = s * q - 1.0 / 6.0;
    s = t + t * (q * s);
    double c = 1.0 / 20922789888000.0;  // 1 / 16!
    c = c * q - 1.0 / 87178291200.0;
    c = c * q + 1.0 / 479001600.0;
    c = c * q - 1.0 / 3628800.0;
    c = c * q + 1.0 / 40320.0;
    c = c * q - 1.0 / 720.0;
    c = c * q + 1.0 / 24.0;
    c = c * q - 0.5;
    c = 1.0 + q * c;
    const bool odd = (quarter & 1) != 0;
    const double x = odd ? s : c, y = odd ? c : s;
    return {((quarter + 1) & 2) != 0 ? -x : x, (quarter & 2) != 0 ? -y : y};
}

// Elements 2 index and 2 index + 1 of the stream of normals.
ZCPIPE_INLINE NormalPair normal_pair(StreamId id, uint64_t index) {
    const Block b = philox(id, index);
    // 53 bits from two words: 27 from the odd one, 26 from the even one.
    const int32_t radius_top = int32_t(b.w1 >> 5), angle_top = int32_t(b.w3 >> 5);
    const double u = (radius_top * 67108864.0 + (int32_t(b.w0 >> 6) + 1)) * 0x1p-53;  // in (0, 1]
    const double v = (angle_top * 67108864.0 + int32_t(b.w2 >> 6)) * 0x1p-53;         // in [0, 1)
    const double radius = std::sqrt(-2.0 * log_unit(u));
    const NormalPair turn = cos_sin_turn(v, angle_top);
    return {radius * turn.first, radius * turn.second};
}

}  // namespace zcpipe
