"""`plan.json` in a run's folder: how many rounds the run is to have, and why it stopped, for anybody who watches the folder.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> read_plan(folder)
Plan(rounds=None, stopped='')
>>> write_plan(folder, Plan(rounds=30))
>>> read_plan(folder)
Plan(rounds=30, stopped='')
"""

import json
from pathlib import Path
from typing import NamedTuple

from fedjax_core.files import write_whole

PLAN = "plan.json"


class Plan(NamedTuple):
    """The planned length of a run."""

    rounds: int | None = None
    """In all, with those of earlier starts; None where the folder does not say it."""
    stopped: str = ""
    """Why the run stopped, as `History.stopped` has it; empty while it goes on, and after a crash."""

    @property
    def over(self) -> bool:
        """Whether the run has ended by itself; one that was interrupted goes on with the same command."""
        return self.stopped not in ("", "interrupted")


def write_plan(run_dir: Path, plan: Plan, *, private: bool = False) -> None:
    """Puts the plan into the run's folder; with `private` the file is for its owner alone."""
    write_whole(run_dir / PLAN, json.dumps(plan._asdict()) + "\n", private=private)


def read_plan(run_dir: Path) -> Plan:
    """The plan in a run's folder; an empty one where there is none, or where the file is none."""
    try:
        record = json.loads((run_dir / PLAN).read_text())
        rounds, stopped = record["rounds"], record["stopped"]
    except (OSError, ValueError, KeyError, TypeError):
        return Plan()
    return Plan(rounds if type(rounds) is int and rounds > 0 else None, str(stopped))
