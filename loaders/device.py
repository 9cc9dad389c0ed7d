"""The whole data set on the device as bytes; a batch is one gather. No workers, no copies, nothing to wait for.

On the CPU one compiled kernel crops, mirrors, normalises and writes the run's dtype in a single pass; elsewhere the
same view is batched tensor code. Both normalise by the same float32 arithmetic, so they agree bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from loaders.contract import ArraySplit, Batch, DataSpec, Plan
from loaders.deal import dealt, deck, hand, num_batches
from loaders.strong import Strong, pick_strong
from loaders.strong_tensors import StrongTensors
from loaders.views import ShiftFlip, Whole, normalisation, normalisation_table

WORTH_A_THREAD = 128  # pictures; below, handing work over costs more than it saves


class DeviceLoader:
    def __init__(self, split: ArraySplit, view: ShiftFlip | Whole, plan: Plan) -> None:
        self.spec = DataSpec(
            name=split.name, num_samples=len(split), num_classes=len(split.class_names), image_size=view.size,
            labels=split.labels, views=view.count, mean=split.mean, std=split.std, class_names=split.class_names,
        )  # fmt: skip
        self.split, self.view, self.plan = split, view, plan
        self._images = torch.from_numpy(split.images).to(plan.device)  # N,H,W,3 uint8
        self._labels = split.labels.to(plan.device)
        self._table = normalisation_table(split.mean, split.std, plan.dtype).to(plan.device)
        compiled = plan.device.type == "cpu" and plan.dtype in (torch.float32, torch.bfloat16)
        self._render = _compiled(self) if compiled else self.render_by_tensors
        self._strong = StrongTensors(view.size, plan.device) if plan.views == 2 else None

    def __len__(self) -> int:
        return num_batches(self.spec.num_samples, self.plan)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        indices, aug_ids = deck(self.view, self.spec.num_samples, self.plan, epoch, self.plan.device)
        for number in range(start, len(self)):
            rows = hand(self.plan, number)
            strong = pick_strong(self.plan.seed, epoch, indices[rows]) if self._strong else None
            yield self.fetch(indices[rows], aug_ids[rows], strong)

    def dealt(self, epoch: int) -> tuple[Tensor, Tensor]:
        return dealt(self.view, self.spec.num_samples, self.plan, epoch, self.plan.device)

    def visit(self, indices: Tensor, aug_ids: Tensor, batch_size: int) -> Iterator[Batch]:
        for first in range(0, len(indices), batch_size):
            part = slice(first, first + batch_size)
            yield self.fetch(indices[part].to(self.plan.device), aug_ids[part].to(self.plan.device))

    def fetch(self, indices: Tensor, aug_ids: Tensor, strong: Tensor | None = None) -> Batch:
        """The named views of the named samples, and the strong ones these words make: pure, and free of host syncs."""
        images = self._render(indices, aug_ids)
        if strong is not None:
            images = torch.cat([images, self.render_strong(indices, strong)])
        return Batch(images, self._labels[indices], indices, aug_ids)

    def render_by_tensors(self, indices: Tensor, aug_ids: Tensor) -> Tensor:
        steps = torch.arange(self.view.size, device=indices.device)
        return self._normalised(self._pixels(indices, aug_ids, steps[None, :, None], steps[None, None, :]))

    def render_strong(self, indices: Tensor, words: Tensor) -> Tensor:
        assert self._strong is not None
        choices = Strong.over(self.view).choices(words)
        sources = self._strong.sources(choices.first, choices.first_level)
        return self._normalised(
            self._strong.finish(self._pixels(indices, choices.aug_ids, *sources), choices)
        )

    def _pixels(self, indices: Tensor, aug_ids: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """B,H,W,3 bytes: what the view shows at these rows and columns, 0 where they lie outside of it."""
        size = self.view.size
        in_y, in_x = (y >= 0) & (y < size), (x >= 0) & (x < size)
        if isinstance(self.view, ShiftFlip):
            top, left, flip = (part[:, None, None] for part in self.view.window(aug_ids))
            y = top - self.view.pad + y
            x = left - self.view.pad + torch.where(flip == 1, size - 1 - x, x)
            in_y, in_x = in_y & (y >= 0) & (y < size), in_x & (x >= 0) & (x < size)
        near_y, near_x = y.clamp(0, size - 1), x.clamp(0, size - 1)
        return self._images[indices[:, None, None], near_y, near_x] * (in_y & in_x)[..., None]

    def _normalised(self, pixels: Tensor) -> Tensor:
        offset = torch.arange(3, device=pixels.device) * 256
        images = self._table.flatten()[pixels.to(torch.int64) + offset].permute(0, 3, 1, 2)
        return images if self.plan.channels_last else images.contiguous()


def _compiled(loader: DeviceLoader) -> Callable[[Tensor, Tensor], Tensor]:
    from loaders.kernel import gather_bfloat16, gather_float32

    plan, view, size = loader.plan, loader.view, loader.view.size
    pad = view.pad if isinstance(view, ShiftFlip) else 0
    pixels = loader._images.numpy().reshape(len(loader._images), size, size * 3)
    channels = torch.arange(3 * size * size)
    channels = channels % 3 if plan.channels_last else channels // (size * size)
    scale, bias = (t[channels].numpy() for t in normalisation(loader.spec.mean, loader.spec.std))
    gather, bits = (
        (gather_bfloat16, torch.uint16) if plan.dtype == torch.bfloat16 else (gather_float32, torch.float32)
    )
    shape = (size, size, 3) if plan.channels_last else (3, size, size)

    def fill(rows: slice, indices: Tensor, aug_ids: Tensor, out: Tensor) -> None:
        picked, views = indices[rows].numpy(), aug_ids[rows].numpy()
        gather(pixels, scale, bias, picked, views, pad, not plan.channels_last, out[rows].numpy())

    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "views")

    def render(indices: Tensor, aug_ids: Tensor) -> Tensor:
        count = len(indices)
        images = torch.empty(count, size * size * 3, dtype=plan.dtype)
        work = partial(fill, indices=indices, aug_ids=aug_ids, out=images.view(bits))
        parts = min(torch.get_num_threads(), count // WORTH_A_THREAD)
        if parts > 1:  # the kernel holds no lock
            list(
                threads.map(work, (slice(count * k // parts, count * (k + 1) // parts) for k in range(parts)))
            )
        else:
            work(slice(None))
        images = images.view(-1, *shape)
        return images.permute(0, 3, 1, 2) if plan.channels_last else images

    return render
