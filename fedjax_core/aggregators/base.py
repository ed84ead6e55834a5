"""An aggregator: how reports meet.

    acc = add(zero(shapes, K), updates, weights, positions)      value(merge(acc, acc'))

Reports arrive a few at a time, [n, ...]: from the lanes that end a client in the same slot, or one from a hospital. Accumulators
made apart (devices, workers, sites) merge into the one that all reports together would have made.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.types import Array, Update, known


def check_floating(name: str, shapes: Update) -> None:
    """Raises where a report has whole numbers in it, of which an average would keep nothing after the point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{name}() averages numbers with a point, and a client reports {jax.tree_util.keystr(path) or 'an array'} as {leaf.dtype}: "
                "report it with .astype(jnp.float32)"
            )


class Aggregator(NamedTuple):
    """A way to make one value of many reports. A report of weight 0 is not there: its update is zeros and it must not count."""

    name: str
    zero: Callable[[Update, int], Any]  # (the update's shapes, K places in the cohort) -> empty accumulator
    add: Callable[[Any, Update, Array, Array], Any]
    """(acc, updates [n, ...], weights [n], positions [n] int32) -> acc; a position is the client's place in the cohort, each filled once,
    and K (past the end) where the weight is 0."""
    value: Callable[[Any], Update]  # zeros where nothing was added
    additive: bool
    """Only sums are kept, whatever the cohort's size; otherwise every report is, K times the memory."""
    merge: Callable[[Any, Any], Any] = tree.add


def is_mean(aggregator: Aggregator) -> bool:
    """Whether it makes the mean by weight of what it is given, whatever it is called: seen from two numbers."""
    if not aggregator.additive:
        return False
    acc = aggregator.add(aggregator.zero(jnp.zeros(1), 2), jnp.array([[1.0], [4.0]]), jnp.array([2.0, 1.0]), jnp.arange(2))
    value = aggregator.value(acc)
    return not known(value) or bool(jnp.allclose(value, 2.0, rtol=1e-3))
