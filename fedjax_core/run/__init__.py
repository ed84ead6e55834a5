"""The outer loop: many rounds, checkpoints and exact resume, metrics and evaluation."""

from fedjax_core.run.checkpoint import CheckpointError
from fedjax_core.run.fit import fit, load_best
from fedjax_core.run.history import History
from fedjax_core.run.model_file import load_model, save_model
from fedjax_core.run.monitor import Best
from fedjax_core.run.simulation import Extras, Simulation

__all__ = [
    "Best",
    "CheckpointError",
    "Extras",
    "History",
    "Simulation",
    "fit",
    "load_best",
    "load_model",
    "save_model",
]
