"""What torch.save wrote, in both of its forms, is read as torch reads it; anything else ends in a clear error."""

import os
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import DataError
from zcpipe.untrusted.torchfile import load_torch
from zcpipe.untrusted.unpickle import Limits

CONTENT = {"a": [1.5, -2, None, True], "b": OrderedDict(x=(1, "two")), "c": {"d": {}}, "e": np.float64(0.25)}


@pytest.fixture(params=[True, False], ids=["zip", "row"])
def save(request, tmp_path):
    def save(content, name="file.pth"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about the old form
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param)
        return tmp_path / name

    return save


def refused(path, *words, **options):
    with pytest.raises(DataError) as caught:
        load_torch(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    for word in words:
        assert word in message


def test_same_as_torch(save):
    path = save(CONTENT)
    assert load_torch(path) == torch.load(path, weights_only=False) == CONTENT


def test_long_content_and_progress(save):
    content, told = {"curve": [i / 7 for i in range(200_000)]}, []
    path = save(content)
    assert load_torch(path, progress=told.append) == content
    assert 0.9 * path.stat().st_size < sum(told) <= path.stat().st_size


def test_a_reader_may_drop_what_it_does_not_need(save):
    path = save({"keep": 1, "drop": [1, 2, 3]})
    assert load_torch(path, on_dict=lambda record: len(record.pop("drop", ()))) == {"keep": 1}


def test_nothing_is_run(save, tmp_path):
    class Run:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    refused(save({"a": Run()}), "system", "nothing in it was run")
    assert not (tmp_path / "run").exists()


def test_tensors_are_refused(save):
    refused(save({"a": torch.zeros(3)}))


def test_limits_hold(save):
    refused(save({"a": list(range(100_000))}), "more", limits=Limits(objects=1000))
    refused(save({"a": ["x" * 1000 + str(i) for i in range(1000)]}), "bytes", limits=Limits(content=100_000))


def test_every_truncation_is_named(save):
    path = save(CONTENT)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_ends_in_a_result_or_a_clear_error(save, data):
    path = save(CONTENT)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        load_torch(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "file.pth"
    refused(path, "no such file")
    refused(tmp_path, "no such file")
    for content in (b"", b"hello" * 99, pickle.dumps(CONTENT, protocol=2)):
        path.write_bytes(content)
        refused(path, "no file of torch.save")


def test_zip_archives_of_others_are_named(tmp_path):
    path, data = tmp_path / "file.pth", pickle.dumps(CONTENT, protocol=2)
    for names, kind in (
        ([], zipfile.ZIP_STORED),
        (["readme.txt"], zipfile.ZIP_STORED),
        (["a/data.pkl", "b/data.pkl"], zipfile.ZIP_STORED),
        (["a/data.pkl"], zipfile.ZIP_DEFLATED),
    ):
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("first", "")
            for name in names:
                archive.writestr(name, data)
        refused(path, "data.pkl")
