"""The console command: fastkd train-teacher | train-student | eval | cache | report | methods | models | doctor | bench."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fastkd import __version__
from fastkd.cli.exits import exit_code
from loaders.errors import UserError, nearest

# name -> (module with main(arguments) -> exit code, what it does)
COMMANDS = {
    "train-teacher": ("", "train a net with labels alone (the same as train_teacher.py)"),
    "train-student": ("", "distil a teacher into a student (the same as train_student.py)"),
    "eval": ("fastkd.cli.evaluate", "score a checkpoint or a run on a data set's test split"),
    "cache": ("fastkd.cli.cache", "a teacher's stored answers: build, verify, info, gc"),
    "report": ("fastkd.cli.report", "compare runs: a table, and one page of html"),
    "methods": ("fastkd.cli.lists", "every --distill name, what it needs and its numbers"),
    "models": ("fastkd.cli.lists", "every net, with parameters and taps"),
    "doctor": ("fastkd.cli.doctor", "versions, devices, and which loaders and extras work here"),
    "bench": ("fastkd.cli.bench", "images/s of the loader and of the training step for a run's flags"),
}


def usage() -> str:
    lines = [f"  {name:<14} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: fastkd COMMAND [flags]   (fastkd COMMAND --help says more)", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = words
    if name in ("-V", "--version"):
        print(f"fastkd {__version__}")
        return 0
    if name.startswith("train-") and name in COMMANDS:
        from fastkd.cli import train

        return train.main(name.removeprefix("train-"), f"fastkd {name}", rest)
    return exit_code(f"fastkd {name}", lambda: _run(name, rest))


def _run(name: str, rest: list[str]) -> int:
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}")
    module = importlib.import_module(COMMANDS[name][0])
    entry = module.ENTRIES[name] if "ENTRIES" in vars(module) else module.main
    return int(entry(rest))
