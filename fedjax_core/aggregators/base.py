"""An aggregator: how reports meet.

    acc = add(zero(shapes, K), updates, weights, positions)      value, state = value(merge(acc, acc'), state, key)

Reports arrive a few at a time, [n, ...]: from the lanes that end a client in the same slot, or one from a hospital. Accumulators
made apart (devices, workers, sites) merge into the one that all reports together would have made. `apply` is all of it at once, and
`of_reports` makes an aggregator of a rule on a matrix with a row a client:

>>> highest = of_reports("highest", lambda rows, here, weights, key: jnp.max(jnp.where(here[:, None], rows, -jnp.inf), axis=0))
>>> apply(highest, jnp.array([[1.0, 4.0], [3.0, 2.0], [9.0, 9.0]]), here=[True, True, False]).tolist()
[3.0, 4.0]
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_core import tree
from fedjax_core.settings import Settings
from fedjax_core.types import Array, Key, Update


class Aggregator(NamedTuple):
    """A way to make one value of many reports. A report of weight 0 is not there, and must not count."""

    name: str
    zero: Callable[[Update, int], Any]  # (the update's shapes, K places in the cohort) -> empty accumulator
    add: Callable[[Any, Update, Array, Array], Any]
    """(acc, updates [n, ...], weights [n], positions [n] int32) -> acc; a position is the client's place in the cohort, each filled once,
    and K (past the end) where the weight is 0."""
    value: Callable[[Any, Any, Key], tuple[Update, Any]]
    """(acc, state, key) -> (value, state); zeros where nothing was added. The key is for draws, such as who is put into which group."""
    keeps: Literal["sum", "reports"]
    """`sum`: as much as one update, whatever the cohort's size; `reports`: every report, K times the memory."""
    init: Callable[[Update], Any] = lambda shapes: ()
    """The update's shapes -> what the server keeps for it between rounds, such as the last value."""
    linear: bool = False
    """Values of parts, added again by their weights, are the value of the whole: reports may be gathered apart, and have a meaning only
    when they are added."""
    merge: Callable[[Any, Any], Any] = tree.add
    settings: Settings = Settings()
    """What it was made with, by the names of the arguments: `with_settings` fills it in."""


class Reports(NamedTuple):
    """Every report in its client's place in the cohort."""

    updates: Update  # each leaf [K, ...]; zeros where nobody reported
    weights: Array  # [K] float32; 0 where nobody reported


def of_reports(name: str, rule: Callable[[Array, Array, Array, Key], Array]) -> Aggregator:
    """The aggregator of a rule on all reports: (rows [K, P], here [K] bool, weights [K], key) -> row [P].

    A client's row has all leaves of its update one after another; where it is not here, it has zeros. K may be larger than the cohort.
    Where nobody is here, the value is zeros whatever the rule makes of that.
    """

    def zero(shapes: Update, cohort: int) -> Reports:
        check_floating(name, shapes)
        return Reports(jax.tree.map(lambda x: jnp.zeros((cohort, *x.shape), x.dtype), shapes), jnp.zeros(cohort))

    def add(acc: Reports, updates: Update, weights: Array, positions: Array) -> Reports:
        return tree.put(acc, positions, Reports(updates, weights.astype(jnp.float32)))

    def value(acc: Reports, state: Any, key: Key) -> tuple[Update, Any]:
        _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], acc.updates))
        rows, here = jax.vmap(lambda update: ravel_pytree(update)[0])(acc.updates), acc.weights > 0
        row = rule(rows, here, acc.weights, key)
        return unravel(jnp.where(jnp.any(here), row, 0).astype(rows.dtype)), state

    return Aggregator(name, zero, add, value, keeps="reports")


def apply(aggregator: Aggregator, updates: Update, weights: Any = None, here: Any = None, *, key: Key | None = None) -> Update:
    """The value that `aggregator` makes of these updates, leaves [K, ...], in a first round; those who are not `here` [K] did not report.

    `weights` [K]: all 1 where not given.
    """
    places = jnp.arange(len(jax.tree.leaves(updates)[0]))
    there = jnp.ones(places.shape, bool) if here is None else jnp.asarray(here, bool)
    weights = jnp.where(there, jnp.ones(places.shape) if weights is None else jnp.asarray(weights, jnp.float32), 0)
    there = weights > 0
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates)
    rows = tree.where(there, updates, tree.zeros_like(updates))
    acc = aggregator.add(aggregator.zero(shapes, len(places)), rows, weights, jnp.where(there, places, len(places)))
    return aggregator.value(acc, aggregator.init(shapes), jax.random.key(0) if key is None else key)[0]


def check_floating(name: str, shapes: Update) -> None:
    """Raises where a report has whole numbers in it, of which an average would keep nothing after the point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{name}() averages numbers with a point, and a client reports {jax.tree_util.keystr(path) or 'an array'} as {leaf.dtype}: "
                "report it with .astype(jnp.float32)"
            )
