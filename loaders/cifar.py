"""CIFAR-10 and CIFAR-100 from the files their authors publish: python pickles, binary files, the archives."""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loaders.archives import download as fetch
from loaders.archives import unpack
from loaders.cifar_files import SOURCES, Archive, Source
from loaders.contract import ArraySplit
from loaders.errors import UserError, nearest

SIDE = 32
PIXELS = 3 * SIDE * SIDE

# All that the published pickles refer to, by numpy 1's name and numpy 2's. Looked up here, never imported.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
REFERRED = {
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": codecs.encode,
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    num_train: int
    num_test: int
    num_classes: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def facts(name: str, sources: Mapping[str, Source] = SOURCES) -> Facts:
    """What is known of the set without a look at the disk."""
    source = _source(name, sources)
    return Facts(
        num_train=source.train_per_class * source.num_classes,
        num_test=source.test_per_class * source.num_classes,
        num_classes=source.num_classes,
        image_size=SIDE,
        mean=source.mean,
        std=source.std,
    )


def load(
    name: str, root: Path, *, download: bool = False, sources: Mapping[str, Source] = SOURCES
) -> tuple[ArraySplit, ArraySplit]:
    """(train, test), fine labels for CIFAR-100: from a published folder in root, or root being one; else from
    an archive in root, which is unpacked there; else, if asked, from the network."""
    source = _source(name, sources)
    archive, folder = _find(source, root) or _unpacked(source, root, download)
    class_names = _class_names(source, archive, folder)
    train = _split(source, archive, folder, class_names, "train", archive.train, source.train_per_class)
    return train, _split(source, archive, folder, class_names, "test", archive.test, source.test_per_class)


def _source(name: str, sources: Mapping[str, Source]) -> Source:
    if name not in sources:
        raise UserError(f"unknown data set '{name}'{nearest(name, sources)}")
    return sources[name]


def _find(source: Source, root: Path) -> tuple[Archive, Path] | None:
    """The first published folder that has all its files. Only incomplete ones are refused, an archive beside
    them or not: unpacking it would mean replacing what lies there."""
    broken = ""
    for archive in source.archives:
        wanted = (*archive.train, *archive.test, archive.names)
        for folder in (root / archive.folder, root):
            lacking = [file for file in wanted if not (folder / file).is_file()]
            if not lacking:
                return archive, folder
            if folder.name == archive.folder and folder.is_dir() and not broken:
                broken = (
                    f"{source.name}: {folder} lacks {', '.join(lacking)}; it is half unpacked: delete the "
                    f"folder and unpack {archive.file} again"
                )
    if broken:
        raise UserError(broken)
    return None


def _unpacked(source: Source, root: Path, download: bool) -> tuple[Archive, Path]:
    if root.exists() and not root.is_dir():
        raise UserError(f"{source.name}: {root} is a file; give the folder it lies in")
    first = source.archives[0]
    found = next((archive for archive in source.archives if (root / archive.file).is_file()), None)
    if found is None:
        if not download:
            folders = ", ".join(f"{archive.folder}/" for archive in source.archives)
            files = ", ".join(archive.file for archive in source.archives)
            raise UserError(
                f"{source.name} is not in {root}: it has none of {folders}, {files}; put one of them there, "
                f"or add --download to fetch it ({source.address}{first.file})"
            )
        fetch(source.address + first.file, root / first.file, first.md5)
        found = first
    unpack(root / found.file, found.md5, found.folder)
    place = _find(source, root)
    if place is None:
        raise UserError(f"{source.name}: {root / found.file} gave no {found.folder}/; fetch it again")
    return place


def _class_names(source: Source, archive: Archive, folder: Path) -> tuple[str, ...]:
    path = folder / archive.names
    if archive.binary:
        names = _bytes_of(path).decode("ascii", "replace").split()
    else:
        content = _unpickle(source, archive, path).get(source.names_key)
        names = [_text(name) for name in content] if isinstance(content, list) else []
    if len(names) != source.num_classes:
        raise _bad(source, archive, path, f"names {len(names)} classes, not {source.num_classes}")
    return tuple(names)


def _split(
    source: Source,
    archive: Archive,
    folder: Path,
    class_names: tuple[str, ...],
    part: str,
    files: Sequence[str],
    per_class: int,
) -> ArraySplit:
    read = _read_binary if archive.binary else _read_pickle
    count = per_class * source.num_classes // len(files)
    parts = [read(source, archive, folder / file, count) for file in files]
    labels = np.concatenate([of_file for _, of_file in parts])
    found = np.bincount(labels, minlength=source.num_classes)
    if (odd := np.flatnonzero(found != per_class)).size:
        number = int(odd[0])
        what = f"has {found[number]} pictures of class {number} '{class_names[number]}', not {per_class}"
        raise _bad(source, archive, folder / files[0] if len(files) == 1 else folder, f"{part}: {what}")
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, SIDE, SIDE)
    return ArraySplit(
        name=f"{source.name}/{part}", images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=torch.from_numpy(labels), class_names=class_names, mean=source.mean, std=source.std,
    )  # fmt: skip


