"""An aggregator for each of several slots: a client's report counts only in the slot that it names.

    value[s] = aggregator's value of the reports with slot s,    s = 0, ..., slots - 1

In clustered training the slot is the model that a client trained, in a hierarchy the client's group.
`compose` wraps the given aggregator in it where an exchange has `slots`.

>>> import jax.numpy as jnp
>>> from fedjax_core.aggregators.base import apply
>>> from fedjax_core.aggregators.mean import mean
>>> reports = Slotted(jnp.array([[1.0], [4.0], [6.0]]), jnp.array([0, 1, 1], jnp.int32))
>>> apply(slotted(mean(), 3), reports).tolist()
[[1.0], [5.0], [0.0]]
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.types import Array, Key, Update

_NOWHERE = 2**31 - 1  # past the end of any cohort


class Slotted(NamedTuple):
    """An update, and the slot that it is for."""

    update: Update
    slot: Array  # int32


def slotted(aggregator: Aggregator, slots: int) -> Aggregator:
    """`aggregator` for each of `slots` slots; its updates are `Slotted`, and its value has leaves [slots,
    ...]."""

    def each(of: Any, *args: Any) -> Any:
        return jax.vmap(of)(jnp.arange(slots, dtype=jnp.int32), *args)

    def add(acc: Any, updates: Slotted, weights: Array, positions: Array) -> Any:
        def one(slot: Array, acc: Any) -> Any:
            inside = updates.slot == slot
            places = jnp.where(inside, positions, _NOWHERE)
            return aggregator.add(acc, updates.update, jnp.where(inside, weights, 0), places)

        return each(one, acc)

    def value(acc: Any, state: Any, key: Key) -> tuple[Update, Any]:
        return each(
            lambda slot, acc, state: aggregator.value(acc, state, jax.random.fold_in(key, slot)), acc, state
        )

    def kept(acc: Any, state: Any, key: Key) -> Array:
        of = aggregator.kept
        assert of is not None
        return jnp.any(
            each(lambda slot, acc, state: of(acc, state, jax.random.fold_in(key, slot)), acc, state), axis=0
        )

    return aggregator._replace(
        zero=lambda shapes, cohort: each(lambda slot: aggregator.zero(shapes.update, cohort)),
        add=add,
        value=value,
        init=lambda shapes: each(lambda slot: aggregator.init(shapes.update)),
        merge=tree.add if aggregator.merge is tree.add else jax.vmap(aggregator.merge),
        kept=None if aggregator.kept is None else kept,
    )


def plain(update: Any) -> Update:
    """The update itself, if it is a `Slotted` without the slot."""
    return update.update if isinstance(update, Slotted) else update
