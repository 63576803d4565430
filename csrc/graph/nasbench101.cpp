#include "graph/nasbench101.h"

#include <algorithm>
#include <array>
#include <bit>
#include <initializer_list>
#include <numeric>
#include <utility>

namespace zcpipe::nasbench101 {
namespace {

using Order = std::array<int, kMaxVertices>;  // where each vertex goes

constexpr int kEdgeBits = kMaxVertices * (kMaxVertices - 1) / 2;
constexpr int kOperationBits = 2 * kMaxInner;

// Calls f(order) for every order of the inner vertices until it returns false.
template <typename F>
void for_orders(int vertices, const F& f) {
    Order order;
    std::iota(order.begin(), order.end(), 0);
    while (f(order) && std::next_permutation(order.begin() + 1, order.begin() + vertices - 1)) {
    }
}

// The edges after reordering; false where one would lead to a lower vertex.
bool reorder(uint32_t& reordered, const Cell& cell, const Order& order) {
    reordered = 0;
    for (int y = 1; y < cell.vertices; ++y) {
        for (int x = 0; x < y; ++x) {
            if (!cell.has(x, y)) continue;
            if (order[x] > order[y]) return false;
            reordered |= uint32_t{1} << edge_bit(order[x], order[y]);
        }
    }
    return true;
}

Cell with_operations_moved(const Cell& cell, const Order& order, uint32_t edges) {
    Cell moved = {cell.vertices, edges, {}};
    for (int v = 1; v < cell.vertices - 1; ++v) moved.operations[order[v] - 1] = cell.operations[v - 1];
    return moved;
}

// Whether every vertex but the input has an edge in and every one but the output an edge out.
bool nothing_to_prune(const Cell& cell) {
    uint32_t sources = 0, targets = 0;
    for (int y = 1; y < cell.vertices; ++y) {
        const uint32_t into = cell.edges >> edge_bit(0, y) & ((1u << y) - 1);
        sources |= into;
        targets |= uint32_t{into != 0} << y;
    }
    const uint32_t all = (1u << cell.vertices) - 1;
    return sources == all >> 1 && targets == (all & ~1u);
}

// The orders other than the first that leave the edges as they are; false where one makes them smaller.
bool is_smallest(std::vector<Order>& automorphisms, const Cell& cell) {
    automorphisms.clear();
    bool smallest = true, first = true;
    for_orders(cell.vertices, [&](const Order& order) {
        uint32_t edges;
        if (!std::exchange(first, false) && reorder(edges, cell, order)) {
            smallest = edges >= cell.edges;
            if (edges == cell.edges) automorphisms.push_back(order);
        }
        return smallest;
    });
    return smallest;
}

// Calls f for the cell with every choice of operations, in ascending order of codes.
template <typename F>
void for_operations(Cell cell, const F& f) {
    const int inner = cell.vertices - 2;
    std::fill_n(cell.operations, kMaxInner, uint8_t{0});
    for (;;) {
        f(cell);
        int v = inner - 1;
        while (v >= 0 && cell.operations[v] == kOperations - 1) cell.operations[v--] = 0;
        if (v < 0) return;
        ++cell.operations[v];
    }
}

// At most seven: inserting is the fastest way.
void sort(Digest* digests, int count) {
    for (int i = 1; i < count; ++i)
        for (int k = i; k > 0 && digests[k] < digests[k - 1]; --k) std::swap(digests[k], digests[k - 1]);
}

using Lanes = Digest[kMd5Lanes];  // a vertex of several cells

uint8_t* write_text(uint8_t* to, const char* text) {
    while (*text != '\0') *to++ = uint8_t(*text++);
    return to;
}

// A vertex by itself as Python writes it: (edges out, edges in, label).
uint8_t* write_vertex(uint8_t* to, const Cell& cell, int v) {
    int in = 0, out = 0;
    for (int w = 0; w < v; ++w) in += cell.has(w, v);
    for (int w = v + 1; w < cell.vertices; ++w) out += cell.has(v, w);
    to = write_text(to, "(");
    *to++ = uint8_t('0' + out);
    to = write_text(to, ", ");
    *to++ = uint8_t('0' + in);
    to = write_text(to, ", ");
    if (v == 0)
        to = write_text(to, "-1");
    else if (v == cell.vertices - 1)
        to = write_text(to, "-2");
    else
        *to++ = uint8_t('0' + cell.operations[v - 1]);
    return write_text(to, ")");
}

// A vertex with its neighbours: their hashes before it, those behind it, its own.
uint8_t* write_neighbourhood(uint8_t* to, const Cell& cell, int v, const Lanes* state, int lane) {
    Digest near[kMaxVertices];
    for (const bool behind : {false, true}) {
        int count = 0;
        for (int w = behind ? v + 1 : 0; w < (behind ? cell.vertices : v); ++w)
            if (behind ? cell.has(v, w) : cell.has(w, v)) near[count++] = state[w][lane];
        sort(near, count);
        for (int i = 0; i < count; ++i) to = write_hex(to, near[i]);
        to = write_text(to, "|");
    }
    return write_hex(to, state[v][lane]);
}

// All vertices as Python writes a sorted list of texts.
uint8_t* write_list(uint8_t* to, int vertices, const Lanes* state, int lane) {
    Digest all[kMaxVertices];
    for (int v = 0; v < vertices; ++v) all[v] = state[v][lane];
    sort(all, vertices);
    for (int v = 0; v < vertices; ++v) to = write_text(write_hex(write_text(to, v == 0 ? "['" : ", '"), all[v]), "'");
    return write_text(to, "]");
}

// Up to kMd5Lanes cells of equal edges; the lanes beyond repeat the last. Texts are of one length in all lanes.
void hash_together(Digest* digests, const Cell* cells, size_t count) {
    static_assert(36 * kMaxVertices + 9 <= int(kMd5Room), "the list is the longest text");
    const int vertices = cells[0].vertices;
    uint8_t messages[kMd5Lanes][kMd5Room];
    Lanes state[kMaxVertices], next[kMaxVertices], last;
    const auto hash_lanes = [&](Digest* to, const auto& write) {
        size_t length = 0;
        for (int lane = 0; lane < kMd5Lanes; ++lane) length = size_t(write(messages[lane], lane) - messages[lane]);
        md5(to, messages, length);
    };
    for (int v = 0; v < vertices; ++v)
        hash_lanes(state[v], [&](uint8_t* to, int lane) {
            return write_vertex(to, cells[std::min(size_t(lane), count - 1)], v);
        });
    for (int iteration = 0; iteration < vertices; ++iteration) {
        for (int v = 0; v < vertices; ++v)
            hash_lanes(next[v],
                       [&](uint8_t* to, int lane) { return write_neighbourhood(to, cells[0], v, state, lane); });
        std::swap(state, next);
    }
    hash_lanes(last, [&](uint8_t* to, int lane) { return write_list(to, vertices, state, lane); });
    std::copy_n(last, count, digests);
}

}  // namespace

uint64_t encode(const Cell& cell) {
    uint64_t operations = 0;
    for (int v = 0; v < cell.vertices - 2; ++v) operations = operations << 2 | cell.operations[v];
    return (uint64_t(cell.vertices) << kEdgeBits | cell.edges) << kOperationBits | operations;
}

Cell decode(uint64_t code) {
    const uint64_t shape = code >> kOperationBits;
    Cell cell = {int(shape >> kEdgeBits), uint32_t(shape & ((1u << kEdgeBits) - 1)), {}};
    for (int v = cell.vertices - 3; v >= 0; --v, code >>= 2) cell.operations[v] = code & 3;
    return cell;
}

bool valid(uint64_t code) {
    const uint64_t vertices = code >> kOperationBits >> kEdgeBits;
    if (vertices < 2 || vertices > uint64_t{kMaxVertices}) return false;
    const Cell cell = decode(code);
    const bool known = std::all_of(cell.operations, cell.operations + kMaxInner, [](int o) { return o < kOperations; });
    return known && cell.edges >> edge_bit(0, cell.vertices) == 0 && encode(cell) == code;
}

bool prune(Cell& cell) {
    uint32_t reached = 1, useful = 1u << (cell.vertices - 1);
    for (int y = 1; y < cell.vertices; ++y)
        if ((cell.edges >> edge_bit(0, y) & ((1u << y) - 1) & reached) != 0) reached |= 1u << y;
    for (int x = cell.vertices - 2; x >= 0; --x)
        for (int y = x + 1; y < cell.vertices; ++y)
            if (cell.has(x, y) && useful >> y & 1) useful |= 1u << x;
    const uint32_t kept = reached & useful;
    const auto place = [&](int v) { return std::popcount(kept & ((1u << v) - 1)); };
    Cell pruned = {std::popcount(kept), 0, {}};
    for (int y = 1; y < cell.vertices; ++y)
        for (int x = 0; x < y; ++x)
            if (cell.has(x, y) && kept >> x & kept >> y & 1) pruned.edges |= 1u << edge_bit(place(x), place(y));
    for (int v = 1; v < cell.vertices - 1; ++v)
        if (kept >> v & 1) pruned.operations[place(v) - 1] = cell.operations[v - 1];
    cell = pruned;
    return kept & 1;
}

uint64_t canonical(const Cell& cell) {
    uint64_t smallest = encode(cell);
    for_orders(cell.vertices, [&](const Order& order) {
        uint32_t edges;
        if (reorder(edges, cell, order))
            smallest = std::min(smallest, encode(with_operations_moved(cell, order, edges)));
        return true;
    });
    return smallest;
}

void hash(Digest* digests, const Cell* cells, size_t count) {
    for (size_t begin = 0, end; begin < count; begin = end) {
        const auto same = [&](const Cell& cell) {
            return cell.vertices == cells[begin].vertices && cell.edges == cells[begin].edges;
        };
        end = begin + 1;
        while (end < count && end < begin + kMd5Lanes && same(cells[end])) ++end;
        hash_together(digests + begin, cells + begin, end - begin);
    }
}

std::vector<uint64_t> enumerate() {
    std::vector<uint64_t> codes;
    std::vector<Order> automorphisms;
    for (int vertices = 2; vertices <= kMaxVertices; ++vertices) {
        const uint32_t masks = 1u << edge_bit(0, vertices);
        for (uint32_t edges = 1; edges < masks; ++edges) {
            const Cell shape = {vertices, edges, {}};
            if (std::popcount(edges) > kMaxEdges || !nothing_to_prune(shape)) continue;
            if (!is_smallest(automorphisms, shape)) continue;
            for_operations(shape, [&](const Cell& cell) {
                const uint64_t code = encode(cell);
                const auto no_smaller = [&](const Order& order) {
                    return code <= encode(with_operations_moved(cell, order, edges));
                };
                if (std::all_of(automorphisms.begin(), automorphisms.end(), no_smaller)) codes.push_back(code);
            });
        }
    }
    return codes;
}

}  // namespace zcpipe::nasbench101
