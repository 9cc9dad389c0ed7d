"""A run that was stopped, killed or starved of disk goes on as if nothing had happened; and what a run leaves."""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
import torch
import yaml

from fastkd import files
from fastkd.engine.events import Events
from fastkd.engine.step import Step
from tests.e2e.runs import (
    STUDENT,
    TEACHER,
    Said,
    Train,
    contents,
    end,
    equal,
    load,
    one_line,
    rows,
    run_python,
    same_run,
    start,
    wait_for,
)  # fmt: skip

FILES = {".lock", "config.yaml", "env.json", "metrics.jsonl", "summary.json", "last.pt", "best.pt", "events"}
METHODS: Mapping[str, tuple[str, ...]] = {
    "kd": ("--distill", "kd"),
    "rrd": ("--distill", "rrd", "--nce-k", "64"),
    "rrd-bank": ("--distill", "rrd", "--nce-k", "64", "--memory-type", "momentum"),
    "ft": ("--distill", "ft", "--init-epochs", "2"),  # a phase of 20 steps comes first
    "dot": ("--distill", "kd", "--optimizer", "dot"),
}


def words(method: str, folder: Path, epochs: int = 3) -> tuple[object, ...]:
    return (*STUDENT, *METHODS[method], "--path-t", folder / "teacher", "--epochs", epochs, "--threads", 1)


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of a method, for all tests to compare with."""
    from fastkd.cli.train import main

    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(trained, folder / "teacher")

    def made(method: str) -> Path:
        out = folder / method
        if not out.exists():
            given = [str(word) for word in (*words(method, folder), "--out", out)]
            assert main("student", "train_student.py", given) == 0
        return out

    return made


# ---- killed


def sittings(run: Path) -> int:
    return len(list((run / "events").glob("*")))


def kill_and_resume(method: str, folder: Path, whole: Path, kills: int, seed: int) -> None:
    """SIGKILL at random moments, each time followed by --resume auto, then to the end."""
    draw, out, killed = random.Random(seed), folder / method, 0
    given = (*words(method, folder), "--out", out, "--resume", "auto")
    while killed < kills:
        before = sittings(out)
        process = start("student", *given, cwd=folder)
        # the first is killed while it sets up its folder, the others while they train
        wait_for(out.exists if killed == 0 else functools.partial(more_than, before, out), process)
        time.sleep(draw.uniform(0, 0.05 if killed == 0 else 0.8))
        process.kill()
        said = end(process)
        if said.code == 0:  # it was faster, so there is another to kill
            same_run(whole, out)
            shutil.rmtree(out)
        else:
            assert said.code == -signal.SIGKILL, said
            killed += 1
    said = end(start("student", *given, cwd=folder))
    assert (said.code, said.err) == (0, ""), said
    same_run(whole, out)


def more_than(before: int, run: Path) -> bool:
    return sittings(run) > before


def test_killed_at_random_moments(whole: Callable[[str], Path], teacher: Path, here: Path):
    seed = time.time_ns()
    whole_runs = {method: whole(method) for method in ("kd", "rrd")}
    with ThreadPoolExecutor() as threads:
        done = [
            threads.submit(kill_and_resume, method, here, run, 3, seed) for method, run in whole_runs.items()
        ]
    for each in done:
        each.result()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "rrd", "rrd-bank"])
def test_killed_at_many_random_moments(whole: Callable[[str], Path], teacher: Path, here: Path, method: str):
    kill_and_resume(method, here, whole(method), 20, time.time_ns())


KILLED_WRITING = """
import os, signal, sys
from fastkd.cli.train import main
from fastkd import files
at, place = int(sys.argv[1]), sys.argv[2]
calls = 0
def killed(name, real):
    def call(*given):
        global calls
        calls += name == place
        if calls == at and name == place:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)
    return call
