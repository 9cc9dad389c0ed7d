"""Flags, keys and yaml: every spelling the published command lines use, what it comes to, and what wins."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastkd import config as configs
from fastkd import methods, models, recipes
from fastkd.cli import flags
from fastkd.config import RunConfig
from fastkd.engine.rundir import default_name
from fastkd.recipes import Request
from tests.e2e.runs import ROOT, STUDENT, TEACHER, Train, environment, one_line

SCRIPTS = ("teacher", "student")

# Every spelling of an option, so that none is lost by accident. A script's own are on a line of their own.
SPELLINGS = {
    "teacher": """
        --model
        -h --help -cfg --cfg --options --resume --dry-run --tb-freq --dataset --out --seed -t --trial --data --download
        --batch-size --test-batch-size --num-workers --loader --dali --epochs --learning-rate --lr --lr-decay-epochs
        --lr-decay-rate --schedule --warmup-epochs --optimizer --momentum --weight-decay --device --gpu-id --threads
        --amp --channels-last --deterministic --multiprocessing-distributed --dist-url --graph --compile --print-freq
        --save-freq
    """,
    "student": """
        --model-s --model-t --path-t --distill -c --cls -r --gamma -d --div -a --alpha -b --beta --kd-T --feat-dim
        --nce-k --nce-t --nce-m --nce-t-s --nce-t-t --memory-type --mode --hint-layer -f --factor -s --soft --init-epochs
        --teacher-cache --cache-dtype --cache-views --skip-validation --dot-delta
        -h --help -cfg --cfg --options --resume --dry-run --tb-freq --dataset --out --seed -t --trial --data --download
        --batch-size --test-batch-size --num-workers --loader --dali --epochs --learning-rate --lr --lr-decay-epochs
        --lr-decay-rate --schedule --warmup-epochs --optimizer --momentum --weight-decay --device --gpu-id --threads
        --amp --channels-last --deterministic --multiprocessing-distributed --dist-url --graph --compile --print-freq
        --save-freq
    """,
}


def spellings(script: str) -> set[str]:
    return {name for action in flags.parser(script, "x")._actions for name in action.option_strings}


def asked(script: str, *words: object) -> flags.Asked:
    return flags.read(script, f"train_{script}.py", [str(word) for word in words])


def resolved(script: str, *words: object) -> dict[str, Any]:
    """Dotted keys of what the words come to."""
    read = asked(script, *words)
    return configs.flat(configs.tree(request(script, read).config))


def request(script: str, read: flags.Asked) -> Request:
    return recipes.resolve(script, read.values, read.shared_method_keys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_spelling_is_lost(script: str):
    frozen = set(SPELLINGS[script].split())
    assert frozen - spellings(script) == set(), "an option is gone: command lines that use it break"
    assert spellings(script) - frozen == set(), "a new option: add it to the frozen list"


# ---- the references' command lines

SHARED = [
    ("--print_freq 100", "run.print_freq", 100),
    ("--save_freq 40", "run.save_freq", 40),
    ("--batch_size 64", "data.batch_size", 64),
    ("--num_workers 4", "data.num_workers", 4),
    ("--epochs 12", "optim.epochs", 12),
    ("--gpu_id 0,1", "run.gpu_id", "0,1"),
    ("--learning_rate 0.03", "optim.lr", 0.03),
    ("--lr_decay_epochs 150,180,210", "optim.decay_epochs", [150, 180, 210]),
    ("--lr_decay_rate 0.2", "optim.decay_rate", 0.2),
    ("--weight_decay 1e-4", "optim.weight_decay", 1e-4),
    ("--momentum 0.8", "optim.momentum", 0.8),
    ("--dataset cifar100", "data.dataset", "cifar100"),
    ("--trial 3", "run.trial", 3),
    ("-t 3", "run.trial", 3),
    ("--dali gpu", "data.dali", "gpu"),
    ("--dali cpu", "data.dali", "cpu"),
    ("--multiprocessing-distributed", "run.distributed", True),
    ("--dist-url tcp://127.0.0.1:4711", "run.dist_url", "tcp://127.0.0.1:4711"),
    ("--deterministic", "run.deterministic", True),
]
OF_TEACHERS = [
    ("--model resnet32x4", "student.model", "resnet32x4"),
    ("--model WRN-40-2", "student.model", "wrn_40_2"),
]
OF_STUDENTS = [
    ("--model_s resnet8x4", "student.model", "resnet8x4"),
    ("--model_t resnet32x4", "teacher.model", "resnet32x4"),
    ("--path_t ./save/a_b/t.pth", "teacher.path", "./save/a_b/t.pth"),
    ("--path-t ./save/a_b/t.pth", "teacher.path", "./save/a_b/t.pth"),
    ("--distill rrd", "method.name", "rrd"),
    ("--gamma 0.1", "method.task_weight", "0.1"),
    ("-r 0.1", "method.task_weight", "0.1"),
    ("--cls 0.1", "method.task_weight", "0.1"),
    ("-c 0.1", "method.task_weight", "0.1"),
    ("--alpha 0.9", "method.kd_weight", "0.9"),
    ("-a 0.9", "method.kd_weight", "0.9"),
    ("--div 0.9", "method.kd_weight", "0.9"),
    ("-d 0.9", "method.kd_weight", "0.9"),
    ("--beta 200", "method.weight", "200"),
    ("-b 200", "method.weight", "200"),
    ("--kd_T 3", "method.kd_temperature", "3"),
    ("--feat_dim 64", "method.feat_dim", "64"),
    ("--nce_k 4096", "method.nce_k", "4096"),
    ("--nce_t 0.1", "method.nce_t", "0.1"),
    ("--nce_m 0.9", "method.nce_m", "0.9"),
    ("--nce_t_s 0.04", "method.nce_t_s", "0.04"),
    ("--nce_t_t 0.1", "method.nce_t_t", "0.1"),
    ("--memory_type momentum", "method.memory_type", "momentum"),
    ("--mode relax", "method.mode", "relax"),
    ("--hint_layer 1", "method.hint_layer", "1"),
    ("--init_epochs 30", "method.init_epochs", "30"),
    ("-f 4", "method.factor", "4"),
    ("--factor 4", "method.factor", "4"),
    ("-s 2.0", "method.soft", "2.0"),
    ("--soft 2.0", "method.soft", "2.0"),
    ("--skip-validation", "run.skip_validation", True),
]  # fmt: skip


def both_ways(line: str) -> list[str]:
    """The line with hyphens, with underscores and with = in its flag."""
    name, _, value = line.partition(" ")
    if not name.startswith("--"):
        return [line]
    ways = {"--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_")}
    return [f"{way} {value}".strip() for way in ways] + ([f"{name}={value}"] if value else [])


@pytest.mark.parametrize(
    ("script", "line", "key", "value"),
    [(script, *row) for script in SCRIPTS for row in SHARED]
    + [("teacher", *row) for row in OF_TEACHERS]
    + [("student", *row) for row in OF_STUDENTS],
)
def test_the_references_flags_are_taken(script: str, line: str, key: str, value: object):
    for way in both_ways(line):
        found = resolved(script, *way.split())
        assert found[key] == value
        assert type(found[key]) is type(value)


def test_a_published_line_of_repdistiller():
    line = "--path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill kd --model_s resnet8x4"
    line += " -r 0.1 -a 0.9 -b 0 --trial 1"
    found = resolved("student", *line.split())
    wanted = {"method.task_weight": "0.1", "method.kd_weight": "0.9", "method.weight": "0", "run.trial": 1}
    assert wanted.items() <= found.items()
    recipe = {
        "optim.epochs": 240,
        "optim.lr": 0.05,
        "optim.decay_epochs": [150, 180, 210],
        "data.batch_size": 64,
    }
    assert recipe.items() <= found.items()


def test_a_published_line_of_simkd():
    line = "--path_t ./t.pth --distill=rrd --model_s=resnet8x4 -c=1 -d 1 -b=1 --dali=gpu --gpu_id=0 --trial 0"
    line += " --multiprocessing-distributed --batch_size 256 --dist-url tcp://127.0.0.1:1 --skip-validation"
    wanted = {"method.name": "rrd", "data.dali": "gpu", "run.distributed": True, "data.batch_size": 256}
    assert wanted.items() <= resolved("student", *line.split()).items()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("line", ["--tb_freq 500", "--tb-freq=500"])
def test_what_the_references_never_used_is_taken_and_said(script: str, line: str):
    assert asked(script, *line.split()).unused == ("--tb-freq",)


def test_weights_become_numbers_of_the_method(train: Train, here: Path):
    said = train("student", *STUDENT, "--distill", "rrd", "-c", "0.5", "-a", "2", "-b", "1e1", "--kd_T", "3",
                 "--nce_k", "64", "--nce_t_s", "0.07", "--dry-run")  # fmt: skip
    assert said.code == 0, said
    shown = yaml.safe_load(said.out)["method"]
    wanted = {
        "task_weight": 0.5,
        "kd_weight": 2.0,
        "weight": 10.0,
        "kd_temperature": 3.0,
        "nce_k": 64,
        "nce_t_s": 0.07,
    }
    assert wanted.items() <= shown.items()
    assert list(here.iterdir()) == []


# ---- what wins


def test_each_level_wins_over_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def rate(*words: object) -> float:
        return float(resolved("student", "--dataset", "shapes", *words)["optim.lr"])

    folder = tmp_path / "configs"
    shutil.copytree(recipes.FOLDER, folder)
    monkeypatch.setattr(recipes, "FOLDER", folder)
    (folder / "datasets" / "shapes.yaml").write_text("rows: []")
    assert rate() == RunConfig().optim.lr == 0.05
    (folder / "datasets" / "shapes.yaml").write_text("rows: [{set: {optim: {lr: 0.11}}}]")
    assert rate() == 0.11
    (folder / "methods").mkdir(exist_ok=True)
    (folder / "methods" / "kd.yaml").write_text("rows: [{set: {optim: {lr: 0.12}}}]")
    assert rate() == 0.12
    assert rate("--distill", "rrd") == 0.11
    (tmp_path / "my.yaml").write_text("optim: {lr: 0.13}")
    given: list[object] = ["--cfg", tmp_path / "my.yaml"]
    assert rate(*given) == 0.13
    for words in (["optim.lr", "0.14"], ["optim.lr=0.14"], ["--options", "optim.lr=0.14"]):
        assert rate(*given, *words) == 0.14
        for flag in ("--learning-rate", "--learning_rate", "--lr"):
            assert rate(flag, "0.15", *given, *words) == 0.15
            assert rate(*given, *words, flag, "0.15") == 0.15


def test_keys_can_be_given_in_every_way(tmp_path: Path):
    (tmp_path / "my.yaml").write_text(
        "data: {dataset: shapes}\noptim: {epochs: 3}\nmethod: {name: rrd, nce_k: 8}\n"
    )
    wanted = resolved("student", "--dataset", "shapes", "--epochs", "3", "--distill", "rrd", "--nce-k", "8")
    wanted["method.nce_k"] = 8
    assert resolved("student", "-cfg", tmp_path / "my.yaml") == wanted
    pairs = ("data.dataset=shapes", "optim.epochs=3", "method.name=rrd", "method.nce_k=8")
    wanted["method.nce_k"] = "8"
    assert resolved("student", "--options", *pairs) == wanted
    assert resolved("student", "--options", *pairs[:2], "--options", *pairs[2:]) == wanted
    assert resolved("student", *(word for pair in pairs for word in pair.split("="))) == wanted
    assert resolved("student", *pairs) == wanted


def test_a_value_may_hold_what_looks_like_a_key():
    assert resolved("teacher", "data.root", "/a=b")["data.root"] == "/a=b"
    assert resolved("teacher", "--options", "data.root=/a=b_c")["data.root"] == "/a=b_c"
    assert resolved("teacher", "--data", "/a_b/--c")["data.root"] == "/a_b/--c"
    assert resolved("teacher", "--data=/a_b=c")["data.root"] == "/a_b=c"


@pytest.mark.parametrize(
    "flag", [f for f in flags.SHARED_METHOD_FLAGS if f.key != "method.mode"], ids=lambda f: f.key
)
def test_anothers_flag_is_a_warning_and_its_key_an_error(train: Train, here: Path, flag: flags.Flag):
    """The references' scripts give every method every flag."""
    short = flag.key.removeprefix("method.")
    words = [*STUDENT, "--distill", "vanilla", "--dry-run"]
    said = train("student", *words, flag.names.split()[-1], "1")
    assert said.code == 0, said
    assert f"note: --{short.replace('_', '-')} is not read by vanilla" in said.out
    (here / "my.yaml").write_text(f"method: {{{short}: 1}}")
    for given in (["--cfg", "my.yaml"], [flag.key, "1"], ["--options", f"{flag.key}=1"]):
        said = train("student", *words, *given)
        one_line(said, f"unknown key '{flag.key}': vanilla has no such number")


