"""The benchmarks' measure of memory, on work whose pieces can be counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.shared.memory import peak_mebibytes

CPU = torch.device("cpu")


def mebibytes(count: int) -> Tensor:
    return torch.ones(count << 18)


def test_the_most_that_exists_at_a_time_counts() -> None:
    """2 stay from the making; in a step 3 and 4 exist together, then 3 and 5."""
    gone: list[Tensor] = [mebibytes(64)]  # from before: neither it nor its end is counted

    def make() -> Callable[[], object]:
        kept = mebibytes(2)
        mebibytes(32)  # while making, and no longer

        def step() -> Tensor:
            gone.clear()
            three = mebibytes(3)
            mebibytes(4)
            five = mebibytes(5)
            return kept[:1] + three[:1] + five[:1]

        return step

    for _ in range(2):
        assert peak_mebibytes(make, CPU) == pytest.approx(10, abs=0.01)


def test_what_an_operation_and_backward_hold_counts() -> None:
    """exp and the product keep one each for backward, which makes a gradient of each of its own."""

    def make() -> Callable[[], object]:
        x = mebibytes(4).requires_grad_()
        return lambda: torch.autograd.grad((x.exp() * x).sum(), x)

    found = peak_mebibytes(make, CPU)
    assert 4 + 2 * 4 + 4 <= found <= 4 + 2 * 4 + 3 * 4


def test_the_first_step_s_lasting_state_counts_and_its_peak_does_not() -> None:
    state: list[Tensor] = []

    def make() -> Callable[[], object]:
        def step() -> object:
            if not state:
                state.append(mebibytes(6))
                return mebibytes(20)
            return mebibytes(1)

        return step

    assert peak_mebibytes(make, CPU) == pytest.approx(7, abs=0.01)
