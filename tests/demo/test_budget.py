"""Time and memory of a job."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

from erase_sd.demo.budget import Budget, OverBudget, bounded_memory, check, watch

linux = pytest.mark.skipif(sys.platform != "linux", reason="the system bounds no process' data")


def test_waiting_does_not_count():
    budget = Budget(0.2)
    for _ in range(3):
        with budget.spending():
            check()
        time.sleep(0.1)
    assert budget.spent < 0.1
    with budget.spending():
        time.sleep(0.25)
        with pytest.raises(OverBudget, match=r"compute for 0\.2 s"):
            check()
    with pytest.raises(OverBudget), budget.spending():
        raise AssertionError("there was no time left")
    check()  # outside nobody asks


def test_a_network_asks_in_the_thread_of_its_job_alone():
    network = torch.nn.Linear(2, 2)
    watch(network)
    spent = Budget(60)
    found = []
    with spent.spending():
        spent.stopped = True
        with pytest.raises(OverBudget):
            network(torch.zeros(1, 2))
        other = threading.Thread(target=lambda: found.append(network(torch.zeros(1, 2)).shape))
        other.start()
        other.join()
    assert found == [(1, 2)]


@linux
@pytest.mark.parametrize(
    "take",
    [
        lambda: torch.ones(10**9, dtype=torch.uint8),
        lambda: np.ones(10**9, np.uint8),
        lambda: bytearray(b"x" * 10**9),
    ],
)
def test_a_job_that_takes_too_much_is_told_so(take):
    for _ in range(2):
        with pytest.raises(OverBudget, match=r"may take 0\.2 GB"), bounded_memory(200_000_000):
            take()
    assert len(take()) == 10**9  # outside there is no bound


@linux
def test_what_a_job_may_take_is_given():
    with bounded_memory(500_000_000):
        assert torch.ones(100_000_000, dtype=torch.uint8).all()


def test_other_errors_are_as_they_were():
    with pytest.raises(RuntimeError, match="shape"), bounded_memory(10**9):
        torch.zeros(2).view(3)
