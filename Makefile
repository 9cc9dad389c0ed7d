# make check is what a change must pass before it is looked at, make test is what it must pass to go in.
.PHONY: setup fmt check test slow test-gpu bench

setup:
	./scripts/setup.sh

fmt: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Style, types, layers and the house rules; under a minute.
check:
	./scripts/test.sh tests/contract/test_code.py

test:
	./scripts/test.sh

# The long proofs: whole runs, real data. pytest prints what it skips and why.
slow: setup
	.venv/bin/python -m pytest -m slow -rs --timeout 0

test-gpu: setup
	.venv/bin/python -m pytest -m gpu -rs

# Every claim of benchmarks/, on a reduced size.
bench: setup
	@set -e; for program in benchmarks/*.py; do echo "== $$program"; .venv/bin/python "$$program" --quick; done
