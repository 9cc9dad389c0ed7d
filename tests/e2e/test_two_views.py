"""Whole small runs of methods that train on a weak and a strong view of every picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastkd.cli.main import main
from fastkd.engine import bench
from tests.e2e.runs import STUDENT, Train, end, equal, load, rows, same_run

MLKD = ("--distill", "mlkd", "--path-t", "teacher", "--threads", "1", "--epochs", "2")
LSKD = ("--distill", "lskd", "method.of=mlkd", "--path-t", "teacher", "--threads", "1", "--epochs", "1")
PICTURES, TESTED = 200, 110


def summary(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "summary.json").read_text())
    return found


@pytest.mark.parametrize("stopped_after", [3, 10, 14])
def test_it_trains_and_goes_on_as_if_never_stopped(
    train: Train, teacher: Path, here: Path, stop_after: Callable[..., None], stopped_after: int
) -> None:
    """10 is the last step of the first epoch, 14 is within the second."""
    assert train("student", *STUDENT, *MLKD, "--out", "whole").code == 0
    found = rows(here / "whole")
    assert len(found) == 2
    assert all(np.isfinite(value) for row in found for value in row.values())
    assert {"loss_task", "loss_kd", "loss_cc", "loss_bc"} <= found[0].keys()
    assert (
        summary("whole")["teacher_forwards"] == TESTED + 2 * 2 * PICTURES
    )  # two views of each picture, two epochs
    stop_after(stopped_after)
    said = train("student", *STUDENT, *MLKD, "--out", "run")
    assert "saved: go on with --resume auto" in said.out
    assert train("student", *STUDENT, *MLKD, "--out", "run", "--resume", "auto").code == 0
    same_run(here / "whole", here / "run")


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("method", [MLKD, LSKD], ids=["mlkd", "lskd over it"])
def test_either_loader_trains_the_same_net_bit_for_bit(
    train: Train, teacher: Path, here: Path, method: tuple[str, ...]
) -> None:
    words = (*STUDENT, *method, "--amp", "off")
    assert train("student", *words, "--out", "device").code == 0
    assert train("student", *words, "--loader", "torch", "--num-workers", "1", "--out", "torch").code == 0
    assert summary("torch")["loader"] == "TorchLoader"
    equal(load(here / "device" / "last.pt")["model"], load(here / "torch" / "last.pt")["model"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_folder_of_pictures_has_strong_views_too(train: Train, here: Path) -> None:
    draw = np.random.default_rng(0)
    for part, kind in ((part, kind) for part in ("train", "val") for kind in ("circle", "square")):
        (here / "pictures" / part / kind).mkdir(parents=True)
        for number in range(5):
            pixels = draw.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "pictures" / part / kind / f"{number}.png")
    data = ("--dataset", "imagefolder", "--data", "pictures", "--batch-size", "4", "--epochs", "1",
            "--num-workers", "0", "data.image_size=32")  # fmt: skip
    assert train("teacher", *data, "--model", "resnet8", "--out", "teacher").code == 0
    words = (*data, "--model-s", "resnet8", "--distill", "mlkd", "--path-t", "teacher")
    assert train("student", *words, "--out", "run").code == 0
    assert summary("run")["teacher_forwards"] == 10 + 2 * 8
    assert train("student", *words, "--cache-views", "3", "--out", "recorded").code == 0


def test_a_cache_is_refused(refused: Train, train: Train, teacher: Path) -> None:
    says = (
        "--teacher-cache auto: ",
        "shows the teacher a strong view of each picture",
        "use --teacher-cache off",
    )
    for words in (("mlkd",), ("mlkd", "--dry-run"), ("lskd", "method.of=mlkd")):
        refused(
            "student",
            *STUDENT,
            "--path-t",
            "teacher",
            "--teacher-cache",
            "auto",
            "--distill",
            *words,
            says=says,
        )
    said = train(
        "student",
        *STUDENT,
        "--path-t",
        "teacher",
        "--distill",
        "lskd",
        "--teacher-cache",
        "auto",
        "--dry-run",
    )
    assert said.code == 0, said


def test_a_dry_run_takes_its_step(train: Train, teacher: Path, here: Path) -> None:
    said = train("student", *STUDENT, *MLKD, "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert "name: mlkd" in said.out


def test_bench_counts_samples(
    teacher: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.05)
    assert main(["bench", *STUDENT, *MLKD, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loader_images_per_second"] > found["training_images_per_second"] > 0


@pytest.mark.dist
def test_two_ranks_share_both_views(train: Train, teacher: Path, here: Path) -> None:
    from tests.e2e.test_distributed import SCRIPT, begin

    words = (*STUDENT, *MLKD, "--epochs", "1", "--test-batch-size", "50", "--amp", "off")
    running = begin(SCRIPT, *words, "--out", "two", cwd=here)
    assert train("student", *words, "--out", "alone").code == 0
    assert [(each.code, each.err) for each in map(end, running)] == [(0, ""), (0, "")]
    (two,), (alone,) = rows(here / "two"), rows(here / "alone")
    # medians and batch norms are of half the pictures, so the numbers are near, not equal
    assert two["loss_task"] == pytest.approx(alone["loss_task"], rel=0.1)
    assert summary("two")["teacher_forwards"] == summary("alone")["teacher_forwards"] == TESTED + 2 * PICTURES
    assert all(torch.isfinite(value).all() for value in load(here / "two" / "last.pt")["model"].values())
