"""The console command's lists, doctor, eval, report and bench, on a run of a few seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastkd import methods, models
from fastkd.cli import main as console
from fastkd.cli import train

TINY = [
    "--dataset",
    "shapes",
    "--epochs",
    "1",
    "--batch-size",
    "20",
    "--options",
    "data.train_size=100",
    "data.test_size=60",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    assert train.main("teacher", "train", [*TINY, "--model", "resnet8", "--out", str(out)]) == 0
    return out


def test_methods_as_json_names_every_distill_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == methods.names()
    assert {"name", "aliases", "summary", "numbers"} == set(rows[0])


def test_lists_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("methods", "models"):
        assert console.main([name]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in [*methods.names(), *models.names()])


def test_doctor_says_what_works_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "devices", "loaders", "extras"}
    assert found["loaders"]["device"].startswith("works")
    assert all(text for rows in found.values() for text in rows.values())
    assert console.main(["doctor"]) == 0


def test_eval_scores_a_run_and_a_file_as_training_did(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert console.main(["eval", str(run), "--json"]) == 0
    last, best = json.loads(capsys.readouterr().out)
    assert last["top1"] == pytest.approx(summary["last_top1"])
    assert best["top1"] == pytest.approx(summary["best_top1"])
    assert (last["samples"], last["epoch"], last["model"]) == (60, 1, "resnet8")
    # a file away from its run says which net and data set it is for; the sizes of made-up data it cannot say
    (run.parent / "alone.pt").write_bytes((run / "last.pt").read_bytes())
    assert (
        console.main(
            ["eval", "-c", str(run.parent / "alone.pt"), "-bs", "7", "--options", "data.test_size=60"]
        )
        == 0
    )
    assert f"{summary['last_top1']:6.2f}" in capsys.readouterr().out


def test_eval_refuses_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [],
        [str(tmp_path)],
        [str(run), "-m", "vgg8"],
        [str(run), "-d", "cifar100", "--data", str(tmp_path)],
    ):
        assert console.main(["eval", *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("fastkd eval: error: ")
        assert err.count("\n") == 1


def test_report_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert console.main(["report", str(run), "--out", str(page)]) == 0
    assert "resnet8" in capsys.readouterr().out
    assert "<svg" in page.read_text()
    assert console.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bench_says_what_bounds_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastkd.engine import bench

    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.05)
    words = ["bench", *TINY, "--distill", "vanilla", "--model-s", "resnet8"]
    assert console.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loader_images_per_second"] > found["training_images_per_second"] > 0
    assert console.main(words) == 0
    assert "bound by computing" in capsys.readouterr().out


def test_unknown_command_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["evall"]) == 2
    assert "did you mean 'eval'" in capsys.readouterr().err
    assert console.main([]) == 0
    assert console.main(["--version"]) == 0
