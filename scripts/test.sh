#!/usr/bin/env bash
# All checks: ruff, mypy, then pytest, to which arguments go (--slow runs the slow tests too; a path runs those tests only).
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$repository/scripts/setup.sh"
set_up "$repository"
cd "$repository"
echo "test: ruff check"
.venv/bin/python -m ruff check .
echo "test: ruff format --check"
.venv/bin/python -m ruff format --check .
echo "test: mypy"
.venv/bin/python -m mypy
echo "test: pytest $*"
exec .venv/bin/python -m pytest "$@"
