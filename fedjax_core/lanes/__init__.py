"""The lane simulator: clients queued in vmapped lanes, whole rounds in one compiled program."""

from fedjax_core.lanes.evaluate import Evaluation, evaluate, predict
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.lanes.sweep import Sweep, grid

__all__ = ["Evaluation", "Simulator", "Sweep", "evaluate", "grid", "predict"]
