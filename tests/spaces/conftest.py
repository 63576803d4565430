"""What the tests of the spaces share."""

import pytest

from zcpipe.spaces import _native


@pytest.fixture(scope="session")
def native():
    """The native module, without which there is nothing to compare the twins with."""
    found = _native.module()
    if found is None:
        pytest.skip("the native module is not built")
    return found


@pytest.fixture
def no_native(monkeypatch):
    """The twins, as if the module were not built."""
    monkeypatch.setenv("ZCPIPE_NO_NATIVE", "1")


@pytest.fixture(params=["native", "twin"])
def either(request):
    """Both implementations, one after the other."""
    request.getfixturevalue("native" if request.param == "native" else "no_native")
