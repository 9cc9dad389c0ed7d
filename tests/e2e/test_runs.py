"""Whole small runs, through the script's own entry, that must come out equal or simply work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastkd.cli import train

SHAPES = [
    "--dataset",
    "shapes",
    "--batch-size",
    "20",
    "--epochs",
    "2",
    "--options",
    "data.train_size=100",
    "data.test_size=60",
]


def run(out: Path, *flags: str, script: str = "teacher", model: str = "resnet8") -> dict[str, torch.Tensor]:
    named = ["--model" if script == "teacher" else "--model-s", model]
    assert train.main(script, "train", [*named, "--out", str(out), *flags]) == 0
    weights: dict[str, torch.Tensor] = torch.load(out / "last.pt", weights_only=True)["model"]
    return weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_either_loader_trains_the_same_net_bit_for_bit(tmp_path: Path) -> None:
    device = run(tmp_path / "device", *SHAPES, "--loader", "device")
    workers = run(tmp_path / "torch", *SHAPES, "--loader", "torch", "--num-workers", "1")
    assert same(device, workers)
    assert json.loads((tmp_path / "torch" / "summary.json").read_text())["loader"] == "TorchLoader"


def test_seed_and_trial_make_the_run(tmp_path: Path) -> None:
    first = run(tmp_path / "a", *SHAPES, "--seed", "3")
    assert same(first, run(tmp_path / "b", *SHAPES, "--seed", "1", "--trial", "2"))
    assert not same(first, run(tmp_path / "c", *SHAPES, "--seed", "4"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--amp", "fp16"],
        ["--amp", "off", "--channels-last", "off"],
        ["--deterministic"],
        ["--optimizer", "adamw", "--lr", "0.001", "--warmup-epochs", "0.5"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("method", ["kd", "rrd"])
def test_every_precision_and_optimizer_trains(method: str, flags: list[str], tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    run(teacher, *SHAPES)
    was = torch.are_deterministic_algorithms_enabled()
    try:
        run(
            tmp_path / "student",
            *SHAPES,
            "--distill",
            method,
            "--path-t",
            str(teacher),
            *flags,
            script="student",
        )
    finally:
        torch.use_deterministic_algorithms(was)
    rows = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["train_loss"] > 0


def test_the_student_alone_asks_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "alone", *SHAPES, "--distill", "vanilla", script="student")
    assert json.loads((tmp_path / "alone" / "summary.json").read_text())["teacher_forwards"] == 0


def test_the_one_finished_teacher_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main("teacher", "train", [*SHAPES, "--model", "resnet8"]) == 0
    assert train.main("student", "train", [*SHAPES, "--model-s", "resnet8", "--distill", "kd"]) == 0
    made = {path.parent.name for path in Path("save").glob("*/*/summary.json")}
    assert made == {
        "resnet8_shapes_seed_0_trial_0",
        "S_resnet8_T_resnet8_shapes_kd_c_0.1_d_0.9_b_0_seed_0_trial_0",
    }


def test_a_released_checkpoint_is_known_by_its_keys(tmp_path: Path) -> None:
    weights = run(tmp_path / "teacher", *SHAPES, model="wrn_16_1")
    released = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": weights, "accuracy": 0.5}, released)
    run(tmp_path / "student", *SHAPES, "--path_t", str(released), "--distill", "kd", script="student")
    assert "model: wrn_16_1" in (tmp_path / "student" / "config.yaml").read_text()


def test_a_folder_of_pictures_trains(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for kind in ("circle", "square"):
            folder = tmp_path / "pictures" / part / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    run(tmp_path / "out", "--dataset", "imagefolder", "--data", str(tmp_path / "pictures"), "--batch-size", "4",
        "--epochs", "1", "--num-workers", "1", "--options", "data.image_size=32")  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["steps"], summary["loader"]) == (3, "TorchLoader")
