"""A data set as folders of pictures: ROOT/train/<class>/* and ROOT/val/<class>/* (or ROOT/test)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from loaders.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSplit:
    """Pictures of any size, read when asked for.

    Greyscale, palette and CMYK become RGB and transparency is dropped. The EXIF orientation is NOT applied:
    torchvision's ImageFolder does not either, and so the published networks were trained.
    """

    name: str
    root: Path  # holds the class folders
    image_size: int  # what views should make of the pictures
    labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    # One object, not a million: it goes to every worker at the speed of memory.
    names: bytes = field(repr=False)  # every file's path below its class folder, one after another
    ends: np.ndarray = field(repr=False)  # N int64: where in `names` each ends

    def __len__(self) -> int:
        return len(self.ends)

    def where(self, index: int) -> str:
        return str(self.path(index))

    def path(self, index: int) -> Path:
        first = int(self.ends[index - 1]) if index else 0
        name = os.fsdecode(self.names[first : self.ends[index]])
        return self.root / self.class_names[int(self.labels[index])] / name

    def fingerprint(self) -> str:
        """Of the files' names, classes and sizes: reading every picture would take as long as an epoch."""
        digest = hashlib.sha256("/".join(self.class_names).encode())
        digest.update(self.names)
        digest.update(self.ends.data)
        digest.update(self.labels.numpy().data)
        digest.update(np.array([self.path(index).stat().st_size for index in range(len(self))]).data)
        return digest.hexdigest()

    def read(self, index: int) -> np.ndarray:
        path = self.path(index)
        try:
            with Image.open(path) as opened:
                # By way of RGBA, since Pillow warns of dropping a palette's transparency in one go.
                layered = opened.mode == "P" and "transparency" in opened.info
                return np.asarray((opened.convert("RGBA") if layered else opened).convert("RGB"))
        except Exception as problem:  # on a damaged file Pillow raises nearly anything
            reason = str(problem) or repr(problem)
            if isinstance(problem, UnidentifiedImageError):
                reason = "no kind of picture Pillow knows"
            elif isinstance(problem, OSError) and problem.strerror:  # str() would name the file twice
                reason = problem.strerror
            raise UserError(f"cannot read {path}: {reason}; replace the file or remove it") from problem


def load(root: Path, *, image_size: int | None = None) -> tuple[FolderSplit, FolderSplit]:
    """(train, val). A class's number is its place among the sorted class folders of train; pictures are in
    the order of torchvision's ImageFolder. What begins with a dot is skipped."""
    size = 224 if image_size is None else image_size
    if size < 1:
        raise UserError(f"image size {size} asked for pictures in {root}; give one of at least 1")
    wanted = "train/<class>/ and val/<class>/ (or test/<class>/)"
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserError(f"folder data set {root} {found}; give the folder that holds {wanted}")
    held_out = "val" if (root / "val").is_dir() else "test"
    for part, asked in (("train", "train/"), (held_out, "val/ or test/")):
        if not (root / part).is_dir():
            raise UserError(f"folder data set {root} has no {asked}; give the folder that holds {wanted}")
    classes = {part: _class_folders(root / part) for part in ("train", held_out)}
    for part, other in ((held_out, "train"), ("train", held_out)):
        if more := sorted(set(classes[part]) - set(classes[other])):
            listed = ", ".join(more[:3]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
            where = f"{root / part} has class folders that {root / other} lacks"
            raise UserError(f"{where}: {listed}; give both the same classes")
    return _split(root, "train", classes["train"], size), _split(root, held_out, classes["train"], size)


def _class_folders(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError as problem:
        raise UserError(f"cannot list {folder}: {problem.strerror}") from problem
    if not found:
        raise UserError(f"{folder} has no class folders; put each class's pictures into one of its own there")
    return tuple(found)


def _split(root: Path, part: str, class_names: tuple[str, ...], size: int) -> FolderSplit:
    names: list[bytes] = []
    counts = []
    for class_name in class_names:
        folder = root / part / class_name
        try:
            found = sorted(_pictures(folder, ""))
        except OSError as problem:
            raise UserError(f"cannot list {problem.filename}: {problem.strerror}") from problem
        if not found:
            known = " ".join(SUFFIXES)
            raise UserError(f"class folder {folder} has no pictures ({known}); fill it or remove the class")
        names.extend(os.fsencode(f"{below}/{name}" if below else name) for below, name in found)
        counts.append(len(found))
    return FolderSplit(
        name=f"{root.resolve().name}/{part}",
        root=root / part,
        image_size=size,
        labels=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        class_names=class_names,
        names=b"".join(names),
        ends=np.cumsum([len(name) for name in names]),
    )


def _pictures(folder: Path | str, below: str) -> list[tuple[str, str]]:
    """(folder below the class's, file name) of every picture. A link to a file counts, one to a folder does
    not: it could lead back up."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                found.extend(_pictures(entry.path, f"{below}/{entry.name}" if below else entry.name))
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                found.append((below, entry.name))
    return found
