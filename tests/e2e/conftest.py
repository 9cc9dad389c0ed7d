"""The scripts as a test calls them, and one small teacher for all."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastkd.cli.train import main
from fastkd.engine.step import Step

pytest.register_assert_rewrite("tests.e2e.runs")

from tests.e2e.runs import TEACHER, Said, Train, contents, one_line  # noqa: E402


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(capfd: pytest.CaptureFixture[str]) -> Train:
    """One of the scripts in this process."""

    def run(script: str, *words: object) -> Said:
        capfd.readouterr()
        code = main(script, f"train_{script}.py", [str(word) for word in words])
        return Said(code, *capfd.readouterr())

    return run


@pytest.fixture
def refused(train: Train, here: Path) -> Train:
    """A call that must fail as bad input should: one line, and nothing on disk made or changed."""

    def run(script: str, *words: object, says: tuple[str, ...] = ()) -> Said:
        before = contents(here)
        said = train(script, *words)
        one_line(said, *says)
        assert contents(here) == before
        return said

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small teacher. Not to be written to."""
    out = tmp_path_factory.mktemp("trained") / "teacher"
    assert main("teacher", "train_teacher.py", [*TEACHER, "--out", str(out)]) == 0
    return out


@pytest.fixture
def teacher(trained: Path, here: Path) -> Path:
    """The small teacher's run, in this test's folder."""
    return Path(shutil.copytree(trained, here / "teacher"))


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal after so many steps, once."""
    step = Step.__call__

    def set_up(steps: int, number: signal.Signals = signal.SIGTERM) -> None:
        taken = 0

        def counted(self: Step, batch: Any) -> None:
            nonlocal taken
            step(self, batch)
            taken += 1
            if taken == steps:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Step, "__call__", counted)

    return set_up
