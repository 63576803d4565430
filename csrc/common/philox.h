// Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011). Pure functions, free of torch.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace zcpipe {

// Which random sequence: a block's 128-bit counter is its 64-bit index (low half) and the nonce (high half).
struct StreamId {
    uint64_t key;
    uint64_t nonce;
};

// The four words of one block.
struct Block {
    uint32_t w0, w1, w2, w3;
};

ZCPIPE_INLINE Block philox_round(Block c, uint32_t k0, uint32_t k1) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.w0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c.w2;
    return {uint32_t(p1 >> 32) ^ c.w1 ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w3 ^ k1, uint32_t(p0)};
}

// Ten rounds, written out so that a loop around them is vectorised across blocks.
ZCPIPE_INLINE Block philox(StreamId id, uint64_t index) {
    constexpr uint32_t kStep0 = 0x9E3779B9u, kStep1 = 0xBB67AE85u;
    const uint32_t k0 = uint32_t(id.key), k1 = uint32_t(id.key >> 32);
    Block c = {uint32_t(index), uint32_t(index >> 32), uint32_t(id.nonce), uint32_t(id.nonce >> 32)};
    c = philox_round(c, k0, k1);
    c = philox_round(c, k0 + 1 * kStep0, k1 + 1 * kStep1);
    c = philox_round(c, k0 + 2 * kStep0, k1 + 2 * kStep1);
    c = philox_round(c, k0 + 3 * kStep0, k1 + 3 * kStep1);
    c = philox_round(c, k0 + 4 * kStep0, k1 + 4 * kStep1);
    c = philox_round(c, k0 + 5 * kStep0, k1 + 5 * kStep1);
    c = philox_round(c, k0 + 6 * kStep0, k1 + 6 * kStep1);
    c = philox_round(c, k0 + 7 * kStep0, k1 + 7 * kStep1);
    c = philox_round(c, k0 + 8 * kStep0, k1 + 8 * kStep1);
    return philox_round(c, k0 + 9 * kStep0, k1 + 9 * kStep1);
}

// A word as a number of [-1, 1): exact in double precision, rounded once in single.
template <typename T>
ZCPIPE_INLINE T uniform(uint32_t word) {
    return T(int32_t(word)) * T(0x1p-31);
}

}  // namespace zcpipe
