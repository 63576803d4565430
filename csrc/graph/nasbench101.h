// NAS-Bench-101's cells: pruning, the benchmark's hash, and all that differ. Free of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "graph/md5.h"

namespace zcpipe::nasbench101 {

constexpr int kMaxVertices = 7, kMaxEdges = 9, kOperations = 3;
constexpr int kMaxInner = kMaxVertices - 2;

// The bit of the edge from x to y > x.
constexpr int edge_bit(int x, int y) { return y * (y - 1) / 2 + x; }

// Vertex 0 is the input and the last one the output.
struct Cell {
    int vertices;
    uint32_t edges;
    uint8_t operations[kMaxInner];  // of the inner vertices

    bool has(int x, int y) const { return edges >> edge_bit(x, y) & 1; }
};

// A cell as one number, vertices before edges before operations (two bits each, the first leading), and back. The code
// must be valid.
uint64_t encode(const Cell& cell);
Cell decode(uint64_t code);
bool valid(uint64_t code);

// Drops the vertices that are on no path from input to output; returns whether there is a path.
bool prune(Cell& cell);

// The smallest code of the cells that are this one with its inner vertices in another order.
uint64_t canonical(const Cell& cell);

// The benchmark's hashes of cells without vertices to prune. Neighbours of equal edges are hashed together.
void hash(Digest* digests, const Cell* cells, size_t count);

// All cells of at most 7 vertices and 9 edges without vertices to prune, one of each isomorphism class: that of the
// smallest code, in ascending order.
std::vector<uint64_t> enumerate();

}  // namespace zcpipe::nasbench101
