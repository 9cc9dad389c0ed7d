"""A run's folder: whose it is, what is in it, and which parts of a configuration a resumed run may change."""

from __future__ import annotations

import contextlib
import fcntl
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

from fastkd import config as configs
from fastkd import files
from fastkd.config import RunConfig
from fastkd.recipes import read_yaml
from loaders.errors import UserError

LAST, BEST, NAN = "last.pt", "best.pt", "nan.pt"

# What may differ between a run and its continuation: none of it is asked to change a number (--threads may, in the last
# bits, and then somebody has asked for it).
FREE = {
    "run.out", "run.print_freq", "run.gpu_id", "run.threads", "run.dist_url", "run.distributed", "run.save_freq",
    "run.skip_validation", "data.root", "data.download", "data.num_workers", "teacher.path",
}  # fmt: skip


def default_name(config: RunConfig) -> Path:
    """save/teachers/.. or save/students/..: the run's main facts, in characters every file system takes."""
    method = config.method
    if config.kind == "teacher":
        parts = [config.student.model, config.data.dataset]
    else:
        parts = [
            "S", config.student.model, "T", config.teacher.model or "none", config.data.dataset, method["name"],
            "c", f"{method['task_weight']:g}", "d", f"{method['kd_weight']:g}", "b", f"{method['weight']:g}",
        ]  # fmt: skip
    name = "_".join([*parts, "seed", str(config.run.seed), "trial", str(config.run.trial)])
    return Path("save", f"{config.kind}s", re.sub(r"[^A-Za-z0-9_.+-]", "-", name))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    was, now = configs.flat(old), configs.flat(new)
    keys = sorted((was.keys() | now.keys()) - FREE - {"applied"})
    return [f"{k} is {was.get(k)} there, {now.get(k)} here" for k in keys if was.get(k) != now.get(k)]


class RunFolder:
    """Claimed for one process at a time by a lock that dies with its holder. Until `start` nothing in it is
    changed, and what was made for the claim goes again with `close`."""

    def __init__(self, path: Path, config: RunConfig, resume: str | None) -> None:
        self.path = path
        self._begun = False
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        lock = path / ".lock"
        self._made_lock = not lock.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.open("a")
        except OSError as error:
            self._remove_made()
            raise UserError(
                f"--out {path}: cannot write there: {error.strerror}; pick another folder"
            ) from None
        try:
            self._claim()
            self._check(configs.tree(config), resume)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse("another process is training there; wait for it or pick another --out")
        except OSError as error:  # some network file systems
            warnings.warn(
                f"{self.path} cannot be locked ({error.strerror}): let no other run use it", stacklevel=1
            )

    def _check(self, wanted: dict[str, Any], resume: str | None) -> None:
        self.is_new = not (self.path / "config.yaml").exists()
        if self.is_new:
            ours = {path.name for path in files.orphans(self.path)}
            if not (self.path / ".lock").stat().st_size:
                ours.add(".lock")
            foreign = sorted({path.name for path in self.path.iterdir()} - ours)
            if foreign:
                self._refuse(f"holds {foreign[0]} and no run of ours; pick an empty or new folder")
            return
        different = differences(read_yaml(self.path / "config.yaml"), wanted)
        if different:
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            self._refuse(f"holds another run: {different[0]}{more}; pick another --out")
        if resume is None:
            self._refuse("already holds this run; add --resume auto to go on with it, or pick another --out")

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"--out {self.path}: {why}")

    def start(self, config: RunConfig) -> None:
        for orphan in files.orphans(self.path):
            orphan.unlink(missing_ok=True)
        try:
            files.write_yaml(self.path / "config.yaml", configs.tree(config))
        except OSError as error:
            self._refuse(f"cannot write there: {error.strerror}; make room or pick another folder")
        self._begun = True

    def close(self) -> None:
        if self._made_lock and not self._begun:
            (self.path / ".lock").unlink(missing_ok=True)
        self._lock.close()
        if not self._begun:
            self._remove_made()

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):  # not made after all, or in use by another run now
                folder.rmdir()


def read_state(path: Path) -> dict[str, Any] | None:
    """What the run's last checkpoint holds; None before the first one."""
    last = path / LAST
    return files.read_tensors(last, "--resume") if last.exists() else None
