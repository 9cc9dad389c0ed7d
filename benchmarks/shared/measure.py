"""Side-by-side timing: the contestants take turns, round after round, so that a machine's drift hits all alike."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastkd.engine import machine

Samples = dict[str, list[float]]


def arguments(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--json", type=Path, metavar="PATH", help="write machine, versions, samples and ratios there"
    )
    made.add_argument("--quick", action="store_true", help="few short rounds: does it run, not how fast")
    return made


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Samples:
    """Each call returns its own rate or time; the first round is thrown away."""
    samples: Samples = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            value = run()
            if number:
                samples[name].append(value)
        if sys.stderr.isatty():
            sys.stderr.write(f"\rround {number}/{rounds}" + ("\n" if number == rounds else ""))
    return samples


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def finish(space: argparse.Namespace, samples: Samples, ratios: Mapping[str, float], unit: str) -> None:
    for name, values in samples.items():
        print(
            f"{name:<28} median {statistics.median(values):12,.4g} {unit}   min {min(values):,.4g}   max {max(values):,.4g}"
        )
    for name, value in ratios.items():
        print(f"{name:<28} {value:.3f}")
    if space.json:
        where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        about: dict[str, Any] = machine.record(where, torch.float32)
        about.pop("precision")
        command = about.pop("command")
        versions = {
            key: about.pop(key)
            for key in ("python", "torch", "numpy", "numba", "fastkd", "git")
            if key in about
        }
        content = {
            "machine": about,
            "versions": versions,
            "command": command,
            "unit": unit,
            "samples": samples,
            "ratios": dict(ratios),
        }
        space.json.write_text(json.dumps(content, indent=1) + "\n")
