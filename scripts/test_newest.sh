#!/usr/bin/env bash
# The tests of what depends on JAX and Python, with the newest releases of both (constraints-newest.txt) in .venv-newest.
# Does nothing where there is no Python 3.13. Arguments go to pytest, and paths replace the usual ones.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$repository/scripts/setup.sh"
newest=""
for candidate in python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3.13; do
    if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then newest="$candidate"; fi
done
if [ -z "$newest" ]; then
    echo "test_newest: no Python 3.13 with venv here, so nothing was tested with the newest releases"
    exit 0
fi
export FEDJAX_CORE_PYTHON="$newest" FEDJAX_CORE_VENV=.venv-newest
set_up "$repository"
cd "$repository"
# What calls JAX in a way of its own: files and records, and rounds at sites that are the same rounds again, are left to test.sh.
usual=(
    tests/algorithms tests/aggregators tests/uplink tests/models tests/xla tests/test_contracts.py tests/test_backends.py
    tests/lanes/test_simulator.py tests/lanes/test_evaluate.py tests/lanes/test_mesh.py tests/lanes/test_hosts.py
    tests/lanes/test_low_precision.py tests/sites/site/test_endpoint.py tests/sites/site/test_client_update.py
    tests/stats/test_describe.py
)
[ $# -gt 0 ] || set -- "${usual[@]}"
exec "$FEDJAX_CORE_VENV/bin/python" -m pytest -n auto --maxprocesses 8 --dist loadgroup --no-loadscope-reorder "$@"
