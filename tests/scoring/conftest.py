"""What the tests of fused steps share."""

import pytest

from zcpipe.ops import available
from zcpipe.scoring import cells


@pytest.fixture
def native():
    """The native library, without which nothing is fused."""
    if not available():
        pytest.skip("the native library is not built")


@pytest.fixture
def steps(native, monkeypatch):
    """Count what runs as one step."""
    counted = []
    apply = cells._Cell.apply
    monkeypatch.setattr(cells._Cell, "apply", lambda *a: counted.append(1) or apply(*a))
    return counted
