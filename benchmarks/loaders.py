"""The device loader against torch's DataLoader with PIL transforms, CIFAR-shaped, both giving the run's dtype.

python benchmarks/loaders.py [--json PATH] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.shared.measure import arguments, finish, ratio, seconds, take_turns
from fastkd.engine.machine import cpu_has
from loaders.contract import ArraySplit, Plan
from loaders.device import DeviceLoader
from loaders.views import ShiftFlip

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """What torchvision's RandomCrop(32, 4), RandomHorizontalFlip, ToTensor and Normalize do, written out."""

    def __init__(self, split: ArraySplit) -> None:
        self.images, self.labels = split.images, split.labels.tolist()
        self.mean, self.std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        picture = ImageOps.expand(Image.fromarray(self.images[index]), border=4, fill=0)
        top, left, flip = (
            torch.randint(9, ()).item(),
            torch.randint(9, ()).item(),
            torch.rand(()).item() < 0.5,
        )
        picture = picture.crop((left, top, left + 32, top + 32))
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = (
            torch.from_numpy(np.array(picture, copy=True))
            .permute(2, 0, 1)
            .contiguous()
            .to(torch.float32)
            .div(255)
        )
        return pixels.sub_(self.mean).div_(self.std), self.labels[index], index


def main() -> None:
    made = arguments(__doc__ or "")
    space = made.parse_args()
    samples = 4_096 if space.quick else 50_000
    per_round = 2_048 if space.quick else 10_240
    rounds = 2 if space.quick else 11
    dtype = torch.bfloat16 if cpu_has("avx512_bf16") or cpu_has("amx_bf16") else torch.float32
    draw = np.random.default_rng(0)
    split = ArraySplit(
        name="cifar-shaped", images=draw.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8),
        labels=torch.from_numpy(draw.integers(0, 100, samples)), class_names=tuple(map(str, range(100))),
        mean=MEAN, std=STD,
    )  # fmt: skip
    contestants, epochs = {}, iter(range(1, 1_000_000))
    for size in (64, 512):
        plan = Plan(
            batch_size=size, seed=0, train=True, device=torch.device("cpu"), dtype=dtype, channels_last=True
        )
        ours = DeviceLoader(split, ShiftFlip(32), plan)
        theirs = DataLoader(
            Pictures(split), size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
        )

        # one epoch goes on over the rounds, so that neither side's start of an epoch counts more often than in training
        def forever_ours(ours: DeviceLoader = ours) -> Iterator[object]:
            while True:
                yield from ours.batches(next(epochs))

        def forever_theirs(theirs: DataLoader[tuple[Tensor, int, int]] = theirs) -> Iterator[object]:
            while True:
                for images, *rest in theirs:
                    yield images.to(dtype=dtype, memory_format=torch.channels_last), *rest

        for name, stream in (("device", forever_ours()), ("dataloader", forever_theirs())):

            def rate(
                stream: Iterator[object] = stream, steps: int = per_round // size, size: int = size
            ) -> float:
                return steps * size / seconds(lambda: [next(stream) for _ in range(steps)])

            contestants[f"{name}_b{size}"] = rate
    found = take_turns(contestants, rounds)
    ratios = {
        f"device_over_dataloader_b{b}": ratio(found[f"device_b{b}"], found[f"dataloader_b{b}"])
        for b in (64, 512)
    }
    print(
        f"{str(dtype).removeprefix('torch.')}, channels last, {per_round} pictures a round, {rounds} rounds"
    )
    finish(space, found, ratios, "images/s")


if __name__ == "__main__":
    main()
