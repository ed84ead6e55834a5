"""Secure aggregation by pairwise masks: the server reads the sum of the reports, and of a single report nothing.

    sent_i = round(scale * w_i u_i) + sum_{j > i} m_ij - sum_{j < i} m_ij      in whole numbers modulo 2^32; m_ij drawn from key_ij
    sum_i sent_i = round(scale * sum_i w_i u_i)                                each mask is there once with each sign

All is exact: the masks cancel to the last bit, and the value is the mean by weight, to `1 / (2 scale)` a client and coordinate. Where a
client drops out after the others have masked, those who reported reveal the keys that they share with it, and the server takes those masks
off. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section 4, without its second
masks: so a server that takes a report for lost, asks for its masks, and has the report all the same can read it.

Needs `aggregators.total()`, and that keys be shared between each two clients (`Sender.pairs`). In a simulation these come of the run's key.

>>> import jax, jax.numpy as jnp
>>> from fedjax_core.uplink.base import message_shapes
>>> message_shapes(secure(), {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}).ring.update["w"].dtype.name
'uint32'
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_core import tree
from fedjax_core.settings import with_settings
from fedjax_core.types import Array, Key, Message, Own, Update, known
from fedjax_core.uplink.base import Info, Sender, Stage, stage


class Weighted(NamedTuple):
    """An update times its weight, and the weight."""

    update: Update
    weight: Array


class Masked(NamedTuple):
    """What crosses the wire."""

    ring: Weighted  # uint32, masked
    fits: Array  # float32: 0 where the report fits the ring, NaN where it does not, by which the server refuses it


@with_settings
def secure(scale: float = 2.0**16) -> Stage:
    """Hides each report in the sum of all; `scale` > 0 is how many steps there are between 0 and 1.

    Of K clients, each may add numbers (weight times update, and the weight) up to 2^31 / (scale K): more is refused, and so is what is not
    finite. In a simulation every mask is drawn, which is K times the size of an update for each client.
    """
    if known(scale) and not scale > 0:
        raise ValueError(f"secure needs a scale > 0, the number of steps between 0 and 1, got {scale}")

    def encode(state: Any, own: Own, update: Update, sender: Sender) -> tuple[Message, Own]:
        wanted = Weighted(jax.tree.map(lambda x: x.astype(jnp.float32) * sender.weight, update), sender.weight)
        most = (2**31 - 2**8) / jnp.maximum(jnp.sum(sender.here, dtype=jnp.float32), 1)
        fits = jnp.stack([jnp.all(jnp.abs(x * scale) <= most) for x in jax.tree.leaves(wanted)])  # NaN is not, either
        ring = jax.tree.map(lambda x: jnp.round(jnp.nan_to_num(x) * scale).astype(jnp.int32).astype(jnp.uint32), wanted)
        ring = _masked(ring, sender.pairs, _signs(sender.place, sender.here))
        return Masked(ring, jnp.where(jnp.all(fits), 0.0, jnp.nan).astype(jnp.float32)), own

    def recover(state: Any, own: Own, sender: Sender, reported: Array) -> Array:
        dropped = sender.here & ~reported
        words = jax.random.key_data(sender.pairs)  # [K, words]
        return jnp.where(dropped[:, None], words, jnp.zeros_like(words))

    def finish(state: Any, value: Masked, info: Info, key: Key) -> tuple[Update, Any]:
        dropped = info.here & ~info.reported

        def unmask(i: Array, ring: Weighted) -> Weighted:
            """Without the masks that the client in place i shares with those who dropped out."""
            pairs = jax.random.wrap_key_data(info.recovered[i], impl=jax.random.key_impl(info.shared))
            return _masked(ring, pairs, -_signs(i, dropped) * info.reported[i].astype(jnp.int32))

        ring = lax.cond(jnp.any(dropped), lambda: lax.fori_loop(0, len(dropped), unmask, value.ring), lambda: value.ring)
        total = jax.tree.map(lambda x: x.astype(jnp.int32).astype(jnp.float32) / scale, ring)
        return tree.scale(jnp.where(total.weight > 0, 1 / jnp.where(total.weight > 0, total.weight, 1), 0), total.update), state

    return stage("secure", encode=encode, finish=finish, hides=True, recover=recover)


def _signs(place: Array, others: Array) -> Array:
    """[K] int32: 1 for the places of `others` [K] after `place`, -1 for those before it, else 0."""
    return jnp.sign(jnp.arange(len(others), dtype=jnp.int32) - place) * others.astype(jnp.int32)


def _masked(ring: Weighted, pairs: Key, signs: Array) -> Weighted:
    """The ring with the mask of each of these keys [K] added as often as its sign says: 1, 0 or -1 times."""
    structure: Any
    leaves, structure = jax.tree.flatten(ring)

    def add(j: Array, leaves: list[Array]) -> list[Array]:
        times = signs[j].astype(jnp.uint32)  # -1 is 2^32 - 1
        draws = [jax.random.bits(jax.random.fold_in(pairs[j], leaf), x.shape, jnp.uint32) for leaf, x in enumerate(leaves)]
        return [x + times * draw for x, draw in zip(leaves, draws, strict=True)]

    masked: Weighted = structure.unflatten(lax.fori_loop(0, len(signs), add, leaves))
    return masked
