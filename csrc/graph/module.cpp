// The Python module zcpipe._graph: arrays in, arrays and texts out. zcpipe/spaces/graphs.py checks what it passes on;
// what is checked here as well keeps any other caller from reading beyond an array.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "graph/cell.h"
#include "graph/nasbench101.h"

namespace {

namespace py = pybind11;
using namespace zcpipe;
using Cells = py::array_t<uint8_t, py::array::c_style>;  // [cells, edges] number of each edge's operation
using Codes = py::array_t<int64_t, py::array::c_style>;  // [cells]

Wiring make_wiring(const std::vector<std::pair<int, std::string>>& operations, std::vector<std::string> inputs,
                   const std::vector<std::pair<int, int>>& edges, std::vector<int> outputs) {
    std::vector<Operation> kinds;
    for (const auto& [kind, symbol] : operations) {
        if (kind < 0 || kind > int(Kind::kWeighted)) throw std::invalid_argument("operations: unknown kind");
        kinds.push_back({Kind(kind), symbol});
    }
    std::vector<Edge> pairs;
    for (const auto& [source, target] : edges) pairs.push_back({source, target});
    return {std::move(kinds), std::move(inputs), std::move(pairs), std::move(outputs)};
}

// The operations of each cell, row by row.
// A copy: other threads may write to the array once the interpreter is let go.
std::vector<uint8_t> rows_of(const Wiring& wiring, const Cells& cells) {
    if (cells.ndim() != 2 || size_t(cells.shape(1)) != wiring.edges.size())
        throw std::invalid_argument("cells: expected one column per edge");
    std::vector<uint8_t> rows(cells.data(), cells.data() + cells.size());
    for (uint8_t operation : rows)
        if (operation >= wiring.operations.size()) throw std::invalid_argument("cells: unknown operation");
    return rows;
}

std::vector<std::string> canonical_texts(const Wiring& wiring, const Cells& cells) {
    const std::vector<uint8_t> rows = rows_of(wiring, cells);
    const uint8_t* data = rows.data();
    const size_t count = size_t(cells.shape(0)), edges = wiring.edges.size();
    py::gil_scoped_release release;
    std::vector<std::string> texts;
    texts.reserve(count);
    Canonical canonical(wiring);
    for (size_t i = 0; i < count; ++i) {
        try {
            texts.push_back(canonical.text(data + i * edges));
        } catch (const std::length_error& error) {
            throw std::invalid_argument("cell " + std::to_string(i) + ": " + error.what());
        }
    }
    return texts;
}

py::array_t<bool> live(const Wiring& wiring, const Cells& cells) {
    const std::vector<uint8_t> rows = rows_of(wiring, cells);
    const uint8_t* data = rows.data();
    const size_t count = size_t(cells.shape(0)), edges = wiring.edges.size();
    py::array_t<bool> out({count, edges});
    bool* to = out.mutable_data();
    py::gil_scoped_release release;
    for (size_t i = 0; i < count; ++i) {
        const uint64_t bits = live_edges(wiring, data + i * edges);
        for (size_t edge = 0; edge < edges; ++edge) *to++ = bits >> edge & 1;
    }
    return out;
}

std::vector<nasbench101::Cell> decoded(const Codes& codes) {
    if (codes.ndim() != 1) throw std::invalid_argument("codes: expected one dimension");
    std::vector<nasbench101::Cell> cells;
    cells.reserve(size_t(codes.size()));
    for (py::ssize_t i = 0; i < codes.size(); ++i) {
        if (!nasbench101::valid(uint64_t(codes.at(i)))) throw std::invalid_argument("codes: not the code of a cell");
        cells.push_back(nasbench101::decode(uint64_t(codes.at(i))));
    }
    return cells;
}

// Applies `f` to the pruned cells; -1 where input and output are not connected.
template <typename F>
Codes map_pruned(const Codes& codes, const F& f) {
    std::vector<nasbench101::Cell> cells = decoded(codes);
    Codes out(codes.size());
    int64_t* to = out.mutable_data();
    py::gil_scoped_release release;
    for (nasbench101::Cell& cell : cells) *to++ = nasbench101::prune(cell) ? int64_t(f(cell)) : -1;
    return out;
}

std::vector<std::string> nasbench101_hashes(const Codes& codes) {
    std::vector<nasbench101::Cell> cells = decoded(codes);
    py::gil_scoped_release release;
    for (nasbench101::Cell& cell : cells)
        if (!nasbench101::prune(cell)) throw std::invalid_argument("codes: input and output are not connected");
    std::vector<Digest> digests(cells.size());
    nasbench101::hash(digests.data(), cells.data(), cells.size());
    std::vector<std::string> texts(cells.size(), std::string(32, '\0'));
    for (size_t i = 0; i < cells.size(); ++i) write_hex(reinterpret_cast<uint8_t*>(texts[i].data()), digests[i]);
    return texts;
}

Codes nasbench101_cells() {
    std::vector<uint64_t> codes;
    {
        py::gil_scoped_release release;
        codes = nasbench101::enumerate();
    }
    Codes out(py::ssize_t(codes.size()));
    std::copy(codes.begin(), codes.end(), out.mutable_data());
    return out;
}

}  // namespace

PYBIND11_MODULE(_graph, m) {
    py::class_<Wiring>(m, "Wiring").def(py::init(&make_wiring));
    m.def("canonical_texts", &canonical_texts);
    m.def("live_edges", &live);
    m.def("nasbench101_prune", [](const Codes& codes) { return map_pruned(codes, &nasbench101::encode); });
    m.def("nasbench101_canonical", [](const Codes& codes) { return map_pruned(codes, &nasbench101::canonical); });
    m.def("nasbench101_hashes", &nasbench101_hashes);
    m.def("nasbench101_cells", &nasbench101_cells);
}
