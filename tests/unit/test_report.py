"""The report: what a run's folder must hold, what the table says, what the page shows and never does."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastkd import charts, report
from fastkd.config import merge, nested
from fastkd.methods import PLAIN
from fastkd.report import Run, read_run, table, write_html
from loaders.errors import UserError

METHOD = "soft"  # any name will do: the report knows none


def write_run(
    folder: Path,
    top1: list[float],
    *,
    finished: bool = True,
    kind: str = "student",
    loss: list[float] | None = None,
    summary: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run's folder; `settings` are dotted config keys with '__' for the dot."""
    config: dict[str, Any] = {
        "kind": kind,
        "data": {"dataset": "shapes"},
        "student": {"model": "small"},
        "teacher": {"model": "" if kind == "teacher" else "large"},
        "method": {} if kind == "teacher" else {"name": METHOD},
        "optim": {"epochs": len(top1), "lr": 0.05},
        "run": {"out": str(folder), "seed": 0, "trial": 0},
    }
    config = merge(config, nested({name.replace("__", "."): value for name, value in settings.items()}))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "env.json").write_text(
        json.dumps({"python": "3.11", "device_name": "A Device"}), encoding="utf-8"
    )
    rows = [
        {
            "epoch": i,
            "lr": 0.05,
            "train_loss": loss[i - 1] if loss else 2.0 / i,
            "test_top1": value,
            "test_top5": min(value + 20, 100.0),
            "images_per_second": 1000.0,
            "seconds": 10.0,
            "data_wait": 0.25,
        }
        for i, value in enumerate(top1, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if finished:
        facts = {
            "last_top1": top1[-1],
            "best_top1": max(top1),
            "seconds": 3700.0,
            "images_per_second": 5000.0,
        }
        (folder / "summary.json").write_text(json.dumps(facts | (summary or {})), encoding="utf-8")
    return folder


def study(root: Path) -> list[Run]:
    """Everything at once: a teacher, seeds, settings, an unfinished run, a diverged one, a single epoch."""
    folders = [
        write_run(root / "t", [50.0, 70.0, 80.0], kind="teacher", student__model="large"),
        *(write_run(root / f"v{s}", [30, 40, 50.0 + s], method__name=PLAIN, run__seed=s) for s in (1, 2, 3)),
        *(write_run(root / f"m{s}", [35, 45, 60.0 + 2 * s], run__seed=s) for s in (1, 2, 3)),
        write_run(root / "hot", [35, 45, 55.0], method__T=9),
        write_run(root / "half", [20.0, 30.0, 40.0], finished=False, method__name="part", optim__epochs=5),
        write_run(root / "nan", [30.0, math.nan, 1.0], loss=[2.0, math.nan, math.nan], method__name="odd"),
        write_run(
            root / "lost", [1.0] * 3, loss=[math.nan] * 3, method__name="gone", summary={"warnings": ["nan!"]}
        ),
        write_run(root / "one", [12.5], data__dataset="other"),
    ]
    return [read_run(folder) for folder in folders]


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def page_of(runs: list[Run], folder: Path) -> str:
    write_html(runs, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


# Reading


def test_read_run_takes_the_facts_of_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", [10.0, 20.0], student__model="tiny", teacher__model="big"))
    assert (run.dataset, run.net, run.teacher, run.method) == ("shapes", "tiny", "big", METHOD)
    assert (run.planned, run.series("test_top1")) == (2, {1: 10.0, 2: 20.0})


def test_a_teachers_net_stands_in_either_section(tmp_path: Path) -> None:
    as_student = write_run(tmp_path / "a", [10.0], kind="teacher", student__model="large")
    as_teacher = write_run(tmp_path / "b", [10.0], kind="teacher", student__model="", teacher__model="large")
    assert read_run(as_student).net == read_run(as_teacher).net == "large"
    assert read_run(as_student).method is None


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.yaml", "kind: [", "config.yaml"),
        ("config.yaml", "- a list\n", "config.yaml holds no mapping"),
        ("config.yaml", "kind: pupil\n", "'pupil', not 'teacher' or 'student'"),
        ("config.yaml", "kind: student\n", "None for data.dataset"),
        ("env.json", "{", "env.json"),
        ("env.json", "[1]", "env.json holds no mapping"),
        ("summary.json", '{"last_top1": ', "summary.json"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch": 2, "test_\n', "line 2 of metrics.jsonl"),
        ("metrics.jsonl", '{"epoch": 1}\n\n', "line 2 of metrics.jsonl"),
        ("metrics.jsonl", '{"test_top1": 3}\n', "line 1 of metrics.jsonl"),
        ("metrics.jsonl", "[" * 100_000 + "\n", "line 1 of metrics.jsonl"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch"', "line 2 of metrics.jsonl"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, file: str, text: str, said: str) -> None:
    folder = write_run(tmp_path / "run", [10.0, 20.0])
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_run(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [10.0])
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_run(folder)


@pytest.mark.parametrize("file", ["env.json", "metrics.jsonl"])
def test_a_missing_file_of_a_finished_run_is_refused(tmp_path: Path, file: str) -> None:
    folder = write_run(tmp_path / "run", [10.0])
    (folder / file).unlink()
    with pytest.raises(UserError, match=re.escape(file)):
        read_run(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.yaml; give the folder"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        read_run(tmp_path / "nowhere")


def test_a_run_in_progress_is_read_up_to_the_line_being_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [10.0, 20.0, 30.0], finished=False, optim__epochs=5)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 4, "test_t')
    run = read_run(folder)
    assert run.progress == "3/5"
    said = table([run])
    assert "unfinished (epoch 3/5)" in said
    assert lines_of(said, METHOD)[0].split()[3:] == ["30.00", "30.00", "-", "3/5", "30s", "1000"]


def test_a_run_before_its_first_epoch_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], finished=False, optim__epochs=5)
    (folder / "metrics.jsonl").unlink()
    runs = [read_run(folder)]
    assert "unfinished (epoch 0/5)" in table(runs)
    assert "no finite value" in page_of(runs, tmp_path)


def test_an_epoch_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [10.0, 20.0], finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "test_top1": 25.0}\n')
    assert read_run(folder).series("test_top1") == {1: 10.0, 2: 25.0}


# The table


def test_seeds_are_one_line_with_mean_spread_and_gain(tmp_path: Path) -> None:
    said = table(study(tmp_path)).splitlines()
    plain = next(i for i, line in enumerate(said) if line.startswith("student alone"))
    assert said[plain].split()[3:] == ["3", "52.00", "52.00", "-", "3", "1h01m", "5000"]
    assert said[plain + 1].split() == ["+-1.00", "+-1.00"]
    ours = next(i for i, line in enumerate(said) if line.startswith(METHOD) and " 64.00 " in line)
    assert said[ours].split()[2:6] == ["3", "64.00", "64.00", "+12.00"]
    assert said[ours + 1].split() == ["+-2.00", "+-2.00", "+-2.24"]  # hypot(2, 1)


def test_other_settings_are_another_line_and_named(tmp_path: Path) -> None:
    said = table(study(tmp_path))
    assert [line.strip() for line in lines_of(said, "  T")] == ["T=9"]
    hot = said.splitlines()[said.splitlines().index("  T=9") - 1]
    assert hot.split()[2:6] == ["1", "55.00", "55.00", "+3.00"]


def test_trials_and_places_do_not_split_a_line(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / f"r{i}", [10.0 + i], run__trial=i)) for i in (1, 2)]
    assert lines_of(table(runs), METHOD)[0].split()[2:4] == ["2", "11.50"]


def test_a_folder_given_twice_is_one_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [10.0])
    assert lines_of(table([read_run(folder), read_run(folder)]), METHOD)[0].split()[2] == "1"


