"""METHODS.md is what the code and the measurements say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastkd import methods, recipes
from fastkd.cli import catalogue
from fastkd.method import LOGITS, POOLED, Needs

ROOT = Path(__file__).parents[2]
KEPT = (ROOT / "METHODS.md").read_text()


@pytest.fixture(scope="module")
def page() -> str:
    return catalogue.page()


def cells(page: str, name: str) -> dict[str, str]:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    found = next(line for line in lines if line.startswith(f"| [{name}]"))
    header, row = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in (lines[0], found))
    return dict(zip(header, row, strict=True))


def test_the_kept_file_is_not_stale(page: str) -> None:
    assert page == KEPT, "fastkd methods --markdown > METHODS.md"


@pytest.mark.parametrize("name", methods.names())
def test_a_method_has_a_row_and_a_section_with_all_its_numbers(page: str, name: str) -> None:
    assert cells(page, name)["source"] == catalogue.one_line(
        (methods.load(name).__doc__ or "").split("\n\n")[0]
    )
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    for field in dataclasses.fields(methods.load(name).Config):
        assert f"`{field.name}` " in section
    for row in recipes.rows("methods", name):
        assert row.why in section
        assert all(f"`{key}` " in section for key in row.set)


def test_what_is_trained_is_counted(page: str) -> None:
    """resnet32x4 and resnet8x4 have 256 pooled features, the embeddings 128."""
    embedding = 256 * 128 + 128
    wanted = {
        "kd": "0",
        "crd": f"{2 * embedding:,}",
        "rrd": f"{embedding:,}",
        "ctkd": "1",
        "fsp": "0; phase 1: 0",
    }
    assert {name: cells(page, name)["trained besides the student"] for name in wanted} == wanted
    translator, phase = cells(page, "ft")["trained besides the student"].split("; phase 1: ")
    assert 0 < int(translator.replace(",", "")) < int(phase.replace(",", ""))


def test_other_names_needs_and_phases_are_there(page: str) -> None:
    assert cells(page, "fitnet")["method"] == "[fitnet](#fitnet) (hint)"
    assert cells(page, "crd")["also reads"] == "which pictures they are, 16,384 negatives a picture"
    assert cells(page, "ft")["phases before it"] == "30 epochs, the student waits"
    assert cells(page, "ft")["teacher cache"] == "maps; phase 1: read too"
    assert cells(page, "fsp")["student's taps"] == "-; phase 1: stem, stage1, stage2, stage3"
    assert cells(page, "fsp")["teacher cache"] == "not asked; phase 1: asked live"
    assert cells(page, "kdsvd")["graph-safe"].startswith("no: torch.linalg.svd reads on the host")


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (Needs(), "not asked"),
        (Needs(teacher=(LOGITS,)), "logits"),
        (Needs(teacher=(LOGITS, POOLED)), "pooled"),
        (Needs(teacher=("stage1", POOLED)), "maps"),
        (Needs(teacher=(LOGITS,), views=2), "never: the second view"),
        (Needs(teacher=(LOGITS,), live_teacher=True), "never: the teacher is shown"),
    ],
)
def test_what_a_cache_has_to_hold(needs: Needs, says: str) -> None:
    assert catalogue.cacheable(needs).startswith(says)


def test_a_reason_is_the_whole_paragraph() -> None:
    doc = "A method.\n\nNot graph_safe: it waits\nfor the host.\n\nMore."
    assert catalogue.why_not_graph_safe(doc) == "it waits for the host."


def test_costs_are_read_where_they_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"time/crd": 1.0961, "memory/crd": 2.019, "time/ab, phase 1": 1.5, "memory/ab, phase 1": 2.5}
    path = tmp_path / "methods.json"
    path.write_text(json.dumps({"machine": {"device_name": "a machine"}, "ratios": ratios}))
    monkeypatch.setattr(catalogue, "MEASURED", path)
    page = catalogue.page()
    assert "plain kd's on a machine" in page
    assert cells(page, "crd")["cost"] == "1.10 x time, 2.02 x memory"
    assert cells(page, "ab")["cost"] == "not measured; phase 1: 1.50 x time, 2.50 x memory"
    path.unlink()
    assert cells(catalogue.page(), "crd")["cost"] == "not measured"
