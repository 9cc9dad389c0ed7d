"""A cache's files. Each holds what the teacher said about some rows in one field, and is written once, whole.

    one line of json, padded: format, identity of the cache, field, shape of a row, dtype, number of rows
    int64 row numbers, then the values, row by row
    crc32 of all that, 4 bytes

A process appends to a cache by adding files under names of its own, so any number of them fill it at once, and one
that is killed loses the file it had not sealed. Nothing is mapped: a full disk is an error that can be caught.
"""

from __future__ import annotations

import json
import math
import secrets
import time
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fastkd import files
from fastkd.teacher.manifest import FORMAT

SUFFIX, SET_ASIDE = ".seg", ".damaged"
HEAD = 512  # bytes


class Damaged(Exception):
    """A segment that is not what was written, and how one can tell."""


class Segment(NamedTuple):
    rows: np.ndarray  # R int64
    values: np.ndarray  # R, then the shape of the field


def write(
    folder: Path,
    identity: str,
    field: str,
    rows: np.ndarray,
    values: np.ndarray,
    instead_of: Path | None = None,
) -> Path:
    """Segments are read in the order of their names, which is that of their making, and the first answer to a row
    counts. `instead_of`: whose place in that order this one takes."""
    head = {"format": FORMAT, "cache": identity, "field": field, "shape": list(values.shape[1:]),
            "dtype": str(values.dtype), "rows": len(rows)}  # fmt: skip
    parts: list[Any] = [
        (json.dumps(head) + "\n").encode().ljust(HEAD),
        np.ascontiguousarray(rows),
        np.ascontiguousarray(values),
    ]

    def fill(out: IO[bytes]) -> None:
        crc = 0
        for part in parts:
            content = memoryview(part).cast("B")
            crc = zlib.crc32(content, crc)
            out.write(content)
        out.write(crc.to_bytes(4, "little"))

    folder.mkdir(parents=True, exist_ok=True)
    place = instead_of.name.partition("_")[0] if instead_of else f"{time.time_ns():016x}"
    path = folder / f"{place}_{secrets.token_hex(4)}{SUFFIX}"
    files.write(path, fill)
    return path


def read(path: Path, identity: str) -> Segment:
    content = memoryview(path.read_bytes())
    if len(content) < HEAD + 4:
        raise Damaged(f"it has only {len(content)} bytes")
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise Damaged("its checksum does not match")
    head = json.loads(bytes(content[:HEAD]))
    if head["cache"] != identity:
        raise Damaged(f"it belongs to another cache ({head['cache']})")
    count, shape, dtype = head["rows"], head["shape"], np.dtype(head["dtype"])
    middle = HEAD + 8 * count
    rows = np.frombuffer(content[HEAD:middle], np.int64)
    values = np.frombuffer(content[middle:-4], dtype, count * math.prod(shape))
    return Segment(rows, values.reshape(count, *shape))


def wrong_with(path: Path, identity: str) -> str:
    """'' when it is what was written."""
    try:
        read(path, identity)
    except Damaged as reason:
        return str(reason)
    return ""


def rows_of(path: Path) -> np.ndarray | None:
    """Its row numbers, unchecked and without its values; None where the head cannot be read."""
    with path.open("rb") as file:
        try:
            count = json.loads(file.read(HEAD))["rows"]
            return np.frombuffer(file.read(8 * count), np.int64)
        except (ValueError, KeyError, TypeError):
            return None


def listing(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))