@pytest.mark.parametrize(
    "other",
    [{"data__dataset": "other"}, {"student__model": "tiny"}, {"optim__epochs": 9}, {"finished": False}],
    ids=str,
)
def test_no_gain_over_a_student_alone_that_is_not_comparable(tmp_path: Path, other: dict[str, Any]) -> None:
    plain = write_run(tmp_path / "v", [10.0], method__name=PLAIN, **other)
    run = write_run(tmp_path / "m", [20.0])
    assert lines_of(table(map(read_run, (plain, run))), METHOD)[0].split()[5] == "-"


def test_of_several_students_alone_the_most_alike_is_the_baseline(tmp_path: Path) -> None:
    slow = write_run(tmp_path / "v1", [10.0], method__name=PLAIN, optim__lr=0.01)
    fast = write_run(tmp_path / "v2", [15.0], method__name=PLAIN, optim__lr=0.1)
    run = write_run(tmp_path / "m", [20.0], optim__lr=0.1)
    assert lines_of(table(map(read_run, (slow, fast, run))), METHOD)[0].split()[5] == "+5.00"


def test_a_diverged_run_says_nan(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [10.0, math.nan], summary={"best_top1": 10.0})
    assert lines_of(table([read_run(folder)]), METHOD)[0].split()[3:5] == ["nan", "10.00"]


