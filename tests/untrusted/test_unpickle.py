import bz2
import collections
import contextlib
import copyreg
import datetime
import functools
import gc
import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import DataError
from zcpipe.untrusted.plain import ARRAY_GLOBALS, Array
from zcpipe.untrusted.unpickle import Limits, load

ATOMS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
KEYS = ATOMS | st.tuples(st.text(), st.integers(0, 999))
TREES = st.recursive(
    ATOMS | st.binary() | st.frozensets(st.integers(0, 9)).map(set),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(KEYS, inner).map(collections.OrderedDict)
        | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=30,
)


class Call:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def refused(data, *words, **options):
    with pytest.raises(DataError) as caught:
        load(data, "some.pickle", **options)
    message = str(caught.value)
    assert message.startswith("some.pickle: ")
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message
    return message


# What the benchmarks write is read as Python's own unpickler reads it.


@given(TREES, st.sampled_from([4, 5]), st.booleans())
def test_same_as_python(tree, protocol, compressed):
    data = pickle.dumps(tree, protocol=protocol)
    read = load(bz2.compress(data) if compressed else data, "f")
    assert read == tree == pickle.loads(data)


@given(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.integers(-(2**31), 2**31 - 1)))
def test_older_protocols(tree):
    for protocol in (2, 3):
        assert load(pickle.dumps(tree, protocol=protocol), "f") == tree


def test_long_content_in_small_pieces():
    """Batches of a thousand entries, long texts, back references: more than one piece of input."""
    texts = [f"text {i}" * (1 + i % 90) for i in range(4000)]
    tree = {"texts": texts, "again": texts[::-1], "big": "x" * 3_000_000, "curve": {i: i / 7 for i in range(20_000)}}

    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 777))

    data = pickle.dumps(tree, protocol=4)
    assert load(data, "f") == tree
    assert load(Slow(data), "f") == tree
    assert load(Slow(bz2.compress(data)), "f") == tree


