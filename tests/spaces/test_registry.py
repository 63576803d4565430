"""Spaces are found by name, and a wrong name is helped."""

import pytest

import zcpipe
from zcpipe.errors import UsageError


def test_nasbench201_is_installed():
    assert "nasbench201" in zcpipe.list_spaces()
    assert zcpipe.get_space("nasbench201").name == "nasbench201"


def test_unknown_space_names_the_near_one():
    with pytest.raises(UsageError, match="did you mean nasbench201"):
        zcpipe.get_space("nasbench210")
