"""Runs small enough for tests, in this process or in one of their own, and folders to compare with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]

# Ten steps an epoch, done in a second. 110 test pictures fill no whole number of batches.
SMALL = (
    "--dataset", "shapes", "data.train_size=200", "data.test_size=110", "data.num_classes=10",
    "--batch-size", "20", "--epochs", "1",
)  # fmt: skip
TEACHER = (*SMALL, "--model", "resnet8")
STUDENT = (*SMALL, "--model-s", "resnet8")


# What differs between two runs that are the same.
TIMES = {"seconds", "epoch_seconds", "wait_seconds", "images_per_second", "data_wait"}


class Said(NamedTuple):
    code: int
    out: str
    err: str


Train = Callable[..., Said]


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: 'dir', or a file's hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "dir"
        for path in sorted(folder.rglob("*"))
    }


def environment(**changes: str) -> dict[str, str]:
    """Of a process started by a test: one thread, so that it is a good neighbour, and no ranks."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def start(script: str, *words: object, cwd: Path, **changes: str) -> subprocess.Popen[str]:
    """train_teacher.py or train_student.py in a process of its own."""
    return run_python(ROOT / f"train_{script}.py", *words, cwd=cwd, **changes)


def run_python(*words: object, cwd: Path, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out, err)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it is so, or the process has ended."""
    until = time.monotonic() + 60
    while not what() and process.poll() is None:
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def rows(run: Path) -> list[dict[str, Any]]:
    """A run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def one_line(said: Said, *parts: str) -> None:
    """Exit code 2, and on stderr one short line that holds the parts."""
    assert said.code == 2, said
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1, said.err
    assert len(said.err) < 400, said.err
    assert "Traceback" not in said.err + said.out
    for part in parts:
        assert part in said.err


def equal(one: Any, two: Any, where: str = "") -> None:
    """Bit for bit, but for times."""
    assert type(one) is type(two), where
    if isinstance(one, Mapping):
        assert one.keys() == two.keys(), where
        for key in one.keys() - TIMES:
            equal(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            equal(a, b, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    else:
        assert one == two, where


def same_run(one: Path, two: Path) -> None:
    for name in ("last.pt", "best.pt"):
        equal(load(one / name), load(two / name), name)
    equal(rows(one), rows(two), "metrics.jsonl")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    equal(summaries[0], summaries[1], "summary.json")
