"""Bad input: one line that says what was asked, what was found and what to do; exit code 2; nothing on disk lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastkd import models
from loaders.cifar_files import SOURCES
from tests.e2e.runs import STUDENT, TEACHER, Train, contents, end, one_line, start

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


# ---- flags and keys


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("teacher", ["--model", "resnet9"], "unknown model 'resnet9'; did you mean 'resnet"),
        ("student", ["--model-s", "wnr_16_2"], "unknown model 'wnr_16_2'; did you mean 'wrn_16_2'"),
        ("student", ["--model-t", "vgg-8x"], "unknown model 'vgg-8x'; did you mean 'vgg8"),
        ("student", ["--distill", "rdd"], "unknown method 'rdd'; did you mean 'rrd'"),
        ("teacher", ["--dataset", "cifar-100"], "unknown data set 'cifar-100'; did you mean 'cifar100'"),
        ("teacher", ["--dataset", "nothing-like-it"], "known: cifar10, cifar100, imagefolder, shapes"),
        ("teacher", ["--epoch", "3"], "unknown flag '--epoch'; did you mean '--epochs'"),
        (
            "teacher",
            ["--lr_decay_riate=0.1"],
            "unknown flag '--lr-decay-riate'; did you mean '--lr-decay-rate'",
        ),
        ("teacher", ["--determinstic"], "unknown flag '--determinstic'; did you mean '--deterministic'"),
        ("teacher", ["-q"], "unknown flag '-q'"),
        ("teacher", ["--model-s", "resnet8"], "unknown flag '--model-s'; did you mean '--model'"),
        ("student", ["--epochs"], "--epochs"),
        ("teacher", ["optim.lrr", "0.1"], "unknown key 'optim.lrr'; did you mean 'lr'"),
        ("teacher", ["--options", "dat.root=x"], "unknown key 'dat'; did you mean 'data'"),
        ("teacher", ["data.root.x", "3"], "data.root"),
        ("teacher", ["data", "x"], "data must be a section"),
        ("teacher", ["optim.lr"], "'optim.lr' is neither a flag nor KEY VALUE"),
        ("student", ["method.nce_k=4"], "unknown key 'method.nce_k'"),
        ("student", ["--distill", "rrd", "method.nce_kk=4"], "unknown key 'method.nce_kk'"),
        ("student", ["--distill", "no_such_package.module:Thing"], "no_such_package"),
        ("student", ["--distill", "fastkd.methods.kd:Nothing"], "has no 'Nothing'"),
        ("student", ["--distill", "fastkd.method:Needs"], "is not a subclass of fastkd.method.Method"),
        ("student", ["--distill", ":Thing"], "':Thing'"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(refused: Train, script: str, words: list[str], says: str):
    refused(script, *(TEACHER if script == "teacher" else STUDENT), *words, says=(says,))


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("teacher", ["--batch-size", "0"], "data.batch_size is 0; it must be a finite number >= 1"),
        ("teacher", ["--batch-size", "201"], "data.batch_size is 201, more than the 200 training pictures"),
        ("teacher", ["--test-batch-size", "0"], "data.test_batch_size is 0"),
        ("teacher", ["--num-workers", "-1"], "data.num_workers is -1"),
        ("teacher", ["--epochs", "0"], "optim.epochs is 0"),
        ("teacher", ["--epochs", "-1"], "optim.epochs is -1"),
        ("teacher", ["--epochs", "nan"], "optim.epochs is 'nan'; it must be a whole number"),
        ("teacher", ["--epochs", "inf"], "optim.epochs is 'inf'; it must be a whole number"),
        ("teacher", ["--epochs", "2.5"], "optim.epochs is '2.5'; it must be a whole number"),
        ("teacher", ["--epochs", "abc"], "optim.epochs is 'abc'; it must be a whole number"),
        ("teacher", ["--learning-rate", "nan"], "optim.lr is nan; it must be a finite number >= 0"),
        ("teacher", ["--learning-rate", "-0.1"], "optim.lr is -0.1"),
        ("teacher", ["--learning-rate", "0,1"], "optim.lr is '0,1'; it must be a number"),
        ("teacher", ["--weight-decay", "inf"], "optim.weight_decay is inf"),
        ("teacher", ["--momentum", "x"], "optim.momentum is 'x'"),
        ("teacher", ["--lr-decay-epochs", "180,150"], "optim.decay_epochs is (180, 150); it must rise"),
        ("teacher", ["--lr-decay-epochs", "150,150"], "optim.decay_epochs is (150, 150); it must rise"),
        ("teacher", ["--lr-decay-epochs", "150,x"], "optim.decay_epochs is 'x'; it must be a whole number"),
        ("teacher", ["--warmup-epochs", "2"], "optim.warmup_epochs is 2, more than the 1 epochs"),
        ("teacher", ["--trial", "first"], "run.trial is 'first'; it must be a whole number"),
        ("teacher", ["--print-freq", "0"], "run.print_freq is 0"),
        (
            "teacher",
            ["--channels-last", "perhaps"],
            "run.channels_last is 'perhaps'; it must be true or false",
        ),
        ("teacher", ["--schedule", "stepp"], "optim.schedule is 'stepp'; did you mean 'step'"),
        ("teacher", ["--amp", "fp8"], "run.amp is 'fp8'; known: auto, bf16, fp16, off"),
        ("teacher", ["data.num_classes=5"], "shapes has 10 to 100 classes"),
        ("teacher", ["data.test_size=5"], "data.test_size is 5"),
        ("teacher", ["data.image_size=2"], "data.image_size is 2; it must be a finite number >= 8"),
        (
            "teacher",
            ["--dataset", "cifar100", "data.image_size=64", "--dry-run"],
            "data.image_size is 64; pictures of cifar100",
        ),
        ("student", ["-c", "-1"], "method.task_weight is -1.0; a weight must be a finite number >= 0"),
        ("student", ["-d", "nan"], "method.kd_weight is nan; a weight must be a finite number >= 0"),
        ("student", ["-b", "inf"], "method.weight is inf"),
        ("student", ["--kd-T", "0"], "method.kd_temperature is 0.0"),
        ("student", ["-c", "0", "-d", "0"], "there is nothing to learn from"),
        (
            "student",
            ["--distill", "rrd", "--gamma", "0", "--alpha", "0", "--beta", "0"],
            "nothing to learn from",
        ),
        ("student", ["--distill", "vanilla", "-c", "0", "-b", "1"], "nothing to learn from"),
        ("student", ["--distill", "vanilla", "-d", "1"], "vanilla has no teacher"),
        ("student", ["--distill", "rrd", "--nce-k", "0"], "method.nce_k is 0"),
        ("student", ["--distill", "rrd", "--nce-t-s", "0"], "method.nce_t_s is 0"),
        (
            "student",
            ["--distill", "rrd", "--memory-type", "lifo"],
            "method.memory_type is 'lifo'; did you mean 'fifo'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    refused: Train, teacher: Path, script: str, words: list[str], says: str
):
    given = TEACHER if script == "teacher" else (*STUDENT, "--path-t", teacher)
    refused(script, *given, *words, says=(says,))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dali", "cpu"], "data.dali cpu is not part of this version yet; use none"),
        (["--loader", "ffcv"], "--loader ffcv is not part of this version yet; use --loader device or torch"),
        (["--loader", "dali"], "--loader dali is not part of this version yet"),
        (["--graph", "on"], "run.graph on is not part of this version yet; use auto or off"),
        (["--compile", "default"], "run.compile default is not part of this version yet; use off"),
        (
            ["--optimizer", "apex-sgd"],
            "optim.optimizer apex-sgd is not part of this version yet; use sgd or adamw",
        ),
    ],
)
def test_what_has_not_landed_says_so(refused: Train, teacher: Path, words: list[str], says: str):
    refused("student", *STUDENT, "--path-t", teacher, *words, says=(says,))


@needs_no_gpu
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "cuda"], ("--device cuda: no CUDA GPU was found", "use --device cpu")),
        (["--dali", "gpu"], ("--dali gpu: no CUDA GPU was found", "use --device cpu --dali none")),
        (
            ["--distill", "rrd", "-c", "1", "-d", "1", "-b", "1", "--dali", "gpu"],
            ("--dali gpu: no CUDA GPU",),
        ),
        (
            ["--multiprocessing-distributed"],
            ("--multiprocessing-distributed starts one process a GPU", "torchrun"),
        ),
    ],
)
def test_what_needs_a_gpu_says_so(refused: Train, teacher: Path, words: list[str], says: tuple[str, ...]):
    refused("student", *STUDENT, "--path-t", teacher, *words, says=says)


# ---- yaml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: {learning_rat: 1}", "unknown key 'optim.learning_rat'"),
        ("optimm: {lr: 1}", "unknown key 'optimm'; did you mean 'optim'"),
        ("method: {nce_k: 4}", "unknown key 'method.nce_k': kd has no such number"),
        ("method: rrd", "method must be a section of key: value lines"),
        ("data: shapes", "data must be a section of key: value lines"),
        ("optim: {lr: [1, 2]}", "optim.lr is [1, 2]; it must be a number"),
        ("optim: {lr: {x: 1}}", "optim.lr"),
        ("optim: {epochs: true}", "optim.epochs is True; it must be a whole number"),
        ("optim: {epochs: null}", "optim.epochs is None; it must be a whole number"),
        ("teacher: {model: [resnet8]}", "unknown model"),
        ("- a\n- b\n", "must hold key: value sections, found a list"),
        ("just words", "must hold key: value sections, found a str"),
        ("optim: {lr: 1", "is not plain yaml"),
        ("optim: &a {lr: *a}", "a section holds itself"),
        ("optim:\n\tlr: 1\n", "is not plain yaml"),
        ("!!python/object/apply:os.system ['touch ran']", "is not plain yaml"),
        ("optim: {lr: !!python/object/apply:os.system ['touch ran']}", "is not plain yaml"),
    ],
)
def test_a_bad_yaml_file(refused: Train, here: Path, text: str, says: str):
    (here / "my.yaml").write_text(text)
    refused("student", "--cfg", "my.yaml", "--model-s", "resnet8", says=(says,))


@pytest.mark.parametrize("flag", ["--cfg", "-cfg"])
def test_a_yaml_file_that_is_not_there(refused: Train, here: Path, flag: str):
    refused("student", *STUDENT, flag, "none.yaml", says=("no such configuration file: none.yaml",))
    refused("student", *STUDENT, flag, ".", says=("cannot read .",))
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00optim")
    refused("student", *STUDENT, flag, "binary.yaml", says=("binary.yaml",))


# ---- the teacher's file


class Payload:
    """What a hostile file holds: reading it with pickle would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def save_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def save_zip(path: Path, content: object) -> None:
    torch.save(content, path)


