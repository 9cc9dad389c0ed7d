"""Runs read back from their folders, and shown: a table for the terminal and one self-contained page."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fastkd import page
from fastkd.charts import clean
from fastkd.config import flat
from loaders.errors import UserError

# Runs that differ in nothing else are one row with a spread: repeats, and where things lay.
_REPEATS = {"run.seed", "run.trial", "run.out", "run.gpu_id", "run.dist_url", "run.print_freq"}
_REPEATS |= {"run.save_freq", "data.root", "data.download", "applied"}
_TERMINAL = 80
_GIVE = "give the folder that a training run wrote"
_SKIP = "restore it or leave this run out"
_NOTE = (
    "last: last epoch; best: best epoch (chosen on the test set); gain: last top-1 over the student alone "
    "with the same net, data set and epochs; {}: standard deviation over n runs"
)


@dataclass(frozen=True, kw_only=True)
class Run:
    folder: Path
    dataset: str
    net: str
    teacher: str  # '' for a run without one
    method: str | None  # None for a teacher's own training
    planned: int  # epochs
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]  # one row per epoch, ordered
    summary: Mapping[str, Any] | None  # None while the run is in progress

    @property
    def progress(self) -> str:
        return f"{self.epochs[-1]['epoch'] if self.epochs else 0}/{self.planned}"

    def series(self, name: str) -> dict[int, float]:
        """Value by epoch, without the epochs that did not record it."""
        return {row["epoch"]: v for row in self.epochs if (v := _number(row.get(name))) is not None}


class Stat(NamedTuple):
    mean: float | None = None
    std: float | None = None  # None for a single run

    @staticmethod
    def of(values: Sequence[float | None]) -> Stat:
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            return Stat()
        if not all(map(math.isfinite, known)):
            return Stat(math.nan)
        return Stat(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


class Row(NamedTuple):
    """The runs of one configuration, over its seeds and trials."""

    runs: tuple[Run, ...]
    title: str
    note: str  # what sets it apart: that it is unfinished, settings its namesakes do not share
    label: str  # title and note, shortened for a chart
    stats: Mapping[str, Stat]
    gain: Stat
    alone: bool

    def cells(self, plus_minus: str) -> tuple[list[str], list[str]]:
        """What both tables show after the names: the values, and the spread of each or ''."""
        run, last, best = self.runs[0], self.stats["last_top1"], self.stats["best_top1"]
        values = [_fixed(last.mean), _fixed(best.mean), _fixed(self.gain.mean, "+.2f")]
        spreads = ["" if s.std is None else plus_minus + _fixed(s.std) for s in (last, best, self.gain)]
        epochs = _cut(str(run.planned) if run.summary is not None else run.progress, 11)
        speed = [_clock(self.stats["seconds"].mean), _fixed(self.stats["images_per_second"].mean, ".0f")]
        return [str(len(self.runs)), *values, epochs, *speed], ["", *spreads, "", "", ""]


def read_run(folder: Path) -> Run:
    """The run in `folder`, finished or not. A folder that is no run, or a damaged file, is a UserError."""
    asked = f"report on '{folder}'"
    if not (folder / "config.yaml").is_file():
        found = "it holds no config.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{asked}: {found}; {_GIVE}")
    config = _mapping(folder / "config.yaml", asked, yaml.safe_load)
    finished = (folder / "summary.json").exists()
    summary = _mapping(folder / "summary.json", asked, json.loads) if finished else None
    settings = flat(config)
    kind = settings.get("kind")
    if kind not in ("teacher", "student"):
        raise UserError(f"{asked}: config.yaml has kind {kind!r}, not 'teacher' or 'student'; {_GIVE}")
    trained = "student.model" if kind == "student" or settings.get("student.model") else "teacher.model"
    needed: dict[str, type] = {"data.dataset": str, trained: str, "optim.epochs": int}
    for name, wanted in (needed | ({"method.name": str} if kind == "student" else {})).items():
        if not isinstance(settings.get(name), wanted):
            raise UserError(f"{asked}: config.yaml has {settings.get(name)!r} for {name}; {_GIVE}")
    return Run(
        folder=folder,
        dataset=settings["data.dataset"],
        net=settings[trained],
        teacher=str(settings.get("teacher.model") or "") if kind == "student" else "",
        method=settings["method.name"] if kind == "student" else None,
        planned=settings["optim.epochs"],
        config=config,
        env=_mapping(folder / "env.json", asked, json.loads),
        epochs=_epochs(folder / "metrics.jsonl", asked, finished),
        summary=summary,
    )


def _parsed(path: Path, asked: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise UserError(f"{asked}: cannot read {path.name} ({found}); {_SKIP}") from None


def _mapping(path: Path, asked: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    found = _parsed(path, asked, parse)
    if not isinstance(found, dict):
        raise UserError(f"{asked}: {path.name} holds no mapping of names to values; {_SKIP}")
    return found


def _epochs(path: Path, asked: str, finished: bool) -> tuple[Mapping[str, Any], ...]:
    if not finished and not path.exists():
        return ()
    text: str = _parsed(path, asked, str)
    lines = text.splitlines()
    found: dict[int, Mapping[str, Any]] = {}
    for i, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if i == len(lines) and not text.endswith("\n") and not finished:
                break  # the trainer is writing this line now
            row = None
        if not isinstance(row, dict) or type(row.get("epoch")) is not int:
            raise UserError(f"{asked}: line {i} of {path.name} is no epoch's record; {_SKIP}")
        found[row["epoch"]] = row  # an epoch repeated after a resume counts once, as it was last trained
    return tuple(found[epoch] for epoch in sorted(found))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, float) or (type(value) is int and abs(value) < 1 << 60) else None


def _settings(run: Run) -> dict[str, str]:
    return {name: clean(value) for name, value in flat(run.config).items() if name not in _REPEATS}


def _alone(run: Run) -> bool:
    from fastkd.methods import PLAIN  # here, so that reading runs does not load the methods

    return run.method == PLAIN


def _facts(run: Run) -> dict[str, float | None]:
    """The summary's numbers; where it has none, or there is none yet, what the epochs give."""
    names = ("test_top1", "test_top5", "seconds", "images_per_second", "data_wait")
    top1, top5, seconds, rate, wait = (list(run.series(name).values()) for name in names)
    facts = {
        "last_top1": top1[-1] if top1 else None,
        "best_top1": max(filter(math.isfinite, top1), default=None),
        "last_top5": top5[-1] if top5 else None,
        "seconds": sum(seconds) if seconds else None,
        "images_per_second": sum(rate) / len(rate) if rate else None,
        "wait_percent": 100 * sum(wait) / len(wait) if wait else None,
    }
    return facts | {name: v for name in facts if (v := _number((run.summary or {}).get(name))) is not None}


