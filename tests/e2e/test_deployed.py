"""A student that answers through its method's parts: what is scored in training is what a file gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkd.cli.main import main
from tests.e2e.runs import STUDENT, Train, load, one_line, rows

WORDS = (*STUDENT, "--path-t", "teacher", "--distill", "simkd", "--threads", "1")


def scores(capfd: pytest.CaptureFixture[str], *paths: object) -> dict[str, dict[str, Any]]:
    capfd.readouterr()
    assert main(["eval", *map(str, paths), "--json"]) == 0
    return {Path(row["path"]).name: row for row in json.loads(capfd.readouterr().out)}


def test_what_was_scored_is_what_a_file_gives(
    train: Train, teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = train("student", *WORDS, "--epochs", "3", "--out", "run")
    assert said.code == 0, said
    found = rows(Path("run"))
    best = max(found, key=lambda row: row["test_top1"])
    given = scores(capfd, "run")
    for name, row in (("last.pt", found[-1]), ("best.pt", best)):
        assert (given[name]["top1"], given[name]["loss"]) == (row["test_top1"], row["test_loss"])
    assert main(["report", "run", "--out", "page.html"]) == 0
    # without the method's parts it would be another net
    content = load(Path("run/best.pt"))
    content["about"].pop("method")
    torch.save(content, "bare.pt")
    bare = scores(
        capfd, "bare.pt", "--options", "data.train_size=200", "data.test_size=110", "data.num_classes=10"
    )
    assert bare["bare.pt"]["loss"] != given["best.pt"]["loss"]


def test_it_is_no_teacher(train: Train, teacher: Path) -> None:
    assert train("student", *WORDS, "--out", "run").code == 0
    one_line(train("student", *STUDENT, "--path-t", "run", "--out", "next"), "answers through parts of simkd")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "os:system"}, "a file does not get to name code to run"),
        ({"name": "simkd", "factor": 8}, "its parts of simkd do not fit"),
        ({"name": "simkd", "factr": 8}, "unknown key 'method.factr'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    train: Train, teacher: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    assert train("student", *WORDS, "--out", "run").code == 0
    content = load(Path("run/best.pt"))
    content["about"]["method"] |= change
    torch.save(content, "run/best.pt")
    capfd.readouterr()
    assert main(["eval", "run/best.pt"]) == 2
    assert says in capfd.readouterr().err


@pytest.mark.dist
def test_two_ranks_answer_with_one_net(
    train: Train, teacher: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The projector's batch norms have seen different pictures on each rank."""
    from tests.e2e.runs import end
    from tests.e2e.test_distributed import SCRIPT, TWO, begin

    processes = begin(SCRIPT, *TWO, "--distill", "simkd", "--out", "run", cwd=here)
    assert [end(process).code for process in processes] == [0, 0]
    (row,) = rows(here / "run")
    assert scores(capfd, here / "run")["last.pt"]["loss"] == pytest.approx(row["test_loss"], rel=1e-6)
