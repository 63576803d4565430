"""What the tests of the ops share."""

import pytest
import torch

from zcpipe.ops import available


@pytest.fixture
def native():
    """The native library, without which there is nothing to compare the twins with."""
    if not available():
        pytest.skip("the native library is not built")


@pytest.fixture
def no_native(monkeypatch):
    """The twins, as if the library were not built."""
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=["contiguous", "channels_last", "sliced", "transposed", "expanded"])
def strided(request):
    """A function that gives images the strides of the parameter's name, keeping their values (but for expanded)."""

    def sliced(x):
        wide = x.new_empty(x.shape[0], x.shape[1] + 2, x.shape[2], 2 * x.shape[3] + 1)
        wide[:, 1:-1, :, 1::2] = x
        return wide[:, 1:-1, :, 1::2]

    return {
        "contiguous": lambda x: x.contiguous(),
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "sliced": sliced,
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda x: x[:, :, :1].expand(x.shape),
    }[request.param]
