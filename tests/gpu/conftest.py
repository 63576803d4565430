"""The tests of this folder need a device and a library with CUDA kernels; elsewhere they are skipped, and say so."""

import pytest
import torch

from zcpipe.ops import build_info


@pytest.fixture(autouse=True)
def device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if not build_info()["cuda"]:
        pytest.skip("the native library holds no CUDA kernels: FORCE_CUDA=1 make build")
    torch.manual_seed(0)
    return torch.device("cuda", torch.cuda.current_device())
