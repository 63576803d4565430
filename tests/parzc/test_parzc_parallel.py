"""The same over many tasks, wherever they are computed."""

import os

import pytest
import torch

from zcpipe.errors import CapabilityError, DataError, UsageError
from zcpipe.parzc.parallel import HERE, Pool, each, one_thread


def add(shared, task):
    assert torch.get_num_threads() == 1
    return shared + task


def fail(shared, task):
    if task == 1:
        raise DataError("task 1 is wrong")
    return task


def die(shared, task):
    os._exit(1)


@pytest.mark.parametrize("pool", [HERE, Pool(workers=1), Pool(workers=3)])
def test_results_come_in_the_order_of_the_tasks(pool):
    told = []
    assert each(add, 10, [3, 1, 2], pool, lambda *counts: told.append(counts)) == [13, 11, 12]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert each(add, 10, [], pool) == []


@pytest.mark.parametrize("pool", [HERE, Pool(workers=2)])
def test_errors_of_ours_come_as_they_are(pool):
    with pytest.raises(DataError, match="task 1 is wrong"):
        each(fail, None, [0, 1, 2], pool)


def test_a_worker_that_dies_is_told_of():
    with pytest.raises(CapabilityError, match="a worker process died"):
        each(die, None, [0, 1], Pool(workers=2))


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_places_that_exclude_each_other():
    with pytest.raises(UsageError, match="workers must be at least 1"):
        Pool(workers=0)