os.fsync, os.replace = killed("fsync", os.fsync), killed("replace", os.replace)
main("student", "train_student.py", sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("at", "place"),
    [
        (1, "fsync"),  # config.yaml is half made
        (5, "fsync"),  # last.pt of epoch 1 is
        pytest.param(2, "replace", marks=pytest.mark.slow),
        pytest.param(4, "replace", marks=pytest.mark.slow),
        pytest.param(5, "replace", marks=pytest.mark.slow),  # best.pt is of epoch 1, there is no last.pt
        pytest.param(
            6, "replace", marks=pytest.mark.slow
        ),  # last.pt is there, its line in metrics.jsonl is not
    ],
)
def test_killed_while_it_writes(
    whole: Callable[[str], Path], train: Train, teacher: Path, here: Path, at: int, place: str
):
    given = (*words("kd", here), "--out", here / "run")
    said = end(run_python("-c", KILLED_WRITING, at, place, *given, cwd=here))
    assert said.code == -signal.SIGKILL
    orphans = list((here / "run").glob(".*.part"))
    assert orphans or place == "replace"
    said = train("student", *given, "--resume", "auto")
    assert said.code == 0, said
    same_run(whole("kd"), here / "run")
    assert {path.name for path in (here / "run").iterdir()} == FILES


# ---- stopped


# A tenth of a second a step, so that there is time to stop it within an epoch.
SLOWLY = """
import sys, time
from fastkd.cli.train import main
from fastkd.engine.step import Step
step = Step.__call__
Step.__call__ = lambda self, batch: (step(self, batch), time.sleep(0.1))
sys.exit(main("student", "train_student.py", sys.argv[1:]))
"""


def stop_by(number: signal.Signals, folder: Path) -> Said:
    process = run_python("-c", SLOWLY, *words("rrd", folder), "--out", folder / number.name, cwd=folder)
    wait_for((folder / number.name / "last.pt").exists, process)
    process.send_signal(number)
    return end(process)


def test_a_signal_stops_within_the_epoch(
    whole: Callable[[str], Path], train: Train, teacher: Path, here: Path
):
    numbers = (signal.SIGTERM, signal.SIGINT)
    with ThreadPoolExecutor() as threads:
        running = [threads.submit(stop_by, number, here) for number in numbers]
    for number, each in zip(numbers, running, strict=True):
        said, out = each.result(), here / number.name
        assert (said.code, said.err) == (0, "")
        (line,) = [line for line in said.out.splitlines() if "stopped" in line]
        assert line.startswith(f"stopped by {number.name} in epoch 2 after ")
        assert line.endswith("saved: go on with --resume auto")
        assert 0 < load(out / "last.pt")["position"]["batch"] <= 10
        said = train("student", *words("rrd", here), "--out", out, "--resume", "auto")
        assert said.code == 0, said
        same_run(whole("rrd"), out)


@pytest.mark.parametrize(("method", "steps"), [("rrd", 1), *((m, n) for m in METHODS for n in (14, 20))])
def test_stopped_after_any_step_it_goes_on_the_same(
    whole: Callable[[str], Path], train: Train, teacher: Path, here: Path,
    stop_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str, steps: int,
):  # fmt: skip
    """14 is within epoch 2, 20 its last step."""
    given = (*words(method, here), "--out", here / "run")
    with monkeypatch.context():
        stop_after(steps)
        said = train("student", *given)
    assert said.code == 0, said
    epoch, batch = divmod(steps - 1, 10)
    assert f"in epoch {epoch + 1} after {batch + 1} steps; saved: go on with --resume auto" in said.out
    assert load(here / "run" / "last.pt")["position"]["batch"] == batch + 1
    assert not (here / "run" / "summary.json").exists()
    said = train("student", *given, "--resume", "auto")
    assert said.code == 0, said
    assert f"going on in epoch {epoch + 1} after {batch + 1} steps" in said.out
    same_run(whole(method), here / "run")


# ---- --resume


def test_resume_of_a_fresh_folder(whole: Callable[[str], Path], train: Train, teacher: Path, here: Path):
    said = train("student", *words("kd", here), "--out", "run", "--resume", "auto")
    assert said.code == 0, said
    same_run(whole("kd"), here / "run")


@pytest.mark.parametrize("resume", [["--resume"], ["--resume", "auto"]])
def test_resume_of_a_finished_run(whole: Callable[[str], Path], train: Train, here: Path, resume: list[str]):
    shutil.copytree(whole("kd"), here / "run")
    before = contents(here)
    said = train("student", *words("kd", whole("kd").parent), "--out", "run", *resume)
    assert said == Said(0, "run holds this run, finished; nothing to do\n", "")
    assert contents(here) == before


@pytest.mark.parametrize("path", ["run", "run/last.pt", "./run/"])
def test_resume_by_path(
    whole: Callable[[str], Path], train: Train, teacher: Path, here: Path, stop_after: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, path: str,
):  # fmt: skip
    """The run's own record says all the rest."""
    with monkeypatch.context():
        stop_after(13)
        assert train("student", *words("kd", here), "--out", "run").code == 0
    said = train("student", "--resume", path)
    assert said.code == 0, said
    same_run(whole("kd"), here / "run")