def _rows(runs: Iterable[Run]) -> list[Row]:
    """One row per configuration: by data set the teachers, then each net, the student alone first."""
    alike: dict[tuple[object, ...], dict[Path, Run]] = {}
    for run in runs:
        folder = run.folder.resolve()
        # Half a run must not enter the mean of whole ones; a folder given twice is still one run.
        apart = None if run.summary is not None else folder
        alike.setdefault((apart, *sorted(_settings(run).items())), {})[folder] = run
    if not alike:
        raise UserError("report: no run was given; name the folder of at least one")
    groups = [tuple(group.values()) for group in alike.values()]
    groups.sort(key=lambda g: (g[0].dataset, g[0].method is not None, g[0].net, not _alone(g[0])))
    return [_row(group, groups) for group in groups]


def _row(group: tuple[Run, ...], groups: Sequence[tuple[Run, ...]]) -> Row:
    run = group[0]
    title = "teacher" if run.method is None else clean(run.method.rpartition(":")[2])
    title = "student alone" if _alone(run) else title
    me = (run.dataset, run.net, run.method)
    same = [_settings(g[0]) for g in groups if (g[0].dataset, g[0].net, g[0].method) == me]
    own = {k: v for k, v in _settings(run).items() if any(other.get(k) != v for other in same)}
    own.pop("optim.epochs" if run.summary is None else "", None)  # its progress says that already
    notes = [f"{name.removesuffix('.model').rpartition('.')[2]}={value}" for name, value in own.items()]
    label = [title] if run.method is not None else [title, clean(run.net)]
    state = [f"unfinished (epoch {run.progress})"] if run.summary is None else []
    if state:
        label.append(run.progress)
        notes.append(f"seed={clean(flat(run.config).get('run.seed'))}")
    facts = [_facts(each) for each in group]
    stats = {name: Stat.of([each[name] for each in facts]) for name in facts[0]}
    gain, note, short = _gain(group, groups), ", ".join(state + notes), " ".join(label + notes)
    return Row(group, title, note, short, stats, gain, _alone(run))