def save_legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_pickle, save_zip, save_legacy])
@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: {"model": p}, lambda p: {"model": {"a": torch.ones(1)}, "x": [p]}]
)
def test_a_hostile_file_is_refused_and_does_not_run(
    refused: Train, here: Path, save: Callable[[Path, object], None], wrap: Callable[[object], object]
):
    save(here / "hostile.pth", wrap(Payload()))
    refused(
        "student",
        *STUDENT,
        "--path-t",
        "hostile.pth",
        says=("--path-t: hostile.pth is refused: it holds more",),
    )
    assert not (here / "ran").exists()


def test_the_hostile_file_is_hostile(here: Path):
    """Else the test above would prove nothing."""
    save_zip(here / "hostile.pth", Payload())
    torch.load(here / "hostile.pth", weights_only=False)
    assert (here / "ran").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "damaged or cut short"),
        (lambda p: p.write_bytes(b"\x80\x02}q\x00."), "damaged"),
        (lambda p: p.write_bytes(b"PK\x03\x04 and then nothing"), "damaged"),
        (lambda p: p.write_text("<html>404 Not Found</html>"), "damaged"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n"), "damaged"),
        (lambda p: p.mkdir(), "last.pt"),
        (lambda p: torch.save([torch.ones(1)], p), "holds a list, not a checkpoint"),
        (lambda p: torch.save({"epoch": 1}, p), "holds no weights (keys: epoch)"),
        (lambda p: torch.save({"w": torch.ones(2)}, p), "no net has these keys and shapes"),
    ],
)
def test_a_teacher_that_is_none(refused: Train, here: Path, make: Callable[[Path], object], says: str):
    make(here / "t.pth")
    refused("student", *STUDENT, "--path-t", "t.pth", says=("--path-t", "t.pth", says))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_a_truncated_teacher(refused: Train, here: Path, trained: Path, share: float):
    whole = (trained / "last.pt").read_bytes()
    (here / "t.pt").write_bytes(whole[: int(share * len(whole))])
    refused(
        "student", *STUDENT, "--path-t", "t.pt", says=("--path-t: cannot read t.pt", "damaged or cut short")
    )


