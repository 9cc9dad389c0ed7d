"""The compiled kernel against the tensor code, where the work is shared among threads too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from loaders.contract import ArraySplit, Plan
from loaders.device import WORTH_A_THREAD, DeviceLoader
from loaders.views import ShiftFlip


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, WORTH_A_THREAD * 2 + 5])
def test_kernel_equals_tensor_code(size: int, dtype: torch.dtype, channels_last: bool, threads: int) -> None:
    draw = np.random.default_rng(0)
    split = ArraySplit(
        name="noise", images=draw.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), labels=torch.arange(60) % 7,
        class_names=tuple("abcdefg"), mean=(0.51, 0.49, 0.44), std=(0.27, 0.26, 0.28),
    )  # fmt: skip
    plan = Plan(
        batch_size=size,
        seed=0,
        train=True,
        device=torch.device("cpu"),
        dtype=dtype,
        channels_last=channels_last,
    )
    loader = DeviceLoader(split, ShiftFlip(16), plan)
    indices, aug_ids = torch.randint(60, (size,)), torch.randint(162, (size,))
    found = loader.fetch(indices, aug_ids).images
    assert torch.equal(found, loader.render_by_tensors(indices, aug_ids))
    assert found.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
