// Memory that is wanted next, fetched towards the core while something else is computed. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"

namespace zcpipe {

// A few pieces of memory, fetched into the second cache in many small steps between the steps of a computation, which
// leaves the memory idle otherwise: processors fetch by themselves only what neighbours what is being read.
class Ahead {
  public:
    void add(const float* piece, int64_t size) {
        pieces_[count_++] = {reinterpret_cast<const char*>(piece), size * int64_t(sizeof(float))};
        lines_ += (size * int64_t(sizeof(float)) + kLine - 1) / kLine;
    }

    // Everything is fetched after so many steps; nothing if they are so few that each would wait for itself.
    void divide(int64_t steps) {
        const int64_t lines = (lines_ + steps - 1) / std::max<int64_t>(steps, 1);
        step_ = lines * kLine;
        if (lines > kMostLines) count_ = 0;
    }

    ZCPIPE_INLINE void step() {
        if (next_ == count_) return;
        Piece& piece = pieces_[next_];
        const int64_t bytes = std::min(step_, piece.bytes);
        for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(piece.from + at, 0, 2);
        piece.from += bytes;
        piece.bytes -= bytes;
        next_ += piece.bytes == 0;
    }

  private:
    static constexpr int64_t kLine = 64;       // bytes
    static constexpr int64_t kMostLines = 32;  // in flight
    static constexpr int64_t kMost = 4;        // pieces
    struct Piece {
        const char* from;
        int64_t bytes;
    };
    Piece pieces_[kMost];
    int64_t count_ = 0, next_ = 0, lines_ = 0, step_ = 0;
};

}  // namespace zcpipe
