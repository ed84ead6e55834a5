"""Evaluates a model on every client's examples: pooled and client by client, from the same sums.

Batches never mix clients, so that a loss in which examples meet is right too. Many batches go to the device
together and through the model at once. On a CPU they go one after another where the model has convolutions,
windows or products of batches of matrices: with one more axis these are slow there (us an example, 1,024 of
them, 2-core x86):

    batches of 8, and of 64        at once          one after another
    CNN of two convolutions        521    517       65      57
    transformer                    434    423       223     159
    LSTM                           693    718       1,092   562
    MLP 784-200-200-10             1.8    1.8       2.0     2.3
    logistic regression            0.06   0.05      0.14    0.11

>>> import jax, numpy as np
>>> from fedjax_core import models
>>> from fedjax_core.data import Clients
>>> clients = Clients.from_list([{"x": np.ones((n, 2), np.float32), "y": np.full(n, n, np.float32)} for n in (1, 3)])
>>> task = models.linear(features=2)
>>> found = evaluate(task, task.init(jax.random.key(0)), clients)
>>> found.pooled["loss"], found.clients["loss"].tolist()
(7.0, [1.0, 9.0])
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from fedjax_core.algorithms.base import Algorithm
from fedjax_core.client_state import ClientState
from fedjax_core.constants import compiled, remembered
from fedjax_core.data.batches import in_order
from fedjax_core.data.clients import Clients
from fedjax_core.data.cohort import as_cohort
from fedjax_core.data.columns import narrow
from fedjax_core.data.features import check_same
from fedjax_core.data.task_check import check_data
from fedjax_core.evaluation import CrossEvaluation, crossed, pool
from fedjax_core.evaluation import Evaluation as Evaluation
from fedjax_core.round import State
from fedjax_core.task import Task, check_predictions, check_values
from fedjax_core.types import Batch, Params
from fedjax_core.xla.rewrite import jaxprs

_SMALL = 2  # the size of a batch whose shapes alone are looked at
_ROWS = 4096  # examples a dispatch: large enough to fill a device, small enough for any image


def evaluate(task: Task, params: Params, clients: Clients, *, personal: Params | None = None) -> Evaluation:
    """Evaluates the task's metrics, without dropout and the like; `personal` (leaves [N, ...]) gives each
    client a model of its own.

    Where a client's sum is not finite, the metric is pooled over the others, and `Evaluation.without` names
    it."""
    check_data(
        task, clients, _SMALL, params=params if personal is None else jax.tree.map(lambda x: x[0], personal)
    )
    sizes, sums = clients.sizes, _sums(task, params, clients, personal)
    each = {
        name: np.divide(total, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
        for name, total in sums.items()
    }
    pooled = {name: pool(clients.ids, sizes, total) for name, total in sums.items()}
    without = {name: lacking for name, (_, lacking) in pooled.items() if lacking}
    return Evaluation({name: value for name, (value, _) in pooled.items()}, each, sizes, without=without)


def cross_evaluate(task: Task, models: Mapping[str, Params], clients: Clients) -> CrossEvaluation:
    """Evaluates every model on every client's examples: the numbers that `Federation.cross_evaluate` gathers
    from sites."""
    results: dict[tuple[int, int], tuple[int, Mapping[str, float]] | str] = {}
    check_data(task, clients, _SMALL, params=next(iter(models.values()), None))
    for m, params in enumerate(models.values()):
        sums = _sums(task, params, clients)
        for i, size in enumerate(clients.sizes):
            results[m, i] = (
                (int(size), {name: total[i] for name, total in sums.items()})
                if size
                else "it has no examples"
            )
    return crossed(list(models), [str(name) for name in clients.ids], results)


def evaluate_state(
    algorithm: Algorithm, state: State, trained: Clients, kept: ClientState, on: Clients | None = None
) -> Evaluation:
    """Evaluates the model of a state `on` these clients (default: those `trained` on); where the algorithm
    gives clients models of their own, each client on its own."""
    clients, personal = trained if on is None else on, None
    if isinstance(on, Clients):
        check_same(trained.features, on.features)
    if algorithm.personal is not None:
        if len(clients) != kept.population:
            raise ValueError(
                f"each client is evaluated on a model of its own, so these must be the same {kept.population} clients, got {len(clients)}. "
                "For the global model on other data, such as a central test set: fc.evaluate(task, state.params, central); in fc.fit, "
                "evaluate=lambda sim, state: fc.evaluate(task, state.params, central).pooled"
            )
        personal = _models(algorithm.personal)(state.server, kept.everyone(state).own)
    return evaluate(algorithm.task, state.params, clients, personal=personal)


def score_state(
    algorithm: Algorithm, state: State, clients: Clients, positions: Any, kept: ClientState
) -> dict[str, np.ndarray]:
    """Each metric of the clients at these positions [n], {name: [n]}, under a state's model or each one's
    own; NaN without examples.

    The programs are those of an evaluation of all `clients`, however many are asked for.
    """
    positions = as_cohort(positions, len(clients)).clients
    task, personal = algorithm.task, None
    if algorithm.personal is not None:
        personal = _models(algorithm.personal)(
            state.server, kept.rows_of(state, np.asarray(positions, np.int64)).own
        )
    check_data(task, clients, _SMALL, params=state.params)
    sums, sizes = _sums(task, state.params, clients, personal, positions), clients.sizes[positions]
    return {
        name: np.divide(total, sizes, out=np.full(len(positions), np.nan), where=sizes > 0)
        for name, total in sums.items()
    }


def predict(task: Task, params: Params, clients: Clients) -> np.ndarray:
    """The model's outputs for every example in the order stored, [examples, ...]: for metrics made on the
    host (AUROC, concordance)."""
    if task.predict is None:
        raise ValueError(
            "this task has no predict=: give fc.Task(..., predict=lambda params, batch: outputs)"
        )
    predictions: np.ndarray | None = None
    for rows, _, batches in _chunks(clients):
        outputs = np.asarray(_outputs(task)(params, batches))
        if predictions is None:
            predictions = np.zeros((clients.examples, *outputs.shape[2:]), outputs.dtype)
        predictions[rows[rows >= 0]] = outputs[rows >= 0]
    assert predictions is not None  # Clients refuses to hold no examples
    return predictions


def _sums(
    task: Task, params: Params, clients: Clients, personal: Params | None = None, positions: Any = None
) -> dict[str, np.ndarray]:
    """Each metric's sum over the examples of each client, or of those at these `positions`: {name: [n]
    float64}."""
    count = len(clients) if positions is None else len(positions)
    totals: dict[str, np.ndarray] = {}
    for rows, owner, batches in _chunks(clients, positions):
        model = (
            jax.tree.map(lambda x, owner=owner: jnp.take(x, owner, axis=0), personal)
            if personal is not None
            else params
        )
        for name, sums in jax.device_get(batch_sums(task, personal is not None)(model, batches)).items():
            into = totals.setdefault(name, np.zeros(count))
            np.add.at(into, owner, np.asarray(sums, np.float64) * (rows >= 0).any(axis=1))
    # where none of them has an example
    return totals or {name: np.zeros(count) for name in _names(task, params, clients)}


def _names(task: Task, params: Params, clients: Clients) -> list[str]:
    """The metrics of the task's evaluation."""
    columns = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)),
        clients.columns,
    )
    mask: Any = jax.ShapeDtypeStruct((1,), jnp.float32)
    return list(jax.eval_shape(task.evaluation, params, Batch(columns, mask)))