# ---- recipes


@pytest.mark.parametrize("net", ["mobilenetv2", "shuffle_v1", "ShuffleV2", "mobilenet_anything"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_light_nets_get_their_rate_from_a_row(monkeypatch: pytest.MonkeyPatch, dataset: str, net: str):
    """These nets need not be in the registry for their row to be read."""
    monkeypatch.setattr(models, "canonical", lambda name: name)
    given = ("--dataset", dataset, "--model_s", net)
    config = request("student", asked("student", *given)).config
    assert config.optim.lr == 0.01
    (note,) = config.applied
    assert note == f"configs/datasets/{dataset}.yaml: optim.lr=0.01 because light nets diverge at 0.05"
    config = request("student", asked("student", *given, "--learning-rate", "0.05")).config
    assert (config.optim.lr, config.applied) == (0.05, ())
    assert (
        request("student", asked("student", "--dataset", dataset, "--model_s", "resnet8")).config.optim.lr
        == 0.05
    )


@pytest.mark.parametrize("dataset", recipes.datasets())
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_data_sets_recipe_is_whole(script: str, dataset: str):
    config = request(script, asked(script, "--dataset", dataset)).config
    assert config.student.model in models.names()
    assert config.method["name"] == (methods.PLAIN if script == "teacher" else methods.DEFAULT)


# ---- the record of a run


def test_a_runs_record_resolves_to_itself(trained: Path):
    record = yaml.safe_load((trained / "config.yaml").read_text())
    found = request("teacher", asked("teacher", "--cfg", trained / "config.yaml")).config
    assert configs.tree(found) == record


def test_a_students_record_resolves_to_itself_and_makes_the_same_run(train: Train, teacher: Path):
    given = (*STUDENT, "--path-t", "teacher", "--distill", "rrd", "--nce-k", "64", "--seed", "3")
    assert train("student", *given, "--out", "one").code == 0
    record = yaml.safe_load(Path("one/config.yaml").read_text())
    found = request("student", asked("student", "--cfg", "one/config.yaml")).config
    assert configs.tree(found) == record
    assert train("student", "--cfg", "one/config.yaml", "--out", "two").code == 0
    one, two = (torch.load(f"{name}/best.pt", weights_only=True)["model"] for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_runs_get_names_every_file_system_takes():
    def name(script: str, *words: object) -> str:
        config = request(script, asked(script, *words)).config
        section = {"name": config.method["name"], "task_weight": 0.1, "kd_weight": 1e-5, "weight": 123456.789}
        section |= {key: float(value) for key, value in config.method.items() if key != "name"}
        path = default_name(RunConfig(**(vars(config) | {"method": section})))
        assert path.parts[:2] == ("save", f"{script}s")
        assert len(path.parts) == 3
        return path.name

    rows: list[tuple[object, ...]] = [
        (), ("--seed", "1"), ("--trial", "1"), ("-c", "0.2"), ("-d", "0.2"), ("-b", "0.2"), ("--distill", "rrd"),
        ("--model-s", "resnet14"), ("--model-t", "resnet110"), ("--dataset", "shapes"),
        ("--distill", "my.own.module:Method"),
    ]  # fmt: skip
    names = [name("student", *row) for row in rows] + [
        name("teacher"),
        name("teacher", "--model", "wrn_40_2"),
    ]
    assert len({each.lower() for each in names}) == len(names)
    for each in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*[A-Za-z0-9]", each)
        assert len(each) < 200


# ---- help


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_and_starts_at_once(script: str, tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    probe = (
        "import sys, json\n"
        "from fastkd.cli.train import main\n"
        "try:\n"
        f"    main({script!r}, 'train_{script}.py', ['--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "sys.stderr.write(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, env=environment(COLUMNS="80"),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = set(json.loads(done.stderr))
    assert not loaded & {"torch", "numpy", "numba", "PIL", "tensorboard"}
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.0, f"--help took {spent:.2f} s of CPU time"
    for name in spellings(script) - {"--tb-freq"}:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", done.stdout), name
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_of_the_scripts_themselves(tmp_path: Path):
    for script in SCRIPTS:
        done = subprocess.run(
            [sys.executable, str(ROOT / f"train_{script}.py"), "--help"],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(f"usage: train_{script}.py [flags] [KEY VALUE ...]")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_writes_nothing(train: Train, here: Path, script: str):
    given = TEACHER if script == "teacher" else STUDENT
    said = train(script, *given, "--out", "run", "--dry-run")
    assert said.code == 0, said
    assert "nothing was written" in said.out
    assert ("missing here: teacher" in said.out) == (script == "student")
    assert list(here.iterdir()) == []
    shown = yaml.safe_load(said.out)
    found = request(script, asked(script, *given, "--out", "run")).config
    assert shown | {"method": {}} == configs.tree(found) | {"method": {}}