def _gain(group: tuple[Run, ...], groups: Sequence[tuple[Run, ...]]) -> Stat:
    """Over the student alone; of several of those, over the one with the most settings in common."""
    run, own = group[0], _settings(group[0]).items()
    wanted = (run.dataset, run.net, run.planned)
    rivals = [g for g in groups if _alone(g[0]) and (g[0].dataset, g[0].net, g[0].planned) == wanted]
    rivals = [g for g in rivals if g[0].summary is not None]
    if run.method is None or run.summary is None or _alone(run) or not rivals:
        return Stat()
    rival = max(rivals, key=lambda g: len(own & _settings(g[0]).items()))
    ours, theirs = (Stat.of([_facts(each)["last_top1"] for each in g]) for g in (group, rival))
    if ours.mean is None or theirs.mean is None:
        return Stat()
    known = ours.std is not None and theirs.std is not None
    return Stat(ours.mean - theirs.mean, math.hypot(ours.std or 0.0, theirs.std or 0.0) if known else None)


def _fixed(value: float | None, form: str = ".2f") -> str:
    text = "-" if value is None else f"{value:{form}}"
    return text if value is None or len(text) <= 7 else f"{value:.0e}"


def _clock(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < 1e8:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    short = f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    return short if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def table(runs: Iterable[Run]) -> str:
    """The results in 80 columns: a line per configuration, below it what sets it apart and its spread."""
    rows = _rows(runs)
    cells = [row.cells("+-") for row in rows]
    head = ["n", "last", "best", "gain", "epochs", "time", "img/s"]
    columns = zip(head, *(half for both in cells for half in both), strict=True)
    widths = [max(map(len, column)) for column in columns]
    room = _TERMINAL - sum(widths) - 2 * len(widths) - 2
    net = min(max(3, *(len(_cut(row.runs[0].net, room)) for row in rows)), max(room // 2, 3))
    run = min(max(len(row.title) for row in rows), room - net)

    def line(name: str, of: str, numbers: Sequence[str]) -> str:
        right = "".join(f"  {text:>{width}}" for text, width in zip(numbers, widths, strict=True))
        return f"{_cut(name, run):{run}}  {_cut(of, net):{net}}{right}".rstrip()

    out: list[str] = []
    for i, (row, (values, spreads)) in enumerate(zip(rows, cells, strict=True)):
        dataset = row.runs[0].dataset
        if i == 0 or dataset != rows[i - 1].runs[0].dataset:
            title = _cut(f"{dataset}, top-1 in percent", _TERMINAL)
            out += ["", title, line("run", "net", head), "-" * len(line("run", "net", head))]
        out.append(line(row.title, row.runs[0].net, values))
        if row.note:
            out.append(_cut(f"  {row.note}", _TERMINAL))
        if any(spreads):
            out.append(line("", "", spreads))
    return "\n".join([*out[1:], "", textwrap.fill(_NOTE.format("+-"), _TERMINAL - 2)])


def _cut(text: str, width: int) -> str:
    text = clean(text).encode("ascii", "backslashreplace").decode()  # a column a character
    return text if len(text) <= width else text[: width - 2] + ".."


def write_html(runs: Iterable[Run], path: Path) -> None:
    """The page, complete in one file. It replaces an older one only once it is wholly on disk."""
    text = page.page(_rows(runs), _NOTE.format("\u00b1")).encode("utf-8", "replace")
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with part.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"report to '{path}': {error.strerror}; name a file in a writable folder") from None
    finally:
        with contextlib.suppress(OSError):  # it is gone once it has become the page
            part.unlink()
