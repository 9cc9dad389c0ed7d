from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastkd.toolbox import memory_bank
from fastkd.toolbox.memory_bank import ClassSampler, PairedBank, Queue
from loaders.contract import DataSpec
from tests.unit.gathered_rows import scores_by_gathered_rows


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


def small_bank() -> PairedBank:
    return PairedBank(12, 4, 0.07, 0.5, torch.Generator().manual_seed(0)).double()


def embeddings() -> tuple[Tensor, Tensor]:
    s, t = torch.nn.functional.normalize(torch.randn(2, 3, 4, dtype=torch.float64), dim=-1)
    return s.requires_grad_(), t.requires_grad_()


def total(s_BM: Tensor, t_BM: Tensor) -> Tensor:
    return s_BM.log1p().sum() + t_BM.square().sum()


def test_z_is_set_once_and_kept() -> None:
    bank, rows = small_bank(), torch.randint(12, (3, 5))
    s, t = embeddings()
    bank.contrast(s, t, rows, alone, total)
    first = bank.z.clone()
    assert (first > 0).all()
    bank.contrast(t, s, rows, alone, total)
    assert torch.equal(bank.z, first)


def test_z_is_the_mean_of_the_ranks_and_equal_on_each() -> None:
    s, t = embeddings()
    banks, rows = [small_bank() for _ in range(3)], torch.randint(12, (2, 3, 5))
    other = torch.zeros(2)
    for bank, drawn in zip(banks, rows, strict=False):
        bank.contrast(s, t, drawn, alone, total)
        other = bank.z.clone()
    banks[2].contrast(s, t, rows[0], lambda means: torch.cat([means, other[None] / 12]), total)
    torch.testing.assert_close(banks[2].z, (banks[0].z + banks[1].z) / 2)


@pytest.mark.parametrize("piece", [1, 25, 1 << 24], ids=["one at a time", "two", "all"])
def test_a_product_with_the_bank_equals_gathered_rows(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bank, "PIECE", piece)
    fast, slow, rows = small_bank(), small_bank(), torch.randint(12, (3, 50))
    s, t = embeddings()
    found = fast.contrast(s, t, rows, alone, total)
    wanted = total(*scores_by_gathered_rows(slow, s, t, rows))
    expected = torch.autograd.grad(wanted, (s, t))
    fast.move(torch.tensor([1, 4, 7]), s, t)  # before backward, as in training
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for gradient, like in zip(torch.autograd.grad(found, (s, t)), expected, strict=True):
        torch.testing.assert_close(gradient, like, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fast.z, slow.z)


def test_moved_rows_have_unit_length_and_others_stay() -> None:
    bank, indices = small_bank(), torch.tensor([1, 4, 7])
    before = bank.student_rows.clone()
    bank.move(indices, *embeddings())
    torch.testing.assert_close(bank.student_rows[indices].norm(dim=1), torch.ones(3).double())
    untouched = [k for k in range(12) if k not in indices.tolist()]
    assert torch.equal(bank.student_rows[untouched], before[untouched])


def test_negatives_are_of_other_classes_and_reach_all_of_them() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 0])
    data = DataSpec(name="d", num_samples=10, num_classes=3, image_size=8, labels=labels, views=1, mean=(0, 0, 0),
                    std=(1, 1, 1), class_names=("a", "b", "c"))  # fmt: skip
    torch.manual_seed(0)
    targets = torch.tensor([0, 1, 2])
    drawn = ClassSampler(data).others(targets, 4000)
    for target, row in zip(targets.tolist(), drawn, strict=True):
        others = {k for k, label in enumerate(labels.tolist()) if label != target}
        assert set(row.tolist()) == others
        counts = torch.bincount(row, minlength=10)[list(others)].double()
        assert (counts / counts.mean() - 1).abs().max() < 0.15, "every other sample is as likely"


def test_positives_of_the_same_class_reach_all_of_it_and_itself() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 0])
    data = DataSpec(name="d", num_samples=10, num_classes=3, image_size=8, labels=labels, views=1, mean=(0, 0, 0),
                    std=(1, 1, 1), class_names=("a", "b", "c"))  # fmt: skip
    torch.manual_seed(0)
    sampler = ClassSampler(data)
    for target in range(3):
        drawn = sampler.same(torch.full((3000,), target))
        counts = torch.bincount(drawn, minlength=10).double()
        assert torch.equal(counts > 0, labels == target)
        assert (counts[labels == target] / counts[labels == target].mean() - 1).abs().max() < 0.15
