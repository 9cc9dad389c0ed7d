"""What a cache was made of. A run that differs in any of it is refused by name, so no answer is ever stale."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastkd.config import flat
from loaders.errors import UserError

NAME = "manifest.json"
FORMAT = 1  # of the segments; answers may one day be stored in other forms, under another number

# first words of a key -> (what it is, what to do about a difference)
_ADVICE = (
    ("format", "the format", "use the version of fastkd that made it, or pick another folder"),
    ("teacher.model", "the teacher's net", "pass the --path-t it was made from, or pick another folder"),
    (
        "teacher.weights",
        "the teacher's weights",
        "pass the --path-t it was made from, or pick another folder",
    ),
    ("data.", "the data set", "pass the --data it was made from, or pick another folder"),
    ("views.train", "the set of views", "pass its --cache-views, or pick another folder"),
    ("views.test", "the evaluation's view", "pick another folder"),
    ("preprocessing", "the preprocessing", "pick another folder"),
    ("precision", "the precision of the teacher's forward", "pass its --amp, or pick another folder"),
    ("dtype", "the stored precision", "pass its --cache-dtype, or pick another folder"),
)


def identity(facts: Mapping[str, Any]) -> str:
    """Short hex digits of all facts; every segment carries them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def settle(folder: Path, facts: Mapping[str, Any]) -> None:
    """Makes the folder a cache of these facts, or finds that it is one."""
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # by now another process may have made it
            foreign = sorted({p.name for p in folder.iterdir() if not p.name.startswith(".")} - {NAME})
            if foreign:
                raise UserError(
                    f"--teacher-cache {folder}: holds {foreign[0]} and no cache of ours; pick an empty or new folder"
                )
            _create(path, facts)
    except OSError as error:
        raise UserError(
            f"--teacher-cache {folder}: cannot write there: {error.strerror}; pick another folder"
        ) from None
    compare(folder, read(folder), facts)


def _create(path: Path, facts: Mapping[str, Any]) -> None:
    """Whole or not at all, and never over another's: of several processes one wins, and all read it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".manifest.", suffix=".part")
    try:
        with os.fdopen(handle, "w") as out:
            out.write(json.dumps(facts, indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)
        try:
            os.link(name, path)
        except FileExistsError:
            return
    finally:
        Path(name).unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is no teacher cache: it holds no {NAME}")
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove the folder and build the cache anew") from None
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds no mapping; remove the folder and build the cache anew")
    return facts


def compare(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    was, now = flat(there), flat(here)
    different = [key for key in dict.fromkeys([*now, *was]) if was.get(key) != now.get(key)]
    for start, what, advice in _ADVICE:
        for key in different:
            if key.startswith(start):
                raise UserError(
                    f"cache {folder}: {what} is another one: {key} is {_short(was.get(key))} there, "
                    f"{_short(now.get(key))} in this run; {advice}"
                )
    if different:
        raise UserError(f"cache {folder}: {different[0]} differs; pick another folder")


def _short(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return f"{text[:8]}.." if len(text) == 64 else text
