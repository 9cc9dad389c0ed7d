"""The documents' commands work, and the paths they name exist."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import pytest

from fastkd.cli import main as console
from fastkd.cli import train

ROOT = Path(__file__).parents[2]
DOCS = sorted(ROOT.glob("*.md"))


def commands() -> list[str]:
    """Lines of code blocks, fenced or indented, that call something of ours; trailing comments taken off."""
    starts = ("python ", "fastkd ", "torchrun ", "./scripts/", "make ", "pip ")
    found = []
    for doc in DOCS:
        for line in doc.read_text().splitlines():
            text = line.strip().strip("`")
            is_code = line.startswith(("    ", *starts))
            if is_code and text.startswith(starts):
                found.append(re.sub(r"\s{2,}#.*| # .*", "", text))
    return sorted(set(found))


@pytest.mark.parametrize("line", [c for c in commands() if "train_" in c or "fastkd train-" in c])
def test_training_commands_run_dry(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    at = next(
        k
        for k, word in enumerate(words)
        if "train" in word and not word.startswith("-") and word != "torchrun"
    )
    script = "teacher" if "teacher" in words[at] else "student"
    if "--cfg" in words:  # stands for any run's own configuration
        assert train.main(script, "train", ["--dry-run", "--dataset", "shapes"]) == 0
        config = tmp_path / "config.yaml"
        config.write_text(capsys.readouterr().out)
        words[words.index("--cfg") + 1] = str(config)
    assert train.main(script, "train", [*words[at + 1 :], "--dry-run"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().err == ""
    assert {p.name for p in tmp_path.iterdir()} <= {"config.yaml"}, "a dry run writes nothing"


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("fastkd ") and "train-" not in c])
def test_other_commands_are_spelt_right(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    with pytest.raises(SystemExit) as ended:
        console.main([*words[1 : 3 if words[1] == "cache" else 2], "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for word in words[2:]:
        if word.startswith("--"):
            assert word in told, f"{word} of '{line}' is unknown"


@pytest.mark.parametrize(
    "line", [c for c in commands() if c.startswith(("./scripts/", "make ", "python benchmarks"))]
)
def test_scripts_and_targets_exist(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    else:
        assert (ROOT / next(w for w in words if "/" in w)).is_file()


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_paths_exist_and_nothing_is_left_open(doc: Path) -> None:
    text = doc.read_text()
    named = re.findall(r"[`(]((?:fastkd|loaders|configs|tests|scripts|benchmarks)(?:/[\w.-]+)*)/?[`)]", text)
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert not missing
    assert "@@" not in text


def test_the_example_method_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert block
    (tmp_path / "example_method.py").write_text(textwrap.dedent(block[1]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "shapes", "--distill", "example_method:FitNet", "-b", "50", "--dry-run"]
    assert train.main("student", "train", words) == 0, capsys.readouterr().err
    assert "tap: stage2" in capsys.readouterr().out


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 12
