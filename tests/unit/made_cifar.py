"""CIFAR's published forms in small, for the tests to read and to damage."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loaders.cifar import load
from loaders.cifar_files import SOURCES, Source
from loaders.errors import UserError

# 5 classes of 2 and 1 pictures: what the five batches of CIFAR-10 divide evenly.
SMALL = {
    name: replace(source, num_classes=5, train_per_class=2, test_per_class=1, address="http://127.0.0.1:9/")
    for name, source in SOURCES.items()
}
NAMES = [b"apple", b"bear", b"crab", b"dolphin", b"elm"]
NO_MD5 = "0" * 32
FORMS = ("python2", "python3", "binary")


def python2(value: object) -> bytes:
    """The opcodes Python 2 wrote the published files with: str is bytes, and numpy has its old names."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, bytes):
        size = len(value)
        return (b"U" + bytes([size]) if size < 256 else b"T" + struct.pack("<i", size)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, np.ndarray)
    shape = b"".join(map(python2, value.shape)) + b"\x86"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape +
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2(value.tobytes()) + b"tb"
    )  # fmt: skip


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def dumped(value: object, form: str = "python2") -> bytes:
    return b"\x80\x02" + python2(value) + b"." if form == "python2" else pickle.dumps(value, protocol=2)


class Made:
    """A small data set: its pictures, and its files as they would be published."""

    def __init__(self, name: str, form: str) -> None:
        self.source = SMALL[name]
        self.archive = self.source.archives[form == "binary"]
        draws = np.random.default_rng(0)
        sizes = {"train": 10, "test": 5}
        self.pixels = {part: draws.integers(0, 256, (n, 3072), np.uint8) for part, n in sizes.items()}
        self.labels = {"train": [0, 3, 1, 4, 2, 2, 4, 1, 3, 0], "test": [4, 2, 0, 1, 3]}
        self.files: dict[str, bytes] = {}
        for part, files in (("train", self.archive.train), ("test", self.archive.test)):
            rows = np.array_split(np.arange(len(self.labels[part])), len(files))
            for file, row in zip(files, rows, strict=True):
                labels = [self.labels[part][i] for i in row]
                self.files[file] = self.content(form, self.pixels[part][row], labels)
        names = b"\n".join(NAMES) + b"\n\n"
        if form != "binary":
            names = dumped({self.source.names_key.encode(): NAMES}, form)
        self.files[self.archive.names] = names

    def content(self, form: str, pixels: np.ndarray, labels: list[int]) -> bytes:
        if form != "binary":
            key = self.source.label_key.encode()
            return dumped({b"data": pixels, key: labels, b"batch_label": b"1"}, form)
        coarse = b"\x09" * (self.source.label_bytes - 1)
        return b"".join(coarse + bytes([y]) + x.tobytes() for y, x in zip(labels, pixels, strict=True))

    def put(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for file, content in self.files.items():
            (folder / file).write_bytes(content)

    def pack(self, root: Path, *extra: tuple[tarfile.TarInfo, bytes]) -> Path:
        folder = tarfile.TarInfo(self.archive.folder)
        folder.type = tarfile.DIRTYPE
        files = [(tarfile.TarInfo(f"{folder.name}/{file}"), c) for file, c in self.files.items()]
        with tarfile.open(root / self.archive.file, "w:gz") as tar:
            for entry, content in [(folder, b""), *extra, *files]:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return root / self.archive.file

    def sources(self, packed: Path | None = None) -> dict[str, Source]:
        """The table with these files' own checksums."""
        md5s = {} if self.archive.binary else {file: md5(content) for file, content in self.files.items()}
        of_archive = md5(packed.read_bytes()) if packed else NO_MD5
        mine = replace(self.archive, md5s=md5s, md5=of_archive)
        archives = tuple(mine if archive is self.archive else archive for archive in self.source.archives)
        return {self.source.name: replace(self.source, archives=archives)}

    def refusal(self, root: Path, packed: Path | None = None, *, download: bool = False) -> str:
        with pytest.raises(UserError) as caught:
            load(self.source.name, root, download=download, sources=self.sources(packed))
        assert "\n" not in str(caught.value)
        return str(caught.value)


def listing(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}
