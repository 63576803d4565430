"""What `zcpipe doctor` says of the installation."""

import pytest

from zcpipe import doctor
from zcpipe.errors import CapabilityError


@pytest.mark.parametrize(
    ("built", "said"),
    [
        (None, None),
        ("13.0 shared", "13.0, torch's"),
        ("13.0 static", "13.0, its own: needs a driver for CUDA 13 or newer"),
    ],
)
def test_names_the_driver_that_the_librarys_own_cuda_runtime_needs(monkeypatch, built, said):
    info = {"path": "_C.abi3.so", "cuda": built is not None, "cuda_runtime": built}
    monkeypatch.setattr(doctor.ops, "build_info", lambda: info)
    report = doctor.examine()
    assert report["cuda runtime"] == said and report["cuda kernels"] is (built is not None)


def test_says_why_a_library_does_not_fit(monkeypatch):
    def misfit():
        raise CapabilityError("the native library does not fit torch; rebuild it")

    monkeypatch.setattr(doctor.ops, "build_info", misfit)
    assert doctor.examine()["native library"] == "the native library does not fit torch; rebuild it"
