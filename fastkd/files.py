"""Writes that happen wholly or not at all, and reads that execute nothing."""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from loaders.errors import UserError


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """A temporary file beside the target, flushed to the disk, then renamed over it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            fill(out)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def orphans(folder: Path) -> list[Path]:
    """Temporary files of a process that was killed while it wrote."""
    return [path for path in folder.glob(".*.part") if re.fullmatch(r"\.\w+\.\w+\.\w{8}\.part", path.name)]


def write_text(path: Path, text: str) -> None:
    write(path, lambda out: out.write(text.encode()))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, yaml.safe_dump(dict(content), sort_keys=False))


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """torch.save turns a failing disk into a RuntimeError; say what the system said."""
    try:
        write(path, lambda out: torch.save(dict(content), out))
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read_tensors(path: Path, what: str) -> dict[str, Any]:
    """A file of tensors and plain values. Anything that would run code on loading is refused."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{what}: no such file: {path}") from None
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        why = (
            f"it holds more than tensors and plain values ({refused[1]})"
            if refused
            else "it is damaged or no checkpoint"
        )
        raise UserError(f"{what}: {path} is refused: {why}") from None
    except OSError as error:
        raise UserError(f"{what}: cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged file raises nearly anything
        reason = next(iter(str(error).partition(". ")[0].splitlines()), "") or type(error).__name__
        raise UserError(
            f"{what}: cannot read {path}: {reason[:120]}; the file is damaged or cut short"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds a {type(content).__name__}, not a checkpoint")
    return content
