// Two standard normals from one Philox block (Box-Muller), in double precision and without libm: only the operations
// that IEEE 754 rounds in one way (+ - * / sqrt), in a fixed order, so that every machine and the numpy twin
// (zcpipe/ops/_philox_twin.py, the same expressions in the same order) give the same bits. Free of torch.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/simd.h"

namespace zcpipe {

struct NormalPair {
    double first, second;
};

constexpr uint64_t kTwo52Bits = 0x4330000000000000u;  // the double 2^52, whose mantissa counts in ones
constexpr double kTwo52 = 4503599627370496.0;

// n as a double, for n < 2^52. (Instruction sets without a conversion from 64 bits vectorise this one.)
ZCPIPE_INLINE double to_double(uint64_t n) { return std::bit_cast<double>(n | kTwo52Bits) - kTwo52; }

// log(u) for u in [2^-53, 1]: u = 2^e z with z in [sqrt(1/2), sqrt(2)), log z = 2 atanh((z - 1) / (z + 1)).
ZCPIPE_INLINE double log_unit(double u) {
    constexpr uint64_t kOne = 0x3FF0000000000000u, kSqrtHalf = 0x3FE6A09E00000000u, kMantissa = 0x000FFFFFFFFFFFFFu;
    constexpr double kLn2High = 0x1.62e42feep-1;  // 32 bits: a multiple by an exponent is exact
    constexpr double kLn2Low = 0x1.a39ef35793c76p-33;

    const uint64_t bits = std::bit_cast<uint64_t>(u) + (kOne - kSqrtHalf);
    const double e = to_double(bits >> 52) - 1023.0;
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
// `eighth` is the integer part of 8 v.
ZCPIPE_INLINE NormalPair cos_sin_turn(double v, uint64_t eighth) {
    const uint64_t quarter = (eighth + 1) >> 1;  // 0..4, rounded to nearest
    const double t = (v - 0.25 * to_double(quarter)) * 0x1.921fb54442d18p+2;
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

// Elements 2 k and 2 k + 1 of the stream of normals, from the words of block k: w0 + 2^32 w1 and w2 + 2^32 w3.
// A uniform takes 53 bits: 27 of the odd word, 26 of the even one.
ZCPIPE_INLINE NormalPair normal_pair(uint64_t low, uint64_t high) {
    const double u = (to_double(low >> 37) * 67108864.0 + to_double(((low >> 6) & 0x3FFFFFFu) + 1)) * 0x1p-53;
    const double v = (to_double(high >> 37) * 67108864.0 + to_double((high >> 6) & 0x3FFFFFFu)) * 0x1p-53;
    const double radius = std::sqrt(-2.0 * log_unit(u));  // u is in (0, 1], v in [0, 1)
    const NormalPair turn = cos_sin_turn(v, high >> 61);
    return {radius * turn.first, radius * turn.second};
}

}  // namespace zcpipe
