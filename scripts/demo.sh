#!/usr/bin/env bash
# The main job: a federated study of seventeen hospitals. Arguments go to experiments/alzheimer_trial.py (try --help).
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$repository/scripts/setup.sh"
set_up "$repository"
cd "$repository"
echo "demo: python experiments/alzheimer_trial.py $*"
exec .venv/bin/python experiments/alzheimer_trial.py "$@"
