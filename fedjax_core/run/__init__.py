"""The outer loop: many rounds, checkpoints and exact resume, metrics and evaluation."""

from fedjax_core.run.checkpoint import CheckpointError
from fedjax_core.run.fit import History, fit, load_best
from fedjax_core.run.monitor import Best

__all__ = ["Best", "CheckpointError", "History", "fit", "load_best"]
