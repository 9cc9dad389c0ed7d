"""Every method through the real script, because its file exists: it learns, goes on after an end, reads the cache."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastkd import methods
from fastkd.engine.record import Recorder
from tests.e2e.runs import ROOT, Train, equal, load, one_line, rows, same_run

# what is trained -> its words, and its row of METHODS.md
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    name: (("--distill", name), name) for name in methods.names()
}
CASES["lskd-over-mlkd"] = ("--distill", "lskd", "method.of=mlkd"), "mlkd"

# A method whose published weight, made for 240 epochs, drowns the labels in the first hundred steps.
LIGHTER = {"askd": ("--beta", "0.05"), "crd": ("--beta", "0.05")}
# teacher -> student. Nets of three stages and of four, of either side; and two of three with other blocks.
PAIRS = (("resnet8", "vgg8"), ("vgg8", "resnet8"), ("wrn_16_1", "resnet8"))
# The pairs that a method cannot do, and what it says.
REFUSES: dict[str, dict[tuple[str, str], str]] = {
    "fsp": {
        ("resnet8", "vgg8"): "student's stage1 has 128 channels and the teacher's stem has 16",
        ("vgg8", "resnet8"): "student's stem has 16 channels and the teacher's stage1 has 128",
    },
    "kdsvd": {
        ("resnet8", "vgg8"): "needs equal width, but the student's stage2 has 8 and the teacher's stage1 32",
        ("vgg8", "resnet8"): "needs equal width, but the student's stage1 has 32 and the teacher's stage2 8",
    },
}

CLASSES, PICTURES, TESTED = 10, 1000, 200
DATA = ("--dataset", "shapes", f"data.num_classes={CLASSES}", "data.image_size=16", "--batch-size", "20",
        "--optimizer", "adamw", "--lr", "0.01", "--threads", "1")  # fmt: skip
LEARNING = (f"data.train_size={PICTURES}", f"data.test_size={TESTED}", "--amp", "off")
TINY = ("data.train_size=60", "data.test_size=40")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows something."""
    from fastkd.cli.train import main

    out = tmp_path_factory.mktemp("taught") / "teacher"
    words = (
        *DATA,
        "data.train_size=2000",
        f"data.test_size={TESTED}",
        "--model",
        "resnet8",
        "--epochs",
        "4",
        "--amp",
        "off",
    )
    assert main("teacher", "train_teacher.py", [*words, "--out", str(out)]) == 0
    assert rows(out)[-1]["test_top1"] > 3 * 100 / CLASSES
    return out


def words(case: str, taught: Path) -> tuple[object, ...]:
    sizes = ("--init-epochs", "1", "--nce-k", "64", "--feat-dim", "16")
    return (*DATA, "--model-s", "resnet8", "--path-t", taught, *sizes, "--epochs", "2", *CASES[case][0])


def error(samples: int) -> float:
    """The standard error of a guesser's accuracy, in percent."""
    return 100 * math.sqrt((CLASSES - 1) / samples) / CLASSES


@pytest.mark.parametrize("case", CASES)
def test_it_learns(case: str, train: Train, taught: Path, here: Path) -> None:
    said = train("student", *words(case, taught), *LEARNING, *LIGHTER.get(case, ()), "--out", "run")
    assert said.code == 0, said
    last = rows(here / "run")[-1]
    chance = 100 / CLASSES
    seen, unseen = last["train_top1"] - chance, last["test_top1"] - chance
    # a student that is evaluated with a head of another's trains none of its own
    assert seen > 4 * error(PICTURES) or unseen > 4 * error(TESTED), last


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_after_an_epoch_in_bfloat16(
    case: str, train: Train, taught: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_epoch = Recorder.save_epoch

    def and_copy(self: Recorder, *given: Any, **named: Any) -> None:
        save_epoch(self, *given, **named)
        if not Path("half").exists():
            shutil.copytree("run", "half")  # what is left by a process that is killed here

    given = (*words(case, taught), *TINY, "--amp", "bf16", "--out", "run")
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "save_epoch", and_copy)
        said = train("student", *given)
    assert said.code == 0, said
    Path("run").rename("whole")
    Path("half").rename("run")
    assert [row["epoch"] for row in rows(here / "run")] == [1]
    said = train("student", *given, "--resume", "auto")
    assert said.code == 0, said
    assert "going on in epoch 2" in said.out
    same_run(here / "whole", here / "run")
    assert all(math.isfinite(value) for row in rows(here / "run") for value in row.values())


def column(name: str) -> dict[str, str]:
    """Of METHODS.md's table, by method."""
    lines = (ROOT / "METHODS.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.split(" | ")] for line in lines if line.startswith("| ")]
    at = table[0].index(name)
    return {re.sub(r".*\[(\w+)\].*", r"\1", cells[0]): cells[at] for cells in table[2:]}


KEPT = column("teacher cache")


@pytest.mark.parametrize("case", CASES)
def test_the_teacher_cache_is_what_methods_md_says(case: str, train: Train, taught: Path, here: Path) -> None:
    given = (*words(case, taught), *TINY, "--teacher-cache", "cache")
    kept = KEPT[CASES[case][1]]
    first = train("student", *given, "--out", "first")
    if kept.startswith("never"):
        one_line(first, "--teacher-cache cache: ", "use --teacher-cache off")
        return
    assert first.code == 0, first
    if kept.startswith("not asked"):
        assert "--teacher-cache cache has no effect: no teacher is asked" in first.out
        assert not Path("cache").exists()
        return
    assert kept.split(";")[0] in ("logits", "pooled", "maps")
    assert train("student", *given, "--out", "second").code == 0
    filled, read = (json.loads(Path(f"{run}/summary.json").read_text()) for run in ("first", "second"))
    assert filled["teacher_forwards"] > 0
    assert (read["teacher_forwards"], read["cache_misses"]) == (0, 0)
    equal(rows(here / "first"), rows(here / "second"))
    for part in ("model", "method", "optimizer"):
        equal(load(here / "first/last.pt")[part], load(here / "second/last.pt")[part], part)
    stored = {path.name for path in (here / "cache" / "train").iterdir()}
    assert (stored - {"logits", "pooled"} != set()) == kept.startswith("maps")


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("case", CASES)
def test_a_pair_of_nets_works_or_is_refused_with_a_reason(
    case: str, pair: tuple[str, str], train: Train, here: Path
) -> None:
    """One step on made-up pictures."""
    nets = ("--model-t", pair[0], "--model-s", pair[1])
    said = train("student", "--dataset", "shapes", *nets, "--threads", "1", *CASES[case][0], "--dry-run")
    reason = REFUSES.get(case, {}).get(pair)
    if reason:
        one_line(said, reason)
    else:
        assert (said.code, said.err) == (0, ""), said


def test_every_method_has_its_row() -> None:
    assert set(KEPT) == set(methods.names())