def test_the_table_is_never_wider_than_a_terminal(tmp_path: Path) -> None:
    extreme = {"last_top1": -1e300, "best_top1": 1e300, "images_per_second": 1e12, "seconds": 9.9e7}
    runs = [
        *study(tmp_path / "a"),
        read_run(write_run(tmp_path / "long", [1.0], student__model="n" * 90, method__name="m" * 90)),
        read_run(
            write_run(tmp_path / "wide", [1.0], method__name="\u6df1\u5ea6\n\x1b[2J", method__note="x" * 200)
        ),
        read_run(
            write_run(tmp_path / "wide2", [1.0], method__name="\u6df1\u5ea6\n\x1b[2J", data__dataset="d" * 99)
        ),
        read_run(write_run(tmp_path / "big", [1.0], summary=extreme, optim__epochs=10**30, method__T=2)),
        *(read_run(write_run(tmp_path / f"far{i}", [1e9 * i], run__seed=i, method__T=3)) for i in (1, 2)),
    ]
    said = table(runs)
    assert max(map(len, said.splitlines())) <= 80
    assert said.isascii()
    assert "\x1b" not in said
    columns = [line.index("img/s") for line in said.splitlines() if line.startswith("run ")]
    assert len(set(columns)) == 1  # aligned over the data sets too


def test_a_method_from_outside_goes_by_its_class(tmp_path: Path) -> None:
    assert lines_of(
        table([read_run(write_run(tmp_path / "r", [1.0], method__name="my.module:Mine"))]), "Mine "
    )


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run was given"):
        table([])
    with pytest.raises(UserError, match="no run was given"):
        write_html([], tmp_path / "report.html")


# The page


class Tags(HTMLParser):
    """Open and close tags must match, and nothing may refer to anything outside the file."""

    void = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    page = page_of(study(tmp_path), tmp_path)
    assert "http://" not in page
    assert "https://" not in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"link", "img", "iframe", "object", "base"} & set(tags.seen)
    assert not {"src", "href", "srcset", "data"} & tags.attributes
    assert not any(name.startswith("on") for name in tags.attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme:dark" in page


def test_each_picture_is_well_formed_and_within_its_box(tmp_path: Path) -> None:
    pictures = re.findall(r"<svg viewBox.*?</svg>", page_of(study(tmp_path), tmp_path), re.DOTALL)
    assert len(pictures) == 8  # two data sets: top-1, loss, throughput, waiting
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            assert not any(word in text for text in element.attrib.values() for word in ("nan", "inf"))
            if element.tag == "text":
                assert 0 <= float(element.attrib["x"]) <= width
                assert 0 <= float(element.attrib["y"]) <= height


def test_a_line_breaks_where_its_value_is_not_finite() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 2.0), (7, 2.5)]
    picture = charts.curves([charts.Line("a", 1, points, [])], "t")
    assert picture.count('class="line') == 2
    assert picture.count('r="1.8"') == 1  # epoch 4 stands alone
    assert "epoch 3: a nan" in picture


def test_hostile_names_and_settings_come_out_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'&\x00\n"
    names = ("method__name", "student__model", "teacher__model", "data__dataset")
    settings: dict[str, Any] = dict.fromkeys(names, bad)
    said = {"warnings": [bad], bad: bad}
    folder = write_run(tmp_path / "run", [1.0, 2.0], method__T=bad, summary=said, **settings)
    env = {bad: bad, "device_name": bad, "deep": {bad: [bad]}, "half of a pair": "\ud800"}
    (folder / "env.json").write_text(json.dumps(env), encoding="utf-8")
    other = write_run(tmp_path / "other", [1.0, 2.0], method__T="other", **settings)
    page = page_of([read_run(folder), read_run(other)], tmp_path)
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x00" not in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    for picture in re.findall(r"<svg .*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(picture)


def test_the_page_says_what_it_shows(tmp_path: Path) -> None:
    page = page_of(study(tmp_path), tmp_path)
    for said in ("last epoch", "best epoch (chosen on the test set)", "unfinished (epoch 3/5)", "A Device"):
        assert said in page
    assert "no finite value: gone" in page
    assert "<b>gone, small, seed 0</b>: nan!" in page
    assert page.count("<details>") == 12
    assert "25.0%" in page  # waiting for data
    assert "Warnings" not in page_of([read_run(tmp_path / "one")], tmp_path)


