"""Checks that a task and the data fit each other, before anything is trained or counted.

    shapes      of every function of the task, on the columns as they are         nothing is computed
    values      by the task's own check: a label out of range, an event that is neither 0 nor 1
    numbers     the loss of a few examples: finite, and of each example alone unless the loss heeds `batch.mask`

Simulators, sites and the doctor call the same function, so that a site refuses what a simulation of it
refuses. What is refused is named by column, client and row, and never by its value.

>>> from fedjax_core.task import Task
>>> clients = Clients.from_list([{"x": np.ones((3, 2), np.float32), "y": np.ones((3, 1), np.float32)}])
>>> task = Task(init=lambda key: jnp.zeros(2), loss=lambda w, batch, key: (batch["x"] @ w - batch["y"]) ** 2)
>>> check_data(task, clients, batch_size=2)
Traceback (most recent call last):
ValueError: column 'y' has shape [n, 1], and the task needs [n]: with one axis more, every example would meet every other. Pass y[:, 0]
"""

import logging
from typing import Any
from weakref import WeakSet

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import keys, tree
from fedjax_core.constants import compiled, remembered
from fedjax_core.data import checks
from fedjax_core.data.clients import Clients
from fedjax_core.data.given import is_text
from fedjax_core.task import Task, check_task
from fedjax_core.types import Array, Batch, Params

log = logging.getLogger("fedjax_core")

_ROWS = 8  # examples whose loss is computed
_SCANNED = 64 << 20  # bytes of a column of whole numbers that are looked through for the largest
_CHUNK = 256  # examples at a time, where all of them are looked at
_LARGE = 1 << 30  # bytes of parameters from which nothing is computed: they may fit no single device


@remembered(maxsize=64)
def _fine(task: Task, batch_size: int, training: bool) -> "WeakSet[Clients]":
    """The clients whose data were found fine before, as the same ones are evaluated on in every round."""
    return WeakSet()


def check_data(task: Task, clients: Clients, batch_size: int, *, params: Params | None = None) -> None:
    """Raises where the task cannot be trained on these examples, or would learn something else than it says.

    With `params`, only what an evaluation of these needs is looked at: shapes of metrics, and values by the
    task's own check."""
    if not isinstance(clients, Clients):
        raise TypeError(
            f"clients= must be fc.Clients, got {type(clients).__name__}: make them with fc.Clients.from_list([columns, ...])"
        )
    training = params is None
    fine = _fine(task, batch_size, training)
    if clients in fine:
        return
    check_task(task, jax.tree.map(lambda x: x[:1], clients.columns), batch_size, params=params)
    if task.check is not None:
        task.check(clients)
    if training:
        _check_numbers(task, clients, batch_size)
    fine.add(clients)


def not_finite(task: Task, params: Params, clients: Clients) -> str | None:
    """The first example whose loss under these parameters is NaN or infinite, in words; None where there is
    none. Looks at all of them."""
    loss = compiled(
        lambda params, columns: task.evaluation(params, Batch(columns, jnp.ones(_CHUNK)))["loss"],
        task.constants,
    )
    for start in range(0, clients.examples, _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), clients.examples - 1)
        losses = np.asarray(loss(params, _examples(clients, rows)).astype(jnp.float32))
        if (bad := np.flatnonzero(~np.isfinite(losses))).size:
            return checks.where(int(rows[bad[0]]), clients.offsets, clients.ids)
    return None


def _examples(clients: Clients, rows: np.ndarray) -> Any:
    """These rows of every column, in the dtypes of a device."""
    return jax.tree.map(lambda x: x[rows].astype(jax.dtypes.canonicalize_dtype(x.dtype)), clients.columns)


def _check_numbers(task: Task, clients: Clients, batch_size: int) -> None:
    """Raises where the loss of some examples is not finite, or where examples meet in it although the mask
    says that they are not there."""
    params = jax.eval_shape(task.init, keys.shape())
    if tree.nbytes(params) > _LARGE:
        return
    rows = _telling(clients)
    columns = _examples(clients, rows)
    loss = _loss_of(task)
    tried = loss(_plausible(params), columns, np.ones(_ROWS, bool))
    if not np.isfinite(tried).all():  # perhaps only with these parameters
        begun = task.init(jax.random.key(0))
        tried = loss(begun, columns, np.ones(_ROWS, bool))
        if (bad := np.flatnonzero(~np.isfinite(tried))).size:
            what = "NaN" if np.isnan(tried[bad[0]]) else "infinite"
            raise ValueError(
                f"the loss of {checks.where(int(rows[bad[0]]), clients.offsets, clients.ids)}, is {what} for the model as it begins, so "
                "nothing could be trained on it: look at its columns, such as a label or a code that the model has no place for"
            )
        values: Params = begun
    else:
        values = _plausible(params)
    if not tried.any():
        log.warning(
            "the loss is 0 for all of the %d examples of %s that were looked at, whatever the model, so nothing can be learned from such: "
            "are all of them censored, or left out?",
            len(set(rows.tolist())),
            repr(clients.ids[0].item()) if len(clients) == 1 else f"{len(clients)} clients",
        )
    _check_apart(loss, values, columns, tried, batch_size)


