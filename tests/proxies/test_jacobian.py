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


@pytest.mark.parametrize("proxy", ["jacob_cov", "epe_nas"])
def test_gradients_without_correlations_say_why(proxy):
    class Deaf(nn.Linear):
        def forward(self, x):
            return super().forward(x * 0)

    class Adding(nn.Linear):
        def forward(self, x):
            return x.sum(1, keepdim=True) + self.bias

    broken = nn.Linear(6, 4)
    nn.init.constant_(broken.weight, float("nan"))
    cases = {
        "is zero: the output does not depend on the input": Deaf(6, 4),
        "is constant over 8 of 8 samples": Adding(6, 4),
        "holds non-finite values": broken,
    }
    for says, model in cases.items():
        failure = zcpipe.score(model, torch.randn(8, 6), torch.arange(8) % 4, [proxy]).failures[0]
        assert failure.kind == "nonfinite" and says in failure.message


def test_targets_that_are_no_class_numbers_are_unsupported():
    with pytest.raises(UnsupportedError, match="epe_nas needs one class number per sample"):
        zcpipe.score(nn.Linear(6, 4), torch.randn(8, 6), torch.zeros(8, 4), ["epe_nas"])