@pytest.fixture
def half(train: Train, teacher: Path, here: Path, stop_after: Callable[..., None]) -> Iterator[Path]:
    """A run that was stopped in epoch 2, in this test's folder."""
    with pytest.MonkeyPatch.context() as patch:
        step = Step.__call__
        stop_after(13)
        assert train("student", *words("kd", here), "--out", "run").code == 0
        patch.setattr(Step, "__call__", step)
        yield here / "run"


def test_resume_by_path_of_other_files(refused: Train, half: Path):
    refused("student", "--resume", "run/best.pt", says=("--resume run/best.pt", "only last.pt"))
    refused("student", "--resume", "run", "--out", "elsewhere", says=("--resume run", "--out elsewhere"))
    refused(
        "teacher",
        "--resume",
        "run",
        says=("--resume run: that is the run of a student, which train_teacher.py",),
    )


@pytest.mark.parametrize("by_path", [True, False])
def test_resume_with_another_configuration(refused: Train, half: Path, here: Path, by_path: bool):
    given = ("--resume", "run") if by_path else (*words("kd", here), "--out", "run", "--resume", "auto")
    refused(
        "student",
        *given,
        "--learning-rate",
        "0.02",
        says=("optim.lr is 0.1 there, 0.02 here", "another --out"),
    )
    refused("student", *given, "-d", "0.5", says=("method.kd_weight is 0.9 there, 0.5 here",))


def test_resume_with_other_free_settings(whole: Callable[[str], Path], train: Train, half: Path, here: Path):
    """What changes no number may change."""
    shutil.move(here / "teacher", here / "moved")
    free = ("--path-t", "moved", "--print-freq", "3", "--save-freq", "2", "--num-workers", "0")
    said = train("student", "--resume", "run", *free)
    assert said.code == 0, said
    same_run(whole("kd"), half)
    assert (half / "epoch_2.pt").exists()


def test_resume_with_another_teacher(refused: Train, half: Path, here: Path):
    content = load(here / "teacher" / "last.pt")
    content["model"] = {
        key: value * 1.5 if value.is_floating_point() else value for key, value in content["model"].items()
    }
    torch.save(content, here / "other.pt")
    says = ("that run began with another teacher", "pass its --path-t or pick another --out")
    refused("student", "--resume", "run", "--path-t", "other.pt", says=says)
    torch.save(content, here / "teacher" / "last.pt")
    refused("student", "--resume", "run", says=says)


def test_resume_with_the_recorded_threads(
    train: Train, teacher: Path, here: Path, stop_after: Callable[..., None]
):
    before = torch.get_num_threads()
    given = (*STUDENT, "--path-t", "teacher", "--out", "run", "--skip-validation")
    try:
        torch.set_num_threads(2)
        stop_after(3)
        said = train("student", *given)
        assert said.code == 0, said
        assert "2 threads" in said.out
        torch.set_num_threads(1)
        stop_after(1000)
        said = train("student", *given, "--resume", "auto")
        assert said.code == 0, said
        assert "2 threads" in said.out
        assert torch.get_num_threads() == 2
        assert json.loads(Path("run/env.json").read_text())["threads"] == 2
    finally:
        torch.set_num_threads(before)


# ---- damage


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint(refused: Train, half: Path, share: float):
    whole = (half / "last.pt").read_bytes()
    (half / "last.pt").write_bytes(whole[: int(share * len(whole))])
    refused("student", "--resume", "run", says=("--resume: cannot read run/last.pt", "damaged or cut short"))


def test_a_checkpoint_that_is_none(refused: Train, half: Path):
    content = load(half / "last.pt")
    for lost in ("rng", "optimizer", "position"):
        torch.save({key: value for key, value in content.items() if key != lost}, half / "last.pt")
        refused("student", "--resume", "run", says=("run/last.pt", f"lacks {lost}", "another --out"))


def test_leftovers_do_no_harm(whole: Callable[[str], Path], train: Train, half: Path):
    """A temporary file of a killed write, and a line of an epoch whose checkpoint was lost."""
    (half / ".last.pt.ab12cd34.part").write_bytes(b"half a checkpoint")
    with (half / "metrics.jsonl").open("a") as out:
        out.write(json.dumps({"epoch": 2, "train_loss": -1.0}) + '\n{"epoch": 3, "tr')
    said = train("student", "--resume", "run")
    assert said.code == 0, said
    same_run(whole("kd"), half)
    assert {path.name for path in half.iterdir()} == FILES


