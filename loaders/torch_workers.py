"""Pictures decoded by torch DataLoader workers: for sets that do not fit on the device, or are not arrays.

A worker gets (index, aug_id) pairs, with the strong views' words where a batch has two views, and returns bytes; it
draws nothing and keeps no state, so any number of workers gives the same batches. Bytes travel, a quarter of floats,
and are normalised on the device.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from loaders.contract import Batch, DataSpec, Plan, Split
from loaders.deal import dealt, deck, hand, num_batches
from loaders.errors import UserError
from loaders.strong import Strong, pick_strong
from loaders.views import View, normalisation

Answer = TypeVar("Answer")


class TorchLoader:
    def __init__(self, split: Split, view: View, plan: Plan) -> None:
        self.spec = DataSpec(
            name=split.name,
            num_samples=len(split),
            num_classes=len(split.class_names),
            image_size=view.size,
            labels=split.labels,
            views=view.count,
            mean=split.mean,
            std=split.std,
            class_names=split.class_names,
        )
        self.split, self.view, self.plan = split, view, plan
        self._labels = split.labels.to(plan.device)
        scale, bias = (t.to(plan.device)[:, None, None] for t in normalisation(split.mean, split.std))
        self._scale, self._bias = scale, bias  # 3,1,1 each
        # what the workers are to make: 2,B each, indices and aug_ids; of two views 3,B, and the strong ones' words
        self._hands: list[np.ndarray] = []
        # torch ends the workers when its loader and iterator are let go of. If that is as part of a reference
        # cycle, the queues go first and each worker is waited for in vain, 5 s; so nothing but this list holds
        # them, and the finalizer empties it in time.
        self._held: list[Iterable[Tensor | UserError]] = []
        weakref.finalize(self, self._held.clear)
        self._turn = object()

    def __len__(self) -> int:
        return num_batches(self.spec.num_samples, self.plan)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        plan = self.plan
        indices, aug_ids = deck(self.view, self.spec.num_samples, plan, epoch, torch.device("cpu"))
        strong = [pick_strong(plan.seed, epoch, indices)] if plan.views == 2 else []
        hands = [hand(plan, number) for number in range(start, len(self))]
        return self._serve(indices, aug_ids, hands, *strong)

    def dealt(self, epoch: int) -> tuple[Tensor, Tensor]:
        return dealt(self.view, self.spec.num_samples, self.plan, epoch, self.plan.device)

    def visit(self, indices: Tensor, aug_ids: Tensor, batch_size: int) -> Iterator[Batch]:
        hands = [slice(first, first + batch_size) for first in range(0, len(indices), batch_size)]
        return self._serve(indices.cpu(), aug_ids.cpu(), hands)

    def _serve(
        self, indices: Tensor, aug_ids: Tensor, hands: list[slice], *strong: Tensor
    ) -> Iterator[Batch]:
        plan, cards = self.plan, torch.stack((indices, aug_ids, *strong))
        # Read anew on every iter(), which also withdraws what an epoch broken off has left with the workers.
        self._hands[:] = [cards[:, rows].numpy() for rows in hands]
        indices, aug_ids = indices.to(plan.device), aug_ids.to(plan.device)
        self._turn = turn = object()
        if not self._held:
            self._held.append(self._new_loader())
        self._held[1:] = [self._ask(lambda: iter(self._held[0]))]
        for rows in hands:
            if self._turn is not turn:
                raise RuntimeError("this loader has begun another epoch; one iteration at a time")
            pixels = self._ask(lambda: next(iter(self._held[1])))
            if isinstance(pixels, UserError):
                raise UserError(str(pixels)) from pixels.__cause__
            yield Batch(self._normalise(pixels), self._labels[indices[rows]], indices[rows], aug_ids[rows])

    def _new_loader(self) -> DataLoader[Tensor | UserError]:
        workers = self.plan.num_workers
        # A tensor sent to another process stays one memory for both: so this one knows who was at what.
        self._at_work = torch.full((max(1, workers), 2), -1)
        return DataLoader(
            _Pictures(self.split, self.view, self._at_work),
            sampler=self._hands,
            batch_size=None,  # a hand is a batch already
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=_context() if workers else None,
            worker_init_fn=_start_worker,
            pin_memory=self.plan.device.type == "cuda",
            generator=torch.Generator(),  # torch draws a seed for the workers: not from the run's generator
        )

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """What the workers answer; that one of them is dead, if so."""
        try:
            return question()
        except (RuntimeError, OSError, EOFError) as problem:  # the latter two while receiving from it
            noticed = "DataLoader worker" in str(problem)  # torch has, after 5 s of silence
            lost = self._lost(patience=0 if noticed else 2)
            if not lost and not noticed:
                raise
            reason = (str(problem) or repr(problem)).splitlines()[0]
        # Not a `raise .. from`: the frames of what torch raised hold its loader, and so the other workers.
        self._held.clear()
        where = ", ".join(map(self.split.where, lost)) or f"{self.spec.name}, between pictures"
        raise UserError(
            f"a loading worker died at {where} ({reason}); if memory ran out, take fewer workers or a smaller "
            "batch (in a container also look at the size of /dev/shm), else look at the file"
        )

    def _lost(self, patience: float) -> list[int]:
        """The samples at which workers ended. Their end may show a moment later than what it led to."""
        until = time.monotonic() + patience
        while True:
            alive = {process.pid for process in multiprocessing.active_children()}
            lost = [index for pid, index in self._at_work.tolist() if index >= 0 and pid not in alive]
            if lost or time.monotonic() > until:
                return lost if self.plan.num_workers else []
            time.sleep(0.05)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """The arithmetic of normalisation_table, a rounded product and a rounded sum: its very values."""
        images = pixels.to(self.plan.device, non_blocking=True).permute(0, 3, 1, 2)
        if not self.plan.channels_last:
            images = images.contiguous()
        return images.to(torch.float32).mul_(self._scale).add_(self._bias).to(self.plan.dtype)


@dataclass(frozen=True)
class _Pictures(Dataset[Tensor | UserError]):
    """What a worker holds. It is pickled to each, so an ArraySplit costs its size once a worker."""

    split: Split
    view: View
    at_work: Tensor = field(repr=False)  # workers,2 int64, shared: the pid and the sample it is at, -1 = none

    def __getitem__(self, made_of: np.ndarray) -> Tensor | UserError:
        """The pictures as B,size,size,3 uint8, of two views the strong ones after the others. A failure is returned:
        torch would wrap what is raised."""
        info = get_worker_info()
        mine = self.at_work[info.id if info else 0]
        mine[0] = os.getpid()
        size, views = self.view.size, len(made_of) - 1
        pixels = np.empty((views, made_of.shape[1], size, size, 3), np.uint8)
        try:
            for row, (index, *aug_ids) in enumerate(made_of.T.tolist()):
                mine[1] = index
                for number, shown in enumerate(self.shown(index, aug_ids)):
                    pixels[number, row] = shown
        except UserError as problem:
            return problem
        finally:
            mine[1] = -1
        return torch.from_numpy(pixels.reshape(-1, size, size, 3))

    def shown(self, index: int, aug_ids: list[int]) -> Iterator[np.ndarray]:
        """The sample's view and, if a second number is given, its strong one. It is read once."""
        view = self.view
        try:
            picture = self.split.read(index)
            for view, aug_id in zip((self.view, Strong.over(self.view)), aug_ids, strict=False):
                yield self._fitting(index, view, view.render(picture, aug_id))
        except UserError:
            raise
        except Exception as problem:
            raise UserError(f"{self.split.where(index)}: {view.name} failed: {problem!r}") from problem

    def _fitting(self, index: int, view: View, made: np.ndarray) -> np.ndarray:
        wanted = (view.size, view.size, 3)
        if made.shape != wanted:
            sizes = " x ".join(map(str, made.shape)), " x ".join(map(str, wanted))
            raise UserError(
                f"{self.split.where(index)}: {view.name} gives {sizes[0]}, the run needs {sizes[1]}; "
                "resize the pictures or choose a view that crops"
            )
        return made


def _context() -> BaseContext:
    """Not fork: by then this process has threads (torch, numba, CUDA), and a forked child inherits their
    locks as they happen to be; Python 3.12 warns of it. The fork server is a process of its own that has
    imported torch once: it starts workers as fast as fork, and no SIGCHLD of theirs interrupts a step."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "PIL.Image"])
    return context


def _start_worker(worker: int) -> None:  # noqa: ARG001 - torch's signature
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which stops the workers in order
    torch.set_num_threads(1)
    # torch's own watch is on the worker's parent, here the fork server, which outlives a trainer that is killed.
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    # Complaints about metadata, such as EXIF blocks cut short, are no reason to refuse the pixels.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _end_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    if trainer:
        trainer.join()
        os._exit(1)
