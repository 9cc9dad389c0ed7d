"""The scripts a person runs. setup.sh is driven with a stand-in for Python, so nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
STAMP = ROOT / ".venv" / "fastkd-setup"
INPUTS = ("pyproject.toml", "setup.py", "constraints.txt", "scripts/setup.sh")

# Programs setup.sh may use besides Python. apt-get is not among them: a test must not change the machine.
PROGRAMS = ("bash", "cat", "cut", "dirname", "grep", "id", "mkdir", "rm", "sleep", "tail", "tee", "wc")

# Does what a Python does as far as setup.sh can tell: "-m venv" makes a folder with itself in it, pip only
# writes down that it was asked. FAKE_OLD: too old. FAKE_NO_VENV: Debian's without python3-venv.
# FAKE_PIP: what pip does besides.
FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cat "$0" >"$3/bin/python" && chmod +x "$3/bin/python" ;;
    "-m pip")
        echo "$*" >>"$FAKE_LOG"
        echo "Collecting numpy==1.0"
        eval "${FAKE_PIP:-}"
        ;;
    *)
        [[ -z ${FAKE_OLD:-} ]] || { [[ $2 != *version_info* ]] || echo 3.9.2; exit 1; }
        [[ -z ${FAKE_NO_VENV:-} || $2 != *ensurepip* ]] || exit 1
        exec "@PYTHON@" "$@"
        ;;
esac
"""


class Checkout:
    """As much of a checkout as setup.sh reads, below a folder with a space in its name, and its own PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.bin = folder / "bin"
        self.asked = folder / "pip.log"
        for name in INPUTS:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        self.bin.mkdir()
        for name in PROGRAMS:
            (self.bin / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
        # chmod is the stand-in's own need
        (self.bin / "chmod").symlink_to(shutil.which("chmod") or pytest.skip("no chmod here"))
        self.add_python("python3")

    def add_python(self, name: str) -> None:
        # the real path: a wrapper would look for programs this PATH does not have
        (self.bin / name).write_text(FAKE_PYTHON.replace("@PYTHON@", os.path.realpath(sys.executable)))
        (self.bin / name).chmod(0o755)

    def environment(self, **changes: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "FAKE_LOG": str(self.asked), **changes}

    def setup(self, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "scripts/setup.sh")],
            cwd="/", env=self.environment(**changes), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def start_endless_setup(self) -> subprocess.Popen[str]:
        """Returns once it is waiting for pip, in a process group of its own."""
        process = subprocess.Popen(
            [str(self.root / "scripts/setup.sh")],
            env=self.environment(FAKE_PIP="sleep 60"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        end = time.monotonic() + 20
        while not self.asked.exists():
            assert time.monotonic() < end, "pip was never asked"
            time.sleep(0.02)
        return process

    def pip_calls(self) -> int:
        return len(self.asked.read_text().splitlines()) if self.asked.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_can_be_run(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_setup_of_this_checkout_is_a_no_op():
    if not STAMP.exists() or any((ROOT / name).stat().st_mtime > STAMP.stat().st_mtime for name in INPUTS):
        pytest.skip("no up-to-date .venv here; ./scripts/setup.sh makes it")
    before = STAMP.stat().st_mtime_ns
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    done = subprocess.run(
        [str(ROOT / "scripts/setup.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "setup: .venv is up to date\n"
    assert STAMP.stat().st_mtime_ns == before


def test_setup_installs_once(checkout: Checkout):
    first = checkout.setup()
    assert first.returncode == 0, first.stderr
    assert checkout.pip_calls() == 2
    second = checkout.setup()
    assert (second.returncode, second.stdout) == (0, "setup: .venv is up to date\n")
    assert checkout.pip_calls() == 2


def test_setup_installs_again_when_a_requirement_changed(checkout: Checkout):
    checkout.setup()
    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("# another version\n")
    again = checkout.setup()
    assert again.returncode == 0
    assert "making .venv" not in again.stdout  # in place
    assert checkout.pip_calls() == 4


def test_a_half_made_venv_is_made_anew(checkout: Checkout):
    (checkout.root / ".venv").mkdir()
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "replaced: it has no working Python" in done.stdout


def test_a_killed_setup_is_made_good_by_the_next(checkout: Checkout):
    process = checkout.start_endless_setup()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    left = checkout.root / ".venv" / "left by the first run"
    left.touch()
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert not left.exists()


def test_ctrl_c_stops_setup_with_one_line(checkout: Checkout):
    process = checkout.start_endless_setup()
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 130
    assert "setup: stopped; run it again at any time" in said
    assert "pip" not in said


def test_a_moved_checkout_gets_a_new_venv(checkout: Checkout):
    checkout.setup()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "it was made in another folder" in done.stdout


def test_a_python_without_venv_names_the_package(checkout: Checkout):
    done = checkout.setup(FAKE_NO_VENV="1")
    assert done.returncode == 1
    major, minor = sys.version_info[:2]
    assert f"python{major}.{minor}-venv" in done.stderr
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("user", ["0", "1000"])
def test_a_missing_system_package_is_installed_by_root_and_named_to_others(checkout: Checkout, user: str):
    (checkout.bin / "id").unlink()
    for name, body in {"id": f"echo {user}", "apt-get": f'echo "$*" >>"{checkout.asked}"'}.items():
        (checkout.bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (checkout.bin / name).chmod(0o755)
    done = checkout.setup(FAKE_NO_VENV="1")
    assert done.returncode == 1
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    if user == "0":
        assert checkout.asked.read_text().splitlines() == [
            "update -qq", f"install -y -qq --no-install-recommends {package}"
        ]  # fmt: skip
        assert "still lacks venv" in done.stderr  # this apt-get installs nothing
    else:
        assert f"sudo sh -c 'apt-get update && apt-get install -y {package}'" in done.stderr
        assert not checkout.asked.exists()


def test_too_old_a_python_is_named(checkout: Checkout):
    done = checkout.setup(FAKE_OLD="1")
    assert done.returncode == 1
    assert "no python3 >= 3.10 found; python3 is 3.9.2" in done.stderr
    assert "PYTHON=/path/to/python3.11 ./scripts/setup.sh" in done.stderr


def test_no_python_at_all(checkout: Checkout):
    (checkout.bin / "python3").unlink()
    done = checkout.setup()
    assert done.returncode == 1
    assert "no python3 found" in done.stdout
    assert "install python3 python3-venv with your system's package manager" in done.stderr


def test_another_python_on_the_path_is_found(checkout: Checkout):
    (checkout.bin / "python3").rename(checkout.bin / "python3.11")
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "making .venv with" in done.stdout


def test_a_wrong_python_is_refused_by_name(checkout: Checkout):
    done = checkout.setup(PYTHON="/no/such/python")
    assert done.returncode == 1
    assert "PYTHON=/no/such/python is not a Python >= 3.10" in done.stderr


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("ERROR: no matching distribution found for numba", "pip failed"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken", "pip cannot reach its package index"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_a_failing_pip_is_explained(checkout: Checkout, says: str, told: str):
    done = checkout.setup(FAKE_PIP=f"echo '{says}'; exit 1")
    assert done.returncode == 1
    assert told in done.stderr
    assert not says.startswith("ERROR") or says in done.stderr
    assert checkout.setup().returncode == 0  # once the cause is gone