@pytest.mark.parametrize("code", ["b1", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_numpy_scalars(code, order):
    values = [np.dtype(order + code).type(1), np.float64(2.5), np.float64(-np.inf), np.float64(0.1)]
    read = load(pickle.dumps(values, protocol=4), "f")
    assert read == [value.item() for value in values]
    assert {type(value) for value in read} <= {bool, int, float}


def test_big_endian_scalar():
    scalar, dtype = np.float64(1).__reduce__()[0], np.dtype(">f8")
    data = pickle.dumps(Call(scalar, dtype, struct.pack(">d", 0.1)), protocol=4)
    assert load(data, "f") == 0.1


def test_both_module_names_of_numpy():
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        name = np.float64(1).__reduce__()[0].__module__
        data = pickle.dumps(np.float64(0.5), protocol=4).replace(*(_short(text) for text in (name, module)))
        # Frames carry a length, which the longer name makes wrong; nothing depends on it.
        assert load(data, "f") == 0.5


def _short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


# Nothing in a file is run, whatever it asks for.

SPAWN = [
    Call(os.system, "touch {}"),
    Call(eval, "open('{}', 'w')"),
    Call(exec, "open('{}', 'w')"),
    Call(getattr, collections.OrderedDict, "fromkeys"),
    Call(functools.partial, os.system),
    Call(copyreg._reconstructor, object, object, None),
    Call(np.core.multiarray._reconstruct if not hasattr(np, "_core") else np._core.multiarray._reconstruct, np.ndarray),
    datetime.date(2020, 1, 1),
    np.arange(3),
    complex(1, 2),
    slice(1),
    range(3),
    len,
    Call,
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("thing", SPAWN, ids=[f"{i}" for i in range(len(SPAWN))])
def test_only_data(thing, protocol, tmp_path):
    trap = tmp_path / "run"
    if isinstance(thing, Call) and isinstance(thing.reduced[1][0], str):
        thing = Call(thing.reduced[0], thing.reduced[1][0].format(trap))
    for tree in (thing, [{"deep": (thing,)}], collections.OrderedDict(a=thing), {"a": 1, "b": [thing] * 3}):
        for data in (pickle.dumps(tree, protocol=protocol), bz2.compress(pickle.dumps(tree, protocol=protocol))):
            refused(data, "nothing in it was run")
    assert not trap.exists()


def test_the_forbidden_global_is_named():
    refused(pickle.dumps(Call(os.system, "true"), protocol=4), "posix.system" if os.name == "posix" else "system")
    refused(pickle.dumps(Call(eval, "1"), protocol=2), "eval")
    refused(b"\x80\x02cos\nsystem\n\x8c\x04true\x85R.", "os.system")
    refused(b"\x80\x04" + _short("a\x1b[2J\nb" * 9) + _short("x" * 200) + b"\x93.", "global")


def test_a_scalar_cannot_smuggle_objects(tmp_path):
    scalar = np.float64(1).__reduce__()[0]
    inner = pickle.dumps(Call(os.system, f"touch {tmp_path / 'run'}"))
    for dtype in (
        np.dtype("O"),
        np.dtype([("a", "O")]),
        np.dtype("V8"),
        np.dtype("U4"),
        np.dtype("M8[s]"),
        np.dtype("c16"),
    ):
        for payload in (inner, [1], "text"):
            refused(pickle.dumps(Call(scalar, dtype, payload), protocol=4), "nothing in it was run")
    f8 = np.dtype("f8")
    for arguments in ((f8,), (f8, b"123"), (f8, b"1" * 9), (f8, "12345678"), ("f8", b"1" * 8), (f8, b"1" * 8, 1)):
        refused(pickle.dumps(Call(scalar, *arguments), protocol=4))
    assert not (tmp_path / "run").exists()


def dtype_with(state):
    class DType:
        def __reduce__(self):
            return np.dtype, ("f8", False, True), state

    return pickle.dumps(DType(), protocol=4)


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", (np.dtype("f8"), (2,)), None, None, -1, -1, 0),
        (3, "<", None, ("a",), {"a": 1}, 8, 1, 27),
        (3, "<", None, None, None, -1, -1, 63),
        (4, "<", None, None, None, -1, -1, 0, {}),
        (3, "O", None, None, None, -1, -1, 0),
        (3, 7, None, None, None, -1, -1, 0),
        {"a": 1},
        (None, {"code": "O"}),
        7,
    ],
    ids=str,
)
def test_hostile_dtype_states(state):
    refused(dtype_with(state))


def test_a_state_for_anything_else():
    refused(b"\x80\x04}}b.", "state")
    refused(b"\x80\x04ccollections\nOrderedDict\n}b.", "state")
    refused(b"\x80\x04ccollections\nOrderedDict\n)R}b.", "state")


@pytest.mark.parametrize(
    "operation",
    [
        b"Pid\n",  # a persistent id
        b"K\x01Q",  # the same from the stack
        b"\x82\x01",  # an extension
        b"(ios\nsystem\n",  # INST
        b"(cos\nsystem\no",  # OBJ
        b"ccollections\nOrderedDict\n)\x81",  # NEWOBJ
        b"ccollections\nOrderedDict\n)}\x92",  # NEWOBJ_EX
        b"\x97",  # an out-of-band buffer
        b"]2",  # DUP
        b"I1\n",  # text forms of protocol 0
    ],
    ids=repr,
)
def test_other_operations(operation):
    refused(b"\x80\x04" + operation + b".", "nothing in it was run")


def test_unknown_operations():
    refused(b"\x80\x04\xff.", "damaged")
    refused(b"\x80\x04\x00.", "damaged")


def test_calls_of_made_things():
    refused(b"\x80\x04})R.", "call")
    refused(b"\x80\x04\x8c\x06system)R.", "call")
    refused(b"\x80\x04ccollections\nOrderedDict\n]R.", "call")
    refused(b"\x80\x04ccollections\nOrderedDict\n}\x85R.")


# Damage ends as one clear line.


@given(TREES, st.data())
def test_truncated(tree, draw):
    data = pickle.dumps(tree, protocol=4)
    refused(data[: draw.draw(st.integers(0, len(data) - 1))])
    packed = bz2.compress(data)
    refused(packed[: draw.draw(st.integers(3, len(packed) - 1))], "bz2")


@given(TREES, st.data())
def test_damaged(tree, draw):
    """Any changed byte gives an object or a DataError, never another exception."""
    data = bytearray(pickle.dumps(tree, protocol=4))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    for content in (bytes(data), b"\x80\x04" + bytes(data[2:]) + b"."):
        with contextlib.suppress(DataError):
            load(content, "f")


@given(st.binary())
def test_noise(data):
    for content in (data, b"\x80\x04" + data, b"BZh9" + data):
        with contextlib.suppress(DataError):
            load(content, "f")


def test_bytes_after_the_end():
    data = pickle.dumps({"a": 1}, protocol=4)
    refused(data + b"x")
    refused(data + bytes(3 << 20))
    refused(bz2.compress(data + b"x"))
    refused(bz2.compress(data) + b"xyz", "bz2")
    assert load(bz2.compress(data[:5]) + bz2.compress(data[5:]), "f") == {"a": 1}  # several streams are legal


def test_no_pickle():
    for data in (b"", b"{}", b"PAR1", b"\x93NUMPY", b"(dp0\nI1\n.", bz2.compress(b"hello")):
        refused(data)


def test_damaged_bz2():
    data = bytearray(bz2.compress(pickle.dumps(list(range(1000)))))
    data[len(data) // 2] ^= 0xFF
    refused(bytes(data), "bz2")


# A file cannot take more than its limits.


def test_a_bomb_of_content():
    data = pickle.dumps(bytes(3_000_000), protocol=4)
    assert len(bz2.compress(data)) < 100
    refused(bz2.compress(data), "1000000 bytes", limits=Limits(content=1_000_000))


@pytest.mark.parametrize(
    "operations",
    [b"N", b"}", b"]\x94", b"\x8f\x940", b"K\x01\x85\x94", b"]K\x01a0", b"K\x01", b"("],
    ids=repr,
)
def test_a_bomb_of_objects(operations):
    data = b"\x80\x04" + operations * (300_000 // len(operations)) + b"."
    refused(bz2.compress(data), "more objects", limits=Limits(objects=10_000, memo=10_000))


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content


BOMBS = {
    "long texts": [text(b"%05d" % i * 200_000) for i in range(6)],
    "wide texts": [text(b"%05d" % i * 200_000 + "\U0001f600".encode()) for i in range(6)],
    "long bytes": [b"B" + struct.pack("<I", 1_000_000) + bytes(1_000_000)] * 6,
    "middling bytes": [b"B" + struct.pack("<I", 1000) + bytes(1000)] * 6_000,
    "short texts": [b"\x8c\x05%05d" % i for i in range(99_999)],
    "dicts": [b"}"] * 100_000,
    "dicts of one": [b"}NNs"] * 40_000,
    "lists of one": [b"]Na"] * 40_000,
    "sets": [b"\x8f"] * 50_000,
    "globals": [b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94", b"h\0h\1\x93" * 60_000],
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory(name):
    """What a file makes Python allocate stays near a hundred bytes for each object it may have."""
    data = bz2.compress(b"\x80\x04" + b"".join(BOMBS[name]) + b".")
    tracemalloc.start()
    try:
        refused(data, "more objects", limits=Limits(objects=50_000, memo=50_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Besides the objects: one piece's worth of them before the next check, and the decompressor with its buffers.
    assert peak < 50_000 * 120 + 30_000_000


def test_nothing_lingers():
    """What was read is freed with the last reference to it, without waiting for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(3):
            load(pickle.dumps([{i: [i]} for i in range(2000)], protocol=4), "f")
        assert len(gc.get_objects()) - before < 1000
    finally:
        gc.enable()


def test_what_fails_in_python_is_the_files_fault():
    for error in (RuntimeError("dictionary changed size"), RecursionError("maximum recursion depth")):

        def broken(record, error=error):
            raise error

        refused(pickle.dumps({"a": 1}, protocol=4), type(error).__name__, on_dict=broken)


def test_a_huge_memo_index():
    refused(b"\x80\x04]r\xff\xff\xff\x7f.")
    refused(b"\x80\x04]j\xff\xff\xff\x7f.")


def test_huge_items():
    for operation in (b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 7 + b"\0", b"B\xff\xff\xff\xff"):
        refused(b"\x80\x04" + operation + b"x.", "single item")
    for operation in (b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8):
        refused(b"\x80\x04" + operation + b"x.", "damaged")
    for number in (1 << 63, -(1 << 63) - 1, 1 << 64):
        refused(pickle.dumps(number, protocol=4), "64 bits")
    refused(pickle.dumps(1 << 5000, protocol=4))


def test_deep_nesting():
    """Hashing nested tuples recurses in C without a guard: such keys would crash the process."""
    deep = 100_000
    assert load(b"\x80\x04)" + b"\x85" * deep + b".", "f")
    refused(b"\x80\x04})" + b"\x85" * deep + b"Ns.", "key")
    refused(b"\x80\x04\x8f()" + b"\x85" * deep + b"\x90.", "key")
    load(b"\x80\x04" + b"]" * deep + b"a" * (deep - 1) + b".", "f")


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def test_keys_whose_hashes_a_file_could_choose():
    """Python salts no hash of numbers or of tuples of them: where those collide, a dict takes quadratic time."""
    pair = {("cifar10", 777): 1, ("cifar100", 2**15 - 1): 2}
    assert load(pickle.dumps(pair, protocol=4), "f") == pair
    for key in ((1, 2), ("a", 2**15), ("a", -1), ("a", True), ("a", 1.0), ("a", "b"), ("a",), ("a", 1, 2), ()):
        refused(pickle.dumps({key: None}, protocol=4), "a tuple as a key")
        refused(pickle.dumps({key}, protocol=4), "a tuple as a key")
    dense = b"\x80\x04}(" + b"".join(number(value) + b"N" for value in range(2**15)) + b"u."
    assert len(load(dense, "f")) == 2**15
    for values in (range(2**15, 2**15 + 1001), range(-1001, 0), [float(i) for i in range(1001)]):
        refused(pickle.dumps(dict.fromkeys(values), protocol=4), "more than 1000 keys")
        refused(pickle.dumps([{value} for value in values], protocol=4), "more than 1000 keys")
        load(pickle.dumps(dict.fromkeys(values[1:]), protocol=4), "f")


def test_a_key_twice():
    """Python would keep the second value alone."""
    refused(b"\x80\x04}(\x8c\x01aN\x8c\x01aNu.", "a key twice")
    refused(b"\x80\x04}\x8c\x01aNs\x8c\x01aNs.", "a key twice")
    refused(b"\x80\x04}(\x8c\0NK\x01NK\x01Nu.", "a key twice")
    refused(b"\x80\x04}(\x8c\0NK\x01Nu(\x8c\0NK\x01Nu.", "a key twice")
    long = {"y" * 21: 1, "z" * 21: 2, "x": 3}
    assert load(pickle.dumps(long, 4), "f", limits=Limits(text=20)) == {"": 2, "x": 3}


def test_streams_of_next_to_nothing():
    """Each costs time of its own, though there is hardly any content to count."""
    data = pickle.dumps({"a": 1}, protocol=4)
    few = b"".join(bz2.compress(bytes([byte])) for byte in data[:14]) + bz2.compress(data[14:])
    assert load(few, "f", limits=Limits(content=16 << 12)) == {"a": 1}
    for part in (b"", b"N"):
        refused(
            bz2.compress(b"\x80\x04") + bz2.compress(part) * 16,
            "more than 16 bz2 streams",
            limits=Limits(content=16 << 12),
        )


def test_unhashable_keys():
    refused(b"\x80\x04}]Ns.", "key")
    refused(b"\x80\x04}ccollections\nOrderedDict\nNs.", "key")


def test_self_reference():
    loop = []
    loop.append(loop)
    read = load(pickle.dumps(loop, protocol=4), "f")
    assert read[0] is read


def test_unreadable_file():
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    refused(Broken(), "Input/output error")


# Arrays, for readers that ask for them.


@given(
    st.sampled_from(["u1", "<i4", ">i8", "<f4", "|b1"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([2, 3, 4, 5]),
)
def test_arrays_of_plain_numbers(code, shape, protocol):
    array = np.arange(np.prod(shape)).reshape(shape).astype(code)
    found = load(pickle.dumps({"data": array}, protocol=protocol), "some.pickle", names=ARRAY_GLOBALS)["data"]
    assert type(found) is Array
    assert found.value.dtype == array.dtype
    assert np.array_equal(found.value, array)


def array_with(state):
    """An array as numpy pickles it, of any state."""

    class Odd:
        def __reduce__(self):
            return np.array([1]).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    return pickle.dumps(Odd(), protocol=4)


@pytest.mark.parametrize(
    "state",
    [
        (1, (5,), np.dtype("u1"), False, b"four"),
        (1, (-2, -2), np.dtype("u1"), False, b"four"),
        (1, (2.0, 2), np.dtype("u1"), False, b"four"),
        (1, (1,) * 40, np.dtype("u1"), False, b"x"),
        (1, (2, 2), np.dtype("u1"), True, b"four"),
        (1, (1 << 40, 1 << 40), np.dtype("u1"), False, b"four"),
        (1, (1,), np.dtype("O"), False, [print]),
        (1, (4,), np.dtype("u1"), False, "four"),
        (1, (4,), "u1", False, b"four"),
        (2, (4,), np.dtype("u1"), False, b"four"),
        ("four",),
        "four",
    ],
)
def test_arrays_that_are_not_what_they_say(state):
    refused(array_with(state), names=ARRAY_GLOBALS)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"four", np.dtype("u1"), (5,), "C"),
        (b"four", np.dtype("u1"), (-2, -2), "C"),
        (b"four", np.dtype("u1"), (1 << 40, 1 << 40), "C"),
        (b"four", np.dtype("u1"), (2, 2), "F"),
        (b"x", np.dtype("u1"), (1,) * 40, "C"),
        ([print], np.dtype("O"), (1,), "C"),
        ("four", np.dtype("u1"), (4,), "C"),
        (b"four", "u1", (4,), "C"),
        (b"four", np.dtype("u1"), (4,)),
    ],
)
def test_arrays_of_protocol_5_that_are_not_what_they_say(arguments):
    maker = np.zeros(1).__reduce_ex__(5)[0]
    refused(pickle.dumps(Call(maker, *arguments), protocol=5), names=ARRAY_GLOBALS)


def test_arrays_are_refused_where_none_belong():
    refused(pickle.dumps(np.zeros(3)), "_reconstruct", "nothing in it was run")
    refused(pickle.dumps(np.zeros(3), protocol=5), "_frombuffer", "nothing in it was run")


def test_texts_of_python_2_are_bytes_and_its_memo_begins_at_1():
    assert load(b"\x80\x02}q\x01U\x03keyq\x02]q\x03(U\x02\xff\x00T\x01\x00\x00\x00xh\x02es.", "some.pickle") == {
        b"key": [b"\xff\x00", b"x", b"key"]
    }


def test_byte_arrays_are_bytes():
    assert load(b"\x80\x05\x96\x02" + bytes(7) + b"ab.", "some.pickle") == b"ab"
    refused(pickle.dumps(bytearray(b"x"), protocol=4), "builtins.bytearray", "nothing in it was run")


def test_a_single_item_may_not_be_larger_than_its_reader_expects():
    data = pickle.dumps(b"x" * 100, protocol=4)
    assert load(data, "some.pickle", limits=Limits(item=200)) == b"x" * 100
    refused(data, "a single item of", limits=Limits(item=50))


def test_texts_longer_than_wanted_come_out_empty():
    tree = {"short": "x" * 20, "y" * 21: ["y" * 21, "x" * 20]}
    for protocol in (2, 4):
        read = load(pickle.dumps(tree, protocol), "some.pickle", limits=Limits(text=20))
        assert read == {"short": "x" * 20, "": ["", "x" * 20]}
