#include "graph/md5.h"

#include <cstring>
#include <initializer_list>

#include "common/simd.h"

namespace zcpipe {
namespace {

typedef uint32_t Words __attribute__((vector_size(4 * kMd5Lanes)));

constexpr uint32_t kSines[64] = {
    // 2^32 |sin(i)| for i = 1 .. 64, rounded down
    0xd76aa478u, 0xe8c7b756u, 0x242070dbu, 0xc1bdceeeu, 0xf57c0fafu, 0x4787c62au, 0xa8304613u, 0xfd469501u,
    0x698098d8u, 0x8b44f7afu, 0xffff5bb1u, 0x895cd7beu, 0x6b901122u, 0xfd987193u, 0xa679438eu, 0x49b40821u,
    0xf61e2562u, 0xc040b340u, 0x265e5a51u, 0xe9b6c7aau, 0xd62f105du, 0x02441453u, 0xd8a1e681u, 0xe7d3fbc8u,
    0x21e1cde6u, 0xc33707d6u, 0xf4d50d87u, 0x455a14edu, 0xa9e3e905u, 0xfcefa3f8u, 0x676f02d9u, 0x8d2a4c8au,
    0xfffa3942u, 0x8771f681u, 0x6d9d6122u, 0xfde5380cu, 0xa4beea44u, 0x4bdecfa9u, 0xf6bb4b60u, 0xbebfbc70u,
    0x289b7ec6u, 0xeaa127fau, 0xd4ef3085u, 0x04881d05u, 0xd9d4d039u, 0xe6db99e5u, 0x1fa27cf8u, 0xc4ac5665u,
    0xf4292244u, 0x432aff97u, 0xab9423a7u, 0xfc93a039u, 0x655b59c3u, 0x8f0ccc92u, 0xffeff47du, 0x85845dd1u,
    0x6fa87e4fu, 0xfe2ce6e0u, 0xa3014314u, 0x4e0811a1u, 0xf7537e82u, 0xbd3af235u, 0x2ad7d2bbu, 0xeb86d391u,
};
constexpr int kShifts[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

template <int kRound>
ZCPIPE_INLINE void round(Words& a, Words& b, Words& c, Words& d, const Words* block) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        Words mixed;
        int word;
        if constexpr (kRound == 0) {
            mixed = d ^ (b & (c ^ d));
            word = i;
        } else if constexpr (kRound == 1) {
            mixed = c ^ (d & (b ^ c));
            word = (5 * i + 1) % 16;
        } else if constexpr (kRound == 2) {
            mixed = b ^ c ^ d;
            word = (3 * i + 5) % 16;
        } else {
            mixed = c ^ (b | ~d);
            word = 7 * i % 16;
        }
        const int shift = kShifts[kRound][i % 4];
        const Words sum = a + mixed + block[word] + kSines[16 * kRound + i];
        a = d;
        d = c;
        c = b;
        b += sum << shift | sum >> (32 - shift);
    }
}

ZCPIPE_CLONES void add_block(Words* state, const Words* block) {
    Words a = state[0], b = state[1], c = state[2], d = state[3];
    round<0>(a, b, c, d, block);
    round<1>(a, b, c, d, block);
    round<2>(a, b, c, d, block);
    round<3>(a, b, c, d, block);
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

// A word of a message: the first byte is the lowest, whatever this machine's order.
ZCPIPE_INLINE uint32_t load(const uint8_t* bytes) {
    return uint32_t(bytes[0]) | uint32_t(bytes[1]) << 8 | uint32_t(bytes[2]) << 16 | uint32_t(bytes[3]) << 24;
}

ZCPIPE_INLINE uint64_t leading_first(uint32_t first, uint32_t second) {
    return uint64_t{__builtin_bswap32(first)} << 32 | __builtin_bswap32(second);
}

}  // namespace

void md5(Digest* digests, uint8_t (*messages)[kMd5Room], size_t length) {
    const size_t padded = (length + 9 + 63) / 64 * 64;
    for (int lane = 0; lane < kMd5Lanes; ++lane) {
        uint8_t* end = messages[lane] + length;
        std::memset(end, 0, padded - length);
        *end = 0x80;
        for (int byte = 0; byte < 8; ++byte) messages[lane][padded - 8 + byte] = uint8_t(8 * length >> 8 * byte);
    }
    const Words zero = {};
    Words state[4] = {zero + 0x67452301u, zero + 0xefcdab89u, zero + 0x98badcfeu, zero + 0x10325476u};
    for (size_t at = 0; at < padded; at += 64) {
        Words block[16];
        for (int word = 0; word < 16; ++word)
            for (int lane = 0; lane < kMd5Lanes; ++lane) block[word][lane] = load(messages[lane] + at + 4 * word);
        add_block(state, block);
    }
    for (int lane = 0; lane < kMd5Lanes; ++lane)
        digests[lane] = {leading_first(state[0][lane], state[1][lane]), leading_first(state[2][lane], state[3][lane])};
}

// Eight digits at a time, in the bytes of a number.
uint8_t* write_hex(uint8_t* to, const Digest& digest) {
    constexpr uint64_t kOnes = 0x0101010101010101u;
    for (const uint64_t half : {digest.high, digest.low}) {
        for (const int shift : {32, 0}) {
            uint64_t x = half >> shift & 0xffffffffu;
            x = (x << 16 | x) & 0x0000ffff0000ffffu;
            x = (x << 8 | x) & 0x00ff00ff00ff00ffu;
            x = (x << 4 | x) & 0x0f0f0f0f0f0f0f0fu;
            const uint64_t letters = (x + 6 * kOnes) >> 4 & kOnes;
            x += '0' * kOnes + letters * ('a' - '0' - 10);
            for (int byte = 0; byte < 8; ++byte) *to++ = uint8_t(x >> (56 - 8 * byte));
        }
    }
    return to;
}

}  // namespace zcpipe
