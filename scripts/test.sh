#!/usr/bin/env bash
# All checks: ruff, mypy, then pytest, to which arguments go (--slow runs the slow tests too; a path runs those tests only;
# -n 0 runs them in one process, which a debugger needs).
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
exec "$python" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
