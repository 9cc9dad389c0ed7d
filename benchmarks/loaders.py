"""The device loader against torch's DataLoader with PIL transforms, CIFAR-shaped, both giving the run's dtype.

python benchmarks/loaders.py [--json PATH] [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
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


SETTLE = 0.5  # seconds between two turns: the other's workers go on until their queues are full
IN_FLIGHT = 6  # batches a DataLoader of two workers has ready or under way, drawn before the clock starts
DEVICE_LONGER = 10  # the device loader's turn has so many times more pictures, or it would be over in a blink


def drain(stream: Iterator[object], steps: int) -> None:
    for _ in range(steps):
        next(stream)


def usual_transforms() -> tuple[str, Callable[[Image.Image], Tensor]]:
    """torchvision's own where it loads, else the same operations in the same order, one by one."""
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError):  # built for another torch
        return "torchvision's steps, written out", written_out
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return "torchvision", transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def written_out(picture: Image.Image) -> Tensor:
    picture = ImageOps.expand(picture, border=4, fill=0)  # RandomCrop
    top, left = (int(torch.randint(0, 9, size=(1,)).item()) for _ in range(2))
    picture = picture.crop((left, top, left + 32, top + 32))
    if torch.rand(1) < 0.5:  # RandomHorizontalFlip
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True)).view(32, 32, 3)  # ToTensor
    tensor = pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.float32).div(255).clone()  # and Normalize
    mean, std = torch.as_tensor(MEAN, dtype=tensor.dtype), torch.as_tensor(STD, dtype=tensor.dtype)
    if (std == 0).any():
        raise ValueError("a deviation of 0")
    return tensor.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """As torchvision.datasets.CIFAR100 reads them, with the sample's index that distillation asks for."""

    def __init__(self, split: ArraySplit, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = split.images, split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


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
    baseline, transform = usual_transforms()
    for size in (64, 512):
        plan = Plan(
            batch_size=size, seed=0, train=True, device=torch.device("cpu"), dtype=dtype, channels_last=True
        )
        ours = DeviceLoader(split, ShiftFlip(32), plan)
        theirs = DataLoader(
            Pictures(split, transform),
            size,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            drop_last=True,
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
            pictures = per_round * (DEVICE_LONGER if name == "device" else 1)

            def rate(
                stream: Iterator[object] = stream, steps: int = pictures // size, size: int = size
            ) -> float:
                time.sleep(SETTLE)
                drain(stream, IN_FLIGHT)
                return steps * size / seconds(lambda: drain(stream, steps))

            contestants[f"{name}_b{size}"] = rate
    found = take_turns(contestants, rounds)
    ratios = {
        f"device_over_dataloader_b{b}": ratio(found[f"device_b{b}"], found[f"dataloader_b{b}"])
        for b in (64, 512)
    }
    print(f"baseline: DataLoader, 2 workers, {baseline}; {str(dtype).removeprefix('torch.')}, channels last")
    print(f"{per_round} pictures a turn (device: {DEVICE_LONGER} times that), {rounds} rounds")
    finish(space, found, ratios, "images/s")


if __name__ == "__main__":
    main()
