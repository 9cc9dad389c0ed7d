"""The teacher computed once: the same runs, fewer forwards, and nothing wrong ever read."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fastkd import files
from fastkd.cli.main import main
from fastkd.engine import machine
from fastkd.teacher import manifest, segments
from loaders.contract import Plan
from loaders.deal import dealt
from loaders.views import ShiftFlip
from tests.e2e.runs import (
    ROOT,
    STUDENT,
    TEACHER,
    Said,
    Train,
    end,
    equal,
    load,
    one_line,
    rows,
    start,
    wait_for,
)

PICTURES, TESTED, VIEWS = 200, 110, 162
EXACT = (*STUDENT, "--path-t", "teacher", "--cache-dtype", "fp32", "--amp", "off", "--threads", "1")
METHODS: dict[str, tuple[str, ...]] = {
    "kd": ("--distill", "kd"),
    "rrd": ("--distill", "rrd", "--nce-k", "64"),
    "rrd-bank": ("--distill", "rrd", "--nce-k", "64", "--memory-type", "momentum"),
}


def summary(run: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "summary.json").read_text())
    return found


def forwards(run: str | Path) -> int:
    return int(summary(run)["teacher_forwards"])


def same_training(one: str | Path, two: str | Path) -> None:
    """Losses, accuracies and all that was trained, bit for bit."""
    equal(rows(Path(one)), rows(Path(two)), "metrics.jsonl")
    first, second = (load(Path(run) / "last.pt") for run in (one, two))
    for part in ("model", "method", "optimizer", "rng"):
        equal(first[part], second[part], part)


def fastkd(capfd: pytest.CaptureFixture[str], *words: object) -> Said:
    capfd.readouterr()
    code = main([str(word) for word in words])
    return Said(code, *capfd.readouterr())


def segment_files(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).rglob("*.seg"))


@pytest.mark.parametrize("method", METHODS)
def test_cached_is_live_bit_for_bit(train: Train, teacher: Path, method: str) -> None:
    """In the first epoch every batch is new, so the teacher is asked about the very batches of a live run."""
    words = (*EXACT, *METHODS[method])
    assert train("student", *words, "--out", "live").code == 0
    for run in ("filling", "reading"):
        said = train("student", *words, "--out", run, "--teacher-cache", "c")
        assert said.code == 0, said
        same_training("live", run)
    assert (forwards("live"), forwards("filling"), forwards("reading")) == (310, 310, 0)
    found = summary("reading")
    assert (found["cache_hits"], found["cache_misses"]) == (310, 0)
    assert found["teacher_top1"] == summary("live")["teacher_top1"]


def test_over_epochs_it_stays_within_the_order_of_sums(train: Train, teacher: Path) -> None:
    """From the second epoch on only what is missing of a batch is asked, so a sum may run in another order."""
    words = (*EXACT, *METHODS["rrd"], "--epochs", "4")
    assert train("student", *words, "--out", "live").code == 0
    for run in ("filling", "reading"):
        assert train("student", *words, "--out", run, "--teacher-cache", "c").code == 0
    same_training("filling", "reading")
    for ours, theirs in zip(rows(Path("filling")), rows(Path("live")), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
    assert forwards("filling") < forwards("live") == TESTED + 4 * PICTURES


def test_a_run_that_fills_is_the_run_that_reads(train: Train, teacher: Path) -> None:
    """In half precision too: what is returned is what was stored, not what was computed."""
    words = (*EXACT, *METHODS["kd"], "--cache-dtype", "fp16", "--epochs", "2", "--teacher-cache", "c")
    for run in ("filling", "reading"):
        assert train("student", *words, "--out", run).code == 0
    same_training("filling", "reading")
    assert (forwards("filling"), forwards("reading")) == (TESTED + len(visited(0, 2)), 0)


def visited(seed: int, epochs: int) -> set[int]:
    """The rows a run asks for."""
    cpu = torch.device("cpu")
    plan = Plan(batch_size=20, seed=seed, train=True, device=cpu, dtype=torch.float32, channels_last=True)
    parts = [dealt(ShiftFlip(32), PICTURES, plan, epoch, plan.device) for epoch in range(1, epochs + 1)]
    return {int(row) for indices, views in parts for row in indices * VIEWS + views}


def test_only_views_that_nobody_has_seen_are_computed(train: Train, teacher: Path) -> None:
    words = (*STUDENT, "--path-t", "teacher", "--teacher-cache", "auto", "--epochs", "4")
    seen = visited(0, 4)
    assert train("student", *words, *METHODS["kd"], "--out", "first").code == 0
    assert forwards("first") == len(seen) + TESTED
    for number, method in enumerate(METHODS.values()):
        assert train("student", *words, *method, "--out", f"other{number}").code == 0
        assert forwards(f"other{number}") == 0
    assert (
        train(
            "student", *words, *METHODS["rrd"], "--loader", "torch", "--num-workers", "0", "--out", "torch"
        ).code
        == 0
    )
    assert forwards("torch") == 0
    assert train("student", *words, *METHODS["kd"], "--seed", "1", "--out", "seed").code == 0
    assert forwards("seed") == len(visited(1, 4) - seen)
    assert summary("seed")["cache_hits"] == 4 * PICTURES + TESTED - forwards("seed")
    assert len(list(Path("save/caches").iterdir())) == 1


@pytest.mark.dist
def test_two_ranks_fill_and_read_one_cache(train: Train, teacher: Path, here: Path) -> None:
    from tests.e2e.test_distributed import SCRIPT, TWO, begin

    words = (*TWO, "--epochs", "3", "--teacher-cache", "c")
    for run, method in (("first", "kd"), ("second", "rrd"), ("third", "kd")):
        processes = begin(SCRIPT, *words, *METHODS[method], "--out", run, cwd=here)
        assert [end(process).code for process in processes] == [0, 0]
    plan = [(forwards(run), summary(run)["cache_hits"]) for run in ("first", "second", "third")]
    asked = 105 + 3 * PICTURES
    assert plan == [(105 + len(visited(0, 3)), asked - plan[0][0]), (0, asked), (0, asked)]
    equal(rows(here / "first"), rows(here / "third"))


@pytest.mark.parametrize("seed", range(3))
def test_killed_while_filling(train: Train, teacher: Path, here: Path, seed: int) -> None:
    killed_while_filling(train, here, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 23))
def test_killed_while_filling_often(train: Train, teacher: Path, here: Path, seed: int) -> None:
    killed_while_filling(train, here, random.Random(seed))


def killed_while_filling(train: Train, here: Path, draw: random.Random) -> None:
    """What was sealed is sound, and the run that goes on is the run that was never killed."""
    words = (*EXACT, *METHODS["rrd"], "--epochs", "6")
    process = start("student", *words, "--teacher-cache", "c", "--out", "run", cwd=here)
    wait_for(lambda: bool(segment_files(here / "c" / "train")), process)
    time.sleep(draw.random())
    process.kill()
    end(process)
    assert main(["cache", "verify", "c", "--path-t", "teacher"]) == 0
    assert train("student", *words, "--teacher-cache", "c", "--out", "run", "--resume").code == 0
    assert train("student", *words, "--teacher-cache", "whole", "--out", "straight").code == 0
    same_training("run", "straight")


def test_runs_beside_each_other_share_a_cache(train: Train, teacher: Path, here: Path) -> None:
    words = (*STUDENT, *METHODS["kd"], "--path-t", "teacher", "--teacher-cache", "c", "--epochs", "3")
    running = [start("student", *words, "--seed", seed, "--out", f"run{seed}", cwd=here) for seed in range(3)]
    assert [end(process).code for process in running] == [0, 0, 0]
    assert main(["cache", "verify", "c", "--path-t", "teacher"]) == 0
    for seed in range(3):
        assert train("student", *words, "--seed", seed, "--out", f"again{seed}").code == 0
        assert forwards(f"again{seed}") == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", ["flip", "truncate"])
def test_damage_is_named_and_mended(
    train: Train, teacher: Path, capfd: pytest.CaptureFixture[str], harm: str
) -> None:
    words = (*EXACT, *METHODS["kd"], "--teacher-cache", "c", "--epochs", "2")
    assert train("student", *words, "--out", "first").code == 0
    path = segment_files("c/train/logits")[0]
    lost = segments.rows_of(path)
    assert lost is not None
    if harm == "flip":
        flip(path)
    else:
        path.write_bytes(path.read_bytes()[:-7])
    said = fastkd(capfd, "cache", "verify", "c")
    assert said.code == 1
    assert f"{path}: damaged: its checksum does not match" in said.out
    again = train("student", *words, "--out", "second")
    assert again.code == 0
    assert f"{path} is damaged" in again.out
    assert any(str(path) in line for line in summary("second")["warnings"])
    assert forwards("second") == len(lost)
    same_training("first", "second")
    assert fastkd(capfd, "cache", "verify", "c", "--path-t", "teacher").code == 0
    gc.collect()  # the runs of this process let go of the folder
    assert "1 leftovers removed" in fastkd(capfd, "cache", "gc", "c").out
    third = train("student", *words, "--out", "third")
    assert "damaged" not in third.out
    assert forwards("third") == 0


def test_a_wrong_answer_under_a_right_checksum_is_found(
    train: Train, teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (*STUDENT, *METHODS["kd"], "--path-t", "teacher", "--teacher-cache", "c")
    assert train("student", *words, "--out", "run").code == 0
    path = segment_files("c/train/pooled")[0]
    identity = manifest.identity(manifest.read(Path("c")))
    was = segments.read(path, identity)
    path.unlink()
    wrong = segments.write(path.parent, identity, "pooled", was.rows, np.roll(was.values, 1, axis=0))
    assert fastkd(capfd, "cache", "verify", "c").code == 0
    said = fastkd(capfd, "cache", "verify", "c", "--path-t", "teacher", "--samples", "20")
    assert said.code == 1
    assert f"{wrong}: wrong" in said.out
    assert said.out.count(": wrong") == 1


def test_a_full_disk_costs_no_run(train: Train, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*EXACT, *METHODS["kd"], "--epochs", "3")
    assert train("student", *words, "--teacher-cache", "c", "--out", "first").code == 0
    before = {path: path.read_bytes() for path in segment_files("c")}
    write = files.write

    def full(path: Path, fill: Callable[..., object]) -> None:
        if path.suffix == segments.SUFFIX:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, fill)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", full)
        said = train("student", *words, "--seed", "1", "--teacher-cache", "c", "--out", "second")
    assert said.code == 0
    assert said.out.count("No space left on device") == 1
    assert any("No space left on device" in line for line in summary("second")["warnings"])
    assert {path: path.read_bytes() for path in segment_files("c")} == before
    assert train("student", *words, "--seed", "1", "--teacher-cache", "c", "--out", "third").code == 0
    same_training("second", "third")


def test_built_whole_it_answers_everything(
    train: Train, teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ("--dataset", "shapes", "data.train_size=30", "data.test_size=20", "data.num_classes=10")
    build = ("cache", "build", *data, "--path-t", "teacher", "--teacher-cache", "c")
    assert fastkd(capfd, *build).code == 0
    for field in ("logits", "pooled"):
        path = segment_files(f"c/train/{field}")[0]
        flip(path)
    said = fastkd(capfd, *build)  # goes on
    assert said.code == 0
    assert f"0 of {30 * VIEWS:,} views there" in said.out
    assert said.out.count("views computed") == 1  # of the test pictures nothing was damaged
    assert fastkd(capfd, *build).out.count("views computed") == 0
    assert fastkd(capfd, "cache", "verify", "c", "--path-t", "teacher").code == 0
    shown = fastkd(capfd, "cache", "info", "c").out
    assert f"train/logits   {30 * VIEWS:>12,} views in 1 segments" in shown
    words = (*STUDENT, *data, "--path-t", "teacher", "--batch-size", "10", "--epochs", "3")
    for method, given in METHODS.items():
        assert train("student", *words, *given, "--teacher-cache", "c", "--out", method).code == 0
        assert forwards(method) == 0


@pytest.fixture
def folders(here: Path) -> Path:
    draws = np.random.default_rng(1)
    for part, count in (("train", 12), ("val", 4)):
        for n in range(count):
            path = here / "pictures" / part / "ab"[n % 2] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return here / "pictures"


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_endless_crops_are_recorded(train: Train, folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = (
        "--dataset",
        "imagefolder",
        "--data",
        folders,
        "data.image_size=32",
        "--batch-size",
        "4",
        "--num-workers",
        "0",
    )
    assert train("teacher", *data, "--model", "resnet8", "--epochs", "1", "--out", "t").code == 0
    words = (
        *data,
        "--model-s",
        "resnet8",
        "--path-t",
        "t",
        *METHODS["kd"],
        "--epochs",
        "5",
        "--teacher-cache",
        "c",
    )
    one_line(train("student", *words, "--out", "no"), "cropped in endless ways", "--cache-views 16")
    for run in ("first", "second"):
        said = train("student", *words, "--cache-views", "2", "--out", run)
        assert said.code == 0, said
        assert "an approximation: 2 recorded views of each picture" in said.out
        assert any("approximation: 2 recorded" in line for line in summary(run)["warnings"])
    assert forwards("first") <= 12 * 2 + 4
    assert forwards("second") == 0
    one_line(
        train("student", *words, "--cache-views", "3", "--out", "no"),
        "the set of views is another one: views.train.count is 2 there, 3 in this run",
    )
    assert fastkd(capfd, "cache", "verify", "c", "--path-t", "t", "--data", folders).code == 0
    page = fastkd(capfd, "report", "first", "--out", "page.html")
    assert page.code == 0
    assert "2 recorded views" in Path("page.html").read_text()


def test_what_no_cache_can_do_is_refused(
    refused: Train, train: Train, teacher: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*STUDENT, "--path-t", teacher, "--teacher-cache", "c", "--out", "run")
    (here / "asks.py").write_text(
        "from fastkd.method import LOGITS, Method, Needs\n"
        "class Asks(Method):\n"
        "    needs = Needs(teacher=(LOGITS,), live_teacher=True)\n"
        "    def terms(self, student, teacher, batch, clock):\n"
        "        return {'x': student.logits.mean()}\n"
    )
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    says = ("shows the teacher other tensors than the pictures", "use --teacher-cache off")
    refused("student", *words, "--distill", "asks:Asks", says=says)
    refused("student", *words, "--distill", "asks:Asks", "--dry-run", says=says)
    refused("student", *words, "--cache-views", "4", says=("has 162 views in all", "leave the flag out"))
    refused("student", *words, "--cache-dtype", "fp8", says=("run.cache_dtype is 'fp8'; known: fp16, fp32",))
    with monkeypatch.context() as patched:
        patched.setattr(machine, "free_memory", lambda: 100_000)
        says = (
            "logits of 200 pictures in 162 views take 0.65 MB in fp16, and 0.07 MB of memory",
            "--teacher-cache off",
        )
        refused("student", *words, says=says)
    (here / "thesis").mkdir()
    (here / "thesis" / "a.tex").touch()
    refused("student", *words[:-4], "--teacher-cache", "thesis", says=("holds a.tex and no cache of ours",))


def test_another_teacher_is_refused_by_name(train: Train, teacher: Path, here: Path) -> None:
    assert train("teacher", *TEACHER, "--seed", "5", "--out", "second").code == 0
    words = (*STUDENT, "--teacher-cache", "c")
    assert train("student", *words, "--path-t", "teacher", "--out", "run").code == 0
    before = {path: path.read_bytes() for path in Path("c").rglob("*") if path.is_file()}
    one_line(train("student", *words, "--path-t", "second", "--out", "run2"),
             "cache c: the teacher's weights is another one", "pass the --path-t it was made from")  # fmt: skip
    one_line(
        train("student", *words, "--path-t", "teacher", "--out", "run2", "data.train_size=220"),
        "the data set",
    )
    one_line(
        train("student", *words, "--path-t", "teacher", "--out", "run2", "--cache-dtype", "fp32"),
        "--cache-dtype",
    )
    one_line(
        train("student", *words, "--path-t", "teacher", "--out", "run2", "--amp", "fp16"), "pass its --amp"
    )
    assert {path: path.read_bytes() for path in Path("c").rglob("*") if path.is_file()} == before
    # under auto every teacher has a folder of its own
    for path in ("teacher", "second"):
        assert (
            train(
                "student", *STUDENT, "--path-t", path, "--teacher-cache", "auto", "--out", f"auto_{path}"
            ).code
            == 0
        )
    assert len(list(Path("save/caches").iterdir())) == 2


def test_without_a_teacher_it_says_so(train: Train, here: Path) -> None:
    said = train("student", *STUDENT, "--distill", "vanilla", "--teacher-cache", "auto", "--out", "run")
    assert said.code == 0
    assert "--teacher-cache auto has no effect: no teacher is asked" in said.out
    assert not Path("save").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cache", "biuld"], "unknown command 'cache biuld'; did you mean 'build'?"),
        (["cache", "verify", "nowhere"], "nowhere is no teacher cache: it holds no manifest.json"),
        (["cache", "gc"], "there is no cache under save/caches; name its folder"),
        (["cache", "info", "nowhere"], "nowhere is no teacher cache"),
        (["cache", "verify", "nowhere", "--samples", "0"], "--samples 0: it must be at least 1"),
        (["cache", "build", "--dataset", "shapes"], "there is no teacher of shapes"),
        (["cache", "build", "--dataset", "shapes", "--path-t", "nowhere"], "nowhere"),
    ],
)
def test_bad_commands_are_one_line(
    here: Path, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    one_line(fastkd(capfd, *words), says)
    assert not list(here.iterdir())


def test_a_run_s_own_record_names_its_cache(train: Train, teacher: Path) -> None:
    assert train("student", *EXACT, "--teacher-cache", "c", "--out", "run").code == 0
    record = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (record["run"]["teacher_cache"], record["run"]["cache_dtype"]) == ("c", "fp32")
    assert train("student", "--cfg", "run/config.yaml", "--out", "again").code == 0
    same_training("run", "again")
    assert (ROOT / "fastkd" / "teacher").is_dir()