class _Loss:
    """The task's loss of some examples, compiled once: 0.1 s for a small model and 0.4 s for a CNN (2-core
    x86)."""

    def __init__(self, task: Task) -> None:
        def loss(params: Params, columns: Any, mask: Array) -> Array:
            return task.loss(params, Batch(columns, mask), jax.random.key(0)).astype(jnp.float32)

        self._loss = compiled(loss, task.constants)

    def __call__(self, params: Params, columns: Any, mask: np.ndarray) -> np.ndarray:
        return np.asarray(self._loss(params, columns, mask.astype(np.float32)))


@remembered(maxsize=16)
def _loss_of(task: Task) -> _Loss:
    return _Loss(task)


def _check_apart(loss: _Loss, params: Params, columns: Any, together: np.ndarray, batch_size: int) -> None:
    half = _ROWS // 2
    mask = np.arange(_ROWS) < half

    def beside(row: int) -> np.ndarray:
        """The losses of the first half, with copies of this row in the place of padding."""
        rows = np.where(mask, np.arange(_ROWS), row)
        return loss(params, jax.tree.map(lambda x: x[rows], columns), mask)[:half]

    first, second = (
        beside(0),
        beside(1),
    )  # the largest and the smallest of a column
    if not _same(first, second):
        raise ValueError(
            "the loss of an example changes with examples of its batch that the mask leaves out, so padding would be trained on. Return "
            "the loss of each example by itself (an array [B, 1] that meets one [B] makes all pairs), or, where examples are meant to "
            "meet, leave out those whose batch.mask is 0"
        )
    if batch_size == 1 and not _same(first, together[:half]):
        log.warning(
            "the loss compares the examples of a batch with one another, and with batch_size=1 there are none to compare: a Cox model "
            "learns nothing so. Use larger batches"
        )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Up to rounding; what is not finite is no sign of anything."""
    here = np.isfinite(a) & np.isfinite(b)
    return bool(np.allclose(a[here], b[here], rtol=1e-3, atol=1e-5))


def _telling(clients: Clients) -> np.ndarray:
    """Positions of the examples most likely to be invalid for the model: those with the largest and smallest
    labels and codes."""
    likely: list[int] = []
    for column in jax.tree.leaves(clients.columns):
        if is_text(column) or not (column.ndim == 1 or column.dtype.kind in "iu"):
            continue
        step = 1 if column.ndim == 1 else max(1, column.nbytes // _SCANNED)
        part = np.asarray(column[::step])
        if not part.size:
            continue
        part = part.reshape(len(part), -1)
        likely += [step * int(part.argmax() // part.shape[1]), step * int(part.argmin() // part.shape[1])]
        if (
            column.dtype.kind == "f"
            and (odd := part[:, 0] != np.round(part[:, 0])).any()
            and odd.mean() < 0.5
        ):
            likely.append(int(np.argmax(odd)))  # among whole numbers, as a label of 1.5 is
    count = clients.examples
    likely = list(dict.fromkeys(likely))[:_ROWS]
    spread = [row for row in np.linspace(0, count - 1, _ROWS).astype(int).tolist() if row not in likely]
    return np.resize(np.array([*likely, *dict.fromkeys(spread)][:_ROWS]), _ROWS)


# numbers from 0 to 1, none like its neighbours
_PATTERN = np.modf(np.arange(1, 4097) * 0.6180339887498949)[0]


def _plausible(params: Any) -> Params:
    """Parameters of these shapes with which a model's outputs are of everyday size, made without the model's
    own draws."""

    def leaf(x: jax.ShapeDtypeStruct) -> np.ndarray:
        inputs = max(1, int(np.prod(x.shape[:-1])))
        return ((0.5 + np.resize(_PATTERN, x.shape)) / inputs).astype(x.dtype)

    return jax.tree.map(leaf, params)