@pytest.mark.parametrize("flips", range(12))
def test_a_damaged_teacher_gives_one_line_or_none(train: Train, here: Path, trained: Path, flips: int):
    """Bytes changed anywhere: told as damage, or without effect on what is read."""
    random = np.random.default_rng(flips)
    broken = bytearray((trained / "best.pt").read_bytes())
    # half of them at the file's ends, where zip and pickle keep their structure
    for at in random.integers(0, len(broken), 20) if flips % 2 else -random.integers(1, 4000, 20):
        broken[at] ^= int(random.integers(1, 256))
    (here / "t.pt").write_bytes(broken)
    said = train("student", *STUDENT, "--path-t", "t.pt", "--dry-run")
    if said.code:
        one_line(said)


def test_a_teacher_of_another_kind(refused: Train, teacher: Path):
    said = ("teacher/last.pt is no resnet20", "differ", "it fits resnet8")
    refused("student", *STUDENT, "--path-t", teacher.name, "--model-t", "resnet20", says=said)


def test_a_teacher_of_other_classes(refused: Train, here: Path):
    net = models.build("resnet8", 100)
    torch.save({"model": net.state_dict()}, here / "t.pth")
    says = (
        "--path-t t.pth: the teacher tells 100 classes apart, shapes has 10",
        "train one on this data set",
    )
    refused("student", *STUDENT, "--path-t", "t.pth", says=says)
    refused("student", *STUDENT, "--path-t", "t.pth", "--model-t", "resnet8", says=says)