def test_killed_at_the_very_end(whole: Callable[[str], Path], train: Train, here: Path):
    """Every epoch is saved, the last one's metrics and the summary are not."""
    run = Path(shutil.copytree(whole("kd"), here / "run"))
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    said = train("student", *words("kd", whole("kd").parent), "--out", "run", "--resume")
    assert said.code == 0, said
    same_run(whole("kd"), run)


def test_a_best_file_that_was_lost(train: Train, half: Path, here: Path):
    """It comes again when an epoch is better; till then last.pt goes on."""
    (half / "best.pt").unlink()
    said = train("student", "--resume", "run")
    assert said.code == 0, said


def test_a_second_process_is_refused(train: Train, teacher: Path, here: Path):
    given = (*words("kd", here, epochs=400), "--out", here / "run")
    process = start("student", *given, cwd=here)
    try:
        wait_for((here / "run" / "last.pt").exists, process)
        for resume in ((), ("--resume", "auto"), ("--seed", "3")):
            one_line(
                train("student", *given, *resume), "another process is training there", "pick another --out"
            )
    finally:
        process.send_signal(signal.SIGTERM)
        said = end(process)
    assert (said.code, said.err) == (0, "")
    assert "saved: go on with --resume auto" in said.out


# ---- a full disk

FILLS_UP = """
import resource, sys
from fastkd.cli.train import main
from fastkd.engine import record
save = record.Recorder.save_epoch
def save_epoch(self, *given):
    save(self, *given)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
record.Recorder.save_epoch = save_epoch
sys.exit(main("student", "train_student.py", sys.argv[2:]))
"""
FULL = """
import resource, sys
from fastkd.cli.train import main
import torch
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main("student", "train_student.py", sys.argv[2:]))
"""


