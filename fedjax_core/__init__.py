"""fedjax_core: federated learning on JAX, one algorithm definition for simulated lanes, many devices, and
real sites.

>>> import fedjax_core as fc, numpy as np, optax, jax
>>> clients = fc.Clients.from_list([{"x": np.eye(3, dtype=np.float32)[:n], "y": np.zeros(n, np.int32)} for n in (1, 3, 2)])
>>> algorithm = fc.algorithms.fedavg(fc.models.logistic(features=3, classes=2), local=optax.sgd(0.1))
>>> simulator = fc.Simulator(fc.compose(algorithm), clients, batch_size=2, epochs=1)
>>> state, metrics = simulator.run(simulator.init(jax.random.key(0)), [0, 1, 2])
>>> f"{float(metrics['loss']):.4f}"
'0.6850'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedjax_core import aggregators, algorithms, attacks, metrics, models, tree, uplink
from fedjax_core.cluster import ClusterSimulator
from fedjax_core.composition import compose
from fedjax_core.data import Clients, Cohort, cohorts, partition, preprocess, synthetic
from fedjax_core.knn_per import knn_per
from fedjax_core.lanes import (
    AsynchronousSimulator,
    Buffer,
    Delays,
    Evaluation,
    Simulator,
    Sweep,
    cores,
    cross_evaluate,
    evaluate,
    grid,
    predict,
)
from fedjax_core.loops import Loops
from fedjax_core.newcomers import newcomers
from fedjax_core.personalise import personalise
from fedjax_core.round import Round, State
from fedjax_core.run import History, fit, load_best, load_model, save_model
from fedjax_core.task import Task
from fedjax_core.types import Batch

if TYPE_CHECKING:
    from fedjax_core import contribution, privacy, release, stats
    from fedjax_core.sites.federation import Federation

__version__ = "0.1.0"

__all__ = [
    "AsynchronousSimulator",
    "Batch",
    "Buffer",
    "Clients",
    "ClusterSimulator",
    "Cohort",
    "Delays",
    "Evaluation",
    "Federation",
    "History",
    "Loops",
    "Round",
    "Simulator",
    "State",
    "Sweep",
    "Task",
    "aggregators",
    "algorithms",
    "attacks",
    "cohorts",
    "compose",
    "contribution",
    "cores",
    "cross_evaluate",
    "evaluate",
    "fit",
    "grid",
    "knn_per",
    "load_best",
    "load_model",
    "metrics",
    "models",
    "newcomers",
    "partition",
    "personalise",
    "predict",
    "preprocess",
    "privacy",
    "release",
    "save_model",
    "stats",
    "synthetic",
    "tree",
    "uplink",
]


# With scipy, which these need, a process would spend 2 s more of a processor before it begins.
_LATER = ("contribution", "privacy", "release", "stats")


def __getattr__(name: str) -> Any:
    """Imports at first use what not everybody needs and takes long to import or needs libraries of its
    own."""
    if name in _LATER:
        return import_module(f"{__name__}.{name}")
    if name == "Federation":
        from fedjax_core.sites.federation import Federation

        return Federation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return __all__
