import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.rank import top

VALUES = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0, math.inf, math.nan]), max_size=12)


@given(VALUES, st.integers(0, 15), st.sampled_from(["higher", "lower"]))
def test_against_sorting(values, k, direction):
    sign = -1 if direction == "higher" else 1
    valid = [i for i, value in enumerate(values) if not math.isnan(value)]
    expected = sorted(valid, key=lambda i: (sign * values[i], i))[:k]
    found = top(np.array(values, dtype=np.float64), k, direction)
    assert found.tolist() == expected and found.dtype == np.int64


def test_bad_input():
    with pytest.raises(UsageError, match="-1 best"):
        top(np.zeros(2), -1)
    with pytest.raises(UsageError, match="unknown direction"):
        top(np.zeros(2), 1, "up")
