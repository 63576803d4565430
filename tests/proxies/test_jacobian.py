"""What jacob_cov and epe_nas cannot measure; their values are compared with published ones in tests/scoring."""

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError


def test_one_sample_correlates_with_nothing():
    with pytest.raises(UnsupportedError, match="jacob_cov needs two samples or more, got 1"):
        zcpipe.score(nn.Linear(6, 4), torch.randn(1, 6), None, ["jacob_cov"])
    assert zcpipe.score(nn.Linear(6, 4), torch.randn(2, 6), None, ["jacob_cov"]).status == "ok"


def test_targets_that_are_no_class_numbers_are_unsupported():
    with pytest.raises(UnsupportedError, match="epe_nas needs one class number per sample"):
        zcpipe.score(nn.Linear(6, 4), torch.randn(8, 6), torch.zeros(8, 4), ["epe_nas"])
