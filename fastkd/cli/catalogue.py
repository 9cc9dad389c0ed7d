"""METHODS.md: what every method reads, trains and costs, and its numbers, from the code and from what was measured."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from fastkd import methods, models, recipes
from fastkd.engine import build
from fastkd.method import LOGITS, POOLED, Method, Needs, Setting
from loaders import datasets

MEASURED = (
    recipes.PACKAGE.parent / "benchmarks" / "results" / "methods.json"
)  # benchmarks/methods.py writes it
COLUMNS = (
    "method", "student's taps", "of the teacher", "also reads", "trained besides the student",
    "teacher cache", "graph-safe", "phases before it", "cost", "source",
)  # fmt: skip
NEVER = "never: "


class Entry(NamedTuple):
    name: str
    method: Method

    @property
    def doc(self) -> str:
        return inspect.cleandoc(type(self.method).__doc__ or "")


def page() -> str:
    """The whole file."""
    teacher = recipes.resolve("teacher", {}).config.student.model
    first = recipes.resolve("student", {"teacher.model": teacher}).config
    entries = [Entry(name, method_of(name, teacher)) for name in methods.names()]
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    lines = [
        "# Methods",
        "",
        "Made by `fastkd methods --markdown > METHODS.md`; a test compares the two. "
        f"What depends on the nets is said for {teacher} -> {first.student.model} on {first.data.dataset}, "
        f"batch {first.data.batch_size}.",
        "",
        *legend(measured),
        "",
        table(entries, measured.get("ratios", {})),
        "",
    ]
    for entry in entries:
        lines += section(entry)
    return "\n".join(lines)


def legend(measured: Mapping[str, Any]) -> list[str]:
    cost = "*cost*: time of a step and peak memory, as multiples of plain kd's"
    if measured:
        cost += f" on {measured['machine']['device_name']} (`benchmarks/results/{MEASURED.name}`)"
    return [
        "- *student's taps*, *of the teacher*: all that is computed for it. Soft labels (`kd_weight` above 0) read the "
        "teacher's logits too.",
        "- *trained besides the student*: parameters; those of a phase are trained in it alone.",
        "- *teacher cache*: the largest that `--teacher-cache` holds for it: logits, pooled features or whole maps. A "
        "phase reads it where it holds what the phase needs, else the net is asked live: every view's maps of all stages would "
        "be terabytes on a real data set.",
        "- *graph-safe*: a step never waits for the device.",
        f"- {cost}; `benchmarks/methods.py` measures it.",
    ]


def method_of(name: str, teacher: str) -> Method:
    """As a run on the default data set would build it. The nets have shapes and no numbers."""
    request = recipes.resolve("student", {"method.name": name, "teacher.model": teacher})
    config = request.config
    own, _ = build.method_config(request)
    data = datasets.expected(build.wanted(config))
    with torch.device("meta"):
        nets = [
            models.build(net, data.num_classes, data.image_size) for net in (config.student.model, teacher)
        ]
    setting = Setting(
        student=nets[0],
        teacher=nets[1],
        data=data,
        batch_size=config.data.batch_size,
        gather=lambda rows: rows,
    )
    return methods.load(name)(own, setting)


# ---- the table


def table(entries: Iterable[Entry], ratios: Mapping[str, float]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row(entry, ratios) for entry in entries)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(entry: Entry, ratios: Mapping[str, float]) -> list[str]:
    method, needs, others = entry.method, entry.method.needs, other_names(entry.name)
    phases = method.phases()
    own = sum(p.numel() for p in method.parameters() if p.requires_grad)
    of_phases = [sum(p.numel() for p in phase.objective.parameters()) for phase in phases]
    epochs = [
        f"{phase.epochs} epochs{'' if phase.trains_student else ', the student waits'}" for phase in phases
    ]
    cells = [
        f"[{entry.name}](#{entry.name})" + (f" ({', '.join(others)})" if others else ""),
        with_phases(", ".join(needs.student), [", ".join(p.objective.needs.student) for p in phases]),
        with_phases(", ".join(needs.teacher), [", ".join(p.objective.needs.teacher) for p in phases]),
        also_reads(needs),
        with_phases(f"{own:,}", [f"{count:,}" for count in of_phases]),
        with_phases(
            cacheable(needs),
            [
                "read too" if {*phase.objective.needs.teacher} <= {*needs.teacher} else "asked live"
                for phase in phases
            ],
        ),
        "yes" if needs.graph_safe else f"no: {why_not_graph_safe(entry.doc)}",
        "; ".join(epochs),
        with_phases(
            cost(ratios, entry.name),
            [cost(ratios, f"{entry.name}, phase {n + 1}") for n in range(len(phases))],
        ),
        citation(entry.doc),
    ]
    return [cell.replace("|", "\\|") or "-" for cell in cells]


def with_phases(own: str, of_phases: Iterable[str]) -> str:
    return "; ".join([own or "-", *(f"phase {n}: {text or '-'}" for n, text in enumerate(of_phases, 1))])


def other_names(name: str) -> list[str]:
    return sorted(alias for alias, target in methods.ALIASES.items() if target == name)


def also_reads(needs: Needs) -> str:
    found = ["two views of a picture"] if needs.views > 1 else []
    found += ["which pictures they are"] if needs.indices else []
    found += [f"{needs.negatives:,} negatives a picture"] if needs.negatives else []
    return ", ".join(found)


def cacheable(needs: Needs) -> str:
    """What a cache holds for it, or why there can be none."""
    if needs.live_teacher:
        return f"{NEVER}the teacher is shown other tensors than the pictures"
    if needs.views > 1:
        return f"{NEVER}the second view of a picture is a new one each time"
    if not needs.teacher:
        return "not asked"
    if set(needs.teacher) - {LOGITS, POOLED}:
        return "maps"
    return POOLED if POOLED in needs.teacher else LOGITS


def why_not_graph_safe(doc: str) -> str:
    found = re.search(r"^Not graph_safe: (.+?)(?:\n\n|\Z)", doc, re.S | re.M)
    return one_line(found[1]) if found else "for no reason given"


def cost(ratios: Mapping[str, float], name: str) -> str:
    if f"time/{name}" not in ratios:
        return "not measured"
    return f"{ratios[f'time/{name}']:.2f} x time, {ratios[f'memory/{name}']:.2f} x memory"


def citation(doc: str) -> str:
    return one_line(doc.split("\n\n")[0])


def one_line(text: str) -> str:
    return " ".join(text.split())


# ---- a section a method


def section(entry: Entry) -> list[str]:
    config = entry.method.Config()
    numbers = [f"`{field.name}` {shown(getattr(config, field.name))}" for field in dataclasses.fields(config)]
    lines = [f"## {entry.name}", "", "```text", entry.doc, "```", "", f"Numbers: {', '.join(numbers)}.", ""]
    found = [recipe(row) for row in recipes.rows("methods", entry.name)]
    if found:
        lines += [f"Recipe, `configs/methods/{entry.name}.yaml`, later rows winning:", "", *found, ""]
    return lines


def recipe(row: recipes.Row) -> str:
    cases = [
        f"{key} {' or '.join(word or 'not given' for word in value.split('|'))}"
        for key, value in row.when.items()
    ]
    values = ", ".join(f"`{key}` {shown(value)}" for key, value in row.set.items())
    return f"- {', '.join(cases) or 'always'}: {values}" + (f" ({row.why})" if row.why else "")


def shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(each)}" for key, each in value.items()) or "nothing"
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return "not set" if value is None else str(value)
