"""The teacher, computed once: answers for views that were met before are looked up, the others asked and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastkd.method import LOGITS, POOLED
from fastkd.outputs import Outputs
from fastkd.teacher import segments
from fastkd.teacher.live import LiveTeacher, Teacher
from fastkd.teacher.table import Table
from loaders.contract import Batch
from loaders.errors import UserError

ALWAYS = (LOGITS, POOLED)  # stored whatever the run at hand reads, so that the next method finds its own
SEAL_BYTES, SEAL_SECONDS = 64 << 20, 60.0  # what a killed process can lose

Rows = tuple[np.ndarray, dict[str, Tensor]]


class Store:
    """One split's part of a cache folder: which rows are known, and new rows on their way to the disk."""

    def __init__(
        self, folder: Path, identity: str, rows: int, fields: Sequence[str], dtype: torch.dtype,
        warn: Callable[[str], None], table: Table | None = None,
    ) -> None:  # fmt: skip
        """`fields`: those that are read. `table`: where their values go; None = only which rows there are."""
        self.folder, self.identity, self.fields, self.dtype = folder, identity, tuple(fields), dtype
        self.table, self._warn = table, warn
        self._known = {field: np.zeros(rows, bool) for field in fields}
        self._read: set[Path] = set()
        self._pending: list[Rows] = []
        self._pending_bytes, self._since = 0, time.monotonic()
        self.writes = True
        self.refresh()

    def refresh(self) -> None:
        """Takes in what others have sealed since the last time. A damaged segment is set aside: its rows are unknown."""
        for field in self.fields:
            for path in segments.listing(self.folder / field):
                if path in self._read:
                    continue
                self._read.add(path)
                with suppress(FileNotFoundError):  # set aside by another process just now
                    self._take_in(field, path)
        if self.table is not None:
            self.table.present.copy_(torch.from_numpy(self.known))

    def _take_in(self, field: str, path: Path) -> None:
        try:
            rows, values = segments.read(path, self.identity)
        except segments.Damaged as damage:
            with suppress(OSError):  # a folder that can only be read
                path.rename(path.with_suffix(segments.SET_ASIDE))
            self._warn(f"{path} is damaged ({damage}); it is set aside, and its rows are computed anew")
            return
        new = ~self._known[field][rows]  # the first answer stays: a run must not see one change
        self._known[field][rows] = True
        if self.table is not None:
            if not new.all():
                rows, values = rows[new], values[new]
            self.table.put(field, torch.from_numpy(rows.copy()), torch.from_numpy(values.copy()))

    @property
    def known(self) -> np.ndarray:
        """Rows of which every field that is read is there."""
        together = np.ones(len(next(iter(self._known.values()))), bool)
        for known in self._known.values():
            together &= known
        return together

    def add(self, rows: Tensor, answer: Outputs) -> None:
        values = {field: self._stored(value) for field, value in _fields(answer)}
        for field in self.fields if self.table is not None else ():
            assert self.table is not None
            self.table.put(field, rows, values[field])
        numbers = rows.cpu().numpy()
        for known in self._known.values():
            known[numbers] = True
        if self.table is not None:
            self.table.present[rows] = True
        if self.writes:
            self._pending.append((numbers, values))
            self._pending_bytes += sum(value.nbytes for value in values.values())
            if self._pending_bytes >= SEAL_BYTES or time.monotonic() - self._since > SEAL_SECONDS:
                self.seal()

    def _stored(self, value: Tensor) -> Tensor:
        stored = value.to(self.dtype)
        if not stored.isfinite().all():
            largest = value.abs().max().item()
            raise UserError(
                f"the teacher's answers reach {largest:.3g}, more than {str(self.dtype).removeprefix('torch.')} holds; "
                "use --cache-dtype fp32, or look at the teacher if that is not a number"
            )
        return stored

    def seal(self) -> None:
        """Writes what is pending. Without room the run goes on, and what is there stays."""
        self._since = time.monotonic()
        if not self._pending:
            return
        rows = np.concatenate([numbers for numbers, _ in self._pending])
        try:
            for field in self._pending[0][1]:
                values = torch.cat([held[field] for _, held in self._pending]).cpu().numpy()
                self._read.add(segments.write(self.folder / field, self.identity, field, rows, values))
        except OSError as error:
            self.writes = False
            self._warn(
                f"cannot write in {self.folder}: {error.strerror}; what is there stays, the run goes on and keeps the "
                "teacher's further answers in memory alone"
            )
        self._pending, self._pending_bytes = [], 0


def _fields(answer: Outputs) -> Iterator[tuple[str, Tensor]]:
    yield LOGITS, answer.logits
    yield POOLED, answer.pooled
    yield from answer.taps.items()


def shapes_of(live: LiveTeacher, fields: Sequence[str]) -> Mapping[str, Sequence[int]]:
    known = {LOGITS: (live.net.num_classes,), POOLED: (live.net.pooled_width,)}
    return {field: known[field] if field in known else tuple(live.net.taps[field]) for field in fields}


class CachedTeacher(Teacher):
    """What it returns is always read from the table, so that a run which fills it and one which finds it full are
    the same run."""

    def __init__(self, live: LiveTeacher, store: Store, table: Table) -> None:
        self.live, self.store, self.table = live, store, table
        self.counts = live.counts
        self._all_there = False

    def expect(self, indices: Tensor, aug_ids: Tensor) -> None:
        """When everything an epoch asks for is there, its steps need not look whether it is."""
        self.store.refresh()
        self._all_there = bool(self.table.present[self.table.rows(indices, aug_ids)].all())

    def __call__(self, batch: Batch) -> Outputs:
        rows = self.table.rows(batch.indices, batch.aug_ids)
        missing = 0 if self._all_there else self._fill(batch, rows)
        self.counts.misses += missing
        self.counts.hits += len(rows) - missing
        return self.table.take(rows)

    def _fill(self, batch: Batch, rows: Tensor) -> int:
        """Asks the network for what is missing; of a batch that is all new, for the very batch a live one would see."""
        absent = (~self.table.present[rows]).nonzero().flatten()
        if len(absent) == 0:
            return 0
        if len(absent) < len(rows):
            batch = Batch(batch.images[absent], *(part[absent] for part in batch[1:]))
        self.store.add(rows[absent], self.live(batch))
        return len(absent)

    def keep(self) -> None:
        self.store.seal()
