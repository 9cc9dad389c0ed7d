"""Several ranks: one run, the numbers of one rank. gloo on the CPU."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.runs import (
    ROOT,
    STUDENT,
    Train,
    contents,
    end,
    environment,
    load,
    one_line,
    rows,
    run_python,
    wait_for,
)
from tests.e2e.two_ranks import CASES, run

pytestmark = pytest.mark.dist

# 105 test pictures in batches of 50 over two ranks: the last step has 5 for the first rank and none for the other
TWO = (*STUDENT, "data.test_size=105", "--test-batch-size", "50", "--path-t", "teacher", "--print-freq", "2")
SCRIPT = ROOT / "train_student.py"
RRD = ("--distill", "rrd", "--nce-k", "64")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """train_student.py on two ranks."""
    given = [f"--master-port={free_port()}", "--nproc-per-node", "2", ROOT / "train_student.py", *words]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, given)],
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def begin(program: Path, *words: object, cwd: Path) -> list[subprocess.Popen[str]]:
    """A program on two ranks, without torchrun's seconds of starting up."""
    port = str(free_port())
    running = []
    for rank in ("0", "1"):
        named = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        running.append(run_python(program, *words, cwd=cwd, **named))
    return running


def score(run: Path, train: Train, capfd: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What one rank says of the run's files."""
    from fastkd.cli.main import main

    capfd.readouterr()
    assert main(["eval", str(run), "--json", "--batch-size", "7"]) == 0
    return {Path(row["path"]).name: row for row in json.loads(capfd.readouterr().out)}


def test_two_ranks_make_one_run(train: Train, teacher: Path, here: Path, capfd: pytest.CaptureFixture[str]):
    process = torchrun(*TWO, *RRD, "--epochs", "2", "--out", "run", cwd=here)
    alone = train("student", *TWO, *RRD, "--epochs", "2", "--out", "alone")
    said = end(process)
    assert (said.code, said.err) == (0, ""), said
    assert said.out.count("on the test set") == alone.out.count("on the test set")
    assert len(said.out.splitlines()) == len(alone.out.splitlines())
    assert {p.name for p in (here / "run").iterdir()} == {p.name for p in (here / "alone").iterdir()}
    assert len(list((here / "run" / "events").iterdir())) == 1
    for mine, others in zip(rows(here / "run"), rows(here / "alone"), strict=True):
        assert mine.keys() == others.keys()
        # batch norm sees half the pictures, so the numbers are near, not equal
        assert mine["train_loss"] == pytest.approx(others["train_loss"], rel=0.1)
        assert mine["lr"] == others["lr"]
    summaries = [json.loads((here / name / "summary.json").read_text()) for name in ("run", "alone")]
    for key in ("steps", "epochs", "teacher_top1", "loader"):
        assert summaries[0][key] == summaries[1][key]
    # what was evaluated on two ranks is what was saved, and every picture counted once
    scores = score(here / "run", train, capfd)
    last = rows(here / "run")[-1]
    assert scores["last.pt"]["samples"] == 105
    for key in ("top1", "top5", "loss"):
        assert scores["last.pt"][key] == pytest.approx(last[f"test_{key}"], abs=1e-3)


def test_two_ranks_are_stopped_and_go_on(train: Train, teacher: Path, here: Path):
    """As if nothing had happened: parameters, optimizer and bank bit for bit. The bank's negatives are each rank's own
    draws. Only batch norm's running statistics, which are averaged once more, may differ in the last digit."""
    given = (*TWO, *RRD, "--memory-type", "momentum", "data.train_size=600", "--epochs", "2")
    stopped = torchrun(*given, "--out", "run", cwd=here)
    whole = begin(SCRIPT, *given, "--out", "whole", cwd=here)
    wait_for((here / "run" / "last.pt").exists, stopped)
    stopped.terminate()  # as a batch system does: torchrun hands it on to the ranks
    said = end(stopped)
    assert "saved: go on with --resume auto" in said.out, said
    at = load(here / "run" / "last.pt")["position"]
    said, silent = (end(process) for process in begin(SCRIPT, "--resume", "run", cwd=here))
    assert (said.code, said.err, silent) == (0, "", (0, "", "")), said
    assert f"going on in epoch {at['epoch']} after {at['batch']} steps" in said.out
    assert [end(process).code for process in whole] == [0, 0]
    one, two = (load(here / name / "last.pt") for name in ("run", "whole"))
    assert one["clock"]["step"] == two["clock"]["step"] == 60
    for key in one["model"]:
        if "running" in key:
            torch.testing.assert_close(one["model"][key], two["model"][key])
        else:
            assert torch.equal(one["model"][key], two["model"][key]), key
    assert all(torch.equal(one["method"][key], two["method"][key]) for key in one["method"])
    assert torch.equal(one["rng"]["cpu"], two["rng"]["cpu"])
    assert not torch.equal(one["rng"]["cpu"][0], one["rng"]["cpu"][1])
    asked = [
        json.loads((here / run / "summary.json").read_text())["teacher_forwards"] for run in ("run", "whole")
    ]
    assert asked == [105 + 2 * 600] * 2
    for mine, others in zip(rows(here / "run"), rows(here / "whole"), strict=True):
        for key in ("train_loss", "loss_rrd", "train_top1"):
            assert mine[key] == pytest.approx(others[key], rel=1e-12)


def test_a_refusal_is_said_once_and_ends_all_ranks(teacher: Path, here: Path):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("years of work")
    before = contents(here)
    running = begin(SCRIPT, *TWO, "--out", "mine", cwd=here)  # what only the first rank looks at
    said = [end(process) for process in running]
    assert [each.code for each in said] == [2, 2]
    one_line(said[0], "--out mine: holds thesis.tex")
    assert said[1].err == ""
    assert contents(here) == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_ranks(teacher: Path, here: Path):
    running = begin(SCRIPT, *TWO, "--out", "run", "--learning-rate", "1e30", cwd=here)
    said = [end(process) for process in running]
    assert [each.code for each in said] == [2, 2]
    one_line(said[0], "the loss is not finite since epoch 1, step ", "run/nan.pt")
    assert said[1].err == ""
    assert load(here / "run" / "nan.pt")["epoch"] == 1


@pytest.mark.slow
def test_a_batch_that_does_not_divide(teacher: Path, here: Path):
    before = contents(here)
    said = end(torchrun(*TWO, "--batch-size", "21", cwd=here))
    assert said.code != 0
    line = (
        "train_student.py: error: data.batch_size 21 and test_batch_size 50 must each divide by the 2 ranks\n"
    )
    assert said.err.count(line) == 1
    assert contents(here) == before


# ---- the same steps on one rank and on two


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("on two")
    for process in begin(Path(__file__).with_name("two_ranks.py"), folder, cwd=folder):
        said = end(process)
        assert (said.code, said.err) == (0, ""), said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(on_two: list[dict[str, dict[str, torch.Tensor]]], case: str):
    """Gradients, parameters after the steps, and the queue of keys, which both ranks hold whole."""
    one, (first, second) = run(case, 0, 1), (rank[case] for rank in on_two)
    assert one.keys() == first.keys() == second.keys()
    assert any(name.startswith("gradient student.first") for name in one)
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_ranks_agree(on_two: list[dict[str, dict[str, torch.Tensor]]]):
    """On a refusal, and on the first step whose loss was not finite: of the second rank only, told by the first."""
    for rank in on_two:
        assert rank["agreed"]["first bad step"] == 4
        assert rank["agreed"]["mean of the loss"] == 2
        assert rank["agreed"]["sums of a saved state"].tolist() == [8, 0]
    assert [int(rank["agreed"]["told"]) for rank in on_two] == [1, 0]


def test_the_twins_can_differ(on_two: list[dict[str, dict[str, torch.Tensor]]]):
    """Half the pictures give other gradients: the test above does not hold for lack of a difference."""
    half, whole = run("rrd", 0, 2), on_two[0]["rrd"]
    for name in (
        "gradient student.first.weight",
        "gradient method.embed_student.weight",
        "buffer method.queue.rows",
    ):
        assert not torch.allclose(half[name], whole[name], rtol=1e-3)
