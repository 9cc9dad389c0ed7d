"""The rules of the house that a reader cannot be asked to remember.

Each rule is a function from a file to the lines that break it. Every rule is run over the repository, and
over a planted violation that it must find.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from fastkd import methods, models

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fastkd", "loaders")
SOURCES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAX_LINES = 300
HEAVY = ("torch", "numba", "tensorboard", "torchvision")

# Packages a user may not have, and the files that exist to use them; the rest imports them when asked to.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "ffcv": ("loaders/ffcv_file.py",),
    "nvidia": ("loaders/dali_graph.py",),
    "pycocotools": ("loaders/coco.py", "fastkd/tasks/detection.py"),
    "timm": (),
    "torchvision": ("fastkd/models/imagenet.py", "fastkd/models/detection.py", "fastkd/tasks/detection.py"),
    "wandb": (),
}
PRINTERS = ("fastkd/cli/*", "fastkd/engine/console.py", "fastkd/report.py")

Rule = Callable[[PurePosixPath, ast.Module], Iterator[str]]


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes(), str(path))


def strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Whole string literals: no docstrings, no pieces of f-strings."""
    exempt: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                exempt.add(id(first.value))
        elif isinstance(node, ast.JoinedStr):
            exempt.update(id(piece) for piece in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in exempt:
            yield node


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and full name of what import statements ask for: `from a import b` may mean module a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported, at whatever depth, without what only type checkers read."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def no_names(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    """A method or a model is named where it is defined and by the user; only a registry compares names."""
    if path.match("fastkd/methods/*") or path.match("fastkd/models/*"):
        return
    known = {*methods.names(), *models.names()}
    for node in strings(tree):
        if node.value in known:
            yield f"{path}:{node.lineno}: the name '{node.value}' of a method or model as a string"


def distributed_in_one_file(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    if path.match("fastkd/engine/parallel.py"):
        return
    used = [(node.lineno, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for line, name in [*imports(ast.walk(tree)), *used]:
        if f"{name}.".startswith("torch.distributed."):
            yield f"{path}:{line}: torch.distributed outside fastkd/engine/parallel.py"


def optional_packages_wait(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(at_import(tree)):
        package = name.partition(".")[0]
        if package in OPTIONAL and str(path) not in OPTIONAL[package]:
            yield f"{path}:{line}: {package} is optional; import it in the function that uses it"


def no_bare_except(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{path}:{node.lineno}: a bare except"


def no_print(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    if any(path.match(pattern) for pattern in PRINTERS):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path}:{node.lineno}: print; say it through fastkd/engine/console.py"


def nouns_only(path: PurePosixPath, _tree: ast.Module) -> Iterator[str]:
    for part in (*path.parts[:-1], path.stem):
        if part in {"utils", "util", "helpers", "helper", "common", "misc"}:
            yield f"{path}: '{part}' says nothing; name the module after what it holds"


RULES: list[Rule] = [
    no_names,
    distributed_in_one_file,
    optional_packages_wait,
    no_bare_except,
    no_print,
    nouns_only,
]

# rule, file, code: each must be found
PLANTED: list[tuple[Rule, str, str]] = [
    (no_names, "fastkd/engine/x.py", f"if name == {methods.names()[0]!r}: pass"),
    (no_names, "fastkd/engine/x.py", f"match name:\n  case {methods.names()[-1]!r}: pass"),
    (no_names, "loaders/x.py", f"NAMES = {{{models.names()[0]!r}: 1}}"),
    (distributed_in_one_file, "fastkd/methods/x.py", "import torch.distributed as dist"),
    (distributed_in_one_file, "fastkd/methods/x.py", "from torch import distributed"),
    (distributed_in_one_file, "fastkd/methods/x.py", "def f():\n  from torch.distributed import barrier"),
    (distributed_in_one_file, "fastkd/engine/loop.py", "import torch\ntorch.distributed.barrier()"),
    (optional_packages_wait, "loaders/device.py", "import nvidia.dali.fn as fn"),
    (
        optional_packages_wait,
        "loaders/device.py",
        "try:\n  from ffcv import loader\nexcept ImportError:\n  pass",
    ),
    (optional_packages_wait, "fastkd/engine/x.py", "class Log:\n  import wandb"),
    (no_bare_except, "loaders/x.py", "try:\n  pass\nexcept:\n  pass"),
    (no_print, "fastkd/engine/loop.py", "def f():\n  print(1)"),
    (nouns_only, "fastkd/engine/utils.py", ""),
    (nouns_only, "loaders/common/x.py", ""),
]

# rule, file, code: none may be found
ALLOWED: list[tuple[Rule, str, str]] = [
    (no_names, "fastkd/engine/x.py", f'"""{methods.names()[0]}"""'),
    (no_names, "fastkd/engine/x.py", f"x = 'as {methods.names()[0]} does'; y = f'{{x}}{methods.names()[0]}'"),
    (no_names, f"fastkd/methods/{methods.names()[0]}.py", f"name = {methods.names()[0]!r}"),
    (distributed_in_one_file, "fastkd/engine/parallel.py", "import torch.distributed"),
    (optional_packages_wait, "loaders/dali_graph.py", "import nvidia.dali"),
    (optional_packages_wait, "fastkd/engine/x.py", "def f():\n  import wandb"),
    (optional_packages_wait, "fastkd/engine/x.py", "if TYPE_CHECKING:\n  import wandb"),
    (no_bare_except, "loaders/x.py", "try:\n  pass\nexcept OSError:\n  pass"),
    (no_print, "fastkd/cli/x.py", "print(1)"),
    (no_print, "loaders/x.py", "x.print(1)"),
    (nouns_only, "fastkd/engine/parallel.py", ""),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule):
    assert SOURCES
    broken = [line for path in SOURCES for line in rule(PurePosixPath(path), parsed(path))]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("rule", "path", "code"), PLANTED)
def test_a_planted_violation_is_found(rule: Rule, path: str, code: str):
    assert list(rule(PurePosixPath(path), ast.parse(code)))


@pytest.mark.parametrize(("rule", "path", "code"), ALLOWED)
def test_what_is_allowed_is_not_reported(rule: Rule, path: str, code: str):
    assert not list(rule(PurePosixPath(path), ast.parse(code)))


def test_every_rule_has_a_planted_violation():
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_file_can_be_held_in_the_head(path: Path):
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it by what it holds"


# ---- import time


def heavy_after(statement: str, folder: Path) -> list[str]:
    """Which of the slow packages a fresh interpreter has loaded after `statement`."""
    probe = f"{statement}\nimport sys\nsys.stdout.write(' '.join({{*{HEAVY}}} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import fastkd",
        "import fastkd.cli.main",
        "import fastkd.cli.lists",
        "import fastkd.methods; fastkd.methods.names()",
        "import fastkd.models; fastkd.models.names()",
        "import fastkd.config, fastkd.recipes",
        "import fastkd.report",
    ],
)
def test_names_and_help_do_not_wait_for_torch(statement: str):
    assert heavy_after(statement, ROOT) == []


def test_a_planted_slow_import_is_found(tmp_path: Path):
    (tmp_path / "slow.py").write_text("import sys\nsys.modules['torch'] = sys\n")
    assert heavy_after("import slow", tmp_path) == ["torch"]


# ---- what the repository's texts may not hold

# Folders of one machine. Put together here, so that this file does not hold them either.
MACHINE_PATH = re.compile(
    r"(?<![\w.$}~/-])/(?:" + "|".join(("work", "root", "tmp/bash", "tmp/w")) + r")(?=[/_.\s'\"`)]|$)"
)


def kept_files() -> list[Path]:
    """What git tracks or would track; in an unpacked archive without git, the sources."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = listed.stdout.split("\0") if listed.returncode == 0 else map(str, SOURCES)
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def machine_paths(path: Path) -> list[str]:
    content = path.read_bytes()
    if b"\0" in content:
        return []
    lines = content.decode("utf-8", errors="replace").splitlines()
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for number, line in enumerate(lines, 1)
        if MACHINE_PATH.search(line)
    ]


def test_no_text_names_a_folder_of_one_machine():
    found = [line for path in kept_files() for line in machine_paths(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    ["see /" + "work/main", "cd '/" + "root/x'", "`/" + "tmp/bash_jobs.0`", 'p = "/' + 'work"'],
)
def test_a_planted_machine_path_is_found(tmp_path: Path, text: str):
    (tmp_path / "a.md").write_text(f"first\n{text}\n")
    assert len(machine_paths(tmp_path / "a.md")) == 1


@pytest.mark.parametrize("text", ["a/work/b", "host.org/work/x", "/workers", "$TMP/root/", "../root/x"])
def test_other_paths_are_not_reported(tmp_path: Path, text: str):
    (tmp_path / "a.md").write_text(text)
    assert machine_paths(tmp_path / "a.md") == []
