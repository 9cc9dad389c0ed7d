"""fastkd eval: score runs and files of weights on a test split."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastkd import config as configs
from fastkd.cli.flags import Parser, hyphens
from fastkd.recipes import pairs, read_yaml, resolve
from loaders.errors import UserError


def main(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd eval",
        allow_abbrev=False,
        description="Scores checkpoints on the test split; a run directory stands for its last.pt and best.pt.",
    )
    made.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="run directories, or files of weights"
    )
    made.add_argument(
        "-c", "--ckpt", type=Path, action="append", default=[], metavar="PATH", help="the same, as a flag"
    )
    made.add_argument(
        "-m", "--model", metavar="NAME", help="the net; default: what the file says, else what fits it"
    )
    made.add_argument("-d", "--dataset", metavar="NAME", help="default: what the file says")
    made.add_argument("-bs", "--batch-size", default="500", metavar="N")
    made.add_argument("--data", metavar="DIR", help="folder of the data; default: ./data")
    made.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda or cpu")
    made.add_argument("--amp", default="auto", metavar="NAME", help="auto, off, bf16 or fp16")
    made.add_argument("--options", nargs="+", default=[], metavar="K=V", help="such as data.num_classes=20")
    made.add_argument("--json", action="store_true", help="as one json list")
    space = made.parse_args(hyphens(arguments))
    files = [file for path in [*space.paths, *space.ckpt] for file in _files(path)]
    if not files:
        raise UserError("nothing to score; give a run directory or a file of weights")
    rows = [_score(file, space) for file in files]
    if space.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["path"]) for row in rows)
    print(
        f"{'file':<{width}}  {'net':<12} {'data':<10} {'epoch':>5}  {'top-1':>6}  {'top-5':>6}  {'loss':>7}"
    )
    for row in rows:
        print(
            f"{row['path']:<{width}}  {row['model']:<12} {row['dataset']:<10} {row['epoch'] or '-':>5}  "
            f"{row['top1']:6.2f}  {row['top5']:6.2f}  {row['loss']:7.4f}"
        )
    return 0


def _files(path: Path) -> list[Path]:
    from fastkd.engine.rundir import BEST, LAST

    if not path.is_dir():
        return [path]
    found = [path / name for name in (LAST, BEST) if (path / name).exists()]
    if not found:
        raise UserError(f"{path} holds no {LAST} or {BEST}; give a run directory or a file of weights")
    return found


def _score(file: Path, space: argparse.Namespace) -> dict[str, Any]:
    from fastkd.engine import build, deployed, machine, teachers
    from fastkd.engine.distiller import Precision
    from fastkd.engine.evaluate import evaluate
    from fastkd.engine.parallel import Ranks

    weights = teachers.read(file, "eval")
    record = file.with_name("config.yaml")
    of_run = configs.flat(read_yaml(record)) if record.exists() else {}
    asked = {"data.dataset": weights.about.get("dataset")} | {
        k: v for k, v in of_run.items() if k.startswith("data.")
    }
    asked |= {"data.test_batch_size": space.batch_size, "run.device": space.device, "run.amp": space.amp}
    given = {"data.dataset": space.dataset, "data.root": space.data, "teacher.model": space.model}
    asked |= {key: value for key, value in given.items() if value} | pairs(space.options)
    if not asked["data.dataset"]:
        raise UserError(f"{file} does not say which data set it is for; give --dataset")
    config = resolve("teacher", asked).config
    device = machine.device(config)
    precision = Precision(device, machine.dtype(config, device))
    _, test = build.open_loaders(config, device, precision.dtype, Ranks())
    name = teachers.name_of(config, weights)
    net = deployed.of(teachers.load(config, weights, test.spec.num_classes), weights, test.spec)
    score = evaluate(net.to(device), test, precision)
    return {
        "path": str(file), "model": name, "dataset": config.data.dataset, "epoch": weights.about.get("epoch"),
        "samples": test.spec.num_samples, "top1": score.top1, "top5": score.top5, "loss": score.loss,
    }  # fmt: skip