def test_a_teacher_that_fits_no_net(refused: Train, here: Path):
    torch.save({"model": {f"layer{k}.weight": torch.ones(3) for k in range(200)}}, here / "t.pth")
    refused("student", *STUDENT, "--path-t", "t.pth", says=("--path-t t.pth: which net is it?", "--model-t"))
    refused(
        "student", *STUDENT, "--path-t", "t.pth", "--model-t", "resnet8", says=("t.pth", "it fits no net")
    )


def test_a_teacher_whose_own_label_is_wrong(refused: Train, here: Path, trained: Path):
    content = torch.load(trained / "best.pt", weights_only=True)
    for name, says in (("resnet9000", "unknown model 'resnet9000'"), ("vgg8", "t.pt is no vgg8")):
        torch.save(content | {"about": {"model": name}}, here / "t.pt")
        refused("student", *STUDENT, "--path-t", "t.pt", says=(says,))


def test_a_teacher_that_went_astray(refused: Train, here: Path, trained: Path):
    content = torch.load(trained / "best.pt", weights_only=True)
    next(iter(content["model"].values()))[0, 0, 0, 0] = float("nan")
    torch.save(content, here / "t.pt")
    refused("student", *STUDENT, "--path-t", "t.pt", says=("t.pt", "not finite"))


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("inner", ["model", "state_dict", ""])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_teacher_of_the_references_is_read(
    train: Train, here: Path, trained: Path, save: Callable[[Path, object], None], inner: str, prefix: str
):
    """The forms in which they save; torch 1 wrote what is called legacy here."""
    weights = torch.load(trained / "best.pt", weights_only=True)["model"]
    renamed = {prefix + key: value for key, value in weights.items()}
    save(here / "t.pth", {"epoch": 240, inner: renamed, "accuracy": torch.tensor(12.5)} if inner else renamed)
    said = train("student", *STUDENT, "--path-t", "t.pth", "--dry-run")
    assert said.code == 0, said
    assert "nothing was written" in said.out
    assert said.err == ""