def _chunks(clients: Clients, positions: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray, Batch]]:
    """Yields (rows [G, B], the place in `positions` of each batch's client [G], the batches with leaves [G,
    B, ...]), padded to one shape."""
    sizes = clients.sizes
    size = int(np.clip(2 ** np.ceil(np.log2(max(1.0, np.median(sizes[sizes > 0])))), 8, 512))
    positions = np.arange(len(clients)) if positions is None else np.asarray(positions, np.int64)
    rows, steps = in_order(positions, clients.offsets, size)
    places = np.repeat(np.arange(len(positions)), steps)
    group = min(max(1, _ROWS // size), int((-(-sizes // size)).sum()))
    for begin in range(0, len(rows), group):
        part, owner = rows[begin : begin + group], places[begin : begin + group]
        short = group - len(part)
        part, owner = np.pad(part, ((0, short), (0, 0)), constant_values=-1), np.pad(owner, (0, short))
        part[group - short :] = ~clients.offsets[
            positions[owner[0]]
        ]  # padding reads an example that is there
        examples = jax.tree.map(
            jnp.asarray,
            narrow(jax.tree.map(lambda x, part=part: x[np.where(part < 0, ~part, part)], clients.columns)),
        )
        yield part, owner, Batch(examples, jnp.asarray(part >= 0, jnp.float32))


@lru_cache(maxsize=32)
def _models(personal: Callable[[Any, Any], Params]) -> Any:
    """(server, own [n, ...]) -> each client's own model [n, ...]."""
    return jax.jit(jax.vmap(personal, in_axes=(None, 0)))


@remembered(maxsize=32)
def batch_sums(task: Task, personal: bool = False) -> Any:
    """(params, batches [G, B, ...]) -> the sum of each metric over each batch, {name: [G]}; `personal`:
    params are [G, ...], too."""

    def one(params: Params, batch: Batch) -> dict[str, jax.Array]:
        values = task.evaluation(params, batch)
        check_values(values, batch.mask.shape[0])
        return {
            name: jnp.sum(jnp.where(batch.mask > 0, v.astype(jnp.float32), 0)) for name, v in values.items()
        }

    return _each(task, one, personal)


@remembered(maxsize=32)
def _outputs(task: Task) -> Any:
    predict = task.predict
    assert predict is not None

    def one(params: Params, batch: Batch) -> jax.Array:
        outputs = predict(params, batch)
        check_predictions(outputs, batch.mask.shape[0])
        return outputs

    return _each(task, one)


def _each(task: Task, one: Callable[[Params, Batch], Any], personal: bool = False) -> Any:
    """`one(params, batch)` of every batch."""

    def each(params: Params, batches: Batch) -> Any:
        first = (
            jax.tree.map(lambda x: x[0], (params, batches))
            if personal
            else (params, jax.tree.map(lambda x: x[0], batches))
        )
        if jax.default_backend() == "cpu" and _slow_with_an_axis_more(
            jax.make_jaxpr(lambda *first: one(*first))(*first).jaxpr
        ):
            return (
                lax.map(lambda both: one(*both), (params, batches))
                if personal
                else lax.map(partial(one, params), batches)
            )
        return jax.vmap(one, in_axes=(0 if personal else None, 0))(params, batches)

    return compiled(each, task.constants)


def _slow_with_an_axis_more(jaxpr: core.Jaxpr) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith(("conv_general_dilated", "reduce_window")):
            return True
        if eqn.primitive.name == "dot_general" and eqn.params["dimension_numbers"][1][0]:
            return True
        if any(map(_slow_with_an_axis_more, jaxprs(tuple(eqn.params.values())))):
            return True
    return False