def test_what_a_cache_saved_is_shown(tmp_path: Path) -> None:
    counts = {"teacher_forwards": 1000, "cache_hits": 3000, "cache_misses": 1000}
    runs = [
        write_run(tmp_path / "a", [50.0], summary=counts),
        write_run(tmp_path / "b", [51.0], run__seed=1, summary=dict.fromkeys(counts, 0)),
    ]
    shown = page_of([read_run(run) for run in runs], tmp_path)
    assert "<h2>Teacher cache</h2>" in shown
    assert shown.count("of the teacher's") == 1
    assert "3,000 of the teacher's 4,000 answers were read, 1,000 computed: 75.0 % saved" in shown
    assert "Teacher cache" not in page_of([read_run(runs[1])], tmp_path)


def test_long_runs_show_their_last_quarter_again(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / f"r{i}", [float(i + e) for e in range(40)], method__T=i))
        for i in (1, 2)
    ]
    runs.append(read_run(write_run(tmp_path / "bad", [1.0] * 40, method__name="flat")))
    runs.insert(0, read_run(write_run(tmp_path / "nan", [*[50.0] * 39, math.nan], method__name="broken")))
    page = page_of(runs, tmp_path)
    assert "last quarter" in page
    assert "without broken, flat" in page
    tail = page.split("last quarter")[-1].split("</figure>")[0]
    assert "epoch 30:" not in tail
    assert "epoch 31:" in tail


def test_charts_compare_within_one_student(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / net, [10.0], student__model=net)) for net in ("a", "b")]
    teachers = [
        write_run(tmp_path / n, [10.0], kind="teacher", student__model=n) for n in ("large", "unused")
    ]
    runs += [read_run(folder) for folder in teachers]
    titles = re.findall(r"<h3>(.*?)</h3>", page_of(runs, tmp_path))
    assert titles == ["a", "b", "teachers"]


def test_a_teacher_known_by_its_file_only_is_drawn_with_the_student(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "t", [10.0], kind="teacher", student__model="large")
    student = write_run(tmp_path / "s", [10.0], teacher__model="", teacher__path="somewhere")
    titles = re.findall(r"<h3>(.*?)</h3>", page_of([read_run(teacher), read_run(student)], tmp_path))
    assert titles == ["small"]


def test_the_page_replaces_the_old_one_only_when_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [read_run(write_run(tmp_path / "run", [1.0]))]
    out = tmp_path / "report.html"
    out.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device; name a file"):
            write_html(runs, out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]
    write_html(runs, out)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    monkeypatch.chdir(tmp_path)
    for nowhere in (tmp_path / "nowhere" / "report.html", out / "report.html", tmp_path, Path()):
        with pytest.raises(UserError, match="name a file in a writable folder"):
            write_html(runs, nowhere)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


# The drawing


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 100.0), (71.2, 71.9), (-3.0, 4.0), (1e-7, 3e-7), (0, 1e29), (5.0, 5.0001)]
)
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 * abs(high) <= found[0] < found[-1] <= high * (1 + 1e-9)
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-6), 3) in (1, 2, 5)


def test_ticks_of_epochs_are_whole() -> None:
    assert charts.ticks(1, 3, least_step=1.0) == [1, 2, 3]


@pytest.mark.parametrize(("low", "high"), [(0.01, 30.0), (1e-12, 1e29), (3.0, 95.0)])
def test_log_ticks_are_few_and_within(low: float, high: float) -> None:
    found = charts.log_ticks(low, high)
    assert 2 <= len(found) <= 8
    assert low <= found[0] < found[-1] <= high


def test_labels_keep_their_distance_and_stay_inside() -> None:
    placed = charts.spread([5.0, 50.0, 50.5, 51.0, 99.0, 99.5], 13.0, 0.0, 100.0)
    assert all(b - a >= 13.0 - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= 0
    assert placed[-1] <= 100


def test_a_loss_of_many_decades_is_drawn_on_a_log_scale() -> None:
    lines = [charts.Line("a", 1, [(1, 0.01), (2, 0.02)], []), charts.Line("b", 2, [(1, 9.0), (2, 1e25)], [])]
    assert "log scale" in charts.curves(lines, "t", log=True)
    assert "log scale" not in charts.curves(lines, "t")
    zero = charts.Line("zero", 3, [(1, 0.0)], [])
    assert "log scale" not in charts.curves([*lines, zero], "t", log=True)


def test_twenty_lines_differ_in_colour_or_dash() -> None:
    assert len({charts.styled(i) for i in range(21)}) == 21


def test_the_report_needs_no_torch() -> None:
    code = "import sys, fastkd.report; assert 'torch' not in sys.modules; from fastkd.methods import PLAIN"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(report.__file__).parents[1])