def test_a_teacher_that_may_not_be_read(refused: Train, here: Path, trained: Path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    shutil.copy(trained / "best.pt", here / "t.pt")
    (here / "t.pt").chmod(0)
    refused("student", *STUDENT, "--path-t", "t.pt", says=("cannot read t.pt: Permission denied",))


def test_no_teacher_names_the_command(refused: Train):
    refused(
        "student",
        *STUDENT,
        says=("there is no teacher of shapes", "train_teacher.py --dataset shapes", "--path-t"),
    )
    refused(
        "student",
        *STUDENT,
        "--model-t",
        "resnet14",
        says=("train_teacher.py --dataset shapes --model resnet14",),
    )


def test_two_teachers_are_both_named(refused: Train, here: Path, trained: Path):
    for name in ("first", "second"):
        shutil.copytree(trained, here / "save/teachers" / name)
    says = ("2 teachers of shapes are under save/teachers: first, second", "choose one with --path-t")
    refused("student", *STUDENT, says=says)


def test_the_one_teacher_is_found(train: Train, here: Path, trained: Path):
    shutil.copytree(trained, here / "save/teachers/one")
    shutil.copytree(trained, here / "save/teachers/unfinished")
    (here / "save/teachers/unfinished/summary.json").unlink()
    assert train("student", *STUDENT, "--skip-validation").code == 0


# ---- the data


def test_data_that_is_not_there(refused: Train):
    for dataset in ("cifar10", "cifar100"):
        says = (f"{dataset} is not in none", "--download")
        refused("teacher", "--dataset", dataset, "--data", "none", says=says)
    refused(
        "teacher",
        "--dataset",
        "imagefolder",
        "--data",
        "none",
        "--model",
        "resnet8",
        says=("none does not exist",),
    )


@pytest.mark.parametrize("archive", [0, 1])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_a_half_extracted_data_set(refused: Train, here: Path, dataset: str, archive: int):
    wanted = SOURCES[dataset].archives[archive]
    folder = here / "data" / wanted.folder
    folder.mkdir(parents=True)
    (folder / wanted.train[0]).write_bytes(b"\x80\x02}q\x00")
    says = (wanted.test[0], "half unpacked", wanted.file)
    refused("teacher", "--dataset", dataset, "--data", "data", says=says)


def test_a_damaged_data_set(refused: Train, here: Path):
    wanted = SOURCES["cifar100"].archives[0]
    folder = here / wanted.folder
    folder.mkdir()
    for name in (*wanted.train, *wanted.test, wanted.names):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    refused(
        "teacher",
        "--dataset",
        "cifar100",
        "--data",
        here,
        says=("md5", "unpack cifar-100-python.tar.gz again"),
    )
    assert not (here / "ran").exists()


def pictures(root: Path, *folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(root / folder / f"{number}.png")


FOLDER = ("--dataset", "imagefolder", "--data", "d", "--model", "resnet8", "--batch-size", "4",
          "data.image_size=32", "--num-workers", "0", "--epochs", "1")  # fmt: skip


def test_a_class_without_pictures(refused: Train, here: Path):
    pictures(here / "d", "train/a", "train/b", "val/a")
    (here / "d/val/b").mkdir()
    refused("teacher", *FOLDER, says=("class folder d/val/b has no pictures",))


def test_classes_that_differ(refused: Train, here: Path):
    pictures(here / "d", "train/a", "val/a", "val/b")
    refused("teacher", *FOLDER, says=("d/val has class folders that d/train lacks: b",))


def test_folders_that_are_not_called_as_needed(refused: Train, here: Path):
    pictures(here / "d", "training/a")
    refused("teacher", *FOLDER, says=("d has no train/", "give the folder that holds train/<class>/"))


def test_a_damaged_picture_is_named(train: Train, here: Path):
    pictures(here / "d", "train/a", "train/b", "val/a", "val/b")
    (here / "d/train/b/2.png").write_bytes(b"no picture")
    said = train("teacher", *FOLDER, "--out", "run")
    one_line(said, "cannot read d/train/b/2.png", "replace the file or remove it")


def test_device_loader_for_files(refused: Train, here: Path):
    pictures(here / "d", "train/a", "val/a")
    refused("teacher", *FOLDER, "--loader", "device", says=("use --loader torch",))


# ---- where the run goes


def test_out_below_a_file(refused: Train, here: Path):
    (here / "file").write_text("mine")
    refused(
        "teacher", *TEACHER, "--out", "file/run", says=("--out file/run: cannot write there", "pick another")
    )
    refused("teacher", *TEACHER, "--out", "file", says=("--out file: ", "pick another"))


def test_out_where_nothing_may_be_made(refused: Train, here: Path):
    refused(
        "teacher", *TEACHER, "--out", "/proc/x", says=("--out /proc/x: cannot write there", "pick another")
    )
    if os.geteuid():
        (here / "locked").mkdir(mode=0o555)
        refused("teacher", *TEACHER, "--out", "locked/run", says=("--out locked/run: cannot write there",))
        refused("teacher", *TEACHER, "--out", "locked", says=("--out locked: cannot write there",))


@pytest.mark.parametrize("name", ["thesis.tex", ".lock", "last.pt", ".hidden"])
def test_out_with_foreign_files(refused: Train, here: Path, name: str):
    (here / "mine").mkdir()
    (here / "mine" / name).write_text("years of work")
    refused(
        "teacher",
        *TEACHER,
        "--out",
        "mine",
        says=(f"--out mine: holds {name} and no run of ours", "empty or new"),
    )
    refused(
        "teacher",
        *TEACHER,
        "--out",
        "mine",
        "--resume",
        says=(f"--out mine: holds {name} and no run of ours",),
    )


def test_out_that_is_empty_stays_when_nothing_begins(refused: Train, here: Path):
    (here / "mine").mkdir()
    refused("teacher", *TEACHER, "--batch-size", "201", "--out", "mine", says=("more than the 200",))
    refused("teacher", *TEACHER, "--batch-size", "201", "--out", "a/b/c", says=("more than the 200",))


@pytest.mark.parametrize("resume", [[], ["--resume"], ["--resume", "auto"]])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--learning-rate", "0.2"], "optim.lr is 0.1 there, 0.2 here"),
        (["--seed", "7"], "run.seed is 0 there, 7 here"),
        (["--epochs", "9", "--seed", "7"], "optim.epochs is 1 there, 9 here (and 1 more)"),
        (["--model", "resnet14"], "student.model is resnet8 there, resnet14 here"),
    ],
)
def test_out_with_another_run(refused: Train, teacher: Path, change: list[str], says: str, resume: list[str]):
    given = [*TEACHER, "--out", teacher.name, *change, *resume]
    refused("teacher", *given, says=("--out teacher: holds another run: ", says, "pick another --out"))


