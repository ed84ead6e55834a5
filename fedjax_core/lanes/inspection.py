"""The reports of a simulated round, client by client: update, weight, state, stats and metrics.

A round adds reports up as they come, and keeps none. `Simulator.inspect` runs the same round and keeps the
requested pieces of every client's report, in the order of the cohort.

>>> import jax, optax
>>> from fedjax_core import algorithms, compose, models
>>> from fedjax_core.data import Clients
>>> from fedjax_core.lanes import Simulator
>>> clients = Clients.from_list([{"x": np.full((n, 1), n, np.float32), "y": np.ones(n, np.float32)} for n in (1, 2)])
>>> simulator = Simulator(compose(algorithms.fedavg(models.linear(features=1), optax.sgd(0.05))), clients, batch_size=2, lanes=2)
>>> state, metrics, (visits,) = simulator.inspect(simulator.init(jax.random.key(0)), [1, 0], ("update", "weight"))
>>> visits.client.tolist(), visits.weight.tolist(), visits.update["w"].round(2).tolist()
([1, 0], [2.0, 1.0], [[0.20000000298023224], [0.10000000149011612]])
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_core.metrics import Mean, Sum
from fedjax_core.round import Kept
from fedjax_core.types import Update


class Visits(NamedTuple):
    """The reports of a cohort in one exchange: NumPy leaves [K, ...] in its order; None for pieces that were
    not requested."""

    client: np.ndarray  # [K] int32: positions in the population
    here: np.ndarray  # [K] bool: whose report counts; the rows of others are zeros
    times: np.ndarray  # [K] float32: how often the client was drawn; its report counts that often
    update: Update | None = None  # as the server reads them, after the stages of the uplink
    weight: np.ndarray | None = None  # [K] float32, of one report, not times `times`
    kept: Kept | None = None  # what clients keep now
    stats: dict[str, np.ndarray] | None = None  # what the server sees of each client by itself
    metrics: dict[str, Mean | Sum] | None = None  # of each client's steps and report


PIECES = Visits._fields[3:]
"""The pieces that can be requested."""


def check_pieces(pieces: Sequence[str]) -> tuple[str, ...]:
    """The pieces in the order of `PIECES`; raises ValueError for an unknown one, and for none."""
    wanted = (pieces,) if isinstance(pieces, str) else tuple(pieces)
    if not wanted or not set(wanted) <= set(PIECES):
        raise ValueError(
            f"pieces are one or several of {', '.join(PIECES)}, got {', '.join(map(repr, wanted)) or 'none'}"
        )
    return tuple(name for name in PIECES if name in wanted)


def in_order(pieces: dict[str, Any], cohort: np.ndarray) -> Visits:
    """The pieces of K places or more, as rows of the clients of the cohort."""
    pieces = jax.device_get(pieces)
    sort = np.argsort(pieces["client"], kind="stable")
    rows = sort[np.searchsorted(pieces["client"][sort], cohort)]
    return Visits(**jax.tree.map(lambda x: x[rows], pieces))
