from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fastkd.toolbox.memory_bank import OtherClassSampler, PairedBank, Queue
from loaders.contract import DataSpec


def alone(rows: torch.Tensor) -> torch.Tensor:
    return rows


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [7, 1, 5], [10], [25, 4], [1] * 13])
def test_a_queue_keeps_the_last_keys_whatever_the_batch(sizes: list[int]) -> None:
    queue = Queue(10, 2, torch.Generator().manual_seed(0))
    start, pushed = queue.rows.clone(), []
    for number, size in enumerate(sizes):
        keys = torch.full((size, 2), float(number)) + torch.arange(size)[:, None] / 100
        queue.push(keys)
        pushed += list(keys)
    total = len(pushed)
    assert int(queue.pointer) == total % 10
    for place in range(max(0, total - 10), total):
        assert torch.equal(queue.rows[place % 10], pushed[place])
    if total < 10:
        assert torch.equal(queue.rows[total:], start[total:])


def test_one_push_of_all_equals_pushes_one_by_one() -> None:
    one, many = (Queue(8, 3, torch.Generator().manual_seed(0)) for _ in range(2))
    keys = torch.randn(21, 3)
    one.push(keys)
    for a, b in pairwise([0, 5, 6, 13, 21]):
        many.push(keys[a:b])
    assert torch.equal(one.rows, many.rows)
    assert torch.equal(one.pointer, many.pointer)


def test_z_is_set_once_and_kept() -> None:
    bank = PairedBank(12, 4, 0.07, 0.5, torch.Generator().manual_seed(0))
    rows = torch.randint(12, (3, 5))
    s, t = torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1)
    bank.scores(s, t, rows, alone)
    first = bank.z.clone()
    assert (first > 0).all()
    bank.scores(t, s, rows, alone)
    assert torch.equal(bank.z, first)


def test_scores_equal_gathered_rows_and_moved_rows_have_unit_length() -> None:
    bank = PairedBank(12, 4, 0.07, 0.5, torch.Generator().manual_seed(0))
    rows, indices = torch.randint(12, (3, 5)), torch.tensor([1, 4, 7])
    s, t = torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1)
    found, _ = bank.scores(s, t, rows, alone)
    slow = torch.einsum("bmd,bd->bm", bank.teacher_rows[rows], s).div(0.07).exp() / bank.z[0]
    torch.testing.assert_close(found, slow)
    before = bank.student_rows.clone()
    bank.move(indices, s, t)
    torch.testing.assert_close(bank.student_rows[indices].norm(dim=1), torch.ones(3))
    untouched = [k for k in range(12) if k not in indices.tolist()]
    assert torch.equal(bank.student_rows[untouched], before[untouched])


def test_negatives_are_of_other_classes_and_reach_all_of_them() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 0])
    data = DataSpec(name="d", num_samples=10, num_classes=3, image_size=8, labels=labels, views=1, mean=(0, 0, 0),
                    std=(1, 1, 1), class_names=("a", "b", "c"))  # fmt: skip
    torch.manual_seed(0)
    targets = torch.tensor([0, 1, 2])
    drawn = OtherClassSampler(data).draw(targets, 4000)
    for target, row in zip(targets.tolist(), drawn, strict=True):
        others = {k for k, label in enumerate(labels.tolist()) if label != target}
        assert set(row.tolist()) == others
        counts = torch.bincount(row, minlength=10)[list(others)].double()
        assert (counts / counts.mean() - 1).abs().max() < 0.15, "every other sample is as likely"
