// Cells as weighted graphs: which edges live, and the one text of what a cell computes. Free of Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zcpipe {

enum class Kind : uint8_t { kZero, kIdentity, kFree, kWeighted };

struct Operation {
    Kind kind;
    std::string symbol;  // how a text names it; zero and identity are never named
};

struct Edge {
    int source, target;
};

// Everything about a cell but the operations on its edges. Nodes are summed; the first ones are the inputs.
struct Wiring {
    static constexpr int kMaxNodes = 64, kMaxEdges = 64;  // a bit each
    static constexpr size_t kMaxText = size_t{1} << 16;
    static constexpr uint64_t kMaxWork = uint64_t{1} << 30;  // numberings times the length of the text

    std::vector<Operation> operations;
    std::vector<std::string> inputs;
    std::vector<Edge> edges;  // each to a higher node that is no input
    std::vector<int> outputs;
    int nodes;               // as many as the others mention
    std::vector<int> order;  // edges, sorted by their targets

    // Throws std::invalid_argument for what is no wiring.
    Wiring(std::vector<Operation> operations, std::vector<std::string> inputs, std::vector<Edge> edges,
           std::vector<int> outputs);
};

// The edges of a cell that lie on a path from an input to an output, as bits. `cell` holds the number of each edge's
// operation, which must be one.
uint64_t live_edges(const Wiring& wiring, const uint8_t* cell);

// Writes the canonical text of a cell's output. Throws std::length_error where a text or the search for it would be
// beyond the limits.
class Canonical {
  public:
    explicit Canonical(const Wiring& wiring);
    const std::string& text(const uint8_t* cell);

  private:
    struct Term {
        const std::string* text;
        uint64_t count;
    };

    void render(const uint8_t* cell);
    void add(int node, const std::string& text, uint64_t count);
    void append_sum(std::string& to, int node);
    void group_twins(const uint8_t* cell);
    bool next_numbering();
    void number();
    uint64_t numberings() const;

    const Wiring& wiring_;
    uint64_t live_ = 0;
    std::vector<std::vector<Term>> sums_;  // of each node
    std::vector<std::string> terms_;       // of each edge
    std::vector<int> numbers_;             // of each edge; 0 is not written
    std::vector<std::vector<int>> twins_;  // edges whose terms are equal but for their weights, in canonical order
    std::vector<std::string> parts_;       // of a concatenation
    std::string text_, best_;
};

}  // namespace zcpipe
