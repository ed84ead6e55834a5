#!/usr/bin/env bash
# The main job: a federated study on real patients' records. Arguments go to experiments/breast_cancer.py (try --help).
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$repository/scripts/setup.sh"
set_up "$repository"
cd "$repository"
echo "demo: python experiments/breast_cancer.py $*"
exec .venv/bin/python experiments/breast_cancer.py "$@"
