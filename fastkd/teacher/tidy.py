"""A cache folder looked after without the teacher: what is in it, whether it is sound, and its files put in order."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastkd.teacher import manifest, segments
from loaders.errors import UserError

LOCK = ".lock"
MERGED_BYTES = 256 << 20


class Part(NamedTuple):
    """One field of one split."""

    split: str
    field: str
    folder: Path


class Content(NamedTuple):
    part: Part
    segments: int
    rows: int  # different ones
    bytes: int


class Tidied(NamedTuple):
    leftovers: int  # of writers that were killed, and damaged segments set aside
    damaged: tuple[Path, ...]
    before: int  # segments
    after: int
    freed: int  # bytes


def parts(folder: Path) -> Iterator[Part]:
    for split in sorted(p for p in folder.iterdir() if p.is_dir()):
        for field in sorted(p for p in split.iterdir() if p.is_dir()):
            yield Part(split.name, field.name, field)


def content(folder: Path) -> list[Content]:
    """By the segments' own word: nothing but their heads and row numbers is read."""
    manifest.read(folder)
    found = []
    for part in parts(folder):
        paths = segments.listing(part.folder)
        rows = [read for path in paths if (read := segments.rows_of(path)) is not None]
        different = len(np.unique(np.concatenate(rows))) if rows else 0
        found.append(Content(part, len(paths), different, sum(path.stat().st_size for path in paths)))
    return found


def damage(folder: Path) -> dict[Path, str]:
    """Every segment that is not what was written, with the reason."""
    identity = manifest.identity(manifest.read(folder))
    found = {}
    for part in parts(folder):
        for path in segments.listing(part.folder):
            if reason := segments.wrong_with(path, identity):
                found[path] = reason
    return found


def tidy(folder: Path) -> Tidied:
    """Removes what nobody reads and merges small segments. Killed at any moment it has lost no row."""
    identity = manifest.identity(manifest.read(folder))
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by a run; tidy it when no run uses it") from None
        except OSError as error:
            raise UserError(
                f"{folder} cannot be locked ({error.strerror}); a run might be using it"
            ) from None
        room = _bytes(folder)
        leftovers = [p for pattern in (".*.part", f"*{segments.SET_ASIDE}") for p in folder.rglob(pattern)]
        for path in leftovers:
            path.unlink()
        damaged, before, after = [], 0, 0
        for part in parts(folder):
            paths = segments.listing(part.folder)
            before += len(paths)
            damaged += _merge(part, paths, identity)
            after += len(segments.listing(part.folder))
        return Tidied(len(leftovers), tuple(damaged), before, after, room - _bytes(folder))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _merge(part: Part, paths: list[Path], identity: str) -> list[Path]:
    """Groups of segments become one each. The first answer to a row stays, as for those who read them in order."""
    damaged: list[Path] = []
    group: list[tuple[Path, segments.Segment]] = []
    seen = np.empty(0, np.int64)

    def close() -> None:
        nonlocal seen
        if not group:
            return
        rows = np.concatenate([segment.rows for _, segment in group])
        values = np.concatenate([segment.values for _, segment in group])
        first = np.unique(rows, return_index=True)[1]
        first = first[~np.isin(rows[first], seen)]
        if len(group) > 1 or len(first) < len(rows):
            if len(first):
                segments.write(part.folder, identity, part.field, rows[first], values[first], group[0][0])
            for path, _ in group:
                path.unlink()
        seen = np.union1d(seen, rows)
        group.clear()

    waiting = 0
    for path in paths:
        try:
            segment = segments.read(path, identity)
        except segments.Damaged:
            damaged.append(path)
            path.unlink()
            continue
        group.append((path, segment))
        waiting += segment.values.nbytes
        if waiting >= MERGED_BYTES:
            close()
            waiting = 0
    close()
    return damaged


def pick(folder: Path, samples: int, seed: int = 0) -> Iterator[tuple[Part, Path, segments.Segment]]:
    """About `samples` rows of each part, drawn from all of its segments: (part, segment, some of its rows)."""
    identity = manifest.identity(manifest.read(folder))
    generator = np.random.default_rng(seed)
    for part in parts(folder):
        paths = segments.listing(part.folder)
        if not paths:
            continue
        drawn = generator.choice(len(paths), min(len(paths), samples), replace=False)
        for path in (paths[k] for k in drawn):
            rows, values = segments.read(path, identity)
            some = generator.choice(len(rows), min(len(rows), math.ceil(samples / len(drawn))), replace=False)
            yield part, path, segments.Segment(rows[some], values[some])
