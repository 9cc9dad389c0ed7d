"""On the built-in pictures: is the bigger net better, and does distillation help? Same settings for every arm.

python benchmarks/distillation_helps.py [--seeds 3] [--methods kd rrd] [--json PATH] [--quick]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared.measure import arguments, finish


def train(script: str, out: Path, *flags: str) -> float:
    """The last epoch's top-1."""
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / script), "--dataset", "shapes", "--out", str(out), *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return float(json.loads((out / "summary.json").read_text())["last_top1"])


def main() -> None:
    made = arguments(__doc__ or "")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--methods", nargs="+", default=["kd", "rrd"])
    space = made.parse_args()
    short = ["--epochs", "1", "--options", "data.train_size=640", "data.test_size=200"] if space.quick else []
    arms = ["vanilla", *space.methods]
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher")
        samples = {"teacher": [train("train_teacher.py", teacher, *short)]}
        for arm in arms:
            samples[arm] = [
                train("train_student.py", Path(folder, f"{arm}{seed}"), "--distill", arm, "--path-t", str(teacher),
                      "--seed", str(seed), *short)
                for seed in range(space.seeds)
            ]  # fmt: skip
    alone = samples["vanilla"]
    figures = {"teacher_minus_student": samples["teacher"][0] - statistics.mean(alone)}
    for arm in space.methods:
        gains = [a - b for a, b in zip(samples[arm], alone, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        figures |= {
            f"{arm}_gain": statistics.mean(gains),
            f"{arm}_gain_over_standard_error": statistics.mean(gains) / error,
        }
    finish(space, samples, figures, "top-1 %")


if __name__ == "__main__":
    main()
