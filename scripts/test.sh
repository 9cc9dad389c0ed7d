#!/usr/bin/env bash
# All checks and the tests: what a change must pass. Arguments go to pytest: ./scripts/test.sh tests/unit -x
# Every stage runs; the exit code is that of the first that failed.
set -euo pipefail
CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh

# The tests' tensors are tiny, and some tests start several processes: more threads only get in each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-2}"
export NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-2}"

first_failure=0

report() { # name, exit code, seconds
    local verdict=ok
    if [[ $2 != 0 ]]; then
        verdict="FAILED (exit code $2)"
        [[ $first_failure != 0 ]] || first_failure=$2
    fi
    printf '%-14s %4d s  %s\n' "$1" "$3" "$verdict"
}

# Silent unless it fails.
stage() {
    local name=$1 start=$SECONDS code=0 output
    shift
    output=$("$@" 2>&1) || code=$?
    [[ $code == 0 ]] || printf '%s\n' "$output"
    report "$name" "$code" $((SECONDS - start))
}

stage "ruff check" .venv/bin/ruff check .
stage "ruff format" .venv/bin/ruff format --check .
stage mypy .venv/bin/mypy
stage lint-imports .venv/bin/lint-imports

start=$SECONDS code=0
.venv/bin/python -m pytest "$@" || code=$?
report pytest "$code" $((SECONDS - start))

exit "$first_failure"