def test_out_with_the_run_of_the_other_script(refused: Train, teacher: Path):
    says = ("--out teacher: holds another run: kind is teacher there, student here",)
    refused("student", *STUDENT, "--distill", "vanilla", "--out", teacher.name, says=says)


def test_out_with_this_run(refused: Train, teacher: Path):
    says = ("--out teacher: already holds this run", "--resume auto", "pick another --out")
    refused("teacher", *TEACHER, "--out", teacher.name, says=says)


def test_out_with_a_damaged_record(refused: Train, teacher: Path):
    (teacher / "config.yaml").write_text("a: [")
    refused("teacher", *TEACHER, "--out", teacher.name, says=("teacher/config.yaml is not plain yaml",))


@pytest.mark.parametrize("path", ["none", "none/last.pt", "here"])
def test_resume_of_nothing(refused: Train, here: Path, path: str):
    (here / "here").mkdir()
    refused("teacher", *TEACHER, "--resume", path, says=("--resume", path))


# ---- a loss that is not finite


def test_a_loss_that_is_not_finite(train: Train, here: Path):
    """Epoch 1 is fine, then the rate rises to 1e30."""
    given = (*TEACHER, "--out", "run", "--epochs", "3", "--schedule", "step", "--learning-rate", "0.01",
             "--lr-decay-epochs", "1", "--lr-decay-rate", "1e32", "--warmup-epochs", "0")  # fmt: skip
    said = train("teacher", *given)
    one_line(said, "the loss is not finite since epoch 2, step ", "run/nan.pt", "--learning-rate")
    evidence = torch.load("run/nan.pt", weights_only=True)
    step = int(said.err.partition("epoch 2, step ")[2].split()[0].rstrip(","))
    assert (evidence["epoch"], evidence["step"]) == (2, step)
    assert 1 < step <= 10
    assert evidence["lr"] == pytest.approx(1e30)
    assert len(evidence["indices"]) == len(evidence["aug_ids"]) == 20
    for name in ("last.pt", "best.pt"):
        content = torch.load(f"run/{name}", weights_only=True)
        assert content["about"]["epoch"] == 1
        assert all(value.isfinite().all() for value in content["model"].values())
    assert [json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1]
    kept = ("last.pt", "best.pt", "metrics.jsonl", "config.yaml")
    before = [contents(here)[f"run/{name}"] for name in kept]
    one_line(train("teacher", *given, "--resume", "auto"), "not finite since epoch 2")
    assert [contents(here)[f"run/{name}"] for name in kept] == before


