#!/usr/bin/env bash
# From nothing to a report: a teacher, a student alone, and the same student taught in two ways.
# Stop it with Ctrl-C and start it again: finished parts are not redone. --fresh starts over.
set -euo pipefail
CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    "") ;;
    --fresh) rm -rf save/quickstart ;;
    *)
        echo "usage: ./scripts/quickstart.sh [--fresh]" >&2
        exit 2
        ;;
esac

trap 'printf "\nStopped. ./scripts/quickstart.sh goes on from here.\n"; exit 130' INT

step() { printf '\n== %s\n' "$*"; }

runs=save/quickstart
train_student() { # method, folder, further flags
    .venv/bin/python train_student.py --dataset shapes --distill "$1" --path-t "$runs/teacher" \
        --out "$runs/$2" --resume auto "${@:3}"
}

step "1/6 The environment: .venv with everything fastkd needs"
./scripts/setup.sh

step "2/6 The teacher: a larger network learns the built-in data set 'shapes'"
.venv/bin/python train_teacher.py --dataset shapes --out "$runs/teacher" --resume auto

step "3/6 The student alone: a smaller network, from the labels only"
train_student vanilla alone

step "4/6 The same student, also learning the teacher's soft labels (KD)"
train_student kd kd --teacher-cache "$runs/cache"

step "5/6 The same student, learning the relations between the teacher's features (RRD); the teacher's answers are kept from step 4"
train_student rrd rrd --teacher-cache "$runs/cache"

step "6/6 The report: accuracy, time and curves of the four runs side by side"
.venv/bin/fastkd report "$runs/teacher" "$runs/alone" "$runs/kd" "$runs/rrd" --out report.html

printf '\nDone. Open %s/report.html in a browser.\n' "$PWD"
