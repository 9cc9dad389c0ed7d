"""fastkd cache: a teacher's stored answers, built, checked, shown and tidied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastkd.cli import flags
from fastkd.cli.flags import Parser, hyphens
from loaders.errors import UserError, nearest

USAGE = """usage: fastkd cache COMMAND [flags]   (fastkd cache COMMAND --help says more)

  build          ask the teacher about every view of every picture, and go on
                 where that was stopped; takes the flags of train_student.py
  verify DIR     check every file's checksum, and with --path-t recompute some of
                 the answers; exit 1 if anything is wrong
  info [DIR..]   what a cache was made of and how full it is (default: all caches
                 under save/caches)
  gc [DIR..]     merge small files, remove damaged ones and what killed writers
                 left; no sound answer is lost"""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, *rest = arguments
    commands = {"build": _build, "verify": _verify, "info": _info, "gc": _gc}
    if name not in commands:
        raise UserError(f"unknown command 'cache {name}'{nearest(name, commands)}")
    return commands[name](rest)


def _build(arguments: list[str]) -> int:
    asked = flags.read("student", "fastkd cache build", arguments)
    from fastkd.engine import filling
    from fastkd.recipes import resolve

    filling.fill(resolve("student", asked.values))
    return 0


def _verify(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd cache verify", allow_abbrev=False, description="Is a cache sound? Exit 1 if not."
    )
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument("--path-t", metavar="PATH", help="the teacher: recompute some answers with it")
    made.add_argument("--data", metavar="DIR", help="folder of the data; default: ./data")
    made.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda or cpu")
    made.add_argument(
        "--samples", type=int, default=256, metavar="N", help="how many of each field (default 256)"
    )
    space = made.parse_args(hyphens(arguments))
    if space.samples < 1:
        raise UserError(f"--samples {space.samples}: it must be at least 1")
    from fastkd.teacher import tidy

    damaged = tidy.damage(space.folder)
    for path, reason in damaged.items():
        print(f"{path}: damaged: {reason}")
    for row in tidy.content(space.folder):
        print(
            f"{row.part.split}/{row.part.field}: {row.segments} segments, {row.rows:,} views, {row.bytes / 1e6:,.1f} MB"
        )
    if damaged:
        print(f"{len(damaged)} damaged: the next run sets them aside and computes their views anew")
        return 1
    print("every checksum matches")
    return (
        _recompute(space.folder, space.path_t, space.data, space.device, space.samples) if space.path_t else 0
    )


def _recompute(folder: Path, path: str, data: str | None, device: str, samples: int) -> int:
    from fastkd.engine import filling

    asked = {"teacher.path": path, "run.device": device} | ({"data.root": data} if data else {})
    wrong, rows, largest = 0, 0, 0.0
    for found in filling.recompute(folder, asked, samples):
        rows, largest = rows + found.rows, max(largest, found.largest)
        if not found.largest <= found.allowed:
            wrong += 1
            print(
                f"{found.segment}: wrong: {found.largest:.2g} of an answer's largest number away from the teacher's"
            )
    print(f"{rows} answers recomputed; largest difference {largest:.2g} of an answer's largest number")
    return 1 if wrong else 0


def _folders(given: Sequence[Path]) -> list[Path]:
    from fastkd.engine.caches import CACHES

    found = list(given) or sorted(p for p in CACHES.glob("*") if p.is_dir())
    if not found:
        raise UserError(f"there is no cache under {CACHES}; name its folder")
    return found


def _info(arguments: list[str]) -> int:
    made = Parser(prog="fastkd cache info", description="What a cache was made of, and how full it is.")
    made.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    space = made.parse_args(arguments)
    from fastkd.teacher import manifest, tidy

    for folder in _folders(space.folders):
        facts = manifest.read(folder)
        data, teacher, views = facts["data"], facts["teacher"], facts["views"]["train"]
        print(folder)
        print(f"  teacher  {teacher['model']}, weights {teacher['weights'][:8]}.., in {facts['precision']}")
        print(
            f"  data     {data['dataset']}, {data['train_size']:,} + {data['test_size']:,} pictures, {views['name']}"
        )
        for row in tidy.content(folder):
            print(f"  {row.part.split}/{row.part.field:<8} {row.rows:>12,} views in {row.segments:,} segments, "
                  f"{row.bytes / 1e6:,.1f} MB in {facts['dtype']}")  # fmt: skip
    return 0


def _gc(arguments: list[str]) -> int:
    made = Parser(
        prog="fastkd cache gc", description="Tidies caches that no run is using. No sound answer is lost."
    )
    made.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    space = made.parse_args(arguments)
    from fastkd.teacher import tidy

    for folder in _folders(space.folders):
        done = tidy.tidy(folder)
        for path in done.damaged:
            print(f"{path}: damaged, removed")
        print(f"{folder}: {done.leftovers} leftovers removed, {done.before} segments became {done.after}, "
              f"{done.freed / 1e6:,.1f} MB freed")  # fmt: skip
    return 0
