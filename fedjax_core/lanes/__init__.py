"""The lane simulator: clients queued in vmapped lanes, whole rounds in one compiled program."""

from fedjax_core.buffer import Buffer
from fedjax_core.lanes.asynchronous import AsynchronousSimulator, Delays
from fedjax_core.lanes.evaluate import Evaluation, cross_evaluate, evaluate, predict
from fedjax_core.lanes.mesh import cores
from fedjax_core.lanes.simulator import Simulator
from fedjax_core.lanes.sweep import Sweep, grid

__all__ = [
    "AsynchronousSimulator",
    "Buffer",
    "Delays",
    "Evaluation",
    "Simulator",
    "Sweep",
    "cores",
    "cross_evaluate",
    "evaluate",
    "grid",
    "predict",
]
