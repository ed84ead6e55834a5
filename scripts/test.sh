#!/usr/bin/env bash
# All checks: ruff, mypy, then pytest, to which arguments go: a path runs those tests only; -n 0 runs them in one process, which
# a debugger needs; --long runs those of tests/long.txt too, --slow these and the slow ones, and --since REV those of the folders that changed since a commit (`yesterday`: since
# the newest one that is a day older than the last), of which --slow-minutes M begins none later than M minutes after the start.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$repository/scripts/setup.sh"
set_up "$repository"
cd "$repository"
python="${FEDJAX_CORE_VENV:-.venv}/bin/python"
echo "test: ruff check"
"$python" -m ruff check .
echo "test: ruff format --check"
"$python" -m ruff format --check .
echo "test: mypy"
"$python" -m mypy
echo "test: pytest -n auto $*"
exec "$python" -m pytest -n auto --maxprocesses 8 --dist loadgroup --no-loadscope-reorder "$@"
