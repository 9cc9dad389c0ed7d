"""What the authors of CIFAR-10 and CIFAR-100 publish: names, checksums, counts; read by loaders.cifar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One published form of a data set."""

    file: str
    md5: str
    folder: str  # what it unpacks to
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str  # the file of class names
    binary: bool = False
    md5s: Mapping[str, str] = field(default_factory=dict)  # of each pickle; binary files have none


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set and what must be found in it."""

    name: str
    num_classes: int
    train_per_class: int
    test_per_class: int
    label_key: str
    names_key: str
    label_bytes: int  # before each picture of the binary form; the last is the label
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    archives: tuple[Archive, ...]  # in order of preference; the first is the one downloaded
    address: str = "https://www.cs.toronto.edu/~kriz/"


BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))
SOURCES = {
    "cifar10": Source(
        name="cifar10", num_classes=10, train_per_class=5000, test_per_class=1000,
        label_key="labels", names_key="label_names", label_bytes=1,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        archives=(
            Archive(
                file="cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a",
                folder="cifar-10-batches-py", train=BATCHES, test=("test_batch",), names="batches.meta",
                md5s={
                    "data_batch_1": "c99cafc152244af753f735de768cd75f",
                    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                    "data_batch_4": "634d18415352ddfa80567beed471001a",
                    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                    "test_batch": "40351d587109b95175f43aff81a1287e",
                    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
                },
            ),
            Archive(
                file="cifar-10-binary.tar.gz", md5="c32a1d4ab5d03f1284b67883e8d87530",
                folder="cifar-10-batches-bin", train=tuple(f"{batch}.bin" for batch in BATCHES),
                test=("test_batch.bin",), names="batches.meta.txt", binary=True,
            ),
        ),
    ),
    "cifar100": Source(
        name="cifar100", num_classes=100, train_per_class=500, test_per_class=100,
        label_key="fine_labels", names_key="fine_label_names", label_bytes=2,
        mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
        archives=(
            Archive(
                file="cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85",
                folder="cifar-100-python", train=("train",), test=("test",), names="meta",
                md5s={
                    "train": "16019d7e3df5f24257cddd939b257f8d",
                    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                    "meta": "7973b15100ade9c7d40fb424638fde48",
                },
            ),
            Archive(
                file="cifar-100-binary.tar.gz", md5="03b5dce01913d631647c71ecec9e9cb8",
                folder="cifar-100-binary", train=("train.bin",), test=("test.bin",),
                names="fine_label_names.txt", binary=True,
            ),
        ),
    ),
}  # fmt: skip
