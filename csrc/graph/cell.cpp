#include "graph/cell.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace zcpipe {
namespace {

void append_number(std::string& to, uint64_t number) {
    char digits[20];
    to.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

}  // namespace

Wiring::Wiring(std::vector<Operation> operations_, std::vector<std::string> inputs_, std::vector<Edge> edges_,
               std::vector<int> outputs_)
    : operations(std::move(operations_)),
      inputs(std::move(inputs_)),
      edges(std::move(edges_)),
      outputs(std::move(outputs_)),
      nodes(int(inputs.size())) {
    const auto require = [](bool fits, const char* what) {
        if (!fits) throw std::invalid_argument(what);
    };
    require(!operations.empty() && operations.size() <= 256, "operations: expected 1 to 256");
    require(!inputs.empty() && inputs.size() <= size_t{kMaxNodes}, "inputs: expected 1 to 64");
    require(edges.size() <= size_t{kMaxEdges}, "edges: expected at most 64");
    require(!outputs.empty(), "outputs: expected at least one");
    for (const auto& [source, target] : edges) {
        require(0 <= source && source < target, "edges: expected each to lead to a higher node");
        require(size_t(target) >= inputs.size(), "edges: expected none to an input");
        nodes = std::max(nodes, target < kMaxNodes ? target + 1 : kMaxNodes + 1);
    }
    for (const int node : outputs) {
        require(node >= 0, "outputs: expected nodes");
        nodes = std::max(nodes, node < kMaxNodes ? node + 1 : kMaxNodes + 1);
    }
    require(nodes <= kMaxNodes, "expected at most 64 nodes");
    order.resize(edges.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return edges[a].target < edges[b].target; });
}

uint64_t live_edges(const Wiring& wiring, const uint8_t* cell) {
    const auto there = [&](int edge) { return wiring.operations[cell[edge]].kind != Kind::kZero; };
    uint64_t reached = 0, useful = 0, live = 0;
    for (size_t node = 0; node < wiring.inputs.size(); ++node) reached |= uint64_t{1} << node;
    for (const int node : wiring.outputs) useful |= uint64_t{1} << node;
    for (const int edge : wiring.order) {
        const auto [source, target] = wiring.edges[edge];
        if (there(edge) && reached >> source & 1) reached |= uint64_t{1} << target;
    }
    for (auto edge = wiring.order.rbegin(); edge != wiring.order.rend(); ++edge) {
        const auto [source, target] = wiring.edges[*edge];
        if (!there(*edge) || !(useful >> target & 1)) continue;
        useful |= uint64_t{1} << source;
        if (reached >> source & 1) live |= uint64_t{1} << *edge;
    }
    return live;
}

Canonical::Canonical(const Wiring& wiring)
    : wiring_(wiring),
      sums_(wiring.nodes),
      terms_(wiring.edges.size()),
      numbers_(wiring.edges.size()),
      parts_(wiring.outputs.size()) {}

// A weighted edge is an atom with weights of its own, so edges of equal text are told apart by numbers; the numbering
// that gives the smallest text is canonical.
const std::string& Canonical::text(const uint8_t* cell) {
    live_ = live_edges(wiring_, cell);
    std::fill(numbers_.begin(), numbers_.end(), 0);
    render(cell);
    group_twins(cell);
    if (twins_.empty()) return text_;
    if (numberings() > Wiring::kMaxWork / text_.size())
        throw std::length_error("its weighted edges can be numbered in too many ways");
    best_.clear();
    do {
        number();
        render(cell);
        if (best_.empty() || text_ < best_) best_.swap(text_);
    } while (next_numbering());
    return best_;
}

// Writes text_, and terms_ on the way.
void Canonical::render(const uint8_t* cell) {
    for (auto& sum : sums_) sum.clear();
    for (size_t node = 0; node < wiring_.inputs.size(); ++node) add(int(node), wiring_.inputs[node], 1);
    for (const int edge : wiring_.order) {
        if (!(live_ >> edge & 1)) continue;
        const auto [source, target] = wiring_.edges[edge];
        const Operation& operation = wiring_.operations[cell[edge]];
        if (operation.kind == Kind::kIdentity) {
            for (const Term& term : sums_[source]) add(target, *term.text, term.count);
            continue;
        }
        std::string& term = terms_[edge];
        term = operation.symbol;
        if (numbers_[edge] > 0) append_number(term += '#', uint64_t(numbers_[edge]));
        append_sum(term += '(', source);
        if (term.size() > Wiring::kMaxText) throw std::length_error("its text is too long");
        add(target, term += ')', 1);
    }
    text_.clear();
    if (parts_.size() == 1) {
        append_sum(text_, wiring_.outputs[0]);
    } else {
        for (size_t i = 0; i < parts_.size(); ++i) {
            parts_[i].clear();
            append_sum(parts_[i], wiring_.outputs[i]);
        }
        std::sort(parts_.begin(), parts_.end());
        for (const std::string& part : parts_) (text_ += text_.empty() ? '[' : ',') += part;
        text_ += ']';
    }
    if (text_.size() > Wiring::kMaxText) throw std::length_error("its text is too long");
}

void Canonical::add(int node, const std::string& text, uint64_t count) {
    for (Term& term : sums_[node]) {
        if (*term.text == text) {
            term.count += count;
            return;
        }
    }
    sums_[node].push_back({&text, count});
}

void Canonical::append_sum(std::string& to, int node) {
    auto& sum = sums_[node];
    if (sum.empty()) to += '0';
    std::sort(sum.begin(), sum.end(), [](const Term& a, const Term& b) { return *a.text < *b.text; });
    for (size_t i = 0; i < sum.size(); ++i) {
        if (i > 0) to += '+';
        if (sum[i].count > 1) append_number(to, sum[i].count);
        to += *sum[i].text;
    }
}

void Canonical::group_twins(const uint8_t* cell) {
    twins_.clear();
    for (size_t edge = 0; edge < terms_.size(); ++edge) {
        if (!(live_ >> edge & 1) || wiring_.operations[cell[edge]].kind != Kind::kWeighted) continue;
        const auto equal = [&](const std::vector<int>& group) { return terms_[group.front()] == terms_[edge]; };
        const auto group = std::find_if(twins_.begin(), twins_.end(), equal);
        if (group == twins_.end())
            twins_.push_back({int(edge)});
        else
            group->push_back(int(edge));
    }
    std::erase_if(twins_, [](const std::vector<int>& group) { return group.size() == 1; });
}

uint64_t Canonical::numberings() const {
    uint64_t product = 1;
    for (const auto& group : twins_) {
        for (uint64_t k = 2; k <= group.size(); ++k) {
            product *= k;
            if (product > Wiring::kMaxWork) return product;
        }
    }
    return product;
}

bool Canonical::next_numbering() {
    return std::any_of(twins_.begin(), twins_.end(),
                       [](auto& group) { return std::next_permutation(group.begin(), group.end()); });
}

void Canonical::number() {
    for (const auto& group : twins_)
        for (size_t i = 0; i < group.size(); ++i) numbers_[group[i]] = int(i) + 1;
}

}  // namespace zcpipe
