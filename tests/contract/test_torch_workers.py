"""The workers' life: what they are asked to decode, how they end, and what is said when one fails."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loaders import folder
from loaders.contract import Plan
from loaders.errors import UserError
from loaders.torch_workers import TorchLoader
from loaders.views import ResizedCropFlip, Whole

COUNT = 40
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core


def plan(workers: int, *, train: bool = False) -> Plan:
    return Plan(
        batch_size=4, seed=0, train=train, device=torch.device("cpu"), dtype=torch.float32, channels_last=True,
        num_workers=workers,
    )  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A split that writes down who reads what, and at one sample ends its worker."""

    log: Path
    fatal: int = -1
    name: str = "watched/train"
    class_names: tuple[str, ...] = ("one",)
    labels: Tensor = field(default_factory=lambda: torch.zeros(COUNT, dtype=torch.int64))
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __len__(self) -> int:
        return COUNT

    def where(self, index: int) -> str:
        return f"picture {index}"

    def fingerprint(self) -> str:
        return self.name

    def read(self, index: int) -> np.ndarray:
        with open(self.log, "a") as log:  # one short line: appended whole
            log.write(f"{os.getpid()} {index} {torch.get_num_threads()}\n")
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((4, 4, 3), index, np.uint8)

    def read_so_far(self) -> list[tuple[int, int, int]]:
        """(process, sample, threads) of every read; forgotten then."""
        rows = [line.split() for line in self.log.read_text().splitlines()]
        self.log.write_text("")
        return [(int(pid), int(index), int(threads)) for pid, index, threads in rows]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "log")


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    gc.collect()
    assert multiprocessing.active_children() == []


def test_workers_outlive_an_epoch_and_skipped_batches_are_not_read(watched: Watched) -> None:
    loader = TorchLoader(watched, Whole(4), plan(2))
    assert not watched.log.exists()  # nothing is read ahead of being asked for
    list(loader.batches(0))
    first = watched.read_so_far()
    assert sorted(index for _, index, _ in first) == list(range(COUNT))
    workers = {pid for pid, _, _ in first}
    assert len(workers - {os.getpid()}) == 2
    for pid in workers:
        os.kill(pid, signal.SIGINT)  # a trainer that finishes its epoch after Ctrl-C still has them
    list(loader.batches(1, start=7))
    later = watched.read_so_far()
    assert sorted(index for _, index, _ in later) == list(range(28, COUNT))
    assert {pid for pid, _, _ in later} == workers
    assert {threads for _, _, threads in first + later} == {1}


def test_without_workers_nothing_is_started(watched: Watched) -> None:
    list(TorchLoader(watched, Whole(4), plan(0)).batches(0))
    assert {pid for pid, _, _ in watched.read_so_far()} == {os.getpid()}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_broken_off_leaves_nothing_behind(watched: Watched, workers: int) -> None:
    loader = TorchLoader(watched, Whole(4), plan(workers, train=True))
    whole = list(loader.batches(1))
    broken_off = loader.batches(0)
    next(broken_off)
    again = loader.batches(1)
    for batch in whole:
        assert all(map(torch.equal, next(again), batch))
    with pytest.raises(RuntimeError, match="has begun another epoch"):
        next(broken_off)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_error_that_names_it(tmp_path: Path, workers: int) -> None:
    for part in ("train", "val"):
        for n in range(8):
            path = tmp_path / part / "ab"[n % 2] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9)).save(path)
    bad = tmp_path / "train/b/5.png"  # sample 6 of the sorted files: in the second batch
    bad.write_bytes(b"no picture")
    train, val = folder.load(tmp_path)
    loader = TorchLoader(train, ResizedCropFlip(6), plan(workers))
    batches = loader.batches(0)
    next(batches)
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == (
        f"cannot read {bad}: no kind of picture Pillow knows; replace the file or remove it"
    )
    assert not list(batches)
    assert len(next(loader.batches(0)).images) == 4  # the workers are well
    wrong = TorchLoader(val, Whole(6), plan(workers))
    with pytest.raises(UserError) as caught:
        next(wrong.batches(0))
    assert str(caught.value) == (
        f"{tmp_path / 'val/a/0.png'}: whole-v1 gives 9 x 9 x 3, the run needs 6 x 6 x 3; resize the pictures or "
        "choose a view that crops"
    )


@dataclass(frozen=True)
class Failing:
    """A view with a fault of its own."""

    name: ClassVar[str] = "failing-v1"
    size: int = 4
    count: int = 1

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        raise ZeroDivisionError(f"view {aug_id} of {image[0, 0, 0]}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_view_names_the_picture(watched: Watched, workers: int) -> None:
    with pytest.raises(UserError) as caught:
        next(TorchLoader(watched, Failing(), plan(workers)).batches(0))
    assert str(caught.value) == "picture 0: failing-v1 failed: ZeroDivisionError('view 0 of 0')"


def test_a_worker_that_dies_is_one_error_that_names_the_picture(tmp_path: Path) -> None:
    loader = TorchLoader(Watched(tmp_path / "log", fatal=39), Whole(4), plan(2))
    batches = loader.batches(0)
    with pytest.raises(UserError) as caught:
        list(batches)
    # In brackets is how it showed: torch's word, or a connection broken while a batch came over it.
    assert re.fullmatch(
        r"a loading worker died at picture 39 \(.+\); if memory ran out, take fewer workers or a smaller batch "
        r"\(in a container also look at the size of /dev/shm\), else look at the file",
        str(caught.value),
    )
    assert multiprocessing.active_children() == []
    assert not list(batches)
    assert len(next(loader.batches(0)).images) == 4  # with new workers


def test_a_worker_that_dies_between_epochs_is_one_error(watched: Watched) -> None:
    loader = TorchLoader(watched, Whole(4), plan(1))
    list(loader.batches(0))
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(UserError, match=r"^a loading worker died at watched/train, between pictures \("):
        next(loader.batches(1))


ENDLESS = """
import sys, time
from pathlib import Path
from loaders.torch_workers import TorchLoader
from loaders.views import Whole
from tests.contract.test_torch_workers import Watched, plan

if __name__ == "__main__":
    loader = TorchLoader(Watched(Path(sys.argv[1])), Whole(4), plan(2))
    for epoch in range(10**9):
        for _ in loader.batches(epoch):
            time.sleep(0.02)
        if epoch == 1:
            print("running", flush=True)
"""


def alive(pids: set[int]) -> set[int]:
    def is_there(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    return set(filter(is_there, pids))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_workers_end_with_their_trainer(tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to every process, and a trainer killed without a word."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    command = [sys.executable, "-W", "error", "-W", "ignore:This DataLoader:UserWarning", "endless.py"]
    trainers = [
        subprocess.Popen(
            [*command, name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name in ("interrupted", "killed")
    ]  # fmt: skip
    workers: set[int] = set()
    for trainer, name in zip(trainers, ("interrupted", "killed"), strict=True):
        assert trainer.stdout
        assert trainer.stdout.readline() == "running\n"
        workers |= {pid for pid, _, _ in Watched(tmp_path / name).read_so_far()}
    assert len(workers) == 4
    os.killpg(trainers[0].pid, signal.SIGINT)
    trainers[1].kill()
    said = [trainer.communicate(timeout=60)[1] for trainer in trainers]
    until = time.monotonic() + 30
    while alive(workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(workers)
    assert said[0].count("Traceback") == 1
    assert said[0].endswith("KeyboardInterrupt\n")