def _read_binary(source: Source, archive: Archive, path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """n,3072 uint8 and n int64. Records of label bytes and the three colour planes, without a header."""
    content = _bytes_of(path)
    record = source.label_bytes + PIXELS
    if len(content) != count * record:
        raise _bad(source, archive, path, f"has {len(content)} bytes, not {count * record}")
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    labels = records[:, source.label_bytes - 1].astype(np.int64)
    return records[:, source.label_bytes :], _in_range(source, archive, path, labels)


def _read_pickle(source: Source, archive: Archive, path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(source, archive, path)
    pixels, labels = content.get("data"), content.get(source.label_key)
    wanted = (count, PIXELS)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != wanted:
        what = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise _bad(source, archive, path, f"has 'data' {what}, not uint8 {wanted}")
    if not isinstance(labels, list) or len(labels) != count or {type(label) for label in labels} != {int}:
        raise _bad(source, archive, path, f"has no list of {count} numbers '{source.label_key}'")
    return pixels, _in_range(source, archive, path, np.array(labels, np.int64))


def _in_range(source: Source, archive: Archive, path: Path, labels: np.ndarray) -> np.ndarray:
    if (odd := np.flatnonzero((labels < 0) | (labels >= source.num_classes))).size:
        at, last = int(odd[0]), source.num_classes - 1
        raise _bad(source, archive, path, f"has label {labels[at]} at picture {at}, not one of 0 to {last}")
    return labels


def _unpickle(source: Source, archive: Archive, path: Path) -> dict[str, Any]:
    """The very bytes whose checksum was right, read without running anything they could name."""
    content = _bytes_of(path)
    wanted, found = archive.md5s[path.name], hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != wanted:
        size = len(content)
        raise _bad(source, archive, path, f"({size} bytes) has md5 {found}, not the published {wanted}")
    try:
        made = _Unpickler(io.BytesIO(content), path).load()
    except UserError:
        raise
    except Exception as problem:  # a damaged pickle raises nearly anything
        raise _bad(source, archive, path, f"is no readable pickle: {problem!r}") from problem
    if not isinstance(made, dict):
        raise _bad(source, archive, path, f"holds a {type(made).__name__}, not a dict")
    return {_text(key): value for key, value in made.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: io.BytesIO, path: Path) -> None:
        super().__init__(content, encoding="bytes")  # the published files were written by Python 2
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in REFERRED:
            raise UserError(
                f"{self._path} refers to {module}.{name}, which no CIFAR file does; it was not run: delete it"
            )
        return REFERRED[f"{module}.{name}"]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}; make it readable") from problem


def _text(key: object) -> str:
    return key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)


def _bad(source: Source, archive: Archive, path: Path, found: str) -> UserError:
    return UserError(
        f"{source.name}: {path} {found}; it is damaged or not the original: delete {archive.folder}/ and "
        f"unpack {archive.file} again"
    )
