"""Published archives: fetched whole or not at all, checked, unpacked where they lie. Nothing is replaced."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from loaders.errors import UserError

CHUNK = 1 << 20


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}; make it readable") from problem
    return digest.hexdigest()


def download(url: str, target: Path, md5: str) -> None:
    """To a file beside the target, which takes the target's name once its checksum is right."""
    from tqdm import tqdm

    by_hand = f"fetch it by other means and put it at {target}"
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as answer, open(part, "xb") as out:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            # disable=None: silent where there is no terminal
            with tqdm(desc=target.name, total=total, unit="B", unit_scale=True, disable=None) as bar:
                while chunk := answer.read(CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
                    bar.update(len(chunk))
        found, size = digest.hexdigest(), part.stat().st_size
        if found != md5:
            raise UserError(
                f"{url} gave {size} bytes with md5 {found}, not the published {md5}; try again, or {by_hand}"
            )
        if not target.exists():  # another process may have been first
            part.rename(target)
    except (OSError, http.client.HTTPException) as problem:  # URLError and timeouts are OSErrors
        reason = str(problem) or repr(problem)
        raise UserError(f"cannot download {url} to {target.parent}: {reason}; {by_hand}") from problem
    finally:
        part.unlink(missing_ok=True)


def unpack(packed: Path, md5: str, folder: str) -> None:
    """The archive's one folder, put beside it in one move. Only plain files directly in that folder are
    taken: links, devices and paths that lead elsewhere are refused."""
    found = _md5_of(packed)
    if found != md5:
        raise UserError(
            f"{packed} ({packed.stat().st_size} bytes) has md5 {found}, not the published {md5}; it is "
            "incomplete or not the original: delete it and fetch it again"
        )
    target = packed.parent / folder
    workspace = ""
    try:
        workspace = tempfile.mkdtemp(prefix=f".{folder}-", dir=target.parent)
        fresh = Path(workspace) / folder
        fresh.mkdir()
        with tarfile.open(packed, "r:gz") as tar:
            for member in tar:
                _take(tar, member, fresh, packed)
        if not target.is_dir():  # another process may have been first
            fresh.rename(target)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as problem:
        if not target.is_dir():
            by_hand = f"unpack it by hand into {target.parent}"
            raise UserError(f"cannot unpack {packed}: {problem}; {by_hand}") from problem
    finally:
        if workspace:
            shutil.rmtree(workspace, ignore_errors=True)


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, fresh: Path, packed: Path) -> None:
    parts = PurePosixPath(member.name).parts
    if member.isdir() and parts == (fresh.name,):
        return
    content: Any = tar.extractfile(member) if member.isreg() else None
    if content is None or len(parts) != 2 or parts[0] != fresh.name or parts[1] == "..":
        kind = "link" if member.issym() or member.islnk() else "entry"
        raise UserError(
            f"{packed} holds the {kind} '{member.name}', not a file in {fresh.name}/; nothing was unpacked: "
            "delete it and fetch the original"
        )
    with content, open(fresh / parts[1], "xb") as out:
        shutil.copyfileobj(content, out, CHUNK)
