"""train_teacher and train_student: flags -> configuration -> run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from fastkd.cli import flags
from fastkd.cli.exits import exit_code
from fastkd.recipes import resolve
from loaders.errors import UserError


def main(script: str, prog: str, arguments: Sequence[str] | None = None) -> int:
    return exit_code(prog, lambda: _main(script, prog, sys.argv[1:] if arguments is None else arguments))


def _main(script: str, prog: str, arguments: Sequence[str]) -> int:
    asked = flags.read(script, prog, arguments)
    values, resume = asked.values, asked.resume
    if resume not in (None, "auto"):
        values, resume = _from_run(script, Path(resume), values), "auto"
    request = resolve(script, values, asked.shared_method_keys)
    # after the flags are read: it takes torch a second to load
    from fastkd.engine import build, parallel, start

    if asked.dry_run:
        return start.dry_run(request, asked.unused)
    build.complete(request)  # what it refuses is said once, before there are several processes
    work = functools.partial(start.train, request, resume, asked.unused)
    parallel.launch(work, request.config)
    return 0


def _from_run(script: str, path: Path, values: dict[str, object]) -> dict[str, object]:
    """--resume PATH: that run's own configuration under the flags given now, in its own folder."""
    from fastkd import config, recipes

    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / "config.yaml").is_file():
        raise UserError(f"--resume {path}: there is no run; give a run's folder or its last.pt")
    if path.is_file() and path.name != "last.pt":
        raise UserError(f"--resume {path}: only last.pt holds all of a run; give that or the run's folder")
    if Path(str(values.get("run.out") or folder)) != folder:
        raise UserError(f"--resume {path} goes on in its own folder; leave out --out {values['run.out']}")
    record = config.flat(recipes.read_yaml(folder / "config.yaml"))
    if record.get("kind") != script:
        raise UserError(
            f"--resume {path}: that is the run of a {record.get('kind')}, which train_{script}.py cannot train"
        )
    return record | values | {"run.out": str(folder)}
