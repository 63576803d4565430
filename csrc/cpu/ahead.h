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
    // What finds no room is not fetched.
    template <typename T>
    void add(const T* piece, int64_t count) {
        if (count <= 0 || count_ == kMost) return;
        const int64_t lines = (count * int64_t(sizeof(T)) + kLine - 1) / kLine;
        pieces_[count_++] = {reinterpret_cast<uintptr_t>(piece), lines};
        lines_ += lines;
    }

    // `step` fetches everything in so many steps, or as much as does not wait for itself. A piece ends within a step.
    void divide(int64_t steps) {
        const int64_t whole = std::max<int64_t>(steps - count_ + 1, 1);
        step_ = std::min((lines_ + whole - 1) / whole, kMostLines);
    }

    ZCPIPE_INLINE void step() {
        if (next_ == count_) return;
        Piece& piece = pieces_[next_];
        const int64_t lines = std::min(step_, piece.lines);
        for (int64_t i = 0; i < lines; ++i) fetch(piece.from + i * kLine);
        piece.from += lines * kLine;
        piece.lines -= lines;
        next_ += piece.lines == 0;
    }

    // The next so many lines, for loops that fetch one a time, or the same line again and again where none are left.
    // There may be others behind a piece's last: to fetch harms nobody, whatever is there.
    struct Lines {
        uintptr_t at;
        int64_t stride;

        ZCPIPE_INLINE void fetch() {
            Ahead::fetch(at);
            at += stride;
        }
    };
    ZCPIPE_INLINE Lines take(int64_t lines) {
        if (next_ == count_) return {reinterpret_cast<uintptr_t>(this), 0};
        Piece& piece = pieces_[next_];
        const Lines taken = {piece.from, kLine};
        piece.from += lines * kLine;
        piece.lines -= lines;
        next_ += piece.lines <= 0;
        return taken;
    }

  private:
    static constexpr int64_t kLine = 64;       // bytes
    static constexpr int64_t kMostLines = 32;  // in flight
    static constexpr int64_t kMost = 4;        // pieces
    struct Piece {
        uintptr_t from;
        int64_t lines;
    };

    static ZCPIPE_INLINE void fetch(uintptr_t at) { __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2); }

    Piece pieces_[kMost] = {};
    int64_t count_ = 0, next_ = 0, lines_ = 0, step_ = 0;
};

}  // namespace zcpipe
