// MD5 (RFC 1321) of several messages of one length side by side. Free of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

namespace zcpipe {

constexpr int kMd5Lanes = 8;
constexpr size_t kMd5Room = 320;  // of a message with its padding: at most 311 bytes of text

// The 16 bytes as numbers, the first byte leading: their order is that of the hexadecimal texts.
struct Digest {
    uint64_t high, low;
    friend bool operator<(const Digest& a, const Digest& b) {
        return std::tie(a.high, a.low) < std::tie(b.high, b.low);
    }
};

// Hashes kMd5Lanes messages of `length` bytes, padding them in place.
void md5(Digest* digests, uint8_t (*messages)[kMd5Room], size_t length);

// Writes 32 lower-case digits and returns where they end.
uint8_t* write_hex(uint8_t* to, const Digest& digest);

}  // namespace zcpipe