def test_a_huge_rate_from_the_start(train: Train, here: Path):
    said = train("teacher", *TEACHER, "--out", "run", "--learning-rate", "1e30")
    one_line(said, "the loss is not finite since epoch 1, step ")
    assert not Path("run/last.pt").exists()


def test_weights_that_break_in_an_epochs_last_step(train: Train, here: Path):
    """One step an epoch: its loss is finite, the weights it leaves are not. They are no checkpoint."""
    said = train("teacher", *TEACHER, "--out", "run", "--learning-rate", "1e30", "--batch-size", "200",
                 "--epochs", "2", "--warmup-epochs", "0", "--schedule", "step")  # fmt: skip
    one_line(said, "not finite", "epoch 1")
    assert not Path("run/last.pt").exists()
    assert not Path("run/best.pt").exists()


# ---- in a process of its own


def test_from_the_shell(here: Path, trained: Path):
    shutil.copytree(trained, here / "teacher")
    before = contents(here)
    running = [
        start("teacher", *TEACHER, "--model", "resnet9", cwd=here),
        start(
            "student", *STUDENT, "--path-t", "teacher", "--batch-size", "201", "--distill", "rrd", cwd=here
        ),
    ]
    for process, says in zip(running, ("unknown model 'resnet9'", "more than the 200"), strict=True):
        one_line(end(process), says)
    assert contents(here) == before
