"""Small files in the forms of NAS-Bench-101, written here from their definitions."""

from __future__ import annotations

import base64
import functools
import json
import pickle
import struct

import numpy as np

from zcpipe import get_space

SPACE = get_space("nasbench101")
CELLS = [SPACE[index] for index in (0, 5, 1000, 359715)]
EPOCHS = (4, 12, 36, 108)
REPEATS = 3


def values(cell, epochs, repeat):
    """Seconds, and fractions of train, validation and test: different for all they may be confused with."""
    start = (SPACE.index(cell) % 97) / 1000 + epochs / 10000 + repeat / 100
    return 7.5 * epochs + repeat, start + 0.6, start + 0.3, start + 0.2


@functools.cache
def params(cell):
    return SPACE.size(cell, "cifar10").params


@functools.cache
def written(cell):
    """Adjacency row by row, and operations, as the benchmark writes them."""
    return "".join(map(str, cell.adjacency.ravel())), ",".join(cell.operations)


def varint(number):
    code = bytearray()
    while number > 0x7F:
        code.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*code, number])


def evaluation(epoch, numbers, path=""):
    """An EvaluationData message; the path, which the official files leave out, is a field to be passed over."""
    fields = [bytes([field << 3 | 1]) + struct.pack("<d", x) for field, x in enumerate((epoch, *numbers), start=1)]
    return b"".join(fields) + (b"\x32" + varint(len(path)) + path.encode() if path else b"")


@functools.cache
def message(cell, epochs, repeat):
    parts = [
        evaluation(0.0, (0.0, 0.1, 0.1, 0.1), "model.ckpt-0"),
        evaluation(epochs / 2, (1.0, 0.5, 0.5, 0.5)),
        evaluation(float(epochs), values(cell, epochs, repeat)),
    ]
    evaluations = b"".join(b"\x0a" + varint(len(part)) + part for part in parts)
    return evaluations + b"\x10" + varint(params(cell)) + b"\x19" + struct.pack("<d", 1234.5)


def record(cell, epochs, repeat):
    content = [SPACE.key(cell), epochs, *written(cell), base64.b64encode(message(cell, epochs, repeat)).decode()]
    return json.dumps(content).encode()


@functools.cache
def remainder(byte):
    """By the definition, bit by bit."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ remainder((crc ^ byte) & 0xFF)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(payload):
    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def payloads(cells=CELLS, epochs=EPOCHS):
    return [record(cell, budget, repeat) for cell in cells for budget in epochs for repeat in range(REPEATS)]


def tfrecord(cells=CELLS, epochs=EPOCHS):
    return b"".join(map(frame, payloads(cells, epochs)))


def naslib(cells=CELLS):
    """The content of NASLib's nasbench_only108.pkl."""

    def computed(cell, repeat):
        names = ("training_time", "train_accuracy", "validation_accuracy", "test_accuracy")
        halfway = {f"halfway_{name}": 0.5 for name in names}
        return halfway | {f"final_{name}": x for name, x in zip(names, values(cell, 108, repeat), strict=True)}

    def fixed(cell):
        return {
            "module_adjacency": np.array(cell.adjacency, np.int8),
            "module_operations": list(cell.operations),
            "trainable_parameters": params(cell),
        }

    return {SPACE.key(cell): (fixed(cell), {108: [computed(cell, r) for r in range(REPEATS)]}) for cell in cells}


def nasbenchapi(cells=CELLS, epochs=EPOCHS):
    """The content of the pickle of the package nasbenchapi."""

    def entry(cell, budget, repeat):
        seconds, train, validation, test = values(cell, budget, repeat)
        adjacency, operations = written(cell)
        return {
            "epoch": budget,
            "adjacency_str": adjacency,
            "operations_str": operations,
            "metrics_b64": base64.b64encode(message(cell, budget, repeat)).decode(),
            "derived": {
                "trainable_parameters": params(cell),
                "training_time": seconds,
                "train_accuracy": train,
                "validation_accuracy": validation,
                "test_accuracy": test,
            },
        }

    entries = {
        SPACE.key(cell): [entry(cell, budget, repeat) for budget in epochs for repeat in range(REPEATS)]
        for cell in cells
    }
    return {
        "benchmark": "nasbench101",
        "format": "lossless",
        "entries_by_arch": entries,
        "latest_by_arch": {key: entry(cell, 108, 0) for key, cell in zip(entries, cells, strict=True)},
        "num_records": sum(map(len, entries.values())),
        "fallback_records": [{} for _ in range(6)],
    }


def pickled(content, protocol=5):
    return pickle.dumps(content, protocol)
