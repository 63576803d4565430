// Many Philox blocks at once, for the CPU.
#pragma once

#include "common/philox.h"

namespace zcpipe {

constexpr int64_t kBatch = 256;  // blocks: their words stay in the first cache

// The blocks first .. first + count of a stream, as pairs of words: w0 + 2^32 w1 in `low`, w2 + 2^32 w3 in `high`.
// `count` is rounded up to a multiple of 8, so the buffers need room for that.
void philox_blocks(uint64_t* low, uint64_t* high, StreamId id, uint64_t first, int64_t count);

}  // namespace zcpipe
