#!/usr/bin/env bash
# Makes the environment and nothing else: .venv in the repository root, with fastkd (editable) and its
# development tools in the versions of constraints.txt. Returns at once when nothing has changed.
# PYTHON=/path/to/python3 ./scripts/setup.sh picks the interpreter.
set -euo pipefail
# A relative PYTHON is meant from where the user stands.
if [[ ${PYTHON:-} == */* && $PYTHON != /* ]]; then PYTHON=$PWD/$PYTHON; fi
CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# When .venv is activated, its own Python is no base to remake it from.
PATH=${PATH//"$PWD/.venv/bin:"/}

venv_python=.venv/bin/python
stamp=.venv/fastkd-setup    # "unfinished" while this script works, then the fingerprint of what it made
log=.venv/fastkd-setup.log  # what pip said

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

trap 'printf "\nsetup: stopped; run it again at any time\n" >&2; exit 130' INT TERM

# Prints the version; fails when the interpreter does not run or is older than 3.10.
version_of() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The same text as long as the folder, its Python and what is asked for are the same.
fingerprint() {
    "$venv_python" -c '
import hashlib, os, sys
asked = b"".join(open(path, "rb").read() for path in sys.argv[1:])
print(os.getcwd(), sys.version.split()[0], hashlib.sha256(asked).hexdigest())
' pyproject.toml setup.py constraints.txt scripts/setup.sh 2>/dev/null
}

# Root gets the Debian packages installed; everyone else is told the command.
apt_install() {
    local fix="apt-get update && apt-get install -y $*" output
    command -v apt-get >/dev/null || die "install $* with your system's package manager, or point PYTHON at another Python >= 3.10"
    [[ $(id -u) == 0 ]] || die "run this, then ./scripts/setup.sh again:  sudo sh -c '$fix'"
    say "installing the system package $* ($fix)"
    # A stale mirror among several fails the update, not necessarily the install.
    apt-get update -qq >/dev/null 2>&1 || true
    output=$(DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" 2>&1) ||
        die "$output" "this failed:  $fix"
}

# Sets python: the first that can make an environment, else the first that is new enough.
find_python() {
    local name old=
    python=
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if ! version_of "$name" >/dev/null; then
            old=${old:-$(version_of "$name" || true)}
        elif can_make_venv "$name"; then
            python=$name
            return
        else
            python=${python:-$name}
        fi
    done
    [[ -z $python ]] || return 0
    [[ -z $old ]] || die "no python3 >= 3.10 found; python3 is $old. Install a newer one," \
        "or name one:  PYTHON=/path/to/python3.11 ./scripts/setup.sh"
    say "no python3 found"
    apt_install python3 python3-venv
    version_of python3 >/dev/null || die "the system's python3 is older than 3.10. Install a newer one," \
        "or name one:  PYTHON=/path/to/python3.11 ./scripts/setup.sh"
    python=python3
}

# Why the .venv that is there cannot be used; nothing when it can.
defect() {
    local found
    if [[ -f $stamp && $(<"$stamp") == unfinished ]]; then
        echo "an earlier run was interrupted"
    elif ! found=$(version_of "$venv_python"); then
        echo "it has no working Python >= 3.10"
    elif ! "$venv_python" -c 'import pip' 2>/dev/null; then
        echo "it has no pip"
    elif [[ -f $stamp && $(<"$stamp") != "$PWD "* ]]; then
        echo "it was made in another folder"
    elif [[ -n ${PYTHON:-} && $(version_of "$PYTHON") != "$found" ]]; then
        echo "it has Python $found, PYTHON=$PYTHON is another"
    fi
}

make_venv() {
    local python=${PYTHON:-} package
    [[ -n $python ]] || find_python
    if ! can_make_venv "$python"; then
        # Debian's package carries the version: python3.11-venv.
        package=python$(version_of "$python" | cut -d. -f1,2)-venv
        say "$python cannot make environments: its venv module is not installed"
        apt_install "$package"
        can_make_venv "$python" || die "$package is installed, but $python still lacks venv and ensurepip;" \
            "name another:  PYTHON=/path/to/python3.11 ./scripts/setup.sh"
    fi
    # Only now: until here the old one may still be of use.
    rm -rf .venv
    say "making .venv with $(command -v "$python") ($(version_of "$python"))"
    mkdir .venv
    echo unfinished >"$stamp"
    "$python" -m venv .venv || die "could not make .venv, see the lines above"
}

# One dot a package and a line for what takes long; all that pip says goes to the log.
pip_install() {
    "$venv_python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        -c constraints.txt "$@" 2>&1 | tee -a "$log" | while read -r line; do
        case $line in
            *Downloading*[MG]B\)) printf '\n  %s ' "$line" ;;
            "Installing collected packages"*,*) printf '\n  Unpacking %d packages ' "$(wc -w <<<"${line#*: }")" ;;
            Collecting* | *Retrying*) printf . ;;
        esac
    done
}

explain_pip() {
    printf '\n'
    # Asked first: without a network pip ends with an error about versions that only misleads.
    if grep -qE 'Max retries|Retrying|Name or service|name resolution|unreachable|timed out|ProxyError' "$log"; then
        die "pip cannot reach its package index. Check the network and 'pip config list', then run this again." \
            "All that it said: $log"
    fi
    grep -E 'ERROR|error:' "$log" | tail -n 5 >&2 || true
    if grep -qi 'no space left' "$log"; then
        die "the disk is full: the environment needs 2 GB, with CUDA libraries 8 GB. Free some and run this again"
    fi
    die "pip failed. All that it said: $log"
}

if [[ -n ${PYTHON:-} ]]; then
    version_of "$PYTHON" >/dev/null ||
        die "PYTHON=$PYTHON is not a Python >= 3.10 (found: $(version_of "$PYTHON" || true))"
fi
if [[ ! -e .venv ]]; then
    make_venv
else
    reason=$(defect)
    if [[ -n $reason ]]; then
        say "the .venv that is there is replaced: $reason"
        make_venv
    elif [[ -f $stamp && $(<"$stamp") == "$(fingerprint)" ]]; then
        say ".venv is up to date"
        exit 0
    fi
fi
echo unfinished >"$stamp"
: >"$log"
start=$SECONDS
printf 'setup: installing fastkd and its tools (minutes the first time) '
# setuptools first and no build isolation: the build then needs nothing that constraints.txt does not name.
pip_install setuptools || explain_pip
pip_install --no-build-isolation -e '.[dev]' || explain_pip
printf '\n'
fingerprint >"$stamp"
say "done in $((SECONDS - start)) s; .venv/bin/fastkd is ready"