@pytest.mark.parametrize("room", [100_000, pytest.param(20, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(
    whole: Callable[[str], Path], train: Train, teacher: Path, here: Path, room: int
):
    """After epoch 1 no file may grow beyond `room` bytes: too few for a checkpoint, or for anything."""
    given = (*words("kd", here), "--out", here / "run")
    said = end(run_python("-c", FILLS_UP, room, *given, cwd=here))
    one_line(said, "cannot write in", "File too large", "make room and go on with --resume auto")
    warnings = [line for line in said.out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2  # epochs 2 and 3
    assert all("training goes on, what was saved before stays" in line for line in warnings)
    assert load(here / "run" / "last.pt")["position"]["epoch"] == 2
    assert not (here / "run" / "summary.json").exists()
    before = contents(here)
    said = end(run_python("-c", FULL, 20, *given, "--resume", "auto", cwd=here))
    one_line(said, "cannot write", "File too large", "make room")
    assert contents(here) == before
    said = train("student", *given, "--resume", "auto")
    assert said.code == 0, said
    same_run(whole("kd"), here / "run")


def test_no_room_for_a_new_run(teacher: Path, here: Path):
    before = contents(here)
    said = end(run_python("-c", FULL, 20, *words("kd", here), "--out", here / "a" / "run", cwd=here))
    one_line(said, "cannot write there", "File too large")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("name", "calls"),
    [("best.pt", {1}), ("best.pt", {1, 2}), ("last.pt", {2}), ("metrics.jsonl", {3}), ("last.pt", {1, 2})],
)
def test_a_disk_that_is_full_for_a_while(
    whole: Callable[[str], Path], train: Train, teacher: Path, here: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, calls: set[int],
):  # fmt: skip
    """Writes of one file fail a few times; the next epoch makes good for it, and no weights are lost."""
    real, made = files.write, 0

    def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
        nonlocal made
        made += path.name == name
        if path.name == name and made in calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, fill)

    monkeypatch.setattr(files, "write", write)
    said = train("student", *words("kd", here), "--out", "run")
    assert said.code == 0, said
    assert said.out.count("No space left on device") == len(calls)
    same_run(whole("kd"), here / "run")


def test_no_room_to_stop(
    train: Train, half: Path, here: Path, stop_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """A stop that cannot be saved is no success, and the checkpoint before it stays."""
    before = contents(half)["last.pt"]

    def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
        if path.suffix == ".pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, fill)

    real = files.write
    monkeypatch.setattr(files, "write", write)
    stop_after(2)
    said = train("student", "--resume", "run")
    one_line(said, "cannot write in run: No space left on device; make room")
    assert contents(half)["last.pt"] == before


# ---- what a run leaves


@pytest.mark.parametrize("method", ["kd", "rrd", "rrd-bank"])
def test_what_a_run_leaves(whole: Callable[[str], Path], method: str):
    run = whole(method)
    assert {path.name for path in run.iterdir()} == FILES
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["name"] == method.partition("-")[0]
    env = json.loads((run / "env.json").read_text())
    for key in (
        "python",
        "torch",
        "numpy",
        "fastkd",
        "cpu",
        "cores",
        "threads",
        "device",
        "precision",
        "command",
        "git",
    ):
        assert key in env
    terms = ["loss_task", "loss_kd"] if method == "kd" else ["loss_task", "loss_rrd"]
    keys = [
        "epoch", "lr", "train_loss", *terms, "train_top1", "test_loss", "test_top1", "test_top5",
        "images_per_second", "seconds", "data_wait",
    ]  # fmt: skip
    found = rows(run)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    for row in found:
        assert list(row) == keys
        assert all(isinstance(value, float) for key, value in row.items() if key != "epoch")
        assert 0 <= row["test_top1"] <= row["test_top5"] <= 100
        assert 0 <= row["data_wait"] <= 1
        # 110 test pictures, each counted once
        assert row["test_top1"] * 110 / 100 == pytest.approx(round(row["test_top1"] * 110 / 100))
    summary = json.loads((run / "summary.json").read_text())
    best = max(found, key=lambda row: row["test_top1"])
    wanted = {
        "last_top1": found[-1]["test_top1"], "best_top1": best["test_top1"], "best_epoch": best["epoch"], "epochs": 3,
        "steps": 30, "teacher_forwards": 110 + 3 * 200, "cache_hits": 0, "cache_misses": 0, "loader": "DeviceLoader",
    }  # fmt: skip
    assert wanted.items() <= summary.items()
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in found))
    assert summary["images_per_second"] > 0
    for name, row in (("last.pt", found[-1]), ("best.pt", best)):
        about = load(run / name)["about"]
        wanted = {
            "model": "resnet8",
            "dataset": "shapes",
            "num_classes": 10,
            "image_size": 32,
            "epoch": row["epoch"],
        }
        assert wanted.items() <= about.items()
        assert about["test_top1"] == row["test_top1"]


def test_the_last_and_the_best_weights_score_what_is_written(
    whole: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    from fastkd.cli.main import main

    capsys.readouterr()
    assert main(["eval", str(whole("rrd")), "--json"]) == 0
    scores = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    found = rows(whole("rrd"))
    best = max(found, key=lambda row: row["test_top1"])
    for name, row in (("last.pt", found[-1]), ("best.pt", best)):
        assert scores[name]["top1"] == row["test_top1"]
        assert scores[name]["loss"] == row["test_loss"]


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: tag -> epoch -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "events"))
    read.Reload()
    tags = read.Tags()["scalars"]
    shown = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in tags}
    assert all(len(dict(points)) == len(points) for points in shown.values()), shown
    return {tag: dict(points) for tag, points in shown.items()}


def test_tensorboard_shows_every_epoch_once(train: Train, half: Path):
    assert list(scalars(half)["test_top1"]) == [1]
    lost = Events(half / "events", 2)  # of a sitting whose checkpoint was lost
    lost.add(2, {"test_top1": 99.0})
    lost.close()
    assert list(scalars(half)["test_top1"]) == [1, 2]
    assert train("student", "--resume", "run").code == 0
    shown = scalars(half)
    found = rows(half)
    assert set(shown) == set(found[0]) - {"epoch"}
    for tag, values in shown.items():
        assert values == {row["epoch"]: pytest.approx(row[tag]) for row in found}


def test_epochs_are_kept_when_asked(train: Train, here: Path):
    assert train("teacher", *TEACHER, "--out", "run", "--epochs", "4", "--save-freq", "2").code == 0
    kept = sorted(path.name for path in Path("run").glob("epoch_*.pt"))
    assert kept == ["epoch_2.pt", "epoch_4.pt"]
    equal(load(Path("run/epoch_4.pt"))["model"], load(Path("run/last.pt"))["model"])
